"""The shell of the audit: alerts, corrections and actions in, a sealed chain of entries out."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from app import codec
from app.core.chain import REMEMBERED_MAX, Chain
from app.errors import Malformed
from app.records import Action, Entry, Partition, Send
from app.stages import refused
from app.tasks import Bound, Committed, Effects, Range
from app.topics import partition_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from app.config import Settings
    from app.metrics import Metrics
    from app.records import Record
    from app.topics import Topics

SEAL: Final = "weir-seal"
#: Settings of one machine: they differ from worker to worker, and decide nothing.
_OF_MACHINE: Final = ("worker.web_host", "worker.web_port", "worker.data_dir", "worker.log_")
#: Settings that name people or hold what lets them in.
_OF_PEOPLE: Final = ("access.tokens", "policy.allow", "policy.block")


@dataclass
class AuditStage:
    """All partitions of the audit."""

    settings: Settings
    topics_by_role: Topics
    metrics: Metrics
    name: str = "audit"
    topics: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Find the place of the audit in the flow."""
        topics = self.topics_by_role
        self.topics = (topics.alerts.name, topics.outcomes.name, topics.actions.name)

    def task(self, partition: int) -> AuditTask:
        """Return a new task for one partition, with nothing restored yet."""
        return AuditTask(self, partition)


class AuditTask:
    """One partition of the audit. What it has written is what it knows."""

    def __init__(self, stage: AuditStage, partition: int) -> None:
        """Start at the beginning of a chain."""
        self.stage = stage
        self.inputs = tuple(Partition(topic, partition) for topic in stage.topics)
        self.log = Partition(stage.topics_by_role.audit.name, partition)
        self.key = stage.settings.learner.key.get_secret_value().encode()
        self.chain = Chain()
        self._made_anew: list[str] = []
        self._read: dict[str, Callable[[Record], Said | None]] = dict(
            zip(stage.topics, (_alert, _correction, _action), strict=True)
        )

    def ranges(self, committed: Mapping[Partition, Committed]) -> list[Range]:
        """The newest entries, from the oldest that was remembered at the commit."""
        self._made_anew = [at.topic for at in self.inputs if at not in committed]
        # Of the newest commit: whatever was applied before it was committed with it.
        notes = [int(committed[at].note or 0) for at in self.inputs if at in committed]
        return [Range(self.log, max(notes, default=0))]

    def restore(self, partition: Partition, records: Sequence[Record]) -> None:
        """Go on after what was entered."""
        for record in records:
            value = record.value or b""
            try:
                entry = codec.read_entry(record)
            except Malformed:
                entry = None
            self.chain.follow(record.offset, value, entry)

    def start(self) -> Mapping[Partition, int]:
        """Every input begins at its committed offset; a group forgets it with its topic."""
        for topic in self._made_anew:
            self.chain.begin_again(topic)
        return {}

    def reached(self) -> Mapping[Partition, int]:
        """Nothing that ``start`` does not say."""
        return {}

    def apply(
        self, partition: Partition, records: Sequence[Record], now_ms: int, effects: Effects
    ) -> None:
        """Enter what is worth an entry and was not entered yet."""
        del now_ms  # an entry bears the time of its record
        for record in records:
            try:
                said = self._read[partition.topic](record)
            except Malformed as error:
                effects.outputs.append(refused(self.stage, partition, record, error))
                continue
            if said is not None:
                self._enter(said, partition, record, effects)
        self.stage.metrics.consumed(self.stage.name, len(records))

    def tick(self, now_ms: int, effects: Effects, *, is_last: bool) -> None:
        """Nothing is due by the clock."""

    def note(self, partition: Partition, offset: int) -> str:
        """From which entry on the chain must be read again."""
        return str(self.chain.low)

    def bounds(self) -> Iterator[Bound]:
        """The identities that are remembered."""
        at = (self.stage.name, self.log.partition)
        yield Bound("audit.remembered_max", *at, len(self.chain), REMEMBERED_MAX)

    def _enter(self, said: Said, partition: Partition, record: Record, effects: Effects) -> None:
        chain, identity = self.chain, f"{said.kind}/{said.identity}"
        if chain.has(identity, partition.topic, record.offset):
            return
        configured = chain.configured
        if said.kind == "configuration":
            digest = str(said.detail.get("digest"))
            if configured.get(said.subject) == digest:
                return
            configured = {**configured, said.subject: digest}
        entry = Entry(
            place=chain.next,
            previous=chain.head,
            kind=said.kind,
            subject=said.subject,
            actor=said.actor,
            time_ms=record.timestamp_ms,
            at=(*partition, record.offset),
            identity=identity,
            detail=said.detail,
            configured=configured,
        )
        value = codec.encode(entry)
        chain.follow(entry.place, value, entry)
        name = f"{self.log.topic}/{self.log.partition}/{entry.place}"
        headers = codec.headers_of("audit", name, "/".join(map(str, entry.at)))
        sealed = (*headers, (SEAL, seal_of(value, self.key)))
        effects.state.append(Send(*self.log, None, value, sealed))


