"""Which scores a person should see, and why.

A policy is a function of what was decided about a transaction and of nothing it keeps itself:
the threshold of a budget comes with the model, from the learner's map of scores. So every
worker draws the same line, and a replay draws it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np

from app.core.hashing import hash_id
from app.records import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

Kind = Literal["threshold", "cost", "budget"]

#: Codes of ``Verdicts.fired``; from ``RULES`` on the place of the rule is added.
NOTHING, KIND, BLOCKED, EXPLORED, RULES = range(5)


@dataclass(frozen=True)
class Rule:
    """What is asked of a part of the traffic, instead of what the policy asks of the rest.

    The part: transactions whose every named segment has one of the values given, and whose amount
    lies in [``amount_min``, ``amount_max``). ``threshold`` is the score from which on they alert:
    0 always does; None never.
    """

    name: str
    segments: Mapping[str, frozenset[str]] = field(default_factory=dict)
    amount_min: float = -np.inf
    amount_max: float = np.inf
    threshold: float | None = None

    def covers(
        self, amounts: NDArray[np.float64], segments: Mapping[str, Sequence[str]]
    ) -> NDArray[np.bool_]:
        """Which of n transactions the rule is for, shape (n,)."""
        covered = (amounts >= self.amount_min) & (amounts < self.amount_max)
        for segment, values in self.segments.items():
            covered &= np.fromiter((v in values for v in segments[segment]), np.bool_, len(amounts))
        return covered


@dataclass(frozen=True)
class Verdicts:
    """What a policy makes of n transactions.

    ``propensity`` is the probability with which a person sees each, in [0, 1]: estimates of
    precision and recall from what persons say divide by it.
    """

    alerts: NDArray[np.bool_]
    propensity: NDArray[np.float64]
    fired: NDArray[np.int16]


@dataclass(frozen=True)
class Policy:
    """Alert where a score, its cost or its rank asks for it.

    ``threshold``: at a fixed score. ``cost``: where the loss to be expected, score * amount *
    ``recovery``, is above ``review_cost``. ``budget``: at the score above which ``alerts_per_day``
    lie, as the learner's map of scores has it; before there is one, at the threshold.

    Of several ``rules`` the first that covers a transaction decides instead. ``allow`` and
    ``block`` name entities by kind: block goes before all else and always alerts, allow never
    does. Of all else a share ``explore`` is shown at random, told by the transaction's id.

    >>> policy = Policy(kind="cost", review_cost=5.0)
    >>> policy.assess(np.array([0.1, 0.1]), np.array([20.0, 80.0]), {}, ["t1", "t2"]).alerts
    array([False,  True])
    """

    kind: Kind = "threshold"
    threshold: float = 0.5
    alerts_per_day: float = 100.0
    review_cost: float = 5.0
    recovery: float = 1.0
    explore: float = 0.0
    rules: Sequence[Rule] = ()
    allow: Mapping[str, frozenset[str]] = field(default_factory=dict)
    block: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def assess(
        self,
        scores: NDArray[np.float64],
        amounts: NDArray[np.float64],
        keys: Mapping[str, Sequence[str]],
        ids: Sequence[str],
        line: float | None = None,
        segments: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> Verdicts:
        """Decide on n transactions; ``keys`` by kind of entity, ``line`` the budget's score.

        ``segments`` are their values of the declared segments.
        """
        if self.kind == "cost":
            fires = scores * amounts * self.recovery > self.review_cost
        else:
            fires = scores >= (
                line if self.kind == "budget" and line is not None else self.threshold
            )
        fired = np.where(fires, KIND, NOTHING).astype(np.int16)
        never = np.zeros(len(scores), np.bool_)
        for place in reversed(range(len(self.rules))):
            rule = self.rules[place]
            covered = rule.covers(amounts, segments)
            asks = scores[covered] >= (np.inf if rule.threshold is None else rule.threshold)
            fired[covered] = np.where(asks, RULES + place, NOTHING)
            never[covered] = rule.threshold is None
        allowed = _listed(self.allow, keys, len(scores))
        fired[allowed] = NOTHING
        never |= allowed
        fired[_listed(self.block, keys, len(scores))] = BLOCKED
        propensity = np.where(fired != NOTHING, 1.0, np.where(never, 0.0, self.explore))
        if self.explore:
            drawn = np.array([hash_id(f"explore {identity}") / 2.0**64 for identity in ids])
            fired[(fired == NOTHING) & ~never & (drawn < self.explore)] = EXPLORED
        return Verdicts(fired != NOTHING, propensity, fired)

    def words(self, fired: int, line: float | None = None) -> str:
        """What fired, as an alert says it.

        >>> Policy().words(KIND)
        'score of at least 0.5'
        """
        if fired == BLOCKED:
            return "an entity of it is on the block list"
        if fired == EXPLORED:
            return (
                f"shown at random, one in {1.0 / self.explore:.0f}, to learn of what is not flagged"
            )
        if fired >= RULES:
            rule = self.rules[fired - RULES]
            return f"rule {rule.name}: score of at least {rule.threshold:g}"
        if self.kind == "cost":
            return f"expected loss above {self.review_cost:g}, the cost of a review"
        if self.kind == "budget" and line is not None:
            return f"among the {self.alerts_per_day:g} highest scores a day (from {line:.3g} on)"
        return f"score of at least {self.threshold:g}"


def _listed(
    lists: Mapping[str, frozenset[str]], keys: Mapping[str, Sequence[str]], n: int
) -> NDArray[np.bool_]:
    listed = np.zeros(n, np.bool_)
    for kind, names in lists.items():
        listed |= np.array([key in names for key in keys[kind]], np.bool_)
    return listed


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
