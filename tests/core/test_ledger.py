"""The join on a disk is the join in memory, whatever befalls it; its memory is what changed."""

import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.early import Label, Waited
from app.core.ledger import Ledger, Place
from app.core.order import TABLES, Drop, Order, Put
from app.core.pending import Join, JoinEffects
from app.core.waitlist import Waitlist
from app.records import Position, Record, Score
from tests.core.test_pending import interleaving, label, score_of

BOUNDS: dict[str, Any] = {"maturity_ms": 1_000, "forget_ms": 500, "early_ms": 100}


class Paper:
    """Tables in a dictionary, which outlive whoever writes them."""

    def __init__(self) -> None:
        self.held: dict[str, dict[bytes, bytes]] = {table: {} for table in TABLES}
        self.n_writes = 0
        self.n_read = 0

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of keys."""
        self.n_read += 1
        return [self.held[table].get(key) for key in keys]

    def scan(self, table: str, start: bytes, n: int) -> list[bytes]:
        """Keys from one on."""
        keys = sorted(self.held[table])
        at = bisect_left(keys, start)
        return keys[at : at + n]

    def write(self, puts: Iterable[Put], drops: Iterable[Drop]) -> None:
        """All of it at once."""
        for table, key in drops:
            del self.held[table][key]  # what is not there is not dropped
        for table, key, value in puts:
            self.held[table][key] = value
        self.n_writes += 1

    def clear(self) -> None:
        """Nothing is left."""
        self.held = {table: {} for table in TABLES}


def ledger_on(paper: Paper, negatives: float = 1.0) -> Ledger:
    """A ledger of scores that are packed as they are."""
    return Ledger(
        paper, msgspec.json.encode, lambda raw: msgspec.json.decode(raw, type=Score), negatives
    )


class Side:
    """A join, and how far it has read its logs."""

    def __init__(self, paper: Paper | None, **bounds: Any) -> None:
        self.bounds = {**BOUNDS, **bounds}
        self.paper = paper
        self.next = {"scores": 200, "labels": 0}
        if paper is None:
            self.join = Join(**self.bounds, known=Waitlist())
            return
        ledger = ledger_on(paper, self.bounds.get("negatives", 1.0))
        self.join = Join(**self.bounds, known=ledger)
        place = ledger.found()
        if place is None:
            ledger.begin(Place("identity", "lineage"))
            return
        self.join.resume(place.scores_next, place.clock_ms, ledger.open(place))
        self.next = {"scores": place.scores_next, "labels": place.labels_next}
        self.scores_begin = place.scores_begin

    def take(self, record: Score | Label, offset: int) -> JoinEffects:
        """Hand over a record; return all that was said."""
        effects, topic = JoinEffects(), "scores" if isinstance(record, Score) else "labels"
        if isinstance(record, Score):
            self.join.on_score(record, Position(topic, 0, offset), effects)
        else:
            self.join.on_label(record, Position(topic, 0, offset), effects)
        self.next[topic] = max(self.next[topic], offset + 1)
        return effects

    def write(self) -> None:
        """Have the disk hold what there is."""
        assert isinstance(self.join.known, Ledger)
        place = self.join.known.place
        place.scores_next, place.labels_next = self.next["scores"], self.next["labels"]
        self.join.write()

    def known(self, ids: Iterable[str]) -> list[Any]:
        """What is known of transactions, in words."""
        found = [self.join.find(identity) for identity in ids]
        return [
            one and (one.score, one.offset, one.due_ms, one.is_fraud, one.is_matured, one.until_ms)
            for one in found
        ]


class Both:
    """A join in memory that is never stopped, and one on a disk; what each says is compared."""

    def __init__(self, **bounds: Any) -> None:
        self.bounds, self.paper = bounds, Paper()
        self.memory, self.disk = Side(None, **bounds), Side(self.paper, **bounds)
        self.logs: dict[str, list[Score | Label]] = {"scores": [], "labels": []}
        self.ids: dict[str, None] = {}
        self.note: Waited | None = None
        self.disk.write()

    def take(self, record: Score | Label) -> None:
        """Both say the same of it."""
        topic = "scores" if isinstance(record, Score) else "labels"
        offset = self.memory.next[topic]
        self.logs[topic].append(record)
        self.ids[record.transaction_id] = None
        assert self.memory.take(record, offset) == self.disk.take(record, offset)

    def expect(self, records: Sequence[Score | Label]) -> None:
        """Tell the disk of what comes, as a shell does with a batch."""
        scores = [one for one in records if isinstance(one, Score)]
        until_ms = max((one.time_ms for one in scores), default=-1)
        self.disk.join.expect([one.transaction_id for one in scores], until_ms)
        labels = [one.transaction_id for one in records if isinstance(one, Label)]
        self.disk.join.expect(labels, labelled=True)

    def compare(self) -> None:
        """Both know the same, and would be read again from the same place."""
        sides = (self.memory, self.disk)
        told = [
            (len(s.join), s.join.n_early, s.join.clock_ms, s.join.n_overflowed,
             s.join.low(s.next["scores"], s.next["labels"]),
             s.join.early.note(s.next["scores"]), s.known(self.ids))
            for s in sides
        ]  # fmt: skip
        assert told[0] == told[1]

    def crash(self) -> None:
        """Lose all memory; read on from where the disk stands to where the other one is."""
        overflowed, note = self.disk.join.n_overflowed, self.memory.join.early
        self.disk = again = Side(self.paper, **self.bounds)
        join, upto = again.join, self.memory.next
        join.is_restoring = True
        join.waited = Waited.of("0 " + note.note(upto["scores"]))
        for topic, begin in (("scores", again.scores_begin), ("labels", again.next["labels"])):
            first = upto[topic] - len(self.logs[topic])
            for offset in range(begin, upto[topic]):
                again.take(self.logs[topic][offset - first], offset)
                if join.known.is_full:
                    again.write()
        again.next = dict(upto)
        join.restored()
        join.n_overflowed = overflowed
        again.write()


def anything(seed: int, n: int) -> list[Score | Label]:
    """Whatever may come: late by anything, again, labels of anybody at any time."""
    rng = random.Random(seed)
    now, records, ids = 0, list[Score | Label](), ["x"]
    for i in range(n):
        now += rng.choice([0, 1, 5, 20, 20, 150])
        if rng.random() < 0.5:
            ids.append(rng.choice([f"t{i}", f"t{i}", f"t{i}", rng.choice(ids[-20:])]))
            time_ms = max(0, now - rng.choice([0, 0, 3, 40, 900, 1_400, 1_600]))
            records.append(score_of(ids[-1], time_ms, rng.random()))
        else:
            of = rng.choice([*ids[-20:], f"t{i + 1}", f"t{i + 2}", f"t{i + 5}"])
            told_ms = max(0, now - rng.choice([0, 20, 90, 300]))
            raw = Record(i, of.encode(), b"{}", now, (("h", b"v"),)) if rng.random() < 0.5 else None
            records.append(label(of, rng.random() < 0.4, told_ms)._replace(raw=raw))
    return records


SMALL = {"pending_max": 20, "early_max": 16}


@pytest.mark.parametrize("bounds", [{}, {"negatives": 0.5}, SMALL, {"forget_ms": 0}])
@settings(max_examples=60, derandomize=True)
@given(seed=st.integers(0, 2**32), step=st.integers(1, 40), is_told=st.booleans())
def test_disk_makes_no_difference(bounds, seed, step, is_told):
    """All that is said and known is the same, to the bit, however seldom the disk is written."""
    both, records = Both(**bounds), anything(seed, 160)
    for at in range(0, len(records), step):
        batch = records[at : at + step]
        if is_told:
            both.expect(batch)
        for record in batch:
            both.take(record)
        both.compare()
        both.disk.write()
        both.compare()


@pytest.mark.parametrize("bounds", [{}, {"negatives": 0.5}, SMALL])
@settings(max_examples=60, derandomize=True)
@given(seed=st.integers(0, 2**32), step=st.integers(1, 60))
def test_restart_where_the_disk_stands_makes_no_difference(bounds, seed, step):
    """Nothing of the past is read again but scores that no summary tells of."""
    both, records = Both(**bounds), anything(seed, 160)
    for at in range(0, len(records), step):
        for record in records[at : at + step]:
            both.take(record)
        both.disk.write()
        both.crash()
        both.compare()


@pytest.mark.parametrize("bounds", [{}, {"negatives": 0.5}])
@settings(max_examples=80, derandomize=True)
@given(seed=st.integers(0, 2**32), wrote=st.floats(0.0, 1.0), died=st.floats(0.0, 1.0))
def test_restart_after_the_disk_fell_behind_makes_no_difference(bounds, seed, wrote, died):
    """Killed anywhere between a write and the next: the rest is read again, in silence."""
    both, records = Both(**bounds), interleaving(seed, 150)
    last, end = sorted((int(wrote * len(records)), int(died * len(records))))
    for n, record in enumerate(records):
        if n == last:
            both.disk.write()
        if n == end:
            both.crash()
        both.take(record)
    both.compare()


@settings(max_examples=30, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_state_that_is_written_while_logs_are_read_again_is_a_state(seed):
    """Killed while it restores, which wrote some of what it had read by then."""
    both, records, rng = Both(), interleaving(seed, 150), random.Random(seed)
    for record in records[:100]:
        both.take(record)
    upto = both.memory.next["scores"]
    for _ in range(3):
        again = Side(both.paper)
        again.join.is_restoring = True
        again.join.waited = Waited.of("0 " + both.memory.join.early.note(upto))
        for offset in range(again.scores_begin, rng.randint(again.next["scores"], upto)):
            again.take(both.logs["scores"][offset - 200], offset)
        again.write()
    both.crash()
    for record in records[100:]:
        both.take(record)
    both.compare()


def test_memory_is_what_has_changed():
    """Of ten thousand that wait nothing is in memory after a write."""
    both = Both(maturity_ms=10**9, early_ms=10**9)
    for i in range(10_000):
        both.disk.take(score_of(f"t{i}", i), 200 + i)
        if i % 100 == 99:
            both.disk.write()
    ledger = both.disk.join.known
    assert isinstance(ledger, Ledger)
    assert 10_000 == len(ledger) == ledger.n_written
    parts = [ledger, *(v for v in vars(ledger).values() if isinstance(v, Order))]
    kept = {n: len(v) for part in parts for n, v in vars(part).items() if hasattr(v, "__len__")}
    kept.pop("_tables", None)
    assert max(kept.values()) <= 256, kept


def test_batch_is_read_at_once():
    """Five hundred scores and as many that mature ask the disk a few times, not once each."""
    both = Both(maturity_ms=1_000, forget_ms=10**6)
    for i in range(500):
        both.take(score_of(f"t{i}", i))
    both.disk.write()
    batch = [score_of(f"u{i}", 1_000 + i) for i in range(500)]
    before = both.paper.n_read
    both.expect(batch)
    for score in batch:
        both.take(score)
    assert both.paper.n_read - before <= 8
