"""The entity fold against a plain one: windows, guards, restoring, bounds."""

import pickle
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.buckets import FRAUD, LEGITIMATE, UNKNOWN
from app.core.entity import EntityStore
from app.core.slots import Row, SlotValue, Touched
from app.core.windows import APPLIED, DUPLICATE, REPLAYED, STATS, WindowPlan
from app.errors import Refused
from tests.core.reference import Reference, Seen

HOUR, DAY = 3_600_000, 86_400_000
#: Every statistic over a short, a long and a delayed window.
WINDOWS = [
    (stat, length, delay, prior, 2 if stat == "last" else 5 * DAY)
    for stat in STATS
    for length, delay, prior in [(HOUR, 0, 0.0), (7 * DAY, 0, 1.0), (2 * DAY, DAY, 2.0)]
]


@dataclass(frozen=True)
class One:
    """A transaction on its way into a store."""

    key: str
    id: str
    time_ms: int
    amount: float
    other: str
    upstream: int
    offset: int


def history(
    seed: int, n: int, *, n_keys: int = 5, upstreams: int = 1, twice: float = 0.0
) -> list[One]:
    """Transactions, most in order of time, some late, a share ``twice`` with a used id."""
    rng = random.Random(seed)
    now, offsets, made = 1_600_000_000_000, [0] * upstreams, list[One]()
    for i in range(n):
        now += int(rng.expovariate(1 / (2 * HOUR)))
        late = rng.choice([0, 0, 0, HOUR, 3 * DAY])
        upstream = rng.randrange(upstreams)
        id_ = rng.choice(made).id if made and rng.random() < twice else f"t{i}"
        key = f"k{min(rng.randrange(n_keys), rng.randrange(n_keys))}"
        amount = round(rng.lognormvariate(3, 1), 2)
        other = f"o{rng.randrange(4)}"
        made.append(One(key, id_, now - late, amount, other, upstream, offsets[upstream]))
        offsets[upstream] += rng.choice([1, 1, 2])
    return made


def feed(store: EntityStore, batch: list[One]) -> tuple[Any, Any]:
    """Apply a batch of transactions."""
    return store.apply(
        [one.key for one in batch],
        times_ms=np.array([one.time_ms for one in batch], np.int64),
        amounts=np.array([one.amount for one in batch], np.float64),
        ids=[one.id for one in batch],
        others=[one.other for one in batch],
        upstreams=np.array([one.upstream for one in batch], np.int64),
        offsets=np.array([one.offset for one in batch], np.int64),
    )


def store_of(**bounds: Any) -> EntityStore:
    """A store of every statistic, with small rings."""
    return EntityStore(WindowPlan.of(WINDOWS), **{"history_max": 32, **bounds})


def ring_of(store: EntityStore, key: str, row: int) -> Touched:
    """Every slot of an entity, with its guard as it stands."""
    slots = np.arange(min(int(store._counts[row]), store.history_max))
    n = len(slots)
    return Touched([key] * n, np.full(n, row), slots, store._guards[np.full(n, row)])


def content(store: EntityStore) -> dict[str, Any]:
    """What is known of each entity, wherever it lies in memory."""
    return {
        key: (
            store.history(key),
            int(store._counts[row]),
            store._guards[row].tolist(),
            int(store._last_ms[row]),
            store._read(ring_of(store, key, row)).rows(),
        )
        for key, row in store.rows.items()
    }


def batches(ones: list[One], seed: int, largest: int = 40) -> list[list[One]]:
    """The same transactions in batches of random size."""
    rng, made, at = random.Random(seed), [], 0
    while at < len(ones):
        size = rng.randint(1, largest)
        made.append(ones[at : at + size])
        at += size
    return made


def marks(ones: list[One], seed: int) -> list[tuple[str, str, bool]]:
    """Labels for about a third of some transactions."""
    rng = random.Random(seed)
    return [(o.key, o.id, rng.random() < 0.5) for o in ones if rng.random() < 0.3]


