"""Precision and recall from what persons say, who see only what the policy shows them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from app.core.measures.rows import Rows

_SUMS, _SQUARES = range(2)


class Estimate(NamedTuple):
    """A figure and its standard error; both NaN where there is none."""

    value: float
    error: float


_NONE = Estimate(float("nan"), float("nan"))


@dataclass
class Shown:
    """Inverse-propensity sums by [was it sure to be shown, is it fraud], shape (2, 2, 2).

    Each transaction that a person judged stands for 1 / propensity of its like (Horvitz and
    Thompson, 1952). So those shown at random speak for all that was not flagged, and recall can be
    told without a label of anything else. That some labels never come does no harm as long as it
    befalls flagged and others alike: the estimates are ratios (Hájek, 1971).
    """

    cells: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 2, 2)))

    def update(self, rows: Rows) -> None:
        """Count what persons judged."""
        judged = np.flatnonzero(rows.shares)
        if not len(judged):
            return
        shares = rows.shares[judged]
        cell = rows.is_flagged[judged] * 2 + rows.is_fraud[judged]
        np.add.at(self.cells[_SUMS].reshape(-1), cell, shares)
        np.add.at(self.cells[_SQUARES].reshape(-1), cell, shares * np.abs(shares))

    def __iadd__(self, other: Shown) -> Self:
        """Add what another has counted."""
        self.cells += other.cells
        return self

    def precision(self) -> Estimate:
        """Share of frauds among what the policy flags, in [0, 1].

        The error is that of a ratio, linearised (Särndal, Swensson and Wretman, 1992, chapter 5);
        where everything flagged is judged it is the binomial one.
        """
        legitimate, frauds = self.cells[_SUMS, 1]
        squares = self.cells[_SQUARES, 1]
        return _ratio(frauds, legitimate, squares[1], squares[0])

    def recall(self) -> Estimate:
        """Share of all frauds that the policy flags, in [0, 1]; NaN where it never explored."""
        if not self.cells[_SUMS, 0].sum() > 0.0:
            return _NONE
        missed, flagged = self.cells[_SUMS, :, 1]
        squares = self.cells[_SQUARES, :, 1]
        return _ratio(flagged, missed, squares[1], squares[0])


def _ratio(hits: float, rest: float, hits_squared: float, rest_squared: float) -> Estimate:
    """Share of ``hits`` in both, and its error, from the sums of weights and of their squares."""
    total = hits + rest
    if not total > 0.0:
        return _NONE
    share = float(hits / total)
    variance = hits_squared * (1.0 - share) ** 2 + rest_squared * share**2
    return Estimate(share, math.sqrt(max(float(variance), 0.0)) / float(total))
