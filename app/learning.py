"""The shell of the learner: examples in, signed snapshots, outcomes and drift out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import structlog
from aiokafka import TopicPartition
from mode import Service

from app import audit, codec
from app.config import DriftKind
from app.core.drift.channels import Terms as DriftTerms
from app.core.encoding import Encoding
from app.core.evaluation import Evaluation, Terms
from app.core.features import spans_of
from app.core.investigators import Investigators
from app.core.learner import Learner, LearnerEffects
from app.core.measures.rows import DAY_MS
from app.core.models import make_model
from app.core.scoring import Champion
from app.errors import Malformed, Misconfigured, Refused
from app.join import outcome_record
from app.kafka import Reader, reach, read
from app.records import Action, Example, Partition, Send
from app.shelf import CHAMPION, LEARNER, Shelf, described, frozen, hints, is_of
from app.stages import refused
from app.tasks import Bound, Committed, Effects, Range
from app.topics import SNAPSHOT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from app.config import Settings
    from app.core.features import FeaturePlan
    from app.core.learner import Trail
    from app.metrics import Metrics
    from app.records import Fact, LabelOutcome, Record, Undo
    from app.snapshots import About, Frozen
    from app.topics import Topics

log = structlog.get_logger(__name__)

#: As [evaluation] has it: a policy that alerts of more is held against its highest 10,000.
BUDGET_MAX = 10_000


def new_learner(settings: Settings, plan: FeaturePlan) -> Learner:
    """A learner that has learnt nothing, for the configured model and features."""
    told, waits = settings.model, settings.learner.investigators
    try:
        model = make_model(told.name, plan.names, seed=told.seed, **told.params)
    except (TypeError, ValueError) as error:
        raise Misconfigured(f"[model]: {error}") from error
    return Learner(
        name=CHAMPION,
        model=model,
        schema=plan.schema,
        corrections=settings.learner.corrections,
        learnt_max=settings.learner.learnt_max,
        drift=drift_terms(settings, plan),
        cold_start=told.cold_start,
        calibrates=told.calibrate,
        encoding=Encoding(*plan.encoded, prior=told.target_prior),
        investigators=_investigators(settings, plan) if waits.sources else None,
        told=made_with(settings),
        evaluation=Evaluation(terms_of(settings)),
    )


def _investigators(settings: Settings, plan: FeaturePlan) -> Investigators:
    told, waits = settings.model, settings.learner.investigators
    name, seed = waits.name or told.name, told.seed + 1
    try:
        model = make_model(name, plan.names, seed=seed, **waits.params)
    except (TypeError, ValueError) as error:
        raise Misconfigured(f"[learner.investigators]: {error}") from error
    return Investigators(
        model=model,
        sources=waits.sources,
        share=waits.share,
        wait_ms=waits.wait,
        waiting_max=waits.waiting_max,
        frauds_min=told.cold_start,
    )


def made_with(settings: Settings) -> dict[str, str]:
    """Settings that a model keeps for as long as it lives, by their name, as texts."""
    learner = settings.learner
    kept: dict[str, Any] = {
        "model": settings.model.model_dump(),
        "evaluation": settings.evaluation.model_dump(exclude={"sources"}),
        "evaluation.sources": sorted(settings.evaluation.sources),
        "evaluation.budget": terms_of(settings).budget,  # policy.alerts_per_day, if it has none
        "join.maturity": settings.join.maturity,
        "policy.review_cost": settings.policy.review_cost,
        "policy.recovery": settings.policy.recovery,
        "drift": settings.drift.model_dump(),
        "learner.corrections": learner.corrections,
        "learner.learnt_max": learner.learnt_max,
        "learner.investigators": learner.investigators.model_dump(exclude={"sources"}),
        "learner.investigators.sources": sorted(learner.investigators.sources),
        "transaction.segments": settings.transaction.segments,
    }
    return {name: repr(value) for name, value in kept.items()}


def warn_of_other_settings(learner: Learner, settings: Settings) -> None:
    """Say which settings do not count, because the model in use was made with others."""
    differ = [name for name, v in made_with(settings).items() if learner.told.get(name) != v]
    if differ:
        mend = "they count for a model that is learnt anew: docs/policy.md"
        log.warning("model_was_made_with_other_settings", settings=differ, mend=mend)


def drift_terms(settings: Settings, plan: FeaturePlan) -> DriftTerms:
    """What the learner's monitor is about."""
    told = settings.drift
    return DriftTerms(
        names=plan.names,
        spans_ms=spans_of(settings.features),
        segments=settings.transaction.segments,
        false_alarms_per_week=told.false_alarms_per_week,
        block_ms=told.block,
        warmup_ms=told.warmup,
        learning_ms=told.learning,
        reactions={kind: told.reactions.get(kind, told.reaction) for kind in get_args(DriftKind)},
    )


