"""The learner is a function of its log: batches, redelivery, restarts make no difference."""

import pickle
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.drift.sample import pack
from app.core.learner import Learner, LearnerEffects
from app.core.models import make_model
from app.core.pending import MATURITY
from app.core.recent import Recent
from app.records import Example, Summary
from tests.core.examined import plain

NAMES = ("a", "b", "c")
SCHEMA = "s1"
Log = list[tuple[int, Example | Summary]]


def example(
    id_: str,
    *,
    is_fraud: bool = False,
    offset: int = 0,
    source: str = "analyst",
    features: Sequence[float | None] = (1.0, 2.0, None),
    score: float = 0.5,
    schema: str = SCHEMA,
) -> Example:
    """One example, of which a test says what matters to it."""
    topic = "scores" if source == MATURITY else "labels"
    return Example(
        transaction_id=id_,
        time_ms=1_000 + offset,
        amount=5.0,
        entities={},
        score=score,
        features=list(features),
        feature_schema=schema,
        is_fraud=is_fraud,
        label_time_ms=2_000,
        label_source=source,
        origin=(topic, 0, offset),
    )


def summary(first: int, last: int, mean: float = 0.3) -> Summary:
    """A run of scores in numbers."""
    return Summary(
        partition=0, first_offset=first, last_offset=last, n=last - first + 1, n_alerts=0,
        mean_score=mean, first_time_ms=first, last_time_ms=last, feature_schema=SCHEMA,
    )  # fmt: skip


def learner_of(**bounds: Any) -> Learner:
    """A learner that has learnt nothing."""
    return Learner("champion", make_model("logistic", NAMES, seed=1), SCHEMA, **bounds)


def log_of(seed: int, n: int) -> Log:
    """Examples with missing features, labels again and corrected, summaries between."""
    rng = random.Random(seed)
    log: Log = []
    labels = 0
    for offset in range(n):
        if rng.random() < 0.05:
            log.append((offset, summary(offset * 10, offset * 10 + 9, rng.random())))
            continue
        id_ = f"t{rng.randrange(n)}" if rng.random() < 0.2 else f"t{offset}"
        source = MATURITY if rng.random() < 0.2 else "analyst"
        labels += source != MATURITY
        features = [rng.gauss(0, 2) if rng.random() > 0.1 else None for _ in NAMES]
        fact = example(
            id_,
            is_fraud=rng.random() < 0.2 and source != MATURITY,
            offset=labels if source != MATURITY else offset,
            source=source,
            features=features,
            score=rng.random(),
        )
        log.append((offset, fact))
    return log


def state_of(learner: Learner) -> bytes:
    """Everything a learner knows, as bytes that depend on nothing else."""
    state = {**learner.__getstate__(), "model": learner.model.state_digest()}
    state["evaluation"] = plain(state["evaluation"])
    for name in ("learnt", "decided"):
        state[name] = [(key, state[name].get(key)) for key in state[name]]
    watches = vars(state["monitor"])
    state["monitor"] = [
        (name, w.detector.width, w.detector.estimation, list(w.times_ms))
        if hasattr(w, "detector")
        else (name, w)
        for name, w in sorted(watches.items())
    ]
    return repr(sorted(state.items())).encode()


def heard(effects: LearnerEffects) -> list[tuple[str, str]]:
    """Who was told which outcome."""
    return [(o.transaction_id, o.outcome) for o in effects.outcomes]


