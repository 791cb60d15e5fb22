"""Scored transactions that wait on a disk: what a join asks of one, and how they lie there.

What lies on the disk is the state as it was at one position, which stands beside it. What has
changed since then is in memory, and goes there with the next position, all at once or not at
all (``Ledger.write``): so memory holds what lies between two writes, and no more.

    table  | key                                  | value
    -------+--------------------------------------+---------------------------------------------
    scores | offset, transaction                  | the score's bytes, as they came
    known  | transaction                          | offset, times, what its labels say: 34 bytes
    due    | time when something is due, transaction |
    labels | offset of its first label, transaction |
    rest   | "early" and an offset, or "place"    | a label that waits; the position
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import msgspec

from app.core.early import Unknown
from app.core.order import CHUNK, Order, key_of, numbered
from app.core.waitlist import Waiting, is_sampled
from app.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from app.core.order import Drop, Put, Tables
    from app.records import Score

#: Offset, due_ms, label_offset, until_ms; is_fraud (0: no label), is_matured.
_ROW: Final = struct.Struct("<qqqqBB")
#: What the first three of a row are found by.
_ORDERS: Final = ("scores", "due", "labels")
_NOWHERE: Final = (None, None, None)
_PLACE: Final = b"place"
_EARLY: Final = b"early"
_early: Final = msgspec.msgpack.Decoder(Unknown).decode
#: 16,384 transactions, some 30 MB, while logs are read again.
_HELD_MAX: Final = 16_384


class Place(msgspec.Struct):
    """Whose state lies on a disk, and at which position."""

    identity: str  # of what it was made: format, topics, partition, settings
    lineage: str  # of which history of commits
    scores_next: int = 0
    labels_next: int = 0
    clock_ms: int = -1
    run_first: int = -1  # of the scores no summary tells of; they are read again
    n: int = 0
    floors: tuple[bytes, bytes, bytes] = (b"", b"", b"")  # where the orders begin

    @property
    def scores_begin(self) -> int:
        """The first score that is read again."""
        return min(self.scores_next, self.run_first) if self.run_first >= 0 else self.scores_next


class Lying:
    """A score that lies on the disk until somebody asks for all of it."""

    __slots__ = ("_ledger", "_offset", "transaction_id")

    def __init__(self, ledger: Ledger, transaction_id: str, offset: int) -> None:
        """Know where it lies."""
        self._ledger, self.transaction_id, self._offset = ledger, transaction_id, offset

    def whole(self) -> Score:
        """Read it."""
        return self._ledger.score(self.transaction_id, self._offset)


class Ledger:
    """All of them on a disk but for what has changed since the last write (``Known``).

    ``pack`` gives the bytes of a score that came, ``unpack`` the score again.
    """

    is_durable = True

    def __init__(
        self,
        tables: Tables,
        pack: Callable[[Any], bytes],
        unpack: Callable[[bytes], Score],
        negatives: float = 1.0,
    ) -> None:
        """Stand before what lies there; ``open`` takes it over, ``begin`` does not."""
        self._tables, self._pack, self._unpack = tables, pack, unpack
        self._negatives = negatives
        self._held: dict[str, Waiting | None] = {}  # read or changed since the last write
        self._lies: dict[str, tuple[int, int, int]] = {}  # how those of them lie on the disk
        self._raws: dict[str, bytes] = {}
        self._changed: dict[str, None] = {}
        self._horizon_ms = -1
        self._due = Order(tables, "due", self._is_due)
        self._scores = Order(tables, "scores", self._is_scored)
        self._labels = Order(tables, "labels", self._is_labelled)
        self._orders = (self._due, self._scores, self._labels)
        self.place = Place("", "")
        self.n_written = 0

    def __len__(self) -> int:
        """How many there are."""
        return self.place.n

    @property
    def is_full(self) -> bool:
        """Whether so much is in memory that it should be written where it may be."""
        return len(self._held) >= _HELD_MAX

    def found(self) -> Place | None:
        """What lies on the disk, and of when; None: nothing that can be read."""
        (raw,) = self._tables.get_many("rest", [_PLACE])
        try:
            return None if raw is None else msgspec.msgpack.decode(raw, type=Place)
        except msgspec.DecodeError:
            return None

    def begin(self, place: Place) -> None:
        """Drop what lies there; begin empty."""
        self._tables.clear()
        self.place, self.n_written = place, 0

    def open(self, place: Place) -> list[Unknown]:
        """Take over what lies there; return the labels that wait, in the order of the log."""
        self.place, self.n_written = place, place.n
        for order, floor in zip(self._orders, place.floors, strict=True):
            order.begin(floor)
        keys: list[bytes] = []
        while some := self._tables.scan("rest", keys[-1] + b"\0" if keys else _EARLY, CHUNK):
            keys += [key for key in some if key.startswith(_EARLY)]
            if not some[-1].startswith(_EARLY):
                break
        return [_early(raw) for raw in self._tables.get_many("rest", keys) if raw is not None]

    # What the join asks.

    def expect(self, ids: Sequence[str], until_ms: int, *, labelled: bool) -> None:
        """Read at once what a batch will ask for one by one."""
        self._horizon_ms = max(self._horizon_ms, until_ms)
        self._load(ids)
        if labelled:
            self._load_scores(ids)

    def get(self, transaction_id: str) -> Waiting | None:
        """What is known of a transaction."""
        if transaction_id not in self._held:
            self._load([transaction_id])
        return self._held[transaction_id]

    def peek(self, transaction_id: str) -> Waiting | None:
        """What is known of a transaction; nothing of it is kept."""
        if transaction_id in self._held:
            return self._held[transaction_id]
        (row,) = self._tables.get_many("known", [transaction_id.encode()])
        return None if row is None else self._waiting(transaction_id, row)

    def add(self, waiting: Waiting) -> None:
        """Take in one that is not known."""
        identity = waiting.kept.transaction_id
        self.get(identity)  # how it lies there, if it was let go just now
        self._held[identity] = waiting
        self.place.n += 1
        self._scores.push(waiting.offset, identity)
        self.schedule(waiting, waiting.due_ms)

    def changed(self, waiting: Waiting) -> None:
        """Have it written."""
        self._changed[waiting.kept.transaction_id] = None

    def schedule(self, waiting: Waiting, due_ms: int) -> None:
        """Give it another time."""
        waiting.due_ms = due_ms
        self.changed(waiting)
        self._due.push(due_ms, waiting.kept.transaction_id)

    def label(self, waiting: Waiting, offset: int) -> None:
        """Note where the first of its labels lies."""
        waiting.label_offset = offset
        self.changed(waiting)
        self._labels.push(offset, waiting.kept.transaction_id)

    def let_go(self, waiting: Waiting) -> None:
        """Forget one."""
        self.changed(waiting)
        self._held[waiting.kept.transaction_id] = None
        self.place.n -= 1

    def next_due(self, clock_ms: int) -> Waiting | None:
        """The next that is due by now."""
        one = self._due.first()
        if one is None or one[0] > clock_ms:
            return None
        if one[1] not in self._held:
            self._load_due(max(clock_ms, self._horizon_ms))
        self._due.pop()
        return self.get(one[1])

    def oldest(self) -> Waiting | None:
        """The one whose score came first."""
        one = self._scores.first()
        return None if one is None else self.get(one[1])

    def low_score(self) -> int | None:
        """Where that one lies."""
        one = self._scores.first()
        return None if one is None else one[0]

    def low_label(self) -> int | None:
        """The smallest offset of a label that is the first of one that is known."""
        one = self._labels.first()
        return None if one is None else one[0]

    def score(self, transaction_id: str, offset: int) -> Score:
        """A score as it came. Raises Refused where the disk has lost it."""
        raw = self._raws.get(transaction_id)
        if raw is None:
            (raw,) = self._tables.get_many("scores", [key_of(offset, transaction_id)])
        if raw is None:
            msg = f"join.disk has no score at offset {offset}; expected one: remove the folder"
            raise Refused(msg)
        return self._unpack(raw)

    # Between memory and disk.

    def write(self, clock_ms: int, run_first: int, early: Mapping[int, Unknown | None]) -> None:
        """Have the disk hold the state as it is now, with ``place``, in one write."""
        floors = [order.floor() for order in self._orders]
        place = self.place
        place.clock_ms, place.run_first = clock_ms, run_first
        place.floors = (floors[0], floors[1], floors[2])
        puts: list[Put] = [("rest", _PLACE, msgspec.msgpack.encode(place))]
        drops: list[Drop] = []
        for identity in self._changed:
            self._differences(identity, puts, drops)
        for offset, unknown in early.items():
            key = _EARLY + numbered(offset)
            if unknown is None:
                drops.append(("rest", key))
            else:
                puts.append(("rest", key, msgspec.msgpack.encode(unknown)))
        self._tables.write(puts, drops)
        for order, floor in zip(self._orders, floors, strict=True):
            order.written(floor)
        self.n_written = place.n
        for kept in (self._held, self._lies, self._raws, self._changed):
            kept.clear()

    def _differences(self, identity: str, puts: list[Put], drops: list[Drop]) -> None:
        """What has to be written for the disk to hold one transaction as it is."""
        waiting, name, lies = self._held[identity], identity.encode(), self._lies.get(identity)
        if waiting is None:
            if lies is not None:
                drops.append(("known", name))
                drops += [(table, numbered(n) + name) for table, n in _places(*lies)]
            return
        told = 0 if waiting.is_fraud is None else 1 + waiting.is_fraud
        places = (waiting.offset, waiting.due_ms, waiting.label_offset)
        row = _ROW.pack(*places, waiting.until_ms, told, waiting.is_matured)
        puts.append(("known", name, row))
        for table, n, lay in zip(_ORDERS, places, lies or _NOWHERE, strict=True):
            if n == lay:
                continue
            if lay is not None and (table != "labels" or lay >= 0):
                drops.append((table, numbered(lay) + name))
            if table != "labels" or n >= 0:
                value = self._pack(waiting.kept) if table == "scores" else b""
                puts.append((table, numbered(n) + name, value))

    def _load(self, ids: Iterable[str]) -> None:
        wanted = [identity for identity in dict.fromkeys(ids) if identity not in self._held]
        if not wanted:
            return
        rows = self._tables.get_many("known", [identity.encode() for identity in wanted])
        for identity, row in zip(wanted, rows, strict=True):
            if row is None:
                self._held[identity] = None
                continue
            waiting = self._held[identity] = self._waiting(identity, row)
            self._lies[identity] = (waiting.offset, waiting.due_ms, waiting.label_offset)

    def _waiting(self, identity: str, row: bytes) -> Waiting:
        offset, due_ms, label_offset, until_ms, told, is_matured = _ROW.unpack(row)
        return Waiting(
            Lying(self, identity, offset), offset, due_ms, (None, False, True)[told],
            bool(is_matured), until_ms, label_offset,
        )  # fmt: skip

    def _load_due(self, until_ms: int) -> None:
        """Read all that is at hand and due, and the scores that will be learnt."""
        ids = self._due.upto(until_ms)
        self._load(ids)
        self._load_scores(identity for identity in ids if self._will_teach(identity))

    def _will_teach(self, identity: str) -> bool:
        waiting = self._held[identity]
        if waiting is None or waiting.is_matured or waiting.is_fraud is not None:
            return False
        return is_sampled(identity, self._negatives)

    def _load_scores(self, ids: Iterable[str]) -> None:
        """Read scores that lie on the disk."""
        wanted = {}
        for identity in ids:
            waiting = self._held[identity]
            if waiting and isinstance(waiting.kept, Lying) and identity not in self._raws:
                wanted[identity] = key_of(waiting.offset, identity)
        if wanted:
            raws = self._tables.get_many("scores", list(wanted.values()))
            found = zip(wanted, raws, strict=True)
            self._raws.update({identity: raw for identity, raw in found if raw is not None})

    def _is_due(self, due_ms: int, identity: str) -> bool:
        return self._is(identity, 1, due_ms)

    def _is_scored(self, offset: int, identity: str) -> bool:
        return self._is(identity, 0, offset)

    def _is_labelled(self, offset: int, identity: str) -> bool:
        return self._is(identity, 2, offset)

    def _is(self, identity: str, which: int, number: int) -> bool:
        """Whether a key says what is so: what has not changed is as it lies on the disk."""
        if identity not in self._changed:
            return True
        waiting = self._held[identity]
        if waiting is None:
            return False
        return (waiting.offset, waiting.due_ms, waiting.label_offset)[which] == number


def _places(*numbers: int) -> list[tuple[str, int]]:
    told = zip(_ORDERS, numbers, strict=True)
    return [(table, n) for table, n in told if table != "labels" or n >= 0]
