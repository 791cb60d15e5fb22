"""Labels that came before their transaction, and what is noted of them."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

from app.core.waitlist import pruned, room
from app.records import Position, Record

if TYPE_CHECKING:
    from app.core.waitlist import Waiting

#: 400 steps of a few digits: a broker takes notes of up to 4096 bytes.
_WAITS_MAX = 400


class Label(NamedTuple):
    """What is later known of a transaction."""

    transaction_id: str
    is_fraud: bool
    time_ms: int
    source: str
    raw: Record | None = None  # as it was published


class Unknown(NamedTuple):
    """A label whose transaction never came, with its position."""

    label: Label
    at: Position


class Waited(NamedTuple):
    """Which labels waited when the offsets were committed; the logs alone cannot tell.

    ``scores_next`` is how far the scores were read then; ``cut`` the offset after which the
    list did not fit (-1: it is whole).
    """

    scores_next: int
    offsets: frozenset[int]
    cut: int = -1

    @classmethod
    def of(cls, note: str) -> Waited | None:
        """Read what ``Early.note`` has written, after the first word of a note.

        >>> Waited.of("3 1f 5 2 +")
        Waited(scores_next=31, offsets=frozenset({5, 7}), cut=7)
        """
        words = note.split()[1:]
        if not words:
            return None
        is_cut = words[-1] == "+"
        scores_next, *steps = [int(word, 16) for word in (words[:-1] if is_cut else words)]
        offsets = list(accumulate(steps))
        return cls(scores_next, frozenset(offsets), offsets[-1] if is_cut else -1)

    def has(self, label: Position, waiting: Waiting | None) -> bool:
        """Whether a label waited."""
        is_beyond = self.cut >= 0 and label.offset > self.cut
        return waiting is None if is_beyond else label.offset in self.offsets


class Early:
    """Labels that wait for their transaction: each for ``early_ms``, ``early_max`` at most.

    ``changes``, where they are kept: what waits since it was emptied, by offset; None: no longer.
    """

    def __init__(self, early_ms: int, early_max: int, *, keeps_changes: bool = False) -> None:
        """Begin with none."""
        self._early_ms, self._early_max = early_ms, early_max
        self._waiting: OrderedDict[str, list[Unknown]] = OrderedDict()
        self._n = 0
        self._due: list[tuple[int, str]] = []  # heap of (when, transaction)
        self._offsets: deque[tuple[int, str]] = deque()  # ascending, some no longer there
        self.changes: dict[int, Unknown | None] | None = {} if keeps_changes else None

    def __len__(self) -> int:
        """How many wait."""
        return self._n

    def wait(self, unknown: Unknown) -> list[Unknown]:
        """Let a label wait; return those that have waited in vain: there is no room for them."""
        identity, due_ms = unknown.label.transaction_id, unknown.label.time_ms + self._early_ms
        self._offsets.append((unknown.at.offset, identity))
        if len(self._offsets) > room(self._n):
            self._offsets = deque(one for one in self._offsets if self._has(*one))
        self._waiting.setdefault(identity, []).append(unknown)
        self._n += 1
        if self.changes is not None:
            self.changes[unknown.at.offset] = unknown
        heapq.heappush(self._due, (due_ms, identity))
        left: list[Unknown] = []
        while self._n > self._early_max:
            left += self._gone(self._waiting.popitem(last=False)[1])
        self._due = pruned(self._due, self._n, self._is_due)
        return left

    def take(self, transaction_id: str) -> list[Unknown]:
        """Those that waited for a transaction: here it is."""
        return self._gone(self._waiting.pop(transaction_id, [])) if self._waiting else []

    def expire(self, clock_ms: int) -> list[Unknown]:
        """Those that have waited too long."""
        found: list[Unknown] = []
        while self._due and self._due[0][0] <= clock_ms:
            _, identity = heapq.heappop(self._due)
            waited = self._waiting.pop(identity, [])
            late = [u for u in waited if u.label.time_ms + self._early_ms <= clock_ms]
            if len(late) < len(waited):
                self._waiting[identity] = [u for u in waited if u not in late]
            found += self._gone(late)
        return found

    def low(self) -> int | None:
        """The smallest offset of one that waits."""
        while self._offsets and not self._has(*self._offsets[0]):
            self._offsets.popleft()
        return self._offsets[0][0] if self._offsets else None

    def note(self, scores_next: int) -> str:
        """Which labels wait, for ``Waited.of``: hexadecimal, the offsets as steps."""
        offsets = sorted(u.at.offset for waited in self._waiting.values() for u in waited)
        steps = [b - a for a, b in pairwise([0, *offsets])]
        words = [f"{step:x}" for step in [scores_next, *steps[:_WAITS_MAX]]]
        return " ".join([*words, "+"] if len(steps) > _WAITS_MAX else words)

    def _gone(self, some: list[Unknown]) -> list[Unknown]:
        self._n -= len(some)
        changes = self.changes
        if changes is not None:
            for one in some:
                if changes.pop(one.at.offset, None) is None:  # else it came since they were emptied
                    changes[one.at.offset] = None
        return some

    def _has(self, offset: int, identity: str) -> bool:
        return any(one.at.offset == offset for one in self._waiting.get(identity, ()))

    def _is_due(self, due_ms: int, identity: str) -> bool:
        waited = self._waiting.get(identity, ())
        return any(one.label.time_ms + self._early_ms == due_ms for one in waited)
