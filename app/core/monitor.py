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
    steady: float = 0.0  # mean of the window when ADWIN last looked
    detector: Any = None

    def __post_init__(self) -> None:
        """Start a detector."""
        self.detector = ADWIN(delta=self.delta)

    def update(self, value: float, time_ms: int) -> Change | None:
        """Take one value in [0, 1] at event time ``time_ms``."""
        self.times_ms.append(time_ms)
        self.detector.update(value)
        self.n += 1
        if not self.detector.drift_detected:
            if self.n % self.detector.clock == 0:  # ADWIN itself looks only as often
                self.steady = self.detector.estimation
            return None
        back = min(max(int(self.detector.width), 1), len(self.times_ms))
        before, self.steady = self.steady, self.detector.estimation
        if abs(self.steady - before) < CHANGE_MIN * max(self.steady, before):
            return None
        return Change(self.kind, self.subject, before, self.steady, self.times_ms[-back], time_ms)


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
