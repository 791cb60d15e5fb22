"""Which scores a person should see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from app.records import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Threshold:
    """Alert at a fixed score.

    >>> Threshold(0.5).alerts(np.array([0.4, 0.5])).tolist()
    [False, True]
    """

    threshold: float

    def alerts(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which of ``scores``, shape (n,), become alerts."""
        return scores >= self.threshold

    @property
    def words(self) -> str:
        """The policy as an alert names it."""
        return f"score of at least {self.threshold:g}"


def reasons(
    names: Sequence[str],
    row: NDArray[np.float64],
    contributions: NDArray[np.float64],
    reasons_max: int,
) -> list[Reason]:
    """The features that raised a score most, most suspicious first.

    ``row`` has shape (d,), ``contributions`` shape (d + 1,): the last one is the bias, which is
    nobody's doing. What lowered the score is left out.

    >>> [r.text for r in reasons(["amount", "night"], np.array([912.5, 0.0]),
    ...                          np.array([2.1, -0.3, -4.0]), 5)]
    ['amount = 912.5 raises suspicion']
    """
    order = np.argsort(-contributions[:-1], kind="stable")[:reasons_max]
    return [
        Reason(
            feature=names[at],
            value=None if np.isnan(row[at]) else float(row[at]),
            contribution=float(contributions[at]),
            text=_in_words(names[at], float(row[at])),
        )
        for at in order
        if contributions[at] > 0.0
    ]


def _in_words(name: str, value: float) -> str:
    shown = "missing" if np.isnan(value) else f"{value:.6g}"
    return f"{name} = {shown} raises suspicion"