def terms_of(settings: Settings) -> Terms:
    """What the learner's figures of quality are about."""
    told, policy = settings.evaluation, settings.policy
    return Terms(
        top_k=told.top_k,
        budget=told.budget or max(1, min(round(policy.alerts_per_day), BUDGET_MAX)),
        days_max=told.days_max,
        maturity_ms=settings.join.maturity,
        compromised_days=max(1, round(told.compromised / DAY_MS)),
        values_max=told.values_max,
        cards_max=told.cards_max,
        review_cost=policy.review_cost,
        recovery=policy.recovery,
        sources=told.sources,
        segments=settings.transaction.segments,
    )


#: A snapshot that was read, what it is of, or why it does not verify.
Seen = Callable[["Record", "About | None", str | None], None]


@dataclass
class LearnStage:
    """The learner: one partition, one task."""

    settings: Settings
    topics_by_role: Topics
    plan: FeaturePlan
    champion: Champion
    metrics: Metrics
    #: Where snapshots are compressed and signed meanwhile; None: at once.
    beside: Executor | None = None
    name: str = "learn"
    topics: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Find the place of the learner in the flow."""
        self.topics = (self.topics_by_role.examples.name,)

    def task(self, partition: int) -> LearnTask:
        """Return a new task, with nothing restored yet."""
        return LearnTask(self, partition)


class LearnTask:
    """The learner's one task. Its state is a snapshot, which holds its position."""

    def __init__(self, stage: LearnStage, partition: int) -> None:
        """Start with nothing learnt."""
        self.stage = stage
        self.inputs = (Partition(stage.topics[0], partition),)
        self.learner = new_learner(stage.settings, stage.plan)
        self._snapshots = Partition(stage.topics_by_role.models.name, 0)
        self._kept_position = -1  # of the last snapshot
        self._kept_learned = 0
        self._kept_ms = self._kept_bytes = 0
        self._turn = 0
        self._told_below = 0  # examples below this offset have their outcomes
        self._shelf = Shelf(stage.settings, stage.plan, (LEARNER,))
        self._sealing: list[Future[Send]] = []
        self._begun: list[Action] = []  # what is told of the start, with the first turn

    def ranges(self, committed: Mapping[Partition, Committed]) -> list[Range]:
        """All snapshots that are kept: the newest that verifies is where we go on."""
        self._told_below = committed[at].offset if (at := self.inputs[0]) in committed else 0
        return [Range(self._snapshots)]

    def restore(self, partition: Partition, records: Sequence[Record]) -> None:
        """Look at snapshots; the newest that verifies will be opened, once."""
        for record in records:
            name, _, turn = (record.key or b"").decode(errors="replace").rpartition("/")
            if name == CHAMPION and turn.isdecimal():
                self._turn = int(turn) + 1
        self._shelf.put(records)

    def start(self) -> Mapping[Partition, int]:
        """The examples after those that the snapshot holds, wherever the offsets stand."""
        found = self._shelf.open()
        if isinstance(found, Learner) and found.age >= self.learner.age:
            self.learner = found
            self._kept_position, self._kept_learned = found.position, found.n_learned
        elif self._shelf.refused:
            why = self._shelf.refused  # it names the snapshot, so the same is told once
            detail = {"to": str(self.learner.version), "why": why}
            self._begun = [Action("reset", CHAMPION, why, detail=detail)]
        self._adopt()
        self.stage.metrics.learned(self.learner, LearnerEffects())
        if self.learner.position >= 0:
            warn_of_other_settings(self.learner, self.stage.settings)
        return {self.inputs[0]: self.learner.position + 1}

    def reached(self) -> Mapping[Partition, int]:
        """Nothing that ``start`` does not say."""
        return {}

    def apply(
        self, partition: Partition, records: Sequence[Record], now_ms: int, effects: Effects
    ) -> None:
        """Learn; the scorer of this process follows at once."""
        examples: list[tuple[int, Fact]] = []
        for record in records:
            try:
                examples.append((record.offset, codec.read_example(record)))
            except Malformed as error:
                effects.outputs.append(refused(self.stage, partition, record, error))
        followed = self.learner.apply(examples)
        if examples and examples[0][0] < self._told_below:
            followed.outcomes = self._untold(followed.outcomes, examples)
        self._tell(followed, effects)
        self._adopt()
        self._kept_ms = self._kept_ms or now_ms
        self.stage.metrics.learned(self.learner, followed)
        facts = [fact for _, fact in examples]
        self.stage.metrics.labelled(facts, records[-1].timestamp_ms, now_ms)
        self.stage.metrics.consumed(self.stage.name, len(records))

    def _untold(
        self, outcomes: list[LabelOutcome], examples: Sequence[tuple[int, Fact]]
    ) -> list[LabelOutcome]:
        """Outcomes but for what only a model of other features says of labels that have theirs."""
        old = {
            fact.origin
            for offset, fact in examples
            if offset < self._told_below and isinstance(fact, Example)
        }
        return [o for o in outcomes if o.outcome != "rejected" or o.origin not in old]

    def tick(self, now_ms: int, effects: Effects, *, is_last: bool) -> None:
        """Keep a snapshot, every so many examples or so long after the last."""
        self._tell_actions(self._begun, effects)
        self._begun = []
        learner, bounds = self.learner, self.stage.settings.learner
        grown = learner.n_learned - self._kept_learned >= bounds.snapshot_every
        aged = now_ms - self._kept_ms >= bounds.snapshot_interval
        is_due = (grown or aged) and not self._sealing
        if learner.position != self._kept_position and (is_due or is_last):
            self._seal()
            self._kept_position, self._kept_learned = learner.position, learner.n_learned
            self._kept_ms = now_ms
        if is_last or all(one.done() for one in self._sealing):
            for send in [one.result() for one in self._sealing]:
                effects.state.append(send)
                self._kept_bytes = len(send.value or b"")
                self.stage.metrics.snapshot(self._kept_bytes, now_ms)
            self._sealing = []

    def _seal(self) -> None:
        """Copy what is to be kept: what gives scores, and all; make snapshots of it beside."""
        turn = self._turn % self.stage.settings.learner.snapshots_kept
        self._turn += 1
        champion = Champion.of(self.learner).for_scoring()
        # Keys take turns, so that compaction keeps the last few of them.
        for name, state in ((f"scores/{turn}", champion), (f"{CHAMPION}/{turn}", self.learner)):
            copy = frozen(state, self.learner)
            if self.stage.beside is not None:
                self._sealing.append(self.stage.beside.submit(self._sealed, name, copy))
            else:
                self._sealing.append(Future())
                self._sealing[-1].set_result(self._sealed(name, copy))

    def _sealed(self, name: str, copy: Frozen) -> Send:
        key = self.stage.settings.learner.key.get_secret_value().encode()
        value = copy.sealed(key)
        return Send(self._snapshots.topic, 0, name.encode(), value, hints(copy.about))

    def note(self, partition: Partition, offset: int) -> str:
        """Nothing: the position lies in the snapshot."""
        return ""

    def bounds(self) -> Iterator[Bound]:
        """What the learner remembers, and its last snapshot."""
        learner, at = self.learner, (self.stage.name, 0)
        figures, terms = learner.evaluation, learner.evaluation.terms
        held = [
            ("learner.learnt_max", len(learner.learnt), learner.learnt_max),
            ("evaluation.cards_max", len(figures.cards.held), terms.cards_max),
            ("evaluation.days_max", len(figures.days), terms.days_kept),
            ("snapshot_bytes", self._kept_bytes, SNAPSHOT_BYTES),
        ]
        if figures.values:
            fullest = max(len(value.names) - 1 for value in figures.values)
            held.append(("evaluation.values_max", fullest, terms.values_max))
        if told := learner.investigators:
            waiting = len(told.waiting)
            held.append(("learner.investigators.waiting_max", waiting, told.waiting_max))
        yield from (Bound(name, *at, used, limit) for name, used, limit in held)

    def _adopt(self) -> None:
        champion, mine = self.stage.champion, self.learner
        if champion.rebuilt > mine.rebuilt:
            # What it lacks of the log has been read already: to go on from it is to start again.
            raise Refused(
                f"a model rebuilt from the examples before offset {champion.rebuilt + 1} was "
                f"published, and this one was not made of it: starting again from there"
            )
        champion.follow(mine)

    def _tell(self, followed: LearnerEffects, effects: Effects) -> None:
        topics, out = self.stage.topics_by_role, effects.outputs
        out += [outcome_record(topics, outcome) for outcome in followed.outcomes]
        for drift in followed.drifts:
            at = f"{topics.examples.name}/0/{drift.model.position}"
            identity = f"{at}/{drift.incident}/{drift.event}"
            headers = codec.headers_of("drift", identity, at)
            value = codec.encode(drift)
            out.append(Send(topics.drift.name, 0, drift.incident.encode(), value, headers))
        self._tell_actions(followed.actions, effects)
        self.stage.metrics.outcomes(followed.outcomes)

    def _tell_actions(self, actions: Sequence[Action], effects: Effects) -> None:
        for action in actions:
            log.info("model_changed", what=action.kind, by=action.actor, detail=action.detail)
            effects.outputs.append(audit.told(self.stage.topics_by_role, action))


