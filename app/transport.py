"""Faust's membership, our loop: a transport that moves whole batches, URL scheme ``weir://``.

Faust gives the app, the group, the assignment and the life of the services. What passes
between fetching and committing is here, in one order that is never changed:

    apply -> outputs, every one acknowledged -> state, every one acknowledged -> offsets

Everything that reaches into Faust or aiokafka stands in this module; a test holds a hash of
each private method it relies on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, cast

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    KafkaConnectionError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from aiokafka.helpers import create_ssl_context
from aiokafka.structs import OffsetAndMetadata
from faust.tables.manager import TableManager
from faust.transport import base
from faust.transport.consumer import Consumer as FaustConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from app.errors import Fenced, Undelivered
from app.records import Partition, Record
from app.tasks import Committed, Effects
from app.topics import DEAD_LETTER_BYTES, SNAPSHOT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aiokafka.structs import ConsumerRecord
    from faust import App

    from app.config import KafkaSettings, Settings
    from app.metrics import Metrics
    from app.records import Send
    from app.tasks import Range, Stage, Task

log = structlog.get_logger(__name__)

#: 512 KiB: half of what a broker takes in one batch by default.
_BATCH_BYTES: Final = 524_288
#: A record's keys, headers and framing beside its value.
_FRAMING_BYTES: Final = 65_536
#: Seconds between two tries to reach a broker that is away.
_RETRY_S: Final = 1.0
#: Heartbeats a session: the broker may miss two.
_HEARTBEATS: Final = 10


def now_ms() -> int:
    """The wall clock; the core gets it as an argument."""
    return time.time_ns() // 1_000_000


def client_settings(kafka: KafkaSettings) -> dict[str, Any]:
    """How any client of ours reaches the brokers, as aiokafka wants it."""
    settings: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap,
        "security_protocol": kafka.security_protocol,
        "request_timeout_ms": kafka.request_timeout,
    }
    if kafka.security_protocol.endswith("SSL"):
        settings["ssl_context"] = create_ssl_context(
            cafile=str(kafka.ca_file) if kafka.ca_file else None,
            certfile=str(kafka.cert_file) if kafka.cert_file else None,
            keyfile=str(kafka.key_file) if kafka.key_file else None,
        )
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
    return Record(record.offset, record.key, record.value, record.timestamp, record.headers)


class Lease:
    """The right to write: it runs out when the group may have given our partitions away.

    A process that was stopped (SIGSTOP, a suspended machine) for longer than its session wakes
    up as if nothing had happened; only a clock that went on meanwhile can tell it.
    """

    def __init__(self, session_ms: int, reserve_ms: int = 0) -> None:
        """Begin without a lease; keep ``reserve_ms`` of it for what a write may take to land."""
        self._session_s = (session_ms - reserve_ms) / 1_000.0
        self._renewed_s = float("-inf")

    @staticmethod
    def clock_s() -> float:
        """Seconds since boot, those asleep included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def renew(self, at_s: float) -> None:
        """The group coordinator knew us at ``at_s``."""
        self._renewed_s = max(self._renewed_s, at_s)

    @property
    def age_s(self) -> float:
        """Seconds since the group coordinator last knew us."""
        return self.clock_s() - self._renewed_s

    def check(self) -> None:
        """Raise Fenced if our partitions may be another's by now."""
        if self.age_s >= self._session_s:
            msg = (
                f"no heartbeat was answered for {self.age_s:.1f} s, of {self._session_s:g} s in "
                "which a write is sure to land before the partitions can be another worker's"
            )
            raise Fenced(msg)


class Sender:
    """Writes records and returns when the brokers have acknowledged every one."""

    def __init__(self, settings: Settings) -> None:
        """Describe the producer; ``start`` connects it."""
        self._kafka = settings.kafka
        self._timeout_s = settings.delivery_ms / 1_000.0
        self._producer: AIOKafkaProducer | None = None

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
        await reach(self._producer.start, self._kafka.bootstrap)

    async def stop(self) -> None:
        """Disconnect."""
        if self._producer is not None:
            await self._producer.stop()

    async def deliver(self, sends: Iterable[Send]) -> None:
        """Write records, in order within each partition. Raises Undelivered."""
        by_partition: dict[tuple[str, int], list[Send]] = defaultdict(list)
        for send in sends:
            by_partition[send.topic, send.partition].append(send)
        if not by_partition:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.gather(*(self._write(*at, s) for at, s in by_partition.items()))
        except (KafkaError, TimeoutError) as error:
            topics = sorted({topic for topic, _ in by_partition})
            msg = f"a batch for {', '.join(topics)} was not acknowledged: {error!r}"
            raise Undelivered(msg) from error

    async def _write(self, topic: str, partition: int, sends: Sequence[Send]) -> None:
        producer = cast("AIOKafkaProducer", self._producer)
        builder = producer.create_batch()
        acknowledged = []
        for send in sends:
            record = {"key": send.key, "value": send.value, "timestamp": None}
            if builder.append(**record, headers=list(send.headers)) is None:
                acknowledged.append(await producer.send_batch(builder, topic, partition=partition))
                builder = producer.create_batch()
                builder.append(**record, headers=list(send.headers))
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
        n = 0
        while await consumer.position(at) < stop:
            fetched = await consumer.getmany(at, timeout_ms=1_000)
            records = [read(record) for record in fetched.get(at, ()) if record.offset < stop]
            task.restore(wanted.partition, records)
            n += len(records)
        return n


