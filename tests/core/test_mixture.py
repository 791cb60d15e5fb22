"""What gives a score: calibration, categories as shares of frauds, investigators apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.calibration import Calibration
from app.core.encoding import Encoding
from app.core.investigators import Investigators
from app.core.learner import REFRESH_EXAMPLES, Learner
from app.core.mixture import Mixture
from app.core.models import make_model
from app.core.models.digest import digest_of
from app.core.novelty import Novelty
from app.core.pending import MATURITY
from app.records import Example, LabelOutcome, Verdict
from app.snapshots import seal, unseal

NAMES = ("a", "b", "code")
SCHEMA = "s1"
DAY_MS = 86_400_000
RNG = np.random.default_rng(5)


def sigmoid(margins):
    """Probabilities of log-odds."""
    return 1.0 / (1.0 + np.exp(-margins))


# ---- Calibration.


@pytest.mark.parametrize(("slope", "shift"), [(1.0, -2.0), (0.5, 0.0), (2.0, 1.0)])
def test_calibration_finds_the_line(slope, shift):
    """Labels drawn from a line through the log-odds give that line back."""
    margins = RNG.normal(-1.0, 2.0, 60_000)
    truth = RNG.random(60_000) < sigmoid(slope * margins + shift)
    calibration = Calibration()
    calibration.update(sigmoid(margins), truth, np.ones(60_000))
    calibration.fit()
    assert calibration.slope == pytest.approx(slope, rel=0.05)
    assert calibration.shift == pytest.approx(shift, abs=0.07)


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=40), st.integers(0, 1_000))
def test_calibration_changes_no_order(scores, seed):
    """What ranked above ranks above, whatever was learnt; probabilities stay in [0, 1]."""
    rng = np.random.default_rng(seed)
    calibration = Calibration()
    said = rng.random(2_000)
    calibration.update(said, rng.random(2_000) < rng.random(), np.ones(2_000))
    calibration.fit()
    raw = np.sort(np.array(scores))
    told = calibration.apply(raw)
    assert (np.diff(told) >= 0.0).all()
    assert (told >= 0.0).all()
    assert (told <= 1.0).all()


def test_calibration_of_few_frauds_leaves_scores_alone():
    """With fewer than fifty of a class there is nothing to mend."""
    calibration = Calibration()
    calibration.update(np.full(1_000, 0.5), np.arange(1_000) < 49, np.ones(1_000))
    calibration.fit()
    raw = RNG.random(10)
    np.testing.assert_array_equal(raw, calibration.apply(raw))


def test_calibration_follows_a_model_that_moves():
    """Old counts fade: after twice the half-life the new line decides."""
    calibration = Calibration(half_life=2_000)
    for shift in (-1.0, 1.0):
        for _ in range(10):
            margins = RNG.normal(0.0, 1.5, 1_000)
            truth = RNG.random(1_000) < sigmoid(margins + shift)
            calibration.update(sigmoid(margins), truth, np.ones(1_000))
            calibration.fit()
    assert calibration.shift > 0.7


def test_calibration_counts_what_an_example_stands_for():
    """Legitimate examples kept one in ten weigh ten: the probability is that of the stream."""
    calibration = Calibration()
    is_fraud = np.arange(4_000) < 1_000
    calibration.update(np.full(4_000, 0.5), is_fraud, np.where(is_fraud, 1.0, 10.0))
    calibration.fit()
    assert calibration.apply(np.array([0.5]))[0] == pytest.approx(1.0 / 31.0, rel=0.05)


# ---- Categories.


def test_no_example_sees_its_own_label():
    """What is read stands still until the next refresh."""
    encoding = Encoding((2,), (4,), prior=1.0)
    rows = np.array([[0.0, 0.0, 1.0]])
    before = encoding.apply(rows)
    encoding.update(rows, np.array([True]), np.ones(1))
    np.testing.assert_array_equal(before, encoding.apply(rows))
    encoding.refresh()
    assert encoding.apply(rows)[0, 2] == 1.0


@given(st.data())
def test_share_of_a_category_lies_between_its_own_and_the_overall(data):
    """Smoothing draws to the overall share, never beyond it."""
    n = data.draw(st.integers(1, 60))
    codes = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    labels = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    prior = data.draw(st.floats(0.0, 1e3))
    encoding = Encoding((0,), (4,), prior)
    encoding.update(np.array(codes, np.float64)[:, None], labels, np.ones(n))
    encoding.refresh()
    overall = labels.mean()
    for code in range(4):
        own = labels[np.array(codes) == code]
        share = encoding.apply(np.array([[float(code)]]))[0, 0]
        bounds = sorted([overall, own.mean() if len(own) else overall])
        assert bounds[0] - 1e-9 <= share <= bounds[1] + 1e-9


# ---- Investigators.


def example(
    id_: str,
    *,
    is_fraud: bool = False,
    offset: int = 0,
    source: str = "chargeback",
    at_ms: int = 0,
    row: tuple[float, ...] = (1.0, 2.0, 0.0),
) -> Example:
    """One example, of which a test says what matters to it."""
    return Example(
        transaction_id=id_,
        time_ms=at_ms,
        amount=5.0,
        entities={},
        score=0.5,
        features=list(row),
        feature_schema=SCHEMA,
        is_fraud=is_fraud,
        label_time_ms=at_ms,
        label_source=source,
        origin=("labels", 0, offset),
        raw=0.3,
    )


def learner_of(**told) -> Learner:
    """A learner with investigators who are called analyst."""
    theirs = make_model("logistic", NAMES, seed=2)
    investigators = Investigators(
        theirs, frozenset({"analyst"}), wait_ms=7 * DAY_MS, frauds_min=2, **told
    )
    model = make_model("logistic", NAMES, seed=1)
    encoding = Encoding((2,), (8,))
    return Learner(
        "champion", model, SCHEMA, calibrates=True, encoding=encoding, investigators=investigators
    )


def fed(learner: Learner, *facts: Example) -> list[str]:
    """What became of some examples that follow each other in the log."""
    start = learner.position + 1
    return [o.outcome for o in learner.apply(list(enumerate(facts, start))).outcomes]


def test_investigators_teach_their_model_at_once_and_the_other_later():
    """The model of everything learns an alert's label when the rest of its day is known."""
    learner = learner_of()
    told = learner.investigators
    assert told is not None
    assert fed(learner, example("t1", is_fraud=True, source="analyst")) == ["learn"]
    assert (1, 0) == (told.n_frauds, learner.n_taught)
    fed(learner, example("t2", offset=1, at_ms=6 * DAY_MS))
    assert learner.n_taught == 1
    fed(learner, example("t3", offset=2, at_ms=7 * DAY_MS))
    assert learner.n_taught == 3  # t3, and t1 before it
    assert not told.waiting


