"""The learner's map of scores: how many lie above each, lately, in bounded memory.

Models move as they learn, and a fixed threshold then lets through now too many alerts, now too
few. The map forgets with a half-life of event time, so the score above which a budget's worth
of alerts lies follows the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: Log-odds from -12 to 12 in 4096 bins of 0.006, as in ``evaluation``.
REACH: Final = 12.0
BINS: Final = 4_096

_DAY_MS: Final = 86_400_000.0


def log_odds(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-odds of scores in [0, 1], shape (n,); those of 0 and 1 are finite, +-20.7."""
    clipped = np.clip(scores, 1e-9, 1.0 - 1e-9)
    return np.asarray(np.log(clipped / (1.0 - clipped)))


def bins_of(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bins of the log-odds of scores in [0, 1], shape (n,), each in 0..4095."""
    places = (log_odds(scores) + REACH) * (BINS / (2.0 * REACH))
    return np.clip(places, 0, BINS - 1).astype(np.int64)


@dataclass
class ScoreMap:
    """Counts of scores by bin, faded by ``half_life_ms`` of event time.

    >>> scores = ScoreMap()
    >>> scores.update(bins_of(np.linspace(0.0, 1.0, 1_001)), 0)
    >>> scores.update(bins_of(np.linspace(0.0, 1.0, 1_001)), 86_400_000)
    >>> 0.88 < scores.line(alerts_per_day=200) < 0.92
    True
    """

    half_life_ms: float = 3 * _DAY_MS
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    days: float = 0.0  # faded in the same way: what ``counts`` are spread over
    time_ms: int = -1

    def update(self, bins: NDArray[np.int64], time_ms: int) -> None:
        """Count scores, by their bins, seen up to event time ``time_ms``."""
        passed = max(time_ms - self.time_ms, 0) if self.time_ms >= 0 else 0
        # Of a day without any score less is known, not that there are few.
        keep = 0.5 ** (min(passed, _DAY_MS) / self.half_life_ms)
        self.counts *= keep
        # What the days themselves come to that fade like this: at most 1.44 half-lives.
        lasting = self.half_life_ms / (_DAY_MS * math.log(2.0))
        self.days = self.days * keep + lasting * (1.0 - keep)
        self.counts += np.bincount(bins, minlength=BINS)
        self.time_ms = max(self.time_ms, time_ms)

    def above(self, score: float) -> float:
        """Share of the scores lately seen that are higher, [0, 1]; half of its own bin counts."""
        at = int(bins_of(np.array([score]))[0])
        higher = self.counts[at + 1 :].sum() + self.counts[at] / 2.0
        return float(higher / max(self.counts.sum(), 1e-9))

    def line(self, alerts_per_day: float) -> float | None:
        """The lowest score above which no more than ``alerts_per_day`` lie a day.

        None before a tenth of a day was seen: a rate has no meaning yet.
        """
        if self.days < 0.1:  # noqa: PLR2004 - see above
            return None
        above = np.cumsum(self.counts[::-1])[::-1]
        within = np.flatnonzero(above <= alerts_per_day * self.days)
        lowest = int(within[0]) if len(within) else BINS
        odds = lowest * (2.0 * REACH / BINS) - REACH
        return float(1.0 / (1.0 + np.exp(-odds)))
