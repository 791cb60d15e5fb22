"""The join of scores and labels: its table, row by row, and what restoring must not change."""

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.early import Label
from app.core.pending import LOOKED_AT, MATURITY, SUMMARY_SCORES, Join, JoinEffects
from app.records import Example, ModelVersion, Position, Score, Source, Summary

MATURITY_MS, FORGET_MS, EARLY_MS = 1_000, 500, 100


def score_of(id_: str, time_ms: int, score: float = 0.25) -> Score:
    """A scored transaction."""
    return Score(
        transaction_id=id_,
        time_ms=time_ms,
        entities={"card_id": f"c-{id_}"},
        amount=5.0,
        score=score,
        is_alert=score >= 0.5,
        features=[1.0, None],
        feature_schema="s",
        model=ModelVersion("m", -1, "0"),
        source=Source("transactions", 0, 0, 0),
    )


class Two:
    """A join and its two logs; ``told`` is what it said of each record, in words."""

    def __init__(self, **bounds: Any) -> None:
        kept = {"maturity_ms": MATURITY_MS, "forget_ms": FORGET_MS, "early_ms": EARLY_MS}
        self.bounds = {**kept, **bounds}
        self.join = Join(**self.bounds)
        self.logs: dict[str, list[tuple[int, Score | Label]]] = {"scores": [], "labels": []}
        self.next = {"scores": 200, "labels": 0}  # so that a run of scores ends soon

    def take(self, record: Score | Label, *, log: bool = True, offset: int = -1) -> list[Any]:
        """Hand a record to the join; return what it said."""
        topic = "scores" if isinstance(record, Score) else "labels"
        if log:
            offset = self.next[topic]
            self.logs[topic].append((offset, record))
            self.next[topic] += 1
        effects = JoinEffects()
        at = Position(topic, 0, offset)
        if isinstance(record, Score):
            self.join.on_score(record, at, effects)
        else:
            self.join.on_label(record, at, effects)
        return told(effects)

    def restored(self) -> "Two":
        """Another, read again from where this one says, scores first: as a restart does."""
        other = Two(**self.bounds)
        low = self.join.low(self.next["scores"], self.next["labels"])
        other.join.is_restoring = True
        for start, topic in zip(low, ("scores", "labels"), strict=True):
            for offset, record in self.logs[topic]:
                if offset >= start:
                    other.take(record, log=False, offset=offset)
        other.join.restored()
        other.next = dict(self.next)
        other.logs = {topic: list(log) for topic, log in self.logs.items()}
        return other


def told(effects: JoinEffects) -> list[Any]:
    """What the world would hear, as plain values."""
    words: list[Any] = []
    for fact in effects.examples:
        if isinstance(fact, Example):
            words.append(
                (
                    "example",
                    fact.transaction_id,
                    fact.is_fraud,
                    fact.label_source,
                    fact.label_time_ms,
                    fact.origin,
                    fact.weight,
                )
            )
        else:
            words.append(("summary", fact.first_offset, fact.last_offset, fact.n, fact.mean_score))
    words += [(o.outcome, o.transaction_id, o.is_fraud, o.origin[2]) for o in effects.outcomes]
    words += [("unknown", u.label.transaction_id, u.at.offset) for u in effects.unknown]
    words += [("confirmed", c.score.transaction_id, c.is_fraud) for c in effects.confirmed]
    return words


def label(id_: str, is_fraud: bool, time_ms: int = 0) -> Label:
    """A label of an analyst."""
    return Label(id_, is_fraud, time_ms, "analyst")


def learnt(id_: str, is_fraud: bool, offset: int, time_ms: int = 0) -> tuple[Any, ...]:
    """What is said of a label that teaches."""
    return ("example", id_, is_fraud, "analyst", time_ms, ("labels", 0, offset), 1.0)


def matured(id_: str, due_ms: int, offset: int) -> tuple[Any, ...]:
    """What is said of a transaction that nobody complained about."""
    return ("example", id_, False, MATURITY, due_ms, ("scores", 0, offset), 1.0)


A, LATER = score_of("a", 0), score_of("later", MATURITY_MS)
MUCH_LATER = score_of("much-later", MATURITY_MS + FORGET_MS)
FRAUD, LEGIT = label("a", True), label("a", False)
CONFIRMED, CLEARED = ("confirmed", "a", True), ("confirmed", "a", False)

