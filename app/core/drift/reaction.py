"""What follows when the world has changed, as the operator declared it.

    reaction   | what happens when an incident opens             | what ends it
    -----------+-------------------------------------------------+------------------------------
    nothing    | it is told                                      |
    page       | it is told as critical, for whoever is woken    |
    faster     | examples weigh more, trees are regrown sooner   | the incident is closed
    background | a new model learns beside the old one           | see below
    rollback   | a copy from before the change decides           | see below

Of two models side by side, both of which learn, that one decides which ranked the latest labelled
examples better just before it learnt them; so what was done is undone by the same rule that did
it. When the incident is closed the other one is let go. All of it follows from the log alone.
"""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

import numpy as np

from app.core.measures.ranking import Ranking

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.core.models import Model

Reaction = Literal["nothing", "faster", "background", "rollback", "page"]
REACTIONS: Final[tuple[str, ...]] = get_args(Reaction)

#: Four times the pace: a memory of weeks is filled anew within days.
FASTER: Final = 4.0
#: Examples by which two models are compared: a few hundred frauds at a share of some per cent.
_COMPARED_MAX: Final = 16_384
#: With fewer frauds average precision is noise.
_FRAUDS_MIN: Final = 50
#: A tenth better: what noise makes of fifty frauds must not change who decides at every look.
_BETTER: Final = 1.1


class Told(NamedTuple):
    """An example as two models ranked it before they learnt it."""

    is_fraud: bool
    ours: float
    theirs: float


@dataclass
class Rival:
    """A model beside the one that decides; the two are compared on what both have yet to learn."""

    model: Model
    told: deque[Told] = field(default_factory=lambda: deque(maxlen=_COMPARED_MAX))

    def hear(
        self,
        is_fraud: NDArray[np.bool_],
        ours: NDArray[np.float64],
        theirs: NDArray[np.float64],
    ) -> None:
        """Take examples with the margins that both gave them, each shape (n,)."""
        columns = (is_fraud.tolist(), ours.tolist(), theirs.tolist())
        self.told.extend(Told(*row) for row in zip(*columns, strict=True))

    def compared(self) -> tuple[float, float] | None:
        """Average precision of both; None while too few frauds are known."""
        is_fraud = np.array([told.is_fraud for told in self.told], np.bool_)
        if int(is_fraud.sum()) < _FRAUDS_MIN:
            return None
        ours = _precision(np.array([told.ours for told in self.told]), is_fraud)
        theirs = _precision(np.array([told.theirs for told in self.told]), is_fraud)
        return ours, theirs

    def swap(self, model: Model) -> Model:
        """Put ``model`` aside and return the rival; both are compared anew."""
        self.model, rival = model, self.model
        self.told.clear()
        return rival

    def is_better(self) -> bool:
        """Whether the rival ranks so much better that it should decide."""
        told = self.compared()
        return told is not None and told[1] > _BETTER * told[0]


def _precision(margins: NDArray[np.float64], is_fraud: NDArray[np.bool_]) -> float:
    ranking = Ranking()
    ranking.update(1.0 / (1.0 + np.exp(-margins)), is_fraud)
    return ranking.average_precision


class Kept(NamedTuple):
    """A copy of a model, and when it was made (event time)."""

    time_ms: int
    model: Model


@dataclass
class Reactions:
    """What is being done about an incident, and the copies that a rollback goes back to.

    Copies are made only where a reaction may need them: one every ``every_ms`` while nothing is
    open, the last ``copies`` of them.
    """

    declared: frozenset[str] = frozenset()
    every_ms: int = 7 * 86_400_000
    copies: int = 2
    rival: Rival | None = None
    pace: float = 1.0
    n_swaps: int = 0  # of who decides, since the incident opened
    kept: list[Kept] = field(default_factory=list)

    def keep(self, model: Model, time_ms: int) -> None:
        """Copy the model if it is time to."""
        if "rollback" not in self.declared or self.rival is not None:
            return
        if not self.kept or time_ms - self.kept[-1].time_ms >= self.every_ms:
            self.kept = [*self.kept, Kept(time_ms, deepcopy(model))][-self.copies :]

    def begin(self, reaction: str, model: Model, since_ms: int) -> Model:
        """Do what is declared; return the model that decides from now on."""
        self.n_swaps = 0
        if reaction == "faster":
            self.pace = FASTER
        elif reaction == "background":
            self.rival = Rival(model.blank())
        elif reaction == "rollback":
            before = [kept for kept in self.kept if kept.time_ms <= since_ms]
            if before:
                self.rival = Rival(model)
                return deepcopy(before[-1].model)
        return model

    def teach(
        self,
        model: Model,
        rows: NDArray[np.float64],
        is_fraud: NDArray[np.bool_],
        weights: NDArray[np.float64],
    ) -> None:
        """Teach the model that decides, and its rival, if there is one."""
        if self.rival is None:
            model.learn_many(rows, is_fraud, weights)
            return
        ours = model.learn_told_many(rows, is_fraud, weights)
        self.rival.hear(is_fraud, ours, self.rival.model.learn_told_many(rows, is_fraud, weights))

    def choose(self, model: Model) -> Model:
        """Return which of the two decides from now on."""
        if self.rival is None or not self.rival.is_better():
            return model
        self.n_swaps += 1
        return self.rival.swap(model)

    def told(self, reaction: str) -> str:
        """The reaction in words.

        >>> Reactions().told("faster")
        'faster: pace 1'
        """
        if reaction == "faster":
            return f"{reaction}: pace {self.pace:g}"
        if reaction in {"background", "rollback"}:
            compared = self.rival.compared() if self.rival else None
            told = f"{reaction}: {self.n_swaps} changes"
            if compared is not None:
                told += f", average precision {compared[0]:.3f}, beside it {compared[1]:.3f}"
            return told
        return reaction

    def end(self) -> None:
        """The incident is over: the pace is the usual one, one model is left."""
        self.pace, self.rival = 1.0, None
