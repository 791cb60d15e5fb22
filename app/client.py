"""For services in Python: publish transactions, label them, be told of alerts.

``AsyncClient`` within a loop, ``Client`` anywhere else. Both go by the configuration of the
workers, so that keys, partitions and names of fields are theirs. docs/api.md has an example of each
use.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import KafkaError

from app import codec
from app.core.features import FeaturePlan
from app.errors import Undelivered
from app.kafka import client_settings, now_ms, reach, read
from app.records import Position, Record
from app.topics import Topics, partition_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping

    from app.config import Settings
    from app.records import Alert
    from app.topics import TopicSpec

log = structlog.get_logger(__name__)

#: Alerts a partition that are looked at again at the start, so that one that a worker said twice,
#: before and after the subscriber was restarted, is given once.
REMEMBERED: Final = 1_000
#: Seconds between two commits: so much is given again after a crash, at most.
_COMMIT_S: Final = 1.0
_CE_ID: Final = "ce_id"

T = TypeVar("T")


class AsyncClient:
    """An async context; every write waits for its acknowledgement."""

    def __init__(self, settings: Settings) -> None:
        """Describe the client; nothing is connected yet."""
        self._settings, self._topics = settings, Topics.of(settings)
        plan = FeaturePlan.of(settings.features, settings.transaction.entities)
        self._transactions = codec.TransactionReader(settings.transaction, plan)
        self._labels = codec.LabelReader(settings.label, settings.transaction.ahead_max)
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        """Connect, waiting for a broker that is away."""
        kafka = self._settings.kafka
        self._producer = AIOKafkaProducer(
            **client_settings(kafka), acks="all", enable_idempotence=kafka.idempotent
        )
        await reach(self._producer.start, kafka.bootstrap)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Send what is under way, disconnect."""
        if self._producer is not None:
            await self._producer.stop()

    async def publish(self, transaction: Mapping[str, Any]) -> Position:
        """Publish a transaction; return where it lies.

        Raises Malformed where it does not fit the declared schema, Undelivered if the broker does
        not take it: published again under the same id, it is scored once.
        """
        return await self._sent(await self._send(*self._transaction(transaction)))

    async def publish_many(self, transactions: Iterable[Mapping[str, Any]]) -> list[Position]:
        """Publish several, in their order; return where each lies. What does not fit stops it."""
        ready = [self._transaction(one) for one in transactions]
        # One after another: of calls that wait side by side a later one may overtake.
        under_way = [await self._send(*one) for one in ready]
        return [await self._sent(one) for one in under_way]

    def _transaction(self, transaction: Mapping[str, Any]) -> tuple[TopicSpec, Record]:
        value = codec.encode(transaction)
        record = codec.record_of(value, self._settings.transaction, now_ms())
        for _, error in self._transactions.read_many(0, [record]).refused:
            raise error
        return self._topics.transactions, record

    async def label(
        self, transaction_id: str, *, is_fraud: bool, source: str = "client",
        time_ms: int | None = None,
    ) -> Position:  # fmt: skip
        """Say what a transaction was; return where the label lies.

        ``time_ms``: when this became known, event time; default: now. Raises as ``publish``.
        """
        of = self._settings.label
        told: dict[str, Any] = {of.transaction_id: transaction_id, of.value: is_fraud}
        told[of.time] = now_ms() if time_ms is None else time_ms
        if of.source:
            told[of.source] = source
        record = Record(0, transaction_id.encode(), codec.encode(told), now_ms())
        self._labels.read(record)
        return await self._sent(await self._send(self._topics.labels, record))

    async def _send(self, topic: TopicSpec, record: Record) -> asyncio.Future[Any]:
        if self._producer is None:
            raise Undelivered("the client is not connected; use it as a context")
        partition = partition_of(record.key or b"", topic.partitions)
        try:
            under_way: asyncio.Future[Any] = await self._producer.send(
                topic.name, record.value, key=record.key, partition=partition
            )
        except KafkaError as error:
            raise Undelivered(f"{topic.name}[{partition}]: {error!r}") from error
        return under_way

    @staticmethod
    async def _sent(under_way: asyncio.Future[Any]) -> Position:
        try:
            at = await under_way
        except (KafkaError, TimeoutError) as error:
            raise Undelivered(f"the broker did not take it: {error!r}") from error
        return Position(at.topic, at.partition, at.offset)

    async def alerts(self, group: str, *, from_beginning: bool = True) -> AsyncIterator[Alert]:
        """Alerts, for a group of subscribers that share them: each at least once.

        An alert counts as handled when the next one is asked for; what was not handled comes again
        to whoever goes on. What a worker says twice is given once. ``from_beginning``: what a group
        that is new begins with.
        """
        consumer = AIOKafkaConsumer(
            **client_settings(self._settings.kafka),
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest" if from_beginning else "latest",
        )
        seen = _Seen(consumer)
        await reach(consumer.start, self._settings.kafka.bootstrap)
        consumer.subscribe([self._topics.alerts.name], listener=seen)
        try:
            async for at, record in seen.records():
                yield codec.read_alert(record)
                seen.handled[at] = record.offset + 1
        finally:
            await seen.commit()
            await consumer.stop()