# state of the transaction | what came before | record | what follows
TABLE: list[tuple[str, Sequence[Score | Label], Score | Label, list[Any]]] = [
    ("not known: a score waits", [], A, []),
    ("not known: a label waits", [], FRAUD, []),
    ("not known: a label, too long", [score_of("b", EARLY_MS)], FRAUD, [("unknown", "a", 0)]),
    ("early: the score", [FRAUD], A, [learnt("a", True, 0), CONFIRMED]),
    ("early: the score, legitimate", [LEGIT], A, [learnt("a", False, 0)]),
    ("early: too long", [FRAUD], score_of("b", EARLY_MS), [("unknown", "a", 0)]),
    ("early: not yet too long", [FRAUD], score_of("b", EARLY_MS - 1), []),
    ("waiting: the score again", [A], score_of("a", 0, 0.9), []),
    ("waiting: fraud", [A], FRAUD, [learnt("a", True, 0), CONFIRMED]),
    ("waiting: legitimate", [A], LEGIT, [learnt("a", False, 0)]),
    ("waiting: matures", [A], LATER, [matured("a", MATURITY_MS, 201)]),
    ("waiting: not yet mature", [A], score_of("later", MATURITY_MS - 1), []),
    ("labelled: matures", [A, FRAUD], LATER, []),
    ("labelled: the score again", [A, FRAUD], A, []),
    ("labelled: the same", [A, FRAUD], FRAUD, [("duplicate", "a", True, 1)]),
    ("labelled: the same, legitimate", [A, LEGIT], LEGIT, [("duplicate", "a", False, 1)]),
    ("labelled: cleared", [A, FRAUD], LEGIT, [learnt("a", False, 1), CLEARED]),
    ("labelled: found out", [A, LEGIT], FRAUD, [learnt("a", True, 1), CONFIRMED]),
    ("labelled, cleared: again", [A, FRAUD, LEGIT], LEGIT, [("duplicate", "a", False, 2)]),
    ("labelled, cleared: fraud", [A, FRAUD, LEGIT], FRAUD, [learnt("a", True, 2), CONFIRMED]),
    ("matured: legitimate", [A, LATER], LEGIT, [("expired", "a", False, 0)]),
    ("matured: fraud", [A, LATER], FRAUD, [learnt("a", True, 0), CONFIRMED]),
    ("matured, labelled: the same", [A, FRAUD, LATER], FRAUD, [("expired", "a", True, 1)]),
    ("matured: the score again", [A, LATER], A, []),
    ("not known: a score that is mature", [LATER], A, [matured("a", MATURITY_MS, 201)]),
    ("forgotten: fraud", [A, LATER, MUCH_LATER], FRAUD, [("unknown", "a", 0)]),
    ("forgotten after its label: fraud", [A, FRAUD, MUCH_LATER], FRAUD, [("unknown", "a", 1)]),
]


@pytest.mark.parametrize(("name", "before", "record", "expected"), TABLE, ids=[r[0] for r in TABLE])
def test_every_state_meets_every_record(name, before, record, expected):
    """The table at the head of the module, a row a case."""
    two = Two()
    for past in before:
        two.take(past)
    assert expected == [w for w in two.take(record) if w[1] != "later"]


@pytest.mark.parametrize(("name", "before", "record", "expected"), TABLE, ids=[r[0] for r in TABLE])
def test_every_state_survives_a_restart(name, before, record, expected):
    """Read again from where it says, the join goes on as if nothing had happened."""
    two = Two()
    for past in before:
        two.take(past)
    assert expected == [w for w in two.restored().take(record) if w[1] != "later"]


def test_first_score_is_the_canonical_one():
    """What is learnt are the features of the score that came first."""
    two = Two()
    two.take(score_of("a", 0, 0.1))
    two.take(score_of("a", 0, 0.9))
    effects = JoinEffects()
    two.join.on_label(FRAUD, Position("labels", 0, 0), effects)
    assert [0.1] == [e.score for e in effects.examples if isinstance(e, Example)]


def test_early_label_waits_its_own_time():
    """Of two labels that wait for one transaction the younger is not let go with the older."""
    two = Two()
    two.take(score_of("b", 0))
    two.take(label("a", True, 0))
    two.take(label("a", True, 80))
    assert [("unknown", "a", 0)] == two.take(score_of("c", EARLY_MS))
    assert 1 == two.join.n_early
    assert [learnt("a", True, 1, 80), CONFIRMED] == two.take(score_of("a", EARLY_MS))


def test_transaction_meets_its_label_though_it_comes_at_the_last_moment():
    """The clock by which a label has waited too long is its own transaction's."""
    two = Two()
    two.take(label("a", True, 0))
    assert [learnt("a", True, 0, 0), CONFIRMED] == two.take(score_of("a", EARLY_MS))
    assert 0 == two.join.n_early


def test_sampled_negatives_weigh_what_they_stand_for():
    """A share of what matures is learnt, decided by the id, each with one over the share."""
    two = Two(negatives=0.25)
    for i in range(4_000):
        two.take(score_of(f"t{i}", 0))
    facts = [w for w in two.take(LATER) if w[0] == "example"]
    assert {4.0} == {w[-1] for w in facts}
    assert 850 < len(facts) < 1_150
    again = Two(negatives=0.25)
    for _, record in two.logs["scores"][:-1]:
        again.take(record)
    assert facts == [w for w in again.take(LATER) if w[0] == "example"]


