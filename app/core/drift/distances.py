"""How far apart two histograms of one feature lie, and where bins should lie at all.

All take counts of shape (..., K), the same bins in the same places, and give shape (...).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Half a count in each bin: an empty one would make PSI infinite.
_HALF: Final = 0.5


def shares(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts as shares, with half a count more in every bin."""
    smoothed = counts + _HALF
    return np.asarray(smoothed / smoothed.sum(axis=-1, keepdims=True))


def psi(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """Population stability index, >= 0; by custom .1 is some change and .25 is much.

    >>> psi(np.array([50.0, 50.0]), np.array([50.0, 50.0])).round(3).item()
    0.0
    >>> psi(np.array([90.0, 10.0]), np.array([50.0, 50.0])).round(2).item()
    0.85
    """
    p, q = shares(before), shares(after)
    return np.asarray(((q - p) * np.log(q / p)).sum(axis=-1))


def jensen_shannon(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """Jensen-Shannon distance in [0, 1]: the root of the divergence, in bits (Endres, 2003).

    >>> jensen_shannon(np.array([1e6, 0.0]), np.array([0.0, 1e6])).round(3).item()
    1.0
    """
    p, q = shares(before), shares(after)
    middle = (p + q) / 2.0
    halves = (p * np.log2(p / middle) + q * np.log2(q / middle)) / 2.0
    return np.asarray(np.sqrt(np.maximum(halves.sum(axis=-1), 0.0)))


def kolmogorov_smirnov(
    before: NDArray[np.float64], after: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Kolmogorov and Smirnov's statistic in [0, 1]: the most that the cumulated shares differ.

    >>> kolmogorov_smirnov(np.array([90.0, 10.0]), np.array([50.0, 50.0])).round(1).item()
    0.4
    """
    p, q = shares(before), shares(after)
    return np.asarray(np.abs(np.cumsum(p - q, axis=-1)).max(axis=-1))


def wasserstein(
    before: NDArray[np.float64], after: NDArray[np.float64], middles: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Earth mover's distance, in the unit of the bins' ``middles``, shape (..., K), ascending.

    >>> left, right = np.array([1e6, 0.0]), np.array([0.0, 1e6])
    >>> wasserstein(left, right, np.array([1.0, 4.0])).round(2).item()
    3.0
    """
    p, q = shares(before), shares(after)
    moved = np.abs(np.cumsum(p - q, axis=-1))[..., :-1]
    return np.asarray((moved * np.diff(middles, axis=-1)).sum(axis=-1))
