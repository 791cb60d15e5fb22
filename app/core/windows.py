"""Compiled statistics over an entity's recent transactions.

One pass over the entity's ring answers every declared statistic. The rings of all
entities lie in a pool of small blocks: ``table[row, b]`` is the block that holds the slots
``b * BLOCK .. (b + 1) * BLOCK`` of the entity in ``row``, -1 where none is needed yet. The
n-th transaction of an entity lies in slot ``n % history_max``.

A window of length w with delay d, seen at time t, holds the transactions with time in
(t - d - w, t - d]: the current one belongs to it when d = 0. Transactions may have come out of
order; the pass looks at every slot, so it makes no difference. Cost O(history), about 1 ns a
slot and window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numba as nb
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: 16 slots of 29 bytes: most cards of a week fit into one block, and few slots lie idle.
BLOCK: Final = 16

UNKNOWN, LEGITIMATE, FRAUD = -1, 0, 1

(
    COUNT,
    SUM,
    MEAN,
    MAX,
    STD,
    RATIO,
    ZSCORE,
    SINCE_LAST,
    DISTINCT,
    SEEN,
    FRAUDS,
    RISK,
) = range(12)

#: In the order of the codes above.
STATS: Final = (
    "count",
    "sum",
    "mean",
    "max",
    "std",
    "ratio",
    "zscore",
    "since_last",
    "distinct",
    "seen",
    "frauds",
    "risk",
)

APPLIED, REPLAYED, DUPLICATE = 0, 1, 2


@nb.njit(cache=True, nogil=True)
def _statistics(
    times: NDArray[np.int64],
    amounts: NDArray[np.float64],
    others: NDArray[np.uint64],
    labels: NDArray[np.int8],
    n: int,
    current: int,
    codes: NDArray[np.int64],
    lengths_ms: NDArray[np.int64],
    delays_ms: NDArray[np.int64],
    priors: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Write the statistics seen by the slot ``current``, slots 0..n-1 in order of arrival."""
    now, amount, other = times[current], amounts[current], others[current]
    for f in range(codes.shape[0]):
        code, length, delay, prior = codes[f], lengths_ms[f], delays_ms[f], priors[f]
        # These compare the current transaction with those before it.
        excludes_itself = code in (RATIO, ZSCORE, SINCE_LAST, SEEN)
        count = total = squares = top = frauds = 0.0
        last = np.int64(-1)
        seen = False
        for s in range(n):
            age = now - times[s] - delay
            if age < 0 or age >= length:
                continue
            if s == current and excludes_itself:
                continue
            a = amounts[s]
            count += 1.0
            total += a
            squares += a * a
            if count == 1.0 or a > top:
                top = a
            if labels[s] == FRAUD:
                frauds += 1.0
            last = max(last, times[s])
            if others[s] == other:
                seen = True
        value = 0.0
        if code == COUNT:
            value = count
        elif code == SUM:
            value = total
        elif code == MEAN:
            value = total / count if count > 0.0 else 0.0
        elif code == MAX:
            value = top
        elif code == STD:
            value = _deviation(count, total, squares)
        elif code == RATIO:
            value = amount * count / total if total > 0.0 else 1.0
        elif code == ZSCORE:
            deviation = _deviation(count, total, squares)
            value = (amount - total / count) / deviation if deviation > 0.0 else 0.0
        elif code == SINCE_LAST:
            value = (now - last) / 1000.0 if last >= 0 else length / 1000.0
        elif code == DISTINCT:
            value = _distinct(times, others, n, now, length, delay)
        elif code == SEEN:
            value = 1.0 if seen else 0.0
        elif code == FRAUDS:
            value = frauds
        elif count + prior > 0.0:
            value = frauds / (count + prior)
        out[f] = value


@nb.njit(cache=True, nogil=True)
def _deviation(count: float, total: float, squares: float) -> float:
    if count <= 1.0:
        return 0.0
    mean = total / count
    return float(np.sqrt(max(0.0, squares / count - mean * mean)))


