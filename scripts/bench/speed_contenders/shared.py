"""The compared features as the other contenders compute them: plain Python, small state.

Where weir keeps an entity's transactions and answers windows to the millisecond, this keeps
a count and a sum for each of the last seven days: windows that end at midnight. It costs less
and its state is smaller, so it is the others that gain from the difference.
"""

from __future__ import annotations

import math
from typing import Any

DAY_MS = 86_400_000
WEEK_S = 604_800.0
_DAYS = 7
#: 1970-01-01 was a Thursday; Saturday is 5.
_EPOCH_WEEKDAY, _SATURDAY = 3, 5

_OF_ENTITY = ("count_1d", "count_7d", "sum_1d", "sum_7d", "mean_1d", "mean_7d", "since_last_7d")
NAMES = (
    "amount",
    "amount_log1p",
    "weekend",
    "hour_sin",
    "hour_cos",
    *(f"card_id_{name}" for name in _OF_ENTITY),
    *(f"terminal_id_{name}" for name in _OF_ENTITY),
)

#: Of an entity: time of its last transaction, day of the first bucket, counts and sums by day.
State = list[Any]


def own(time_ms: int, amount: float) -> list[float]:
    """Features of the transaction itself."""
    days, rest = divmod(time_ms, DAY_MS)
    angle = 2.0 * math.pi * rest / DAY_MS
    weekend = float((days + _EPOCH_WEEKDAY) % 7 >= _SATURDAY)
    return [amount, math.log1p(amount), weekend, math.sin(angle), math.cos(angle)]


def folded(state: State | None, time_ms: int, amount: float) -> tuple[list[float], State]:
    """Features of an entity with its newest transaction, and its state after that."""
    day = time_ms // DAY_MS
    if state is None:
        counts, sums = [1, 0, 0, 0, 0, 0, 0], [amount, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
        newest, since_s = day, WEEK_S
    else:
        last, newest, counts, sums = state
        passed = day - newest
        if passed > 0:
            counts, sums = ([0] * passed + counts)[:_DAYS], ([0.0] * passed + sums)[:_DAYS]
            newest = day
        else:
            counts, sums = counts.copy(), sums.copy()
        at = newest - day
        if at < _DAYS:
            counts[at] += 1
            sums[at] += amount
        since_s = min(max(time_ms - last, 0) / 1_000.0, WEEK_S)
    n, total = sum(counts), sum(sums)
    features = [
        counts[0],
        n,
        sums[0],
        total,
        sums[0] / counts[0] if counts[0] else 0.0,
        total / n if n else 0.0,
        since_s,
    ]
    return features, [time_ms, newest, counts, sums]
