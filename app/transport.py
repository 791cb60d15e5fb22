"""Faust's membership, our loop: a transport that moves whole batches, URL scheme ``weir://``.

Faust gives the app, the group, the assignment and the life of the services; what passes between
fetching and committing is the loop here, around the turns of ``flow``.

Everything that reaches into Faust or aiokafka stands in this module; a test holds a hash of
each private method it relies on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from typing import TYPE_CHECKING, Any, Final, cast

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    KafkaError,
    NoOffsetForPartitionError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from aiokafka.structs import OffsetAndMetadata
from faust.tables.manager import TableManager
from faust.transport import base
from faust.transport.consumer import Consumer as FaustConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from app.errors import Fenced, Refused, Undelivered
from app.flow import Flow, Lease
from app.kafka import Sender, client_settings, reach, without_null
from app.peers import assignor, url_of
from app.records import Partition, Record
from app.tasks import Committed, out_of_reach
from app.topics import DEAD_LETTER_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aiokafka.record.default_records import DefaultRecord
    from faust import App

    from app.tasks import Task


log = structlog.get_logger(__name__)

#: Heartbeats a session: the broker may miss two.
_HEARTBEATS: Final = 10
#: A position that is known is told at once; one that is not is waited for so long.
_POSITION_S: Final = 0.1


def flow_of(app: Any) -> Flow:
    """The flow that an app of ours runs; Faust's types do not know of it."""
    return cast("Flow", app.flow)


def consumer_of(app: Any) -> Consumer:
    """The group member of an app of ours."""
    return cast("Consumer", app.consumer)


