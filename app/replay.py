"""The examples log folded again: to verify the models made of it, to make a better one.

A model is a function of the log and of the settings it was made with. So whoever has both can
say whether a snapshot is what it claims to be (``verify``); and where labels were corrected
later, what the model would be had they been right from the first (``rebuild``).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

import numpy as np
from aiokafka import TopicPartition

from app import audit, codec
from app.core.corrections import Words
from app.core.features import FeaturePlan
from app.core.hashing import hash_id
from app.core.measures.ranking import Ranking
from app.core.scoring import Champion
from app.errors import Malformed, Refused
from app.kafka import Reader, Sender, now_ms, reach
from app.learning import made_with, new_learner
from app.records import Action, Example, Partition, Record, Send
from app.shelf import CHAMPION, described, frozen, hints, open_learner
from app.tasks import Range
from app.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from app.config import Settings
    from app.core.learner import Learner
    from app.records import Fact, ModelVersion
    from app.tasks import Task

    Placed = tuple[int, Fact]
    Advance = Callable[[int], None]

#: Records that are scored before any of them is learnt, where a model is judged.
CHUNK: Final = 256
#: Fewer frauds than this say nothing of which model is better.
FRAUDS_MIN: Final = 10


class Extent(NamedTuple):
    """Offsets [first, stop) that a partition holds."""

    first: int
    stop: int


class Log:
    """The examples log of one installation, as it stands now."""

    def __init__(self, settings: Settings, advance: Advance | None = None) -> None:
        """Describe it; ``advance`` is told how many records were read."""
        self.settings, self._advance = settings, advance
        self.plan = FeaturePlan.of(settings.features, settings.transaction.entities)
        self.at = Partition(Topics.of(settings).examples.name, 0)

    async def extent(self) -> Extent:
        """How far it reaches. Raises Refused where there is none."""
        consumer = Reader(self.settings).client()
        await reach(consumer.start, self.settings.kafka.bootstrap)
        try:
            if self.at.topic not in await consumer.topics():
                raise Refused(f"{self.at.topic} does not exist; run `weir topics create`")
            tp = TopicPartition(*self.at)
            first, stop = await consumer.beginning_offsets([tp]), await consumer.end_offsets([tp])
            return Extent(first[tp], stop[tp])
        finally:
            await consumer.stop()

    async def read(self, start: int, stop: int, take: Callable[[list[Placed]], object]) -> None:
        """Hand over the facts of [start, stop), in their order, some at a time."""
        if start < stop:
            told = cast("Task", _Hand(take, self._advance))  # all that a reader needs of one
            await Reader(self.settings).read(told, [Range(self.at, start, stop)])


@dataclass
class _Hand:
    take: Callable[[list[Placed]], object]
    advance: Advance | None

    def restore(self, partition: Partition, records: Sequence[Record]) -> None:
        self.take(list(_readable(records)))
        if self.advance is not None:
            self.advance(len(records))


def _readable(records: Iterable[Record]) -> Iterator[Placed]:
    """Facts; what cannot be read is among the dead letters, and the learner passes it over."""
    for record in records:
        try:
            yield record.offset, codec.read_example(record)
        except Malformed:
            continue


# ---- Is a snapshot what the log makes?

State = Literal["equal", "differs", "given", "not checked"]


@dataclass
class Checked:
    """A snapshot, and whether the log makes the same."""

    offset: int  # in the models topic
    key: str
    state: State = "not checked"
    why: str = ""
    learner: Learner | None = field(default=None, repr=False)
    recomputed: str = ""  # the digest that the log makes

    @property
    def told(self) -> dict[str, str | int | None]:
        """For people and programs."""
        one = self.learner
        return {
            "offset": self.offset,
            "key": self.key,
            "position": one.position if one else None,
            "rebuilt": one.rebuilt if one else None,
            "learned": one.n_learned if one else None,
            "digest": one.digest if one else None,
            "recomputed": self.recomputed or None,
            "state": self.state,
            "why": self.why,
        }


def examine(snapshots: Iterable[Record], log: Log) -> list[Checked]:
    """Open every snapshot of a learner; what cannot be opened says why.

    What gives scores alone is left out: it lies beside a learner, and is a part of that.
    """
    found = []
    for record in snapshots:
        one = Checked(record.offset, (record.key or b"").decode("utf-8", "replace"))
        try:
            if described(record, log.settings, log.plan).kind == CHAMPION:
                continue
            one.learner = open_learner(record, log.settings, log.plan)
        except Refused as error:
            one.why = str(error)
        found.append(one)
    return found


async def verify(checked: Sequence[Checked], log: Log, extent: Extent) -> None:
    """Make each model again from the log, and say of each snapshot whether it is the same.

    Snapshots of one making are checked in one pass, from the beginning of the log; where that is
    gone, or the settings are others, from the oldest of them that is kept.
    """
    for making in _makings(checked):
        fitting = [one for one in making if _fits(one, extent)]
        if fitting:
            learner, start = await _beginning(fitting, log, extent)
            waiting = [one for one in fitting if one.state == "not checked"]
            stop = max((_learner(one).position for one in waiting), default=-1) + 1
            await log.read(start, stop, _Against(learner, waiting).take)


def _makings(checked: Sequence[Checked]) -> list[list[Checked]]:
    """Snapshots of one making, by position: the same settings, the same corrections."""
    found: dict[tuple[int, tuple[tuple[str, str], ...]], list[Checked]] = {}
    for one in checked:
        if one.learner is not None:
            making = (one.learner.rebuilt, tuple(sorted(one.learner.told.items())))
            found.setdefault(making, []).append(one)
    return [sorted(making, key=lambda one: _learner(one).position) for making in found.values()]


def _learner(one: Checked) -> Learner:
    return cast("Learner", one.learner)


def _fits(one: Checked, extent: Extent) -> bool:
    """Whether the log holds what is needed to judge a snapshot; else say what is not there."""
    position = _learner(one).position
    if position >= extent.stop:
        one.state = "differs"
        one.why = f"it holds examples up to {position}; the log ends before {extent.stop}"
    elif position + 1 < extent.first:
        one.why = f"retention: the log begins at {extent.first}, the snapshot ends at {position}"
    return not one.why


async def _beginning(making: Sequence[Checked], log: Log, extent: Extent) -> tuple[Learner, int]:
    """A learner from which a making can be folded on, and where in the log."""
    oldest, why = making[0], _not_from_the_first(_learner(making[0]), extent, log.settings)
    if why:
        oldest.state, oldest.why = "given", f"the others are folded from it: {why}"
        learner = deepcopy(_learner(oldest))
        return learner, learner.position + 1
    rebuilt = _learner(oldest).rebuilt
    if rebuilt < 0:
        return new_learner(log.settings, log.plan), extent.first
    return await fold_corrected(log, rebuilt + 1), rebuilt + 1


def _not_from_the_first(learner: Learner, extent: Extent, settings: Settings) -> str:
    """Why a model cannot be made from nothing; empty: it can."""
    if extent.first > 0:
        return f"retention has passed the beginning of the log, which begins at {extent.first}"
    made = made_with(settings)
    differ = [name for name in made if learner.told.get(name) != made[name]]
    return f"it was made with other settings: {', '.join(differ)}" if differ else ""


@dataclass
class _Against:
    """Folds on, and holds the learner against each snapshot at its position."""

    learner: Learner
    waiting: list[Checked]

    def take(self, facts: list[Placed]) -> None:
        while self.waiting and facts and _learner(self.waiting[0]).position <= facts[-1][0]:
            one = self.waiting.pop(0)
            position = _learner(one).position
            self.learner.apply([fact for fact in facts if fact[0] <= position])
            self._compare(one)
        self.learner.apply(facts)

    def _compare(self, one: Checked) -> None:
        kept, made = _learner(one), self.learner
        one.recomputed, one.state = made.digest, "differs"
        if kept.version != made.version:
            one.why = f"the log makes position {made.position}, digest {made.digest}"
            at = made.trail.contradicts(kept.trail)
            one.why += f": {at}" if at else ""
        elif kept.model.state_digest() != made.model.state_digest():
            one.why = "the same examples were learnt, and the model's numbers are others"
        else:
            one.state = "equal"


# ---- A model of the corrected log.


@dataclass
class Judge:
    """How well a model scores the last examples, each before it is learnt.

    Judged by the last word on each transaction, and each once.
    """

    words: Words
    start: int  # offset of the first example that counts
    ranking: Ranking = field(default_factory=Ranking)
    n: int = 0
    frauds: int = 0

    def hear(self, learner: Learner, facts: Sequence[Placed]) -> None:
        """Score what a learner has not learnt yet."""
        news: dict[int, Example] = {}
        for offset, fact in facts:
            if offset < self.start or not isinstance(fact, Example):
                continue
            key = hash_id(fact.transaction_id)
            if fact.feature_schema == learner.schema and key not in learner.learnt:
                news.setdefault(key, self.words.of(fact))
        if not news:
            return
        told = list(news.values())
        rows = np.array([example.features for example in told], np.float64)
        is_fraud = np.array([example.is_fraud for example in told], np.bool_)
        weights = np.array([example.weight for example in told], np.float64)
        self.ranking.update(learner.mixture.score_many(rows)[0], is_fraud, weights)
        self.n, self.frauds = self.n + len(told), self.frauds + int(is_fraud.sum())


@dataclass
class _Judged:
    """Folds on in chunks of the log, each judged before it is learnt."""

    learner: Learner
    judge: Judge | None = None
    words: Words | None = None  # learn what these say, not what was said at first
    _chunk: list[Placed] = field(default_factory=list)

    def take(self, facts: list[Placed]) -> None:
        for offset, fact in facts:
            if self._chunk and self._chunk[0][0] // CHUNK != offset // CHUNK:
                self.flush()
            self._chunk.append((offset, fact))

    def flush(self) -> None:
        if self.judge is not None:
            self.judge.hear(self.learner, self._chunk)
        self.learner.apply([(offset, self._said(fact)) for offset, fact in self._chunk])
        self._chunk = []

    def _said(self, fact: Fact) -> Fact:
        is_told = self.words is not None and isinstance(fact, Example)
        return cast("Words", self.words).of(cast("Example", fact)) if is_told else fact


async def last_words(log: Log, start: int, stop: int) -> Words:
    """What the log says in the end."""
    words = Words()
    await log.read(start, stop, lambda facts: words.update(fact for _, fact in facts))
    return words


async def fold_corrected(
    log: Log, stop: int, words: Words | None = None, judge: Judge | None = None
) -> Learner:
    """The model of the whole log up to ``stop``, had every label been right from the first."""
    said = await last_words(log, 0, stop) if words is None else words
    judged = _Judged(new_learner(log.settings, log.plan), judge, said)
    await log.read(0, stop, judged.take)
    judged.flush()
    judged.learner.rebuilt = stop - 1
    return judged.learner


@dataclass(frozen=True)
class Rebuilt:
    """A model of the corrected log, and how it stands beside the one in use."""

    candidate: Learner
    replaces: ModelVersion  # the model in use, at the end of the log
    corrected: int  # transactions whose label was corrected
    start: int  # offset of the first example that both were judged by
    n: int  # transactions that both were judged by, each scored before it was learnt
    frauds: int
    average_precision: float
    champion_average_precision: float
    tolerance: float

    @property
    def promotion(self) -> dict[str, Any]:
        """What the audit has of it."""
        theirs, mine = (
            None if np.isnan(value) else round(value, 4)
            for value in (self.champion_average_precision, self.average_precision)
        )
        return {
            "from": str(self.replaces),
            "to": str(self.candidate.version),
            "position": self.candidate.position,
            "corrected": self.corrected,
            "judged": self.n,
            "average_precision": {"from": theirs, "to": mine},
        }

    @property
    def objection(self) -> str:
        """Why it should not take the place of the model in use; empty: it may."""
        if self.frauds < FRAUDS_MIN or self.frauds == self.n:
            return (
                f"{self.n} transactions with {self.frauds} frauds lie in the log from offset "
                f"{self.start} on; expected at least {FRAUDS_MIN} frauds, and others, to judge by"
            )
        mine, theirs = self.average_precision, self.champion_average_precision
        if mine < theirs - self.tolerance:
            return (
                f"average precision {mine:.4f} on the {self.n} transactions judged; expected at "
                f"least {theirs:.4f}, that of the model in use, less {self.tolerance:g}"
            )
        return ""


async def rebuild(
    checked: Sequence[Checked], log: Log, extent: Extent, *, recent: int, tolerance: float = 0.0
) -> Rebuilt:
    """Make a model of the corrected log, and judge it beside the one in use.

    Both are folded from the log and score the examples among its last ``recent`` records, each
    before it is learnt. Raises Refused where the beginning of the log is gone.
    """
    if extent.first > 0:
        raise Refused(
            f"{log.at.topic} begins at offset {extent.first}; expected 0: retention has passed "
            "its beginning, and a model of the rest would have forgotten the others"
        )
    words = await last_words(log, 0, extent.stop)
    start = max(0, extent.stop - recent)
    theirs, mine = Judge(words, start), Judge(words, start)
    held = max((c for c in checked if c.learner), key=lambda c: _learner(c).age, default=None)
    making = [] if held is None else next(m for m in _makings(checked) if held in m)
    champion, at = new_learner(log.settings, log.plan), 0
    if making:
        champion, at = await _beginning(making, log, extent)
        theirs.start = mine.start = max(start, at)
    judged = _Judged(champion, theirs)
    await log.read(at, extent.stop, judged.take)
    judged.flush()
    candidate = await fold_corrected(log, extent.stop, words, mine)
    return Rebuilt(
        candidate,
        champion.version,
        words.corrected,
        mine.start,
        mine.n,
        mine.frauds,
        mine.ranking.average_precision,
        theirs.ranking.average_precision,
        tolerance,
    )


async def publish(rebuilt: Rebuilt, settings: Settings, actor: str, why: str) -> None:
    """Say to the audit what is done, and write the snapshots of a rebuilt model.

    The learner's first, since who learns ends as soon as it sees the other, and goes on from it.
    """
    learner, topics = rebuilt.candidate, Topics.of(settings)
    key = settings.learner.key.get_secret_value().encode()
    identity = f"rebuilt/{learner.version}/{now_ms()}"
    detail = {"reaction": "rebuild", "why": why, **rebuilt.promotion}
    promoted = Action("promotion", learner.name, identity, actor, detail)
    async with Sender(settings) as sender:
        await sender.deliver([audit.told(topics, promoted)])
        # Keys of their own: the learner's take turns, and one of them would soon take its place.
        champion = Champion.of(learner).for_scoring()
        for name, state in (("champion/rebuilt", learner), ("scores/rebuilt", champion)):
            copy = frozen(state, learner)
            headers = (*hints(copy.about), ("weir-reason", why.encode()))
            value = copy.sealed(key)
            await sender.deliver([Send(topics.models.name, 0, name.encode(), value, headers)])
