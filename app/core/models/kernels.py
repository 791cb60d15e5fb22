"""What the compiled models share: the compiler's settings, the logistic link, counted randomness.

No kernel is compiled with ``fastmath``: the order of floating-point operations is the order
written, so a batch gives the same bits as its rows one by one (law 8).
"""

import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba
import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

# Beyond these log-odds a probability is 0 or 1, as in River.
CERTAIN = 30.0

# Below this the slope of a secant is the derivative's.
NO_DIFFERENCE = 1e-9

# 2**-53: the spacing of the 53-bit uniforms made from a 64-bit hash.
UNIT = 1.0 / 9007199254740992.0


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile ``function`` on first call, cached on disk, without the interpreter's lock.

    Division by zero gives infinity or NaN as in numpy instead of raising; kernels guard for it.
    """
    compiled = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    return cast("Callable[P, R]", compiled)


@kernel
def sigmoid(margin: float) -> float:
    """Probability for log-odds; exactly 0 below -30 and 1 above 30, as River has it.

    >>> sigmoid(0.0), sigmoid(31.0)
    (0.5, 1.0)
    """
    if margin < -CERTAIN:
        return 0.0
    if margin > CERTAIN:
        return 1.0
    return 1.0 / (1.0 + math.exp(-margin))


@kernel
def log_odds(probability: float) -> float:
    """Log-odds of a probability, held within +-27.6 (1e-12 from certainty) so that it is finite.

    >>> round(log_odds(0.5), 12), round(log_odds(0.0), 2)
    (0.0, -27.63)
    """
    held = min(max(probability, 1e-12), 1.0 - 1e-12)
    return math.log(held / (1.0 - held))


@kernel
def mixed(seed: np.uint64, first: np.uint64, second: np.uint64) -> np.uint64:
    """64 well-mixed bits for three counters: three rounds of SplitMix64's finaliser.

    A pure function: the draw of an example does not depend on how many came in the same batch.
    """
    bits = np.uint64(seed)
    for counter in (np.uint64(first), np.uint64(second), np.uint64(0)):
        bits = bits + np.uint64(0x9E3779B97F4A7C15) + counter
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits = bits ^ (bits >> np.uint64(31))
    return bits


@kernel
def following(bits: np.uint64) -> np.uint64:
    """64 well-mixed bits that follow others: SplitMix64, for many draws in a row."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@kernel
def uniform(bits: np.uint64) -> float:
    """A number in [0, 1) from 64 bits."""
    return np.float64(bits >> np.uint64(11)) * UNIT


def poisson_table(mean: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Cumulative probabilities of Poisson(``mean``) for inversion, up to 1 - 1e-15.

    >>> [round(float(p), 3) for p in poisson_table(1.0)[:3]]
    [0.368, 0.736, 0.92]
    """
    mass, total, k, table = math.exp(-mean), 0.0, 0, []
    while total < 1.0 - 1e-15 and k <= mean + 20.0 * math.sqrt(mean) + 30.0:
        total += mass
        table.append(total)
        k += 1
        mass *= mean / k
    return np.array(table, dtype=np.float64)


@kernel
def drawn(table: np.ndarray, uniform_draw: float) -> float:
    """The count whose cumulative probability in ``table`` first exceeds the draw."""
    count = 0
    while count < len(table) - 1 and table[count] <= uniform_draw:
        count += 1
    return float(count)


@kernel
def to_log_odds(parts: np.ndarray) -> None:
    """Turn parts of a probability (the last is the bias) into parts of its log-odds, in place.

    Every part is scaled by the slope of the secant from bias to sum, which is positive.
    """
    d = len(parts) - 1
    total = 0.0
    for j in range(d):
        total += parts[j]
    bias = parts[d]
    low, high = log_odds(bias), log_odds(bias + total)
    held = min(max(bias, 1e-12), 1.0 - 1e-12)
    slope = (high - low) / total if abs(total) > NO_DIFFERENCE else 1.0 / (held * (1.0 - held))
    for j in range(d):
        parts[j] *= slope
    parts[d] = high
    for j in range(d):
        parts[d] -= parts[j]


@kernel
def _log_odds_of(scores: np.ndarray, out: np.ndarray) -> None:
    """Write the log-odds of each score."""
    for i in range(len(scores)):
        out[i] = log_odds(scores[i])


def log_odds_of(scores: np.ndarray) -> np.ndarray:
    """Log-odds of scores, shape (n,), each with the bits it has alone."""
    out = np.empty(len(scores))
    _log_odds_of(scores, out)
    return out


@kernel
def _sigmoids(margins: np.ndarray, out: np.ndarray) -> None:
    """Write the probability of each margin."""
    for i in range(len(margins)):
        out[i] = sigmoid(margins[i])


def sigmoids(margins: np.ndarray) -> np.ndarray:
    """Probabilities of log-odds, shape (n,), each with the bits it has alone."""
    out = np.empty(len(margins))
    _sigmoids(margins, out)
    return out
