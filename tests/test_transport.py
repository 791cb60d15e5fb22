"""The loop between fetching and committing: its one order, its lease, and what it stands on."""

import asyncio
import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import aiokafka
import faust
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.fetcher import Fetcher, FetchError, FetchResult, PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import CorruptRecordException, MessageSizeTooLargeError
from aiokafka.producer.sender import SendProduceReqHandler
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from faust.app.base import App, BootStrategy
from faust.tables.manager import TableManager
from faust.transport import base
from faust.transport.consumer import Consumer as FaustConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from app import transport
from app.config import Settings, load
from app.errors import Fenced, Undelivered
from app.flow import Flow, Lease
from app.kafka import Sender, read
from app.metrics import Metrics
from app.records import Partition, Record, Send
from app.tasks import Committed, Effects, Range
from app.transport import Restorer
from app.worker import make_app

# ---- The tripwire.

#: What app/transport.py (of the last three: app/kafka.py) overrides, wraps or calls of what is
#: private to Faust and aiokafka, or relies on being called by: the first 12 characters of the
#: SHA-256 of its source, and what to look at when it changes.
RELIED_ON: dict[str, tuple[Any, str, str]] = {
    "faust Consumer.__init__": (
        FaustConsumer.__init__,
        "302410d59e69",
        "Consumer calls it; its state (app, callback, transport) must still be what we expect",
    ),
    "faust Consumer.stop_flow": (
        FaustConsumer.stop_flow,
        "cf7e875a2b0d",
        "our stop_flow calls it and clears _flowing",
    ),
    "faust Consumer.resume_flow": (
        FaustConsumer.resume_flow,
        "db59630f25b5",
        "our resume_flow calls it and sets _flowing",
    ),
    "faust Consumer._drain_messages": (
        FaustConsumer._drain_messages,
        "44a2500309e8",
        "replaced by our loop: what it did besides draining must be looked at again",
    ),
    "faust Consumer.on_partitions_revoked": (
        FaustConsumer.on_partitions_revoked,
        "d04b7ae72c6f",
        "must still wait for wait_empty before the group goes on",
    ),
    "faust Consumer.on_partitions_assigned": (
        FaustConsumer.on_partitions_assigned,
        "29ce96596f05",
        "must still lead to TableManager.on_rebalance with the generation id",
    ),
    "faust Consumer.wait_empty": (
        FaustConsumer.wait_empty,
        "e4662fe24f09",
        "replaced: who calls it, and when, must be looked at",
    ),
    "faust Consumer._commit": (
        FaustConsumer._commit,
        "99bb6b42fc09",
        "replaced by nothing: Faust must have no other way to commit",
    ),
    "faust Consumer.commit": (
        FaustConsumer.commit,
        "a354437baaa0",
        "replaced by nothing: Faust must have no other way to commit",
    ),
    "faust Consumer.on_task_error": (
        FaustConsumer.on_task_error,
        "0d7f23d0bb26",
        "an error in a batch must still end the process",
    ),
    "faust Fetcher": (
        base.Fetcher,
        "c922e4ab78d9",
        "runs _drain_messages and stops it; we start it by maybe_start",
    ),
    "faust TableManager.__init__": (TableManager.__init__, "f13ed9db7ccd", "Restorer calls it"),
    "faust TableManager.on_start": (
        TableManager.on_start,
        "365dd25fbc0e",
        "replaced: the two events it sets are set by ours",
    ),
    "faust TableManager.on_stop": (
        TableManager.on_stop,
        "351be149c036",
        "replaced: it stops the fetcher",
    ),
    "faust TableManager.on_rebalance": (
        TableManager.on_rebalance,
        "2d2c23a07bf5",
        "replaced: called once for every assignment",
    ),
    "faust TableManager.on_partitions_revoked": (
        TableManager.on_partitions_revoked,
        "382852adff42",
        "replaced by nothing",
    ),
    "faust App._on_partitions_revoked": (
        App._on_partitions_revoked,
        "d5c895bbe57d",
        "stops the flow and waits for the batch in hand",
    ),
    "faust App._on_partitions_assigned": (
        App._on_partitions_assigned,
        "de932b7927db",
        "calls tables.on_rebalance; nothing may flow before",
    ),
    "faust App._stop_consumer": (
        App._stop_consumer,
        "55854a5de12c",
        "a graceful stop must wait for wait_empty",
    ),
    "faust BootStrategy": (BootStrategy, "ecc05db10abc", "_Boot turns its Kafka producer off"),
    "faust driver Transport": (driver.Transport, "966a67907f33", "our Transport derives from it"),
    "aiokafka GroupCoordinator._do_heartbeat": (
        GroupCoordinator._do_heartbeat,
        "dc1d6632aaa6",
        "wrapped: true must still mean that the coordinator knows us, false that it does not",
    ),
    "aiokafka GroupCoordinator._heartbeat_routine": (
        GroupCoordinator._heartbeat_routine,
        "61d010289522",
        "must still call self._do_heartbeat()",
    ),
    "aiokafka GroupCoordinator.fetch_committed_offsets": (
        GroupCoordinator.fetch_committed_offsets,
        "6c049c737916",
        "gives OffsetAndMetadata with the note beside the offset",
    ),
    "aiokafka AIOKafkaConsumer.subscribe": (
        AIOKafkaConsumer.subscribe,
        "6646b38fc4b9",
        "the coordinator that we wrap must be there after it",
    ),
    "aiokafka AIOKafkaConsumer.start": (
        AIOKafkaConsumer.start,
        "2f1ba7044332",
        "the fetcher that we wrap must be there after it, and must have fetched nothing yet",
    ),
    "aiokafka Fetcher._proc_fetch_request": (
        Fetcher._proc_fetch_request,
        "59bf948fff47",
        "wrapped: what it fetched must lie in _records, and nobody may have read of it",
    ),
    "aiokafka Fetcher._fetch_requests_routine": (
        Fetcher._fetch_requests_routine,
        "2a8ec5932644",
        "must still call self._proc_fetch_request()",
    ),
    "aiokafka Fetcher.fetched_records": (
        Fetcher.fetched_records,
        "be4348896b9b",
        "must look at nothing but the number of what FetchResult.getall gives",
    ),
    "aiokafka FetchResult": (
        FetchResult,
        "d7db13f06de8",
        "must read _partition_records only when asked, and look at nothing of a record",
    ),
    "aiokafka PartitionRecords": (
        PartitionRecords,
        "94aa0da0dbec",
        "_consumer_record is replaced: called for each record that is read, and for no other",
    ),
    "aiokafka AIOKafkaClient.send": (
        AIOKafkaClient.send,
        "246b277687d7",
        "wrapped by app.kafka.Sender: must wait for nothing between ready() and the connection",
    ),
    "aiokafka AIOKafkaConnection.send": (
        AIOKafkaConnection.send,
        "5909ea32f4ef",
        "must write to the socket before it waits for anything",
    ),
    "aiokafka SendProduceReqHandler.do": (
        SendProduceReqHandler.do,
        "2dccd3d56b16",
        "must send by client.send, and hand a KafkaError that is not retriable to who waits",
    ),
}


