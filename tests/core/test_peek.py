"""To peek at an entity is to see what a fold would say, and to change nothing."""

import numpy as np
import pytest

from app.core.entity import EntityStore
from app.core.windows import STATS, WindowPlan

DAY_MS = 86_400_000
PLAN = WindowPlan.of([(stat, days * DAY_MS, 0, 1.0) for stat in STATS for days in (1, 30)])


def traffic(seed, n, n_keys):
    """Times somewhat out of order, cards, shops, amounts."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.integers(0, DAY_MS // 4, n)) + rng.integers(-DAY_MS, 1, n) + 40 * DAY_MS
    keys = [f"card-{k}" for k in rng.integers(0, n_keys, n)]
    others = [f"shop-{k}" for k in rng.integers(0, 9, n)]
    return times, keys, others, rng.gamma(2.0, 30.0, n)


def state(store):
    """All that a store holds: its columns to the bit, its buckets, its counts."""
    columns = {n: v.tobytes() for n, v in vars(store).items() if isinstance(v, np.ndarray)}
    return (
        columns,
        {key: (store.history(key), store.buckets(key)) for key in store.rows},
        store._n_free,
        store.n_buckets,
    )


@pytest.mark.parametrize("buckets_max", [0, 8])
@pytest.mark.parametrize("n_keys", [1, 5])
def test_a_peek_says_what_the_fold_says_next(buckets_max, n_keys):
    """Rings that overflow, buckets, labels, times out of order: the same numbers, bit for bit."""
    store = EntityStore(PLAN, history_max=16, buckets_max=buckets_max)
    times, keys, others, amounts = traffic(7, 160, n_keys)
    for i, key in enumerate(keys):
        told = {"time_ms": int(times[i]), "amount": amounts[i], "other": others[i]}
        before = state(store)
        peeked = store.peek(key, transaction_id=f"t{i}", **told)
        assert before == state(store)
        columns, _ = store.apply(
            [key], times_ms=times[i : i + 1], amounts=amounts[i : i + 1], ids=[f"t{i}"],
            others=[others[i]], upstreams=np.zeros(1, np.int64), offsets=np.array([i]),
        )  # fmt: skip
        np.testing.assert_array_equal(columns[0], peeked)
        if i % 3 == 0:
            store.mark(key, f"t{i}", is_fraud=i % 2 == 0, source=(0, i), time_ms=int(times[i]))
        store.changes()


def test_a_peek_at_an_id_that_was_used_is_refused():
    """What the fold would call a duplicate has no features."""
    store = EntityStore(PLAN)
    one = np.zeros(1, np.int64)
    store.apply(["a"], times_ms=one, amounts=np.ones(1), ids=["t"], others=["b"],
                upstreams=one, offsets=one)  # fmt: skip
    assert store.peek("a", time_ms=1, amount=1.0, transaction_id="t", other="b") is None