@pytest.mark.parametrize("is_fraud", [True, False])
def test_late_label_is_what_the_model_of_everything_learns(is_fraud):
    """Nobody waits with what a late label settles, and each model learns it once."""
    learner = learner_of()
    fed(learner, example("t1", is_fraud=True, source="analyst"))
    outcome = fed(learner, example("t1", is_fraud=is_fraud, offset=1, at_ms=DAY_MS))
    assert outcome == ["duplicate" if is_fraud else "corrected"]
    assert learner.n_taught == 1
    fed(learner, example("t2", offset=2, at_ms=30 * DAY_MS))
    assert learner.n_taught == 2


def test_late_label_that_agrees_ends_the_wait():
    """The join sends no example for it, but a verdict; the model of everything learns at once."""
    learner = learner_of()
    fed(learner, example("t1", is_fraud=True, source="analyst"))
    outcome = LabelOutcome(
        transaction_id="t1", outcome="duplicate", is_fraud=True, label_source="chargeback",
        origin=("labels", 0, 9),
    )  # fmt: skip
    learner.apply([(learner.position + 1, Verdict(outcome=outcome))])
    assert learner.n_taught == 1
    fed(learner, example("t2", offset=2, at_ms=30 * DAY_MS))
    assert learner.n_taught == 2


