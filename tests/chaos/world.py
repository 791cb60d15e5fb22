"""A cluster, processes, traffic: what the scenarios break, until it comes to rest and is read."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from unittest import mock

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.consumer import fetcher
from aiokafka.errors import KafkaError

from app.admin import Admin
from app.config import load
from app.kafka import now_ms, read
from app.records import Partition, Position
from app.supervisor import die_with_parent
from app.topics import Topics, partition_of
from tests.chaos.checker import Read, Sample
from tests.chaos.cluster import ROOT, Cluster, Link, sweep
from tests.chaos.traffic import TABLES, Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from aiokafka.structs import ConsumerRecord

    from app.config import Settings
    from tests.chaos.traffic import Input

SESSION_S: Final = 4.0
#: What a supervisor takes to notice that a process has ended.
_RESTART_S: Final = 0.3
_SAMPLE_S: Final = 0.3
_PENDING_MAX: Final = 5_000
#: What a transaction comes to on the topics that are read: itself, a score, an example, a label.
_RECORDS_EACH: Final = 4
_DEADLINE_S: Final = 90.0
#: Where brokers are, unless they have a disk of their own.
_CLUSTERS: Final = ROOT / ".kafka" / "chaos"
_FOLDER: Final = "weir-chaos-"


class NotAtRest(AssertionError):
    """A world did not do in time what it must."""


async def until(what: Callable[[], Any], why: str, deadline_s: float = _DEADLINE_S) -> None:
    """Wait until ``what()`` holds. Raises NotAtRest."""
    end = time.monotonic() + deadline_s
    while not what():
        if time.monotonic() > end:
            raise NotAtRest(f"after {deadline_s:g} s: {why}")
        await asyncio.sleep(0.02)


@dataclass
class _Batches:
    """What was fetched of a partition; of each batch that passes it is noted who wrote it."""

    batches: Any  # aiokafka's MemoryRecords
    at: TopicPartition
    writers: dict[Position, int]

    def has_next(self) -> bool:
        """Whether there is another batch."""
        return bool(self.batches.has_next())

    def next_batch(self) -> Any:
        """Return the next batch."""
        batch = self.batches.next_batch()
        for offset in range(batch.base_offset, batch.next_offset):
            self.writers[Position(self.at.topic, self.at.partition, offset)] = batch.producer_id
        return batch


@contextlib.contextmanager
def _told_writers(writers: dict[Position, int]) -> Iterator[None]:
    """Note producers' ids: they stand in the log, and aiokafka keeps them to itself."""

    class Noting(fetcher.PartitionRecords):
        def __init__(self, tp: TopicPartition, records: Any, *rest: Any) -> None:
            super().__init__(tp, _Batches(records, tp, writers), *rest)

    with mock.patch.object(fetcher, "PartitionRecords", Noting):
        yield


async def _sweep() -> None:
    """Take down what worlds left behind that were killed or interrupted."""
    await sweep(_CLUSTERS)
    for disk in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*/disk"):
        if await sweep(disk):
            _unmount(disk)


def _unmount(disk: Path) -> None:
    if disk.is_mount():
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


