"""Scores that are probabilities: two numbers, learnt from what scores turned out to be.

Platt (1999), online: ``logit p = slope * logit score + shift``. The line is fitted to counts of
(score, label) that fade, so it follows a model that moves. A line with a positive slope changes
no order: what ranked above still does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core.scoremap import log_odds

#: Log-odds from -12 to 12 in 257 bins of 0.09: a line does not need finer ones.
_REACH: Final = 12.0
_BINS: Final = 257
_MIDDLES: Final = (np.arange(_BINS) + 0.5) * (2.0 * _REACH / _BINS) - _REACH
#: 50 of a class hold their mean to a seventh: with fewer there is nothing to mend.
_FEWEST: Final = 50
#: As if 20 examples had said that the score is right as it is.
_PRIOR: Final = 20.0
_STEPS_MAX: Final = 25


@dataclass
class Calibration:
    """What a model's score is worth as a probability.

    Examples count half after ``half_life`` more of them. The line is fitted anew whenever
    ``fit`` is called; between two calls it stands still.

    >>> calibration = Calibration()
    >>> scores, is_fraud = np.full(4_000, 0.5), np.arange(4_000) % 4 == 0
    >>> calibration.update(scores, is_fraud, np.ones(4_000))
    >>> calibration.fit()
    >>> calibration.apply(np.array([0.5])).round(2).tolist()
    [0.25]
    """

    half_life: float = 50_000.0
    slope: float = 1.0
    shift: float = 0.0
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, _BINS)))
    n_unfitted: int = 0

    def update(
        self,
        raw: NDArray[np.float64],
        is_fraud: NDArray[np.bool_],
        weights: NDArray[np.float64],
    ) -> None:
        """Count what a model said and what it turned out to be, each shape (n,)."""
        bins = np.clip((log_odds(raw) + _REACH) * (_BINS / (2.0 * _REACH)), 0, _BINS - 1)
        at = (is_fraud.astype(np.int64), bins.astype(np.int64))
        np.add.at(self.counts, at, weights)
        self.n_unfitted += len(raw)

    def fit(self) -> None:
        """Let the line follow what was counted, then let the counts fade."""
        legitimate, frauds = self.counts
        if min(legitimate.sum(), frauds.sum()) >= _FEWEST:
            self.slope, self.shift = _line(legitimate, frauds, self.slope, self.shift)
        self.counts *= 0.5 ** (self.n_unfitted / self.half_life)
        self.n_unfitted = 0

    def apply(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities in [0, 1] of a model's scores, shape (n,)."""
        if self.slope == 1.0 and self.shift == 0.0:
            return raw
        return np.asarray(1.0 / (1.0 + np.exp(-(self.slope * log_odds(raw) + self.shift))))

    def contributions(self, told: NDArray[np.float64]) -> NDArray[np.float64]:
        """Contributions to the margin before, shape (n, d + 1), as those to the margin after."""
        shares = told * self.slope
        shares[:, -1] += self.shift
        return shares


def _line(
    legitimate: NDArray[np.float64], frauds: NDArray[np.float64], slope: float, shift: float
) -> tuple[float, float]:
    """Slope and shift of the likeliest line: Newton's steps, from the last line, on the bins."""
    n = legitimate + frauds
    line = np.array([slope, shift])
    design = np.stack([_MIDDLES, np.ones(_BINS)])
    prior, wanted = np.array([_PRIOR, _PRIOR / 4.0]), np.array([1.0, 0.0])
    for _ in range(_STEPS_MAX):
        p = 1.0 / (1.0 + np.exp(-(line @ design)))
        gradient = design @ (n * p - frauds) + prior * (line - wanted)
        hessian = (design * (n * p * (1.0 - p))) @ design.T + np.diag(prior)
        step = np.linalg.solve(hessian, gradient)
        line = line - np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-9:  # noqa: PLR2004 - far below what a score shows
            break
    # A line that turned the order round would be an answer to noise.
    return (float(line[0]), float(line[1])) if line[0] > 0.0 else (slope, shift)