@dataclass(frozen=True)
class Said:
    """What a record says that is worth an entry; ids, no payloads."""

    kind: str
    subject: str
    identity: str
    detail: dict[str, Any]
    actor: str = "weir"


def _alert(record: Record) -> Said:
    alert = codec.read_alert(record)
    detail = {"score": alert.score, "policy": alert.policy, "model": str(alert.model)}
    return Said("alert", alert.transaction_id, _identity(record), detail)


def _correction(record: Record) -> Said | None:
    outcome = codec.read_outcome(record)
    if outcome.outcome != "corrected":
        return None
    detail = {"is_fraud": outcome.is_fraud, "origin": list(outcome.origin)}
    name, actor = outcome.transaction_id, outcome.label_source
    return Said("correction", name, _identity(record), detail, actor)


def _action(record: Record) -> Said:
    action = codec.read_action(record)
    return Said(action.kind, action.subject, action.identity, action.detail, action.actor)


def _identity(record: Record) -> str:
    """What is the same whenever a record is said again."""
    found = dict(record.headers).get("ce_id")
    if found is None:
        raise Malformed("ce_id", None, "the header that every record of weir's has")
    return found.decode("utf-8", "replace")


def seal_of(value: bytes, key: bytes) -> bytes:
    """What only a holder of the key can write beside an entry."""
    return hmac.new(key, value, hashlib.sha256).hexdigest().encode()


def is_sealed(record: Record, key: bytes) -> bool:
    """Whether an entry was written by a holder of the key."""
    found = dict(record.headers).get(SEAL, b"")
    return hmac.compare_digest(found, seal_of(record.value or b"", key))


def told(topics: Topics, action: Action) -> Send:
    """An action on its way into the audit; said again with the same identity it is one entry."""
    key = action.subject.encode()
    partition = partition_of(key, topics.actions.partitions)
    return Send(topics.actions.name, partition, key, codec.encode(action))


def configured(settings: Settings, topics: Topics, role: str, at_ms: int) -> Send:
    """What a process that starts at ``at_ms`` says of its settings.

    Secrets are masked; of whom lists name, and of tokens, no more is told than that they changed.
    """
    flat = dict(sorted(_flat(settings.model_dump(mode="json"))))
    digest = hashlib.sha256(codec.encode(flat)).hexdigest()[:16]
    detail = {"digest": digest, "settings": flat}
    identity = f"{role}/{digest}/{at_ms}"
    return told(topics, Action("configuration", role, identity, detail=detail))


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        where = f"{prefix}{name}"
        if where in _OF_PEOPLE:
            whole = hashlib.sha256(codec.encode(value)).hexdigest()
            yield where, {"n": len(value), "digest": whole[:16]}
        elif isinstance(value, dict):
            yield from _flat(value, f"{where}.")
        elif not where.startswith(_OF_MACHINE):
            yield where, value
