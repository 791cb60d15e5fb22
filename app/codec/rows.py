"""Rows of the changelogs."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from app.codec.values import beginning, encode
from app.core.buckets import BucketValue
from app.core.repeats import Shown
from app.core.slots import SlotValue
from app.errors import Malformed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.core.entity import EntityStore
    from app.core.slots import Row, Slot, SlotColumns

_SLOT = struct.Struct("<qqdQQbBH")
_GUARD = struct.Struct("<Hq")
#: The same, as columns hold them.
_SLOTS = np.dtype(
    [
        ("sequence", "<i8"),
        ("time", "<i8"),
        ("amount", "<f8"),
        ("id", "<u8"),
        ("other", "<u8"),
        ("label", "i1"),
        ("revision", "u1"),
        ("guards", "<u2"),
    ]
)
_GUARDS = np.dtype([("upstream", "<u2"), ("offset", "<i8")])
_SLOT_KEY = struct.Struct("<h")  # below 0: the place of a bucket
#: The end of a row's key, by its slot: as many as a ring may have.
_SLOT_KEYS = [b"\0" + _SLOT_KEY.pack(slot) for slot in range(8_192)]
_BUCKET = struct.Struct("<qqdddqqqqqq32sH")
_MARK = struct.Struct("<QqbB")


def write_slot(slot: Slot, value: SlotValue | BucketValue | None) -> tuple[bytes, bytes | None]:
    """One row of an entity's changelog, (key, value); the value is None where it was let go."""
    key = slot[0].encode() + b"\0" + _SLOT_KEY.pack(slot[1])
    if value is None:
        return key, None
    if isinstance(value, BucketValue):
        fixed = _BUCKET.pack(*value[:-1], len(value.marks))
        return key, fixed + b"".join(_MARK.pack(*mark) for mark in value.marks)
    fixed = _SLOT.pack(*value[:6], value.revision, len(value.guard))
    return key, fixed + b"".join(_GUARD.pack(*pair) for pair in value.guard)


def write_slots(columns: SlotColumns) -> Iterator[tuple[bytes, bytes]]:
    """Rows of an entity's changelog, each as ``write_slot`` has it; half a microsecond a row."""
    n, upstreams = columns.guards.shape
    known = columns.guards >= 0
    row = np.dtype([("fixed", _SLOTS), ("guards", _GUARDS, (upstreams,))])
    rows = np.empty(n, row)
    fixed, guards = rows["fixed"], rows["guards"]
    fixed["sequence"], fixed["time"] = columns.sequences, columns.times_ms
    fixed["amount"], fixed["id"], fixed["other"] = columns.amounts, columns.ids, columns.others
    fixed["label"], fixed["revision"] = columns.labels, columns.revisions
    fixed["guards"] = known.sum(axis=1)
    guards["upstream"], guards["offset"] = np.arange(upstreams), columns.guards
    packed = rows.tobytes()
    if not known.all():  # of a row only the guards that it has
        is_kept = np.ones((n, row.itemsize), np.bool_)
        is_kept[:, _SLOT.size :] = np.repeat(known, _GUARD.size, axis=1)
        packed = rows.view(np.uint8).reshape(n, -1)[is_kept].tobytes()
    ends = np.cumsum(_SLOT.size + fixed["guards"].astype(np.int64) * _GUARD.size).tolist()
    start = 0
    for name, slot, end in zip(columns.keys, columns.slots.tolist(), ends, strict=True):
        yield name.encode() + _SLOT_KEYS[slot], packed[start:end]
        start = end


def write_rows(store: EntityStore) -> Iterator[tuple[bytes, bytes | None]]:
    """What a batch changed in a store, as rows of its changelog."""
    before, slots, buckets = store.written()
    yield from (write_slot(*row) for row in before)
    yield from write_slots(slots)
    yield from (write_slot(*row) for row in buckets)


def read_slot(key: bytes, value: bytes | None) -> Row:
    """Inverse of ``write_slot``. Raises Malformed.

    >>> row = SlotValue(3, 1_000, 9.5, 1, 2, 0, ((0, 17),), 1)
    >>> read_slot(*write_slot(("card-1", 3), row)) == (("card-1", 3), row)
    True
    """
    try:
        return _read_slot(key, value)
    except (struct.error, UnicodeDecodeError) as error:
        raise Malformed("row", beginning(key), f"a row that weir writes: {error}") from None


def _read_slot(key: bytes, value: bytes | None) -> Row:
    slot = (key[:-3].decode(), _SLOT_KEY.unpack(key[-2:])[0])
    if value is None:
        return slot, None
    if slot[1] < 0:
        *fields, n = _BUCKET.unpack_from(value)
        marks = _MARK.iter_unpack(value[_BUCKET.size : _BUCKET.size + n * _MARK.size])
        return slot, BucketValue._make([*fields, tuple(marks)])
    sequence, time_ms, amount, id_hash, other_hash, label, revision, n = _SLOT.unpack_from(value)
    pairs = _GUARD.iter_unpack(value[_SLOT.size : _SLOT.size + n * _GUARD.size])
    guard = tuple((int(upstream), int(offset)) for upstream, offset in pairs)
    return slot, SlotValue(sequence, time_ms, amount, id_hash, other_hash, label, guard, revision)


_shown = msgspec.json.Decoder(Shown).decode


def write_shown(key: str, told: Shown | None) -> tuple[bytes, bytes | None]:
    """One row of the changelog of alerts, (key, value); None: the entity was forgotten."""
    return key.encode(), None if told is None else encode(told)


def read_shown(key: bytes, value: bytes | None) -> tuple[str, Shown | None]:
    """Inverse of ``write_shown``. Raises Malformed.

    >>> row = ("card-1", Shown(1_000, 7, 3, 4, (9,), 1))
    >>> read_shown(*write_shown(*row)) == row
    True
    """
    try:
        return key.decode(), None if value is None else _shown(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed("row", beginning(key), f"a row that weir writes: {error}") from None
