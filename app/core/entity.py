"""What is known of every entity of one kind and one partition: a fold over its input log.

The last ``history_max`` transactions of an entity are kept exactly, in rings of columns
(``windows``). Each slot of a ring is one row of the changelog: the record that was applied, and
with it the guard, the highest source offset that was applied from each upstream partition.
So a row costs the same however much is known of the entity, and state and position are one:
what is in the changelog has been applied, what is not has not.

Bounds: ``history_max`` transactions an entity, ``entities_max`` entities (those seen longest
ago leave first), both in the configuration.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from app.core.windows import APPLIED, BLOCK, FRAUD, LEGITIMATE, UNKNOWN, fold

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from app.core.windows import WindowPlan

#: Rows and blocks that a new store has room for; both double when full.
_ROOM: Final = 256

#: An entity's share of the oldest that leave at once when the store is full.
_LEAVE_SHARE: Final = 16

#: Labels that may wait for their transaction: those of a second or so, after a crash.
EXPECTED_MAX: Final = 4_096

Slot = tuple[str, int]  # entity, slot of its ring


class SlotValue(NamedTuple):
    """One row of the changelog: a transaction as it was applied, its label, the guard then."""

    sequence: int  # the entity's n-th transaction, from 0
    time_ms: int
    amount: float
    id_hash: int
    other_hash: int
    label: int  # UNKNOWN, LEGITIMATE, FRAUD
    guard: tuple[tuple[int, int], ...]  # (upstream partition, highest source offset applied)
    revision: int = 0  # how often the label has changed, up to 255: the guard of the label


def hash_id(text: str) -> int:
    """64 bits of a name, equal in every process (Python's own hash is not).

    >>> hash_id("t1") == hash_id("t1"), hash_id("t1") == hash_id("t2")
    (True, False)
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


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
    rows: dict[str, int] = field(default_factory=dict)
    n_evicted: int = 0

    def __post_init__(self) -> None:
        """Make room for the first entities."""
        blocks = -(-self.history_max // BLOCK)
        self.history_max = blocks * BLOCK
        self._free_rows: list[int] = []
        self._free = np.arange(_ROOM, dtype=np.int64)[::-1].copy()
        self._n_free = _ROOM
        self._counts = np.zeros(_ROOM, np.int64)
        self._guards = np.full((_ROOM, self.upstreams), -1, np.int64)
        self._table = np.full((_ROOM, blocks), -1, np.int64)
        self._last_ms = np.full(_ROOM, np.iinfo(np.int64).min, np.int64)
        self._times = np.zeros((_ROOM, BLOCK), np.int64)
        self._amounts = np.zeros((_ROOM, BLOCK))
        self._ids = np.zeros((_ROOM, BLOCK), np.uint64)
        self._others = np.zeros((_ROOM, BLOCK), np.uint64)
        self._labels = np.full((_ROOM, BLOCK), UNKNOWN, np.int8)
        self._revisions = np.zeros((_ROOM, BLOCK), np.uint8)
        self._sequences = np.full((_ROOM, BLOCK), -1, np.int64)
        self.touched: dict[Slot, tuple[int, ...]] = {}  # slot: the guard when it was written
        self._gone: list[Slot] = []
        self._captured: list[tuple[Slot, SlotValue | None]] = []  # of earlier parts of a batch
        self._is_round = False  # a ring would go round within the part of the batch at hand
        #: Highest source offset applied of each upstream partition, whatever the entity.
        self._passed = np.full(self.upstreams, -1, np.int64)
        #: (entity, id) -> (label, its offset): labels ahead of their transaction
        self._expected: dict[tuple[str, int], tuple[int, int]] = {}

    def __len__(self) -> int:
        """How many entities are known."""
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes in the columns, without the dictionary of keys (about 130 more an entity)."""
        columns = (self._counts, self._guards, self._table, self._last_ms, self._free)
        pool = (
            self._times,
            self._amounts,
            self._ids,
            self._others,
            self._labels,
            self._revisions,
            self._sequences,
        )
        return sum(column.nbytes for column in (*columns, *pool))

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
        status = np.zeros(n, np.int8)
        slots = np.zeros(n, np.int64)
        hashes = np.fromiter(map(hash_id, ids), np.uint64, n)
        whom = np.fromiter(map(hash_id, others), np.uint64, n)
        start = 0
        while start < n:
            if self._is_round:
                # A ring that went round writes its slots twice: of a batch that was half
                # delivered no row may be missing before one that arrived.
                self._captured, self._is_round = self.changes(), False
            rows = self._rows_of(keys, start)
            part = slice(start, start + len(rows))
            self._ensure_blocks(len(rows))
            before = self._guards[rows]
            self._n_free = fold(
                rows,
                times_ms[part],
                amounts[part],
                hashes[part],
                whom[part],
                upstreams[part],
                offsets[part],
                self._counts,
                self._guards,
                self._table,
                self._times,
                self._amounts,
                self._ids,
                self._others,
                self._labels,
                self._sequences,
                self._free,
                self._n_free,
                *self.plan.arrays,
                status[part],
                slots[part],
                out[part],
            )
            start += len(rows)
            fresh = status[part] == APPLIED
            np.maximum.at(self._last_ms, rows[fresh], times_ms[part][fresh])
            np.maximum.at(self._passed, upstreams[part][fresh], offsets[part][fresh])
            new = slots[part][fresh]
            self._revisions[self._table[rows[fresh], new // BLOCK], new % BLOCK] = 0
            guards: dict[str, list[int]] = {}
            for at in (np.flatnonzero(fresh) + part.start).tolist():
                # The guard as it stood then: of a batch that was half delivered only the rows
                # that arrived may count as applied.
                guard = guards.get(keys[at])
                if guard is None:
                    guard = guards[keys[at]] = before[at - part.start].tolist()
                guard[upstreams[at]] = int(offsets[at])
                self._touch(keys[at], int(slots[at]), tuple(guard))
                if self._expected:
                    self._meet(keys[at], int(hashes[at]), int(slots[at]))
        return out, status

    def mark(
        self,
        key: str,
        transaction_id: str,
        *,
        is_fraud: bool,
        source: tuple[int, int] = (0, -1),
        at: int = -1,
    ) -> bool:
        """Note the label of a transaction in its slot; return whether it was news.

        A transaction that the ring no longer holds is no news. Marking twice is marking once.
        ``source`` is the transaction's (upstream, offset): if it has not been applied yet, as
        after a crash between its score and its state, the label waits for it; ``at`` is the
        label's own offset, from which it must then be read again (``expected_low``).
        """
        wanted = hash_id(transaction_id)
        if not self._has_passed(key, *source):
            self._expected[key, wanted] = (FRAUD if is_fraud else LEGITIMATE, at)
            while len(self._expected) > EXPECTED_MAX:
                self._expected.pop(next(iter(self._expected)))
            return False
        row = self.rows.get(key)
        if row is None:
            return False
        for slot in range(min(int(self._counts[row]), self.history_max)):
            block, at = self._table[row, slot // BLOCK], slot % BLOCK
            if self._ids[block, at] == wanted:
                label = FRAUD if is_fraud else LEGITIMATE
                if self._labels[block, at] == label:
                    return False
                self._label((block, at), label)
                self._touch(key, slot, tuple(self._guards[row].tolist()))
                return True
        return False

    @property
    def expected_low(self) -> int | None:
        """The lowest offset of a label that waits for its transaction; None: no label waits."""
        return min((at for _, at in self._expected.values()), default=None)

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
        self._revisions[place] = min(int(self._revisions[place]) + 1, 255)

    def history(self, key: str) -> list[tuple[int, float, int]]:
        """(time_ms, amount, label) of the transactions held of an entity, oldest first."""
        row = self.rows.get(key)
        if row is None:
            return []
        count = int(self._counts[row])
        slots = [n % self.history_max for n in range(max(0, count - self.history_max), count)]
        places = [(self._table[row, s // BLOCK], s % BLOCK) for s in slots]
        return [
            (int(self._times[p]), float(self._amounts[p]), int(self._labels[p])) for p in places
        ]

    def changes(self) -> list[tuple[Slot, SlotValue | None]]:
        """What was touched since the last call; None: the slot was let go.

        What was let go comes first: an entity that left may have come back since, as a new one.
        """
        before, self._captured = self._captured, []
        gone: list[tuple[Slot, SlotValue | None]] = [(slot, None) for slot in self._gone]
        changed = [(slot, self._read(*slot, guard)) for slot, guard in self.touched.items()]
        self.touched, self._gone = {}, []
        return before + gone + changed

    def restore(self, slots: Iterable[tuple[Slot, SlotValue | None]]) -> None:
        """Take rows of the changelog in the order of the log.

        Of several rows of one slot the highest applied offset wins, wherever it stands: a
        worker that had lost the partition may have written late. None: the entity was let go.
        """
        for (key, slot), value in slots:
            if value is None:
                self._remove(key)
                self._gone = []  # the changelog says so already
                continue
            row = self.rows.get(key)
            if row is None:
                row = self._new_row(key)
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
                continue
            self._sequences[place] = value.sequence
            self._times[place], self._amounts[place] = value.time_ms, value.amount
            self._ids[place], self._others[place] = value.id_hash, value.other_hash
            self._labels[place], self._revisions[place] = value.label, value.revision
            self._counts[row] = max(self._counts[row], value.sequence + 1)
            self._last_ms[row] = max(self._last_ms[row], value.time_ms)

    def _touch(self, key: str, slot: int, guard: tuple[int, ...]) -> None:
        self.touched.pop((key, slot), None)  # to the end: the order of the changelog
        self.touched[key, slot] = guard

    def _read(self, key: str, slot: int, guard: tuple[int, ...] | None = None) -> SlotValue | None:
        row = self.rows.get(key)
        if row is None or self._table[row, slot // BLOCK] < 0:
            return None
        place = (self._table[row, slot // BLOCK], slot % BLOCK)
        guard = tuple(self._guards[row].tolist()) if guard is None else guard
        return SlotValue(
            int(self._sequences[place]),
            int(self._times[place]),
            float(self._amounts[place]),
            int(self._ids[place]),
            int(self._others[place]),
            int(self._labels[place]),
            tuple((p, offset) for p, offset in enumerate(guard) if offset >= 0),
            int(self._revisions[place]),
        )

    def _rows_of(self, keys: Sequence[str], start: int) -> NDArray[np.int64]:
        """Rows of ``keys[start:]``, up to the first that needs another part of the batch.

        That is one for which an entity would have to leave, or whose ring would go round.
        """
        may_go_round = len(keys) - start > self.history_max
        times: dict[str, int] = {}
        rows: list[int] = []
        for key in keys[start:]:
            if may_go_round:
                times[key] = times.get(key, 0) + 1
                if times[key] > self.history_max:
                    self._is_round = True
                    break
            row = self.rows.get(key)
            if row is None:
                if len(self.rows) >= self.entities_max:
                    if rows:
                        break
                    self._evict()
                row = self._new_row(key)
            rows.append(row)
        return np.array(rows, np.int64)

    def _new_row(self, key: str) -> int:
        if self._free_rows:
            row = self._free_rows.pop()
        else:
            row = len(self.rows)
            if row == len(self._counts):
                self._counts = _doubled(self._counts, 0)
                self._guards = _doubled(self._guards, -1)
                self._table = _doubled(self._table, -1)
                self._last_ms = _doubled(self._last_ms, np.iinfo(np.int64).min)
        self.rows[key] = row
        return row

    def _ensure_blocks(self, n: int) -> None:
        while self._n_free < n:
            held = len(self._times)
            self._times = _doubled(self._times, 0)
            self._amounts = _doubled(self._amounts, 0)
            self._ids = _doubled(self._ids, 0)
            self._others = _doubled(self._others, 0)
            self._labels = _doubled(self._labels, UNKNOWN)
            self._revisions = _doubled(self._revisions, 0)
            self._sequences = _doubled(self._sequences, -1)
            free = np.empty(2 * held, np.int64)
            free[: self._n_free] = self._free[: self._n_free]
            free[self._n_free : self._n_free + held] = np.arange(2 * held - 1, held - 1, -1)
            self._free, self._n_free = free, self._n_free + held

    def _evict(self) -> None:
        """Let the entities go that were seen longest ago (event time): a 16th of the store."""
        keys = list(self.rows)
        last = self._last_ms[[self.rows[key] for key in keys]]
        n = max(1, len(keys) // _LEAVE_SHARE)
        # Of those seen at the same time by name: a restored store holds them in another order.
        newest = np.partition(last, n - 1)[n - 1]
        leaving = [keys[at] for at in np.flatnonzero(last < newest)]
        leaving += sorted(keys[at] for at in np.flatnonzero(last == newest))[: n - len(leaving)]
        for key in leaving:
            self._remove(key)
            self.n_evicted += 1

    def _remove(self, key: str) -> None:
        row = self.rows.pop(key, None)
        if row is None:
            return
        for slot in range(min(int(self._counts[row]), self.history_max)):
            self.touched.pop((key, slot), None)
            self._gone.append((key, slot))
        for block in self._table[row][self._table[row] >= 0]:
            self._sequences[block] = -1
            self._ids[block] = 0
            self._free[self._n_free] = block
            self._n_free += 1
        self._counts[row], self._guards[row], self._table[row] = 0, -1, -1
        self._last_ms[row] = np.iinfo(np.int64).min
        self._free_rows.append(row)


def _doubled(column: NDArray[Any], fill: int) -> NDArray[Any]:
    return np.concatenate([column, np.full_like(column, fill)])
