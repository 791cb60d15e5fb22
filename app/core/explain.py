"""Why a score is what it is, and what would have changed the decision.

The second question is answered by search, not by theory: of the features that the configuration
declares as actionable, each with a range, one is changed at a time, then the best few together.
What is found is true of the model as it stands; that it is the smallest change of all is not
claimed, nor that the world would let one feature change and not the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: 41 values of a range: a step is 2.5 % of it.
STEPS: Final = 41
#: Features changed together, at most: more than three nobody can act upon.
TOGETHER_MAX: Final = 3
#: Answers, the smallest change first.
FOUND_MAX: Final = 3

Row = NDArray[np.float64]
Ranges = Mapping[int, tuple[float, float]]
#: Rows of features, shape (n, d): which of them alert, and their scores, each shape (n,).
Decide = Callable[[Row], tuple[NDArray[np.bool_], NDArray[np.float64]]]


@dataclass(frozen=True, order=True)
class Change:
    """Columns and the values they would have; the score and the decision then."""

    columns: tuple[int, ...]
    values: tuple[float, ...]
    score: float
    is_alert: bool


def ranges_of(told: Mapping[str, tuple[float, float]], names: Sequence[str]) -> Ranges:
    """What people could change, by column: lowest and highest value.

    A name that is that of no feature is passed over, which `weir check-config` tells.

    >>> ranges_of({"amount": (0.0, 100.0), "age": (18.0, 99.0)}, ["hour", "amount"])
    {1: (0.0, 100.0)}
    """
    return {names.index(name): span for name, span in told.items() if name in names}


def changes(row: Row, actionable: Ranges, decide: Decide) -> list[Change]:
    """Small changes of ``row``, shape (d,), that turn the decision; none found: empty.

    ``actionable``: column -> (low, high). Cost: ``STEPS`` rows a feature, scored as one batch,
    and as many again for each that is changed together with others.

    >>> def at_one(rows):
    ...     return rows.sum(axis=1) >= 1.0, rows.sum(axis=1)
    >>> [found] = changes(np.array([0.9, 0.3]), {0: (0.0, 1.0)}, at_one)
    >>> found.columns, round(found.values[0], 3), found.is_alert
    ((0,), 0.675, False)
    """
    was = bool(decide(row[None, :])[0][0])
    found = [_nearest(row, column, span, decide, was) for column, span in actionable.items()]
    alone = sorted(one for one in found if one is not None)
    if alone:
        return [change for _, change in alone[:FOUND_MAX]]
    together = _together(row, actionable, decide, was)
    return [together] if together is not None else []


def _walk(row: Row, column: int, span: tuple[float, float]) -> Row:
    """Copies of a row, shape (STEPS, d), one column of which goes through its range."""
    rows = np.repeat(row[None, :], STEPS, axis=0)
    rows[:, column] = np.linspace(*span, STEPS)
    return rows


def _nearest(
    row: Row, column: int, span: tuple[float, float], decide: Decide, was: bool
) -> tuple[float, Change] | None:
    """The least change of one column that turns the decision, after its share of the range."""
    rows = _walk(row, column, span)
    alerts, scores = decide(rows)
    width = max(span[1] - span[0], np.finfo(float).tiny)
    away = np.abs(rows[:, column] - np.nan_to_num(row[column], nan=span[0])) / width
    away[alerts == was] = np.inf
    at = int(np.argmin(away))
    if not np.isfinite(away[at]):
        return None
    value = float(rows[at, column])
    return float(away[at]), Change((column,), (value,), float(scores[at]), bool(alerts[at]))


def _together(row: Row, actionable: Ranges, decide: Decide, was: bool) -> Change | None:
    """Change the column that moves the score furthest, then the next, until the decision turns."""
    towards = -1.0 if was else 1.0
    left, now, columns = dict(actionable), row.copy(), list[int]()
    while left and len(columns) < TOGETHER_MAX:
        walks = {column: _walk(now, column, span) for column, span in left.items()}
        judged = {column: decide(rows) for column, rows in walks.items()}
        column = max(judged, key=lambda c: float(np.max(towards * judged[c][1])))
        alerts, scores = judged[column]
        turned = np.flatnonzero(alerts != was)
        at = int(turned[0]) if len(turned) else int(np.argmax(towards * scores))
        now = walks[column][at]
        columns.append(column)
        del left[column]
        if len(turned):
            values = tuple(float(now[c]) for c in columns)
            return Change(tuple(columns), values, float(scores[at]), bool(alerts[at]))
    return None
