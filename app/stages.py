"""The shell of the entity stages: transactions in, features added, the last one scores.

The same code serves every stage: the first reads transactions, each later one the hops to its
entity; each folds its entity and sends on what was applied; the last one scores. What was
applied before is passed over in silence: its outputs were acknowledged before its state was.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec
import numpy as np
import structlog

from app import codec
from app.core.buckets import FRAUD, LEGITIMATE, UNKNOWN
from app.core.entity import EXPECTED_MAX, EntityStore
from app.core.fallback import FAILED, MODEL, STALE, FallbackChain, Moment
from app.core.pending import SUMMARY_SCORES
from app.core.policy import Policy, Rule
from app.core.scoring import Scorer, applied, fold_entity
from app.core.windows import DUPLICATE
from app.disk import Disk
from app.errors import Malformed, Refused
from app.records import Partition, Position, Send
from app.tasks import Bound, Committed, Effects, Level, Range
from app.topics import DEAD_LETTER_BYTES, partition_of, partitions_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from app.config import LatencySettings, PartSettings, Settings
    from app.core.features import FeaturePlan
    from app.core.scoring import Batch, Champion, Decisions
    from app.metrics import Metrics
    from app.records import Alert, Headers, Record
    from app.tasks import Task
    from app.topics import Topics
    from app.traces import Spans

T = TypeVar("T")

#: 256 KiB: a quarter of what a broker takes in one record by default.
HOPS_BYTES: Final = 262_144
#: Headers of a dead letter: position, reason, the record's own.
_HEADERS_BYTES: Final = 65_536
#: 64 KiB: of a dead letter's key; one that may be is far shorter.
_KEY_BYTES: Final = 65_536
#: 64 records: in fewer what a call costs by itself outweighs what a record does.
_MEASURED: Final = 64
#: An eighth: one batch that the machine disturbed makes no model slow.
_NEWS: Final = 0.125

log = structlog.get_logger(__name__)


@dataclass
class Pace:
    """How long a scorer takes, and for how long it has learnt nothing."""

    #: So many scores anywhere make a summary in some partition, which the learner learns.
    n_learnable: int
    cost_us: float = 0.0
    cpu_ns: Callable[[], int] = time.thread_time_ns

    def decide(self, scorer: Scorer, batch: Batch, now_ms: int) -> Decisions:
        """Decide a batch now; measure it where only the model was asked, and often enough."""
        champion = scorer.champion
        champion.given(len(batch), now_ms, self.n_learnable)
        began_ns = self.cpu_ns()
        moment = Moment(now_ms, self.cost_us, champion.unlearnt_ms(now_ms))
        decided = scorer.decide(batch, moment)
        by_model = (decided.fallback == MODEL) | (decided.fallback == STALE)
        if len(batch) >= _MEASURED and by_model.all():
            cost_us = (self.cpu_ns() - began_ns) / (1_000.0 * len(batch))
            self.cost_us += (cost_us - self.cost_us) * (_NEWS if self.cost_us else 1.0)
        if (decided.fallback == FAILED).any():
            log.error("model_failed", position=decided.model.position, error=decided.failure)
        return decided


@dataclass
class EntityStage:
    """One stage: ``index`` is that of its entity in the transaction, or 0 where there is none."""

    settings: Settings
    topics_by_role: Topics
    plan: FeaturePlan
    scorer: Scorer
    metrics: Metrics
    index: int = 0
    #: Transactions whose score somebody waits for: whom to tell it, as written, and what fired.
    awaited: dict[str, Callable[[bytes, str | None], None]] = field(default_factory=dict)
    spans: Spans | None = None  # of sampled transactions; None: nobody asks for them
    name: str = field(init=False)
    topics: tuple[str, ...] = field(init=False)
    pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        """Find the place of this stage in the flow."""
        entities = self.settings.transaction.entities
        self.entity = entities[self.index] if entities else None
        self.is_first = self.index == 0
        self.is_last = self.index == max(len(entities) - 1, 0)
        self.source = self.topics_by_role.stage_input(entities, self.index)
        feedback = [self.topics_by_role.feedback[self.entity].name] if self.entity else []
        self.pace = Pace(SUMMARY_SCORES * self.topics_by_role.scores.partitions)
        self.name = self.entity or "score"
        self.topics = (self.source.name, *feedback)
        segments, schema = self.settings.transaction.segments, self.plan.schema
        n_segments = len(segments)
        self.writer = codec.ScoreWriter(
            entities, segments, schema, self.topics_by_role.transactions.name
        )
        bounds = self.settings.entity
        self.disk = Disk(bounds.disk, bounds.disk_cache_bytes) if bounds.disk else None
        self.reader = codec.TransactionReader(self.settings.transaction, self.plan)
        self.came, self.goes = (
            codec.HopCodec(self.plan, self.index + step, n_segments) for step in (0, 1)
        )

    def task(self, partition: int) -> EntityTask:
        """Return a new task for one partition, with nothing restored yet."""
        return EntityTask(self, partition)


class EntityTask:
    """One partition of an entity stage; its state is the store, its log the changelog."""

    def __init__(self, stage: EntityStage, partition: int) -> None:
        """Start with an empty store."""
        self.stage = stage
        self.partition = partition
        self.inputs = tuple(Partition(topic, partition) for topic in stage.topics)
        self.store: EntityStore | None = None
        if stage.entity is not None:
            self.columns, windows = stage.plan.windows[stage.entity]
            bounds = stage.settings.entity
            self.store = EntityStore(
                windows,
                history_max=bounds.history_max,
                entities_max=bounds.entities_max,
                bucket_ms=bounds.bucket,
                buckets_max=bounds.buckets_max,
                upstreams=1 if stage.is_first else stage.topics_by_role.transactions.partitions,
                cold=stage.disk.open(f"{stage.entity}-{partition}") if stage.disk else None,
            )
            self.changelog = stage.topics_by_role.changelogs[stage.entity].name

    def ranges(self, committed: Mapping[Partition, Committed]) -> list[Range]:
        """The whole changelog: what is in it has been applied, wherever the offsets stand.

        After it the labels that came ahead of their transaction, and still waited for it.
        """
        if self.store is None:  # an empty store is false, too
            return []
        waiting = [(at, committed[at]) for at in self.inputs[1:] if at in committed]
        return [
            Range(Partition(self.changelog, self.partition)),
            *(Range(at, int(was.note), was.offset) for at, was in waiting if was.note),
        ]

    def restore(self, partition: Partition, records: Sequence[Record]) -> None:
        """Take rows of the changelog, or labels that waited."""
        if self.store is None:
            return
        if partition in self.inputs:
            self._on_feedback(partition, records, Effects())
        else:
            self.store.restore(rows_of(partition, records, codec.read_slot))

    def start(self) -> Mapping[Partition, int]:
        """Every input begins at its committed offset."""
        return {}

    def reached(self) -> Mapping[Partition, int]:
        """Of transactions, as far as the guards say; a hop's guard lies in another's partition."""
        if self.store is None or not self.stage.is_first:
            return {}
        return {self.inputs[0]: self.store.applied_high}

    def apply(
        self, partition: Partition, records: Sequence[Record], now_ms: int, effects: Effects
    ) -> None:
        """Fold transactions, or confirmed labels of earlier ones."""
        if partition == self.inputs[0]:
            self._on_transactions(records, now_ms, effects)
        else:
            self._on_feedback(partition, records, effects)
        if self.store is not None:
            effects.state += [
                Send(self.changelog, self.partition, *row) for row in codec.write_rows(self.store)
            ]

    def peek(self, batch: Batch) -> list[int]:
        """Fill this entity's features of each transaction as if it came next; change nothing.

        Returns the places of those whose id was used before.
        """
        if self.store is None:
            return []
        used, others = [], batch.keys[(self.stage.index + 1) % len(batch.keys)]
        for i, key in enumerate(batch.keys[self.stage.index]):
            features = self.store.peek(
                key,
                time_ms=int(batch.times_ms[i]),
                amount=float(batch.amounts[i]),
                transaction_id=batch.ids[i],
                other=others[i],
            )
            if features is None:
                used.append(i)
            else:
                batch.rows[i, self.columns] = features
        return used

    def tick(self, now_ms: int, effects: Effects, *, is_last: bool) -> None:
        """Nothing is due by the clock."""

    def note(self, partition: Partition, offset: int) -> str:
        """From where labels that wait must be read again; the guard is in the values."""
        low = None if self.store is None else self.store.expected_low
        return "" if low is None or partition == self.inputs[0] else str(low)

    def bounds(self) -> Iterator[Bound]:
        """The entities and what is kept of them."""
        store, at = self.store, (self.stage.name, self.partition)
        if store is None:
            return
        n = len(store)
        yield Bound("entity.entities_max", *at, n, store.entities_max)
        yield Bound("entity.history_max", *at, store.n_exact, n * store.history_max)
        yield Bound("entity.buckets_max", *at, store.n_buckets, n * store.buckets_max)
        yield Bound("entity.expected_max", *at, store.n_expected, EXPECTED_MAX)

    def levels(self) -> Iterator[Level]:
        """How full the store is."""
        store, at = self.store, (self.stage.name, str(self.partition))
        if store is None:
            return
        yield Level("weir_entities", at, len(store))
        yield Level("weir_entities_evicted", at, store.n_evicted)
        yield Level("weir_entities_on_disk", at, store.n_cold)
        yield Level("weir_entity_buckets", at, store.n_buckets)

    def _on_transactions(self, records: Sequence[Record], now_ms: int, effects: Effects) -> None:
        stage, began_ns = self.stage, time.time_ns()
        if stage.is_first:
            decoded = stage.reader.read_many(self.partition, records)
        else:
            decoded = stage.came.read(records)
        bad = list(decoded.refused)
        batch = decoded.read
        if self.store is not None and len(batch):
            status = fold_entity(batch, stage.index, self.store, self.columns)
            for i in np.flatnonzero(status == DUPLICATE):
                field, expected = stage.settings.transaction.id, "an id that was not used before"
                record = decoded.records[i]
                if not stage.is_first:  # of those that came in one record this one alone
                    alone = stage.came.write(batch.take(np.array([i])))
                    record = msgspec.structs.replace(record, value=alone)
                bad.append((record, Malformed(field, batch.ids[i], expected, "reused")))
            batch = batch.where(applied(status))
        if stage.spans is not None:
            batch = stage.spans.follow(f"stage {stage.name}", batch, began_ns)
        for record, error in bad:
            effects.outputs.append(refused(self.stage, self.inputs[0], record, error))
        if stage.is_last and len(batch):
            self._score(batch, now_ms, effects)
        elif len(batch):
            self._send_on(batch, effects)
        stage.metrics.consumed(stage.name, len(records))

    def _on_feedback(
        self, partition: Partition, records: Sequence[Record], effects: Effects
    ) -> None:
        for record in records:
            try:
                feedback = codec.read_feedback(record)
            except Malformed as error:
                effects.outputs.append(refused(self.stage, partition, record, error))
                continue
            if self.store is not None and record.key is not None:
                key = record.key.decode("utf-8", "replace")
                transaction_id = feedback.transaction_id
                upstream = 0 if self.stage.is_first else feedback.partition
                self.store.mark(
                    key,
                    transaction_id,
                    is_fraud=feedback.is_fraud,
                    source=(upstream, feedback.offset),
                    at=record.offset,
                    time_ms=feedback.time_ms,
                )

    def _send_on(self, batch: Batch, effects: Effects) -> None:
        stage = self.stage
        entity = stage.settings.transaction.entities[stage.index + 1]
        topic = stage.topics_by_role.hops[entity]
        keys = [key.encode() for key in batch.keys[stage.index + 1]]
        places = np.array(partitions_of(keys, topic.partitions), np.int64)
        for partition in np.unique(places).tolist():
            mine = np.flatnonzero(places == partition)
            effects.outputs += [
                Send(topic.name, partition, None, value) for value in self._packed(batch, mine)
            ]

    def _packed(self, batch: Batch, at: NDArray[np.int64]) -> Iterator[bytes]:
        """Some transactions of a batch, in as few records as a broker takes."""
        value = self.stage.goes.write(batch.take(at))
        if len(value) <= HOPS_BYTES or len(at) == 1:
            yield value
            return
        half = len(at) // 2
        yield from self._packed(batch, at[:half])
        yield from self._packed(batch, at[half:])

    def _score(self, batch: Batch, now_ms: int, effects: Effects) -> None:
        stage, topics, began_ns = self.stage, self.stage.topics_by_role, time.time_ns()
        decided = stage.pace.decide(stage.scorer, batch, now_ms)
        keys = [transaction_id.encode() for transaction_id in batch.ids]
        places = partitions_of(keys, topics.scores.partitions)
        name, source = topics.scores.name, topics.transactions.name
        ats = [
            f"{source}/{partition}/{offset}"
            for partition, offset in zip(
                batch.partitions.tolist(), batch.offsets.tolist(), strict=True
            )
        ]
        values = stage.writer.write(batch, decided)
        if stage.spans is not None:
            batch = stage.spans.follow("score", batch, began_ns)
        effects.outputs += [
            Send(name, place, key, value, codec.headers_of("score", at, at, trace))
            for place, key, value, at, trace in zip(
                places, keys, values, ats, batch.traces, strict=True
            )
        ]
        for i in [i for i, name in enumerate(batch.ids) if name in stage.awaited]:
            told = (values[i], decided.words.get(i))
            effects.told.append(partial(stage.awaited[batch.ids[i]], *told))
        for i, alert in stage.scorer.alerts(batch, decided, source):
            trace = batch.traces[i]
            if stage.spans is not None:
                trace = stage.spans.one("alert", batch, i, began_ns)
            headers = codec.headers_of("alert", ats[i], ats[i], trace)
            effects.first.append(self._alert(alert, headers))
        stage.metrics.scored(decided.scores, decided.alerts, now_ms - batch.published_ms)
        stage.metrics.told_by(decided.fallback, stage.scorer.champion.unlearnt_ms(now_ms))

    def _alert(self, alert: Alert, headers: Headers) -> Send:
        """Bring an alert to a person, or to the stage that holds back repeats."""
        topics, told = self.stage.topics_by_role, self.stage.settings.policy.repeats
        topic, name = topics.alerts, alert.transaction_id
        if told is not None and topics.repeats is not None:
            topic, name = topics.repeats.candidates, alert.entities[told.entity]
        key = name.encode()
        partition = partition_of(key, topic.partitions)
        return Send(topic.name, partition, key, codec.encode(alert), headers)


def rows_of(
    partition: Partition, records: Iterable[Record], read: Callable[[bytes, bytes | None], T]
) -> Iterator[T]:
    """Rows of a changelog. Raises Refused: what cannot be read is state that would be missing."""
    for record in records:
        if not record.key:
            continue
        try:
            yield read(record.key, record.value)
        except Malformed as error:
            at = Position(*partition, record.offset)
            mend = "somebody else writes to this topic: keep them out, and overwrite that key"
            raise Refused(f"{at}: {error}; {mend}") from None


def entity_of(tasks: Iterable[Task], kind: str, name: str) -> dict[str, Any] | None:
    """What this process knows of an entity, for people; None: nothing, it may be another's.

    Its transactions stand newest first: time (epoch milliseconds), amount, what is known of it.
    """
    for task in tasks:
        if not isinstance(task, EntityTask) or task.store is None or task.stage.entity != kind:
            continue
        if known := task.store.history(name):
            held = reversed(known)
            rows = [{"time_ms": t, "amount": a, "is_fraud": _KNOWN[label]} for t, a, label in held]
            return {"kind": kind, "name": name, "transactions": rows}
    return None


#: A label as JSON has it.
_KNOWN: Final = {FRAUD: True, LEGITIMATE: False, UNKNOWN: None}


def scorer_of(settings: Settings, plan: FeaturePlan, champion: Champion) -> Scorer:
    """The last step of the flow as configured."""
    told, of = settings.policy, settings.transaction
    policy = Policy(
        kind=told.kind,
        threshold=told.threshold,
        alerts_per_day=told.alerts_per_day,
        review_cost=told.review_cost,
        recovery=told.recovery,
        explore=told.explore,
        rules=[_rule(rule, rule.threshold) for rule in told.rules],
        allow=told.allow,
        block=told.block,
    )
    chain = _fallback(settings.latency)
    return Scorer(of.entities, of.segments, plan, champion, policy, told.reasons_max, chain)


def _fallback(told: LatencySettings) -> FallbackChain | None:
    if not told.is_set:
        return None
    rules = [(_rule(rule), rule.score) for rule in told.rules]
    return FallbackChain(told.budget, told.slow_us, told.stale_after, rules)


def _rule(told: PartSettings, threshold: float | None = None) -> Rule:
    return Rule(
        told.name,
        told.segments,
        -math.inf if told.amount_min is None else told.amount_min,
        math.inf if told.amount_max is None else told.amount_max,
        threshold,
    )


class Refusing(Protocol):
    """A stage, as far as what it cannot read is concerned."""

    topics_by_role: Topics
    metrics: Metrics
    name: str


def refused(stage: Refusing, partition: Partition, record: Record, error: Malformed) -> Send:
    """Count a record that a stage could not read; return it as a dead letter."""
    stage.metrics.dead_letter(partition.topic, error)
    at = Position(*partition, record.offset)
    return dead_letter(stage.topics_by_role, at, stage.name, record, error)


def dead_letter(topics: Topics, at: Position, stage: str, record: Record, error: Exception) -> Send:
    """A record that could not be read, raw, with its position and the reason."""
    headers = codec.dead_letter_headers(at, stage, error, record.headers)
    key = None if record.key is None else record.key[:_KEY_BYTES]
    value, room = record.value, DEAD_LETTER_BYTES - _HEADERS_BYTES - len(key or b"")
    return Send(topics.dead_letters.name, 0, key, None if value is None else value[:room], headers)
