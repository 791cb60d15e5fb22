"""What lies on the topics, as people read it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiokafka import TopicPartition
from rich.text import Text

from app.errors import Refused
from app.kafka import Reader, reach, read
from app.letters import escaped, printable, settled_of
from app.records import Alert, Drift, LabelOutcome, Position, Record, Score
from app.topics import Topics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.config import Settings
    from app.records import Reason
    from app.topics import TopicSpec

#: Topics that can be looked at: the name on the command line, and what a value is.
KINDS: Final[dict[str, Any]] = {
    "scores": Score,
    "alerts": Alert,
    "drift": Drift,
    "outcomes": LabelOutcome,
    "dead-letters": None,
}
_HIGH: Final = 0.8
_RAISES: Final = " raises suspicion"
_ERRORS: Final = "__connect.errors."


def topic_of(kind: str, settings: Settings) -> TopicSpec:
    """The topic that a kind lies on."""
    spec: TopicSpec = getattr(Topics.of(settings), kind.replace("-", "_"))
    return spec


async def records(
    settings: Settings, spec: TopicSpec, *, from_beginning: bool, to_end: bool = False
) -> AsyncIterator[tuple[Position, Record]]:
    """The records of a topic, in order within each partition.

    Without ``from_beginning`` only what comes from now on. ``to_end``: not beyond what is there
    now; otherwise it goes on for ever. Raises Refused if there is no such topic.
    """
    consumer = Reader(settings).client()
    await reach(consumer.start, settings.kafka.bootstrap)
    try:
        if spec.name not in await consumer.topics():
            raise Refused(f"{spec.name} does not exist; run `weir topics create`")
        at = [TopicPartition(spec.name, number) for number in range(spec.partitions)]
        consumer.assign(at)
        await (consumer.seek_to_beginning(*at) if from_beginning else consumer.seek_to_end(*at))
        ends = await consumer.end_offsets(at) if to_end else {}
        while not to_end or any([await consumer.position(tp) < ends[tp] for tp in at]):
            fetched = await consumer.getmany(*at, timeout_ms=250)
            found = [(tp, record) for tp, held in fetched.items() for record in held]
            # Partitions have no common order; the time of writing comes nearest to one.
            for tp, record in sorted(found, key=lambda pair: pair[1].timestamp):
                if not to_end or record.offset < ends[tp]:
                    yield Position(tp.topic, tp.partition, record.offset), read(record)
    finally:
        await consumer.stop()


@dataclass(frozen=True)
class DeadLetter:
    """What a dead letter says of itself; its value is not part of it."""

    offset: int  # in the topic of dead letters
    position: str  # where the record lay that could not be read
    stage: str
    reason: str
    key: str | None
    value_bytes: int
    time_ms: int

    @classmethod
    def of(cls, at: Position, record: Record) -> DeadLetter:
        """Read the headers of a dead letter, whoever wrote it.

        >>> headers = (("__connect.errors.topic", b"labels"), ("__connect.errors.offset", b"7"))
        >>> at, record = Position("dead-letters", 0, 3), Record(3, b"k", b"{", 0, headers)
        >>> DeadLetter.of(at, record).position
        'labels[?]@7'
        """
        told = {
            name.removeprefix(_ERRORS): value.decode("utf-8", "backslashreplace")
            for name, value in record.headers
            if name.startswith(_ERRORS)
        }
        where = f"{told.get('topic', '?')}[{told.get('partition', '?')}]@{told.get('offset', '?')}"
        reason = printable(told.get("exception.message", "no reason given"))
        reason = reason.removeprefix(f"{where}: ")
        key = None if record.key is None else escaped(record.key)
        size = len(record.value or b"")
        stage = told.get("stage", "?")
        return cls(at.offset, where, stage, reason, key, size, record.timestamp_ms)


def told_time(time_ms: int) -> str:
    """A time as people read it, UTC.

    >>> told_time(1_704_067_200_000)
    '2024-01-01 00:00:00Z'
    """
    return f"{datetime.fromtimestamp(time_ms / 1_000.0, UTC):%Y-%m-%d %H:%M:%S}Z"


def text_of(kind: str, at: Position, record: Record) -> Text:
    """A record in a line or two; what cannot be read says so."""
    if kind == "dead-letters":
        settled = settled_of(record)
        if settled is not None:
            offset, state, by = settled
            return Text(f"{told_time(record.timestamp_ms)}  {offset:>6} {state} by {by}", "dim")
        return _dead_letter(DeadLetter.of(at, record))
    try:
        value = msgspec.json.decode(record.value or b"", type=KINDS[kind])
    except msgspec.DecodeError as error:
        return Text(f"{at}: not what weir writes: {error}", style="red")
    match value:
        case Score() | Alert():
            return _scored(value)
        case Drift():
            return _drift(value)
        case _:
            return _outcome(value)


def json_of(kind: str, at: Position, record: Record) -> bytes:
    """A record as one line of JSON: its value, or what a dead letter says of itself."""
    if kind == "dead-letters":
        settled = settled_of(record)
        if settled is not None:
            names = ("settles", "state", "by")
            return msgspec.json.encode(dict(zip(names, settled, strict=True)))
        return msgspec.json.encode(DeadLetter.of(at, record))
    return record.value or b"null"


def _scored(value: Score | Alert) -> Text:
    style = "bold red" if value.score >= _HIGH else "yellow" if _is_alert(value) else "green"
    text = Text.assemble(
        (told_time(value.time_ms), "dim"),
        "  ",
        (f"{value.score:.3f}", style),
        (f"  {value.amount:>10,.2f}", "bold"),
        *(f"  {name} {printable(key)}" for name, key in value.entities.items()),
        (f"  {printable(value.transaction_id)}", "dim"),
    )
    return text.append_text(_reasons(value.reasons))


def _is_alert(value: Score | Alert) -> bool:
    return isinstance(value, Alert) or value.is_alert


def _reasons(reasons: list[Reason]) -> Text:
    if not reasons:
        return Text()
    # Every reason says that it raises suspicion; in a list, once is enough.
    told = "; ".join(printable(reason.text.removesuffix(_RAISES)) for reason in reasons)
    return Text(f"\n    raised by {told}", style="italic")


def _drift(value: Drift) -> Text:
    return Text.assemble(
        (told_time(value.detected_ms), "dim"),
        "  ",
        (f"{value.kind} drift", "bold magenta"),
        (f" {value.event}", "red" if value.severity == "critical" else ""),
        (f"  {printable(value.incident)}" if value.incident else "", "dim"),
        f"  {printable(value.subject)} went from {value.before:.4g} to {value.after:.4g}",
        (f"  since {told_time(value.since_ms)}", "dim"),
        (f"  ({value.detector}, after {value.n_examples:,} examples)", "dim"),
        _moved(value) if value.event == "opened" else f"  {value.ended}",
    )


def _moved(value: Drift) -> Text:
    """What else moved, and what to do about it."""
    others = [printable(one.name) for one in value.features if one.name != value.subject][:4]
    text = Text(f"\n    with {', '.join(others)}" if others else "", style="italic")
    return text.append(f"\n    {printable(value.action)}" if value.action else "", style="dim")


def _outcome(value: LabelOutcome) -> Text:
    style = "green" if value.outcome == "learn" else "yellow"
    text = Text.assemble(
        (f"{value.outcome:9}", style),
        "  ",
        ("fraud     " if value.is_fraud else "legitimate", "red" if value.is_fraud else ""),
        f"  {printable(value.transaction_id)}",
        (f"  from {printable(value.label_source)}, {Position(*value.origin)}", "dim"),
    )
    return text.append(f"  {printable(value.reason)}" if value.reason else "")


def _dead_letter(value: DeadLetter) -> Text:
    return Text.assemble(
        (told_time(value.time_ms), "dim"),
        (f"  {value.offset:>6}", "bold"),
        "  ",
        (value.position, "cyan"),
        f"  {value.reason}",
        (f"  (key {value.key or 'null'}, {value.value_bytes} bytes, {value.stage})", "dim"),
    )