def asked(topics: Topics, undo: Undo) -> Send:
    """Somebody's word that a reaction is to end, on its way to the learner."""
    return Send(topics.examples.name, 0, undo.incident.encode(), codec.encode(undo))


class Follower(Service):
    """Follows the snapshots of a learner in another process: the newest that verifies decides."""

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        plan: FeaturePlan,
        champion: Champion,
        metrics: Metrics | None = None,
        **kwargs: Any,
    ) -> None:
        """Describe what to follow; nothing is connected yet."""
        super().__init__(**kwargs)
        self._settings, self._plan, self._champion = settings, plan, champion
        self._metrics = metrics
        self._at = TopicPartition(topics.models.name, 0)
        self._shelf = Shelf(settings, plan, (CHAMPION, LEARNER), self._compare)
        self._newest: Trail | None = None
        self.caught_up = asyncio.Event()
        self.seen: Seen | None = None
        self.contradiction = ""  # what two learners of this log do not agree in; empty: nothing
        self.taken = 0  # the next snapshot to be taken

    @property
    def refused(self) -> str:
        """Why the newest snapshot that came was; empty where it was not."""
        return self._shelf.refused

    @Service.task
    async def _follow(self) -> None:
        consumer = Reader(self._settings).client()
        await reach(consumer.start, self._settings.kafka.bootstrap)
        try:
            consumer.assign([self._at])
            await consumer.seek_to_beginning(self._at)
            end = (await consumer.end_offsets([self._at]))[self._at]
            while not self.should_stop:
                fetched = await consumer.getmany(self._at, timeout_ms=500)
                records = [read(record) for record in fetched.get(self._at, ())]
                # Beside the loop: what takes long there leaves the lock to others.
                await asyncio.to_thread(self._shelf.put, records, self._champion.age)
                for record in records:
                    await self._show(record)
                self.taken = await consumer.position(self._at)
                if self.taken >= end:
                    self._adopt(await asyncio.to_thread(self._shelf.open))
                    self.caught_up.set()
        finally:
            await consumer.stop()

    async def _show(self, record: Record) -> None:
        """Tell who keeps a list of champions."""
        if self.seen is None or not record.value or is_of(record, LEARNER):
            return
        said, reason = None, None
        try:
            said = await asyncio.to_thread(described, record, self._settings, self._plan)
        except Refused as error:
            reason = str(error)
        self.seen(record, said, reason)

    def take(self, snapshots: Sequence[Record]) -> None:
        """Adopt the newest of some snapshots if it is newer than the model in use."""
        self._shelf.put(snapshots, self._champion.age)
        self._adopt(self._shelf.open())

    def _adopt(self, found: Learner | Champion | None) -> None:
        if found is not None and found.age > self._champion.age:
            self._champion.follow(found)
            version = found.version
            log.info("model_adopted", position=version.position, digest=version.digest)

    def _compare(self, trail: Trail) -> None:
        """Two learners of one log must agree; if not, one of them did not learn that log."""
        told = "" if self._newest is None else trail.contradicts(self._newest)
        if told:
            self.contradiction = f"two learners differ: {told}; `weir replay --verify` says which"
            log.error("models_differ", position=trail.age[1], why=self.contradiction)
            if self._metrics is not None:
                self._metrics.models_differ()
        if self._newest is None or trail.age >= self._newest.age:
            self._newest = trail
