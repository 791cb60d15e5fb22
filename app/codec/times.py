"""Times as they stand in JSON."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: Below, a number is taken for seconds, from here on for milliseconds: 1e11 s is the year 5138,
#: 1e11 ms was 1973.
SECONDS_MAX: Final = 1e11


def time_ms_of(value: datetime | float, unit: str) -> int:
    """Epoch milliseconds of a time as it stands in JSON; a time without a zone is UTC.

    ``unit`` is "s", "ms" or "auto" (a number below 1e11 counts seconds).

    >>> time_ms_of(datetime(1970, 1, 2), "auto"), time_ms_of(86400, "auto")
    (86400000, 86400000)
    """
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return round(aware.timestamp() * 1_000)
    seconds = unit == "s" or (unit == "auto" and abs(value) < SECONDS_MAX)
    return round(value * 1_000) if seconds else round(value)


#: Farther from 1970 than any time that is taken; a thousand times as much is a number of 64 bits.
_FAR: Final = 9_000_000_000_000_000

#: Units in which a time is a number and nothing else.
NUMERIC: Final = ("s", "ms")


def times_ms_of(told: Sequence[datetime | float], unit: str) -> NDArray[np.int64]:
    """``time_ms_of`` of each, shape (n,); ``_FAR`` from 1970 or more: no time in that unit.

    >>> times_ms_of([86400, 86400000], "ms").tolist()
    [86400, 86400000]
    """
    if set(map(type, told)) == {int}:
        with contextlib.suppress(OverflowError):
            numbers = np.array(told, np.int64)
            limit = {"s": _FAR, "auto": SECONDS_MAX}.get(unit, 0)
            return np.where((-limit < numbers) & (numbers < limit), numbers * 1_000, numbers)
    return np.array([time_or_far(one, unit) for one in told], np.int64)


def time_or_far(value: datetime | float, unit: str) -> int:
    """``time_ms_of``, or as far from 1970 as no time is, where it is none in that unit."""
    if isinstance(value, datetime) and unit in NUMERIC:
        return -_FAR
    try:
        return max(-_FAR, min(time_ms_of(value, unit), _FAR))
    except OverflowError:
        return -_FAR