class _Seen(ConsumerRebalanceListener):
    """What a subscriber has handled, and which alerts it knows."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self._ids: OrderedDict[bytes, None] = OrderedDict()
        self._begins: dict[TopicPartition, int] = {}  # below, alerts are looked at and not given
        self._room = 0
        self._committed_s = time.monotonic()
        self.handled: dict[TopicPartition, int] = {}

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Commit what was handled; others go on from there."""
        await self.commit()
        self.handled = {}

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Go back a little, to know what was given before; give nothing until then."""
        self._consumer.pause(*assigned)
        for at in assigned:
            offset = await self._consumer.committed(at)
            if offset is None:
                continue
            first = (await self._consumer.beginning_offsets([at]))[at]
            self._begins[at] = offset
            self._consumer.seek(at, max(first, offset - REMEMBERED))
        self._room = 2 * REMEMBERED * max(len(self._consumer.assignment()), 1)
        self._consumer.resume(*assigned)

    async def records(self) -> AsyncIterator[tuple[TopicPartition, Record]]:
        """Records that were not given before, for ever."""
        while True:
            fetched = await self._consumer.getmany(timeout_ms=250)
            for at, held in fetched.items():
                for one in held:
                    record = read(one)
                    is_known = self._knows(record)
                    if record.offset >= self._begins.get(at, 0) and not is_known:
                        yield at, record
            if time.monotonic() - self._committed_s > _COMMIT_S:
                await self.commit()

    def _knows(self, record: Record) -> bool:
        identity = dict(record.headers).get(_CE_ID, record.key or b"")
        if identity in self._ids:
            return True
        self._ids[identity] = None
        while len(self._ids) > self._room:
            self._ids.popitem(last=False)
        return False

    async def commit(self) -> None:
        """Commit what was handled; if the group has moved on, it comes again."""
        self._committed_s = time.monotonic()
        if self.handled:
            try:
                await self._consumer.commit(dict(self.handled))
            except KafkaError as error:
                log.warning("alerts_not_committed", reason=repr(error))


class Client:
    """The same for programs without a loop: a context whose calls wait."""

    def __init__(self, settings: Settings) -> None:
        """Describe the client; nothing is connected yet."""
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        """Connect, in a thread of its own."""
        self._thread.start()
        self._client = self._wait(self._made())
        self._wait(self._client.__aenter__())
        return self

    async def _made(self) -> AsyncClient:
        return AsyncClient(self._settings)

    def __exit__(self, *_: object) -> None:
        """Send what is under way, disconnect."""
        self._wait(self._client.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def publish(self, transaction: Mapping[str, Any]) -> Position:
        """As ``AsyncClient.publish``."""
        return self._wait(self._client.publish(transaction))

    def publish_many(self, transactions: Iterable[Mapping[str, Any]]) -> list[Position]:
        """As ``AsyncClient.publish_many``."""
        return self._wait(self._client.publish_many(transactions))

    def label(
        self, transaction_id: str, *, is_fraud: bool, source: str = "client",
        time_ms: int | None = None,
    ) -> Position:  # fmt: skip
        """As ``AsyncClient.label``."""
        return self._wait(
            self._client.label(transaction_id, is_fraud=is_fraud, source=source, time_ms=time_ms)
        )

    def alerts(self, group: str, *, from_beginning: bool = True) -> Iterator[Alert]:
        """As ``AsyncClient.alerts``; closing the iterator ends the subscription."""
        told = self._client.alerts(group, from_beginning=from_beginning)
        try:
            while True:
                yield self._wait(anext(told))  # type: ignore[arg-type]
        finally:
            self._wait(told.aclose())  # type: ignore[attr-defined]

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
