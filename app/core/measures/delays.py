"""How late labels come: the label-maturity curve."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from numpy.typing import NDArray

from app.core.measures.rows import DAY_MS

if TYPE_CHECKING:
    from app.core.measures.rows import Rows

#: Days after which one asks how much is known: a night, a week, a month, a quarter.
AGES: Final = (1, 2, 3, 5, 7, 14, 30, 60, 90)
_EDGES_MS: Final = np.array(AGES, np.int64) * DAY_MS


@dataclass
class Delays:
    """Labels by their age when they came: legitimate and fraud, shape (2, 10).

    Labels that somebody gave, each as it came: one that was corrected later has been known.
    """

    counts: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((2, len(AGES) + 1), np.int64)
    )

    def update(self, rows: Rows) -> None:
        """Count labels that came."""
        came = (rows.delays_ms >= 0) & (rows.weights > 0.0)
        at = np.searchsorted(_EDGES_MS, rows.delays_ms[came], side="left")
        np.add.at(self.counts.reshape(-1), rows.is_fraud[came] * (len(AGES) + 1) + at, 1)

    def __iadd__(self, other: Delays) -> Self:
        """Add what another has counted."""
        self.counts += other.counts
        return self

    def frauds_known(self) -> NDArray[np.float64]:
        """Share of the frauds known after each of ``AGES`` days, ascending, in [0, 1]."""
        return _known(self.counts[1])

    def labels_known(self) -> NDArray[np.float64]:
        """The same of all labels."""
        return _known(self.counts.sum(axis=0))


def _known(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    total = int(counts.sum())
    return np.cumsum(counts[:-1]) / total if total else np.full(len(AGES), np.nan)
