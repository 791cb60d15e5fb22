"""Kafka as everything here reaches it: whoever writes sees every acknowledgement."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Self, cast

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.helpers import create_ssl_context
from aiokafka.protocol.produce import ProduceRequest

from app.errors import Fenced, Misconfigured, Refused, Undelivered
from app.records import Record
from app.topics import SNAPSHOT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aiokafka.client import AIOKafkaClient
    from aiokafka.structs import ConsumerRecord

    from app.config import KafkaSettings, Settings
    from app.records import Headers, Send
    from app.tasks import Range, Task

log = structlog.get_logger(__name__)

#: 512 KiB: half of what a broker takes in one batch by default.
_BATCH_BYTES: Final = 524_288
#: A record's keys, headers and framing beside its value.
_FRAMING_BYTES: Final = 65_536
#: Seconds between two tries to reach a broker that is away.
_RETRY_S: Final = 1.0
#: Seconds without a record until a restore is given up: brokers change hands within ten.
_STALLED_S: Final = 60.0


def now_ms() -> int:
    """The wall clock; the core gets it as an argument."""
    return time.time_ns() // 1_000_000


def client_settings(kafka: KafkaSettings) -> dict[str, Any]:
    """How any client of ours reaches the brokers, as aiokafka wants it. Raises Misconfigured."""
    settings: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap,
        "security_protocol": kafka.security_protocol,
        "request_timeout_ms": kafka.request_timeout,
    }
    if kafka.security_protocol.endswith("SSL"):
        files = kafka.ca_file, kafka.cert_file, kafka.key_file
        ca_file, cert_file, key_file = (None if file is None else str(file) for file in files)
        try:
            context = create_ssl_context(cafile=ca_file, certfile=cert_file, keyfile=key_file)
        except OSError as error:  # ssl.SSLError is one
            told = ", ".join(filter(None, (ca_file, cert_file, key_file)))
            msg = f"kafka.ca_file, cert_file, key_file ({told}): {error}; expected PEM files"
            raise Misconfigured(msg) from None
        settings["ssl_context"] = context
    if kafka.security_protocol.startswith("SASL"):
        settings["sasl_mechanism"] = kafka.sasl_mechanism
        settings["sasl_plain_username"] = kafka.username
        settings["sasl_plain_password"] = (
            kafka.password.get_secret_value() if kafka.password else None
        )
    return settings


async def reach(start: Any, bootstrap: str) -> None:
    """Start a client, for as long as it takes: a broker that is away is waited for, aloud."""
    waited = 0
    while True:
        try:
            await start()
        except (KafkaConnectionError, OSError) as error:
            waited += 1
            if waited == 1 or waited % 10 == 0:
                log.warning(
                    "waiting_for_broker", bootstrap=bootstrap, tries=waited, error=str(error)
                )
            await asyncio.sleep(_RETRY_S)
        else:
            return


def read(record: ConsumerRecord[bytes, bytes]) -> Record:
    """A record of aiokafka's in our words."""
    headers = without_null(record.headers)
    return Record(record.offset, record.key, record.value, record.timestamp, headers)


def without_null(headers: Iterable[tuple[str, bytes | None]]) -> Headers:
    """Headers as they came; Kafka lets a value be null, and that says no more than an empty one.

    >>> without_null([("a", None), ("b", b"1")])
    (('a', b''), ('b', b'1'))
    """
    told = tuple(headers)
    if None in map(itemgetter(1), told):
        told = tuple((name, value or b"") for name, value in told)
    return cast("Headers", told)


#: What to do about an error of the broker, by its name.
_MENDS: Final = {
    "MessageSizeTooLargeError": "raise max.message.bytes of the topic: `weir topics check`",
    "RecordListTooLargeError": "raise max.message.bytes of the topic: `weir topics check`",
    "UnknownTopicOrPartitionError": "was the topic deleted? `weir topics create` makes it anew",
    "TopicAuthorizationFailedError": "let this user write to the topic",
    "InvalidTimestampError": "the clock here is ahead of the broker's: put it right, or raise "
    "message.timestamp.after.max.ms of the topic",
    "NotEnoughReplicasError": "a broker is away: min.insync.replicas asks for more than are there",
    "KafkaStorageError": "look at the broker's disk: is it full?",
    "TimeoutError": "is the topic there (`weir topics check`), the broker reached, its disk full?",
}


def _mend(error: Exception) -> str:
    """What a person can do; nothing that was read is lost meanwhile."""
    said = _MENDS.get(type(error).__name__, "look at the broker's log")
    return f"{said}. Nothing it stands for is committed: it is read again"


class _NotOurs(KafkaError):
    """What may not be written any more; aiokafka tells whoever waits, and does not try again."""