class Flow:
    """What one process runs: its stages, and what moves records between them and Kafka."""

    def __init__(self, settings: Settings, stages: Sequence[Stage], metrics: Metrics) -> None:
        """Describe the flow; nothing is connected yet."""
        self.settings, self.stages, self.metrics = settings, stages, metrics
        self.sender = Sender(settings)
        self.reader = Reader(settings)
        self.lease = Lease(settings.kafka.session_timeout, settings.delivery_ms)
        self.now_ms = now_ms
        self.tasks: dict[Partition, Task] = {}
        self.positions: dict[Partition, int] = {}
        self.is_restored = False
        self.is_assigned = False
        self.progress_s = time.monotonic()  # when the loop last came round
        self.is_whole = True  # no batch was left half done
        self.gates: list[asyncio.Event] = []  # what must have come before the first batch
        self._committed: dict[Partition, int] = {}
        self._committed_s = 0.0

    @property
    def topics(self) -> list[str]:
        """Every topic that some stage reads, in the order of the flow."""
        return [topic for stage in self.stages for topic in stage.topics]

    def own(self, assigned: Iterable[Partition]) -> list[Task]:
        """Make the tasks of newly assigned partitions; what was owned before is dropped."""
        self.tasks, self.positions, self._committed = {}, {}, {}
        self.is_whole = True
        owned, made = set(assigned), []
        for stage in self.stages:
            for number in sorted({p.partition for p in owned if p.topic in stage.topics}):
                task = stage.task(number)
                if all(at in owned for at in task.inputs):
                    made.append(task)
                    self.tasks.update(dict.fromkeys(task.inputs, task))
                else:
                    log.error("inputs_not_together", stage=stage.name, partition=number)
        return made

    async def run(self, fetched: Mapping[Partition, Sequence[Record]], *, is_last: bool) -> None:
        """One turn of the loop but for the offsets: apply, outputs, state."""
        effects, now = Effects(), self.now_ms()
        self.is_whole = False
        for at, records in fetched.items():
            self.tasks[at].apply(at, records, now, effects)
        for task in dict.fromkeys(self.tasks.values()):
            task.tick(now, effects, is_last=is_last)
        for sends in (effects.first, effects.outputs):
            if sends:
                self.lease.check()
                await self.sender.deliver(sends)
        if effects.state:
            self.lease.check()
            await self.sender.deliver(effects.state)
        self.positions.update({at: records[-1].offset + 1 for at, records in fetched.items()})
        self.is_whole = True

    def due(self) -> dict[Partition, Committed]:
        """Offsets that may be committed now, and were not yet."""
        return {
            at: Committed(offset, self.tasks[at].note(at, offset))
            for at, offset in self.positions.items()
            if self._committed.get(at) != offset
        }

    def is_due(self) -> bool:
        """Whether it is time to commit."""
        interval_s = self.settings.worker.commit_interval / 1_000.0
        return time.monotonic() - self._committed_s >= interval_s

    def committed(self, offsets: Mapping[Partition, Committed]) -> None:
        """Note what the coordinator took."""
        self._committed.update({at: was.offset for at, was in offsets.items()})
        self._committed_s = time.monotonic()
        self.metrics.committed(self.now_ms())


def flow_of(app: Any) -> Flow:
    """The flow that an app of ours runs; Faust's types do not know of it."""
    return cast("Flow", app.flow)


