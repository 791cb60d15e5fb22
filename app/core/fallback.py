"""What gives a score where the model cannot, or cannot in time, and what is said of it then.

The chain: the last model that gave sound scores, where it is another than the one that fails;
then declared rules; then, of what no rule covers, unlikeness, which needs no labels and is quick.
A score by fallback depends on the clock, so a replay need not give it again: it is stamped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from app.core.mixture import Mixture
    from app.core.policy import Rule
    from app.records import Fallback

#: Codes of ``Given.why``; what a record says of each, and what an alert does.
MODEL, LATE, NO_MODEL, STALE, FAILED = range(5)
STAMPS: Final[tuple[Fallback, ...]] = ("", "late", "no_model", "stale", "failed")
WORDS: Final = (
    "",
    "; told without the model, which is too slow for what is late already",
    "; told without a model: nothing has been learnt yet",
    "; told by a model that has learnt nothing for too long",
    "; told without the newest model, which failed",
)


class Moment(NamedTuple):
    """What only a shell can know when a batch is decided."""

    now_ms: int
    cost_us: float = 0.0  # CPU that the model takes for a record; 0: not measured yet
    unlearnt_ms: int = 0  # for how long the model has not learnt what there is (``Champion``)


class Given(NamedTuple):
    """Scores of a batch and what the model alone said, shape (n,); why they are whose they are."""

    scores: NDArray[np.float64]
    raw: NDArray[np.float64]  # 0 where the model was not asked, or failed
    why: NDArray[np.int8]
    failure: str = ""  # what the model raised


@dataclass
class FallbackChain:
    """What is declared for the case that the model fails, is missing, stale or too slow.

    Transactions older than ``budget_ms`` when they are decided are not given to a model that
    takes ``slow_us`` or more a record. ``rules`` each give a score; of several that cover a
    transaction the first does. ``good`` is the last mixture all of whose scores were sound.

    >>> chain = FallbackChain(budget_ms=50, slow_us=100.0)
    >>> chain.why(np.array([10, 90]), Moment(0, cost_us=120.0), position=7).tolist()
    [0, 1]
    >>> chain.why(np.array([10, 90]), Moment(0, cost_us=9.0), position=7).tolist()
    [0, 0]
    """

    budget_ms: int | None = None
    slow_us: float = 100.0
    stale_ms: int | None = None
    rules: Sequence[tuple[Rule, float]] = ()
    good: Mixture | None = field(default=None, repr=False)

    def why(self, ages_ms: NDArray[np.int64], moment: Moment, position: int) -> NDArray[np.int8]:
        """Whose score each of n transactions gets, before the model was asked."""
        why = np.full(len(ages_ms), MODEL, np.int8)
        if position < 0:
            why[:] = NO_MODEL
            return why
        if self.stale_ms is not None and moment.unlearnt_ms > self.stale_ms:
            why[:] = STALE
        if self.budget_ms is not None and moment.cost_us >= self.slow_us:
            why[ages_ms > self.budget_ms] = LATE
        return why

    def give(
        self,
        mixture: Mixture,
        rows: NDArray[np.float64],
        amounts: NDArray[np.float64],
        segments: Mapping[str, Sequence[str]],
        why: NDArray[np.int8],
    ) -> Given:
        """Scores of n transactions, each by whom ``why`` says, or by who comes next."""
        scores, raw, failure = np.full(len(rows), np.nan), np.zeros(len(rows)), ""
        asked = np.flatnonzero((why == MODEL) | (why == STALE))
        if len(asked):
            told, said, failure = _asked(mixture, rows[asked])
            sound = np.isfinite(told) & np.isfinite(said)
            scores[asked[sound]], raw[asked[sound]] = told[sound], said[sound]
            failed = asked[~sound]
            why[failed] = FAILED
            if not len(failed):
                self.good = mixture
            elif self.good is not None and self.good.model is not mixture.model:
                scores[failed] = _asked(self.good, rows[failed])[0]
        left = np.flatnonzero(~np.isfinite(scores))
        if len(left):
            told_of = {
                name: [values[i] for i in left.tolist()] for name, values in segments.items()
            }
            scores[left] = self._by_rules(mixture, rows[left], amounts[left], told_of)
        return Given(scores, raw, why, failure)

    def _by_rules(
        self,
        mixture: Mixture,
        rows: NDArray[np.float64],
        amounts: NDArray[np.float64],
        segments: Mapping[str, Sequence[str]],
    ) -> NDArray[np.float64]:
        scores = mixture.unlikeness(rows)
        for rule, score in reversed(self.rules):
            scores[rule.covers(amounts, segments)] = score
        return scores


def _asked(
    mixture: Mixture, rows: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
    """Scores and what the model alone said, NaN where it raised, and what it raised then."""
    try:
        return (*mixture.score_many(rows), "")
    except Exception as error:  # noqa: BLE001 - a model is anybody's; what it raises is told
        none = np.full(len(rows), np.nan)
        return none, none, repr(error)
