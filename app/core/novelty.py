"""A scorer that needs no labels: how unlike the rest a transaction is.

It decides before there are frauds to learn from, and hands over to the model as they come. It
knows mean and deviation of every feature, merged from the summaries of scores that travel on
the examples log; so it, too, is a function of that log.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

#: Log-odds of 1 %: what a fraud team expects before it knows anything.
PRIOR_MARGIN = -4.6
#: The score of what nothing is known of.
PRIOR = 1.0 / (1.0 + math.exp(-PRIOR_MARGIN))
#: Five deviations: beyond, unlike is unlike.
_SQUARE_MAX = 25.0
#: Squared deviations of four on average, which few legitimate rows have, come to even odds.
_WEIGHT = 1.5


@dataclass
class Novelty:
    """Mean and deviation of each of d features, and how far a row lies from them.

    >>> novelty = Novelty.of(1)
    >>> novelty.merge(100, np.array([50.0]), np.array([900.0]))
    >>> novelty.score_many(np.array([[50.0], [500.0]])).round(3).tolist()
    [0.002, 1.0]
    """

    n: int = 0
    means: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, d: int) -> Novelty:
        """Nothing known of d features."""
        return cls(0, np.zeros(d), np.zeros(d))

    def merge(self, n: int, means: NDArray[np.float64], squares: NDArray[np.float64]) -> None:
        """Take n more rows by their means and sums of squared deviations, shape (d,).

        Chan, Golub and LeVeque (1979). A feature that was never there is NaN, and left out.
        """
        if not n:
            return
        there = ~np.isnan(means)
        both = self.n + n
        apart = np.where(there, means - self.means, 0.0)
        self.squares += np.where(there, squares, 0.0) + apart**2 * (self.n * n / both)
        self.means += apart * (n / both)
        self.n = both

    def score_many(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores in [0, 1], shape (n,), higher is less like the rest; 1 % before any merge."""
        return np.asarray(1.0 / (1.0 + np.exp(-self.contributions(rows).sum(axis=1))))

    def contributions(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each feature adds to the log-odds, shape (n, d + 1); the last is the prior."""
        n, d = rows.shape
        told = np.zeros((n, d + 1))
        told[:, -1] = PRIOR_MARGIN
        if self.n > 1:
            variance = self.squares / self.n
            steady = variance <= 0.0
            z2 = (rows - self.means) ** 2 / np.where(steady, 1.0, variance)
            z2 = np.where(steady | np.isnan(z2), 1.0, np.minimum(z2, _SQUARE_MAX))
            told[:, :-1] = (z2 - 1.0) * (_WEIGHT / d)
        return told
