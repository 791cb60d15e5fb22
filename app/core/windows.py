"""Compiled statistics over an entity's recent transactions.

One pass over the entity's ring answers every declared statistic. The rings of all
entities lie in a pool of small blocks: ``table[row, b]`` is the block that holds the slots
``b * BLOCK .. (b + 1) * BLOCK`` of the entity in ``row``, -1 where none is needed yet. The
n-th transaction of an entity lies in slot ``n % n_slots``, and the newest ``history_max`` count.

A window of length w with delay d, seen at time t, holds the transactions with time in
(t - d - w, t - d]: the current one belongs to it when d = 0. Transactions may have come out of
order; then the pass looks at every slot. Cost O(transactions in the window), about 1 ns each.

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


@dataclass(frozen=True)
class WindowPlan:
    """The statistics of one entity, as the compiled pass reads them."""

    codes: NDArray[np.int64]
    lengths_ms: NDArray[np.int64]
    delays_ms: NDArray[np.int64]
    priors: NDArray[np.float64]
    extras: NDArray[np.int64]

    @classmethod
    def of(cls, windows: Iterable[Sequence[Any]]) -> Self:
        """Plan of (stat, length in ms, delay in ms, prior[, extra]), one a column.

        ``extra`` is the longer window in ms of "peak" and "burst", and the few of "last".
        """
        rows = list(windows)
        return cls(
            np.array([STATS.index(row[0]) for row in rows], np.int64),
            np.array([row[1] for row in rows], np.int64),
            np.array([row[2] for row in rows], np.int64),
            np.array([row[3] for row in rows], np.float64),
            np.array(
                [row[4] if row[4:] else 3 if row[0] == "last" else _AGAINST_MS for row in rows]
            ),
        )

    def __len__(self) -> int:
        """How many columns."""
        return len(self.codes)

    @property
    def arrays(
        self,
    ) -> tuple[
        NDArray[np.int64],
        NDArray[np.int64],
        NDArray[np.int64],
        NDArray[np.float64],
        NDArray[np.int64],
    ]:
        """The columns in the order of the compiled pass."""
        return self.codes, self.lengths_ms, self.delays_ms, self.priors, self.extras


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
    codes: NDArray[np.int64],
    lengths_ms: NDArray[np.int64],
    delays_ms: NDArray[np.int64],
    priors: NDArray[np.float64],
    extras: NDArray[np.int64],
    out: NDArray[np.float64],
) -> None:
    """Write the statistics that the last of n transactions sees; they stand as they arrived.

    Where they stand in the order of time, a pass ends with the window. ``line`` is the entity's
    in the table of buckets, 0 if it has none.
    """
    now = times[n - 1]
    for f in range(codes.shape[0]):
        code, length, delay, extra = codes[f], lengths_ms[f], delays_ms[f], extras[f]
        low, high = now - delay - length, now - delay
        if code == DISTINCT:
            out[f] = _distinct(times, others, n, is_ordered, length, delay)
            if line > 0:
                out[f] += others_within(pool, line, low, high, times, others, n)
        elif code >= SHARE:
            told = _NO_LABELS
            if line > 0 and code in (SHARE, SINCE_FRAUD, SINCE_FIRST_FRAUD):
                told = labels_within(pool, line, now - length, now, delay)
            out[f] = _known(times, labels, n, is_ordered, code, length, delay, extra, told)
        elif code in (PEAK, BURST):
            long = short = 0.0
            if line > 0 and code == BURST:
                long = count_within(pool, line, now - extra, now)
                short = count_within(pool, line, now - min(length, extra), now)
            out[f] = _contrast(times, amounts, n, is_ordered, code, length, extra, long, short)
        else:
            older = _NO_SUMS
            if line > 0 and code not in (SEEN, RANK):
                older = sums_within(pool, line, low, high)
            out[f] = _plain(
                times, amounts, others, labels, n, is_ordered, code, length, delay, priors[f], older
            )


@nb.njit(cache=True, nogil=True)
def _plain(
    times: NDArray[np.int64],
    amounts: NDArray[np.float64],
    others: NDArray[np.uint64],
    labels: NDArray[np.int8],
    n: int,
    is_ordered: bool,
    code: int,
    length: int,
    delay: int,
    prior: float,
    older: tuple[float, float, float, float, float, int],
) -> float:
    """Statistics of one window; ``older`` are the sums of the buckets in it."""
    now, amount, other = times[n - 1], amounts[n - 1], others[n - 1]
    # These compare the current transaction with those before it.
    excludes_itself = code in (RATIO, ZSCORE, SINCE_LAST, SEEN, RANK)
    count, total, squares, top, frauds, last = older
    above = seen = 0.0
    for s in range(n - 2 if excludes_itself else n - 1, -1, -1):
        age = now - times[s] - delay
        if age >= length:
            if is_ordered:
                break
            continue
        if age < 0:
            continue
        a = amounts[s]
        count += 1.0
        total += a
        squares += a * a
        top = max(top, a)
        if a >= amount:
            above += 1.0
        if labels[s] == FRAUD:
            frauds += 1.0
        if others[s] == other:
            seen = 1.0
        last = max(last, times[s])
    if code == COUNT:
        return count
    if code == SUM:
        return total
    if code == MEAN:
        return total / count if count > 0.0 else 0.0
    if code == MAX:
        return top if count > 0.0 else 0.0
    if code == STD:
        return _deviation(count, total, squares)
    if code == RATIO:
        return amount * count / total if total > 0.0 else 1.0
    if code == ZSCORE:
        deviation = _deviation(count, total, squares)
        return (amount - total / count) / deviation if deviation > 0.0 else 0.0
    if code == SINCE_LAST:
        return (now - last) / 1000.0 if last != NEVER else length / 1000.0
    if code == SEEN:
        return seen
    if code == FRAUDS:
        return frauds
    if code == RANK:
        return above / count if count > 0.0 else np.nan
    return frauds / (count + prior) if count + prior > 0.0 else 0.0


@nb.njit(cache=True, nogil=True)
def _contrast(
    times: NDArray[np.int64],
    amounts: NDArray[np.float64],
    n: int,
    is_ordered: bool,
    code: int,
    length: int,
    against: int,
    count: float,
    short: float,
) -> float:
    """A short window beside a long one, ``against`` ms, both before the current transaction.

    ``count`` and ``short`` are how many the buckets in them hold.
    """
    now = times[n - 1]
    total = squares = top = 0.0
    for s in range(n - 2, -1, -1):
        age = now - times[s]
        if age >= against:
            if is_ordered:
                break
            continue
        if age < 0:
            continue
        a = amounts[s]
        count += 1.0
        total += a
        squares += a * a
        if age < length:
            short += 1.0
            if short == 1.0 or a > top:
                top = a
    if code == BURST:
        return (short + 1.0) / (count * length / against + 1.0)
    if short == 0.0 or count <= 1.0:
        return np.nan
    mean = total / count
    # A hundredth of the mean: amounts that never vary would divide by nothing.
    spread = _deviation(count, total, squares) + abs(mean) / 100.0
    return (top - mean) / spread if spread > 0.0 else 0.0


@nb.njit(cache=True, nogil=True)
def _known(
    times: NDArray[np.int64],
    labels: NDArray[np.int8],
    n: int,
    is_ordered: bool,
    code: int,
    length: int,
    delay: int,
    newest: int,
    older: tuple[float, float, float, float],
) -> float:
    """What is known of earlier transactions; without a label for ``delay`` ms: legitimate.

    ``older`` are the labels of the buckets in the window.
    """
    now = times[n - 1]
    known, frauds, latest_fraud, first_fraud = older
    run, latest_legitimate = 0.0, np.nan
    is_running = True
    for s in range(n - 2, -1, -1):
        age = now - times[s]
        if age >= length:
            if is_ordered:
                break
            continue
        if age < 0 or (labels[s] == UNKNOWN and age < delay):
            continue
        days = age / _DAY_MS
        if code == LAST and known >= newest:
            break
        known += 1.0
        if labels[s] == FRAUD:
            frauds += 1.0
            if not latest_fraud <= days:
                latest_fraud = days
            if not first_fraud >= days:
                first_fraud = days
            if is_running:
                run += 1.0
        else:
            is_running = False
            if not latest_legitimate <= days:
                latest_legitimate = days
    if code == SINCE_FRAUD:
        return latest_fraud
    if code == SINCE_FIRST_FRAUD:
        return first_fraud
    if code == SINCE_LEGITIMATE:
        return latest_legitimate
    if code == RUN:
        return run
    return frauds / known if known > 0.0 else np.nan


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
    is_ordered: bool,
    length: int,
    delay: int,
) -> float:
    now = times[n - 1]
    distinct = 0.0
    for s in range(n - 1, -1, -1):
        age = now - times[s] - delay
        if age >= length and is_ordered:
            break
        if age < 0 or age >= length:
            continue
        first = True
        for r in range(s + 1, n):
            newer = now - times[r] - delay
            if others[r] == others[s] and 0 <= newer < length:
                first = False
                break
        if first:
            distinct += 1.0
    return distinct


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
    table: NDArray[np.int32],
    pool_times: NDArray[np.int64],
    pool_amounts: NDArray[np.float64],
    pool_ids: NDArray[np.uint64],
    pool_others: NDArray[np.uint64],
    pool_labels: NDArray[np.int8],
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
    codes: NDArray[np.int64],
    lengths_ms: NDArray[np.int64],
    delays_ms: NDArray[np.int64],
    priors: NDArray[np.float64],
    extras: NDArray[np.int64],
    status: NDArray[np.int8],
    slots: NDArray[np.int64],
    out: NDArray[np.float64],
) -> int:
    """Apply n transactions in order; return how many free blocks are left.

    ``status[i]`` says what became of transaction i: applied, replayed (its source offset is
    not above the guard) or duplicate (its id lies in the ring already). Only what was applied
    changed anything: ``slots[i]`` says which slot, ``out[i]`` its statistics. The caller sees to
    it that ``free`` holds a block for each transaction, and that each entity whose ring overflows
    has a line in ``bucket_table``, with a free bucket for each transaction that leaves.
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
    for i in range(rows.shape[0]):
        row = rows[i]
        if offsets[i] <= guards[row, upstreams[i]]:
            status[i] = REPLAYED
            continue
        # The newest history_max - 1: the current one takes the slot of the oldest.
        held = min(counts[row], history_max - 1)
        oldest = counts[row] - held
        duplicate, is_ordered = False, True
        for s in range(held):
            slot = (oldest + s) % n_slots
            block, at = table[row, slot // BLOCK], slot % BLOCK
            if pool_ids[block, at] == ids[i]:
                duplicate = True
                break
            times[s] = pool_times[block, at]
            sums[s] = pool_amounts[block, at]
            whom[s] = pool_others[block, at]
            known[s] = pool_labels[block, at]
            is_ordered = is_ordered and (s == 0 or times[s] >= times[s - 1])
        if duplicate:
            status[i] = DUPLICATE
            continue
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
        pool_sequences[block, at] = counts[row]
        slots[i] = slot
        counts[row] += 1
        guards[row, upstreams[i]] = offsets[i]
        times[held], sums[held] = times_ms[i], amounts[i]
        whom[held], known[held] = others[i], UNKNOWN
        status[i] = APPLIED
        is_ordered = is_ordered and (held == 0 or times[held] >= times[held - 1])
        _statistics(
            times,
            sums,
            whom,
            known,
            held + 1,
            is_ordered,
            pool,
            line,
            codes,
            lengths_ms,
            delays_ms,
            priors,
            extras,
            out[i],
        )
    return n_free
