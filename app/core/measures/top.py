"""The best of a stream, exactly, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator


class Best(NamedTuple):
    """The highest score of a key, and how many transactions it stands for."""

    score: float
    weight: float


@dataclass
class Top:
    """The ``size`` keys with the highest scores, by the highest score of each.

    A key that was let go comes back with a higher score and not otherwise, so what is kept is
    exact, and the same in whatever order the scores came. Of equal scores the higher key is kept.

    >>> top = Top(size=2)
    >>> for key, score in [(1, 0.3), (2, 0.9), (1, 0.5), (3, 0.1), (4, 0.4), (5, 0.2)]:
    ...     top.offer(key, score)
    >>> [key for key, _ in top.ranked()]
    [2, 1]
    """

    size: int
    held: dict[int, Best] = field(default_factory=dict)
    floor: float = -1.0  # a lower score is not among them

    def offer(self, key: int, score: float, weight: float = 1.0) -> None:
        """Let a key stand for its place."""
        if score < self.floor:
            return
        best = self.held.get(key)
        if best is None or score > best.score:
            self.held[key] = Best(score, weight)
        if len(self.held) >= self.size + max(self.size // 2, 1):
            self.held = dict(self.ranked())
            self.floor = self.held[next(reversed(self.held))].score

    def weigh(self, key: int, weight: float) -> None:
        """Let a key stand for more or fewer."""
        best = self.held.get(key)
        if best is not None:
            self.held[key] = best._replace(weight=weight)

    def ranked(self) -> list[tuple[int, Best]]:
        """Keys and their best, the highest first."""
        order = sorted(self.held.items(), key=lambda one: (one[1].score, one[0]), reverse=True)
        return order[: self.size]

    def __getstate__(self) -> dict[str, Any]:
        """State as arrays: 24 bytes a key."""
        scores = np.array(list(self.held.values()), np.float64).reshape(-1, 2)
        keys = np.array(list(self.held), np.uint64)
        return {"size": self.size, "keys": keys, "best": scores, "floor": self.floor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go on exactly where the state was taken."""
        self.size, self.floor = state["size"], state["floor"]
        best = (Best(*one) for one in state["best"].tolist())
        self.held = dict(zip(state["keys"].tolist(), best, strict=True))


def first(ranked: list[tuple[int, Best]], n: int) -> Iterator[int]:
    """Keys of the first n transactions: fewer where one stands for several."""
    told = 0.0
    for key, best in ranked:
        if told >= n:
            return
        told += best.weight
        yield key
