"""The shell of the join: scores and labels in, examples, outcomes and feedback out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from app import codec
from app.core.early import Label, Waited
from app.core.ledger import Ledger, Place
from app.core.pending import Join, JoinEffects, outcome_of
from app.core.waitlist import Waitlist
from app.disk import Books
from app.errors import Malformed
from app.records import Example, Feedback, Partition, Position, Send, Verdict
from app.stages import dead_letter, refused
from app.tasks import Bound, Committed, Effects, Level, Range
from app.topics import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from app.codec import HeldScore
    from app.config import Settings
    from app.core.early import Unknown
    from app.core.pending import Confirmed
    from app.metrics import Metrics
    from app.records import LabelOutcome, Record
    from app.topics import Topics

#: Of what lies on a disk: another one is made again from the logs.
_FORMAT = 1

log = structlog.get_logger(__name__)


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
        told = self.settings.join
        self.books = Books(told.disk, told.disk_cache_bytes) if told.disk else None

    def task(self, partition: int) -> JoinTask:
        """Return a new task for one partition, with nothing restored yet."""
        return JoinTask(self, partition)


class JoinTask:
    """One partition of the join. Its inputs are its changelog: to restore is to read again.

    With a disk that is what came after the position at which the disk stands.
    """

    def __init__(self, stage: JoinStage, partition: int) -> None:
        """Start with nothing known."""
        self.stage = stage
        self.inputs = tuple(Partition(topic, partition) for topic in stage.topics)
        self.scores, self.labels = self.inputs
        bounds = stage.settings.join
        self.book = stage.books.open(f"{stage.name}-{partition}") if stage.books else None
        self.ledger: Ledger | None = None
        if self.book is not None:
            self.ledger = Ledger(self.book, codec.held_bytes, codec.held_whole, bounds.negatives)
        self.join = Join(
            maturity_ms=bounds.maturity,
            forget_ms=bounds.forget,
            early_ms=bounds.early,
            negatives=bounds.negatives,
            pending_max=bounds.pending_max if self.ledger is None else bounds.disk_max,
            early_max=bounds.early_max,
            known=Waitlist() if self.ledger is None else self.ledger,
        )
        self._next = dict.fromkeys(self.inputs, 0)
        self._committed = dict.fromkeys(self.inputs, 0)
        #: Of all commits that follow from each other: what a disk holds may be another history's.
        self.lineage = ""
        self.n_read_again = 0

    def ranges(self, committed: Mapping[Partition, Committed]) -> list[Range]:
        """Scores, then labels, each from the oldest that still matters up to the commit."""
        found = {at: committed[at] for at in self.inputs if at in committed}
        self._committed.update({at: was.offset for at, was in found.items()})
        if self.labels in found:
            self.join.waited = Waited.of(found[self.labels].note)
        noted = found[self.scores].note.split() if self.scores in found else []
        self.lineage = noted[1] if len(noted) > 1 else uuid4().hex
        begins = {at: int((was.note or str(was.offset)).split()[0]) for at, was in found.items()}
        if self.ledger is not None:
            begins |= self._from_disk(self.ledger, found)
        self._next.update({at: begin for at, begin in begins.items() if at in found})
        if self.join.resumed_at:
            self._next[self.scores] = self.join.resumed_at
        return [Range(at, begins[at], was.offset) for at, was in found.items()]

    def _from_disk(
        self, ledger: Ledger, committed: Mapping[Partition, Committed]
    ) -> dict[Partition, int]:
        """Take over what lies there; where to read on. What cannot be believed is removed."""
        place = ledger.found()
        why = "" if place is None else self._unusable(place, committed)
        if place is None or why:
            if why:
                log.warning("join_disk_begun_anew", partition=self.scores.partition, reason=why)
            ledger.begin(Place(self._identity(), self.lineage))
            return {}
        self.join.resume(place.scores_next, place.clock_ms, ledger.open(place))
        return {self.scores: place.scores_begin, self.labels: place.labels_next}

    def _unusable(self, place: Place, committed: Mapping[Partition, Committed]) -> str:
        """Why a state on the disk is none to go on from; empty: it is one."""
        if place.identity != self._identity():
            return f"it was made of {place.identity}; expected {self._identity()}"
        if place.lineage != self.lineage:
            return "what was committed does not follow from it"
        begins = {self.scores: place.scores_begin, self.labels: place.labels_next}
        for at, stands in ((self.scores, place.scores_next), (self.labels, place.labels_next)):
            offset, _, first = committed.get(at, Committed(0))
            if stands > offset:
                return f"it stands at offset {stands} of {at.topic}; {offset} is committed"
            if begins[at] < min(first, offset):
                return f"it needs {at.topic} from offset {begins[at]}, which begins at {first}"
        return ""

    def _identity(self) -> str:
        told = self.stage.settings.join
        times = f"{told.maturity} {told.forget} {told.early}"
        where = f"{self.scores.topic} {self.labels.topic} {self.scores.partition}"
        return f"{_FORMAT} {self.stage.settings.worker.group} {where} {times}"

    def restore(self, partition: Partition, records: Sequence[Record]) -> None:
        """Fold again what was folded before; what it says was said then."""
        self.join.is_restoring = True
        effects = JoinEffects()
        for record, fact in self._read(partition, records):
            self._fold(partition, record, fact, effects)
        self.n_read_again += len(records)
        if self.ledger is not None and self.ledger.is_full:
            self._write(self.ledger)

    def start(self) -> Mapping[Partition, int]:
        """Every input begins at its committed offset."""
        self._next.update(self._committed)
        self.join.is_restoring = True
        if self.ledger is not None:
            self._stand(self.ledger)
        self.join.restored()
        if self.ledger is not None and any(self._committed.values()):
            self._write(self.ledger)
        return {}

    def committed(self, offsets: Mapping[Partition, Committed]) -> None:
        """Let the disk follow. It is never ahead: what a commit lacks would be lost in between."""
        self._committed.update({at: offsets[at].offset for at in self.inputs if at in offsets})
        if self.ledger is not None and self._next == self._committed:
            self._write(self.ledger)

    def close(self) -> None:
        """Let another process have the folder."""
        if self.book is not None:
            self.book.close()

    def _write(self, ledger: Ledger) -> None:
        self._stand(ledger)
        self.join.write()

    def _stand(self, ledger: Ledger) -> None:
        ledger.place.scores_next = self._next[self.scores]
        ledger.place.labels_next = self._next[self.labels]

    def reached(self) -> Mapping[Partition, int]:
        """Nothing that ``start`` does not say."""
        return {}

    def apply(
        self, partition: Partition, records: Sequence[Record], now_ms: int, effects: Effects
    ) -> None:
        """Fold scores or labels; say what became of them."""
        del now_ms  # the join lives in event time
        followed = JoinEffects()
        for record, fact in self._read(partition, records, effects):
            self._fold(partition, record, fact, followed)
        self._tell(followed, effects)
        self.stage.metrics.consumed(self.stage.name, len(records))

    def tick(self, now_ms: int, effects: Effects, *, is_last: bool) -> None:
        """Nothing is due by the clock: time is event time."""

    def note(self, partition: Partition, offset: int) -> str:
        """From where it must be read again; of scores, whose history; of labels, which wait."""
        scores_low, labels_low = self.join.low(self._next[self.scores], self._next[self.labels])
        if partition == self.scores:
            return f"{scores_low} {self.lineage}"
        return f"{labels_low} {self.join.early.note(self._next[self.scores])}"

    def bounds(self) -> tuple[Bound, Bound]:
        """What waits."""
        join, at = self.join, (self.stage.name, self.scores.partition)
        return (
            Bound(
                f"join.{'disk' if self.book else 'pending'}_max", *at, len(join), join.pending_max
            ),
            Bound("join.early_max", *at, join.n_early, join.early_max),
        )

    def levels(self) -> Iterator[Level]:
        """How much waits, and where; how much was read to know it."""
        join, at = self.join, (str(self.scores.partition),)
        yield Level("weir_pending", at, len(join))
        yield Level("weir_labels_early", at, join.n_early)
        yield Level("weir_pending_overflowed", at, join.n_overflowed)
        yield Level("weir_pending_on_disk", at, join.known.n_written)
        yield Level("weir_join_read_again", at, self.n_read_again)

    def _read(
        self, partition: Partition, records: Sequence[Record], effects: Effects | None = None
    ) -> list[tuple[Record, HeldScore | Label]]:
        """Decode a batch, and prepare for it; what cannot be read is told, or was told before."""
        is_score = partition == self.scores
        found: list[tuple[Record, HeldScore | Label]] = []
        for record in records:
            self._next[partition] = max(self._next[partition], record.offset + 1)
            try:
                fact = codec.hold_score(record) if is_score else self.stage.reader.read(record)
            except Malformed as error:
                if effects is not None:
                    effects.outputs.append(refused(self.stage, partition, record, error))
            else:
                found.append((record, fact))
        until_ms = max((fact.time_ms for _, fact in found), default=-1) if is_score else -1
        ids = [fact.transaction_id for _, fact in found]
        self.join.expect(ids, until_ms, labelled=not is_score)
        return found

    def _fold(
        self, partition: Partition, record: Record, fact: HeldScore | Label, effects: JoinEffects
    ) -> None:
        at = Position(*partition, record.offset)
        if isinstance(fact, Label):
            self.join.on_label(fact, at, effects)
        else:
            self.join.on_score(fact, at, effects)

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
