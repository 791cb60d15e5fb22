"""What left the ring: exact where windows end between buckets, a stated error elsewhere."""

import random
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.core.buckets import (
    FRAUD,
    LEGITIMATE,
    MARKS_MAX,
    REGISTERS,
    UNKNOWN,
    BucketPool,
    BucketValue,
    add_to_sketch,
    estimate,
    merge_sketch,
)
from app.core.entity import EntityStore
from app.core.hashing import hash_id
from app.core.slots import Row
from app.core.windows import APPLIED, STATS, WindowPlan
from tests.core.reference import Reference, Seen
from tests.core.test_entity import One, batches, compacted, feed, history

HOUR, DAY = 3_600_000, 86_400_000
START = 1_600_000_000_000 // DAY * DAY
RING = 16
#: Those that read buckets, but for the sketch.
EXACT = [
    "count", "sum", "mean", "max", "std", "ratio", "zscore", "since_last", "frauds", "risk",
    "share", "since_fraud", "since_first_fraud", "burst",
]  # fmt: skip
#: Those that labels move.
LABELLED = [
    "frauds", "risk", "share", "since_fraud", "since_first_fraud", "since_legitimate", "last",
    "run",
]  # fmt: skip
#: Every statistic over windows whose lengths and delays are whole days.
DAYS = [
    (stat, length * DAY, delay * DAY, 1.0, 2 if stat == "last" else 9 * DAY)
    for stat in STATS
    for length, delay in [(1, 0), (4, 0), (30, 0), (3, 2)]
]
ALIKE = [window for window in DAYS if window[0] in EXACT]


def store_of(windows: Any = DAYS, **bounds: Any) -> EntityStore:
    """A store of small rings, with buckets of a day."""
    made = {"history_max": RING, "bucket_ms": DAY, "buckets_max": 64, **bounds}
    return EntityStore(WindowPlan.of(windows), **made)


class Told(NamedTuple):
    """A label on its way to a store."""

    one: One
    is_fraud: bool
    at: int


def tell(store: EntityStore, told: Told) -> bool:
    """Mark as the stage does."""
    one = told.one
    return store.mark(
        one.key,
        one.id,
        is_fraud=told.is_fraud,
        source=(one.upstream, one.offset),
        at=told.at,
        time_ms=one.time_ms,
    )


def held(store: EntityStore) -> dict[str, Any]:
    """What is known of each entity: its ring, its buckets, its guard.

    Not how often a label has changed: to be told again of a label and its correction is two more.
    """
    return {
        key: (
            store.history(key),
            [
                b._replace(marks=tuple((*mark[:3], 0) for mark in b.marks))
                for b in store.buckets(key)
            ],
            int(store._counts[row]),
            store._guards[row].tolist(),
        )
        for key, row in store.rows.items()
    }


# ---- Windows against every transaction there was.


@pytest.mark.parametrize("seed", range(4))
def test_windows_that_end_between_buckets_are_exact(seed):
    """In order, seen from the last millisecond of a day: as if nothing had left the ring."""
    rng = random.Random(seed)
    store, plain = store_of(ALIKE), Reference(ALIKE, 10_000)
    ones: list[One] = []
    for day in range(40):
        times = sorted(rng.randrange(DAY) for _ in range(rng.randrange(30)))
        for time in [*times, DAY - 1]:
            amount, i = round(rng.lognormvariate(3, 1), 2), len(ones)
            ones.append(One("k", f"t{i}", START + day * DAY + time, amount, "o", 0, i))
            columns, _ = feed(store, [ones[-1]])
            expected = plain.apply("k", Seen(f"t{i}", ones[-1].time_ms, amount, "o"), 0, i)
            assert expected is not None
            if time == DAY - 1:
                np.testing.assert_allclose(
                    expected, columns[0], rtol=1e-6, atol=1e-6, err_msg=f"{seed} {i}"
                )
        for _ in range(4):
            told = Told(rng.choice(ones), rng.random() < 0.5, -1)
            tell(store, told)
            plain.mark("k", told.one.id, is_fraud=told.is_fraud)
    assert len(ones) - 2 * RING > 100, "nothing left the ring"


SPANS = [(1, 0), (30, 0), (7 * 24, 0), (50, 24), (100, 0)]  # hours, of windows and delays
LOOSE = [
    (stat, w * HOUR, d * HOUR, 0.0, 0) for stat in ("count", "sum", "frauds") for w, d in SPANS
]


