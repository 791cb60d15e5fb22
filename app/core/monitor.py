"""Has the world changed? Detectors over what the learner sees, in its order.

Score drift is told from summaries of scores, without labels; performance drift from the loss
of each labelled score, apart for frauds and for legitimate ones (under 1 % fraud a common mean
would only speak of the legitimate). The detector is River's ADWIN (Bifet and Gavalda, 2007): it
keeps a window as long as its mean is steady and cuts off the old part when it is not.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from river.drift import ADWIN

if TYPE_CHECKING:
    from app.records import Example, Summary


#: A tenth: with enough values ADWIN is sure of changes that nobody would act upon.
CHANGE_MIN = 0.1
#: 16 looks, 512 values: by then ADWIN has let go of what it was before.
LOOKS = 16


class Change(NamedTuple):
    """A detector's verdict: what changed, from what to what, since when (event time)."""

    kind: Literal["score", "performance"]
    subject: str
    before: float
    after: float
    since_ms: int
    detected_ms: int


@dataclass
class Watch:
    """One quantity under one detector.

    ``update`` returns the change that the new value reveals, or None. Cost about 0.3 us.
    """

    kind: Literal["score", "performance"]
    subject: str
    delta: float
    #: 4096 times: an onset further back is told as the oldest remembered.
    times_ms: deque[int] = field(default_factory=lambda: deque(maxlen=4_096))
    n: int = 0
    level: float = 0.0  # mean when it was last steady, or last told
    looks_left: int = 0  # for a change that ADWIN is sure of to show in the mean
    detector: Any = None

    def __post_init__(self) -> None:
        """Start a detector."""
        self.detector = ADWIN(delta=self.delta)

    def update(self, value: float, time_ms: int) -> Change | None:
        """Take one value in [0, 1] at event time ``time_ms``."""
        self.times_ms.append(time_ms)
        self.detector.update(value)
        self.n += 1
        if self.n % self.detector.clock:
            return None  # ADWIN itself looks only as often
        mean = self.detector.estimation
        if self.detector.drift_detected:
            self.looks_left = LOOKS
        if not self.looks_left:
            self.level = mean
            return None
        # ADWIN is sure before it has let go of the old part of its window. The level before is what
        # the new mean is held against, until the change shows, or turns out to be a small one.
        self.looks_left -= 1
        before, width = self.level, max(int(self.detector.width), 1)
        if abs(mean - before) < CHANGE_MIN * max(mean, before):
            return None
        self.level, self.looks_left = mean, 0
        since = self.times_ms[-min(width, len(self.times_ms))]
        return Change(self.kind, self.subject, before, mean, since, time_ms)


@dataclass
class Monitor:
    """All detectors of one model.

    The first ``warmup`` examples are watched in silence: a model that has hardly learnt moves
    its scores because it learns, not because the world changed.
    """

    delta: float = 0.002
    warmup: int = 2_000
    n_examples: int = 0

    def __post_init__(self) -> None:
        """Start the detectors."""
        self.scores = Watch("score", "mean score", self.delta)
        self.frauds = Watch("performance", "loss on frauds", self.delta)
        self.legitimate = Watch("performance", "loss on legitimate transactions", self.delta)

    def on_example(self, example: Example) -> list[Change]:
        """Compare a score with the label that came for it."""
        self.n_examples += 1
        watch = self.frauds if example.is_fraud else self.legitimate
        loss = abs(float(example.is_fraud) - example.score)
        return self._heard(watch.update(loss, example.time_ms))

    def on_summary(self, summary: Summary) -> list[Change]:
        """Look at a run of scores whose labels are not known yet."""
        return self._heard(self.scores.update(summary.mean_score, summary.last_time_ms))

    def _heard(self, change: Change | None) -> list[Change]:
        return [change] if change is not None and self.n_examples > self.warmup else []
