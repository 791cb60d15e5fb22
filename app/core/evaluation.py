"""How good the scores were, in bounded memory: two histograms of scores, by class.

Prequential by nature: what is counted is the score that was given before the label was known.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app.core.scoremap import BINS, REACH, bins_of

#: As many groups as a person can look at, each of 64 bins.
_GROUPS = 64


@dataclass
class Evaluation:
    """Counts of scores by bin of their log-odds: legitimate and fraud, shape (2, 4096).

    Two scores in one bin are taken for tied, which changes average precision in the fourth digit.

    >>> evaluation = Evaluation()
    >>> evaluation.update(np.array([0.9, 0.2, 0.1]), np.array([True, False, False]))
    >>> evaluation.average_precision
    1.0
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, BINS), np.int64))
    brier_sum: float = 0.0

    def update(self, scores: NDArray[np.float64], is_fraud: NDArray[np.bool_]) -> None:
        """Count scores, shape (n,), in [0, 1], and what they turned out to be."""
        np.add.at(self.counts, (is_fraud.astype(np.int64), bins_of(scores)), 1)
        # One after another: a sum in pairs would depend on where a batch ends.
        squares = (scores - is_fraud) ** 2
        self.brier_sum = float(np.cumsum(np.concatenate(([self.brier_sum], squares)))[-1])

    @property
    def n(self) -> int:
        """How many labelled scores were counted."""
        return int(self.counts.sum())

    @property
    def average_precision(self) -> float:
        """Area under the precision-recall curve, step-wise, in [0, 1]; NaN before any fraud."""
        frauds = np.cumsum(self.counts[1, ::-1])
        alerts = frauds + np.cumsum(self.counts[0, ::-1])
        if not frauds[-1]:
            return float("nan")
        precision = frauds / np.maximum(alerts, 1)
        return float(np.sum(np.diff(frauds, prepend=0) * precision) / frauds[-1])

    @property
    def roc_auc(self) -> float:
        """Area under the ROC curve, ties count one half; NaN before both classes were seen."""
        legitimate, frauds = self.counts
        below = np.cumsum(legitimate) - legitimate
        pairs = float(legitimate.sum()) * float(frauds.sum())
        if not pairs:
            return float("nan")
        return float(np.sum(frauds * (below + legitimate / 2.0)) / pairs)

    @property
    def calibration_error(self) -> float:
        """Mean distance of score and share of frauds, in [0, 1], over groups of like scores.

        The expected calibration error: 64 groups of 0.375 in log-odds, each weighted by how many
        scores lie in it, each score taken for the middle of its bin. NaN before the first.
        """
        if not self.n:
            return float("nan")
        middles = 1.0 / (1.0 + np.exp(-((np.arange(BINS) + 0.5) * (2.0 * REACH / BINS) - REACH)))
        groups = self.counts.reshape(2, _GROUPS, -1).sum(axis=2)
        told = (self.counts.sum(axis=0) * middles).reshape(_GROUPS, -1).sum(axis=1)
        return float(np.abs(told - groups[1]).sum() / self.n)

    @property
    def brier(self) -> float:
        """Mean squared distance of score and label, in [0, 1]; NaN before the first."""
        return self.brier_sum / self.n if self.n else float("nan")