def test_summaries_cover_every_score_once():
    """Each score lies in exactly one run, and the run's mean is theirs."""
    two = Two()
    rng = random.Random(1)
    values = [rng.random() for _ in range(3 * SUMMARY_SCORES)]
    runs = []
    for i, value in enumerate(values):
        runs += [w for w in two.take(score_of(f"t{i}", 0, value)) if w[0] == "summary"]
    covered = [o for _, first, last, _, _ in runs for o in range(first, last + 1)]
    assert list(range(200, runs[-1][2] + 1)) == covered
    for _, first, last, n, mean in runs:
        run = values[first - 200 : last - 199]
        assert (last - first + 1, pytest.approx(sum(run) / len(run))) == (n, mean)


# ---- Bounds.


def test_pending_and_early_are_bounded():
    """No more transactions and labels wait than allowed, and all that is kept beside is bounded."""
    two = Two(pending_max=50, early_max=30, maturity_ms=10**9, early_ms=10**9)
    two.take(score_of("first", 0))
    for i in range(5_000):
        two.take(score_of(f"t{i}", i))
        two.take(label(f"x{i}", True, i))
        assert len(two.join) <= 50
        assert two.join.n_early <= 30
    assert 5_001 - 50 == two.join.n_overflowed
    two.join.low(two.next["scores"], two.next["labels"])
    parts = (two.join, two.join.known, two.join.early)
    kept = {n: len(v) for part in parts for n, v in vars(part).items() if hasattr(v, "__len__")}
    assert max(kept.values()) <= 512, kept


def test_oldest_early_label_becomes_unknown_when_too_many_wait():
    """It is told of, not lost."""
    two = Two(early_max=2)
    heard = [w for i in range(4) for w in two.take(label(f"x{i}", True))]
    assert [("unknown", "x0", 0), ("unknown", "x1", 1)] == heard


# ---- Restoring: over random interleavings.


def interleaving(seed: int, n: int, *, again: float = 0.1) -> list[Score | Label]:
    """Scores, some late and some again; labels early, late, twice, corrected, of strangers.

    No label comes after its transaction was forgotten, and none waits in vain and then sees its
    transaction come: of these two a restart that reads scores before labels cannot know.
    """
    rng = random.Random(seed)
    now, records, ids = 0, list[Score | Label](), list[str]()
    for i in range(n):
        now += rng.choice([0, 1, 5, 20])
        kind = rng.random()
        if kind < 0.5:
            ids.append(f"t{i}")
            records.append(
                score_of(ids[-1], max(0, now - rng.choice([0, 0, 40, 900])), rng.random())
            )
        elif kind < 0.5 + again and ids:
            recent = rng.choice(ids[-8:])
            first = next(r for r in records if isinstance(r, Score) and r.transaction_id == recent)
            records.append(first)
        else:
            of = rng.choice([*ids[-12:], f"t{i + 1}", f"t{i + 2}", f"s{i}"])
            records.append(label(of, rng.random() < 0.4, max(0, now - rng.choice([0, 20]))))
    return records


@pytest.mark.parametrize("bounds", [{}, {"negatives": 0.5}, {"maturity_ms": 600, "forget_ms": 600}])
@settings(max_examples=80, derandomize=True)
@given(seed=st.integers(0, 2**32), cut=st.floats(0.0, 1.0))
def test_restart_makes_no_difference(bounds, seed, cut):
    """Restored at any point from ``low``, the join says of all later records the same."""
    records = interleaving(seed, 150)
    two = Two(**bounds)
    at = int(cut * len(records))
    for record in records[:at]:
        two.take(record)
    other = two.restored()
    assert (len(two.join), two.join.n_early) == (len(other.join), other.join.n_early)
    for record in records[at:]:
        assert two.take(record) == other.take(record), f"seed {seed}, cut at {at}"


