"""What left an entity's ring, summed up in buckets of event time.

Bucket k holds what happened in [k * width, (k + 1) * width); it lies at place ``k % places`` of
its entity, where a newer bucket takes the place of an older one, and what is older than the
bucket there is dropped. Only entities whose ring overflowed have any.

A window that holds all of a bucket's times counts all of it. Of a bucket on one of its two edges
it counts the share that would lie in it were the transactions spread evenly between the first
and the last: so a count or a sum errs by less than what the buckets on the edges hold, and not at
all where the edges fall between buckets. Distinct others come from a sketch of 64 registers
(HyperLogLog, Flajolet et al. 2007): 13 % standard error.

A bucket keeps, with its sums, the labels of its transactions by id (``MARKS_MAX`` of them), so that
a label said again changes nothing and a correction takes back what it corrects. Its guard is the
transaction of the entity up to which it holds all that belongs to it; that of a label is its
revision, as in the ring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numba as nb
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNKNOWN, LEGITIMATE, FRAUD = -1, 0, 1

#: Columns of ``Buckets.longs`` and of ``Buckets.reals``.
(
    EPOCH,
    N_HELD,
    FIRST_MS,
    LAST_MS,
    N_FRAUDS,
    N_LEGITIMATE,
    FIRST_FRAUD_MS,
    LAST_FRAUD_MS,
    ABSORBED,
) = range(9)
TOTAL, SQUARES, TOP = range(3)

#: 64 registers of 4 bits: 13 % standard error in 32 bytes, up to some 500,000 others.
REGISTERS: Final = 64
_RANK_MAX: Final = 15

#: Labels of a bucket that are known by their id, as many as a ring's. Of what is labelled before
#: it leaves the ring the rest is counted all the same; of what is labelled later it is not.
MARKS_MAX: Final = 256

#: Entities and buckets that a new pool has room for; both double when full.
_ROOM: Final = 16

#: From half of a bucket on, its highest amount and its others count as the window's.
_MOST: Final = 0.5

_DAY_MS: Final = 86_400_000.0

NEVER: Final = np.iinfo(np.int64).min
_LATEST: Final = np.iinfo(np.int64).max


class Buckets(NamedTuple):
    """The buckets of all entities, as the compiled pass reads them."""

    table: NDArray[np.int32]  # (line of an entity, place): the bucket there, or -1
    longs: NDArray[np.int64]
    reals: NDArray[np.float64]
    sketches: NDArray[np.uint8]
    free: NDArray[np.int64]
    n_free: NDArray[np.int64]  # shape (1,)
    width_ms: int


class BucketValue(NamedTuple):
    """One bucket as a row of the changelog."""

    absorbed: int  # it holds all that belongs to it of the entity's transactions up to this one
    n: int
    total: float
    squares: float
    top: float
    first_ms: int
    last_ms: int
    frauds: int
    legitimate: int
    first_fraud_ms: int
    last_fraud_ms: int
    sketch: bytes
    marks: tuple[tuple[int, int, int, int], ...] = ()  # (hash of the id, *Mark), ascending


class Mark(NamedTuple):
    """The label of a transaction that a bucket holds."""

    time_ms: int
    label: int
    revision: int  # how often it has changed, up to ``REVISION_MAX``: its guard


#: Of how often a label has changed; a byte in a row.
REVISION_MAX: Final = 255

_UNMARKED: Final = Mark(0, UNKNOWN, 0)


@nb.njit(cache=True, nogil=True)
def add_to_sketch(registers: NDArray[np.uint8], other: int) -> None:
    """Let a sketch know one other, by its 64-bit hash; two registers lie in a byte."""
    bits = np.uint64(other)
    at = np.int64(bits & np.uint64(REGISTERS - 1))
    bits >>= np.uint64(6)
    rank = 1
    while rank < _RANK_MAX and bits & np.uint64(1) == np.uint64(0):
        bits >>= np.uint64(1)
        rank += 1
    shift = 4 * (at % 2)
    byte = np.int64(registers[at // 2])
    if rank > (byte >> shift) & 15:
        registers[at // 2] = (byte & (0xF0 >> shift)) | (rank << shift)


@nb.njit(cache=True, nogil=True)
def merge_sketch(registers: NDArray[np.uint8], more: NDArray[np.uint8]) -> None:
    """Let a sketch know all that another knows."""
    for i in range(registers.shape[0]):
        low = max(registers[i] & 15, more[i] & 15)
        registers[i] = low | max(registers[i] & 0xF0, more[i] & 0xF0)


@nb.njit(cache=True, nogil=True)
def estimate(registers: NDArray[np.uint8]) -> float:
    """How many different others a sketch knows."""
    empty = harmonic = 0.0
    for i in range(REGISTERS):
        rank = (registers[i // 2] >> (4 * (i % 2))) & 15
        harmonic += 2.0 ** -float(rank)
        if rank == 0:
            empty += 1.0
    raw = 0.709 * REGISTERS * REGISTERS / harmonic  # 0.709: the paper's constant for 64
    if raw <= 2.5 * REGISTERS and empty > 0.0:
        return REGISTERS * np.log(REGISTERS / empty)
    return raw


@nb.njit(cache=True, nogil=True)
def overlap(first: int, last: int, low: int, high: int) -> float:
    """Share of what happened between ``first`` and ``last`` that lies in (low, high]."""
    if last <= low or first > high:
        return 0.0
    if first > low and last <= high:
        return 1.0
    return (min(last, high) - max(first, low)) / (last - first)


@nb.njit(cache=True, nogil=True)
def _nearest(first: int, last: int, low: int, high: int) -> int:
    """The latest time in (low, high] at which, by its first and last, something happened."""
    return min(last, high) if first <= high and last > low else NEVER


@nb.njit(cache=True, nogil=True)
def _n_epochs(pool: Buckets, low: int, high: int) -> int:
    """How many buckets the times in (low, high] can lie in, the oldest of which may be gone."""
    return min(high // pool.width_ms - low // pool.width_ms + 1, pool.table.shape[1])


@nb.njit(cache=True, nogil=True)
def _bucket_of(pool: Buckets, line: int, epoch: int) -> int:
    """The bucket of an epoch, or -1."""
    b = pool.table[line, epoch % pool.table.shape[1]]
    return b if b >= 0 and pool.longs[b, EPOCH] == epoch else -1


@nb.njit(cache=True, nogil=True)
def sums_within(
    pool: Buckets, line: int, low: int, high: int
) -> tuple[float, float, float, float, float, int]:
    """Count, sum, sum of squares, maximum, frauds and latest time in (low, high]."""
    count = total = squares = frauds = 0.0
    top, last = -np.inf, NEVER
    newest = high // pool.width_ms
    for k in range(_n_epochs(pool, low, high)):
        b = _bucket_of(pool, line, newest - k)
        if b < 0:
            continue
        first_ms, last_ms = pool.longs[b, FIRST_MS], pool.longs[b, LAST_MS]
        share = overlap(first_ms, last_ms, low, high)
        count += share * pool.longs[b, N_HELD]
        total += share * pool.reals[b, TOTAL]
        squares += share * pool.reals[b, SQUARES]
        frauds += share * pool.longs[b, N_FRAUDS]
        if share >= _MOST:
            top = max(top, pool.reals[b, TOP])
        last = max(last, _nearest(first_ms, last_ms, low, high))
    return count, total, squares, top, frauds, last


@nb.njit(cache=True, nogil=True)
def count_within(pool: Buckets, line: int, low: int, high: int) -> float:
    """How many transactions in (low, high]."""
    count, newest = 0.0, high // pool.width_ms
    for k in range(_n_epochs(pool, low, high)):
        b = _bucket_of(pool, line, newest - k)
        if b >= 0:
            share = overlap(pool.longs[b, FIRST_MS], pool.longs[b, LAST_MS], low, high)
            count += share * pool.longs[b, N_HELD]
    return count


@nb.njit(cache=True, nogil=True)
def labels_within(
    pool: Buckets, line: int, low: int, now: int, delay: int
) -> tuple[float, float, float, float]:
    """Of (low, now]: how many are known, how many frauds, days since the latest and the first.

    Without a label for ``delay`` ms a transaction is known as legitimate. NaN: no fraud.
    """
    known = frauds = 0.0
    latest = first = np.nan
    newest = now // pool.width_ms
    for k in range(_n_epochs(pool, low, now)):
        b = _bucket_of(pool, line, newest - k)
        if b < 0:
            continue
        longs = pool.longs[b]
        told = longs[N_FRAUDS] + longs[N_LEGITIMATE]
        share = overlap(longs[FIRST_MS], longs[LAST_MS], low, now)
        aged = overlap(longs[FIRST_MS], longs[LAST_MS], low, now - delay)
        known += share * told + aged * (longs[N_HELD] - told)
        frauds += share * longs[N_FRAUDS]
        at = _nearest(longs[FIRST_FRAUD_MS], longs[LAST_FRAUD_MS], low, now)
        if at == NEVER:
            continue
        days = (now - at) / _DAY_MS
        latest = days if not latest <= days else latest
        if longs[FIRST_FRAUD_MS] > low:
            days = (now - longs[FIRST_FRAUD_MS]) / _DAY_MS
        first = days if not first >= days else first
    return known, frauds, latest, first


@nb.njit(cache=True, nogil=True)
def others_within(
    pool: Buckets,
    line: int,
    low: int,
    high: int,
    times: NDArray[np.int64],
    others: NDArray[np.uint64],
    n: int,
) -> float:
    """How many others in (low, high] only buckets know, beside n transactions that are known."""
    own = np.zeros(REGISTERS // 2, np.uint8)
    for s in range(n):
        if low < times[s] <= high:
            add_to_sketch(own, others[s])
    both, newest = own.copy(), high // pool.width_ms
    for k in range(_n_epochs(pool, low, high)):
        b = _bucket_of(pool, line, newest - k)
        if b >= 0 and overlap(pool.longs[b, FIRST_MS], pool.longs[b, LAST_MS], low, high) >= _MOST:
            merge_sketch(both, pool.sketches[b])
    # What the ring knows is counted; only what the buckets add to it is estimated.
    return max(0.0, estimate(both) - estimate(own))


@nb.njit(cache=True, nogil=True)
def absorb(
    pool: Buckets, line: int, sequence: int, time_ms: int, amount: float, other: int, label: int
) -> bool:
    """Take an entity's next transaction into its bucket; return whether there was one for it.

    The caller sees to it that ``pool.free`` holds a bucket.
    """
    epoch = time_ms // pool.width_ms
    place = epoch % pool.table.shape[1]
    b = np.int64(pool.table[line, place])
    if b < 0:
        pool.n_free[0] -= 1
        b = pool.free[pool.n_free[0]]
        pool.table[line, place] = b
    elif epoch < pool.longs[b, EPOCH]:
        return False
    elif epoch == pool.longs[b, EPOCH]:
        epoch = NEVER
    longs, reals = pool.longs[b], pool.reals[b]
    if epoch != NEVER:
        longs[EPOCH], longs[N_HELD], longs[N_FRAUDS], longs[N_LEGITIMATE] = epoch, 0, 0, 0
        longs[FIRST_MS], longs[LAST_MS], longs[FIRST_FRAUD_MS], longs[LAST_FRAUD_MS] = (
            _LATEST,
            NEVER,
            _LATEST,
            NEVER,
        )
        reals[TOTAL], reals[SQUARES], reals[TOP] = 0.0, 0.0, -np.inf
        pool.sketches[b] = 0
    longs[N_HELD] += 1
    longs[FIRST_MS], longs[LAST_MS] = min(longs[FIRST_MS], time_ms), max(longs[LAST_MS], time_ms)
    longs[ABSORBED] = sequence
    reals[TOTAL] += amount
    reals[SQUARES] += amount * amount
    reals[TOP] = max(reals[TOP], amount)
    add_to_sketch(pool.sketches[b], other)
    if label == FRAUD:
        longs[N_FRAUDS] += 1
        longs[FIRST_FRAUD_MS] = min(longs[FIRST_FRAUD_MS], time_ms)
        longs[LAST_FRAUD_MS] = max(longs[LAST_FRAUD_MS], time_ms)
    elif label == LEGITIMATE:
        longs[N_LEGITIMATE] += 1
    return True


class BucketPool:
    """The buckets of a store: where each lies, its labels, its row of the changelog.

    An entity that has buckets has a line of the table, a place for each. Line 0 is nobody's.
    """

    def __init__(self, width_ms: int, places: int) -> None:
        """Make room for the first; no ``places``: nobody ever has any."""
        self.width_ms, self.places = width_ms, places
        room = _ROOM if places else 1
        self._table = np.full((room, places), -1, np.int32)
        self._lines = list(range(room - 1, 0, -1))
        self._marks: dict[int, tuple[int, dict[int, Mark]]] = {}  # bucket: its epoch
        self._longs = np.zeros((room, 9), np.int64)
        self._reals = np.zeros((room, 3))
        self._sketches = np.zeros((room, REGISTERS // 2), np.uint8)
        self._free = np.arange(room, dtype=np.int64)[::-1].copy()
        self._n_free = np.array([room], np.int64)
        self._share()

    def __len__(self) -> int:
        """How many buckets there are."""
        return len(self._longs) - int(self._n_free[0])

    @property
    def nbytes(self) -> int:
        """Bytes in the columns, without the labels (about 200 each)."""
        columns = (self._table, self._longs, self._reals, self._sketches, self._free)
        return sum(column.nbytes for column in columns)

    def _share(self) -> None:
        #: What the compiled pass reads and writes.
        self.arrays = Buckets(
            self._table,
            self._longs,
            self._reals,
            self._sketches,
            self._free,
            self._n_free,
            self.width_ms,
        )

    def alone(self, line: int) -> Buckets:
        """A copy of one line's buckets, as line 1 of a pool with room for one more."""
        held = self._table[line] >= 0
        which = self._table[line][held]
        table = np.full((2, self.places), -1, np.int32)
        table[1, held] = np.arange(len(which))
        return Buckets(
            table,
            np.concatenate([self._longs[which], np.zeros((1, self._longs.shape[1]), np.int64)]),
            np.concatenate([self._reals[which], np.zeros((1, self._reals.shape[1]))]),
            np.concatenate(
                [self._sketches[which], np.zeros((1, self._sketches.shape[1]), np.uint8)]
            ),
            np.array([len(which)]),
            np.array([1], np.int64),
            self.width_ms,
        )

    def claim(self) -> int:
        """Return a line for an entity that has none."""
        if not self._lines:
            held = len(self._table)
            self._table = doubled(self._table, -1)
            self._lines = list(range(2 * held - 1, held - 1, -1))
            self._share()
        return self._lines.pop()

    def ensure(self, n: int) -> None:
        """Make room for n more buckets."""
        while self._n_free[0] < n:
            held, free = len(self._longs), int(self._n_free[0])
            self._longs, self._reals = doubled(self._longs, 0), doubled(self._reals, 0)
            self._sketches = doubled(self._sketches, 0)
            fresh = np.arange(2 * held - 1, held - 1, -1)
            self._free = np.concatenate([self._free[:free], fresh, np.zeros(held - free, np.int64)])
            self._n_free[0] += held
            self._share()

    def release(self, line: int) -> list[int]:
        """Let an entity's line and buckets go; return the places that it had."""
        places = np.flatnonzero(self._table[line] >= 0).tolist()
        for place in places:
            self.drop(line, place)
        if line:
            self._lines.append(line)
        return places

    def drop(self, line: int, place: int) -> None:
        """Let one bucket go."""
        b = int(self._table[line, place])
        self._marks.pop(b, None)
        self._table[line, place] = -1
        self._free[self._n_free[0]] = b
        self._n_free[0] += 1

    def absorbed(self, line: int) -> NDArray[np.int64]:
        """Up to which transaction each place holds all that belongs to it, shape (places,)."""
        held = self._table[line]
        return np.where(held >= 0, self._longs[held, ABSORBED], -1)

    def place(self, time_ms: int) -> int:
        """Where the bucket of a time lies."""
        return time_ms // self.width_ms % self.places

    def frozen(self, line: int) -> NDArray[np.int64]:
        """All buckets of an entity as 8-byte words, for ``thaw``."""
        parts: list[NDArray[np.int64]] = []
        for place in np.flatnonzero(self._table[line] >= 0).tolist():
            b = int(self._table[line, place])
            marks = [(np.uint64(i).view(np.int64), *m) for i, m in self._marks_of(b).items()]
            parts += [
                np.array([place, len(marks)], np.int64),
                self._longs[b],
                self._reals[b].view(np.int64),
                self._sketches[b].view(np.int64),
                np.array(marks, np.int64).reshape(-1),
            ]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def thaw(self, line: int, words: NDArray[np.int64]) -> None:
        """Take back what ``frozen`` gave, in a line without buckets."""
        at = 0
        while at < len(words):
            place, n_marks = words[at : at + 2].tolist()
            b = self._take(line, place)
            end = at + 18 + 4 * n_marks
            sums, sketch, marks = np.split(words[at + 2 : end], [12, 16])
            self._longs[b], self._reals[b] = sums[:9], sums[9:].view(np.float64)
            self._sketches[b] = sketch.view(np.uint8)
            ids, told = marks[::4].view(np.uint64).tolist(), marks.reshape(-1, 4)[:, 1:].tolist()
            for id_hash, mark in zip(ids, told, strict=True):
                self._identify(b, id_hash, Mark(*mark))
            at = end

    def _take(self, line: int, place: int) -> int:
        """A free bucket, in an empty place of a line."""
        self.ensure(1)
        self._n_free[0] -= 1
        b = int(self._free[self._n_free[0]])
        self._table[line, place] = b
        self._marks.pop(b, None)
        return b

    def find(self, line: int, time_ms: int) -> int:
        """The bucket that holds a time, or -1."""
        b = int(self._table[line, self.place(time_ms)])
        return (
            b if b >= 0 and self._longs[b, FIRST_MS] <= time_ms <= self._longs[b, LAST_MS] else -1
        )

    def identify(self, bucket: int, id_hash: int, mark: Mark) -> None:
        """Remember whose label it is that a bucket took in with its transaction."""
        if len(self._marks_of(bucket)) < MARKS_MAX:
            self._identify(bucket, id_hash, mark)

    def told(self, bucket: int, id_hash: int) -> Mark:
        """What a bucket knows of the label of a transaction."""
        return self._marks_of(bucket).get(id_hash, _UNMARKED)

    def mark(self, bucket: int, id_hash: int, mark: Mark) -> bool:
        """Note the label of a transaction in a bucket; return whether its revision was news."""
        marks, longs = self._marks_of(bucket), self._longs[bucket]
        _, before, revision = self.told(bucket, id_hash)
        is_full = len(marks) >= MARKS_MAX and id_hash not in marks
        if mark.revision <= revision or is_full:
            return False
        self._identify(bucket, id_hash, mark)
        time_ms, label, _ = mark
        longs[N_FRAUDS] += (label == FRAUD) - (before == FRAUD)
        longs[N_LEGITIMATE] += (label == LEGITIMATE) - (before == LEGITIMATE)
        if label == FRAUD:
            longs[FIRST_FRAUD_MS] = min(longs[FIRST_FRAUD_MS], time_ms)
            longs[LAST_FRAUD_MS] = max(longs[LAST_FRAUD_MS], time_ms)
        elif before == FRAUD:
            times = [m.time_ms for m in self._marks_of(bucket).values() if m.label == FRAUD]
            longs[FIRST_FRAUD_MS] = min(times, default=_LATEST)
            longs[LAST_FRAUD_MS] = max(times, default=NEVER)
        return True

    def value(self, line: int, place: int) -> BucketValue | None:
        """One bucket as a row of the changelog."""
        b = int(self._table[line, place])
        if b < 0:
            return None
        longs = self._longs[b]
        marks = self._marks_of(b)
        total, squares, top = self._reals[b].tolist()
        return BucketValue(
            int(longs[ABSORBED]),
            int(longs[N_HELD]),
            total,
            squares,
            top,
            int(longs[FIRST_MS]),
            int(longs[LAST_MS]),
            int(longs[N_FRAUDS]),
            int(longs[N_LEGITIMATE]),
            int(longs[FIRST_FRAUD_MS]),
            int(longs[LAST_FRAUD_MS]),
            self._sketches[b].tobytes(),
            tuple(sorted((id_hash, *mark) for id_hash, mark in marks.items())),
        )

    def restore(self, line: int, place: int, value: BucketValue) -> None:
        """Take a row of the changelog, whichever rows came before.

        The sums are those of the row that absorbed more, each label that of the row that told
        of it last: a worker that had lost the partition may have written either of them.
        """
        epoch = value.first_ms // self.width_ms
        if epoch % self.places != place or value.last_ms // self.width_ms != epoch:
            return  # written with another width, or number of places
        held = self.value(line, place)
        if held is None:
            self._write(self._take(line, place), value)
            return
        b, older = int(self._table[line, place]), value
        if value.absorbed >= held.absorbed:
            self._write(b, value)
            older = held
        if older.first_ms // self.width_ms == self._longs[b, EPOCH]:
            for id_hash, *mark in older.marks:
                self.mark(b, id_hash, Mark(*mark))

    def _write(self, b: int, value: BucketValue) -> None:
        self._longs[b] = (
            value.first_ms // self.width_ms,
            value.n,
            value.first_ms,
            value.last_ms,
            value.frauds,
            value.legitimate,
            value.first_fraud_ms,
            value.last_fraud_ms,
            value.absorbed,
        )
        self._reals[b] = value.total, value.squares, value.top
        self._sketches[b] = np.frombuffer(value.sketch, np.uint8)
        self._marks.pop(b, None)
        for id_hash, *mark in value.marks:
            self._identify(b, id_hash, Mark(*mark))

    def _identify(self, bucket: int, id_hash: int, mark: Mark) -> None:
        if not (marks := self._marks_of(bucket)):
            self._marks[bucket] = (int(self._longs[bucket, EPOCH]), marks)
        marks[id_hash] = mark

    def _marks_of(self, bucket: int) -> dict[int, Mark]:
        """Labels of a bucket by id, those of its epoch: a newer one begins without any."""
        epoch, marks = self._marks.get(bucket, (NEVER, {}))
        return marks if epoch == self._longs[bucket, EPOCH] else {}


def doubled(column: NDArray[Any], fill: int) -> NDArray[Any]:
    """Return a column with as much room again, filled with ``fill``."""
    return np.concatenate([column, np.full_like(column, fill)])
