"""Categories as the share of frauds among what is known of each, learnt online.

A category stands in its column as a number that names it, and becomes, for whoever scores or
learns, the smoothed share of frauds among the labelled examples of that category (Micci-Barreca,
2001). The table that is read stands still between two calls of ``refresh``, so that no example
sees its own label and a batch sees one table.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class Encoding:
    """Tables of categories, one for each of some columns; ``buckets`` codes each.

    A category is drawn to the overall share of frauds by ``prior`` examples.

    >>> encoding = Encoding(columns=(0,), buckets=(4,), prior=0.0)
    >>> rows = np.array([[1.0], [1.0], [2.0], [2.0]])
    >>> encoding.update(rows, np.array([True, False, False, False]), np.ones(4))
    >>> encoding.refresh()
    >>> encoding.apply(np.array([[1.0], [2.0], [3.0], [np.nan]])).ravel().tolist()
    [0.5, 0.0, 0.25, nan]
    """

    columns: tuple[int, ...] = ()
    buckets: tuple[int, ...] = ()
    prior: float = 100.0
    counts: list[NDArray[np.float64]] = field(default_factory=list)  # (2, buckets): all, frauds
    table: list[NDArray[np.float64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start with nothing known."""
        if not self.counts:
            self.counts = [np.zeros((2, n)) for n in self.buckets]
            self.table = [np.zeros(n) for n in self.buckets]

    def update(
        self,
        rows: NDArray[np.float64],
        is_fraud: NDArray[np.bool_],
        weights: NDArray[np.float64],
    ) -> None:
        """Count labelled rows, shape (n, d), as they came: with codes in their columns."""
        for column, counts in zip(self.columns, self.counts, strict=True):
            there = ~np.isnan(rows[:, column])
            codes = rows[there, column].astype(np.int64)
            np.add.at(counts[0], codes, weights[there])
            np.add.at(counts[1], codes, weights[there] * is_fraud[there])

    def refresh(self) -> None:
        """Let the tables follow what was counted."""
        for place, (n, frauds) in enumerate(self.counts):
            base = frauds.sum() / n.sum() if n.sum() else 0.0
            drawn = n + self.prior
            rates = (frauds + self.prior * base) / np.where(drawn > 0.0, drawn, 1.0)
            self.table[place] = np.where(drawn > 0.0, rates, base)

    def apply(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows, shape (n, d), with shares of frauds for codes; missing stays NaN."""
        if not self.columns:
            return rows
        encoded = rows.copy()
        for column, table in zip(self.columns, self.table, strict=True):
            there = ~np.isnan(rows[:, column])
            encoded[there, column] = table[rows[there, column].astype(np.int64)]
        return encoded

    def without(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows without these columns' values, NaN: for a scorer that reads numbers alone."""
        if not self.columns:
            return rows
        bare = rows.copy()
        bare[:, list(self.columns)] = np.nan
        return bare
