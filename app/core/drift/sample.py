"""Rows of features in two bytes a value, as they travel in a summary.

Partitions send a sample of their rows, not histograms: where the edges of bins should lie only
the monitor knows, who sees all partitions, and a sample merges with another by standing beside it.
A value keeps eight bits of its mantissa (bfloat16): 0.4 %, integers up to 256 exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Below the largest float32: what is larger is as large.
_LARGEST: Final = 3e38


def pack(rows: NDArray[np.float64]) -> bytes:
    """Rows, shape (n, d), as n * d * 2 bytes, little-endian, one row after another; NaN stays.

    >>> unpack(pack(np.array([[1.0, -200.0, 0.1, np.nan]])), 4).tolist()
    [[1.0, -200.0, 0.10009765625, nan]]
    """
    short = np.clip(rows, -_LARGEST, _LARGEST).astype("<f4").view("<u4")
    rounded = (short + 0x7FFF + ((short >> 16) & 1)) >> 16  # to the nearest, ties to even
    return np.where(np.isnan(rows), 0x7FC0, rounded).astype("<u2").tobytes()


def unpack(packed: bytes, d: int) -> NDArray[np.float64]:
    """Return rows of d values, shape (n, d), of what ``pack`` gave."""
    halves = np.frombuffer(packed, "<u2").astype("<u4") << 16
    return halves.view("<f4").astype(np.float64).reshape(len(halves) // max(d, 1), d)
