"""How good scores are before a label says so, if they are the probabilities they claim to be.

Confidence-based estimation: a score of .3 stands for three frauds in ten, so a histogram of
calibrated scores is enough for what average precision is to be expected. It knows of a change of
the mix, not of what the scores say wrongly: a new pattern of fraud that the model does not see
leaves the estimate as it was, and performance drift tells it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core.scoremap import BINS, REACH

#: What a score in the middle of each bin claims.
_CLAIMS: Final = 1.0 / (1.0 + np.exp(-((np.arange(BINS) + 0.5) * (2.0 * REACH / BINS) - REACH)))


@dataclass
class Estimate:
    """Counts of scores by bin, of the last day or so.

    >>> estimate = Estimate()
    >>> estimate.update(np.full(1_000, 4_095)), estimate.average_precision > 0.99
    (None, True)
    """

    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))

    def update(self, bins: NDArray[np.int64], keep: float = 1.0) -> None:
        """Count scores by their bins; those before count ``keep`` of what they did."""
        self.counts = self.counts * keep + np.bincount(bins, minlength=BINS)

    @property
    def average_precision(self) -> float:
        """What is to be expected, in [0, 1]; NaN before any score.

        Scores of one bin rank as one.
        """
        n, claims = self.counts[::-1], _CLAIMS[::-1]
        frauds = n * claims
        if not n.sum():
            return float("nan")
        precision = np.cumsum(frauds) / np.maximum(np.cumsum(n), 1e-9)
        return float((frauds * precision).sum() / frauds.sum())