def source_hash(what: Any) -> str:
    """The first 12 characters of the SHA-256 of a source."""
    return hashlib.sha256(inspect.getsource(what).encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", RELIED_ON)
def test_what_the_transport_relies_on_is_as_it_was_read(name):
    """An upgrade that changes it must be read before it is used."""
    what, expected, check = RELIED_ON[name]
    found = source_hash(what)
    assert expected == found, (
        f"{name} is not as it was read (faust {faust.__version__}, aiokafka "
        f"{aiokafka.__version__}). Look at app/transport.py again: {check}. If all is well, "
        f"write {found!r} into RELIED_ON."
    )


def test_fetches_go_through_the_method_that_is_wrapped():
    """What does not would reach the tasks in aiokafka's words."""
    assert "self._proc_fetch_request(" in inspect.getsource(Fetcher._fetch_requests_routine)
    assert "self._consumer_record(" in inspect.getsource(PartitionRecords._unpack_records)


def test_heartbeats_go_through_the_method_that_is_wrapped():
    """A lease that nothing renews would stop every worker; one renewed by nothing, none."""
    assert "self._do_heartbeat()" in inspect.getsource(GroupCoordinator)


# ---- The loop, with fakes for all that is not ours.


class FakeSender(Sender):
    """Keeps what is delivered; fails where told to."""

    def __init__(self, fail_at: int = -1) -> None:
        self.delivered: list[list[Send]] = []
        self.fail_at = fail_at

    async def deliver(self, sends: Iterable[Send]) -> None:
        """Keep them, or fail."""
        if len(self.delivered) == self.fail_at:
            raise Undelivered("not acknowledged")
        self.delivered.append(list(sends))


class FakeTask:
    """Sends on what it gets, keeps a row of state for it."""

    def __init__(self, number: int) -> None:
        self.inputs: tuple[Partition, ...] = (Partition("in", number),)
        self.n_ticks = 0
        self.was_last = False

    def ranges(self, committed: Mapping[Partition, Committed]) -> list[Range]:
        """Nothing to read again."""
        return []

    def restore(self, partition: Partition, records: Sequence[Record]) -> None:
        """Nothing to restore."""

    def start(self) -> Mapping[Partition, int]:
        """Where the offsets say."""
        return {}

    def reached(self) -> Mapping[Partition, int]:
        """Nothing."""
        return {}

    def apply(
        self, partition: Partition, records: Sequence[Record], now_ms: int, effects: Effects
    ) -> None:
        """One of each kind for every record."""
        for record in records:
            effects.first.append(Send("first", 0, record.key, record.value))
            effects.outputs.append(Send("out", 0, record.key, record.value))
            effects.state.append(Send("state", partition.partition, record.key, record.value))

    def tick(self, now_ms: int, effects: Effects, *, is_last: bool) -> None:
        """Count."""
        self.n_ticks += 1
        self.was_last = is_last

    def note(self, partition: Partition, offset: int) -> str:
        """Which offset it was asked for."""
        return f"note {offset}"


class FakeStage:
    """Tasks by partition."""

    name = "fake"
    topics: tuple[str, ...] = ("in",)

    def task(self, partition: int) -> FakeTask:
        """Return a new one."""
        return FakeTask(partition)


class Clock:
    """A clock one sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1_000.0
        monkeypatch.setattr(Lease, "clock_s", staticmethod(lambda: self.now_s))


@pytest.fixture
def clock(monkeypatch):
    """The clock of all leases."""
    return Clock(monkeypatch)


SETTINGS: Settings = load(profile="stream", kafka={"session_timeout": "10s"})
IN = Partition("in", 0)


def flow_of(sender: FakeSender | None = None) -> Flow:
    """A flow of two tasks, with a lease."""
    flow = Flow(SETTINGS, [FakeStage()], Metrics())
    flow.sender = sender or FakeSender()
    flow.own([IN, Partition("in", 1)])
    flow.is_restored = True
    flow.lease.renew(Lease.clock_s())
    return flow


def batch(*offsets: int) -> dict[Partition, list[Record]]:
    """Records at these offsets."""
    return {IN: [Record(offset, b"k", b"v", 0) for offset in offsets]}


def sent(flow: Flow) -> list[str]:
    """The topics of all that was delivered, in order."""
    assert isinstance(flow.sender, FakeSender)
    return [send.topic for batch_ in flow.sender.delivered for send in batch_]


async def test_what_is_written_is_written_in_one_order(clock):
    """First what outputs tell of, then outputs, then state; only then an offset is due."""
    flow = flow_of()
    assert {} == flow.due()
    await flow.run(batch(5, 6))
    assert ["first", "first", "out", "out", "state", "state"] == sent(flow)
    assert {IN: Committed(7, "note 7")} == flow.due()
    flow.committed(flow.due())
    assert {} == flow.due()


async def test_every_task_is_asked_what_is_due_by_the_clock(clock):
    """Once a turn, with records or without; at the end it is told so."""
    flow = flow_of()
    await flow.run({})
    await flow.run(batch(1), is_last=True)
    tasks = set(map(id, flow.tasks.values()))
    assert 2 == len(tasks)
    assert [(2, True)] * 2 == [(t.n_ticks, t.was_last) for t in flow.tasks.values()]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("fail_at", "delivered"), [(0, []), (1, ["first"]), (2, ["first", "out"])])
async def test_undelivered_batch_is_not_committed(clock, fail_at, delivered):
    """Neither its outputs nor its state may be missing behind a committed offset."""
    flow = flow_of(FakeSender(fail_at))
    with pytest.raises(Undelivered):
        await flow.run(batch(5))
    assert delivered == sent(flow)
    assert {} == flow.due()
    assert not flow.is_whole, "nothing more may be kept of a task that is half done"


async def test_nothing_is_committed_while_a_batch_is_under_way(clock):
    """The next batch may be applied meanwhile, and what a task notes would tell of both."""
    flow = flow_of()
    first = await flow.apply(batch(5))
    second = await flow.apply(batch(6))
    await flow.deliver(first)
    assert ({}, False) == (flow.due(), flow.is_whole)
    await flow.deliver(second)
    assert {IN: Committed(7, "note 7")} == flow.due()


class StalledSender(FakeSender):
    """Keeps what is delivered, once the broker has acknowledged it; it takes until ``acked``."""

    def __init__(self) -> None:
        super().__init__()
        self.acked = asyncio.Event()

    async def deliver(self, sends: Iterable[Send]) -> None:
        """Wait for the broker."""
        await self.acked.wait()
        await super().deliver(sends)


class EndlessClient:
    """A consumer that always has another batch."""

    def __init__(self) -> None:
        self.n_fetched = 0

    async def getmany(
        self, *tps: TopicPartition, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[Record]]:
        """One record a time."""
        self.n_fetched += 1
        return {TopicPartition(*IN): [Record(self.n_fetched, b"k", b"v", 0)]}


class Running:
    """A fetcher that nobody has stopped."""

    should_stop = False


async def settled(turns: int = 200) -> None:
    """Let everything happen that waits for nothing but its turn."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_slow_broker_slows_the_reading_down(clock, monkeypatch):
    """Two batches are in memory: one that is being delivered, one behind it; no third is read."""
    sender, client = StalledSender(), EndlessClient()
    app = make_app(SETTINGS)
    app.flow = flow = flow_of(sender)
    monkeypatch.setattr(flow, "is_due", lambda: False)
    consumer = cast("Any", app.consumer)
    consumer.client = client
    consumer.resume_flow()
    loop = asyncio.create_task(consumer._drain(Running()))
    await settled()
    assert (2, []) == (client.n_fetched, sender.delivered)
    sender.acked.set()
    await settled()
    assert client.n_fetched > 10
    assert len(sender.delivered) >= 3 * (client.n_fetched - 2)
    sender.acked.clear()
    await settled()
    n_fetched = client.n_fetched
    await settled()
    assert n_fetched == client.n_fetched, "it stands again"
    sender.acked.set()
    Running.should_stop = True
    await asyncio.wait_for(loop, 5.0)


async def test_expired_lease_is_noticed_before_anything_is_written(clock):
    """A worker that slept past its session writes nothing, though it feels well."""
    flow = flow_of()
    clock.now_s += 10.0
    with pytest.raises(Fenced, match=r"no heartbeat was answered for 10\.0 s"):
        await flow.run(batch(5))
    assert ([], {}) == (sent(flow), flow.due())


async def test_lease_that_expires_on_the_way_stops_what_follows(clock):
    """It is looked at before every write, not once a turn."""

    class Slow(FakeSender):
        async def deliver(self, sends: Iterable[Send]) -> None:
            await super().deliver(sends)
            clock.now_s += 10.0

    flow = flow_of(Slow())
    with pytest.raises(Fenced):
        await flow.run(batch(5))
    assert (["first"], {}) == (sent(flow), flow.due())


async def test_heartbeat_that_is_answered_renews_the_lease(clock):
    """Counted from when it was asked, and with room left for a write to land: half a session."""
    flow = flow_of()
    clock.now_s += 4.9
    flow.lease.renew(clock.now_s - 2.5)
    clock.now_s += 2.4
    await flow.run(batch(5))
    clock.now_s += 0.2
    with pytest.raises(Fenced):
        await flow.run(batch(6))


def test_lease_is_never_shortened(clock):
    """An answer that comes late says nothing new."""
    lease = Lease(10_000)
    lease.renew(1_000.0)
    lease.renew(900.0)
    assert 0.0 == lease.age_s


def test_without_any_heartbeat_there_is_no_lease(clock):
    """Nobody has said that the partitions are ours."""
    with pytest.raises(Fenced):
        Lease(10_000).check()


async def test_idle_turn_needs_no_lease(clock):
    """Who writes nothing does no harm."""
    flow = flow_of()
    clock.now_s += 100.0
    await flow.run({})
    assert [] == sent(flow)


def test_new_assignment_drops_what_was_owned(clock):
    """Tasks, positions and what was committed belong to one assignment."""
    flow = flow_of()
    before = flow.tasks[IN]
    flow.positions[IN] = 7
    made = flow.own([IN])
    assert 1 == len(made)
    assert before is not flow.tasks[IN]
    assert {} == flow.positions
    assert [] == flow.own([])


def test_task_without_all_its_inputs_is_not_made(clock):
    """Inputs that meet in one task are assigned together or not used."""

    class Two(FakeStage):
        topics = ("in", "more")

        def task(self, partition: int) -> FakeTask:
            task = FakeTask(partition)
            task.inputs = (Partition("in", partition), Partition("more", partition))
            return task

    flow = Flow(SETTINGS, [Two()], Metrics())
    assert [] == flow.own([IN])
    assert 1 == len(flow.own([IN, Partition("more", 0)]))


# ---- What is fetched: aiokafka reads it, and makes our records of it.


AT = TopicPartition("in", 0)


def log_of(*batches: bytes) -> PartitionRecords:
    """What was fetched of a log, read from offset 1 on; producer 7 has aborted what it wrote."""
    return PartitionRecords(AT, MemoryRecords(b"".join(batches)), [(7, 0)], 1, None, None, True, 1)


def fetched_batch(
    base: int, *records: tuple[Any, ...], producer: int = -1, last: int | None = None
) -> bytes:
    """A record batch as a broker has it; ``last``: its last offset, where compaction took that."""
    builder = DefaultRecordBatchBuilder(2, 0, int(producer >= 0), producer, 0, 0, 1_000_000)
    for i, (key, value, headers) in enumerate(records):
        builder.append(i, timestamp=1_000 + i, key=key, value=value, headers=list(headers))
    made = builder.build()
    made[0:8] = base.to_bytes(8, "big")
    if last is not None:
        made[23:27] = (last - base).to_bytes(4, "big")
        made[17:21] = calc_crc32c(bytes(made[21:])).to_bytes(4, "big")
    return bytes(made)


FETCHED = (
    fetched_batch(0, (b"skipped", b"", ()), (b"k", b"v", (("a", b"1"), ("b", b"2")))),
    fetched_batch(2, (None, b"no key", ()), (b"no value", None, ()), last=8),
    fetched_batch(9, (b"aborted", b"x", ()), producer=7),
    fetched_batch(10, (b"committed", b"y", (("é", b""),)), producer=8),
    fetched_batch(40, (b"", b"", ())),
)


async def unpacked(records: PartitionRecords, most: int) -> tuple[list[list[Record]], list[int]]:
    """What our consumer takes of a fetch, ``most`` at once, and its position after each."""
    state = SimpleNamespace(paused=False, position=1, has_valid_position=True)
    state.consumed_to = lambda position: setattr(state, "position", position)
    assignment = SimpleNamespace(active=True, state_value=lambda _: state)
    fetcher = SimpleNamespace(_records={TopicPartition("in", 1): FetchError(error=None, backoff=0)})

    async def fetch(*args: Any) -> bool:
        assert ("assignment", 0, "request") == args
        fetcher._records[AT] = FetchResult(
            AT, assignment=assignment, partition_records=records, backoff=0
        )
        return True

    fetcher._proc_fetch_request = fetch
    consumer = object.__new__(transport.Consumer)
    cast("Any", consumer).client = SimpleNamespace(_fetcher=fetcher)
    consumer._read_at_once()
    assert await fetcher._proc_fetch_request("assignment", 0, "request") is True
    result, found, positions = fetcher._records[AT], [], []
    while result.has_more():
        found.append(result.getall(most))
        positions.append(state.position)
    return found, positions


@pytest.mark.parametrize("most", [1, 2, 100])
async def test_fetched_records_are_those_of_aiokafka_in_our_words(most):
    """With its gaps, without what was aborted, from the position on; however many at once."""
    found, positions = await unpacked(log_of(*FETCHED), most)
    records = [record for part in found for record in part]
    assert [read(record) for record in log_of(*FETCHED)] == records
    assert [1, 2, 3, 10, 40] == [record.offset for record in records]
    assert Record(1, b"k", b"v", 1_001, (("a", b"1"), ("b", b"2"))) == records[0]
    assert 41 == positions[-1]


async def test_torn_batch_is_not_read():
    """Who reads on from there begins with the record after the last that was whole."""
    torn = bytearray(FETCHED[4])
    torn[-1] ^= 1
    with pytest.raises(CorruptRecordException, match="Invalid CRC"):
        await unpacked(log_of(*FETCHED[:4], bytes(torn)), 100)


# ---- The sender: every acknowledgement is seen.


class FakeBatch:
    """Room for two records."""

    def __init__(self) -> None:
        self.values: list[bytes | None] = []

    def append(self, *, key: Any, value: Any, timestamp: Any, headers: Any) -> object | None:
        """None where there is no more room."""
        if len(self.values) == 2:
            return None
        self.values.append(value)
        return object()


class FakeProducer:
    """Acknowledges, refuses or is silent."""

    def __init__(self, outcome: Exception | None = None) -> None:
        self.outcome = outcome
        self.sent: list[tuple[str, int, list[bytes | None]]] = []

    def create_batch(self) -> FakeBatch:
        """Make room."""
        return FakeBatch()

    async def send_batch(self, made: FakeBatch, topic: str, *, partition: int) -> Any:
        """Promise an acknowledgement."""
        self.sent.append((topic, partition, list(made.values)))

        async def acknowledged() -> None:
            if self.outcome is not None:
                raise self.outcome

        return acknowledged()


def sender_of(producer: FakeProducer) -> Sender:
    """A sender with a producer of ours."""
    sender = Sender(SETTINGS)
    sender._producer = producer
    return sender


async def test_records_keep_their_order_within_each_partition():
    """However many batches they fill."""
    producer = FakeProducer()
    sends = [Send("t", i % 2, None, str(i).encode()) for i in range(9)]
    await sender_of(producer).deliver(sends)
    for partition in (0, 1):
        found = [v for _, p, values in producer.sent if p == partition for v in values]
        assert [str(i).encode() for i in range(9) if i % 2 == partition] == found


async def test_refused_batch_is_told():
    """What aiokafka's own flush swallows is an error here."""
    refused = FakeProducer(MessageSizeTooLargeError())
    with pytest.raises(Undelivered, match=r"a batch for a, b was not acknowledged"):
        await sender_of(refused).deliver([Send("a", 0, None, b"1"), Send("b", 0, None, b"1")])


async def test_nothing_to_send_asks_nobody():
    """A sender that is not connected can deliver nothing."""
    await Sender(SETTINGS).deliver([])


def restorer_of(flow: Any, **consumer: Any) -> tuple[Restorer, list[BaseException]]:
    """A restorer beside a fake of its consumer, and what crashes the app."""
    crashes: list[BaseException] = []

    async def crash(error: BaseException) -> None:
        crashes.append(error)

    restorer = object.__new__(Restorer)
    restorer._restoring = None
    app = SimpleNamespace(flow=flow, consumer=SimpleNamespace(**consumer), crash=crash)
    cast("Any", restorer).app = app
    return restorer, crashes


def restoring(committed_offsets):
    """A restore whose first question to the group is answered so, and what crashes the app."""
    flow = SimpleNamespace(own=lambda _: [object()], tasks={}, gates=[])
    restorer, crashes = restorer_of(flow, committed_offsets=committed_offsets)
    return asyncio.create_task(restorer._restore(set(), 0)), crashes


async def test_restore_that_a_rebalance_overtakes_lets_no_record_flow():
    """Its generation lasts until the group has made up its mind; its tasks do not."""
    flow, restored, begun = flow_of(), asyncio.Event(), asyncio.Event()

    async def committed_offsets():
        return {}

    async def begin(_):
        begun.set()
        await restored.wait()

    coordinator = SimpleNamespace(generation=7)
    restorer, crashes = restorer_of(
        flow,
        committed_offsets=committed_offsets,
        begin=begin,
        client=SimpleNamespace(_coordinator=coordinator),
        resume_partitions=lambda _: pytest.fail("records flow"),
    )
    flow.reader = cast("Any", SimpleNamespace(read=AsyncMock(return_value=0)))
    await restorer.on_rebalance({TP(*IN), TP("in", 1)}, set(), set(), 7)
    await begun.wait()
    assert (True, False) == (flow.is_assigned, flow.is_restored)
    restored.set()  # it could end now; and the group is about to move
    restorer.on_partitions_revoked(set())
    flow.own(())
    await settled()
    assert (False, False, []) == (flow.is_assigned, flow.is_restored, crashes)


async def test_records_are_not_applied_before_their_task_is_restored(clock):
    """Whatever lets the loop go round: what was fetched is fetched again."""
    app = make_app(SETTINGS)
    app.flow = flow = flow_of()
    consumer = cast("Any", app.consumer)
    consumer.resume_flow()
    flow.own([IN, Partition("in", 1)])
    await consumer._take({TopicPartition(*IN): [Record(5, b"k", b"v", 0)]})
    assert ({}, None, []) == (flow.positions, consumer._delivery, sent(flow))


async def test_restore_that_somebody_else_cancels_ends_the_process():
    """A client whose own task was cancelled hands that on; nobody would hear of it again."""

    async def committed_offsets():
        raise asyncio.CancelledError

    task, crashes = restoring(committed_offsets)
    await task
    assert [asyncio.CancelledError] == [type(error) for error in crashes]


async def test_restore_that_a_rebalance_cancels_ends_alone():
    """The next one restores; the process lives."""
    asked = asyncio.Event()

    async def committed_offsets():
        asked.set()
        await asyncio.Event().wait()

    task, crashes = restoring(committed_offsets)
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [] == crashes
