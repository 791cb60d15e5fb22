"""Alerts that a person need not see again: of one entity, soon after another.

A fold over the alerts of one partition, keyed by the entity. Time is event time. The first alert
of an entity is shown; what follows within the window is held back and counted, and the next that
is shown says how many there were.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from app.core.hashing import hash_id

if TYPE_CHECKING:
    from collections.abc import Iterable

#: As many as are told apart of what was held back; a person who reads 64 knows enough.
COUNTED_MAX: Final = 64


class Shown(NamedTuple):
    """The last alert of an entity that was shown, and what was held back since."""

    time_ms: int
    transaction: int  # hash of its id
    at: int  # its offset
    guard: int  # highest offset applied of this entity
    held: tuple[int, ...] = ()  # hashes of the transactions held back, up to ``COUNTED_MAX``
    repeats: int = 0  # how many were held back before it
    previous: int = -1  # hash of the transaction shown before


@dataclass
class Repeats:
    """Which alerts of one partition are shown.

    Bound: of more than ``entities_max`` entities the one shown longest ago is forgotten.

    >>> repeats = Repeats(window_ms=60_000)
    >>> [repeats.on_alert("card-1", f"t{i}", at, i) for i, at in enumerate([0, 9_000, 60_000])]
    [0, None, 1]
    """

    window_ms: int
    entities_max: int = 100_000
    shown: OrderedDict[str, Shown] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        """Start with nothing touched."""
        self._touched: dict[str, None] = {}

    def on_alert(self, key: str, transaction_id: str, time_ms: int, offset: int) -> int | None:
        """How many alerts were held back before this one; None: it is held back itself.

        What was shown last and comes again, as after a crash, is shown again.
        """
        before, transaction = self.shown.get(key), hash_id(transaction_id)
        if before is not None and offset <= before.guard:
            return None  # what it caused was delivered before its state was
        if before is None or time_ms >= before.time_ms + self.window_ms:
            repeats = len(before.held) if before else 0
            previous = before.transaction if before else -1
            told = Shown(time_ms, transaction, offset, offset, (), repeats, previous)
        elif transaction == before.transaction:
            told = before._replace(at=offset, guard=offset)
        elif transaction == before.previous:
            return None  # it was shown, and is said again
        elif transaction in before.held or len(before.held) >= COUNTED_MAX:
            return None
        else:
            self._keep(key, before._replace(guard=offset, held=(*before.held, transaction)))
            return None
        self._keep(key, told)
        self.shown.move_to_end(key)
        if len(self.shown) > self.entities_max:
            oldest, _ = self.shown.popitem(last=False)
            self._touched[oldest] = None
        return told.repeats

    def changes(self) -> list[tuple[str, Shown | None]]:
        """What was touched since the last call; None: the entity was forgotten."""
        touched, self._touched = self._touched, {}
        return [(key, self.shown.get(key)) for key in touched]

    def restore(self, rows: Iterable[tuple[str, Shown | None]]) -> None:
        """Take rows of the changelog in the order of the log; the highest offset wins."""
        for key, told in rows:
            if told is None:
                self.shown.pop(key, None)
                continue
            before = self.shown.get(key)
            if before is None or told.guard >= before.guard:
                self.shown[key] = told
        newest = sorted(self.shown.items(), key=lambda row: row[1].at)[-self.entities_max :]
        self.shown = OrderedDict(newest)

    @property
    def applied_high(self) -> int:
        """The highest offset that was applied; -1: none."""
        return max((told.guard for told in self.shown.values()), default=-1)

    def _keep(self, key: str, told: Shown) -> None:
        self.shown[key] = told
        self._touched[key] = None
