"""How high is too high: a line that noise crosses as often as the operator can bear.

Every day the highest of all channels' sums is noted: one number, so that channels which move
together count once (the maximum of Westfall and Young, 1993, over all features, where a line for
each feature apart would have to guess how they hang together). The days' numbers are maxima, and
maxima follow Gumbel's law (1958); the line is where that law, fitted to the stream's own days, is
crossed on ``false_alarms_per_week / 7`` of them.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np

#: Euler's constant: the mean of Gumbel's law, in its scale.
_EULER: Final = 0.5772156649
#: A year and a month: old days are as good as new ones, but not for ever.
_DAYS_MAX: Final = 400
#: Two weeks of days as independent noise would make them, before the stream's own are believed.
_PRIOR_DAYS: Final = 14
#: Of CUSUM sums of noise with slack one half: the chance to pass h falls by e each unit, and is
#: e^-1.17 / 2 a block and side at 0 (Siegmund, 1985). 20 blocks a day.
_PRIOR_SCALE: Final = 1.0
_PRIOR_PER_CHANNEL: Final = 20.0 * 2.0 * 0.5 * math.exp(-1.17)
#: A real change must not raise the line for a year.
_WORST: Final = 1.5
#: Half of the budget is spent: days hang together, and a law fitted to some weeks may be wrong.
_KEPT: Final = 0.5


@dataclass
class Budget:
    """The line above which something is said.

    >>> budget = Budget(per_week=0.5, channels=100)
    >>> before = budget.line
    >>> for height in [9.0, 10.0, 11.0] * 20:
    ...     budget.note(height)
    >>> before < budget.line
    True
    """

    per_week: float
    channels: int
    days: deque[float] = field(default_factory=lambda: deque(maxlen=_DAYS_MAX))

    def __post_init__(self) -> None:
        """Draw the line for noise."""
        self._fit()

    def note(self, highest: float) -> None:
        """Take the highest sum of a day; a change of the world counts as a bad day, no more."""
        self.days.append(min(highest, _WORST * self.line))
        self._fit()

    def _fit(self) -> None:
        """Gumbel's law by probability-weighted moments (Greenwood et al., 1979)."""
        place = math.log(max(self.channels, 1) * _PRIOR_PER_CHANNEL)
        at = (np.arange(_PRIOR_DAYS) + 0.5) / _PRIOR_DAYS
        prior = place - _PRIOR_SCALE * np.log(-np.log(at))
        values = np.sort(np.concatenate([prior, np.array(self.days)]))
        n = len(values)
        weighted = float((np.arange(n) / (n - 1) * values).mean())
        scale = (2.0 * weighted - float(values.mean())) / math.log(2.0)
        mode = float(values.mean()) - _EULER * scale
        chance = min(_KEPT * self.per_week / 7.0, 0.9)
        self.line = mode - scale * math.log(-math.log1p(-chance))
