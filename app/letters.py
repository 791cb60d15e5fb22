"""Dead letters: what each says of itself, and what can be done about one.

What was done is a record of the same topic, without a value: it names the offset that it settles.
So the topic tells its own story, and every worker shows the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from aiokafka import TopicPartition

from app import codec
from app.core.board import Letter
from app.errors import Malformed, Refused, shown
from app.kafka import Reader, now_ms, reach, read
from app.records import Position, Record, Send
from app.topics import Topics, partition_of

if TYPE_CHECKING:
    from app.config import Settings
    from app.core.board import LetterState
    from app.core.features import FeaturePlan

ERRORS: Final = "__connect.errors."
_SETTLES, _STATE, _BY = "weir-settles", "weir-state", "weir-by"
#: Characters of a value that a list shows.
_EXCERPT: Final = 512


def escaped(raw: bytes) -> str:
    r"""Bytes as text that changes no terminal: what does not print is escaped.

    >>> escaped(b'{"a": "\x1b[31m\xff"}')
    '{"a": "\\x1b[31m\\xff"}'
    """
    return printable(raw.decode("utf-8", "backslashreplace"))


def printable(text: str) -> str:
    """The text with what does not print escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def letter_of(at: Position, record: Record, topics: Topics) -> Letter:
    """What a dead letter says of itself, whoever wrote it."""
    told = {
        name.removeprefix(ERRORS): value.decode("utf-8", "backslashreplace")
        for name, value in record.headers
        if name.startswith(ERRORS)
    }
    topic = told.get("topic", "?")
    where = f"{topic}[{told.get('partition', '?')}]@{told.get('offset', '?')}"
    reason = printable(told.get("exception.message", "no reason given"))
    value = record.value or b""
    return Letter(
        offset=at.offset,
        position=where,
        topic=topic,
        stage=told.get("stage", "?"),
        reason=reason.removeprefix(f"{where}: "),
        key=None if record.key is None else escaped(record.key),
        value_bytes=len(value),
        excerpt=escaped(value[: 2 * _EXCERPT])[:_EXCERPT],
        seen_ms=record.timestamp_ms,
        cursor="",
        can_retry=topic in {topics.transactions.name, topics.labels.name}
        and record.value is not None,
    )


def settled_of(record: Record) -> tuple[int, LetterState, str | None] | None:
    """Which dead letter a record settles, how and by whom; None: it is one itself."""
    told = dict(record.headers)
    offset, state = told.get(_SETTLES, b""), told.get(_STATE, b"")
    is_one = record.value is None and record.key == offset and offset.isdigit()
    if not is_one or state not in {b"retried", b"dropped"}:
        return None
    by = told.get(_BY, b"").decode("utf-8", "replace") or None
    return int(offset), "retried" if state == b"retried" else "dropped", by


def settles(topics: Topics, offset: int, state: LetterState, by: str) -> Send:
    """The record that says what was done about a dead letter.

    Its key is the offset: a record without key and value is none that a client sends.
    """
    headers = ((_SETTLES, str(offset).encode()), (_STATE, state.encode()), (_BY, by.encode()))
    return Send(topics.dead_letters.name, 0, str(offset).encode(), None, headers)


class Repair:
    """Puts dead letters back where they belong, once they can be read."""

    def __init__(self, settings: Settings, topics: Topics, plan: FeaturePlan) -> None:
        """Know what can be read."""
        self._topics, self._of = topics, settings.transaction
        self._transactions = codec.TransactionReader(settings.transaction, plan)
        self._labels = codec.LabelReader(settings.label, settings.transaction.ahead_max)

    def retry(self, letter: Letter, record: Record, value: bytes | None, key: str | None) -> Send:
        """The record to publish again, repaired if ``value`` or ``key`` is told.

        Raises Refused where weir itself wrote it, Malformed where it still cannot be read.
        """
        if not letter.can_retry:
            raise Refused(f"{letter.position} was not published by a service: nothing to retry")
        mended = Record(
            record.offset,
            record.key if key is None else key.encode(),
            record.value if value is None else value,
            now_ms(),
            tuple(h for h in record.headers if not h[0].startswith(ERRORS)),
        )
        if letter.topic == self._topics.labels.name:
            self._labels.read(mended)
            partitions, where = self._topics.labels.partitions, None
        else:
            for _, error in self._transactions.read_many(0, [mended]).refused:
                raise error
            partitions = self._topics.transactions.partitions
            where = _partition(letter.position) if key is None else None
        if where is None:
            where = partition_of(mended.key or b"", partitions)
        if where >= partitions:
            raise Malformed("partition", where, f"one below {partitions}")
        return Send(letter.topic, where, mended.key, mended.value, mended.headers)


def _partition(position: str) -> int | None:
    number = position.rpartition("[")[2].partition("]")[0]
    return int(number) if number.isdigit() else None


async def fetch(settings: Settings, topics: Topics, offset: int) -> Record:
    """A dead letter, whole. Raises Refused where the topic holds none there."""
    at = TopicPartition(topics.dead_letters.name, 0)
    consumer = Reader(settings).client()
    await reach(consumer.start, settings.kafka.bootstrap)
    try:
        consumer.assign([at])
        first = (await consumer.beginning_offsets([at]))[at]
        end = (await consumer.end_offsets([at]))[at]
        if first <= offset < end:
            consumer.seek(at, offset)
            while await consumer.position(at) <= offset:
                fetched = await consumer.getmany(at, timeout_ms=1_000, max_records=1)
                for record in fetched.get(at, ()):
                    if record.offset == offset and settled_of(read(record)) is None:
                        return read(record)
    finally:
        await consumer.stop()
    raise Refused(f"{at.topic} holds no dead letter {shown(offset)}; expected one of the list")


async def held(settings: Settings) -> list[Letter]:
    """Every dead letter that the topic holds, oldest first, and what was done about it."""
    topics = Topics.of(settings)
    at = TopicPartition(topics.dead_letters.name, 0)
    found: dict[int, Letter] = {}
    consumer = Reader(settings).client()
    await reach(consumer.start, settings.kafka.bootstrap)
    try:
        if at.topic not in await consumer.topics():
            raise Refused(f"{at.topic} does not exist; run `weir topics create`")
        consumer.assign([at])
        await consumer.seek_to_beginning(at)
        end = (await consumer.end_offsets([at]))[at]
        while await consumer.position(at) < end:
            for one in (await consumer.getmany(at, timeout_ms=250)).get(at, ()):
                _take(found, Position(at.topic, 0, one.offset), read(one), topics)
    finally:
        await consumer.stop()
    return list(found.values())


def _take(found: dict[int, Letter], at: Position, record: Record, topics: Topics) -> None:
    settled = settled_of(record)
    if settled is None:
        found[at.offset] = letter_of(at, record, topics)
    elif settled[0] in found:
        _, state, by = settled
        found[settled[0]] = msgspec.structs.replace(found[settled[0]], state=state, by=by)
