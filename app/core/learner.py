"""The learner: a fold over the examples log, whose state carries its position.

The log is one partition, totally ordered, so the model is a function of the log: a learner
that was killed at any point and one that was not end with the same digest. The join sends an
example at least once; what comes again lies close by, so a bounded memory of the transactions
lately learnt is enough that none teaches twice.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np

from app.core.calibration import Calibration
from app.core.drift.channels import Terms
from app.core.drift.monitor import Monitor
from app.core.drift.reaction import Done, Reactions
from app.core.encoding import Encoding
from app.core.evaluation import Evaluation, Told, was_fraud
from app.core.hashing import hash_id
from app.core.investigators import Lesson
from app.core.mixture import Mixture
from app.core.novelty import Novelty
from app.core.pending import MATURITY
from app.core.recent import Recent
from app.core.scoremap import ScoreMap
from app.records import Action, Example, LabelOutcome, ModelVersion, Summary, Undo, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from app.core.investigators import Investigators
    from app.core.models import Model
    from app.records import Drift, Fact, Outcome


#: Raised whenever what a learner holds is no longer what an older program wrote.
FORMAT: Final = 6
#: 1,024: shares of frauds move little within, and a line is fitted in half a millisecond.
REFRESH_EXAMPLES: Final = 1_024
#: Every 1,024 records of the log the digest is noted, and 64 notes are kept: learners that lie
#: 60,000 records apart can still be compared.
MILESTONE: Final = 1_024
_MILESTONES_MAX: Final = 64


@dataclass(slots=True)
class LearnerEffects:
    """What the world should be told."""

    outcomes: list[LabelOutcome] = field(default_factory=list)
    drifts: list[Drift] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)  # what was done about drift
    n_learned: int = 0


@dataclass(slots=True)
class Lessons:
    """What a batch teaches."""

    #: scores with their labels, and corrections, which move what was counted
    counted: list[Told] = field(default_factory=list)
    #: in their order; true: by the model of everything
    taught: list[tuple[bool, Lesson]] = field(default_factory=list)
    n_ours: int = 0  # by the model of everything

    def add(self, lessons: Sequence[Lesson]) -> None:
        """Teach the model of everything, too."""
        self.taught.extend((True, one) for one in lessons)
        self.n_ours += len(lessons)


def _columns(
    lessons: Sequence[Lesson],
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Rows, labels and weights of some lessons."""
    packed, labels, weights, _ = zip(*lessons, strict=True)
    # Writable, as rows are elsewhere: of what is not, kernels would be compiled again.
    rows = np.frombuffer(bytearray().join(packed), np.float64).reshape(len(lessons), -1)
    return rows, np.array(labels, np.bool_), np.array(weights, np.float64)


class Trail(NamedTuple):
    """What a learner learnt from, in a few digests: enough to hold another one against it."""

    age: tuple[int, int]
    told: dict[str, str]  # settings it was made with
    milestones: dict[int, str]  # offset -> digest of all that was learnt before it

    def contradicts(self, other: Trail) -> str:
        """Where two learners of one log do not agree, in words; empty: nowhere."""
        if self.age[0] != other.age[0]:
            return ""  # one was made of the corrected log, and follows the other
        if differ := sorted(n for n, v in self.told.items() if other.told.get(n) != v):
            return f"they were made with other settings: {', '.join(differ)}"
        mine, theirs = self.milestones, other.milestones
        at = next((at for at in sorted(mine.keys() & theirs) if mine[at] != theirs[at]), None)
        return "" if at is None else f"before offset {at} one learnt {mine[at]}, one {theirs[at]}"


