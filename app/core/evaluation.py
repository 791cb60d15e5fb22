"""How good the scores were, in bounded memory: two histograms of scores, by class.

Prequential by nature: what is counted is the score that was given before the label was known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: Log-odds from -12 to 12 (6e-6 of either end), 4096 bins of 0.006: two scores in one bin are
#: taken for tied, which changes average precision in the fourth digit.
_REACH: Final = 12.0
_BINS: Final = 4_096


@dataclass
class Evaluation:
    """Counts of scores by bin of their log-odds: legitimate and fraud, shape (2, 4096).

    >>> evaluation = Evaluation()
    >>> evaluation.update(np.array([0.9, 0.2, 0.1]), np.array([True, False, False]))
    >>> evaluation.average_precision
    1.0
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, _BINS), np.int64))
    brier_sum: float = 0.0

    def update(self, scores: NDArray[np.float64], is_fraud: NDArray[np.bool_]) -> None:
        """Count scores, shape (n,), in [0, 1], and what they turned out to be."""
        clipped = np.clip(scores, 1e-9, 1.0 - 1e-9)
        odds = np.log(clipped / (1.0 - clipped))
        bins = np.clip((odds + _REACH) * (_BINS / (2.0 * _REACH)), 0, _BINS - 1).astype(np.int64)
        np.add.at(self.counts, (is_fraud.astype(np.int64), bins), 1)
        self.brier_sum += float(np.sum((scores - is_fraud) ** 2))

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
    def brier(self) -> float:
        """Mean squared distance of score and label, in [0, 1]; NaN before the first."""
        return self.brier_sum / self.n if self.n else float("nan")