@settings(max_examples=15, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_batches_make_no_difference(seed):
    """One by one or in batches of any size: the same learner to the last bit, the same words."""
    log, rng = log_of(seed, 300), random.Random(seed)
    learners, words = [], []
    for size in (1, 300, None):
        learner, said, at = learner_of(), list[Any](), 0
        while at < len(log):
            step = size or rng.randint(1, 50)
            effects = learner.apply(log[at : at + step])
            said += effects.outcomes
            said += effects.drifts
            at += step
        learners.append(state_of(learner))
        words.append(sorted(map(repr, said)))
    assert learners[0] == learners[1] == learners[2], f"seed {seed}"
    assert words[0] == words[1] == words[2]


@settings(max_examples=15, derandomize=True)
@given(seed=st.integers(0, 2**32), cut=st.floats(0.0, 1.0))
def test_what_lies_before_the_position_changes_nothing(seed, cut):
    """A log read again from any point leaves the learner as it was."""
    log = log_of(seed, 200)
    learner = learner_of()
    learner.apply(log)
    before = state_of(learner)
    effects = learner.apply(log[int(cut * len(log)) :])
    assert before == state_of(learner)
    assert ([], [], 0) == (effects.outcomes, effects.drifts, effects.n_learned)


@pytest.mark.parametrize("corrections", ["ignore", "relearn", "rebuild"])
@settings(max_examples=20, derandomize=True)
@given(seed=st.integers(0, 2**32), run=st.integers(1, 60))
def test_redelivered_examples_teach_nothing(corrections, seed, run):
    """The join may send a run of examples again, at later offsets: nobody hears or learns of it."""
    log = log_of(seed, 150)
    learner = learner_of(corrections=corrections)
    learner.apply(log)
    before = (learner.digest, learner.n_learned, learner.model.state_digest())
    again = [(150 + i, record) for i, (_, record) in enumerate(log[-run:])]
    effects = learner.apply(again)
    assert before == (learner.digest, learner.n_learned, learner.model.state_digest())
    assert 0 == effects.n_learned
    assert [] == effects.outcomes
    assert 150 + run - 1 == learner.position


@pytest.mark.parametrize("name", ["logistic", "forest", "average"])
def test_pickled_learner_goes_on_identically(name):
    """A snapshot and the learner it was taken from end with the same model and digest."""
    log = log_of(7, 400)
    learner = Learner("champion", make_model(name, NAMES, seed=1), SCHEMA)
    learner.apply(log[:200])
    copy = pickle.loads(pickle.dumps(learner))
    for one in (learner, copy):
        one.apply(log[200:])
    assert state_of(learner) == state_of(copy)
    assert learner.version == copy.version


def test_digest_tells_what_was_learnt():
    """Equal logs have equal digests; another label, weight, feature or order has another."""
    log: Log = [(i, example(f"t{i}", offset=i, features=[i, 1.0, None])) for i in range(30)]
    digests = set()
    swapped = [(0, log[1][1]), (1, log[0][1]), *log[2:]]
    shorter = log[:-1]
    for told in (
        log,
        swapped,
        shorter,
        [*log[:-1], (29, example("t99", offset=29, is_fraud=True))],
    ):
        learner = learner_of()
        learner.apply(told)
        digests.add(learner.digest)
    assert 4 == len(digests)
    again = learner_of()
    again.apply(log)
    assert again.digest in digests


def test_example_of_another_schema_is_rejected():
    """Features of another schema never meet the model."""
    learner = learner_of()
    model = learner.model.state_digest()
    effects = learner.apply([(0, example("t1", schema="other"))])
    assert [("t1", "rejected")] == heard(effects)
    assert "3 features of schema other; this model has 3 of s1" in effects.outcomes[0].reason
    assert (0, model) == (learner.n_learned, learner.model.state_digest())


def test_example_with_too_few_features_is_rejected():
    """Whoever wrote it: it says the schema, and is none of it."""
    learner = learner_of()
    effects = learner.apply([(0, example("t1", features=[1.0]))])
    assert [("t1", "rejected")] == heard(effects)
    assert 0 == learner.n_learned


FRAUD, LEGIT = {"is_fraud": True}, {"is_fraud": False}
MATURED = {"is_fraud": False, "source": MATURITY}
# corrections | what comes of one transaction, each at the next offset | outcomes | learnt
POLICY: list[tuple[str, list[dict[str, Any]], list[str], int]] = [
    ("ignore", [FRAUD], ["learn"], 1),
    ("ignore", [FRAUD, FRAUD], ["learn", "duplicate"], 1),
    ("ignore", [FRAUD, LEGIT], ["learn", "corrected"], 1),
    ("ignore", [FRAUD, LEGIT, LEGIT], ["learn", "corrected", "duplicate"], 1),
    ("ignore", [MATURED], [], 1),
    ("ignore", [MATURED, FRAUD], ["corrected"], 1),
    ("ignore", [MATURED, LEGIT], ["duplicate"], 1),
    ("ignore", [FRAUD, MATURED], ["learn"], 1),
    ("ignore", [MATURED, MATURED], [], 1),
    ("relearn", [FRAUD, FRAUD], ["learn", "duplicate"], 1),
    ("relearn", [FRAUD, LEGIT], ["learn", "corrected"], 2),
    ("relearn", [MATURED, FRAUD], ["corrected"], 2),
    ("relearn", [FRAUD, LEGIT, FRAUD], ["learn", "corrected", "corrected"], 3),
    # What corrects is learnt when the model is made anew: tests/core/test_corrections.py.
    ("rebuild", [FRAUD, FRAUD], ["learn", "duplicate"], 1),
    ("rebuild", [FRAUD, LEGIT], ["learn", "corrected"], 1),
    ("rebuild", [MATURED, FRAUD], ["corrected"], 1),
    ("rebuild", [FRAUD, LEGIT, FRAUD], ["learn", "corrected", "corrected"], 1),
]


@pytest.mark.parametrize(("corrections", "labels", "outcomes", "n_learned"), POLICY)
def test_every_label_has_one_outcome(corrections, labels, outcomes, n_learned):
    """Learn, duplicate or corrected, as the policy says; what matured says nothing."""
    learner = learner_of(corrections=corrections)
    log: Log = [(i, example("t1", offset=i, **label)) for i, label in enumerate(labels)]
    effects = learner.apply(log)
    assert outcomes == [o.outcome for o in effects.outcomes]
    assert n_learned == learner.n_learned == effects.n_learned


def test_memory_of_what_was_learnt_is_bounded():
    """The oldest ids are forgotten first."""
    learner = learner_of(learnt_max=16)
    learner.apply([(i, example(f"t{i}", offset=i)) for i in range(100)])
    assert 16 == len(learner.learnt)
    effects = learner.apply([(100, example("t99", offset=100)), (101, example("t0", offset=101))])
    assert [("t99", "duplicate"), ("t0", "learn")] == heard(effects)


def test_summary_of_a_run_is_watched_once():
    """A run of scores that is told again, or overlaps, is passed over."""
    learner = learner_of()
    learner.apply(
        [(0, summary(0, 9)), (1, summary(0, 9)), (2, summary(5, 9)), (3, summary(10, 19))]
    )
    assert 20 == learner.monitor.n_scores
    assert {0: 19} == learner.summarised


def test_scores_are_judged_before_they_are_learnt_from():
    """Prequential: what is counted is the score that was given, not the one a wiser model gives."""
    learner = learner_of()
    learner.apply(
        [(i, example(f"t{i}", offset=i, is_fraud=i % 2 == 0, score=0.5)) for i in range(50)]
    )
    assert 0.25 == learner.evaluation.brier
    assert 0.5 == learner.evaluation.roc_auc


@pytest.mark.parametrize("corrections", ["ignore", "relearn", "rebuild"])
def test_corrected_label_is_counted_once(corrections):
    """Whether the model learns it or not: figures of quality go by the last word."""
    learner = learner_of(corrections=corrections)
    log = [(0, example("t1", offset=0)), (1, example("t1", offset=1, is_fraud=True))]
    learner.apply([*log, (2, example("t1", offset=2, is_fraud=True))])
    told = learner.evaluation.seen.decisions
    assert (1.0, 1.0) == (told.n, told.frauds)


def test_version_is_position_and_digest():
    """What a score says of its model."""
    learner = learner_of()
    assert (-1, "0" * 16) == (learner.version.position, learner.version.digest)
    learner.apply([(41, example("t1"))])
    assert 41 == learner.version.position
    assert learner.version.digest != "0" * 16
    assert np.isfinite(learner.model.score_many(np.zeros((1, 3)))).all()


@pytest.mark.parametrize("size", [1, 5, 1_500])
def test_memory_of_keys_is_that_of_the_last_ones_put_in(size):
    """Held against a list of all that was put in; across a pickle, too."""
    rng, recent, puts = random.Random(size), Recent(size), list[tuple[int, int]]()
    for turn in range(4_000):
        key, code = rng.getrandbits(64) if rng.random() < 0.8 or not puts else puts[-1][0], turn % 8
        recent.put(key, code)
        puts.append((key, code))
        if turn % 700 == 0:
            recent = pickle.loads(pickle.dumps(recent))
    expected = dict(puts[-size:])
    order = dict.fromkeys(key for key, _ in reversed(puts[-size:]))
    assert [(key, expected[key]) for key in reversed(order)] == [(k, recent.get(k)) for k in recent]
    assert len(order) == len(recent)
    assert recent.get(1) is None
    assert 1 not in recent


def test_learners_of_one_log_never_contradict_each_other():
    """However far apart they lie and in what batches they learnt: same position, same digest."""
    log = log_of(3, 3_000)
    learners = []
    for stop, size in ((3_000, 1), (2_500, 700), (1_100, 64), (900, 900)):
        learner = learner_of()
        for at in range(0, stop, size):
            learner.apply(log[at : min(at + size, stop)])
        learners.append(learner)
    for one in learners:
        assert [""] * 4 == [one.trail.contradicts(other.trail) for other in learners]


def test_learner_of_another_log_is_told_apart():
    """By a milestone that both have passed, though neither stands where the other does."""
    log = log_of(3, 3_000)
    other = [(0, example("stranger", offset=-1)), *log[1:]]
    mine, theirs = learner_of(), learner_of()
    mine.apply(log)
    theirs.apply(other[:2_500])
    assert "before offset 1024 one learnt" in mine.trail.contradicts(theirs.trail)
    theirs.rebuilt = 2_000
    assert "" == mine.trail.contradicts(theirs.trail)


def test_learner_of_other_settings_is_told_apart():
    """Two that were told differently learn differently, even where the digests agree so far."""
    one, other = learner_of(told={"model": "a"}), learner_of(told={"model": "b"})
    assert "other settings: model" in one.trail.contradicts(other.trail)


def test_summary_of_other_features_says_nothing():
    """A model of new features reads the whole log, in which there are those of the old ones."""
    learner = learner_of()
    rows = np.ones((2 * len(NAMES), 3))  # bytes that other columns would share
    old = msgspec.structs.replace(
        summary(0, 9), feature_schema="old", n_looked=len(rows), rows=pack(rows),
        row_ids=[f"t{i}" for i in range(len(rows))], row_times_ms=list(range(len(rows))),
        bins=[7] * 10,
    )  # fmt: skip
    learner.apply([(0, old)])
    assert (0, 0.0, -1) == (learner.position, learner.scores.counts.sum(), learner.monitor.clock_ms)


def test_milestones_are_bounded():
    """64 of them, the newest."""
    learner = learner_of()
    learner.apply([(i * 1_024, summary(i * 10, i * 10 + 9)) for i in range(100)])
    assert [i * 1_024 for i in range(36, 100)] == list(learner.milestones)