@pytest.mark.parametrize("seed", range(4))
def test_every_statistic_equals_its_definition(seed):
    """Out of order, ids used twice, labels between, rings that overflow: as the plain fold."""
    store, plain = store_of(upstreams=2), Reference(WINDOWS, 32)
    ones = history(seed, 400, upstreams=2, twice=0.05)
    for batch in batches(ones, seed):
        columns, status = feed(store, batch)
        for one, row, became in zip(batch, columns, status, strict=True):
            seen = Seen(one.id, one.time_ms, one.amount, one.other)
            expected = plain.apply(one.key, seen, one.upstream, one.offset)
            assert (became == APPLIED) == (expected is not None)
            wanted = [0.0] * len(WINDOWS) if expected is None else expected
            np.testing.assert_allclose(wanted, row, rtol=1e-6, atol=1e-6, err_msg=str(one))
        for key, id_, is_fraud in marks(batch, seed):
            store.mark(key, id_, is_fraud=is_fraud)
            plain.mark(key, id_, is_fraud=is_fraud)
    assert max(len(held) for held in plain.known.values()) == 32, "no ring overflowed"
    for key, held in plain.known.items():
        assert [(s.time_ms, s.amount, s.label) for s in held] == store.history(key)


@settings(max_examples=60, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 60), st.integers(0, 2)),
        min_size=1,
        max_size=60,
    )
)
def test_edges_of_windows_are_as_defined(rows):
    """A window is open at its old end and closed at its new one, to the millisecond."""
    windows = [(s, length, delay, 0.5, 15) for s in STATS for length, delay in [(10, 0), (20, 5)]]
    store = EntityStore(WindowPlan.of(windows), history_max=16)
    plain = Reference(windows, 16)
    ones = [
        One(f"k{key}", f"t{i}", 1_000 + time, float(amount), f"o{other}", 0, i)
        for i, (key, amount, time, other) in enumerate(rows)
    ]
    columns, _ = feed(store, ones)
    for one, row in zip(ones, columns, strict=True):
        seen = Seen(one.id, one.time_ms, one.amount, one.other)
        expected = plain.apply(one.key, seen, 0, one.offset)
        assert expected is not None
        np.testing.assert_allclose(expected, row, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_batches_make_no_difference(seed):
    """One by one or in batches: features, status, changes and content are equal to the bit."""
    ones = history(seed, 300, n_keys=40, twice=0.05)
    bounds = {"entities_max": 20}  # some leave on the way
    single, whole, parts = store_of(**bounds), store_of(**bounds), store_of(**bounds)
    one_by_one = [feed(single, [one]) for one in ones]
    at_once = feed(whole, ones)
    in_parts = [feed(parts, batch) for batch in batches(ones, seed)]
    for i in (0, 1):
        joined = np.concatenate([result[i] for result in one_by_one])
        assert joined.tobytes() == at_once[i].tobytes()
        assert joined.tobytes() == np.concatenate([result[i] for result in in_parts]).tobytes()
    assert content(single) == content(whole) == content(parts)
    assert single.n_evicted == whole.n_evicted > 0
    assert single.changes() == whole.changes() == parts.changes()


def test_empty_batch_changes_nothing():
    """A batch of nothing but refused records folds nothing."""
    store = store_of()
    columns, status = feed(store, [])
    assert ((0, len(WINDOWS)), (0,), 0) == (columns.shape, status.shape, len(store))


# ---- The guard.


@pytest.mark.parametrize("seed", range(3))
def test_replayed_records_change_nothing(seed):
    """What was applied is not applied again, from whatever offset it is read again."""
    store, ones = store_of(upstreams=3), history(seed, 200, upstreams=3)
    feed(store, ones)
    store.changes()
    before = pickle.dumps(content(store))
    for start in (0, 50, 199):
        columns, status = feed(store, ones[start:])
        assert {REPLAYED} == set(status.tolist())
        assert not columns.any()
    assert before == pickle.dumps(content(store))
    assert [] == store.changes()


def test_guard_is_kept_for_each_upstream_partition():
    """The same offset of another partition is another transaction."""
    store = store_of(upstreams=2)
    first = One("k", "a", 1_000, 1.0, "o", 0, 7)
    _, status = feed(store, [first, One("k", "b", 1_000, 1.0, "o", 1, 7)])
    assert [APPLIED, APPLIED] == status.tolist()
    _, status = feed(store, [One("k", "c", 1_000, 1.0, "o", 1, 6), first])
    assert [REPLAYED, REPLAYED] == status.tolist()


def test_id_used_again_changes_nothing_but_the_guard():
    """As long as the ring holds it, an id names one transaction of its entity."""
    store = store_of(history_max=16)
    ones = [One("k", f"t{i}", 1_000 + i, 1.0, "o", 0, i) for i in range(15)]
    feed(store, ones)
    *_, (newest, said) = store.changes()
    history, count, guards, last_ms, rows = content(store)["k"]
    _, status = feed(store, [One("k", "t0", 9_000, 5.0, "o", 0, 99)])
    assert [DUPLICATE] == status.tolist()
    assert [14] == guards
    rows = [(at, row._replace(guard=((0, 99),))) for at, row in rows]  # but that it has passed
    assert (history, count, [99], last_ms, rows) == content(store)["k"]
    assert isinstance(said, SlotValue)
    assert [(newest, said._replace(guard=((0, 99),)))] == store.changes()
    _, status = feed(store, [One("other", "t0", 9_000, 5.0, "o", 0, 100)])
    assert [APPLIED] == status.tolist()


def test_id_refused_once_is_refused_when_it_is_read_again():
    """By a process that was killed, when the ring that it restored has forgotten the first."""
    store, others = store_of(history_max=16), range(2, 20)
    feed(store, [One("k", "t0", 1_000, 1.0, "o", 0, 0)])
    again = One("k", "t0", 9_000, 5.0, "o", 0, 1)
    _, status = feed(store, [again])
    assert [DUPLICATE] == status.tolist()
    restored = store_of(history_max=16)
    restored.restore(store.changes())  # all that a commit behind the refusal leaves of it
    assert [(1_000, 1.0)] == [(at, amount) for at, amount, _ in restored.history("k")]
    feed(restored, [One("k", f"t{i}", 9_000 + i, 1.0, "o", 0, i) for i in others])
    _, status = feed(restored, [again])
    assert [REPLAYED] == status.tolist()


@pytest.mark.parametrize(("was", "is_now"), [(16, 64), (64, 16), (16, 32)])
def test_rows_of_rings_of_another_length_are_refused_by_name(was, is_now):
    """Read as they are they would stand in the wrong places, and features would be wrong."""
    store, few = store_of(history_max=was), store_of(history_max=was)
    feed(store, [One("k", f"t{i}", 1_000 * i, 1.0, "o", 0, i) for i in range(40)])
    with pytest.raises(Refused, match=r"entity\.history_max"):
        store_of(history_max=is_now).restore(store.changes())
    feed(few, [One("k", f"t{i}", 1_000 * i, 1.0, "o", 0, i) for i in range(16)])
    store_of(history_max=is_now).restore(few.changes())  # the same in both


def test_refusal_is_told_where_it_stands_among_what_was_applied():
    """However few rows of a batch arrive, the rest is applied again, and nothing twice."""
    names = ["a", "a", "b", "a", "c", "b", "d"]
    batch = [One("k", name, 1_000 * i, 1.0, "o", 0, i) for i, name in enumerate(names)]
    store = store_of()
    _, status = feed(store, batch)
    assert [1, 3, 5] == np.flatnonzero(status == DUPLICATE).tolist()
    _, columns, _ = store.written()
    assert list(range(len(names))) == columns.guards[:, 0].tolist()
    rows = columns.rows()
    for n in range(len(rows)):
        restored = store_of()
        restored.restore(rows[:n])
        feed(restored, batch)
        assert store.history("k") == restored.history("k"), f"{n} rows"


# ---- Labels.


def test_mark_twice_is_mark_once():
    """A label is news once; its correction is news; that of a stranger is none."""
    store = store_of()
    feed(store, [One("k", "a", 1_000, 1.0, "o", 0, 0)])
    store.changes()
    told = [store.mark("k", "a", is_fraud=is_fraud) for is_fraud in (True, True, False, False)]
    assert [True, False, True, False] == told
    assert [False, False] == [
        store.mark("k", "b", is_fraud=True),
        store.mark("x", "a", is_fraud=True),
    ]
    assert [(1_000, 1.0, LEGITIMATE)] == store.history("k")
    ((slot, value),) = store.changes()
    assert isinstance(value, SlotValue)
    assert (("k", 0), LEGITIMATE) == (slot, value.label)


def test_label_of_a_transaction_that_left_the_ring_is_no_news():
    """The slot is another's by then."""
    store = store_of(history_max=16)
    feed(store, [One("k", f"t{i}", 1_000 + i, 1.0, "o", 0, i) for i in range(17)])
    assert not store.mark("k", "t0", is_fraud=True)
    assert {UNKNOWN} == {label for _, _, label in store.history("k")}


# ---- Restoring.


Rows = list[Row]


def log_of(
    store: EntityStore, ones: list[One], seed: int, *, label: bool = True, largest: int = 40
) -> Rows:
    """Everything a store says of itself while it takes a history in batches."""
    log: Rows = []
    for batch in batches(ones, seed, largest):
        feed(store, batch)
        for key, id_, is_fraud in marks(batch, seed) if label else []:
            store.mark(key, id_, is_fraud=is_fraud)
        log += store.changes()
    return log


def compacted(log: Rows) -> Rows:
    """What Kafka's compaction leaves: the last row of each slot, in order."""
    last = {slot: i for i, (slot, _) in enumerate(log)}
    return [row for i, row in enumerate(log) if last[row[0]] == i]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("entities_max", [1_000, 20])
@pytest.mark.parametrize("compact", [False, True])
def test_restored_store_is_the_same_store(seed, entities_max, compact):
    """From the whole changelog or a compacted one, with entities let go on the way."""
    bounds: dict[str, Any] = {"entities_max": entities_max, "upstreams": 2}
    store, other = store_of(**bounds), store_of(**bounds)
    ones = history(seed, 500, n_keys=60, upstreams=2)
    log = log_of(store, ones[:400], seed)
    other.restore(compacted(log) if compact else log)
    assert content(store) == content(other)
    assert [] == other.changes()
    results = [feed(s, ones[380:]) for s in (store, other)]  # some of them are replays
    assert results[0][0].tobytes() == results[1][0].tobytes()
    assert results[0][1].tobytes() == results[1][1].tobytes()
    assert content(store) == content(other)


def test_entity_that_left_and_came_back_in_one_batch_is_restored_as_new():
    """The rows of its former life are gone from the changelog too."""
    store = EntityStore(WindowPlan.of([("count", 365 * DAY, 0, 0.0)]), 16, entities_max=16)
    old = [One("old", f"a{i}", 1_000 + i, 1.0, "o", 0, i) for i in range(5)]
    feed(store, [*old, *(One(f"k{i}", f"b{i}", 5_000 + i, 1.0, "o", 0, 10 + i) for i in range(15))])
    log = store.changes()
    # The 17th entity makes "old" leave; then "old" makes k0 leave and begins anew.
    feed(store, [One("k99", "c", 9_000, 1.0, "o", 0, 30), One("old", "d", 9_001, 1.0, "o", 0, 31)])
    log += store.changes()
    assert [(9_001, 1.0, UNKNOWN)] == store.history("old")
    other = EntityStore(store.plan, 16, entities_max=16)
    other.restore(log)
    assert content(store) == content(other)


@pytest.mark.parametrize("seed", range(3))
def test_highest_offset_wins_in_any_order_of_rows(seed):
    """A worker that had lost the partition may have written late: order is no authority."""
    store = store_of(upstreams=2)
    log = log_of(store, history(seed, 300, upstreams=2), seed, label=False, largest=10)
    random.Random(seed).shuffle(log)
    other = store_of(upstreams=2)
    other.restore(log)
    assert content(store) == content(other)


def test_row_written_late_does_not_take_a_label_away():
    """A row from before the label, written after it, changes nothing."""
    store = store_of()
    feed(store, [One("k", "a", 1_000, 1.0, "o", 0, 0)])
    early = store.changes()
    store.mark("k", "a", is_fraud=True)
    late = store.changes()
    for log in ([*early, *late], [*late, *early]):
        other = store_of()
        other.restore(log)
        assert [(1_000, 1.0, FRAUD)] == other.history("k")


# ---- Bounds.


def test_no_more_entities_than_allowed_and_the_oldest_leave():
    """``entities_max`` holds after every batch; who was seen last stays."""
    store = store_of(entities_max=32)
    for i in range(500):
        feed(store, [One(f"k{i}", f"t{i}", 1_000 + i, 1.0, "o", 0, i)])
        assert len(store) <= 32
    assert 500 - len(store) == store.n_evicted
    assert {f"k{i}" for i in range(500 - len(store), 500)} == set(store.rows)


def test_memory_is_used_again():
    """Entities that leave make room: the columns stop growing."""
    store = store_of(entities_max=64)
    grown = []
    for start in range(0, 4_000, 500):
        for one in range(start, start + 500):
            feed(store, [One(f"k{one}", f"t{one}", 1_000 + one, 1.0, "o", 0, one)])
        store.changes()
        grown.append(store.nbytes)
    assert grown[0] == grown[-1]


def test_entity_that_left_is_let_go_in_the_changelog():
    """One tombstone for every slot that it had."""
    store = store_of(entities_max=16)
    feed(store, [One("old", f"a{i}", i, 1.0, "o", 0, i) for i in range(3)])
    feed(store, [One(f"k{i}", f"b{i}", 100 + i, 1.0, "o", 0, 10 + i) for i in range(15)])
    store.changes()
    feed(store, [One("new", "c", 200, 1.0, "o", 0, 50)])
    gone = [slot for slot, value in store.changes() if value is None]
    assert [("old", 0), ("old", 1), ("old", 2)] == gone
