"""Compiled statistics over an entity's recent transactions.

One pass over the entity's ring, the newest first, cuts it into parts at the ages where any declared
window begins or ends, and sums up each part; a window is some parts in a row. "Distinct", "last"
and "run" look once more, as far as they must. The rings of all entities lie in a pool of small
blocks: ``table[row, b]`` is the block that holds the slots ``b * BLOCK .. (b + 1) * BLOCK`` of the
entity in ``row``, -1 where none is needed yet. The n-th transaction of an entity lies in slot
``n % n_slots``, and the newest ``history_max`` count.

A window of length w with delay d, seen at time t, holds the transactions with time in
(t - d - w, t - d]: the current one belongs to it when d = 0. Transactions may have come out of
order; then the pass looks at every slot. Sums are of a ring's content alone, nothing is carried
from one transaction to the next: they are the same to the bit in any batch and after any restore.
Cost O(transactions in the longest window), some 5 ns each, and some 20 ns a statistic.

The newest ``history_max`` transactions count exactly. What is older lies in buckets of event
time (``buckets``), which the statistics marked b read as well: of a bucket on an edge of the window
they count the share that should lie in it. So such a count or sum errs by less than what the (at
most two) buckets on the edges hold; it is exact where there are none, as for every entity that has
not had more than ``history_max`` transactions. The others look at the newest ``history_max`` alone.

    statistic           | of the window, in the unit of the amount or as said
    --------------------+--------------------------------------------------------------------
    count sum mean    b | with the current transaction; 0 where there is none
    max               b | the same; that of a bucket if half of it lies in the window
    std               b | the same, that of the population
    ratio             b | amount to the mean of those before; 1 where there is none
    zscore            b | amount less that mean, in deviations; 0 where they do not vary
    rank                | share of those before with at least this amount; NaN: none
    since_last        b | seconds since the one before; the window's length where there is none
    distinct          b | how many others (a card's terminals, a terminal's cards); those that
                        | only buckets know are estimated, to 13 % of all (standard error)
    seen                | 1 if the same other was there before, else 0
    peak                | highest amount before, in deviations of a longer window; NaN: too few
    burst             b | count, to that expected from a longer window
    frauds            b | how many are labelled fraud
    risk              b | frauds / (count + prior); 0 where there is none
    share             b | frauds among those known; NaN: none known
    since_fraud       b | days since the latest fraud that is known; NaN: none
    since_first_fraud b | days since the first one within the window; NaN: none
    since_legitimate    | days since the latest known as legitimate; NaN: none
    last                | share of frauds among the newest few that are known; NaN: none
    run                 | frauds in a row, from the newest that is known

``since_last`` and the two of frauds take the nearest time that a bucket on an edge knows: they err
by a bucket's width at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, get_args

import numba as nb
import numpy as np

from app.core.buckets import (
    FRAUD,
    NEVER,
    UNKNOWN,
    Buckets,
    absorb,
    count_within,
    labels_within,
    others_within,
    sums_within,
)
from app.records import Stat

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

#: 16 slots of 29 bytes: most cards of a week fit into one block, and few slots lie idle.
BLOCK: Final = 16

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
    RANK,
    PEAK,
    BURST,
    SHARE,
    SINCE_FRAUD,
    SINCE_FIRST_FRAUD,
    SINCE_LEGITIMATE,
    LAST,
    RUN,
) = range(len(get_args(Stat)))

#: Names of the codes above, in their order.
STATS: Final = get_args(Stat)

_DAY_MS: Final = 86_400_000.0

APPLIED, REPLAYED, DUPLICATE = 0, 1, 2


#: What no bucket holds: as ``sums_within`` and ``labels_within`` say it.
_NO_SUMS: Final = (0.0, 0.0, 0.0, -np.inf, 0.0, NEVER)
_NO_LABELS: Final = (0.0, 0.0, np.nan, np.nan)

#: 90 days, where a plan does not say against which window.
_AGAINST_MS: Final = 7_776_000_000

#: Columns of a plan.
_CODE, _LENGTH, _DELAY, _EXTRA, _LOW, _END, _FAR = range(7)

#: What is known of the transactions whose age lies between two edges.
(
    _N,
    _TOTAL,
    _SQUARES,
    _TOP,
    _FRAUDS,
    _TOLD,
    _ABOVE,
    _SEEN,
    _NEAREST,
    _NEAR_FRAUD,
    _FAR_FRAUD,
    _NEAR_LEGITIMATE,
    _NEAR_UNTOLD,
) = range(13)


@dataclass(frozen=True)
class WindowPlan:
    """The statistics of one entity, as the compiled pass reads them.

    ``edges_ms`` are all the ages at which some window begins or ends, ascending: they cut an
    entity's past into parts, and each window is some parts in a row. ``shape`` has a row for each
    statistic: its code, length, delay and extra, its first part, the one after its last, and the
    one after the last of the longer window, or of what is known by delay alone.
    """

    shape: NDArray[np.int64]
    priors: NDArray[np.float64]
    edges_ms: NDArray[np.int64]

    @classmethod
    def of(cls, windows: Iterable[Sequence[Any]]) -> Self:
        """Plan of (stat, length in ms, delay in ms, prior[, extra]), one a column.

        ``extra`` is the longer window in ms of "peak" and "burst", and the few of "last".
        """
        told = list(windows)
        rows = [
            (
                STATS.index(row[0]),
                *row[1:3],
                row[4] if row[4:] else 3 if row[0] == "last" else _AGAINST_MS,
            )
            for row in told
        ]
        ages = [_ages_of(*row) for row in rows]
        edges = sorted({age for of_one in ages for age in of_one if age > 0})
        # A part ends where its edge is: what is younger than edges[i] lies in parts 0 .. i.
        part = {0: 0, **{age: i + 1 for i, age in enumerate(edges)}}
        shape = [
            (*row, *(part[age] for age in of_one)) for row, of_one in zip(rows, ages, strict=True)
        ]
        return cls(
            np.array(shape, np.int64).reshape(len(rows), 7),
            np.array([row[3] for row in told], np.float64),
            np.array(edges, np.int64),
        )

    def __len__(self) -> int:
        """How many columns."""
        return len(self.shape)

    @property
    def arrays(
        self,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        """The plan in the order of the compiled pass."""
        return self.shape, self.priors, self.edges_ms


def _ages_of(code: int, length: int, delay: int, extra: int) -> tuple[int, int, int]:
    """Ages between which a window lies, and a third at which something ends."""
    if code in (PEAK, BURST):
        return 0, min(length, extra), extra
    if code >= SHARE:
        return 0, length, min(delay, length)
    return delay, delay + length, 0


@nb.njit(cache=True, nogil=True)
def _part(
    times: NDArray[np.int64],
    amounts: NDArray[np.float64],
    others: NDArray[np.uint64],
    labels: NDArray[np.int8],
    n: int,
    is_ordered: bool,
    edges: NDArray[np.int64],
    parts: NDArray[np.float64],
) -> None:
    """Sum up the transactions before the last of n by age, in one pass, the newest first.

    Where they stand in the order of time it ends with the longest window.
    """
    parts[:] = 0.0
    parts[_TOP] = -np.inf
    parts[_NEAREST:] = np.inf
    parts[_FAR_FRAUD] = -np.inf
    n_parts = edges.shape[0]
    now, amount, other = times[n - 1], amounts[n - 1], others[n - 1]
    j = 0
    count = total = squares = above = seen = 0.0
    top, nearest, untold = -np.inf, np.inf, np.inf
    for s in range(n - 2, -1, -1):
        age = now - times[s]
        if age < 0:
            continue
        k = j if is_ordered else 0
        while k < n_parts and age >= edges[k]:
            k += 1
        if k == n_parts:
            if is_ordered:
                break
            continue
        if k != j:
            _flush(parts, j, count, total, squares, top, above, seen, nearest, untold)
            j = k
            count = total = squares = above = seen = 0.0
            top, nearest, untold = -np.inf, np.inf, np.inf
        a, days = amounts[s], float(age)
        count += 1.0
        total += a
        squares += a * a
        top = max(top, a)
        above += 1.0 if a >= amount else 0.0
        seen += 1.0 if others[s] == other else 0.0
        nearest = min(nearest, days)
        if labels[s] == UNKNOWN:
            untold = min(untold, days)
        else:
            parts[_TOLD, j] += 1.0
            if labels[s] == FRAUD:
                parts[_FRAUDS, j] += 1.0
                parts[_NEAR_FRAUD, j] = min(parts[_NEAR_FRAUD, j], days)
                parts[_FAR_FRAUD, j] = max(parts[_FAR_FRAUD, j], days)
            else:
                parts[_NEAR_LEGITIMATE, j] = min(parts[_NEAR_LEGITIMATE, j], days)
    if n_parts > 0:
        _flush(parts, j, count, total, squares, top, above, seen, nearest, untold)


@nb.njit(cache=True, nogil=True)
def _flush(
    parts: NDArray[np.float64],
    j: int,
    count: float,
    total: float,
    squares: float,
    top: float,
    above: float,
    seen: float,
    nearest: float,
    untold: float,
) -> None:
    parts[_N, j] += count
    parts[_TOTAL, j] += total
    parts[_SQUARES, j] += squares
    parts[_TOP, j] = max(parts[_TOP, j], top)
    parts[_ABOVE, j] += above
    parts[_SEEN, j] += seen
    parts[_NEAREST, j] = min(parts[_NEAREST, j], nearest)
    parts[_NEAR_UNTOLD, j] = min(parts[_NEAR_UNTOLD, j], untold)


@nb.njit(cache=True, nogil=True)
def _distinct(
    times: NDArray[np.int64],
    others: NDArray[np.uint64],
    n: int,
    is_ordered: bool,
    low: int,
    high: int,
    stamp: int,
    met: NDArray[np.uint64],
    stamps: NDArray[np.int64],
) -> float:
    """How many others the n transactions have whose time lies in (low, high].

    ``met`` is a table of others by hash; those that bear the ``stamp`` are of this call.
    """
    distinct, mask = 0.0, np.uint64(met.shape[0] - 1)
    for s in range(n - 1, -1, -1):
        if times[s] <= low:
            if is_ordered:
                break
            continue
        if times[s] > high:
            continue
        # Others need not come well spread: multiplied, and of the product the upper bits.
        at = ((others[s] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & mask
        while stamps[at] == stamp and met[at] != others[s]:
            at = (at + np.uint64(1)) & mask
        if stamps[at] != stamp:
            stamps[at], met[at] = stamp, others[s]
            distinct += 1.0
    return distinct


@nb.njit(cache=True, nogil=True)
def _sum(parts: NDArray[np.float64], what: int, low: int, end: int) -> float:
    total = 0.0
    for j in range(low, end):
        total += parts[what, j]
    return total


@nb.njit(cache=True, nogil=True)
def _least(parts: NDArray[np.float64], what: int, low: int, end: int) -> float:
    least = np.inf
    for j in range(low, end):
        least = min(least, parts[what, j])
    return least


@nb.njit(cache=True, nogil=True)
def _most(parts: NDArray[np.float64], what: int, low: int, end: int) -> float:
    most = -np.inf
    for j in range(low, end):
        most = max(most, parts[what, j])
    return most


@nb.njit(cache=True, nogil=True)
def _statistics(
    times: NDArray[np.int64],
    amounts: NDArray[np.float64],
    others: NDArray[np.uint64],
    labels: NDArray[np.int8],
    n: int,
    is_ordered: bool,
    pool: Buckets,
    line: int,
    parts: NDArray[np.float64],
    stamp: int,
    met: NDArray[np.uint64],
    stamps: NDArray[np.int64],
    shape: NDArray[np.int64],
    priors: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """Write the statistics that the last of n transactions sees; they stand as they arrived.

    ``line`` is the entity's in the table of buckets, 0 if it has none.
    """
    now = times[n - 1]
    # Statistics of one window often follow one another: what buckets hold is asked for once.
    asked_low, asked_high, older = NEVER, NEVER, _NO_SUMS
    for f in range(shape.shape[0]):
        code, length, delay, extra = (
            shape[f, _CODE],
            shape[f, _LENGTH],
            shape[f, _DELAY],
            shape[f, _EXTRA],
        )
        low, high = now - delay - length, now - delay
        if code == DISTINCT:
            mine = stamp * shape.shape[0] + f
            out[f] = _distinct(times, others, n, is_ordered, low, high, mine, met, stamps)
            if line > 0:
                out[f] += others_within(pool, line, low, high, times, others, n)
        elif code in (LAST, RUN):
            out[f] = _newest(times, labels, n, is_ordered, code, length, delay, extra)
        elif code >= SHARE:
            told = _NO_LABELS
            if line > 0 and code != SINCE_LEGITIMATE:
                told = labels_within(pool, line, now - length, now, delay)
            out[f] = _known(parts, code, shape[f, _END], shape[f, _FAR], told)
        elif code in (PEAK, BURST):
            long = short = 0.0
            if line > 0 and code == BURST:
                long = count_within(pool, line, now - extra, now)
                short = count_within(pool, line, now - min(length, extra), now)
            out[f] = _contrast(
                parts, code, length / extra, shape[f, _END], shape[f, _FAR], long, short
            )
        else:
            if line > 0 and (low, high) != (asked_low, asked_high):
                asked_low, asked_high = low, high
                older = sums_within(pool, line, low, high)
            out[f] = _plain(
                parts,
                code,
                shape[f, _LOW],
                shape[f, _END],
                now,
                amounts[n - 1],
                delay == 0,
                length,
                priors[f],
                older,
            )


@nb.njit(cache=True, nogil=True)
def _plain(
    parts: NDArray[np.float64],
    code: int,
    low: int,
    end: int,
    now: int,
    amount: float,
    with_itself: bool,
    length: int,
    prior: float,
    older: tuple[float, float, float, float, float, int],
) -> float:
    """Statistics of one window; ``older`` are the sums of the buckets in it."""
    if code == SEEN:
        return 1.0 if _sum(parts, _SEEN, low, end) > 0.0 else 0.0
    if code == SINCE_LAST:
        age = _least(parts, _NEAREST, low, end)
        if older[5] != NEVER:
            age = min(age, float(now - older[5]))
        return (age if age != np.inf else length) / 1000.0
    # The ring's alone: it says what share of those that it holds is as high.
    held = _sum(parts, _N, low, end)
    if code == RANK:
        return _sum(parts, _ABOVE, low, end) / held if held > 0.0 else np.nan
    count = older[0] + held
    # These compare the current transaction with those before it.
    if code in (RATIO, ZSCORE):
        total = older[1] + _sum(parts, _TOTAL, low, end)
        if code == RATIO:
            return amount * count / total if total > 0.0 else 1.0
        squares = older[2] + _sum(parts, _SQUARES, low, end)
        deviation = _deviation(count, total, squares)
        return (amount - total / count) / deviation if deviation > 0.0 else 0.0
    if with_itself:
        count += 1.0
    if code == COUNT:
        return count
    if code in (FRAUDS, RISK):
        frauds = older[4] + _sum(parts, _FRAUDS, low, end)
        if code == FRAUDS:
            return frauds
        return frauds / (count + prior) if count + prior > 0.0 else 0.0
    if code == MAX:
        top = max(older[3], _most(parts, _TOP, low, end))
        if with_itself:
            top = max(top, amount)
        return top if count > 0.0 else 0.0
    total = older[1] + _sum(parts, _TOTAL, low, end) + (amount if with_itself else 0.0)
    if code == SUM:
        return total
    if code == MEAN:
        return total / count if count > 0.0 else 0.0
    own = amount * amount if with_itself else 0.0
    return _deviation(count, total, older[2] + _sum(parts, _SQUARES, low, end) + own)


@nb.njit(cache=True, nogil=True)
def _contrast(
    parts: NDArray[np.float64],
    code: int,
    share: float,
    end: int,
    far: int,
    count: float,
    short: float,
) -> float:
    """A short window beside a long one, of which it is a ``share``, before the current transaction.

    ``count`` and ``short`` are how many the buckets in them hold.
    """
    count += _sum(parts, _N, 0, far)
    short += _sum(parts, _N, 0, end)
    if code == BURST:
        return (short + 1.0) / (count * share + 1.0)
    if short == 0.0 or count <= 1.0:
        return np.nan
    total = _sum(parts, _TOTAL, 0, far)
    mean = total / count
    # A hundredth of the mean: amounts that never vary would divide by nothing.
    spread = _deviation(count, total, _sum(parts, _SQUARES, 0, far)) + abs(mean) / 100.0
    return (_most(parts, _TOP, 0, end) - mean) / spread if spread > 0.0 else 0.0


@nb.njit(cache=True, nogil=True)
def _known(
    parts: NDArray[np.float64],
    code: int,
    end: int,
    aged: int,
    older: tuple[float, float, float, float],
) -> float:
    """What is known of earlier transactions; without a label, in parts from ``aged``: legitimate.

    ``older`` are the labels of the buckets in the window.
    """
    known, frauds, latest_fraud, first_fraud = older
    if code == SINCE_FRAUD:
        days = _least(parts, _NEAR_FRAUD, 0, end) / _DAY_MS
        return latest_fraud if not days < np.inf or latest_fraud <= days else days
    if code == SINCE_FIRST_FRAUD:
        days = _most(parts, _FAR_FRAUD, 0, end) / _DAY_MS
        return first_fraud if not days > -np.inf or first_fraud >= days else days
    if code == SINCE_LEGITIMATE:
        told, untold = (
            _least(parts, _NEAR_LEGITIMATE, 0, end),
            _least(parts, _NEAR_UNTOLD, aged, end),
        )
        days = min(told, untold) / _DAY_MS
        return days if days < np.inf else np.nan
    known += _sum(parts, _TOLD, 0, aged) + _sum(parts, _N, aged, end)
    frauds += _sum(parts, _FRAUDS, 0, end)
    return frauds / known if known > 0.0 else np.nan


@nb.njit(cache=True, nogil=True)
def _newest(
    times: NDArray[np.int64],
    labels: NDArray[np.int8],
    n: int,
    is_ordered: bool,
    code: int,
    length: int,
    delay: int,
    newest: int,
) -> float:
    """Frauds among the newest few that are known, or in a row; they are in order of arrival."""
    now = times[n - 1]
    known = frauds = 0.0
    for s in range(n - 2, -1, -1):
        age = now - times[s]
        if age >= length:
            if is_ordered:
                break
            continue
        if age < 0 or (labels[s] == UNKNOWN and age < delay):
            continue
        if code == LAST and known >= newest:
            break
        known += 1.0
        if labels[s] == FRAUD:
            frauds += 1.0
        elif code == RUN:
            break
    if code == RUN:
        return frauds
    return frauds / known if known > 0.0 else np.nan


@nb.njit(cache=True, nogil=True)
def _deviation(count: float, total: float, squares: float) -> float:
    if count <= 1.0:
        return 0.0
    mean = total / count
    return float(np.sqrt(max(0.0, squares / count - mean * mean)))


@nb.njit(cache=True, nogil=True)
def n_leaving(rows: NDArray[np.int64], counts: NDArray[np.int64], history_max: int) -> int:
    """How many transactions leave the ring, at most, if one more of each of ``rows`` comes."""
    leaving = 0
    for i in range(rows.shape[0]):
        counts[rows[i]] += 1
        if counts[rows[i]] > history_max:
            leaving += 1
    for i in range(rows.shape[0]):
        counts[rows[i]] -= 1
    return leaving


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
    passed: NDArray[np.int64],
    last_ms: NDArray[np.int64],
    unsaid: NDArray[np.int64],
    table: NDArray[np.int32],
    pool_times: NDArray[np.int64],
    pool_amounts: NDArray[np.float64],
    pool_ids: NDArray[np.uint64],
    pool_others: NDArray[np.uint64],
    pool_labels: NDArray[np.int8],
    pool_revisions: NDArray[np.uint8],
    pool_sequences: NDArray[np.int64],
    free: NDArray[np.int64],
    n_free: int,
    history_max: int,
    lines: NDArray[np.int32],
    bucket_table: NDArray[np.int32],
    bucket_longs: NDArray[np.int64],
    bucket_reals: NDArray[np.float64],
    bucket_sketches: NDArray[np.uint8],
    bucket_free: NDArray[np.int64],
    bucket_n_free: NDArray[np.int64],
    bucket_ms: int,
    shape: NDArray[np.int64],
    priors: NDArray[np.float64],
    edges_ms: NDArray[np.int64],
    status: NDArray[np.int8],
    slots: NDArray[np.int64],
    guards_then: NDArray[np.int64],
    out: NDArray[np.float64],
) -> tuple[int, int]:
    """Apply n transactions in order; return how many free blocks are left, and how many it took.

    It stops before a transaction of an entity of which ``unsaid`` has a whole ring of rows already.

    ``status[i]`` says what became of transaction i: applied, replayed (its source offset is
    not above the guard) or duplicate (its id lies in the ring already). What was applied has a
    slot, ``slots[i]``, and statistics, ``out[i]``; a duplicate moves nothing but the guard, and the
    newest slot tells of it. ``guards_then[i]`` is the entity's guard with either. The caller
    sees to it that ``free`` holds a block for each transaction, and that each entity whose ring
    overflows has a line in ``bucket_table``, with a free bucket for each transaction that leaves.
    """
    n_slots = table.shape[1] * BLOCK
    # Put together here: handed over as one it would cost each call 10 us.
    pool = Buckets(
        bucket_table,
        bucket_longs,
        bucket_reals,
        bucket_sketches,
        bucket_free,
        bucket_n_free,
        bucket_ms,
    )
    times = np.empty(history_max, np.int64)
    sums = np.empty(history_max, np.float64)
    whom = np.empty(history_max, np.uint64)
    known = np.empty(history_max, np.int8)
    parts = np.empty((13, edges_ms.shape[0]), np.float64)
    # A table of others at most half full.
    n_places = 2
    while n_places < 2 * history_max:
        n_places *= 2
    met, stamps = np.empty(n_places, np.uint64), np.full(n_places, -1, np.int64)
    for i in range(rows.shape[0]):
        row = rows[i]
        if offsets[i] <= guards[row, upstreams[i]]:
            status[i] = REPLAYED
            continue
        if unsaid[row] >= history_max:
            return n_free, i
        # The newest history_max - 1: the current one takes the slot of the oldest.
        held = min(counts[row], history_max - 1)
        oldest = counts[row] - held
        is_duplicate, is_ordered, s = False, True, 0
        while s < held:
            slot = (oldest + s) % n_slots
            block, at = table[row, slot // BLOCK], slot % BLOCK
            for k in range(min(BLOCK - at, held - s)):
                is_duplicate |= pool_ids[block, at + k] == ids[i]
                times[s + k] = pool_times[block, at + k]
                sums[s + k] = pool_amounts[block, at + k]
                whom[s + k] = pool_others[block, at + k]
                known[s + k] = pool_labels[block, at + k]
            s += BLOCK - at
        if is_duplicate:
            # Decided, too: read again when the ring has forgotten the first, it would count.
            status[i] = DUPLICATE
            slots[i] = (counts[row] - 1) % n_slots
            unsaid[row] += 1
            guards[row, upstreams[i]] = offsets[i]
            guards_then[i] = guards[row]
            continue
        times[held] = times_ms[i]
        for s in range(held):
            is_ordered &= times[s] <= times[s + 1]
        line = int(lines[row])
        if line > 0 and counts[row] >= history_max:
            gone = counts[row] - history_max
            slot = gone % n_slots
            block, at = table[row, slot // BLOCK], slot % BLOCK
            absorb(
                pool,
                line,
                gone,
                pool_times[block, at],
                pool_amounts[block, at],
                pool_others[block, at],
                pool_labels[block, at],
            )
        slot = counts[row] % n_slots
        if table[row, slot // BLOCK] < 0:
            n_free -= 1
            table[row, slot // BLOCK] = free[n_free]
        block, at = table[row, slot // BLOCK], slot % BLOCK
        pool_times[block, at] = times_ms[i]
        pool_amounts[block, at] = amounts[i]
        pool_ids[block, at] = ids[i]
        pool_others[block, at] = others[i]
        pool_labels[block, at] = UNKNOWN
        pool_revisions[block, at] = 0
        pool_sequences[block, at] = counts[row]
        slots[i] = slot
        counts[row] += 1
        unsaid[row] += 1
        guards[row, upstreams[i]] = offsets[i]
        guards_then[i] = guards[row]
        passed[upstreams[i]] = max(passed[upstreams[i]], offsets[i])
        last_ms[row] = max(last_ms[row], times_ms[i])
        sums[held], whom[held], known[held] = amounts[i], others[i], UNKNOWN
        status[i] = APPLIED
        _part(times, sums, whom, known, held + 1, is_ordered, edges_ms, parts)
        _statistics(
            times,
            sums,
            whom,
            known,
            held + 1,
            is_ordered,
            pool,
            line,
            parts,
            i,
            met,
            stamps,
            shape,
            priors,
            out[i],
        )
    return n_free, rows.shape[0]
