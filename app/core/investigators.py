"""What investigators say, kept apart from what becomes known of everything.

They are shown alerts and answer at once: their labels are few, early and drawn by the model
itself. A model of its own learns them as they come. The model of everything learns them too, but
only after ``wait_ms``, when the labels of what nobody was shown are known as well; or at once
when a late label says the same or something else. So it never learns a day of which it knows the
alerts alone (Dal Pozzolo et al., Credit Card Fraud Detection, IEEE TNNLS 29(8), 2018).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from app.core.models import Model
    from app.records import Example


class Lesson(NamedTuple):
    """What a model learns of an example."""

    row: bytes  # the features, packed: float64, NaN where one is missing
    is_fraud: bool
    weight: float
    raw: float  # what the model said of it when it was scored; NaN: it was not heard

    @classmethod
    def of(cls, example: Example) -> Lesson:
        """What an example teaches."""
        row = np.array(example.features, np.float64).tobytes()
        is_heard = example.fallback in ("", "stale")
        raw = example.raw if is_heard else math.nan
        return cls(row, example.is_fraud, example.weight, raw)


@dataclass
class Investigators:
    """A model of what investigators say, and what the model of everything has yet to learn of it.

    ``sources`` are the label sources that are theirs. ``share`` is the weight of their model
    in a score, in [0, 1], once it has learnt ``frauds_min`` frauds; with fewer it has less in
    proportion. Bounds: at most ``waiting_max`` examples wait, beyond that the oldest goes on.
    """

    model: Model
    sources: frozenset[str]
    share: float = 0.3
    wait_ms: int = 7 * 86_400_000
    waiting_max: int = 65_536
    frauds_min: int = 50
    n_frauds: int = 0
    clock_ms: int = -1
    #: transaction -> (when the model of everything learns it, what), oldest first
    waiting: OrderedDict[int, tuple[int, Lesson]] = field(default_factory=OrderedDict)

    @property
    def weight(self) -> float:
        """The weight of their model in a score, [0, ``share``]."""
        return self.share * min(1.0, self.n_frauds / max(self.frauds_min, 1))

    def hears(self, example: Example) -> bool:
        """Whether an example's label is an investigator's."""
        return example.label_source in self.sources

    def keep(self, key: int, lesson: Lesson, time_ms: int) -> list[Lesson]:
        """Keep what was said at ``time_ms`` for later; return what can wait no longer for it."""
        self.n_frauds += lesson.is_fraud
        self.waiting[key] = (time_ms + self.wait_ms, lesson)
        self.waiting.move_to_end(key)
        if len(self.waiting) <= self.waiting_max:
            return []
        return [self.waiting.popitem(last=False)[1][1]]

    def take(self, key: int) -> Lesson | None:
        """Stop waiting with a transaction, because another label says what it is."""
        _, lesson = self.waiting.pop(key, (0, None))
        return lesson

    def due(self, now_ms: int) -> list[Lesson]:
        """What has waited long enough at event time ``now_ms``, oldest first."""
        self.clock_ms = max(self.clock_ms, now_ms)
        due = []
        while self.waiting:
            key, (at_ms, lesson) = next(iter(self.waiting.items()))
            if at_ms > self.clock_ms:
                break
            due.append(lesson)
            del self.waiting[key]
        return due

    def __getstate__(self) -> dict[str, Any]:
        """State as plain values, equal however it came about."""
        return {**self.__dict__, "waiting": list(self.waiting.items())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go on exactly where the state was taken."""
        self.__dict__.update(state)
        self.waiting = OrderedDict(state["waiting"])
