"""A whole flow without a broker: topics as lists, a clock that one advances, ``crash()``.

The stages, the tasks and the loop are the real ones (``worker.stages_of``, ``flow.Flow``);
only what lies beyond the wire is played here: logs, the group's coordinator, heartbeats. A flow
can be stopped wherever the real one waits for the broker. With it a configuration is tested
before it meets Kafka:

    >>> from app.config import load
    >>> driver = Driver(load(profile="card", model={"name": "logistic"}))
    >>> t1 = {"transaction_id": "t1", "event_time": "2026-01-01T09:00:00Z",
    ...       "card_id": "card-1", "terminal_id": "shop-1", "amount": 12.5}
    >>> driver.publish("transactions", t1)
    Position(topic='transactions', partition=3, offset=0)
    >>> driver.publish("transactions", {**t1, "transaction_id": "t2", "amount": "12,50"})
    Position(topic='transactions', partition=3, offset=1)
    >>> driver.run()
    >>> [score.transaction_id for score in driver.read("scores")]
    ['t1']
    >>> driver.dead_letters()
    ['transactions[3]@1: amount is "12,50"; expected a finite number']

A worker that is killed goes on from what the topics hold:

    >>> label = {"transaction_id": "t1", "is_fraud": True, "event_time": "2026-01-08T09:00:00Z"}
    >>> _ = driver.publish("labels", label)
    >>> driver.crash()
    >>> driver.run()
    >>> [outcome.outcome for outcome in driver.read("outcomes")]
    ['learn']
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from app import codec
from app.core.features import FeaturePlan
from app.errors import Fenced
from app.flow import Flow, Lease, Turn
from app.kafka import Sender
from app.learning import Follower
from app.metrics import Metrics
from app.records import (
    Alert,
    Drift,
    Headers,
    LabelOutcome,
    Partition,
    Position,
    Record,
    Score,
    Send,
)
from app.tasks import Committed
from app.topics import Topics, TopicSpec, partition_of
from app.worker import fresh_champion, stages_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterable, Mapping, Sequence

    from app.config import Settings
    from app.core.scoring import Champion
    from app.worker import Role

T = TypeVar("T")

#: 2026-06-01: after any event time that an example is likely to use.
START_MS: Final = 1_780_272_000_000
#: More turns than any flow needs to come to rest: each goes one step further down it.
_TURNS_MAX: Final = 100_000

#: What lies on the topics that people read.
_VALUES: Final[Mapping[str, Any]] = {
    "scores": Score,
    "alerts": Alert,
    "outcomes": LabelOutcome,
    "drift": Drift,
}


class Killed(Exception):
    """A process was killed where it stood; raised by ``Driver.deliver`` to kill it."""


class Stalled(Exception):
    """A process stands still where it waits for the broker; raised by ``Driver.deliver``."""


class Log:
    """One partition: records in the order of their offsets, some of them compacted away."""

    def __init__(self) -> None:
        """Begin empty."""
        self.records: list[Record] = []
        self.first = 0  # what retention has left; who looks at ``records`` sees all
        self.end = 0  # the offset of the next record
        self._cleaned = 0

    def append(self, send: Send, now_ms: int) -> int:
        """Write a record; return its offset."""
        self.records.append(Record(self.end, send.key, send.value, now_ms, send.headers))
        self.end += 1
        return self.end - 1

    def between(self, start: int, stop: int | None = None) -> list[Record]:
        """Records with offsets in [start, stop) that retention has left."""
        start = max(start, self.first)
        if len(self.records) == self.end:
            return self.records[start:stop]
        last = self.end if stop is None else stop
        return [record for record in self.records if start <= record.offset < last]

    def compact(self, below: int) -> None:
        """Keep the last of each key of the records below an offset, as the broker's cleaner does.

        A null value goes with the next call, when all that it hides is gone.
        """
        last = {record.key: record.offset for record in self.records if record.offset < below}
        self.records = [
            record
            for record in self.records
            if record.offset >= below
            or (
                last[record.key] == record.offset
                and not (record.value is None and record.offset < self._cleaned)
            )
        ]
        self._cleaned = max(self._cleaned, below)


@dataclass
class Group:
    """What the coordinator of a consumer group knows."""

    members: list[str] = field(default_factory=list)
    generation: int = 0
    is_stale: bool = False  # a member came or went, and none was told yet
    committed: dict[Partition, Committed] = field(default_factory=dict)


class _Delivery:
    """What a coroutine awaits while the broker has not acknowledged ``sends``."""

    def __init__(self, sends: list[Send]) -> None:
        self._sends = sends

    def __await__(self) -> Generator[list[Send], None, None]:
        yield self._sends


class _Wire(Sender):
    """A sender whose records go to whoever drives the coroutine."""

    async def deliver(self, sends: Iterable[Send]) -> None:
        """Hand the records over; return once the driver goes on."""
        await _Delivery(list(sends))


async def _at_once() -> None:
    pass


def _result(coroutine: Coroutine[Any, None, T]) -> T:
    """What a coroutine returns that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        found: T = done.value
        return found
    raise AssertionError("it waits for something")


