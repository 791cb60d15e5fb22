"""What a policy's alerts were worth: counts and amounts by label and by alert."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from app.core.measures.rows import Rows

#: Layers of the cells: transactions, their squared weights, amounts, scores.
_N, _SQUARES, _AMOUNTS, _SCORES = range(4)
LAYERS = 4


class Sample(NamedTuple):
    """A count of ``hits`` among ``n``, as large as what was seen of them is worth."""

    hits: float
    n: float


def additions(rows: Rows, group: NDArray[np.int64] | int = 0) -> tuple[NDArray[np.int64], ...]:
    """Places in cells of shape (groups, 4, 2, 2), flat, and what is added there.

    Row after row, so that the sums do not depend on where a batch ends.
    """
    cell = group * (4 * LAYERS) + rows.is_fraud * 2 + rows.is_alert
    at = np.concatenate([cell, cell + 4, cell + 8, cell + 12])
    w = rows.weights
    return at, np.concatenate([w, w * np.abs(w), w * rows.amounts, w * rows.scores])


@dataclass
class Decisions:
    """Transactions and amounts by [is it fraud, was it an alert], shape (4, 2, 2).

    Where only a share of the legitimate is learnt, each stands for as many as its weight says.
    Shares are in [0, 1]; what has no figure yet is NaN.
    """

    cells: NDArray[np.float64] = field(default_factory=lambda: np.zeros((LAYERS, 2, 2)))

    def update(self, rows: Rows) -> None:
        """Count labelled transactions, and what was decided about each."""
        np.add.at(self.cells.reshape(-1), *additions(rows))

    def __iadd__(self, other: Decisions) -> Self:
        """Add what another has counted."""
        self.cells += other.cells
        return self

    @property
    def n(self) -> float:
        """Transactions."""
        return float(self.cells[_N].sum())

    @property
    def frauds(self) -> float:
        """Frauds among them."""
        return float(self.cells[_N, 1].sum())

    @property
    def alerts(self) -> float:
        """Alerts among them."""
        return float(self.cells[_N, :, 1].sum())

    @property
    def caught(self) -> float:
        """Frauds that were alerts."""
        return float(self.cells[_N, 1, 1])

    @property
    def precision(self) -> float:
        """Share of frauds among the alerts."""
        return ratio(self.caught, self.alerts)

    @property
    def recall(self) -> float:
        """Share of the frauds that were alerts."""
        return ratio(self.caught, self.frauds)

    @property
    def alert_rate(self) -> float:
        """Share of alerts among all."""
        return ratio(self.alerts, self.n)

    @property
    def false_positive_rate(self) -> float:
        """Share of alerts among the legitimate."""
        return ratio(self.alerts - self.caught, self.n - self.frauds)

    @property
    def false_positive_ratio(self) -> float:
        """False alerts for each fraud that was caught, >= 0."""
        return ratio(self.alerts - self.caught, self.caught)

    @property
    def mean_score(self) -> float:
        """Mean of the scores."""
        return ratio(float(self.cells[_SCORES].sum()), self.n)

    @property
    def value_detected(self) -> float:
        """Share of the amount of the frauds that was on alert."""
        return ratio(float(self.cells[_AMOUNTS, 1, 1]), float(self.cells[_AMOUNTS, 1].sum()))

    def saved(self, review_cost: float, recovery: float) -> float:
        """What the alerts saved, in the unit of the amount; less than 0 if they cost more.

        Each review costs ``review_cost``; of a fraud that was on alert ``recovery`` is saved.
        """
        return recovery * float(self.cells[_AMOUNTS, 1, 1]) - review_cost * self.alerts

    def savings(self, review_cost: float, recovery: float) -> float:
        """The same as a share of what is lost where nobody looks, at most 1.

        Bahnsen, Aouada and Ottersten, 2015: Example-dependent cost-sensitive decision trees.
        """
        return ratio(self.saved(review_cost, recovery), float(self.cells[_AMOUNTS, 1].sum()))

    def alert_sample(self) -> Sample:
        """Alerts among all."""
        return _sample(self.cells[_N].sum(axis=0), self.cells[_SQUARES].sum())

    def false_alert_sample(self) -> Sample:
        """Alerts among the legitimate."""
        return _sample(self.cells[_N, 0], self.cells[_SQUARES, 0].sum())


def ratio(part: float, whole: float) -> float:
    """``part / whole``; NaN where there is no whole."""
    return part / whole if whole > 0.0 else float("nan")


def _sample(cells: NDArray[np.float64], squares: float) -> Sample:
    """Weighted counts at their effective size (Kish, 1965); the counts themselves if all are 1."""
    total = float(cells.sum())
    n = ratio(total * total, float(squares))
    return Sample(n * ratio(float(cells[1]), total), n) if total > 0.0 else Sample(0.0, 0.0)