class Sender:
    """Writes records and returns when the brokers have acknowledged every one; an async context.

    ``check`` is asked at the last moment before each request, those that aiokafka sends again too,
    and raises Fenced where nothing may be written any more. A process that was stopped in between
    (SIGSTOP) is known by it: between what it says and the write to the socket no other code runs.
    """

    def __init__(self, settings: Settings, check: Callable[[], None] | None = None) -> None:
        """Describe the producer; ``start`` connects it."""
        self._kafka, self._check = settings.kafka, check
        self._timeout_s = settings.delivery_ms / 1_000.0
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        """Connect."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        await self.stop()

    async def start(self) -> None:
        """Connect, waiting for a broker that is away."""
        self._producer = AIOKafkaProducer(
            **client_settings(self._kafka),
            acks="all",
            enable_idempotence=self._kafka.idempotent,
            linger_ms=0,
            max_batch_size=_BATCH_BYTES,
            max_request_size=SNAPSHOT_BYTES + _FRAMING_BYTES,
        )
        if self._check is not None:
            self._guard(self._producer.client, self._check)
        await reach(self._producer.start, self._kafka.bootstrap)

    @staticmethod
    def _guard(client: AIOKafkaClient, check: Callable[[], None]) -> None:
        send = client.send

        async def checked(node_id: int, request: Any, **how: Any) -> Any:
            if isinstance(request, ProduceRequest):
                await client.ready(node_id, **how)  # all that there is to wait for
                try:
                    check()
                except Fenced as error:
                    raise _NotOurs(str(error)) from error
            return await send(node_id, request, **how)

        client.send = checked

    async def stop(self) -> None:
        """Disconnect."""
        if self._producer is not None:
            await self._producer.stop()

    async def deliver(self, sends: Iterable[Send]) -> None:
        """Write records, in order within each partition. Raises Undelivered, Fenced."""
        by_partition: dict[tuple[str, int], list[Send]] = defaultdict(list)
        for send in sends:
            by_partition[send.topic, send.partition].append(send)
        if not by_partition:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.gather(*(self._write(*at, s) for at, s in by_partition.items()))
        except _NotOurs as error:
            raise Fenced(*error.args) from error
        except (KafkaError, TimeoutError) as error:
            topics = sorted({topic for topic, _ in by_partition})
            msg = f"a batch for {', '.join(topics)} was not acknowledged: {error!r}"
            raise Undelivered(f"{msg}; {_mend(error)}") from error

    async def _write(self, topic: str, partition: int, sends: Sequence[Send]) -> None:
        producer = cast("AIOKafkaProducer", self._producer)
        acknowledged, builder = [], producer.create_batch()
        for send in sends:
            key, value, headers = send.key, send.value, list(send.headers)
            taken = builder.append(timestamp=None, key=key, value=value, headers=headers)
            if taken is None:  # it is full
                acknowledged.append(await producer.send_batch(builder, topic, partition=partition))
                builder = producer.create_batch()
                builder.append(timestamp=None, key=key, value=value, headers=headers)
        acknowledged.append(await producer.send_batch(builder, topic, partition=partition))
        await asyncio.gather(*acknowledged)


class Reader:
    """Reads partitions from one offset to another, outside any group."""

    def __init__(self, settings: Settings) -> None:
        """Describe the consumer; ``read`` connects it."""
        self._kafka = settings.kafka

    def client(self) -> AIOKafkaConsumer:
        """Return a consumer without a group, not yet connected."""
        return AIOKafkaConsumer(
            **client_settings(self._kafka),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_partition_fetch_bytes=SNAPSHOT_BYTES,
            max_poll_records=10_000,
        )

    async def read(self, task: Task, ranges: Sequence[Range]) -> int:
        """Hand the records of ``ranges`` to the task, in order; return how many there were."""
        if not ranges:
            return 0
        consumer = self.client()
        await reach(consumer.start, self._kafka.bootstrap)
        try:
            return sum([await self._read(consumer, task, wanted) for wanted in ranges])
        finally:
            await consumer.stop()

    @staticmethod
    async def _read(consumer: AIOKafkaConsumer, task: Task, wanted: Range) -> int:
        at = TopicPartition(*wanted.partition)
        consumer.assign([at])
        first = (await consumer.beginning_offsets([at]))[at]
        stop = (await consumer.end_offsets([at]))[at]
        stop = stop if wanted.stop is None else min(stop, wanted.stop)
        consumer.seek(at, max(first, wanted.start or 0))
        n, before, moved_s = 0, -1, time.monotonic()
        # The position goes on over what compaction and transactions leave of no record.
        while (position := await consumer.position(at)) < stop:
            if position != before:
                before, moved_s = position, time.monotonic()
            elif time.monotonic() - moved_s > _STALLED_S:
                raise Refused(
                    f"{at.topic}[{at.partition}]: reading has stood at offset {position} for "
                    f"{_STALLED_S:g} s; expected to reach {stop}: was the topic deleted, or is its "
                    "broker away?"
                )
            fetched = await consumer.getmany(at, timeout_ms=1_000)
            records = [read(record) for record in fetched.get(at, ()) if record.offset < stop]
            task.restore(wanted.partition, records)
            n += len(records)
        return n
