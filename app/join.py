"""The shell of the join: scores and labels in, examples, outcomes and feedback out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app import codec
from app.core.pending import Join, JoinEffects, Waited, outcome_of
from app.errors import Malformed
from app.records import Example, Feedback, Partition, Position, Send, Verdict
from app.stages import dead_letter, refused
from app.tasks import Bound, Committed, Effects, Range
from app.topics import partition_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from app.config import Settings
    from app.core.pending import Confirmed, Unknown
    from app.metrics import Metrics
    from app.records import LabelOutcome, Record
    from app.topics import Topics


@dataclass
class JoinStage:
    """All partitions of the join."""

    settings: Settings
    topics_by_role: Topics
    metrics: Metrics
    name: str = "join"
    topics: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Find the place of the join in the flow."""
        self.topics = (self.topics_by_role.scores.name, self.topics_by_role.labels.name)
        self.reader = codec.LabelReader(self.settings.label, self.settings.transaction.ahead_max)

    def task(self, partition: int) -> JoinTask:
        """Return a new task for one partition, with nothing restored yet."""
        return JoinTask(self, partition)


class JoinTask:
    """One partition of the join. Its inputs are its changelog: to restore is to read again."""

    def __init__(self, stage: JoinStage, partition: int) -> None:
        """Start with nothing known."""
        self.stage = stage
        self.inputs = tuple(Partition(topic, partition) for topic in stage.topics)
        self.scores, self.labels = self.inputs
        bounds = stage.settings.join
        self.join = Join(
            maturity_ms=bounds.maturity,
            forget_ms=bounds.forget,
            early_ms=bounds.early,
            negatives=bounds.negatives,
            pending_max=bounds.pending_max,
            early_max=bounds.early_max,
        )
        self._next = dict.fromkeys(self.inputs, 0)

    def ranges(self, committed: Mapping[Partition, Committed]) -> list[Range]:
        """Scores, then labels, each from the oldest that still matters up to the commit."""
        found = [(at, committed[at]) for at in self.inputs if at in committed]
        self._next.update({at: was.offset for at, was in found})
        if self.labels in committed:
            self.join.waited = Waited.of(committed[self.labels].note)
        lows = [(at, (was.note or str(was.offset)).split()[0], was.offset) for at, was in found]
        return [Range(at, int(low), offset) for at, low, offset in lows]

    def restore(self, partition: Partition, records: Sequence[Record]) -> None:
        """Fold again what was folded before; what it says was said then."""
        self.join.is_restoring = True
        effects = JoinEffects()
        for record in records:
            try:
                self._fold(partition, record, effects)
            except Malformed:
                continue  # it is among the dead letters

    def start(self) -> Mapping[Partition, int]:
        """Every input begins at its committed offset."""
        self.join.restored()
        return {}

    def reached(self) -> Mapping[Partition, int]:
        """Nothing that ``start`` does not say."""
        return {}

    def apply(
        self, partition: Partition, records: Sequence[Record], now_ms: int, effects: Effects
    ) -> None:
        """Fold scores or labels; say what became of them."""
        del now_ms  # the join lives in event time
        followed = JoinEffects()
        for record in records:
            try:
                self._fold(partition, record, followed)
            except Malformed as error:
                effects.outputs.append(refused(self.stage, partition, record, error))
        self._tell(followed, effects)
        self.stage.metrics.joined(self.scores.partition, self.join)
        self.stage.metrics.consumed(self.stage.name, len(records))

    def tick(self, now_ms: int, effects: Effects, *, is_last: bool) -> None:
        """Nothing is due by the clock: time is event time."""

    def note(self, partition: Partition, offset: int) -> str:
        """From where this input must be read again; of labels, which of them wait."""
        scores_low, labels_low = self.join.low(self._next[self.scores], self._next[self.labels])
        if partition == self.scores:
            return str(scores_low)
        return f"{labels_low} {self.join.waits(self._next[self.scores])}"

    def bounds(self) -> tuple[Bound, Bound]:
        """What waits."""
        join, at = self.join, (self.stage.name, self.scores.partition)
        return (
            Bound("join.pending_max", *at, len(join), join.pending_max),
            Bound("join.early_max", *at, join.n_early, join.early_max),
        )

    def _fold(self, partition: Partition, record: Record, effects: JoinEffects) -> None:
        self._next[partition] = record.offset + 1
        at = Position(*partition, record.offset)
        if partition == self.scores:
            self.join.on_score(codec.hold_score(record), at, effects)
        else:
            self.join.on_label(self.stage.reader.read(record), at, effects)

    def _tell(self, followed: JoinEffects, effects: Effects) -> None:
        topics, out = self.stage.topics_by_role, effects.outputs
        for fact in followed.examples:
            key = fact.transaction_id.encode() if isinstance(fact, Example) else None
            out.append(Send(topics.examples.name, 0, key, codec.encode(fact)))
        out += [self._verdict(outcome) for outcome in followed.outcomes]
        for unknown in followed.unknown:
            self._tell_unknown(unknown, effects)
        for confirmed in followed.confirmed:
            out += self._feedback(confirmed)

    def _verdict(self, outcome: LabelOutcome) -> Send:
        key, value = outcome.transaction_id.encode(), codec.encode(Verdict(outcome=outcome))
        return Send(self.stage.topics_by_role.examples.name, 0, key, value)

    def _tell_unknown(self, unknown: Unknown, effects: Effects) -> None:
        label, at = unknown
        topics = self.stage.topics_by_role
        key = label.transaction_id.encode()
        waited = f"no transaction of this id came within {self.stage.settings.join.early // 1000} s"
        belongs = partition_of(key, topics.labels.partitions)
        if belongs != at.partition:
            waited += (
                f"; labels of this key belong into partition {belongs}: set the producer's "
                "partitioner to murmur2 (librdkafka: partitioner=murmur2_random)"
            )
        outcome = outcome_of(label, at, "unknown", waited)
        field = self.stage.settings.label.transaction_id
        error = Malformed(field, label.transaction_id, f"a known id: {waited}", "unknown")
        self.stage.metrics.dead_letter(at.topic, error)
        effects.outputs.append(self._verdict(outcome))
        if label.raw is not None:
            letter = dead_letter(topics, at, self.stage.name, label.raw, error)
            effects.first.append(letter)

    def _feedback(self, confirmed: Confirmed) -> list[Send]:
        score, is_fraud = confirmed
        topics, sends = self.stage.topics_by_role, []
        source = score.source
        value = codec.encode(
            Feedback(score.transaction_id, is_fraud, source.partition, source.offset, score.time_ms)
        )
        for i, (entity, name) in enumerate(score.entities.items()):
            topic, key = topics.feedback[entity], name.encode()
            # The first stage has its entities where their publisher put them.
            partition = score.source.partition if i == 0 else partition_of(key, topic.partitions)
            sends.append(Send(topic.name, partition, key, value))
        return sends


def outcome_record(topics: Topics, outcome: LabelOutcome) -> Send:
    """What became of a label, for whoever sent it."""
    key = outcome.transaction_id.encode()
    at = "/".join(map(str, outcome.origin))
    headers = codec.headers_of("outcome", f"{at}/{outcome.outcome}", at)
    partition = partition_of(key, topics.outcomes.partitions)
    return Send(topics.outcomes.name, partition, key, codec.encode(outcome), headers)
