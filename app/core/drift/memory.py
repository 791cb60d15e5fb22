"""Rows that are remembered: some of the last weeks, and the newest with their names.

The first say what was before, the second what is now; both are bounded, and two bytes a value.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from app.core.drift.sample import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: 16 rows of each block, 24 blocks a day at most: the last five days or more.
PER_BLOCK: Final = 16
_PAST_MAX: Final = 2_048
#: Enough for histograms of 17 bins, and to find a few that show the change best.
_NEWEST_MAX: Final = 512


class Named(NamedTuple):
    """A transaction, by name."""

    transaction_id: str
    time_ms: int
    segments: tuple[str, ...]


@dataclass
class Memory:
    """Rows of d features, oldest first."""

    d: int
    past: deque[bytes] = field(default_factory=lambda: deque(maxlen=_PAST_MAX))
    past_ms: deque[int] = field(default_factory=lambda: deque(maxlen=_PAST_MAX))
    newest: deque[bytes] = field(default_factory=lambda: deque(maxlen=_NEWEST_MAX))
    names: deque[Named] = field(default_factory=lambda: deque(maxlen=_NEWEST_MAX))
    left: int = PER_BLOCK  # rows that this block may still bring into the past

    def add(self, rows: NDArray[np.float64], names: Sequence[Named]) -> None:
        """Take rows, shape (n, d), with their names."""
        size = 2 * self.d
        packed = pack(rows)
        parts = [packed[i * size : (i + 1) * size] for i in range(len(rows))]
        self.newest.extend(parts)
        self.names.extend(names)
        some = parts[: self.left]
        self.past.extend(some)
        self.past_ms.extend(name.time_ms for name in names[: self.left])
        self.left -= len(some)

    def reference(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Rows of the past, shape (n, d), and their times."""
        return unpack(b"".join(self.past), self.d), np.array(self.past_ms, np.int64)

    def forget(self, before_ms: int) -> None:
        """Let go of the past before a moment: it is no longer what is usual."""
        while self.past_ms and self.past_ms[0] < before_ms:
            self.past.popleft()
            self.past_ms.popleft()

    def around(self, since_ms: int) -> tuple[NDArray[np.float64], NDArray[np.float64], list[Named]]:
        """Rows before a moment, rows from it on, and the names of these."""
        past, times = self.reference()
        now = [i for i, name in enumerate(self.names) if name.time_ms >= since_ms]
        newest = [self.newest[i] for i in now]
        after = unpack(b"".join(newest), self.d)
        return past[times < since_ms], after, [self.names[i] for i in now]
