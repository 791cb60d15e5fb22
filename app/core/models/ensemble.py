"""Several models as one: the mean of their scores, or a stack that learns their weights."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from app.core.models.base import Flags, Floats, Model
from app.core.models.kernels import (
    NO_DIFFERENCE,
    kernel,
    log_odds_of,
    sigmoid,
    sigmoids,
    to_log_odds,
)


@kernel
def _mean_score(scores: Floats, out: Floats) -> None:
    """Write the mean over members (first axis) of each row's score."""
    for i in range(scores.shape[1]):
        out[i] = 0.0
        for m in range(scores.shape[0]):
            out[i] += scores[m, i]
        out[i] /= scores.shape[0]


@kernel
def _mean_parts(parts: Floats, out: Floats) -> None:
    """Write the mean of members' contributions, joined where scores are joined: as probabilities.

    Each member's parts are scaled by the (positive) slope of the secant of the link from its bias
    to its margin, averaged, and scaled back to log-odds, so that signs stay and sums are exact.
    """
    n_members, n, d1 = parts.shape
    for i in range(n):
        for j in range(d1):
            out[i, j] = 0.0
        for m in range(n_members):
            total = 0.0
            for j in range(d1 - 1):
                total += parts[m, i, j]
            bias = sigmoid(parts[m, i, d1 - 1])
            score = sigmoid(parts[m, i, d1 - 1] + total)
            slope = (score - bias) / total if abs(total) > NO_DIFFERENCE else bias * (1.0 - bias)
            for j in range(d1 - 1):
                out[i, j] += slope * parts[m, i, j] / n_members
            out[i, d1 - 1] += bias / n_members
        to_log_odds(out[i])


@kernel
def _stacked(margins: Floats, weight: Floats, out: Floats) -> None:
    """Write the weighted sum of members' margins (first axis); the last weight is the intercept."""
    for i in range(margins.shape[1]):
        out[i] = weight[len(weight) - 1]
        for m in range(margins.shape[0]):
            out[i] += weight[m] * margins[m, i]


@kernel
def _learn_stack(
    margins: Floats, is_fraud: Flags, weights: Floats, lr: float, weight: Floats, before: Floats
) -> None:
    """One gradient step of the log loss an example; ``before`` receives the margins."""
    last = len(weight) - 1
    for i in range(margins.shape[1]):
        _stacked(margins[:, i : i + 1], weight, before[i : i + 1])
        slope = lr * weights[i] * (sigmoid(before[i]) - float(is_fraud[i]))
        for m in range(last):
            weight[m] -= slope * margins[m, i]
        weight[last] -= slope


class _Ensemble(Model):
    """Members over the same features."""

    members: Sequence[Model]

    def blank(self) -> Model:
        """The same of members that have learnt nothing."""
        new = self.clone()
        new.members = [member.blank() for member in self.members]
        return new

    def _set_members(self, members: Sequence[Model]) -> None:
        if not members or len({tuple(member.features) for member in members}) != 1:
            msg = f"{len(members)} members; expected at least one, all of the same features"
            raise ValueError(msg)
        self.members = list(members)
        self.features = tuple(members[0].features)

    @property
    def nbytes(self) -> int:
        """Bytes of learnt state of all members."""
        return sum(member.nbytes for member in self.members) + 8 * (len(self.members) + 1)

    def for_scoring(self) -> Model:
        """Each member's trees or lines alone."""
        mine = copy.copy(self)
        mine.members = [member.for_scoring() for member in self.members]
        return mine

    def _of_members(self, verb: str, *arguments: Any) -> Floats:
        """The members' answers, stacked along the first axis."""
        return np.stack([getattr(member, verb)(*arguments) for member in self.members])

    def _state(self) -> Iterator[tuple[str, Any]]:
        for member in self.members:
            yield "member", member.state_digest()


class Average(_Ensemble):
    """The mean of the members' scores.

    >>> from app.core.models.logistic import Logistic
    >>> model = Average([Logistic(["amount"]), Logistic(["amount"], lr=0.1)])
    >>> model.learn_one({"amount": 1}, 0)
    >>> 0.0 < model.score_one({"amount": 1}) < 0.5
    True
    """

    def __init__(self, members: Sequence[Model]) -> None:
        self._set_members(members)

    def _score(self, rows: Floats) -> Floats:
        out = np.empty(len(rows))
        _mean_score(self._of_members("_score", rows), out)
        return out

    def _margin(self, rows: Floats) -> Floats:
        return log_odds_of(self._score(rows))

    def _contributions(self, rows: Floats) -> Floats:
        out = np.empty((len(rows), len(self.features) + 1))
        _mean_parts(self._of_members("_contributions", rows), out)
        return out

    def _learn(self, rows: Floats, is_fraud: Flags, weights: Floats) -> None:
        for member in self.members:
            member._learn(rows, is_fraud, weights)  # noqa: SLF001 -- the rows are checked already


class Stack(_Ensemble):
    """Logistic regression over the members' log-odds, learnt from scores made before learning.

    Begins as the mean of the log-odds. Each example is scored by the members first, then teaches
    the stack, then the members, so the stack learns how far each is to be trusted on new rows.

    >>> from app.core.models.logistic import Logistic
    >>> model = Stack([Logistic(["amount"]), Logistic(["amount"], lr=0.1)])
    >>> model.learn_one({"amount": 1}, 0)
    >>> 0.0 < model.score_one({"amount": 1}) < 0.5
    True
    """

    def __init__(self, members: Sequence[Model], lr: float = 0.001) -> None:
        self._set_members(members)
        self.lr = float(lr)
        self._weight = np.full(len(members) + 1, 1.0 / len(members))
        self._weight[-1] = 0.0

    def _margin(self, rows: Floats) -> Floats:
        out = np.empty(len(rows))
        _stacked(self._of_members("_margin", rows), self._weight, out)
        return out

    def _score(self, rows: Floats) -> Floats:
        return sigmoids(self._margin(rows))

    def _contributions(self, rows: Floats) -> Floats:
        parts = self._of_members("_contributions", rows)
        out = parts[0] * self._weight[0]
        for m in range(1, len(parts)):
            out += parts[m] * self._weight[m]
        out[:, -1] += self._weight[-1]
        return np.asarray(out)

    def _learn(self, rows: Floats, is_fraud: Flags, weights: Floats) -> None:
        self._learn_prequential(rows, is_fraud, weights)

    def _learn_prequential(self, rows: Floats, is_fraud: Flags, weights: Floats) -> Floats:
        margins = self._of_members("_learn_prequential", rows, is_fraud, weights)
        before = np.empty(len(rows))
        _learn_stack(margins, is_fraud, weights, self.lr, self._weight, before)
        return before

    def _state(self) -> Iterator[tuple[str, Any]]:
        yield from super()._state()
        yield "lr", self.lr
        yield "weight", self._weight
