"""Rows of an entity's changelog, one by one and in columns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, compress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from app.core.buckets import BucketValue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: Entity, slot of its ring; below 0 the place of a bucket, ~place.
Slot = tuple[str, int]


class SlotValue(NamedTuple):
    """A ring's row of the changelog: a transaction as it was applied, its label, the guard then."""

    sequence: int  # the entity's n-th transaction, from 0
    time_ms: int
    amount: float
    id_hash: int
    other_hash: int
    label: int  # UNKNOWN, LEGITIMATE, FRAUD
    guard: tuple[tuple[int, int], ...]  # (upstream partition, highest source offset applied)
    revision: int = 0  # how often the label has changed, up to REVISION_MAX: the label's guard


Row = tuple[Slot, SlotValue | BucketValue | None]


@dataclass(frozen=True)
class SlotColumns:
    """Rows of the changelog in columns; ``guards`` has shape (n, upstreams), -1: none."""

    keys: list[str]
    slots: NDArray[np.int64]
    sequences: NDArray[np.int64]
    times_ms: NDArray[np.int64]
    amounts: NDArray[np.float64]
    ids: NDArray[np.uint64]
    others: NDArray[np.uint64]
    labels: NDArray[np.int8]
    guards: NDArray[np.int64]
    revisions: NDArray[np.uint8]

    def rows(self) -> list[Row]:
        """One row after another."""
        guards = (
            tuple((p, offset) for p, offset in enumerate(guard) if offset >= 0)
            for guard in self.guards.tolist()
        )
        values = map(
            SlotValue,
            self.sequences.tolist(),
            self.times_ms.tolist(),
            self.amounts.tolist(),
            self.ids.tolist(),
            self.others.tolist(),
            self.labels.tolist(),
            guards,
            self.revisions.tolist(),
        )
        return list(zip(zip(self.keys, self.slots.tolist(), strict=True), values, strict=True))


class Touched(NamedTuple):
    """Slots that were touched and no row tells of yet; the guards as they stood then."""

    keys: list[str]
    rows: NDArray[np.int64]
    slots: NDArray[np.int64]
    guards: NDArray[np.int64]  # shape (n, upstreams)

    def where(self, keep: NDArray[np.bool_]) -> Touched:
        """Those where ``keep`` holds."""
        keys = list(compress(self.keys, keep.tolist()))
        return Touched(keys, self.rows[keep], self.slots[keep], self.guards[keep])

    @classmethod
    def joined(cls, parts: Sequence[Touched]) -> Touched:
        """Several as one, in their order; at least one."""
        if len(parts) == 1:
            return parts[0]
        _, rows, slots, guards = zip(*parts, strict=True)
        return cls(
            list(chain.from_iterable(part.keys for part in parts)),
            np.concatenate(rows),
            np.concatenate(slots),
            np.concatenate(guards),
        )
