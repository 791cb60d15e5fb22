"""How well scores tell frauds from the rest, and how honest they are: two histograms, by class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from app.core.scoremap import BINS, REACH, bins_of

#: As many groups as a person can look at, each of 64 bins.
_GROUPS = 64


class Curve(NamedTuple):
    """Points of a curve, each of shape (m,)."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]


def average_precision(counts: NDArray[np.float64]) -> float:
    """Area under the precision-recall curve, step-wise, in [0, 1]; NaN before any fraud.

    ``counts`` of legitimate and fraud by ascending score, shape (2, m).

    >>> average_precision(np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 1.0]]))
    0.8333333333333333
    """
    frauds = np.cumsum(counts[1, ::-1])
    if not frauds[-1] > 0.0:
        return float("nan")
    alerts = frauds + np.cumsum(counts[0, ::-1])
    precision = frauds / np.where(alerts > 0.0, alerts, 1.0)
    return float(np.sum(np.diff(frauds, prepend=0.0) * precision) / frauds[-1])


@dataclass
class Ranking:
    """Transactions by the bin of their score's log-odds: legitimate and fraud, shape (2, 4096).

    Two scores in one bin are taken for tied, which changes average precision in the fourth digit.

    >>> ranking = Ranking()
    >>> ranking.update(np.array([0.9, 0.2, 0.1]), np.array([True, False, False]))
    >>> ranking.average_precision
    1.0
    """

    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, BINS)))
    brier_sum: float = 0.0

    def update(
        self,
        scores: NDArray[np.float64],
        is_fraud: NDArray[np.bool_],
        weights: NDArray[np.float64] | None = None,
        bins: NDArray[np.int64] | None = None,
    ) -> None:
        """Count scores, shape (n,), in [0, 1], and what they turned out to be.

        ``weights``: how many transactions each stands for, less than 0 to take away; default 1.
        ``bins`` are those of the scores, if they are known.
        """
        told = np.ones(len(scores)) if weights is None else weights
        bins = bins_of(scores) if bins is None else bins
        # add.at and cumsum go one after another: a sum in pairs depends on where a batch ends.
        np.add.at(self.counts.reshape(-1), is_fraud * BINS + bins, told)
        squares = told * (scores - is_fraud) ** 2
        self.brier_sum = float(np.cumsum(np.concatenate(([self.brier_sum], squares)))[-1])

    def __iadd__(self, other: Ranking) -> Self:
        """Add what another has counted."""
        self.counts += other.counts
        self.brier_sum += other.brier_sum
        return self

    @property
    def n(self) -> int:
        """How many transactions were counted."""
        return round(float(self.counts.sum()))

    @property
    def average_precision(self) -> float:
        """Area under the precision-recall curve, step-wise, in [0, 1]; NaN before any fraud."""
        return average_precision(self.counts)

    @property
    def roc_auc(self) -> float:
        """Area under the ROC curve, ties count one half; NaN before both classes were seen."""
        legitimate, frauds = self.counts
        below = np.cumsum(legitimate) - legitimate
        pairs = float(legitimate.sum()) * float(frauds.sum())
        if not pairs > 0.0:
            return float("nan")
        return float(np.sum(frauds * (below + legitimate / 2.0)) / pairs)

    @property
    def calibration_error(self) -> float:
        """Mean distance of score and share of frauds, in [0, 1], over groups of like scores.

        The expected calibration error: 64 groups of 0.375 in log-odds, each weighted by how many
        scores lie in it, each score taken for the middle of its bin. NaN before the first.
        """
        told, frauds, n = self._groups()
        total = float(n.sum())
        return float(np.abs(told - frauds).sum() / total) if total > 0.0 else float("nan")

    @property
    def brier(self) -> float:
        """Mean squared distance of score and label, in [0, 1]; NaN before the first."""
        total = float(self.counts.sum())
        return self.brier_sum / total if total > 0.0 else float("nan")

    def precision_recall(self) -> Curve:
        """Recall (x, ascending) and precision (y) at each score that was given, from the top."""
        frauds = np.cumsum(self.counts[1, ::-1])
        alerts = frauds + np.cumsum(self.counts[0, ::-1])
        given = self.counts.sum(axis=0)[::-1] > 0.0
        if not frauds[-1] > 0.0:
            return Curve(np.empty(0), np.empty(0))
        return Curve(frauds[given] / frauds[-1], frauds[given] / alerts[given])

    def reliability(self, least: float = 1.0) -> Curve:
        """Mean score (x) and share of frauds (y) of the groups of ``calibration_error``.

        Groups of fewer than ``least`` are left out.
        """
        told, shares, _ = self.alike(least)
        return Curve(told, shares)

    def alike(self, least: float = 1.0) -> tuple[NDArray[np.float64], ...]:
        """Mean score, share of frauds and number of each group, shape (m,), m <= 64.

        Groups of fewer than ``least`` are left out.
        """
        told, frauds, n = self._groups()
        some = n >= least
        return told[some] / n[some], frauds[some] / n[some], n[some]

    def _groups(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        middles = 1.0 / (1.0 + np.exp(-((np.arange(BINS) + 0.5) * (2.0 * REACH / BINS) - REACH)))
        n = self.counts.sum(axis=0)
        told = (n * middles).reshape(_GROUPS, -1).sum(axis=1)
        frauds = self.counts[1].reshape(_GROUPS, -1).sum(axis=1)
        return told, frauds, n.reshape(_GROUPS, -1).sum(axis=1)

    def __getstate__(self) -> dict[str, Any]:
        """State with the bins that hold something: most of a day's do not."""
        flat = self.counts.reshape(-1)
        some = np.flatnonzero(flat).astype(np.uint16)  # 2 * 4096 places
        return {"places": some, "values": flat[some], "brier_sum": self.brier_sum}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go on exactly where the state was taken."""
        self.counts, self.brier_sum = np.zeros((2, BINS)), state["brier_sum"]
        self.counts.reshape(-1)[state["places"]] = state["values"]
