"""What is known of every entity of one kind and one partition: a fold over its input log.

The last ``history_max`` transactions of an entity are kept exactly, in rings of columns
(``windows``). Each slot of a ring is one row of the changelog: the record that was applied, and
with it the guard, the highest source offset that was applied from each upstream partition.
So a row costs the same however much is known of the entity, and state and position are one:
what is in the changelog has been applied, what is not has not.

Older transactions are summed up in buckets of event time (``buckets``), each a row of the
changelog, too. The ring is twice as long as what counts exactly: what a bucket has taken in keeps
its slot for another ``history_max`` transactions. So wherever the rows of a batch break off, what
a bucket in the changelog lacks still lies in the ring, and a restored store takes it in: state is
what the slots say, and a bucket's own guard says what it holds already.

Where there is a disk (``cold``), those that memory has no room for go there whole, with their
guards, and come back when they are seen again: nothing is forgotten, the changelog keeps every row.

Bounds: ``history_max`` exact transactions and ``buckets_max`` buckets an entity, ``entities_max``
entities (those seen longest ago leave first), all in the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from app.core.buckets import (
    FRAUD,
    LEGITIMATE,
    REVISION_MAX,
    UNKNOWN,
    BucketPool,
    BucketValue,
    Mark,
    absorb,
    doubled,
)
from app.core.cold import Box, freeze, length, n_blocks, release, thaw
from app.core.hashing import hash_id, hash_many
from app.core.slots import SlotColumns, SlotValue, Touched
from app.core.windows import APPLIED, BLOCK, REPLAYED, fold, n_leaving
from app.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from app.core.cold import Cold
    from app.core.slots import Row, Slot
    from app.core.windows import WindowPlan

#: Rows and blocks that a new store has room for; both double when full.
_ROOM: Final = 256

_OTHER_RING: Final = (
    "what is known of the entities was written with another entity.history_max; expected the same "
    "for as long as the changelogs live: set it back, or begin anew with another topics.prefix"
)

#: An entity's share of the oldest that leave at once when the store is full.
_LEAVE_SHARE: Final = 16

#: Labels that may wait for their transaction: those of a second or so, after a crash.
EXPECTED_MAX: Final = 4_096


def warm_up_store(plan: WindowPlan, *, has_disk: bool = False) -> None:
    """Compile all that a store calls, those of a ring that overflows and of its restore too.

    ``has_disk``: what entities call that go to a disk and come back, as well.
    """
    n = 2 * BLOCK
    first, second = (
        EntityStore(plan, history_max=BLOCK, buckets_max=1, bucket_ms=1) for _ in range(2)
    )
    first.apply(
        ["a"] * n,
        times_ms=np.zeros(n, np.int64),
        amounts=np.zeros(n),
        ids=[str(i) for i in range(n)],
        others=["b"] * n,
        upstreams=np.zeros(n, np.int64),
        offsets=np.arange(n),
    )
    second.restore(row for row in first.changes() if isinstance(row[1], SlotValue))
    second.buckets("a")
    third = EntityStore(plan, entities_max=1, buckets_max=1, cold=Box() if has_disk else None)
    for i, key in enumerate(["a", "b", "a"]):
        one = np.full(1, i, np.int64)
        third.apply([key], times_ms=one, amounts=np.zeros(1), ids=[str(i)], others=["c"],
                    upstreams=np.zeros(1, np.int64), offsets=one)  # fmt: skip


@dataclass
class EntityStore:
    """All entities of one kind whose records lie in one partition.

    ``upstreams`` is the number of partitions that a transaction of this partition may come
    from: 1 for the first stage, that of the transactions topic for later ones.

    >>> from app.core.windows import WindowPlan
    >>> store = EntityStore(WindowPlan.of([("count", 86_400_000, 0, 0.0, 0)]))
    >>> columns, status = store.apply(
    ...     ["card-1", "card-1"], times_ms=np.array([0, 1_000]), amounts=np.array([5.0, 7.0]),
    ...     ids=["t1", "t2"], others=["shop", "shop"],
    ...     upstreams=np.array([0, 0]), offsets=np.array([0, 1]))
    >>> columns[:, 0].tolist()
    [1.0, 2.0]
    """

    plan: WindowPlan
    history_max: int = 256
    entities_max: int = 1_000_000
    upstreams: int = 1
    bucket_ms: int = 86_400_000
    buckets_max: int = 0  # an entity; 0: what leaves the ring is forgotten
    cold: Cold | None = None  # where those go that there is no room for; None: they are forgotten
    rows: dict[str, int] = field(default_factory=dict)
    n_evicted: int = 0
    n_cold: int = 0

    def __post_init__(self) -> None:
        """Make room for the first entities."""
        blocks = -(-self.history_max // BLOCK)
        self.history_max = blocks * BLOCK
        blocks *= 2 if self.buckets_max else 1
        self._n_slots = blocks * BLOCK
        self._buckets = BucketPool(self.bucket_ms, self.buckets_max)
        self._free_rows: list[int] = []
        self._free = np.arange(_ROOM, dtype=np.int64)[::-1].copy()
        self._n_free = _ROOM
        self._counts = np.zeros(_ROOM, np.int64)
        self._guards = np.full((_ROOM, self.upstreams), -1, np.int64)
        self._table = np.full((_ROOM, blocks), -1, np.int32)
        self._lines = np.zeros(_ROOM, np.int32)  # of entities with buckets, in their table
        self._last_ms = np.full(_ROOM, np.iinfo(np.int64).min, np.int64)
        self._times = np.zeros((_ROOM, BLOCK), np.int64)
        self._amounts = np.zeros((_ROOM, BLOCK))
        self._ids = np.zeros((_ROOM, BLOCK), np.uint64)
        self._others = np.zeros((_ROOM, BLOCK), np.uint64)
        self._labels = np.full((_ROOM, BLOCK), UNKNOWN, np.int8)
        self._revisions = np.zeros((_ROOM, BLOCK), np.uint8)
        self._sequences = np.full((_ROOM, BLOCK), -1, np.int64)
        self._unsaid = np.zeros(_ROOM, np.int64)  # transactions of each that no row tells of yet
        self._touched: list[Touched] = []
        self._marked: dict[Slot, None] = {}  # labelled: they are said again
        self._absorbed: dict[Slot, None] = {}
        self._gone: list[Slot] = []
        self._captured: list[Row] = []  # of earlier parts of a batch
        #: Highest source offset applied of each upstream partition, whatever the entity.
        self._passed = np.full(self.upstreams, -1, np.int64)
        self._restored: dict[str, None] = {}  # entities whose buckets may lack what the ring has
        #: (entity, id) -> (label, its offset): labels ahead of their transaction
        self._expected: dict[tuple[str, int], tuple[int, int]] = {}

    def __len__(self) -> int:
        """How many entities are in memory; ``n_cold`` more are not."""
        return len(self.rows)

    @property
    def n_buckets(self) -> int:
        """How many buckets hold what left the rings."""
        return len(self._buckets)

    @property
    def n_exact(self) -> int:
        """How many transactions are kept exactly, of all entities."""
        return int(np.minimum(self._counts, self.history_max).sum())

    @property
    def n_expected(self) -> int:
        """How many labels are ahead of their transaction."""
        return len(self._expected)

    @property
    def nbytes(self) -> int:
        """Bytes in the columns, without the dictionary of keys (about 130 more an entity)."""
        columns = (
            self._counts,
            self._guards,
            self._table,
            self._last_ms,
            self._unsaid,
            self._free,
            self._lines,
        )
        pool = (
            self._times,
            self._amounts,
            self._ids,
            self._others,
            self._labels,
            self._revisions,
            self._sequences,
        )
        return sum(column.nbytes for column in (*columns, *pool)) + self._buckets.nbytes

    def apply(
        self,
        keys: Sequence[str],
        *,
        times_ms: NDArray[np.int64],
        amounts: NDArray[np.float64],
        ids: Sequence[str],
        others: Sequence[str],
        upstreams: NDArray[np.int64],
        offsets: NDArray[np.int64],
    ) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
        """Fold transactions in order; return their features, shape (n, plan), and their status.

        A transaction that was applied before, by its source offset or its id, changes
        nothing; its features are 0 and its status says so (``windows``).
        """
        n = len(keys)
        out = np.zeros((n, len(self.plan)))
        status, slots = np.zeros(n, np.int8), np.zeros(n, np.int64)
        guards = np.zeros((n, self.upstreams), np.int64)
        hashes, whom = hash_many(ids), hash_many(others)
        start = 0
        while start < n:
            rows = self._rows_of(keys[start:])
            self._settle()
            if self._expected:
                # The next transaction of that entity sees the label, in whatever batch it comes.
                told = zip(keys[start:], hashes[start:].tolist(), strict=True)
                first = next((i for i, at in enumerate(told) if at in self._expected), len(rows))
                rows = rows[: first + 1]
            part = slice(start, start + len(rows))
            self._ensure_blocks(len(rows))
            overflows = self._ensure_buckets(rows)
            self._n_free, done = fold(
                rows,
                times_ms[part],
                amounts[part],
                hashes[part],
                whom[part],
                upstreams[part],
                offsets[part],
                self._counts,
                self._guards,
                self._passed,
                self._last_ms,
                self._unsaid,
                self._table,
                self._times,
                self._amounts,
                self._ids,
                self._others,
                self._labels,
                self._revisions,
                self._sequences,
                self._free,
                self._n_free,
                self.history_max,
                self._lines,
                *self._buckets.arrays,
                *self.plan.arrays,
                status[part],
                slots[part],
                guards[part],
                out[part],
            )
            decided = np.flatnonzero(status[part][:done] != REPLAYED)
            at = decided + start
            names = [keys[i] for i in at.tolist()]
            self._touched.append(Touched(names, rows[decided], slots[at], guards[at]))
            at = at[status[at] == APPLIED]
            if overflows:
                self._note_absorbed(keys, at, rows[at - start], slots[at])
            if self._expected:
                for i in at.tolist():
                    self._meet(keys[i], int(hashes[i]), int(slots[i]))
            start += done
            if done < len(rows):
                # A ring would go round: of a batch that was half delivered no row of a slot may
                # be missing before one that arrived.
                self._captured = self.changes()
        return out, status

    def peek(
        self, key: str, *, time_ms: int, amount: float, transaction_id: str, other: str
    ) -> NDArray[np.float64] | None:
        """What ``apply`` would say of this transaction if it came next, shape (plan,).

        None: its id was used before. The store stays as it is: the fold runs on a copy of the
        entity's own slots and buckets. One that lies on the disk comes back into memory, as it
        is. Cost: 0.1 ms.
        """
        self._recall(key)
        self._settle()
        row = self.rows.get(key)
        blocks = np.full(self._table.shape[1], -1, np.int32) if row is None else self._table[row]
        held = blocks[blocks >= 0]
        table = np.full((1, len(blocks)), -1, np.int32)
        table[0, blocks >= 0] = np.arange(len(held))
        count = 0 if row is None else int(self._counts[row])
        line = 0 if row is None else int(self._lines[row])
        if self.buckets_max and count >= self.history_max:
            line = line or -1  # it would have one by then
        out, status = np.zeros((1, len(self.plan))), np.zeros(1, np.int8)
        one = np.zeros(1, np.int64)
        fold(
            one,
            np.array([time_ms]),
            np.array([amount]),
            np.array([hash_id(transaction_id)], np.uint64),
            np.array([hash_id(other)], np.uint64),
            one,
            one,
            np.array([count]),
            np.full((1, self.upstreams), -1, np.int64),
            np.full(self.upstreams, -1, np.int64),
            np.zeros(1, np.int64),
            np.zeros(1, np.int64),
            table,
            _with_room(self._times, held),
            _with_room(self._amounts, held),
            _with_room(self._ids, held),
            _with_room(self._others, held),
            _with_room(self._labels, held),
            _with_room(self._revisions, held),
            _with_room(self._sequences, held),
            np.array([len(held)]),
            1,
            self.history_max,
            np.array([1 if line else 0], np.int32),
            *self._buckets.alone(max(line, 0)),
            *self.plan.arrays,
            status,
            np.zeros(1, np.int64),
            np.zeros((1, self.upstreams), np.int64),
            out,
        )
        return out[0] if status[0] == APPLIED else None

    def mark(
        self,
        key: str,
        transaction_id: str,
        *,
        is_fraud: bool,
        source: tuple[int, int] = (0, -1),
        at: int = -1,
        time_ms: int | None = None,
    ) -> bool:
        """Note the label of a transaction in its slot and its bucket; return whether it was news.

        A transaction that neither the ring nor a bucket holds is no news; a bucket is found by the
        transaction's ``time_ms``. Marking twice is marking once. ``source`` is the transaction's
        (upstream, offset): if it has not been applied yet, as after a crash between its score and
        its state, the label waits for it; ``at`` is the label's own offset, from which it must
        then be read again (``expected_low``).
        """
        self._recall(key)
        self._settle()
        wanted, label = hash_id(transaction_id), FRAUD if is_fraud else LEGITIMATE
        if not self._has_passed(key, *source):
            self._expected[key, wanted] = (label, at)
            while len(self._expected) > EXPECTED_MAX:
                self._expected.pop(next(iter(self._expected)))
            return False
        row = self.rows.get(key)
        if row is None:
            return False
        slot = self._slot_of(row, wanted, time_ms)
        if slot is None:
            return time_ms is not None and self._mark_bucket(key, wanted, time_ms, label)
        place = (self._table[row, slot // BLOCK], slot % BLOCK)
        if self._labels[place] == label:
            return False
        self._label(place, label)
        self._marked[key, slot] = None
        if self._sequences[place] < self._counts[row] - self.history_max:
            self._into_bucket(key, place)
        return True

    def _slot_of(self, row: int, id_hash: int, time_ms: int | None) -> int | None:
        """The slot of a transaction, None if the ring no longer holds it.

        Where its id was used again after it had left, its time tells which one it is.
        """
        blocks = self._table[row][self._table[row] >= 0]
        found = [(blocks[i], at) for i, at in np.argwhere(self._ids[blocks] == np.uint64(id_hash))]
        held = [(self._times[p] == time_ms, int(self._sequences[p])) for p in found]
        _, sequence = max(held, default=(False, -1))
        return sequence % self._n_slots if sequence >= 0 else None

    def _mark_bucket(self, key: str, id_hash: int, time_ms: int, label: int) -> bool:
        """Note a label that only a bucket can take; return whether it was news."""
        bucket = self._bucket_of(key, time_ms)
        if bucket < 0:
            return False
        told = self._buckets.told(bucket, id_hash)
        if told.label == label:
            return False
        mark = Mark(time_ms, label, min(told.revision + 1, REVISION_MAX))
        return self._note_mark(key, bucket, id_hash, mark)

    def _into_bucket(self, key: str, place: tuple[Any, Any]) -> None:
        """Note the label of a slot in the bucket that has taken its transaction in."""
        mark = self._mark_of(place)
        bucket = self._bucket_of(key, mark.time_ms)
        if bucket >= 0:
            self._note_mark(key, bucket, int(self._ids[place]), mark)

    def _bucket_of(self, key: str, time_ms: int) -> int:
        """The bucket of an entity that holds what is of this time, -1 if none does."""
        line = int(self._lines[self.rows[key]])
        return self._buckets.find(line, time_ms) if line else -1

    def _note_mark(self, key: str, bucket: int, id_hash: int, mark: Mark) -> bool:
        is_news = self._buckets.mark(bucket, id_hash, mark)
        if is_news:
            self._absorbed[key, ~self._buckets.place(mark.time_ms)] = None
        return is_news

    def _mark_of(self, place: tuple[Any, Any]) -> Mark:
        return Mark(int(self._times[place]), int(self._labels[place]), int(self._revisions[place]))

    @property
    def expected_low(self) -> int | None:
        """The lowest offset of a label that waits for its transaction; None: no label waits."""
        return min((at for _, at in self._expected.values()), default=None)

    @property
    def applied_high(self) -> int:
        """The highest offset of the first upstream that was applied; -1: none."""
        return int(max(self._passed[0], self._guards[:, 0].max(initial=-1)))

    def _has_passed(self, key: str, upstream: int, offset: int) -> bool:
        """Whether a transaction of this source has been applied; if it is not held it has left."""
        row = self.rows.get(key)
        guard = self._passed[upstream] if row is None else self._guards[row, upstream]
        return bool(offset <= guard)

    def _meet(self, key: str, id_hash: int, slot: int) -> None:
        label, _ = self._expected.pop((key, id_hash), (UNKNOWN, -1))
        if label != UNKNOWN:
            self._label((self._table[self.rows[key], slot // BLOCK], slot % BLOCK), label)

    def _label(self, place: tuple[Any, int], label: int) -> None:
        self._labels[place] = label
        self._revisions[place] = min(int(self._revisions[place]) + 1, REVISION_MAX)

    def history(self, key: str) -> list[tuple[int, float, int]]:
        """(time_ms, amount, label) of the transactions that count exactly, oldest first."""
        self._recall(key)
        row = self.rows.get(key)
        if row is None:
            return []
        count = int(self._counts[row])
        slots = [n % self._n_slots for n in range(max(0, count - self.history_max), count)]
        places = [(self._table[row, s // BLOCK], s % BLOCK) for s in slots]
        return [
            (int(self._times[p]), float(self._amounts[p]), int(self._labels[p])) for p in places
        ]

    def buckets(self, key: str) -> list[BucketValue]:
        """What lies beyond the ring of an entity, oldest first."""
        self._recall(key)
        self._settle()
        row = self.rows.get(key)
        line = 0 if row is None else int(self._lines[row])
        held = [self._buckets.value(line, place) for place in range(self.buckets_max)]
        return sorted((b for b in held if b is not None), key=lambda b: b.first_ms)

    def changes(self) -> list[Row]:
        """What was touched since the last call, as ``written``, one row after another."""
        before, slots, buckets = self.written()
        return [*before, *slots.rows(), *buckets]

    def written(self) -> tuple[list[Row], SlotColumns, list[Row]]:
        """What was touched since the last call: what goes first, slots, buckets.

        What was let go comes first, with None: an entity that left may have come back since, as a
        new one. Buckets come last: a bucket in the changelog knows no more than the slots before.
        """
        before, self._captured = self._captured, []
        gone: list[Row] = [(slot, None) for slot in self._gone]
        slots = self._read(Touched.joined([*self._touched, self._labelled()]))
        buckets: list[Row] = [(slot, self._read_bucket(*slot)) for slot in self._absorbed]
        self.forget_changes()
        return before + gone, slots, buckets

    def forget_changes(self) -> None:
        """Nobody needs to be told what was touched so far."""
        for part in self._touched:
            self._unsaid[part.rows] = 0
        self._touched, self._marked, self._absorbed, self._gone = [], {}, {}, []
        self._captured = []

    def _labelled(self) -> Touched:
        """Slots that have another label, after what was applied: with all of that in the guard."""
        keys, n = [key for key, _ in self._marked], len(self._marked)
        rows = np.fromiter((self.rows[key] for key in keys), np.int64, n)
        slots = np.fromiter((slot for _, slot in self._marked), np.int64, n)
        return Touched(keys, rows, slots, self._guards[rows])

    def restore(self, slots: Iterable[Row]) -> None:
        """Take rows of the changelog in the order of the log.

        Of several rows of one slot the highest applied offset wins, wherever it stands: a
        worker that had lost the partition may have written late. None: the entity was let go.
        Raises Refused if they were written with rings of another length.
        """
        for (key, slot), value in slots:
            self._recall(key)
            if value is None:
                self._remove(key)
                self._gone = []  # the changelog says so already
                continue
            row = self.rows.get(key)
            if row is None:
                if self.cold is not None and len(self.rows) >= self.entities_max:
                    self._evict()
                row = self._new_row(key)
            if isinstance(value, SlotValue):
                if slot != value.sequence % self._n_slots:
                    raise Refused(_OTHER_RING)
                self._restore_slot(key, row, value)
            elif 0 <= ~slot < self.buckets_max:
                self._buckets.restore(self._line_of(row), ~slot, value)
                self._restored[key] = None

    def _restore_slot(self, key: str, row: int, value: SlotValue) -> None:
        slot = value.sequence % self._n_slots
        self._ensure_blocks(1)
        if self._table[row, slot // BLOCK] < 0:
            self._n_free -= 1
            self._table[row, slot // BLOCK] = self._free[self._n_free]
        place = (self._table[row, slot // BLOCK], slot % BLOCK)
        for upstream, offset in value.guard:
            self._guards[row, upstream] = max(self._guards[row, upstream], offset)
            self._passed[upstream] = max(self._passed[upstream], offset)
        held = self._sequences[place]
        revision = int(self._revisions[place])
        if value.sequence < held or (value.sequence == held and value.revision <= revision):
            return
        self._sequences[place] = value.sequence
        self._times[place], self._amounts[place] = value.time_ms, value.amount
        self._ids[place], self._others[place] = value.id_hash, value.other_hash
        self._labels[place], self._revisions[place] = value.label, value.revision
        self._counts[row] = max(self._counts[row], value.sequence + 1)
        self._last_ms[row] = max(self._last_ms[row], value.time_ms)
        if self.buckets_max and value.sequence >= self.history_max:
            self._restored[key] = None

    def _settle(self) -> None:
        """Let the buckets of restored entities take in what they lack, before anything else."""
        if not self._restored:
            return
        restored, self._restored = self._restored, {}
        for key in restored:
            row = self.rows.get(key)
            if row is not None:
                self._settle_one(key, row)
        # Before the slots are written over that these buckets were taken from.
        self._captured = self.changes()

    def _settle_one(self, key: str, row: int) -> None:
        pool, last = self._buckets, int(self._counts[row]) - self.history_max - 1
        if last < 0 and not self._lines[row]:
            return
        line = self._line_of(row)
        for place in np.flatnonzero(pool.absorbed(line) > max(last, -1)).tolist():
            pool.drop(line, place)  # of a former life of this entity: nobody is ahead of the ring
        sequences = np.arange(max(0, last + 1 - self.history_max), last + 1)
        blocks, at = self._table[row, sequences % self._n_slots // BLOCK], sequences % BLOCK
        there = (blocks >= 0) & (self._sequences[blocks, at] == sequences)
        sequences, blocks, at = sequences[there], blocks[there], at[there]
        times, labels = self._times[blocks, at], self._labels[blocks, at]
        absorbed = pool.absorbed(line)[times // self.bucket_ms % self.buckets_max]
        for i in np.flatnonzero((sequences > absorbed) | (labels != UNKNOWN)):
            slot, time_ms, label = (blocks[i], at[i]), int(times[i]), int(labels[i])
            if sequences[i] <= absorbed[i]:
                self._into_bucket(key, slot)
                continue
            pool.ensure(1)
            amount, other = self._amounts[slot], self._others[slot]
            if absorb(pool.arrays, line, sequences[i], time_ms, amount, other, label):
                self._absorbed[key, ~pool.place(time_ms)] = None
                self._identify(line, slot)

    def _note_absorbed(
        self,
        keys: Sequence[str],
        at: NDArray[np.int64],
        rows: NDArray[np.int64],
        slots: NDArray[np.int64],
    ) -> None:
        """Touch the buckets that took in what left the rings when ``keys[at]`` were applied."""
        sequences = self._sequences[self._table[rows, slots // BLOCK], slots % BLOCK]
        gone = np.flatnonzero(sequences >= self.history_max)
        if not len(gone):
            return
        rows, sequences = rows[gone], sequences[gone] - self.history_max
        places = self._table[rows, sequences % self._n_slots // BLOCK], sequences % BLOCK
        times, labels = self._times[places], self._labels[places]
        into = times // self.bucket_ms % self.buckets_max
        whose = [keys[i] for i in at[gone].tolist()]
        self._absorbed.update(dict.fromkeys(zip(whose, (~into).tolist(), strict=True)))
        for i in np.flatnonzero(labels != UNKNOWN):
            self._identify(int(self._lines[rows[i]]), (places[0][i], places[1][i]))

    def _identify(self, line: int, place: tuple[Any, Any]) -> None:
        """Have the bucket that took a slot in know whose label came with it."""
        mark = self._mark_of(place)
        bucket = self._buckets.find(line, mark.time_ms)
        if bucket >= 0 and mark.label != UNKNOWN:
            self._buckets.identify(bucket, int(self._ids[place]), mark)

    def _line_of(self, row: int) -> int:
        if not self._lines[row]:
            self._lines[row] = self._buckets.claim()
        return int(self._lines[row])

    def _ensure_buckets(self, rows: NDArray[np.int64]) -> bool:
        """Make room for what leaves the rings in a part of a batch; return whether anything may."""
        if not self.buckets_max:
            return False
        leaving = n_leaving(rows, self._counts, self.history_max)
        if leaving:
            whose, times = np.unique(rows, return_counts=True)
            for row in whose[self._counts[whose] + times > self.history_max].tolist():
                self._line_of(row)
            self._buckets.ensure(leaving)
        return bool(leaving)

    def _read(self, told: Touched) -> SlotColumns:
        """Slots in columns, each with the guard that stood when it was written."""
        places = (self._table[told.rows, told.slots // BLOCK], told.slots % BLOCK)
        return SlotColumns(
            keys=told.keys,
            slots=told.slots,
            sequences=self._sequences[places],
            times_ms=self._times[places],
            amounts=self._amounts[places],
            ids=self._ids[places],
            others=self._others[places],
            labels=self._labels[places],
            guards=told.guards,
            revisions=self._revisions[places],
        )

    def _read_bucket(self, key: str, slot: int) -> BucketValue | None:
        return self._buckets.value(int(self._lines[self.rows[key]]), ~slot)

    def _rows_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Rows of the first of ``keys``, up to one for which an entity would have to leave."""
        if len(self.rows) >= self.entities_max and keys[0] not in self.rows:
            self._evict()
        known = list(map(self.rows.get, keys))
        if None not in known:
            return np.array(known, np.int64)
        new = list(dict.fromkeys(key for key, row in zip(keys, known, strict=True) if row is None))
        room = self.entities_max - len(self.rows)
        for key in new[:room]:
            self._new_row(key)
        self._fetch(new[:room])
        rows = known if len(new) <= room else known[: keys.index(new[room])]
        at = range(len(rows))
        return np.array([self.rows[keys[i]] if rows[i] is None else rows[i] for i in at], np.int64)

    def _recall(self, key: str) -> None:
        """Bring an entity back into memory, if it is known and not there."""
        if self.cold is None or key in self.rows or not self.n_cold:
            return
        if self.cold.get_many([key])[0] is None:
            return
        if len(self.rows) >= self.entities_max:
            self._evict()
        self._new_row(key)
        self._fetch([key])

    def _fetch(self, keys: Sequence[str]) -> None:
        """Fill the rows of entities that were not in memory with what lies on the disk."""
        if self.cold is None or not self.n_cold:
            return
        found = zip(keys, self.cold.get_many(keys), strict=True)
        held = [(key, np.frombuffer(raw, np.int64)) for key, raw in found if raw is not None]
        if not held:
            return
        rows = np.array([self.rows[key] for key, _ in held], np.int64)
        starts = np.cumsum([0, *(len(words) for _, words in held)])[:-1]
        self._ensure_blocks(sum(n_blocks(words, BLOCK) for _, words in held))
        words = np.concatenate([words for _, words in held])
        pool = *self._packed, self._free, self._n_free
        self._n_free = thaw(words, starts, rows, *pool)
        self.n_cold -= len(held)
        for key, of_one in held:
            if of_one[0]:
                self._restored[key] = None
            if len(of_one) > (end := length(of_one, self.upstreams)):
                self._buckets.thaw(self._line_of(self.rows[key]), of_one[end:])

    @property
    def _packed(self) -> tuple[Any, ...]:
        """Columns of what is packed of an entity."""
        return (
            self._counts,
            self._last_ms,
            self._guards,
            self._table,
            self._times,
            self._amounts.view(np.int64),
            self._ids,
            self._others,
            self._labels,
            self._revisions,
            self._sequences,
        )

    def _shelve(self, cold: Cold, keys: Sequence[str]) -> None:
        """Move entities out of memory, whole."""
        self._captured = self.changes()  # no row will be read from where they are now
        rows = np.fromiter(map(self.rows.pop, keys), np.int64, len(keys))
        unsettled = np.fromiter((key in self._restored for key in keys), np.bool_, len(keys))
        words, ends = freeze(rows, unsettled, *self._packed)
        raw, start, items = words.tobytes(), 0, []
        for key, end, line in zip(
            keys, (8 * ends).tolist(), self._lines[rows].tolist(), strict=True
        ):
            value, start = raw[start:end], end
            if line:
                value += self._buckets.frozen(line).tobytes()
                self._buckets.release(line)
            items.append((key, value))
        cold.put_many(items)
        self._n_free = release(
            rows,
            self._counts,
            self._last_ms,
            self._guards,
            self._table,
            self._lines,
            self._unsaid,
            self._ids,
            self._sequences,
            self._free,
            self._n_free,
        )
        for key in keys:
            self._restored.pop(key, None)
        self._free_rows += rows.tolist()
        self.n_cold += len(keys)

    def _new_row(self, key: str) -> int:
        if self._free_rows:
            row = self._free_rows.pop()
        else:
            row = len(self.rows)  # none is free: they are the first so many
            if row == len(self._counts):
                self._counts = doubled(self._counts, 0)
                self._guards = doubled(self._guards, -1)
                self._table = doubled(self._table, -1)
                self._last_ms = doubled(self._last_ms, np.iinfo(np.int64).min)
                self._lines = doubled(self._lines, 0)
                self._unsaid = doubled(self._unsaid, 0)
        self.rows[key] = row
        return row

    def _ensure_blocks(self, n: int) -> None:
        while self._n_free < n:
            held = len(self._times)
            self._times = doubled(self._times, 0)
            self._amounts = doubled(self._amounts, 0)
            self._ids = doubled(self._ids, 0)
            self._others = doubled(self._others, 0)
            self._labels = doubled(self._labels, UNKNOWN)
            self._revisions = doubled(self._revisions, 0)
            self._sequences = doubled(self._sequences, -1)
            free = np.empty(2 * held, np.int64)
            free[: self._n_free] = self._free[: self._n_free]
            free[self._n_free : self._n_free + held] = np.arange(2 * held - 1, held - 1, -1)
            self._free, self._n_free = free, self._n_free + held

    def _evict(self) -> None:
        """Let the entities go that were seen longest ago (event time): a 16th of the store."""
        keys = list(self.rows)
        last = self._last_ms[np.fromiter(self.rows.values(), np.int64, len(keys))]
        n = max(1, len(keys) // _LEAVE_SHARE)
        # Of those seen at the same time by name: a restored store holds them in another order.
        newest = np.partition(last, n - 1)[n - 1]
        leaving = [keys[at] for at in np.flatnonzero(last < newest)]
        leaving += sorted(keys[at] for at in np.flatnonzero(last == newest))[: n - len(leaving)]
        if self.cold is not None:
            self._shelve(self.cold, leaving)
            return
        for key in leaving:
            self._remove(key)
            self.n_evicted += 1

    def _remove(self, key: str) -> None:
        row = self.rows.pop(key, None)
        if row is None:
            return
        if self.cold is not None:
            self.cold.drop(key)
        slots = list(range(min(int(self._counts[row]), self._n_slots)))
        if self._lines[row]:
            slots += [~place for place in self._buckets.release(int(self._lines[row]))]
        for slot in slots:
            self._marked.pop((key, slot), None)
            self._absorbed.pop((key, slot), None)
            self._gone.append((key, slot))
        if self._unsaid[row]:
            self._touched = [part.where(part.rows != row) for part in self._touched]
        for block in self._table[row][self._table[row] >= 0]:
            self._sequences[block] = -1
            self._ids[block] = 0
            self._free[self._n_free] = block
            self._n_free += 1
        self._counts[row], self._guards[row], self._table[row] = 0, -1, -1
        self._last_ms[row], self._lines[row] = np.iinfo(np.int64).min, 0
        self._unsaid[row] = 0
        self._free_rows.append(row)


def _with_room(column: NDArray[Any], blocks: NDArray[Any]) -> NDArray[Any]:
    """Some blocks of a column, copied, and one more that is empty."""
    return np.concatenate([column[blocks], np.zeros_like(column[:1])])