def test_what_nobody_was_shown_goes_to_the_model_of_everything_alone():
    """Their model learns their labels and no others."""
    learner = learner_of()
    told = learner.investigators
    assert told is not None
    before = told.model.state_digest()
    fed(learner, example("t1", is_fraud=True), example("t2", offset=1, source=MATURITY))
    assert before == told.model.state_digest()
    assert learner.n_taught == 2


def test_too_many_that_wait_go_on_early():
    """The bound holds, and nothing is lost by it."""
    learner = learner_of(waiting_max=3)
    told = learner.investigators
    assert told is not None
    fed(learner, *[example(f"t{i}", offset=i, source="analyst") for i in range(10)])
    assert (3, 7) == (len(told.waiting), learner.n_taught)


def stream(n: int, seed: int) -> list[Example]:
    """Labels of both kinds, corrections, maturities, categories."""
    rng = np.random.default_rng(seed)
    facts = []
    for i in range(n):
        row = (rng.normal(), rng.normal(), float(rng.integers(0, 8)))
        source = ("analyst", "chargeback", MATURITY)[rng.integers(0, 3)]
        id_ = f"t{rng.integers(0, n)}" if source != MATURITY else f"m{i}"
        is_fraud = bool(rng.random() < 0.3 and source != MATURITY)
        at_ms = int(i * DAY_MS * 20 / n)
        facts.append(example(id_, is_fraud=is_fraud, offset=i, source=source, at_ms=at_ms, row=row))
    return facts


@pytest.mark.parametrize("seed", range(3))
def test_batches_make_no_difference(seed):
    """One by one, in odd parts, through a snapshot: the same state, bit for bit."""
    log = list(enumerate(stream(2 * REFRESH_EXAMPLES + 300, seed)))
    whole = learner_of()
    whole.apply(log)
    parts, rng, start = learner_of(), np.random.default_rng(seed), 0
    while start < len(log):
        stop = start + int(rng.integers(1, 400))
        parts.apply(log[start:stop])
        parts = unseal(seal(parts, b"k"), [b"k"])
        start = stop
    for part in ("calibration", "encoding", "investigators", "learnt", "n_taught", "digest"):
        assert digest_of(getattr(whole, part)) == digest_of(getattr(parts, part)), part
    assert whole.model.state_digest() == parts.model.state_digest()
    rows = RNG.normal(size=(50, 3)) * [1, 1, 0]
    for mine, theirs in zip(
        whole.mixture.score_many(rows), parts.mixture.score_many(rows), strict=True
    ):
        assert mine.tobytes() == theirs.tobytes()


def test_score_is_the_stated_mixture():
    """Trust and share weigh the parts; reasons are weighed alike."""
    learner = learner_of()
    learner.apply(list(enumerate(stream(3_000, 1))))
    rows = RNG.normal(size=(20, 3)) * [1, 1, 0]
    novelty = Novelty.of(3)
    novelty.merge(100, np.zeros(3), np.full(3, 100.0))
    own, told = learner.mixture, learner.investigators
    assert told is not None
    model, theirs, encoded = own.model, told.model, own.encoding.apply(rows)
    mixed = Mixture(model, own.calibration, own.encoding, theirs, 0.3, novelty, 0.8)
    known = 0.7 * own.calibration.apply(model.score_many(encoded)) + 0.3 * theirs.score_many(
        encoded
    )
    unlike = novelty.score_many(own.encoding.without(rows))
    scores, raw = mixed.score_many(rows)
    np.testing.assert_allclose(scores, 0.8 * known + 0.2 * unlike, rtol=1e-12)
    np.testing.assert_array_equal(raw, model.score_many(encoded))
    alone = Mixture(model, own.calibration, own.encoding)
    margins = np.log(alone.score_many(rows)[0] / (1.0 - alone.score_many(rows)[0]))
    np.testing.assert_allclose(alone.contributions(rows).sum(axis=1), margins, rtol=1e-6)
