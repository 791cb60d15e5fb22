"""Where each feature's values lie among those of a reference: bins, and what a bin says.

Values are told by their rank in the reference (ridits: Bross, 1958), which no outlier moves and
no unit changes. Three aspects of a feature are watched, each a mean over rows of a number that the
bin of its value gives: where the values lie, how far from the middle, how many are missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

#: 16: a bin of the reference holds 6 % of it, so a hundred rows fill each.
EDGES: Final = 16
#: Bins of what is there; one more counts what is missing.
BINS: Final = EDGES + 1
ASPECTS: Final = ("level", "spread", "missing")


@dataclass(frozen=True)
class Grid:
    """Bins of d features, and what each bin says of each aspect.

    ``edges``, shape (d, 16), ascend, infinite where there are fewer; a bin begins at its edge.
    ``tables`` has shape (3, d, 18), 0 on average over the reference.

    >>> grid = Grid.of(np.arange(100.0).reshape(-1, 1))
    >>> level, spread, missing = grid.told(np.array([[99.0], [50.0], [np.nan]])).round(1)
    >>> level.ravel().tolist(), missing.ravel().tolist()
    ([0.5, 0.0, 0.0], [0.0, 0.0, 1.0])
    """

    edges: NDArray[np.float64]
    tables: NDArray[np.float64]
    counts: NDArray[np.float64]  # of the reference, shape (d, 18)

    @classmethod
    def of(cls, rows: NDArray[np.float64]) -> Grid:
        """Bins that rows, shape (n, d), fill about evenly."""
        d = rows.shape[1]
        edges = np.full((d, EDGES), np.inf)
        for j in range(d):
            found = _edges(rows[:, j])
            edges[j, : len(found)] = found
        bare = cls(edges, np.zeros((len(ASPECTS), d, BINS + 1)), np.zeros((d, BINS + 1)))
        counts = bare.histogram(rows)
        return cls(edges, _tables(counts), counts)

    def codes(self, rows: NDArray[np.float64]) -> NDArray[np.int64]:
        """Bins of rows, shape (n, d), each in 0..17; 17 is missing."""
        codes = np.empty(rows.shape, np.int64)
        for j, edges in enumerate(self.edges):
            codes[:, j] = np.searchsorted(edges, rows[:, j], side="right")
        codes[np.isnan(rows)] = BINS
        return codes

    def told(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """What rows, shape (n, d), say of each aspect: shape (3, n, d)."""
        codes = self.codes(rows)
        return np.asarray(self.tables[:, np.arange(codes.shape[1]), codes])

    def histogram(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Counts by feature and bin, shape (d, 18); adds up over parts of the rows."""
        codes, d = self.codes(rows), len(self.edges)
        flat = codes + np.arange(d) * (BINS + 1)
        counts = np.bincount(flat.ravel(), minlength=d * (BINS + 1))
        return counts.reshape(d, BINS + 1).astype(np.float64)

    def middles(self, feature: int, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean value of each bin of one feature over rows, its edge where none is in it."""
        codes, values = self.codes(rows)[:, feature], rows[:, feature]
        there = codes < BINS
        n = np.bincount(codes[there], minlength=BINS)
        sums = np.bincount(codes[there], weights=values[there], minlength=BINS)
        edges = self.edges[feature]
        known = edges[np.isfinite(edges)]
        last = known[-1] if len(known) else 0.0
        starts = np.append(known[:1] if len(known) else [0.0], np.minimum(edges, last))
        # A bin that rows left empty must not stand before the one below it.
        return np.maximum.accumulate(np.where(n > 0, sums / np.maximum(n, 1), starts))


def _edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Up to 16 edges at the quantiles of values; a value that many share has a bin of its own."""
    there = values[~np.isnan(values)]
    if not len(there):
        return np.zeros(0)
    at = np.quantile(there, np.arange(1, EDGES) / EDGES, method="lower")
    found, times = np.unique(at, return_counts=True)
    return np.unique(np.concatenate([found, list(_after(found, times, there))]))[:EDGES]


def _after(
    found: NDArray[np.float64], times: NDArray[np.int64], there: NDArray[np.float64]
) -> Iterator[float]:
    """The next greater value after each that fills more than one bin."""
    for value in found[times > 1]:
        above = there[there > value]
        if len(above):
            yield float(above.min())


def _tables(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each bin says: centred mid-ranks, their squares, whether it is the missing one."""
    tables = np.zeros((len(ASPECTS), *counts.shape))
    known = counts[:, :-1]
    n = np.maximum(known.sum(axis=1, keepdims=True), 1.0)
    ranks = (np.cumsum(known, axis=1) - known / 2.0) / n - 0.5
    squares = ranks**2
    tables[0, :, :-1] = ranks
    tables[1, :, :-1] = squares - (squares * known).sum(axis=1, keepdims=True) / n
    tables[2, :, -1] = 1.0
    return tables