def _record(_: TopicPartition, record: DefaultRecord) -> Record:
    """A record of a fetched batch in our words."""
    headers = without_null(record.headers)
    return Record(record.offset, record.key, record.value, record.timestamp, headers)


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
        self._turn = asyncio.Lock()  # held while a batch is applied
        self._delivery: asyncio.Task[None] | None = None  # of the batch before
        self._flowing = asyncio.Event()

    def _client(self) -> AIOKafkaConsumer:
        settings = self.flow.settings
        session = settings.kafka.session_timeout
        return AIOKafkaConsumer(
            **client_settings(settings.kafka),
            group_id=self.app.conf.id,
            # Range: partition p of every topic goes to one member, if the counts are equal.
            partition_assignment_strategy=[assignor(url_of(self.flow.settings))],
            enable_auto_commit=False,
            # Where reading begins is decided at every restore; an offset that is not there (any
            # more) is an error, not a reason to begin elsewhere in silence.
            auto_offset_reset="none",
            # What a publisher has taken back was never said.
            isolation_level="read_committed",
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
        async with Sender(self.flow.settings) as sender:  # there is no lease yet
            await sender.deliver(self.flow.greetings)
        await self.flow.sender.start()
        await reach(self.client.start, self.flow.settings.kafka.bootstrap)
        self._read_at_once()

    def _read_at_once(self) -> None:
        """Let aiokafka make our records of what it fetched, and none of its own in between.

        Which of them are read at all (CRC, aborted and control batches, positions) stays its own.
        """
        fetcher = self.client._fetcher
        proceed = fetcher._proc_fetch_request

        async def proceeding(*args: Any) -> bool:
            has_news = bool(await proceed(*args))
            for result in fetcher._records.values():
                if isinstance(result, FetchResult) and result.has_more():
                    result._partition_records._consumer_record = _record
            return has_news

        fetcher._proc_fetch_request = proceeding

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
        """Wait for the batches in hand; then commit, and let the tasks go."""
        async with self._turn:
            if not self.flow.tasks:
                return
            try:
                await self._delivered()
                if self.flow.is_restored and self.flow.is_whole:
                    await self.flow.run({}, is_last=True)
                    await self._commit_due()
            except (Fenced, Undelivered, KafkaError) as error:
                log.warning("left_without_commit", reason=str(error))
            self.flow.own(())

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
            try:
                fetched = await self.client.getmany(*tps, timeout_ms=100, max_records=batch_max)
            except NoOffsetForPartitionError:
                # A rebalance came while it waited: where reading begins is being decided. Once
                # ``begin`` has, aiokafka tells of no such thing any more.
                await asyncio.sleep(0.01)
                continue
            # Shielded: whoever stops the loop waits for the batch in hand (wait_empty).
            await asyncio.shield(asyncio.ensure_future(self._take(fetched)))

    async def _take(self, fetched: Mapping[TopicPartition, Sequence[Record]]) -> None:
        async with self._turn:
            if not (self._flowing.is_set() and self.flow.is_restored):
                return  # a rebalance came between; what was fetched will be fetched again
            mine = {
                Partition(tp.topic, tp.partition): records
                for tp, records in fetched.items()
                if records
            }
            turn = await self.flow.apply(mine)
            await self._delivered()
            self._delivery = asyncio.create_task(self.flow.deliver(turn))
            if self.flow.is_due():
                await self._delivered()
                await self._commit_due()
                self._tell_lag()

    async def _delivered(self) -> None:
        """Wait until the batch before is delivered; raises what stopped that."""
        if self._delivery is not None:
            delivery, self._delivery = self._delivery, None
            await delivery

    async def _commit_due(self) -> None:
        due = self.flow.due()
        if not due:
            return
        self.flow.lease.check()
        offsets = {
            TopicPartition(*at): OffsetAndMetadata(was.offset, was.note) for at, was in due.items()
        }
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
            self.flow.metrics.commit_overtaken()
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
        firsts = await self.client.beginning_offsets(tps)
        return {
            Partition(tp.topic, tp.partition): Committed(was.offset, was.metadata, firsts[tp])
            for tp, was in found.items()
            if was.offset >= 0
        }

    async def fetched(self) -> dict[Partition, int]:
        """The next offsets that are taken of our tasks' inputs, as far as they are known."""
        found = {}
        for at in list(self.flow.tasks):
            with contextlib.suppress(TimeoutError, KafkaError):
                async with asyncio.timeout(_POSITION_S):
                    found[at] = await self.client.position(TopicPartition(*at))
        return found

    async def begin(self, starts: Mapping[Partition, int]) -> None:
        """Read on from ``starts``; what is not in it, from its beginning. Raises Refused.

        The embedded broker, which is not idempotent, takes the beginning of the last batch for the
        end of a log; nothing is refused for that.
        """
        at = [TopicPartition(*one) for one in self.flow.tasks]
        if not at:
            return
        firsts, ends = await self.client.beginning_offsets(at), await self.client.end_offsets(at)
        reached = {at: n for task in self.flow.tasks.values() for at, n in task.reached().items()}
        problems: list[str] = []
        for tp in at:
            one = Partition(tp.topic, tp.partition)
            offset = starts.get(one, firsts[tp])
            # The group forgets its offsets with a topic; the state does not.
            known = reached.get(one, -1) + 1
            wanted = known if known > ends[tp] else offset
            end = ends[tp] if self.flow.settings.kafka.idempotent else max(ends[tp], wanted)
            problems += filter(None, [out_of_reach(one, wanted, firsts[tp], end)])
            self.client.seek(tp, offset)
        if problems:
            raise Refused("\n".join(problems))

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
        """Give up a restore that is under way, whose end would let records flow to other tasks.

        Until the group has made up its mind it is of the same generation as before. The consumer
        lets the tasks go once the batch in hand is done.
        """
        if self._restoring is not None:
            self._restoring.cancel()

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
            tasks = _own(flow, {Partition(tp.topic, tp.partition) for tp in assigned})
            committed = await consumer.committed_offsets() if tasks else {}
            n = 0
            for task in tasks:
                n += await flow.reader.read(task, task.ranges(committed))
            for gate in flow.gates:
                await gate.wait()
            starts = {at: was.offset for at, was in committed.items()}
            for task in tasks:
                starts.update(task.start())
            await consumer.begin(starts)
        except asyncio.CancelledError as error:
            if cast("asyncio.Task[None]", asyncio.current_task()).cancelling():
                raise
            # Not we: a client's own task, of which nobody would hear again.
            await self._fail(error)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the process must end
            await self._fail(error)
            return
        if generation_id != consumer.client._coordinator.generation:
            return  # another rebalance has begun; it restores again
        # State lives as long as the task: no look for cycles need pass through it.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        flow.is_restored = flow.is_assigned = True
        took_s = round(time.monotonic() - started_s, 3)
        log.info("restored", tasks=len(tasks), records=n, seconds=took_s, generation=generation_id)
        consumer.resume_partitions(assigned)
        consumer.resume_flow()
        self.app.flow_control.resume()
        self.app.on_rebalance_end()
        await cast("Any", self.app)._fetcher.maybe_start()

    async def _fail(self, error: BaseException) -> None:
        log.error("restore_failed", error=repr(error), exc_info=error)
        await self.app.crash(error)


def _own(flow: Flow, owned: set[Partition]) -> list[Task]:
    """Make the tasks of what was assigned. Raises Refused where that is not whole."""
    tasks = flow.own(owned)
    if alone := sorted(owned - flow.tasks.keys()):
        raise Refused(
            f"{alone[0].topic}[{alone[0].partition}] was assigned without what is read together "
            "with it; expected topics of one number of partitions, and workers of one "
            "configuration: `weir topics check`"
        )
    return tasks


class Transport(driver.Transport):
    """The transport that a Faust app gets with a broker URL of scheme ``weir``."""

    Consumer = Consumer
    Fetcher = base.Fetcher
    default_port = 9092
    driver_version = "weir"
