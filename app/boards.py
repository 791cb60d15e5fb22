"""Follows what people look at: the topics of few records, outside any group, into the board."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import time
from typing import TYPE_CHECKING, Any, Final, cast

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from mode import Service

from app import codec
from app.core.board import Board, Version
from app.errors import Malformed
from app.kafka import Reader, reach, read
from app.letters import letter_of, settled_of
from app.records import Position
from app.tasks import Bound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Sized

    from aiokafka import AIOKafkaConsumer
    from aiokafka.structs import ConsumerRecord

    from app.config import Settings
    from app.records import Record
    from app.snapshots import About
    from app.topics import Topics

log = structlog.get_logger(__name__)

#: Seconds between two looks at whether the broker answers, and how long it may take.
_LOOK_S: Final = 2.0


class Boards(Service):
    """Keeps a board; ``tell`` hears of what comes, once all that was there has been read."""

    def __init__(
        self, settings: Settings, topics: Topics, tell: Callable[[str, Any], None], **kwargs: Any
    ) -> None:
        """Describe what to follow; nothing is connected yet."""
        super().__init__(**kwargs)
        self._settings, self._topics, self._tell = settings, topics, tell
        self.board = Board()
        self.caught_up = asyncio.Event()
        self.is_connected = False
        self.since_ms = time.time_ns() // 1_000_000

    @Service.task
    async def _follow(self) -> None:
        consumer = Reader(self._settings).client()
        await reach(consumer.start, self._settings.kafka.bootstrap)
        followed = self._topics
        at = [
            TopicPartition(spec.name, number)
            for spec in (followed.alerts, followed.outcomes, followed.drift, followed.dead_letters)
            for number in range(spec.partitions)
        ]
        try:
            consumer.assign(at)
            ends = await self._begin(consumer, at)
            look = asyncio.create_task(self._look(consumer, at[0]))
            try:
                while not self.should_stop:
                    self.take(await consumer.getmany(*at, timeout_ms=250))
                    if not self.caught_up.is_set() and await _has_passed(consumer, ends):
                        self.caught_up.set()
            finally:
                look.cancel()
                await asyncio.gather(look, return_exceptions=True)
        finally:
            await consumer.stop()

    async def _begin(
        self, consumer: AIOKafkaConsumer, at: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        """Begin with what the board can hold; return where the topics end."""
        firsts, ends = await consumer.beginning_offsets(at), await consumer.end_offsets(at)
        for tp in at:
            consumer.seek(tp, max(firsts[tp], ends[tp] - self.board.held_max))
        return cast("Mapping[TopicPartition, int]", ends)

    async def _look(self, consumer: AIOKafkaConsumer, at: TopicPartition) -> None:
        """See whether the broker answers, and say when that changes."""
        while True:
            reason = ""
            try:
                async with asyncio.timeout(_LOOK_S):
                    await consumer.end_offsets([at])
            except (KafkaError, TimeoutError) as error:
                reason = repr(error)
            if self.is_connected == bool(reason):
                self.is_connected = not reason
                self.since_ms = time.time_ns() // 1_000_000
                self._tell("broker", {**self.broker, "reason": reason})
            await asyncio.sleep(_LOOK_S)

    def bounds(self) -> tuple[Bound]:
        """The list that is longest."""
        board = self.board
        lists: tuple[Sized, ...] = (board.alerts, board.drifts, board.outcomes, board.letters)
        longest = max(map(len, lists))
        return (Bound("board.held_max", "board", 0, longest, board.held_max),)

    @property
    def broker(self) -> dict[str, Any]:
        """Whether the broker answers, and since when that is so."""
        return {"is_connected": self.is_connected, "since_ms": self.since_ms}

    def take(
        self, fetched: Mapping[TopicPartition, Sequence[ConsumerRecord[bytes, bytes]]]
    ) -> None:
        """Fold what was fetched, by when it was written, and each partition in its order.

        Two workers that write to one partition may land otherwise than by their clocks.
        """
        held = ([(tp, record) for record in records] for tp, records in fetched.items())
        for tp, record in heapq.merge(*held, key=lambda one: one[1].timestamp):
            at = Position(tp.topic, tp.partition, record.offset)
            with contextlib.suppress(Malformed):
                self.take_one(at, read(record))

    def take_one(self, at: Position, record: Record) -> None:
        """Fold one record. Raises Malformed if weir did not write it."""
        topics, board, seen_ms = self._topics, self.board, record.timestamp_ms
        if at.topic == topics.alerts.name:
            self._say("alert", board.on_alert(at, seen_ms, codec.read_alert(record)))
        elif at.topic == topics.outcomes.name:
            outcome = codec.read_outcome(record)
            self._say("outcome", board.on_outcome(at, seen_ms, outcome))
            self._say("label", board.alert(outcome.transaction_id))
        elif at.topic == topics.drift.name:
            self._say("drift", board.on_drift(at, seen_ms, codec.read_drift(record)))
        elif (settled := settled_of(record)) is not None:
            self._say("dead-letter", board.on_settled(at, *settled))
        else:
            self._say("dead-letter", board.on_letter(at, letter_of(at, record, topics)))

    def on_snapshot(self, record: Record, said: About | None, reason: str | None) -> None:
        """Take a snapshot that the follower of models has read."""
        told = Version(
            offset=record.offset,
            written_ms=record.timestamp_ms,
            bytes=len(record.value or b""),
            position=said.position if said else None,
            digest=said.digest if said else None,
            verifies=said is not None,
            reason=reason,
        )
        self._say("model", self.board.on_version(told))

    def _say(self, kind: str, told: Any) -> None:
        if told is not None and self.caught_up.is_set():
            self._tell(kind, told)


async def _has_passed(consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> bool:
    return all([await consumer.position(tp) >= end for tp, end in ends.items()])
