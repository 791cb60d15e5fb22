"""What a batch adds to the counts, as columns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DAY_MS = 86_400_000


class Rows(NamedTuple):
    """n rows of what is counted, one column each, shape (n,).

    A row whose weight is negative takes away what was counted before a label was corrected.
    """

    scores: NDArray[np.float64]
    bins: NDArray[np.int64]  # of their log-odds (``core.scoremap``)
    is_fraud: NDArray[np.bool_]
    is_alert: NDArray[np.bool_]
    amounts: NDArray[np.float64]
    weights: NDArray[np.float64]  # transactions that a row stands for
    days: NDArray[np.int64]  # of the transactions, UTC, since 1970
    delays_ms: NDArray[np.int64]  # from a transaction to its label; -1: nobody's label
    is_flagged: NDArray[np.bool_]  # the policy was sure to show it
    shares: NDArray[np.float64]  # 1 / propensity where a person looked at it, else 0
    groups: NDArray[np.int64]  # codes of the values of the segments, shape (n, n_segments)

    def at(self, where: Any) -> Rows:
        """Some of the rows: a slice, a mask or places."""
        return Rows(*(column[where] for column in self))
