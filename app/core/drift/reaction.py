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
it, or by a person, whose word stands in the log. When the incident is closed the other one is let
go. All of it follows from the log alone, and each of it is told for the audit.
"""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from app.core.measures.ranking import Ranking
from app.records import ModelVersion

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.core.models import Model

Reaction = Literal["nothing", "faster", "background", "rollback", "page"]

#: Four times the pace: a memory of weeks is filled anew within days.
FASTER: Final = 4.0
#: Examples by which two models are compared: a few hundred frauds at a share of some per cent.
_COMPARED_MAX: Final = 16_384
#: With fewer frauds average precision is noise.
_FRAUDS_MIN: Final = 50
#: A tenth better: what noise makes of fifty frauds must not change who decides at every look.
_BETTER: Final = 1.1


class Change(NamedTuple):
    """What was done about an incident, in the words of the audit."""

    kind: Literal["reaction", "promotion", "rollback"]  # the last two: another model decides
    incident: str
    reaction: str
    detail: dict[str, Any]


class Done(NamedTuple):
    """The model that decides from now on, and what was done to come there."""

    model: Model
    changes: list[Change]


class Told(NamedTuple):
    """An example as two models ranked it before they learnt it."""

    is_fraud: bool
    ours: float
    theirs: float


@dataclass
class Rival:
    """A model beside the one that decides; the two are compared on what both have yet to learn.

    It was taught all that ``known`` was, and everything after the offset ``since``.
    """

    model: Model
    incident: str
    reaction: str
    known: ModelVersion  # as it decided last; position -1: it never did
    since: int
    is_first: bool = False  # it is the one that decided before anything was done
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

    def swap(self, model: Model, version: ModelVersion) -> Done:
        """Put ``model`` aside and let the rival decide; both are compared anew."""
        detail = _from_to(version, self.known, self.since)
        if (told := self.compared()) is not None:
            detail["average_precision"] = {"from": round(told[0], 4), "to": round(told[1], 4)}
        self.model, rival = model, self.model
        self.known, self.since = version, version.position
        self.is_first = not self.is_first
        self.told.clear()
        return Done(rival, [Change("promotion", self.incident, self.reaction, detail)])

    def is_better(self) -> bool:
        """Whether the rival ranks so much better that it should decide."""
        told = self.compared()
        return told is not None and told[1] > _BETTER * told[0]


def _precision(margins: NDArray[np.float64], is_fraud: NDArray[np.bool_]) -> float:
    ranking = Ranking()
    ranking.update(1.0 / (1.0 + np.exp(-margins)), is_fraud)
    return ranking.average_precision


def _from_to(version: ModelVersion, known: ModelVersion, since: int) -> dict[str, Any]:
    """Which model decided, and which does now."""
    return {"from": str(version), "to": str(known), "to_taught_after": since}


class Kept(NamedTuple):
    """A copy of a model, which one it is, and when it was made (event time)."""

    time_ms: int
    model: Model
    version: ModelVersion


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
    hurried: tuple[str, ...] = ()  # open incidents for which examples weigh more
    n_swaps: int = 0  # of who decides, since there is a rival
    kept: list[Kept] = field(default_factory=list)

    @property
    def pace(self) -> float:
        """How many times what they usually do examples weigh."""
        return FASTER if self.hurried else 1.0

    def keep(self, model: Model, time_ms: int, version: ModelVersion) -> None:
        """Copy the model if it is time to."""
        if "rollback" not in self.declared or self.rival is not None:
            return
        if not self.kept or time_ms - self.kept[-1].time_ms >= self.every_ms:
            copy = Kept(time_ms, deepcopy(model), version)
            self.kept = [*self.kept, copy][-self.copies :]

    def begin(
        self, incident: str, reaction: str, since_ms: int, model: Model, version: ModelVersion
    ) -> Done:
        """Do what is declared for an incident that opens."""
        if reaction in {"background", "rollback"}:
            return self._put_beside(incident, reaction, since_ms, model, version)
        if reaction == "faster":
            self.hurried = (*self.hurried, incident)
            begun = _said(incident, reaction, "begun", pace=self.pace)
            return Done(model, [begun])
        return Done(model, [_said(incident, reaction, "begun")] if reaction == "page" else [])

    def _put_beside(
        self, incident: str, reaction: str, since_ms: int, model: Model, version: ModelVersion
    ) -> Done:
        """Let another model learn beside the one that decides, or decide in its place."""
        before = [kept for kept in self.kept if kept.time_ms <= since_ms]
        why = ""
        if self.rival is not None and self.rival.is_first:
            # It would be pushed out: the only one that there is a way back to.
            why = f"the model from before {self.rival.incident} is kept beside"
        elif reaction == "rollback" and not before:
            why = "no copy is kept from before the change"
        if why:
            return Done(model, [_said(incident, reaction, "not begun", why=why)])
        changes = self._let_go(f"{incident} takes its place")
        at, self.n_swaps = version.position, 0
        if reaction == "background":
            new = ModelVersion(version.name, -1, "0" * len(version.digest))
            self.rival = Rival(model.blank(), incident, reaction, new, at)
            return Done(model, [*changes, _said(incident, reaction, "begun")])
        copy = before[-1]
        self.rival = Rival(model, incident, reaction, version, at, is_first=True)
        detail = _from_to(version, copy.version, at)
        changes.append(Change("rollback", incident, reaction, detail))
        return Done(deepcopy(copy.model), changes)

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

    def choose(self, model: Model, version: ModelVersion) -> Done:
        """Let that one of the two decide which is better."""
        if self.rival is None or not self.rival.is_better():
            return Done(model, [])
        self.n_swaps += 1
        return self.rival.swap(model, version)

    def told(self, reaction: str, incident: str) -> str:
        """The reaction to an incident in words.

        >>> Reactions().told("faster", "drift-1")
        'faster: pace 1'
        """
        if reaction == "faster":
            return f"{reaction}: pace {self.pace:g}"
        if reaction in {"background", "rollback"}:
            rival = self.rival
            compared = rival.compared() if rival and rival.incident == incident else None
            told = f"{reaction}: {self.n_swaps} changes"
            if compared is not None:
                told += f", average precision {compared[0]:.3f}, beside it {compared[1]:.3f}"
            return told
        return reaction

    def end(self, incident: str, why: str) -> list[Change]:
        """Let what was done about an incident be over: the model that decides stays."""
        changes = []
        if incident in self.hurried:
            self.hurried = tuple(name for name in self.hurried if name != incident)
            changes.append(_said(incident, "faster", "ended", pace=self.pace, why=why))
        if self.rival is not None and self.rival.incident == incident:
            changes += self._let_go(why)
        return changes

    def is_about(self, incident: str) -> bool:
        """Whether something is being done about an incident that can be undone."""
        return incident in self.hurried or (
            self.rival is not None and self.rival.incident == incident
        )

    def undo(self, incident: str, why: str, model: Model, version: ModelVersion) -> Done:
        """End what was done about an incident; the model of before decides again."""
        changes: list[Change] = []
        rival = self.rival
        if rival is not None and rival.incident == incident and rival.is_first:
            model, swapped = rival.swap(model, version)
            changes = [one._replace(kind="rollback") for one in swapped]
        changes += self.end(incident, why)
        nothing = "nothing is being done about it that could be undone"
        return Done(model, changes or [_said(incident, "", "not undone", why=nothing)])

    def _let_go(self, why: str) -> list[Change]:
        """Keep only the model that decides."""
        rival, self.rival = self.rival, None
        if rival is None:
            return []
        gone = {"let_go": str(rival.known), "let_go_taught_after": rival.since}
        return [_said(rival.incident, rival.reaction, "ended", why=why, **gone)]


def _said(incident: str, reaction: str, event: str, **detail: Any) -> Change:
    """What was done that lets the same model decide."""
    return Change("reaction", incident, reaction, {"event": event, **detail})