@dataclass
class Member:
    """A worker or a learner, started again whenever it ends unasked."""

    name: str
    role: str
    env: dict[str, str]
    folder: Path
    code: Path = ROOT
    is_supervised: bool = False  # by weir's own supervisor
    is_wanted: bool = True
    is_doomed: bool = False  # killed; it may take a while to die
    n: int = 0  # how often it was started
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it with an empty memory."""
        self.n += 1
        self.is_doomed = False
        command = [sys.executable, "-m", "app", self.role]
        with self.log.open("wb") as out:
            self.popen = subprocess.Popen(
                [*command, *([] if self.is_supervised else ["--once"])],
                cwd=self.code, env={**self.env, "PYTHONPATH": self._path()}, stdout=out,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent, start_new_session=True,  # noqa: PLW1509 - no thread forks here
            )  # fmt: skip

    def _path(self) -> str:
        return os.pathsep.join(filter(None, [self.env.get("PYTHONPATH"), str(self.code)]))

    @property
    def log(self) -> Path:
        """What it prints now."""
        return self.folder / f"{self.name}-{self.n}.log"

    def has_said(self, word: str) -> bool:
        """Whether it has printed a word since it was started."""
        return self.n > 0 and word.encode() in self.log.read_bytes()

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        return self.popen is not None and self.popen.poll() is None

    @property
    def is_restored(self) -> bool:
        """Whether it works on its partitions."""
        return self.is_running and not self.is_doomed and self.has_said("restored  ")

    def signal(self, number: int) -> None:
        """Send a signal to its process, or to nobody."""
        if self.popen is not None and self.is_running:
            self.is_doomed |= number == signal.SIGKILL
            self.popen.send_signal(number)

    @property
    def why(self) -> str:
        """In a word, why it ended."""
        text = self.log.read_text(errors="replace")
        found = [w for w in ("Fenced", "Undelivered", "restore_failed") if w in text]
        return found[0] if found else f"exit code {self.popen.returncode if self.popen else None}"


@dataclass
class World:
    """One cluster with topics of its own; an async context.

    ``linked`` members reach the brokers by the link, ``latency_s`` each way; ``disk_mb`` puts the
    brokers' data on a disk of that size.
    """

    seed: str
    port: int
    rate: float = 250.0
    workers: int = 2
    nodes: int = 1
    partitions: int = 4
    linked: frozenset[str] = frozenset()
    latency_s: float = 0.0
    disk_mb: int = 0
    is_supervised: bool = False
    has_clock: bool = False
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    keep: bool = False  # what was printed
    kills: int = 0
    ended: Counter[str] = field(default_factory=Counter)  # why members ended by themselves
    noted: Counter[str] = field(default_factory=Counter)  # what a scenario counts
    recoveries_s: list[float] = field(default_factory=list)
    stops_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Draw what is random; nothing runs yet."""
        self.rng = random.Random(self.seed)
        self.traffic = Traffic(self.rng.randrange(1 << 30))
        self.folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
        self.disk = self.folder / "disk"
        where = self.disk if self.disk_mb else _CLUSTERS
        self.cluster = Cluster(self.port, where, self.nodes)
        self.link = Link(self.cluster, self.latency_s)
        self.settings: Settings = load(None, "card", **self._tables())
        self.topics = Topics.of(self.settings)
        self.members: dict[str, Member] = {}
        self.samples: list[Sample] = []
        self.sampled_s = 0.0
        self.acknowledged: dict[Position, bytes | None] = {}
        self.clock_s = 0.0
        self.burst: deque[Input] = deque()  # to be published beside the rest
        self.is_paused = False
        self._pending = 0
        self._n_started: Counter[str] = Counter()  # of members that are gone
        self._tasks: list[asyncio.Task[None]] = []
        groups = self.settings.worker.group
        self.groups = {groups: self._inputs(), f"{groups}-learner": [self.topics.examples.name]}

    def _tables(self) -> dict[str, dict[str, Any]]:
        tables: dict[str, dict[str, Any]] = {
            **TABLES,
            "kafka": {"bootstrap": self.cluster.bootstrap, "session_timeout": f"{SESSION_S:g}s"},
            "topics": {
                "prefix": "chaos.",
                "partitions": self.partitions,
                "replication": min(self.nodes, 3),
            },
            "worker": {"group": "chaos", "commit_interval": "100ms", "web_port": 0},
        }
        for table, values in self.tables.items():
            tables[table] = {**tables.get(table, {}), **values}
        return tables

    def _inputs(self) -> list[str]:
        t = self.topics
        specs = [t.transactions, *t.hops.values(), t.scores, t.labels, *t.feedback.values()]
        return [spec.name for spec in specs]

    # ---- Life.

    async def __aenter__(self) -> Self:
        """Start everything and wait until all of it works."""
        try:
            await self._begin()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _begin(self) -> None:
        await _sweep()
        if self.disk_mb:
            self.disk.mkdir()
            what = ["mount", "-t", "tmpfs", "-o", f"size={self.disk_mb}m", "weir-chaos"]
            subprocess.run([*what, str(self.disk)], check=True)
        await self.cluster.claim()
        await self.cluster.start()
        await self.link.open()
        async with Admin(self.settings) as admin:
            await admin.create(self.topics)
            problems = await admin.settled(self.topics)
            if problems:
                raise RuntimeError("; ".join(problems))
        self.set_clock(0.0)
        for i in range(self.workers):
            self.add(f"worker-{i}")
        self.add("learner-0", "learner")
        tasks = (self._tend, self._sample, self._publish)
        self._tasks = [asyncio.create_task(task()) for task in tasks]
        await until(self.is_well, f"not all members work: {self.said()}")

    async def __aexit__(self, *_: object) -> None:
        """End everything that was started, and leave nothing behind."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for member in self.members.values():
            member.is_wanted = False
            member.signal(signal.SIGKILL)
        await self.link.close()
        if self.cluster.is_ours:
            with contextlib.suppress(RuntimeError):
                await self.cluster.wipe()
        _unmount(self.disk)
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, name: str, role: str = "worker", code: Path = ROOT) -> Member:
        """Start a member."""
        env = {n: v for n, v in os.environ.items() if not n.startswith("WEIR_")}
        tables = self._tables()
        if name in self.linked:
            tables["kafka"]["bootstrap"] = self.cluster.proxied
        tables["worker"]["data_dir"] = str(self.folder / name)
        for table, values in tables.items():
            for key, value in values.items():
                plain = value if isinstance(value, str) else json.dumps(value)
                env[f"WEIR_{table.upper()}__{key.upper()}"] = plain
        env["PYTHONUNBUFFERED"] = "1"
        env.pop("PYTHONPATH", None)
        if self.has_clock:
            env["PYTHONPATH"] = str(Path(__file__).parent / "clock")
            env["CHAOS_CLOCK"] = str(self.folder / "clock")
        member = Member(name, role, env, self.folder, code, self.is_supervised)
        member.n = self._n_started[name]  # what one of this name printed before is kept
        self.members[name] = member
        member.start()
        return member

    # ---- What scenarios do.

    def of(self, role: str = "worker") -> list[Member]:
        """Members of a role that are wanted."""
        return [m for m in self.members.values() if m.role == role and m.is_wanted]

    def kill(self, member: Member) -> None:
        """SIGKILL: no time for anything; it is started again."""
        if member.is_running:
            member.signal(signal.SIGKILL)
            self.kills += 1
            self.noted["killed"] += 1

    async def stop(self, member: Member) -> float:
        """Ask a member to end, as a service manager does; return how long it took."""
        began_s = time.monotonic()
        member.is_wanted = False
        member.signal(signal.SIGTERM)
        await until(lambda: not member.is_running, f"{member.name} does not end", 30)
        took_s = time.monotonic() - began_s
        self.stops_s.append(round(took_s, 2))
        if member.popen is not None and member.popen.returncode:
            self.noted[f"stopped with {member.why}"] += 1
        self._n_started[member.name] = member.n
        del self.members[member.name]
        return took_s

    def set_clock(self, offset_s: float) -> None:
        """Let the wall clock of members, and of whoever publishes, be off by so much."""
        self.clock_s = offset_s
        partial = self.folder / "clock.partial"
        partial.write_text(str(offset_s))
        partial.replace(self.folder / "clock")

    def is_well(self) -> bool:
        """Whether every member that is wanted works."""
        return all(m.is_restored for m in self.members.values() if m.is_wanted)

    @property
    def lag(self) -> int:
        """Records that were there at the last sample and not committed as read."""
        if not self.samples:
            return 1 << 30
        committed, ends = self.samples[-1]
        return sum(
            end - committed.get(at, 0)
            for topics in self.groups.values()
            for at, end in ends.items()
            if at.topic in topics
        )

    async def publish_raw(self, topic: str, key: bytes, value: bytes) -> None:
        """Write a record to a topic that nobody but weir should write to."""
        await self._producer.send_and_wait(topic, value, key=key, partition=0)

    async def recovered(self, deadline_s: float = 60.0) -> None:
        """Wait until everything works and no more than a second of traffic waits; note the time."""
        began_s = time.monotonic()
        end_s = began_s + deadline_s
        while time.monotonic() < end_s:
            await asyncio.sleep(0.02)
            if self.is_well():
                well_s = time.monotonic()
                await self._sampled_after(well_s, end_s)
                if self.lag <= _RECORDS_EACH * self.rate and self.is_well():
                    self.recoveries_s.append(round(time.monotonic() - began_s, 2))
                    return
        self.noted["not recovered in time"] += 1
        self.recoveries_s.append(deadline_s)

    async def _sampled_after(self, at_s: float, end_s: float) -> None:
        while self.sampled_s <= at_s and time.monotonic() < end_s:
            await asyncio.sleep(0.02)

    def said(self) -> str:
        """The last of what each member printed."""
        return "\n".join(
            f"--- {m.log.name}\n{m.log.read_text(errors='replace')[-1_500:]}"
            for m in self.members.values()
        )

    # ---- Beside it: who starts what has ended, who looks on, who publishes.

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(0.03)
            for member in list(self.members.values()):
                if member.is_wanted and not member.is_running:
                    code = member.popen.returncode if member.popen else None
                    if code != -signal.SIGKILL:
                        self.ended[f"{member.role}: {member.why}"] += 1
                    await asyncio.sleep(_RESTART_S)
                    if member.is_wanted:
                        member.start()

    def partitions_of_all(self) -> list[TopicPartition]:
        """Every partition of every topic."""
        return [TopicPartition(s.name, p) for s in self.topics for p in range(s.partitions)]

    async def _sample(self) -> None:
        """Look at commits and ends, again and again, whatever happens to the brokers."""
        while True:
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                await self._sample_while_it_lasts()
            await asyncio.sleep(_SAMPLE_S)

    async def _sample_while_it_lasts(self) -> None:
        where = {"bootstrap_servers": self.cluster.bootstrap, "request_timeout_ms": 5_000}
        admin, consumer = AIOKafkaAdminClient(**where), AIOKafkaConsumer(**where)
        tps = self.partitions_of_all()
        try:
            async with asyncio.timeout(10):
                await admin.start()
                await consumer.start()
            while True:
                began_s = time.monotonic()
                async with asyncio.timeout(6):
                    committed: dict[Partition, int] = {}
                    for group in self.groups:
                        found = await admin.list_consumer_group_offsets(group)
                        committed |= {
                            Partition(*tp): was.offset
                            for tp, was in found.items()
                            if was.offset >= 0
                        }
                    ends = await consumer.end_offsets(tps)
                self.samples.append(
                    Sample(committed, {Partition(*tp): end for tp, end in ends.items()})
                )
                self.sampled_s = began_s
                await asyncio.sleep(_SAMPLE_S)
        finally:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(consumer.stop(), 5)
            with contextlib.suppress(Exception):
                await asyncio.wait_for(admin.close(), 5)

    async def _publish(self) -> None:
        # A record from too far ahead is refused, and breaks the sequence of an idempotent one.
        is_idempotent = not self.has_clock
        producer = AIOKafkaProducer(
            bootstrap_servers=self.cluster.bootstrap, acks="all", enable_idempotence=is_idempotent,
            max_request_size=2_000_000, linger_ms=5,
        )  # fmt: skip
        await producer.start()
        self._producer = producer
        last_s = time.monotonic()
        try:
            while True:
                await asyncio.sleep(0.05)
                now_s = time.monotonic()
                n = 0 if self.is_paused else int((now_s - last_s) * self.rate)
                if n or self.burst:
                    last_s = now_s
                    beside = [self.burst.popleft() for _ in range(min(len(self.burst), 500))]
                    await self._send([*beside, *self.traffic.take(min(n, 500))])
        finally:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(producer.stop(), 5)

    async def _send(self, inputs: Iterable[Input]) -> None:
        for one in inputs:
            while self._pending > _PENDING_MAX:
                await asyncio.sleep(0.02)
            spec = getattr(self.topics, one.role)
            key = one.key or b""
            partition = partition_of(key, spec.partitions)
            at_ms = now_ms() + int(self.clock_s * 1_000)
            self._pending += 1
            try:
                sent = await self._producer.send(
                    spec.name, one.value, key=one.key, partition=partition, timestamp_ms=at_ms
                )
            except (KafkaError, TimeoutError):
                self._again(one)
            else:
                sent.add_done_callback(functools.partial(self._arrived, one))

    def _again(self, one: Input) -> None:
        """Publish what did not arrive, or perhaps did, once more."""
        self._pending -= 1
        self.noted["published again"] += 1
        self.burst.append(one)

    def _arrived(self, one: Input, sent: asyncio.Future[Any]) -> None:
        if sent.cancelled() or sent.exception() is not None:
            self._again(one)
            return
        self._pending -= 1
        at = sent.result()
        self.acknowledged[Position(at.topic, at.partition, at.offset)] = one.value

    # ---- The end.

    async def rest(self) -> None:
        """Publish what is left, let event time pass, and wait until nothing waits."""
        self.is_paused = True
        await until(self.is_well, f"not all members work: {self.said()}")
        self.burst += self.traffic.rest()
        await self._quiet("labels that were left")
        self.burst += self.traffic.flush(self.settings)
        await self._quiet("the end of event time")

    async def _quiet(self, why: str) -> None:
        await until(lambda: not self.burst and not self._pending, f"not all published: {why}")
        end_s = time.monotonic() + _DEADLINE_S
        n_still = 0
        while n_still < 3 and time.monotonic() < end_s:
            await self._sampled_after(time.monotonic(), end_s)
            n_still = n_still + 1 if self.lag == 0 else 0
        if n_still < 3:
            self.noted[f"not at rest: {why}"] += 1

    async def read(self) -> Read:
        """Stop all members gracefully, and read everything there is."""
        for member in [m for m in self.members.values() if m.is_wanted]:
            await self.stop(member)
        await self._sampled_after(time.monotonic(), time.monotonic() + 30)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.cluster.bootstrap, max_partition_fetch_bytes=33_554_432
        )
        writers: dict[Position, int] = {}
        logs: dict[Partition, list[Any]]
        with _told_writers(writers):  # before it reads ahead
            await consumer.start()
            try:
                tps = self.partitions_of_all()
                consumer.assign(tps)
                await consumer.seek_to_beginning(*tps)
                ends = await consumer.end_offsets(tps)
                logs = {Partition(*tp): [] for tp in tps}
                left = set(tps)
                while left:
                    fetched: dict[TopicPartition, Sequence[ConsumerRecord[bytes, bytes]]]
                    fetched = await consumer.getmany(*left, timeout_ms=300, max_records=20_000)
                    for tp, records in fetched.items():
                        logs[Partition(*tp)] += [read(record) for record in records]
                    left = {tp for tp in left if await consumer.position(tp) < ends[tp]}
            finally:
                await consumer.stop()
        unknown = sum(
            Position(*at, record.offset) not in writers for at in logs for record in logs[at]
        )
        assert not unknown, f"of {unknown} records nobody can say who wrote them"
        committed = {
            Partition(topic, p): self.samples[-1].committed.get(Partition(topic, p), 0)
            for topics in self.groups.values()
            for topic in topics
            for p in range(next(s.partitions for s in self.topics if s.name == topic))
        }
        all_ends = {Partition(*tp): end for tp, end in ends.items()}
        return Read(
            self.settings, logs, all_ends, committed, self.samples, self.acknowledged, writers
        )