@nb.njit(cache=True, nogil=True)
def _distinct(
    times: NDArray[np.int64],
    others: NDArray[np.uint64],
    n: int,
    now: int,
    length: int,
    delay: int,
) -> float:
    distinct = 0.0
    for s in range(n):
        age = now - times[s] - delay
        if age < 0 or age >= length:
            continue
        first = True
        for r in range(s):
            before = now - times[r] - delay
            if others[r] == others[s] and 0 <= before < length:
                first = False
                break
        if first:
            distinct += 1.0
    return distinct


@nb.njit(cache=True, nogil=True)
def fold(
    rows: NDArray[np.int64],
    times_ms: NDArray[np.int64],
    amounts: NDArray[np.float64],
    ids: NDArray[np.uint64],
    others: NDArray[np.uint64],
    upstreams: NDArray[np.int64],
    offsets: NDArray[np.int64],
    counts: NDArray[np.int64],
    guards: NDArray[np.int64],
    table: NDArray[np.int64],
    pool_times: NDArray[np.int64],
    pool_amounts: NDArray[np.float64],
    pool_ids: NDArray[np.uint64],
    pool_others: NDArray[np.uint64],
    pool_labels: NDArray[np.int8],
    pool_sequences: NDArray[np.int64],
    free: NDArray[np.int64],
    n_free: int,
    codes: NDArray[np.int64],
    lengths_ms: NDArray[np.int64],
    delays_ms: NDArray[np.int64],
    priors: NDArray[np.float64],
    status: NDArray[np.int8],
    slots: NDArray[np.int64],
    out: NDArray[np.float64],
) -> int:
    """Apply n transactions in order; return how many free blocks are left.

    ``status[i]`` says what became of transaction i: applied, replayed (its source offset is
    not above the guard) or duplicate (its id lies in the ring already). Only what was applied
    changed anything: ``slots[i]`` says which slot, ``out[i]`` its statistics. The caller sees to
    it that ``free`` holds a block for each transaction.
    """
    history_max = table.shape[1] * BLOCK
    times = np.empty(history_max, np.int64)
    sums = np.empty(history_max, np.float64)
    whom = np.empty(history_max, np.uint64)
    known = np.empty(history_max, np.int8)
    for i in range(rows.shape[0]):
        row = rows[i]
        if offsets[i] <= guards[row, upstreams[i]]:
            status[i] = REPLAYED
            continue
        # The newest history_max - 1: the current one takes the slot of the oldest.
        held = min(counts[row], history_max - 1)
        oldest = counts[row] - held
        duplicate = False
        for s in range(held):
            slot = (oldest + s) % history_max
            block, at = table[row, slot // BLOCK], slot % BLOCK
            if pool_ids[block, at] == ids[i]:
                duplicate = True
                break
            times[s] = pool_times[block, at]
            sums[s] = pool_amounts[block, at]
            whom[s] = pool_others[block, at]
            known[s] = pool_labels[block, at]
        if duplicate:
            status[i] = DUPLICATE
            continue
        slot = counts[row] % history_max
        if table[row, slot // BLOCK] < 0:
            n_free -= 1
            table[row, slot // BLOCK] = free[n_free]
        block, at = table[row, slot // BLOCK], slot % BLOCK
        pool_times[block, at] = times_ms[i]
        pool_amounts[block, at] = amounts[i]
        pool_ids[block, at] = ids[i]
        pool_others[block, at] = others[i]
        pool_labels[block, at] = UNKNOWN
        pool_sequences[block, at] = counts[row]
        slots[i] = slot
        counts[row] += 1
        guards[row, upstreams[i]] = offsets[i]
        times[held], sums[held] = times_ms[i], amounts[i]
        whom[held], known[held] = others[i], UNKNOWN
        status[i] = APPLIED
        _statistics(
            times,
            sums,
            whom,
            known,
            held + 1,
            held,
            codes,
            lengths_ms,
            delays_ms,
            priors,
            out[i],
        )
    return n_free
