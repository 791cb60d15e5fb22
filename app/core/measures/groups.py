"""The same figures by segment, and whether its groups are treated alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from app.core.measures.decisions import LAYERS, Decisions, additions
from app.core.measures.intervals import Interval, ratio_interval
from app.core.measures.ranking import average_precision
from app.core.scoremap import BINS

if TYPE_CHECKING:
    from app.core.measures.rows import Rows

#: 0.094 of log-odds each: average precision to the second or third digit.
GROUP_BINS: Final = 256
_FINER: Final = BINS // GROUP_BINS

#: What is left once ``values_max`` values have a group of their own.
OTHER: Final = "(other)"
MISSING: Final = "(missing)"
#: A value is for people to read; a publisher may write more.
_VALUE_CHARS: Final = 80


@dataclass
class Values:
    """Codes of a segment's values: 0 for other, then as they came, at most ``values_max``.

    >>> values = Values(values_max=2)
    >>> values.codes(["web", "shop", "web", "phone"]), values.names
    ([1, 2, 1, 0], ['(other)', 'web', 'shop'])
    """

    values_max: int
    _codes: dict[str, int] = field(default_factory=dict)

    def codes(self, values: list[str]) -> list[int]:
        """A code for each value; new ones get the next as long as there is room."""
        codes, cut = self._codes, [value[:_VALUE_CHARS] for value in values]
        for value in cut:
            if value not in codes and len(codes) < self.values_max:
                codes[value] = len(codes) + 1
        return [codes.get(value, 0) for value in cut]

    @property
    def names(self) -> list[str]:
        """Names of the groups by code."""
        return [OTHER, *(value or MISSING for value in self._codes)]


class Group(NamedTuple):
    """A group of a segment in figures."""

    name: str
    decisions: Decisions
    average_precision: float


class Disparity(NamedTuple):
    """A group against the rest of its segment: 1 where they are treated alike."""

    name: str
    alert_rate_ratio: Interval
    false_positive_rate_ratio: Interval


@dataclass
class Groups:
    """Decisions and rankings of the groups of a segment, by code.

    ``cells`` have shape (g, 4, 2, 2), ``counts`` shape (g, 2, 256); both grow with the codes.
    """

    cells: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, LAYERS, 2, 2)))
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2, GROUP_BINS)))

    def update(self, rows: Rows, segment: int) -> None:
        """Count labelled transactions by the groups of the segment with that number."""
        codes = rows.groups[:, segment]
        self._grow(int(codes.max(initial=-1)) + 1)
        np.add.at(self.cells.reshape(-1), *additions(rows, codes))
        at = codes * (2 * GROUP_BINS) + rows.is_fraud * GROUP_BINS + rows.bins // _FINER
        np.add.at(self.counts.reshape(-1), at, rows.weights)

    def __iadd__(self, other: Groups) -> Self:
        """Add what another has counted."""
        n = len(other.cells)
        self._grow(n)
        self.cells[:n] += other.cells
        self.counts[:n] += other.counts
        return self

    def _grow(self, n: int) -> None:
        more = n - len(self.cells)
        if more > 0:
            self.cells = np.concatenate([self.cells, np.zeros((more, LAYERS, 2, 2))])
            self.counts = np.concatenate([self.counts, np.zeros((more, 2, GROUP_BINS))])

    def figures(self, names: list[str]) -> list[Group]:
        """Each group that was seen, by its name."""
        told = zip(names, self.cells, self.counts, strict=False)
        made = [Group(name, Decisions(c), average_precision(h)) for name, c, h in told]
        return sorted((group for group in made if group.decisions.n > 0.0), key=lambda g: g.name)

    def disparities(self, names: list[str]) -> list[Disparity]:
        """Each group against all others: ratios of alert rates and of false-positive rates.

        The rest of a segment of one group is nobody; it has no ratio.
        """
        groups = self.figures(names)
        told = []
        for group in groups if len(groups) > 1 else []:
            rest = Decisions()
            for other in groups:
                if other is not group:
                    rest += other.decisions
            one = group.decisions
            alert = ratio_interval(one.alert_sample(), rest.alert_sample())
            false = ratio_interval(one.false_alert_sample(), rest.false_alert_sample())
            told.append(Disparity(group.name, alert, false))
        return told

    def __getstate__(self) -> dict[str, Any]:
        """State with the bins that hold something: most of a day's do not."""
        flat = self.counts.reshape(-1)
        some = np.flatnonzero(flat).astype(np.int32)
        return {"cells": self.cells, "places": some, "values": flat[some]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go on exactly where the state was taken."""
        self.cells = state["cells"]
        self.counts = np.zeros((len(self.cells), 2, GROUP_BINS))
        self.counts.reshape(-1)[state["places"]] = state["values"]