class _Listener(ConsumerRebalanceListener):
    """Hands aiokafka's rebalance calls to Faust, as Faust's own driver does."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._consumer.app.on_rebalance_start()
        await self._consumer.on_partitions_revoked({TP(*tp) for tp in revoked})

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        consumer = self._consumer
        generation = consumer.client._coordinator.generation
        consumer.app.consumer_generation_id = generation
        consumer.flow.lease.renew(Lease.clock_s())
        await consumer.on_partitions_assigned({TP(*tp) for tp in assigned}, generation)


class Consumer(FaustConsumer):
    """A group member that takes whole batches and owns the offsets it commits."""

    flow: Flow

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Find the flow that this app runs."""
        super().__init__(*args, **kwargs)
        self.flow = flow_of(self.app)
        self.client = self._client()
        self._turn = asyncio.Lock()  # held while a batch is under way
        self._flowing = asyncio.Event()

    def _client(self) -> AIOKafkaConsumer:
        settings = self.flow.settings
        session = settings.kafka.session_timeout
        return AIOKafkaConsumer(
            **client_settings(settings.kafka),
            group_id=self.app.conf.id,
            # Range: partition p of every topic goes to one member, if the counts are equal.
            partition_assignment_strategy=[RangePartitionAssignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=session,
            heartbeat_interval_ms=session // _HEARTBEATS,
            rebalance_timeout_ms=session,
            max_poll_interval_ms=max(session, 300_000),
            # One request at a time is under way to a broker, and a partition that was just read
            # is not in it: it waits this long.
            fetch_max_wait_ms=25,
            max_partition_fetch_bytes=max(1_048_576, DEAD_LETTER_BYTES),
        )

    async def on_start(self) -> None:
        """Connect; see to it that every heartbeat renews the lease."""
        await self.flow.sender.start()
        await reach(self.client.start, self.flow.settings.kafka.bootstrap)

    async def on_stop(self) -> None:
        """Finish the batch in hand, keep what is left to keep, leave the group."""
        await self.wait_empty()
        await self.client.stop()
        await self.flow.sender.stop()

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group for these topics."""
        self.client.subscribe(sorted(topics), listener=_Listener(self))
        coordinator = self.client._coordinator
        heartbeat = coordinator._do_heartbeat

        async def renewing() -> bool:
            asked_s = Lease.clock_s()
            is_known = bool(await heartbeat())
            if is_known:
                self.flow.lease.renew(asked_s)
            return is_known

        coordinator._do_heartbeat = renewing

    def stop_flow(self) -> None:
        """Take no further batch."""
        super().stop_flow()
        self._flowing.clear()

    def resume_flow(self) -> None:
        """Take batches again."""
        super().resume_flow()
        self._flowing.set()

    async def wait_empty(self) -> None:
        """Wait for the batch in hand; then commit, and let the tasks go."""
        async with self._turn:
            if not self.flow.tasks:
                return
            try:
                if self.flow.is_restored and self.flow.is_whole:
                    await self.flow.run({}, is_last=True)
                    await self._commit_due()
            except (Fenced, Undelivered, KafkaError) as error:
                log.warning("left_without_commit", reason=str(error))
            self.flow.is_restored = False
            self.flow.own(())
            self.flow.is_assigned = False

    async def _drain_messages(self, fetcher: Any) -> None:
        """Run the loop; called by Faust's fetcher."""
        # Who cancels the loop stops the process; while the group rebalances, the fetcher would
        # take that for a crash.
        with contextlib.suppress(asyncio.CancelledError):
            await self._drain(fetcher)

    async def _drain(self, fetcher: Any) -> None:
        flow = self.flow
        while not (self.should_stop or fetcher.should_stop):
            flow.progress_s = time.monotonic()
            if not self._flowing.is_set():
                await asyncio.sleep(0.01)
                continue
            tps = [TopicPartition(*at) for at in flow.tasks]
            batch_max = flow.settings.worker.batch_max
            fetched = await self.client.getmany(*tps, timeout_ms=100, max_records=batch_max)
            # Shielded: whoever stops the loop waits for the batch in hand (wait_empty).
            await asyncio.shield(asyncio.ensure_future(self._take(fetched)))

    async def _take(self, fetched: Mapping[Any, Sequence[ConsumerRecord[bytes, bytes]]]) -> None:
        async with self._turn:
            if not self._flowing.is_set():
                return  # a rebalance came between; what was fetched will be fetched again
            mine = {
                Partition(tp.topic, tp.partition): [read(record) for record in records]
                for tp, records in fetched.items()
                if records
            }
            await self.flow.run(mine, is_last=False)
            if self.flow.is_due():
                await self._commit_due()
                self._tell_lag()

    async def _commit_due(self) -> None:
        due = self.flow.due()
        if not due:
            return
        self.flow.lease.check()
        offsets = {TopicPartition(*at): OffsetAndMetadata(*was) for at, was in due.items()}
        try:
            await self.client.commit(offsets)
        except (
            CommitFailedError,
            IllegalGenerationError,
            UnknownMemberIdError,
            RebalanceInProgressError,
        ) as error:
            # The group moves on; whoever gets the partitions reads from the last commit.
            log.info("commit_overtaken", reason=str(error))
        else:
            self.flow.committed(due)

    def _tell_lag(self) -> None:
        for at, position in self.flow.positions.items():
            end = self.client.highwater(TopicPartition(*at))
            if end is not None:
                self.flow.metrics.lag(*at, max(end - position, 0))

    async def committed_offsets(self) -> dict[Partition, Committed]:
        """What the group has committed of our tasks' inputs, with the notes beside it."""
        coordinator = self.client._coordinator
        tps = [TopicPartition(*at) for at in self.flow.tasks]
        found = await coordinator.fetch_committed_offsets(tps)
        return {
            Partition(tp.topic, tp.partition): Committed(was.offset, was.metadata)
            for tp, was in found.items()
            if was.offset >= 0
        }

    async def commit(self, *args: Any, **kwargs: Any) -> bool:
        """Nothing: Faust's timer has no say in what is committed."""
        return False

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        return False

    def assignment(self) -> set[TP]:
        """Partitions that the group gave us."""
        return {TP(*tp) for tp in self.client.assignment()}

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Nothing: ``/healthz`` watches the loop itself."""

    def close(self) -> None:
        """Nothing: ``on_stop`` closes."""

    # What Faust's interface asks for and a loop of our own has no use for.

    def _unused(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    create_topic = seek_to_committed = seek_wait = position = _unused
    earliest_offsets = highwaters = _seek = _getmany = _unused
    highwater = topic_partitions = key_partition = _to_message = _unused

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)


class Restorer(TableManager):
    """Faust's seam for recovery: restores the tasks, and only then lets records flow.

    The loop stands still from the moment a rebalance begins until every task holds what its
    log says; so nothing is ever scored on half-restored state.
    """

    def __init__(self, app: App, **kwargs: Any) -> None:
        """Begin with nothing to restore."""
        super().__init__(app, **kwargs)
        self._restoring: asyncio.Task[None] | None = None

    async def on_start(self) -> None:
        """Tell Faust that no further table will come."""
        self._tables_finalized.set()
        self._tables_registered.set()

    async def on_stop(self) -> None:
        """Stop the loop, and a restore that is under way."""
        await self._cancel()
        await cast("Any", self.app)._fetcher.stop()

    def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Nothing: the consumer lets the tasks go once the batch in hand is done."""

    async def on_rebalance(
        self,
        assigned: set[TP],
        revoked: set[TP],
        newly_assigned: set[TP],
        generation_id: int = 0,
    ) -> None:
        """Restore what was assigned, beside the group's heartbeat."""
        await self._cancel()
        self._restoring = asyncio.create_task(self._restore(assigned, generation_id))

    async def _cancel(self) -> None:
        if self._restoring is not None and not self._restoring.done():
            self._restoring.cancel()
            await asyncio.gather(self._restoring, return_exceptions=True)

    async def _restore(self, assigned: set[TP], generation_id: int) -> None:
        consumer, flow = cast("Consumer", self.app.consumer), flow_of(self.app)
        started_s = time.monotonic()
        try:
            tasks = flow.own(Partition(tp.topic, tp.partition) for tp in assigned)
            committed = await consumer.committed_offsets() if tasks else {}
            n = 0
            for task in tasks:
                n += await flow.reader.read(task, task.ranges(committed))
            for gate in flow.gates:
                await gate.wait()
            for task in tasks:
                for at, offset in task.start().items():
                    consumer.client.seek(TopicPartition(*at), offset)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("restore_failed", error=repr(error))
            await self.app.crash(error)
            return
        if generation_id != consumer.client._coordinator.generation:
            return  # another rebalance has begun; it restores again
        flow.is_restored = flow.is_assigned = True
        took_s = round(time.monotonic() - started_s, 3)
        log.info("restored", tasks=len(tasks), records=n, seconds=took_s, generation=generation_id)
        consumer.resume_partitions(assigned)
        consumer.resume_flow()
        self.app.flow_control.resume()
        self.app.on_rebalance_end()
        await cast("Any", self.app)._fetcher.maybe_start()


class Transport(driver.Transport):
    """The transport that a Faust app gets with a broker URL of scheme ``weir``."""

    Consumer = Consumer
    Fetcher = base.Fetcher
    default_port = 9092
    driver_version = "weir"