@dataclass
class Learner:
    """A model and everything learnt with it.

    ``apply`` takes the log in order and in batches of any size; the batches make no
    difference. What lies at or before ``position`` changes nothing.
    """

    name: str
    model: Model
    schema: str
    corrections: Literal["ignore", "relearn", "rebuild"] = "ignore"
    learnt_max: int = 65_536
    drift: Terms = field(default_factory=Terms)
    cold_start: int = 0
    calibrates: bool = False
    encoding: Encoding = field(default_factory=Encoding)
    investigators: Investigators | None = None
    evaluation: Evaluation = field(default_factory=Evaluation)
    told: dict[str, str] = field(default_factory=dict)  # settings it was made with, for people
    rebuilt: int = -1  # up to this offset it was made of the corrected log; -1: it never was
    position: int = -1
    n_learned: int = 0
    n_frauds: int = 0
    n_taught: int = 0  # of the model of everything; what investigators say comes to it later
    digest: str = "0" * 16

    def __post_init__(self) -> None:
        """Start with nothing learnt."""
        #: transactions and how they were counted (``Evaluation.code``)
        self.learnt = Recent(self.learnt_max)
        #: labels lately decided, by their positions
        self.decided = Recent(self.learnt_max)
        self.summarised: dict[int, int] = {}  # scores partition -> highest offset summarised
        #: offset -> digest of all that was learnt before it, newest last
        self.milestones: dict[int, str] = {}
        self.calibration = Calibration()
        self.scores = ScoreMap()
        self.novelty = Novelty.of(len(self.model.features))
        self.monitor = Monitor(self.drift)
        self.reactions = Reactions(frozenset(self.drift.reactions.values()))

    @property
    def version(self) -> ModelVersion:
        """Which model this is: a name, a position and a digest of all that was learnt."""
        return ModelVersion(self.name, self.position, self.digest)

    @property
    def age(self) -> tuple[int, int]:
        """Orders the learners of one log: a rebuilt one goes before all of before it."""
        return self.rebuilt, self.position

    @property
    def trail(self) -> Trail:
        """What it learnt from, in a few digests."""
        milestones = {**self.milestones, self.position + 1: self.digest}
        return Trail(self.age, self.told, milestones)

    @property
    def trust(self) -> float:
        """Share of the model in a score, [0, 1]: the rest is told without labels (``novelty``).

        It grows with the frauds learnt, up to ``cold_start`` of them.
        """
        return min(1.0, self.n_frauds / self.cold_start) if self.cold_start else 1.0

    @property
    def mixture(self) -> Mixture:
        """What gives scores now."""
        told = self.investigators
        return Mixture(
            self.model,
            self.calibration,
            self.encoding,
            told.model if told else None,
            told.weight if told else 0.0,
            self.novelty,
            self.trust,
        )

    def apply(self, records: Sequence[tuple[int, Fact]]) -> LearnerEffects:
        """Learn from (offset, record) in the order of the log."""
        effects, lessons = LearnerEffects(), Lessons()
        for offset, record in records:
            if offset <= self.position:
                continue
            if offset // MILESTONE != self.position // MILESTONE:
                self._pass_milestone(offset - offset % MILESTONE)
            self.position = offset
            heard = self._hear(record, lessons, effects)
            # What came before changes the model as it was then, and what stands still in between
            # moves at one record, however records come in batches.
            is_full = self.n_taught % REFRESH_EXAMPLES + lessons.n_ours >= REFRESH_EXAMPLES
            if heard or is_full or isinstance(record, Undo):
                self._learn(lessons, effects)
                lessons = Lessons()
            for drift in heard:
                self._react(drift, effects)
            if isinstance(record, Undo):
                self._undo(record, effects)
        self._learn(lessons, effects)
        return effects

    def _hear(self, record: Fact, lessons: Lessons, effects: LearnerEffects) -> list[Drift]:
        """Take a record in; return what it says of the world."""
        if isinstance(record, Summary):
            return self._watch(record)
        if isinstance(record, Example):
            self._meet(record, lessons, effects)
        elif isinstance(record, Verdict) and _place(record.outcome.origin) not in self.decided:
            self._decide(record.outcome, effects)
            self._confirm(record.outcome, lessons)
        return []

    def _pass_milestone(self, at: int) -> None:
        self.milestones[at] = self.digest
        if len(self.milestones) > _MILESTONES_MAX:
            del self.milestones[next(iter(self.milestones))]

    def _confirm(self, outcome: LabelOutcome, lessons: Lessons) -> None:
        """Learn at once what an investigator said, where a late label says it again."""
        told = self.investigators
        if told is None or outcome.outcome != "duplicate" or outcome.label_source in told.sources:
            return
        lesson = told.take(hash_id(outcome.transaction_id))
        lessons.add([lesson] if lesson else [])

    def _meet(self, example: Example, lessons: Lessons, effects: LearnerEffects) -> None:
        """Decide what becomes of an example, and who learns it when."""
        key = hash_id(example.transaction_id)
        before = self.learnt.get(key)
        outcome = self._assess(example, key, before, effects)
        if outcome is None or outcome == "rejected":
            return
        if outcome != "duplicate":
            lessons.counted.append((example, before))
        is_news = outcome == "learn" or (outcome == "corrected" and self.corrections == "relearn")
        told, lesson = self.investigators, Lesson.of(example)
        if is_news:
            self._account(example, lesson, effects)
        if told is None:
            lessons.add([lesson] if is_news else [])
            return
        lessons.add(told.due(example.label_time_ms))
        if not told.hears(example):
            has_waited = told.take(key) is not None
            lessons.add([lesson] if is_news or has_waited else [])
        elif is_news:
            lessons.taught.append((False, lesson))
            lessons.add(told.keep(key, lesson, example.label_time_ms))

    def _assess(
        self, example: Example, key: int, before: int | None, effects: LearnerEffects
    ) -> Outcome | None:
        """Decide the one outcome of an example; None: it was delivered again."""
        if _place(example.origin) in self.decided:
            return None
        n, expected = len(example.features), len(self.model.features)
        if (example.feature_schema, n) != (self.schema, expected):
            theirs, mine = f"{n} features of schema {example.feature_schema}", self.schema
            reason = f"{theirs}; this model has {expected} of {mine}"
            return self._tell(example, "rejected", effects, reason)
        if before is not None and example.label_source == MATURITY:
            return None  # delivered again, or overtaken by a label
        is_again = before is not None and was_fraud(before) == example.is_fraud
        code = before if before is not None and is_again else self.evaluation.code(example, before)
        self.learnt.put(key, code)
        if before is None:
            return self._tell(example, "learn", effects)
        # Far apart, only the join can know that a label corrects; it says so by sending it.
        return self._tell(example, "duplicate" if is_again else "corrected", effects)

    def _decide(self, outcome: LabelOutcome, effects: LearnerEffects) -> None:
        """Give a label its one outcome: what comes for it again changes nothing."""
        self.decided.put(_place(outcome.origin))
        effects.outcomes.append(outcome)

    def _tell(
        self, example: Example, outcome: Outcome, effects: LearnerEffects, reason: str = ""
    ) -> Outcome:
        if example.label_source == MATURITY:
            return outcome  # nobody's label
        told = LabelOutcome(
            transaction_id=example.transaction_id,
            outcome=outcome,
            is_fraud=example.is_fraud,
            label_source=example.label_source,
            origin=example.origin,
            reason=reason,
        )
        self._decide(told, effects)
        return outcome

    def _account(self, example: Example, lesson: Lesson, effects: LearnerEffects) -> None:
        effects.n_learned += 1
        self.n_learned += 1
        self.n_frauds += example.is_fraud
        told = f"{self.digest}|{example.transaction_id}|{example.is_fraud}|{example.weight!r}|"
        self.digest = hashlib.blake2b(told.encode() + lesson.row, digest_size=8).hexdigest()
        above = self.scores.above(example.score) if example.is_fraud else 0.0
        self.monitor.on_example(example, above, self.version)

    def _watch(self, summary: Summary) -> list[Drift]:
        if summary.last_offset <= self.summarised.get(summary.partition, -1):
            return []
        self.summarised[summary.partition] = summary.last_offset
        if summary.feature_schema != self.schema:
            return []  # of another model, from before a change of the features
        self.scores.update(np.array(summary.bins, np.int64), summary.last_time_ms)
        if summary.n_looked:
            means = np.array(summary.feature_means, np.float64)
            self.novelty.merge(summary.n_looked, means, np.array(summary.feature_squares))
        return self.monitor.on_summary(summary, self.version)

    def _react(self, drift: Drift, effects: LearnerEffects) -> None:
        """Do what is declared for an incident that opens or closes, and tell of it."""
        name, reaction = drift.incident, drift.reaction
        if drift.event == "opened":
            begun = self.reactions.begin(name, reaction, drift.since_ms, self.model, self.version)
            self._follow(begun, effects)
        elif drift.event == "closed":
            self._follow(Done(self.model, self.reactions.end(name, drift.ended)), effects)
        told = msgspec.structs.replace(drift, reaction=self.reactions.told(reaction, name))
        effects.drifts.append(told)

    def _undo(self, undo: Undo, effects: LearnerEffects) -> None:
        """End what is done about an incident, because somebody says so."""
        why = f"undone by {undo.actor}: {undo.reason}"
        is_about = self.reactions.is_about(undo.incident)
        done = self.reactions.undo(undo.incident, why, self.model, self.version)
        self._follow(done, effects, undo.actor)
        if is_about:
            effects.drifts += self.monitor.on_undone(undo.incident, why, self.version)

    def _follow(self, done: Done, effects: LearnerEffects, actor: str = "weir") -> None:
        """Let the model decide that a reaction leads to, and tell what was done."""
        self.model = done.model
        rival = self.reactions.rival
        for model in (self.model, *([rival.model] if rival else [])):
            model.pace = self.reactions.pace
        version, time_ms = self.version, self.monitor.clock_ms
        for kind, incident, reaction, detail in done.changes:
            # Folded again it is the same; a learner of another log says something else.
            identity = f"{incident}/{detail.get('event', 'decides')}/{version}"
            told = {"incident": incident, "reaction": reaction, **detail}
            told |= {"position": version.position, "time_ms": time_ms}
            effects.actions.append(Action(kind, self.name, identity, actor, told))

    def _learn(self, lessons: Lessons, effects: LearnerEffects) -> None:
        self.evaluation.update(lessons.counted)
        part: list[tuple[bool, Lesson]] = []
        for is_ours, lesson in lessons.taught:
            part.append((is_ours, lesson))
            if not is_ours:
                continue
            self.n_taught += 1
            if self.n_taught % REFRESH_EXAMPLES == 0:
                self._teach(part)
                part = []
                self._refresh(effects)
        self._teach(part)

    def _refresh(self, effects: LearnerEffects) -> None:
        """Let all that stands still in between follow what was learnt."""
        self.encoding.refresh()
        if self.calibrates:
            self.calibration.fit()
        self._follow(self.reactions.choose(self.model, self.version), effects)
        if not self.monitor.incidents:
            self.reactions.keep(self.model, self.monitor.clock_ms, self.version)

    def _teach(self, part: Sequence[tuple[bool, Lesson]]) -> None:
        """Teach each model its lessons, in their order; the tables stand still meanwhile."""
        ours, theirs = (
            [one for is_ours, one in part if is_ours is whose] for whose in (True, False)
        )
        if ours:
            rows, is_fraud, weights = _columns(ours)
            self.reactions.teach(self.model, self.encoding.apply(rows), is_fraud, weights)
            self.encoding.update(rows, is_fraud, weights)
            if self.calibrates:
                said = np.array([lesson.raw for lesson in ours])
                heard = ~np.isnan(said)
                self.calibration.update(said[heard], is_fraud[heard], weights[heard])
        if theirs and self.investigators:
            rows, is_fraud, weights = _columns(theirs)
            self.investigators.model.learn_many(self.encoding.apply(rows), is_fraud, weights)

    def __getstate__(self) -> dict[str, Any]:
        """State as plain values, and which program wrote it."""
        return {**self.__dict__, "format": FORMAT}


@cache
def _source(topic: str, partition: int) -> int:
    """64 bits for a partition; there are few."""
    return hash_id(f"{topic}/{partition}")


def _place(origin: tuple[str, int, int]) -> int:
    """64 bits for a position. Within a partition no two are equal: the factor is odd."""
    topic, partition, offset = origin
    return (_source(topic, partition) + offset * 0x9E3779B97F4A7C15) & 0xFFFF_FFFF_FFFF_FFFF