@settings(max_examples=60, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5 * HOUR), st.sampled_from([0, 0, 0, HOUR, 2 * DAY]), st.booleans()
        ),
        min_size=2 * RING,
        max_size=120,
    )
)
@example([(HOUR, 0, True)] * 100)
def test_error_is_at_most_what_the_buckets_on_the_edges_hold(steps):
    """Late and out of order, windows that end anywhere: count, sum and frauds err by no more."""
    store, now = store_of(LOOSE), START
    seen: list[tuple[int, float, bool]] = []
    for i, (step, late, is_fraud) in enumerate(steps):
        now += step
        one = One("k", f"t{i}", now - late, float(i % 7), "o", 0, i)
        seen.append((one.time_ms, one.amount, is_fraud))
        columns, _ = feed(store, [one])
        gone, ring = seen[:-RING], [*seen[-RING:-1], (one.time_ms, one.amount, False)]
        for (stat, length, delay, *_), got in zip(LOOSE, columns[0], strict=True):
            high = one.time_ms - delay
            low = high - length
            edges = {low // DAY, high // DAY}
            value = {"count": lambda t: 1.0, "sum": lambda t: t[1], "frauds": lambda t: float(t[2])}
            true = sum(value[stat](t) for t in [*gone, *ring] if low < t[0] <= high)
            bound = sum(value[stat](t) for t in gone if t[0] // DAY in edges)
            assert abs(true - got) <= bound + 1e-6, (i, stat, length, delay, true, got, bound)
        if is_fraud:
            tell(store, Told(one, True, i))


def test_as_long_as_nothing_left_the_ring_buckets_change_nothing():
    """The same bits with and without them."""
    windows = [(*window[:2], window[2], 1.0, window[4]) for window in DAYS]
    ones = history(1, 200, n_keys=40)
    off = EntityStore(WindowPlan.of(windows), history_max=256)
    on = EntityStore(WindowPlan.of(windows), history_max=256, buckets_max=64)
    results = [feed(store, ones)[0].tobytes() for store in (off, on)]
    assert results[0] == results[1]
    assert off.changes() == on.changes()
    assert 0 == on.n_buckets


def test_others_are_estimated_to_the_stated_error():
    """13 % of standard error from ten to a hundred thousand; sketches add up as sets do."""
    rng = np.random.default_rng(7)
    for n in (10, 60, 300, 3_000, 30_000):
        errors = []
        for _ in range(60):
            parts = [np.zeros(REGISTERS // 2, np.uint8) for _ in range(2)]
            for i, other in enumerate(rng.integers(0, 2**64, n, np.uint64)):
                add_to_sketch(parts[i % 2], other)
                add_to_sketch(parts[0], other)
            merge_sketch(parts[1], parts[0])
            assert (parts[0] == parts[1]).all()
            errors.append(estimate(parts[1]) / n - 1.0)
        assert np.sqrt(np.mean(np.square(errors))) < 0.13 * 1.4, n


def test_distinct_counts_what_only_buckets_know():
    """The ring's others exactly, and some 13 % of the rest."""
    store = store_of([("distinct", 30 * DAY, 0, 0.0)])
    ones = [One("k", f"t{i}", START + i * HOUR, 1.0, f"o{i % 200}", 0, i) for i in range(600)]
    columns, _ = feed(store, ones)
    assert list(range(1, RING + 1)) == columns[:RING, 0].tolist()
    assert columns[-1, 0] == pytest.approx(200, rel=0.4)


# ---- Bounds.


def test_newer_bucket_takes_the_place_of_an_older_one():
    """``buckets_max`` days are remembered; what is older than the bucket there is dropped."""
    store = store_of([("count", 365 * DAY, 0, 0.0)], buckets_max=4)
    days = [0, 1, 2, 3, 4, 0]
    ones = [
        One("k", f"t{i}", START + day * DAY, 1.0, "o", 0, i)
        for i, day in enumerate([*days, *([4] * 2 * RING)])
    ]
    feed(store, ones)
    assert [START + day * DAY for day in (1, 2, 3, 4)] == [b.first_ms for b in store.buckets("k")]
    assert [1, 1, 1, RING + 1] == [b.n for b in store.buckets("k")]
    assert not tell(store, Told(ones[0], True, 0)), "its bucket is gone"


def test_memory_is_bounded_and_used_again():
    """``buckets_max`` an entity; those of entities that leave make room."""
    store = store_of([("count", DAY, 0, 0.0)], entities_max=16, buckets_max=8)
    grown = []
    for start in range(0, 3_000, 500):
        for i in range(start, start + 500):
            keys = [f"k{i // 50}-{j}" for j in range(2)]
            feed(store, [One(k, f"{k}{i}", START + i * HOUR, 1.0, "o", 0, 2 * i) for k in keys])
        store.changes()
        assert 0 < store.n_buckets <= 8 * len(store)
        grown.append(store.nbytes)
    assert store.n_evicted > 0
    assert grown[1] == grown[-1]


def test_entity_that_left_lets_its_buckets_go_in_the_changelog():
    """One tombstone for every slot and every bucket."""
    store = store_of(entities_max=16)
    feed(store, [One("old", f"a{i}", START + i * HOUR, 1.0, "o", 0, i) for i in range(60)])
    written = {slot for slot, _ in store.changes()}
    assert any(slot < 0 for _, slot in written)
    feed(
        store,
        [One(f"k{i}", f"b{i}", START + 100 * DAY + i, 1.0, "o", 0, 100 + i) for i in range(16)],
    )
    assert written == {slot for slot, value in store.changes() if value is None}
    assert 0 == store.n_buckets


# ---- Labels.


def crowded(n: int = 60) -> tuple[EntityStore, list[One]]:
    """One entity whose first transactions are known to buckets alone."""
    store = store_of(ALIKE)
    ones = [One("k", f"t{i}", START + i * HOUR, 1.0, "o", 0, i) for i in range(n)]
    feed(store, ones)
    store.changes()
    return store, ones


@pytest.mark.parametrize("i", [0, 60 - RING - 1, 60 - 2 * RING, 60 - 1])
def test_label_said_again_changes_nothing_wherever_its_transaction_lies(i):
    """In a bucket, in a bucket and the ring, in the ring: news once; a correction takes back."""
    store, ones = crowded()
    said = [True, True, False, False, True, False]
    news = [tell(store, Told(ones[i], fraud, at)) for at, fraud in enumerate(said)]
    assert [True, False, True, False, True, True] == news
    buckets = store.buckets("k")
    assert (0, 1 if i < 60 - RING else 0) == (
        sum(b.frauds for b in buckets),
        sum(b.legitimate for b in buckets),
    )
    tell(store, Told(ones[i], True, 9))
    found = [b for b in store.buckets("k") if b.frauds]
    times = [(b.first_fraud_ms, b.last_fraud_ms) for b in found]
    assert times == ([(ones[i].time_ms, ones[i].time_ms)] if i < 60 - RING else [])


def test_label_that_left_with_its_transaction_can_be_corrected():
    """What was labelled in the ring is known by its id in the bucket."""
    store, ones = crowded(RING)
    tell(store, Told(ones[0], True, 0))
    feed(
        store, [One("k", f"u{i}", START + 30 * HOUR, 1.0, "o", 0, 100 + i) for i in range(3 * RING)]
    )
    assert 1 == sum(b.frauds for b in store.buckets("k"))
    assert not tell(store, Told(ones[0], True, 1))
    assert tell(store, Told(ones[0], False, 2))
    assert 0 == sum(b.frauds for b in store.buckets("k"))


def test_stranger_is_no_news_to_a_bucket():
    """No bucket of that time, or nothing in it at that time."""
    store, ones = crowded()
    for time_ms in (START - DAY, START + 99 * DAY, ones[23].time_ms + 1):
        stranger = One("k", "x", time_ms, 1.0, "o", 0, 0)
        assert not tell(store, Told(stranger, True, 0))
    assert not store.mark("k", "t0", is_fraud=True), "no time, no bucket"


def test_a_bucket_knows_so_many_labels_by_their_id():
    """``MARKS_MAX``: what comes later is not counted, what it knows can still be corrected."""
    store = store_of(ALIKE)
    n = MARKS_MAX + 10
    ones = [One("k", f"t{i}", START + i, 1.0, "o", 0, i) for i in range(n + 2 * RING)]
    feed(store, ones)
    told = [tell(store, Told(one, True, -1)) for one in ones[:n]]
    assert [True] * MARKS_MAX + [False] * 10 == told
    assert tell(store, Told(ones[0], False, -1))
    assert [MARKS_MAX - 1] == [b.frauds for b in store.buckets("k")]


# ---- Restoring.


class Step(NamedTuple):
    """A batch, the labels told after it, and the rows that both left in the changelog."""

    batch: list[One]
    told: list[Told]
    rows: list[Row]


def steps_of(store: EntityStore, ones: list[One], seed: int, largest: int = 60) -> list[Step]:
    """Everything a store says of itself while it takes a history and labels of any age."""
    rng, seen, made, at = random.Random(seed), list[One](), list[Step](), 0
    for batch in batches(ones, seed, largest):
        feed(store, batch)
        rows, seen = store.changes(), [*seen, *batch]
        told = [Told(rng.choice(seen), rng.random() < 0.6, at + i) for i in range(3)]
        at += len(told)
        for one in told:
            tell(store, one)
        made.append(Step(batch, told, rows + store.changes()))
    return made


def busy(seed: int, n: int = 400, **shape: Any) -> list[One]:
    """A history of few entities, so that most leave their rings."""
    return history(seed, n, n_keys=4, **shape)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("compact", [False, True])
def test_restored_store_is_the_live_store(seed, compact):
    """From the whole changelog or a compacted one, and it goes on alike."""
    bounds: dict[str, Any] = {"upstreams": 2, "buckets_max": 16}
    live, other = store_of(**bounds), store_of(**bounds)
    ones = busy(seed, upstreams=2, twice=0.02)
    log = [row for step in steps_of(live, ones[:300], seed) for row in step.rows]
    other.restore(compacted(log) if compact else log)
    assert held(live) == held(other)
    assert [] == other.changes()
    results = [feed(store, ones[280:]) for store in (live, other)]  # some of them are replays
    assert results[0][0].tobytes() == results[1][0].tobytes()
    assert held(live) == held(other)
    assert sum(b.n for key in live.rows for b in live.buckets(key)) > 100


@pytest.mark.parametrize("seed", range(30))
def test_whatever_was_delivered_replay_ends_as_if_nothing_had_been(seed):
    """Rows up to anywhere, then everything read again, several times: equal to the bit.

    State, and the features of whatever is applied, but for those that labels move: these come
    after other transactions when they are read again.
    """
    rng = random.Random(seed)
    ones = busy(seed, upstreams=2, twice=0.05)
    windows = [window for window in DAYS if window[0] not in LABELLED]
    live, alone = (store_of(windows, upstreams=2) for _ in range(2))
    expected = dict(zip(ones, feed(alone, ones)[0], strict=True))
    steps = steps_of(live, ones, seed)
    log: list[Row] = []
    at = 0  # the step from which records and labels are read again
    for life in range(6):
        store = store_of(windows, upstreams=2)
        store.restore(compacted(log) if rng.random() < 0.5 else log)
        until = len(steps) if life == 5 else rng.randint(at, len(steps))
        for step in steps[at:until]:
            columns, status = feed(store, step.batch)
            for i in np.flatnonzero(status == APPLIED):
                assert expected[step.batch[i]].tobytes() == columns[i].tobytes()
            rows = store.changes()
            for told in step.told:
                tell(store, told)
            rows += store.changes()
            is_last = step is steps[until - 1] and life < 5
            log += rows[: rng.randint(0, len(rows))] if is_last else rows
        at = max(0, until - 1 - rng.randint(0, 3))
    assert held(live) == held(store)


@pytest.mark.parametrize("seed", range(3))
def test_rows_in_any_order_restore_the_same_store(seed):
    """Order is no authority: of the rows of one bucket the one that knows more wins."""
    live = store_of(upstreams=2)
    log: list[Row] = []
    for batch in batches(busy(seed, upstreams=2), seed, 10):
        feed(live, batch)
        log += live.changes()
    random.Random(seed).shuffle(log)
    other = store_of(upstreams=2)
    other.restore(log)
    assert held(live) == held(other)


def bucket(absorbed: int, n: int, marks: dict[int, tuple[int, int]]) -> BucketValue:
    """A bucket of the first day: n transactions, label and revision of some by id."""
    labels = [label for label, _ in marks.values()]
    frauds = labels.count(FRAUD)
    return BucketValue(
        absorbed, n, float(n), float(n), 1.0, 0, n, frauds, len(labels) - frauds,
        1 if frauds else np.iinfo(np.int64).max, 1 if frauds else np.iinfo(np.int64).min,
        bytes(REGISTERS // 2), tuple((id_, 1, *mark) for id_, mark in sorted(marks.items())),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # absorbed, n, labels | absorbed, n, labels | what is restored
        ((8, 3, {1: (FRAUD, 1)}), (9, 4, {1: (FRAUD, 1)}), (9, 4, {1: (FRAUD, 1)})),
        ((8, 3, {}), (8, 3, {1: (FRAUD, 1)}), (8, 3, {1: (FRAUD, 1)})),
        ((8, 3, {2: (FRAUD, 1)}), (8, 3, {2: (LEGITIMATE, 2)}), (8, 3, {2: (LEGITIMATE, 2)})),
        # One absorbed more, the other was told more: the labels of this, the sums of that.
        ((8, 3, {1: (FRAUD, 1)}), (10, 5, {}), (10, 5, {1: (FRAUD, 1)})),
        (
            (8, 3, {1: (LEGITIMATE, 2)}),
            (10, 5, {1: (FRAUD, 1), 3: (FRAUD, 1)}),
            (10, 5, {1: (LEGITIMATE, 2), 3: (FRAUD, 1)}),
        ),
        # Each was told what the other was not, of one of them it could not yet have been told.
        (
            (8, 3, {1: (FRAUD, 1)}),
            (10, 5, {4: (LEGITIMATE, 2)}),
            (10, 5, {1: (FRAUD, 1), 4: (LEGITIMATE, 2)}),
        ),
    ],
)
@pytest.mark.parametrize("is_late", [False, True])
def test_row_written_late_takes_nothing_away(first, second, expected, is_late):
    """Neither transactions nor labels, whichever of two workers' rows stands last."""
    pool = BucketPool(DAY, 4)
    line = pool.claim()
    rows = [bucket(*first), bucket(*second)]
    for row in reversed(rows) if is_late else rows:
        pool.restore(line, 0, row)
    assert bucket(*expected) == pool.value(line, 0)


def test_row_of_one_who_absorbed_less_speaks_for_no_label_of_what_came_after():
    """What it did not hold it was not told of, however many labels it had heard."""
    pool = BucketPool(DAY, 4)
    line = pool.claim()
    for row in (
        bucket(10, 5, {4: (FRAUD, 1)}),
        bucket(8, 3, {1: (FRAUD, 1)}),
        bucket(10, 5, {4: (LEGITIMATE, 2)}),
    ):
        pool.restore(line, 0, row)
    assert bucket(10, 5, {1: (FRAUD, 1), 4: (LEGITIMATE, 2)}) == pool.value(line, 0)


def test_row_of_other_buckets_is_passed_over():
    """After the width or the number of buckets was changed, those of before say nothing."""
    pool = BucketPool(DAY, 4)
    line = pool.claim()
    pool.restore(line, 1, bucket(8, 3, {}))
    pool.restore(line, 0, bucket(8, 2 * DAY, {}))
    assert 0 == len(pool)


def test_bucket_ahead_of_its_ring_is_of_a_former_life():
    """A row that outlived its entity adds nothing to the one that came back."""
    other = store_of()
    other.restore([(("k", ~0), bucket(500, 3, {})), *crowded(20)[0].changes()])
    feed(other, [One("k", f"t{i}", START + i * HOUR, 1.0, "o", 0, i) for i in range(20)])
    assert 4 == sum(b.n for b in other.buckets("k"))


def test_label_in_the_slot_alone_reaches_the_bucket():
    """Of the two rows of a label the slot's comes first; the bucket learns it from there."""
    store, ones = crowded()
    log = store_rows(ones)
    tell(store, Told(ones[40], True, 0))
    rows = store.changes()
    assert [True, False] == [slot >= 0 for (_, slot), _ in rows]
    other = store_of(ALIKE)
    other.restore([*log, rows[0]])
    assert held(store) == held(other)
    assert hash_id("t40") in {mark[0] for b in other.buckets("k") for mark in b.marks}
    assert UNKNOWN not in {mark[2] for b in other.buckets("k") for mark in b.marks}


def store_rows(ones: list[One]) -> list[Row]:
    """The changelog of a store that took these."""
    store = store_of(ALIKE)
    feed(store, ones)
    return store.changes()