@settings(max_examples=60, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_every_label_has_one_fate(seed):
    """Each label becomes one example, one outcome or one unknown, or still waits."""
    two = Two()
    heard: list[Any] = []
    for record in interleaving(seed, 200):
        heard += two.take(record)
    fates = [w[5][2] for w in heard if w[0] == "example" and w[3] != MATURITY]
    fates += [w[3] for w in heard if w[0] in {"duplicate", "expired"}]
    fates += [w[2] for w in heard if w[0] == "unknown"]
    assert len(fates) == len(set(fates))
    assert two.next["labels"] == len(fates) + two.join.n_early


@settings(max_examples=60, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_nothing_matures_twice(seed):
    """A transaction that nobody complained about is one example, and none after a label."""
    two = Two(forget_ms=10**9)
    heard: list[Any] = []
    for record in interleaving(seed, 200):
        heard += two.take(record)
    mature = [w[1] for w in heard if w[0] == "example" and w[3] == MATURITY]
    assert len(mature) == len(set(mature))


def test_low_never_passes_what_is_still_needed():
    """The oldest known transaction, and the oldest label of a known transaction."""
    two = Two()
    assert (200, 0) == two.join.low(200, 0)
    for i in range(4):
        two.take(score_of(f"t{i}", 10 * i))
    two.take(label("t2", True))
    two.take(label("t0", True))
    assert (200, 0) == two.join.low(204, 2)
    two.take(score_of("now", MATURITY_MS + FORGET_MS + 10))
    assert (200, 0) == two.join.low(205, 2)  # the run of scores is not told of yet
    for i in range(SUMMARY_SCORES):
        two.take(score_of(f"n{i}", MATURITY_MS + FORGET_MS + 10))
    assert (202, 0) == two.join.low(two.next["scores"], 2)
    two.take(score_of("end", 3 * MATURITY_MS))
    scores_low, labels_low = two.join.low(two.next["scores"], 2)
    assert labels_low == 2
    assert scores_low > 202


def test_summary_is_read_as_it_was_meant():
    """A run of scores in numbers: how many, how many alerts, when."""
    two = Two()
    effects = JoinEffects()
    for i in range(56):
        at = Position("scores", 3, 200 + i)
        two.join.on_score(score_of(f"t{i}", 100 + i, 0.9 if i < 5 else 0.1), at, effects)
    (summary,) = effects.examples
    assert isinstance(summary, Summary)
    assert (3, 200, 255, 56, 5) == (
        summary.partition, summary.first_offset, summary.last_offset, summary.n, summary.n_alerts,
    )  # fmt: skip
    assert (100, 155) == (summary.first_time_ms, summary.last_time_ms)


@pytest.mark.parametrize(("an_hour", "looked"), [(25, 25), (1_000, 256), (4_000, 64), (90_000, 32)])
def test_all_rows_are_looked_at_where_traffic_is_low(an_hour, looked):
    """From all of them to one in eight, by how many come in an hour of event time."""
    join, effects = Join(maturity_ms=1_000, forget_ms=1_000, early_ms=1_000), JoinEffects()
    for i in range(SUMMARY_SCORES):
        score = score_of(f"t{i}", i * 3_600_000 // an_hour)
        join.on_score(score, Position("scores", 0, i), effects)
    summary = next(one for one in effects.examples if isinstance(one, Summary))
    assert looked == summary.n_looked == len(summary.row_ids) == len(summary.row_times_ms)


def test_hour_is_told_of_when_it_is_over_wherever_reading_began():
    """Runs end between two hours; one who begins in the middle of a run ends the next alike."""
    ends = []
    for start in (0, 7, 40):
        join, effects = Join(maturity_ms=1_000, forget_ms=1_000, early_ms=1_000), JoinEffects()
        for i in range(start, 90):
            # Twenty minutes apart, but for a day without any, and one that came late.
            time_ms = i * 1_200_000 + 86_400_000 * (i >= 60) - 7_200_000 * (i == 20)
            join.on_score(score_of(f"t{i}", time_ms), Position("scores", 0, i), effects)
        runs = [one for one in effects.examples if isinstance(one, Summary)]
        ends.append([(run.last_offset, run.last_time_ms) for run in runs])
        assert all(run.last_time_ms < 60 * 1_200_000 for run in runs if run.first_offset < 60)
    assert [end for end in ends[0] if end[0] >= 40] == ends[2]
    assert ends[0][-len(ends[1]) :] == ends[1]
    assert [2, 5, 8] == [offset for offset, _ in ends[0][:3]]


@pytest.mark.parametrize("changed", [1, 100, SUMMARY_SCORES - 3, SUMMARY_SCORES - 1])
def test_run_over_a_change_of_features_looks_at_the_newer_ones(changed):
    """Scores of two schemas may stand in one run; only those of the last are looked at."""
    join, effects = Join(maturity_ms=1_000, forget_ms=1_000, early_ms=1_000), JoinEffects()
    for i in range(SUMMARY_SCORES):
        score = score_of(f"t{i}", i)
        if i >= changed:
            score = msgspec.structs.replace(score, features=[2.0, 3.0, 4.0], feature_schema="new")
        join.on_score(score, Position("scores", 0, i), effects)
    (summary,) = effects.examples
    assert isinstance(summary, Summary)
    assert summary.feature_schema == "new"
    assert summary.feature_means == [2.0, 3.0, 4.0]
    assert summary.n_looked == len(range(changed, SUMMARY_SCORES, LOOKED_AT))