class _Lease(Lease):
    """A lease by the driver's clock."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver.settings.kafka.session_timeout)
        self._driver = driver

    def clock_s(self) -> float:  # type: ignore[override]  # the driver's clock, not the machine's
        return self._driver.now_ms / 1_000.0


@dataclass(eq=False)
class Process:
    """One worker or learner: its flow, where it reads, and the delivery that it waits for."""

    name: str
    group: str
    flow: Flow
    champion: Champion
    follower: Follower | None
    generation: int = -1
    followed: int = 0  # next snapshot to look at
    fetch: dict[Partition, int] = field(default_factory=dict)
    delivery: Coroutine[Any, None, None] | None = None
    in_flight: list[Send] = field(default_factory=list)
    behind: Turn | None = None  # applied, while the delivery before it stands still

    @property
    def is_stalled(self) -> bool:
        """Whether it stands still in the middle of a delivery."""
        return self.delivery is not None


class Driver:
    """Topics as lists and the processes that work on them, in one thread, without a clock.

    ``learners`` processes fold the examples where the configuration does not leave that to the
    workers; each has a group of its own, as if two installations shared their topics by mistake.
    Nothing happens by itself and nothing at random: the same calls give the same logs.
    """

    def __init__(
        self, settings: Settings, *, workers: int = 1, learners: int = 1, now_ms: int = START_MS
    ) -> None:
        """Create the topics and start the processes."""
        self.settings = settings
        self.now_ms = now_ms
        self.topics = Topics.of(settings)
        self.plan = FeaturePlan.of(settings.features, settings.transaction.entities)
        self.specs: dict[str, TopicSpec] = {spec.name: spec for spec in self.topics}
        self.logs = {
            Partition(spec.name, p): Log() for spec in self.topics for p in range(spec.partitions)
        }
        self.groups: dict[str, Group] = {}
        self.processes: dict[str, Process] = {}
        for i in range(workers):
            self.start(f"worker-{i}")
        for i in range(0 if settings.learner.in_worker else learners):
            self.start(f"learner-{i}", "learner", f"{settings.worker.group}-learner-{i}")

    # What people do.

    def publish(
        self,
        topic: str,
        value: Mapping[str, Any] | bytes | None,
        *,
        key: str | bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> Position:
        """Write a record as a service would: ``topic`` is "transactions" or "labels".

        A mapping is encoded, and its key is what the topic is keyed by unless another is given.
        """
        spec = getattr(self.topics, topic)
        raw: bytes | None
        if value is None or isinstance(value, bytes):
            raw = value
        else:
            raw = codec.encode(value)
            key = self._key_of(topic, value) if key is None else key
        name = key.encode() if isinstance(key, str) else key
        if partition is None:
            partition = 0 if name is None else partition_of(name, spec.partitions)
        send = Send(spec.name, partition, name, raw, headers)
        return Position(spec.name, partition, self._append(send))

    def read(self, topic: str) -> list[Any]:
        """What lies on "scores", "alerts", "outcomes", "drift" or "examples", decoded."""
        records = self.records(topic)
        if topic == "examples":
            return [codec.read_example(record) for record in records]
        return [msgspec.json.decode(r.value or b"", type=_VALUES[topic]) for r in records]

    def records(self, topic: str) -> list[Record]:
        """Records of a topic by its role, partition by partition."""
        spec = getattr(self.topics, topic)
        logs = [self.logs[spec.name, p] for p in range(spec.partitions)]  # type: ignore[index]
        return [record for log in logs for record in log.records]

    def dead_letters(self) -> list[str]:
        """Why each dead letter could not be read, with its position."""
        reason = "__connect.errors.exception.message"
        return [dict(r.headers)[reason].decode() for r in self.records("dead_letters")]

    def advance(self, ms: int) -> None:
        """Let time pass; every process that runs is heard of meanwhile."""
        self.now_ms += ms
        for process in self.processes.values():
            if not process.is_stalled:
                self.heartbeat(process)

    def run(self, batch: int = 2_048) -> None:
        """Go on until there is nothing left to do; ``batch`` records are taken at once."""
        for _ in range(_TURNS_MAX):
            for group in [name for name, held in self.groups.items() if held.is_stale]:
                self.rebalance(group)
            moved = [self.step(process, batch) for process in list(self.processes.values())]
            if not any(moved):
                return
        raise AssertionError("the flow does not come to rest")

    def step(self, process: Process, batch: int = 2_048) -> bool:
        """One turn and one commit of a process; return whether it had anything to do."""
        if process.is_stalled:
            return False
        self.follow(process)
        fetched = self.poll(process, batch)
        self.take(process, fetched)
        self.commit(process)
        return bool(fetched)

    def crash(self, name: str = "worker-0", *, restart: bool = True) -> None:
        """Kill a process where it stands, and start it again with an empty memory."""
        self.kill(self.processes[name])
        if restart:
            role: Role = "learner" if name.startswith("learner") else "worker"
            self.start(name, role, self._killed_group)

    def compact(self) -> None:
        """Run the broker's cleaner over the compacted topics."""
        for at, log in self.logs.items():
            if self.is_compacted(at.topic):
                log.compact(log.end)

    # What a process does, step by step.

    def start(self, name: str, role: Role = "worker", group: str | None = None) -> Process:
        """Start a process with an empty memory; it owns nothing before a rebalance."""
        settings = self.settings_of(name)
        group = group or settings.worker.group
        champion, metrics = fresh_champion(settings, self.plan), Metrics()
        flow = Flow(settings, stages_of(settings, role, metrics, champion, self.plan), metrics)
        flow.sender, flow.lease = _Wire(settings), _Lease(self)
        flow.now_ms = lambda: self.now_ms
        flow.breathe = _at_once  # type: ignore[method-assign]  # there is nothing to let in
        follower = None
        if role == "worker":
            follower = Follower(settings, self.topics, self.plan, champion)
        process = Process(name, group, flow, champion, follower)
        self.processes[name] = process
        self.heartbeat(process)
        held = self.groups.setdefault(group, Group())
        held.members.append(name)
        held.is_stale = True
        return process

    def settings_of(self, name: str) -> Settings:
        """What a process is told; override it where machines differ."""
        del name
        return self.settings

    def heartbeat(self, process: Process) -> None:
        """The coordinator hears of a process, which renews its lease."""
        process.flow.lease.renew(self.now_ms / 1_000.0)

    def kill(self, process: Process) -> None:
        """End a process; what it had not delivered is gone."""
        if process.delivery is not None:
            process.delivery.close()
            process.delivery = process.behind = None
        process.flow.own(())
        self._killed_group = process.group
        if self.processes.get(process.name) is process:
            del self.processes[process.name]
            self.expel(process)

    def expel(self, process: Process) -> None:
        """The coordinator takes a member for dead: its partitions will be others'."""
        group = self.groups[process.group]
        if process.name in group.members:
            group.members.remove(process.name)
            group.is_stale = True

    def rebalance(self, name: str) -> None:
        """Finish what is in hand, give the partitions out anew, restore."""
        group = self.groups[name]
        members = [self.processes[n] for n in group.members if n in self.processes]
        for process in members:
            with suppress(Killed, Fenced):
                self.release(process)
        # Whoever died in the meantime is not there to get any.
        members = [p for p in members if p.name in group.members]
        group.generation += 1
        group.is_stale = False
        for i, process in enumerate(members):
            process.generation = group.generation
            self.restore(process, self.assigned(process.flow, i, len(members)))

    def release(self, process: Process) -> None:
        """Finish the batch in hand, commit, and let the tasks go."""
        flow = process.flow
        self._wait(process)
        if flow.tasks and flow.is_restored and flow.is_whole:
            self.take(process, {}, is_last=True)
            self._wait(process)
            self.commit(process)
        flow.own(())

    def assigned(self, flow: Flow, member: int, members: int) -> list[Partition]:
        """What the range assignor gives the n-th member: the same partitions of each topic."""
        found = []
        for topic in flow.topics:
            n = self.specs[topic].partitions
            found += [Partition(topic, p) for p in range(n) if p * members // n == member]
        if members > 1:
            # Fewer partitions than members: the range assignor begins with the first member.
            single = [t for t in flow.topics if self.specs[t].partitions == 1]
            found = [at for at in found if at.topic not in single]
            found += [Partition(topic, 0) for topic in single if member == 0]
        return found

    def restore(self, process: Process, assigned: Sequence[Partition]) -> None:
        """Make the tasks, hand them what must be read again, and let records flow."""
        flow, group = process.flow, self.groups[process.group]
        tasks = flow.own(assigned)
        committed = {
            at: group.committed[at]._replace(first=self.logs[at].first)
            for at in flow.tasks
            if at in group.committed
        }
        for task in tasks:
            for wanted in task.ranges(committed):
                records = self.logs[wanted.partition].between(wanted.start or 0, wanted.stop)
                for chunk in self.chunks(records):
                    task.restore(wanted.partition, chunk)
        self.follow(process)
        process.fetch = {at: committed[at].offset if at in committed else 0 for at in flow.tasks}
        for task in tasks:
            process.fetch.update(task.start())
        flow.is_restored = flow.is_assigned = True

    def chunks(self, records: list[Record]) -> Iterable[list[Record]]:
        """Records to be restored, as they come off the wire."""
        return [records] if records else []

    def follow(self, process: Process) -> None:
        """Let a worker look at snapshots that are new to it."""
        log = self.logs[Partition(self.topics.models.name, 0)]
        if process.follower is not None and process.followed < log.end:
            process.follower.take(log.between(process.followed))
            process.followed = log.end

    def poll(self, process: Process, batch: int) -> dict[Partition, list[Record]]:
        """Return what a process has not read yet, up to ``batch`` records of a partition."""
        fetched = {}
        for at, offset in process.fetch.items():
            records = self.logs[at].between(offset)[:batch]
            if records and at in process.flow.tasks:
                fetched[at] = records
        return fetched

    def take(
        self, process: Process, fetched: Mapping[Partition, list[Record]], *, is_last: bool = False
    ) -> None:
        """One turn of the loop but for the commit.

        Where the delivery before stands still, what this one caused waits behind it; no third
        may be taken then.
        """
        process.fetch.update({at: records[-1].offset + 1 for at, records in fetched.items()})
        turn = _result(process.flow.apply(fetched, is_last=is_last))
        if process.is_stalled:
            process.behind = turn
            return
        process.delivery = process.flow.deliver(turn)
        self._go_on(process)

    def resume(self, process: Process) -> None:
        """Go on with a delivery that stood still: what was on its way arrives now."""
        self._go_on(process, process.in_flight)

    def deliver(self, process: Process, sends: list[Send]) -> None:
        """Bring records to the broker while ``process`` waits; override it to break something.

        Raise ``Killed`` to kill the process where it stands, ``Stalled`` to leave it there.
        """
        del process
        for send in sends:
            self._append(send)

    def commit(self, process: Process) -> bool:
        """Commit what is due; return False if the group has moved on without the process."""
        due = process.flow.due()
        if not due:
            return True
        group = self.groups[process.group]
        process.flow.lease.check()
        if process.name not in group.members or process.generation != group.generation:
            return False
        group.committed.update(due)
        process.flow.committed(due)
        return True

    def is_compacted(self, topic: str) -> bool:
        """Whether only the last value of each key of a topic is kept for ever."""
        return self.specs[topic].config.get("cleanup.policy") == "compact"

    def _wait(self, process: Process) -> None:
        """A rebalance waits for the batch in hand."""
        while process.is_stalled:
            self.heartbeat(process)
            self.resume(process)

    def _go_on(self, process: Process, sends: list[Send] | None = None) -> None:
        while (delivery := process.delivery) is not None:
            try:
                if sends is None:
                    sends = process.in_flight = delivery.send(None)
                self.deliver(process, sends)
                sends = None
            except StopIteration:
                turn, process.behind = process.behind, None
                process.delivery = None if turn is None else process.flow.deliver(turn)
            except Stalled:
                return
            except (Killed, Fenced):
                self.kill(process)
                raise

    def _append(self, send: Send) -> int:
        return self.logs[Partition(send.topic, send.partition)].append(send, self.now_ms)

    def _key_of(self, topic: str, value: Mapping[str, Any]) -> str | None:
        of = self.settings.transaction
        if topic == "transactions":
            name = of.entities[0] if of.entities else of.id
        else:
            name = self.settings.label.transaction_id
        return str(value[name]) if name in value else None
