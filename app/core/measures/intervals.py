"""Intervals for ratios of two shares."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from app.core.measures.decisions import Sample

#: 1.959964 ** 2: chi-squared with one degree of freedom leaves 5 % above it.
_CHI2_95 = 3.841459
#: Ratios beyond e^23, ten thousand millions, are told as 0 and infinity.
_REACH = 23.0
#: Halvings: an end to the twelfth digit.
_STEPS = 60


class Interval(NamedTuple):
    """A figure, and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float


def ratio_interval(one: Sample, other: Sample) -> Interval:
    """Ratio of the share in ``one`` to that in ``other``, with its score interval, 95 %.

    Koopman, 1984 (Biometrics 40, 513): the ratios that a chi-squared test of the two counts does
    not refuse. Unlike the logarithm of Katz et al. (1978) it holds at small counts and has an end
    where one of them is 0. Counts need not be whole. NaN where a side is empty.

    >>> from app.core.measures.decisions import Sample
    >>> [round(x, 3) for x in ratio_interval(Sample(36, 40), Sample(16, 80))]
    [4.5, 2.94, 7.152]
    """
    if not (one.n > 0.0 and other.n > 0.0):
        return Interval(*[float("nan")] * 3)
    if one.hits <= 0.0 and other.hits <= 0.0:
        return Interval(float("nan"), 0.0, float("inf"))
    share, against = one.hits / one.n, other.hits / other.n
    value = share / against if against > 0.0 else float("inf")
    low = _end(one, other, value, -_REACH) if value > 0.0 else 0.0
    high = _end(one, other, value, _REACH) if value < float("inf") else value
    return Interval(value, low, high)


def _end(one: Sample, other: Sample, value: float, beyond: float) -> float:
    """The ratio on the way from ``value`` to ``beyond`` (a logarithm) that is just refused."""
    within = min(max(math.log(value), -_REACH), _REACH) if 0.0 < value < math.inf else -beyond
    if _chi2(one, other, math.exp(beyond)) < _CHI2_95:
        return math.exp(beyond)
    for _ in range(_STEPS):
        middle = (within + beyond) / 2.0
        if _chi2(one, other, math.exp(middle)) < _CHI2_95:
            within = middle
        else:
            beyond = middle
    return math.exp(within)


def _chi2(one: Sample, other: Sample, ratio: float) -> float:
    """How far two counts are from shares of that ratio, the likeliest such shares given."""
    a = (one.n + other.n) * ratio
    b = one.n * ratio + one.hits + other.n + other.hits * ratio
    c = one.hits + other.hits
    # 2c / (b + root), not (b - root) / 2a: the difference of two near numbers loses all digits.
    against = min(2.0 * c / (b + math.sqrt(max(b * b - 4.0 * a * c, 0.0))), 1.0)
    share = min(against * ratio, 1.0)
    variance = share * (1.0 - share) / one.n + ratio**2 * against * (1.0 - against) / other.n
    difference = one.hits / one.n - ratio * other.hits / other.n
    if variance <= 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return difference**2 / variance
