"""The loop's turn: what one process runs, in the one order that is never changed.

apply -> outputs, every one acknowledged -> state, every one acknowledged -> offsets

A turn has two halves, so that the broker is not waited for: while what one batch caused is being
delivered, the next batch is applied. Deliveries follow each other; none begins before the one
before is whole, and offsets are committed only while nothing is under way.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from app.errors import Fenced
from app.kafka import Reader, Sender, now_ms
from app.tasks import Committed, Durable, Effects

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from app.config import Settings
    from app.metrics import Metrics
    from app.records import Partition, Record, Send
    from app.tasks import Stage, Task

log = structlog.get_logger(__name__)

#: What metrics call the parts of what a turn writes.
PARTS: Final = ("first", "outputs", "state")


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


@dataclass(slots=True)
class Turn:
    """A batch that was applied: what it caused, and how far the inputs will have been read."""

    positions: dict[Partition, int]
    effects: Effects = field(default_factory=Effects)

    def __bool__(self) -> bool:
        """Whether there is anything to deliver or to commit."""
        return bool(self.positions) or any(self.effects.parts)


class Flow:
    """What one process runs: its stages, and what moves records between them and Kafka."""

    def __init__(self, settings: Settings, stages: Sequence[Stage], metrics: Metrics) -> None:
        """Describe the flow; nothing is connected yet."""
        self.settings, self.stages, self.metrics = settings, stages, metrics
        self.lease = Lease(settings.kafka.session_timeout, settings.delivery_ms)
        self.sender = Sender(settings, self.lease.check)
        self.reader = Reader(settings)
        self.now_ms = now_ms
        self.tasks: dict[Partition, Task] = {}
        self.positions: dict[Partition, int] = {}
        self.is_restored = False
        self.is_assigned = False
        self.progress_s = time.monotonic()  # when the loop last came round
        self._n_open = 0  # turns begun and not yet delivered
        self.greetings: list[Send] = []  # what is said once at the start, before the first batch
        self.gates: list[asyncio.Event] = []  # what must have come before the first batch
        self._committed: dict[Partition, int] = {}
        self._durable: list[Durable] = []
        self.committed_s = 0.0  # when offsets were last committed
        #: What is seen from outside (``watch``): what a restart would mend, and what it would not.
        self.alarms: dict[str, str] = {}
        self.concerns: dict[str, str] = {}
        self.looked_s = time.monotonic()
        self._stage_of = {topic: stage.name for stage in stages for topic in stage.topics}
        metrics.bounded = lambda: list(dict.fromkeys(self.tasks.values()))

    @property
    def topics(self) -> list[str]:
        """Every topic that some stage reads, in the order of the flow."""
        return [topic for stage in self.stages for topic in stage.topics]

    def own(self, assigned: Iterable[Partition]) -> list[Task]:
        """Make the tasks of newly assigned partitions; what was owned before is dropped."""
        for old in self._durable:
            old.close()
        owned, made = set(assigned), []
        self.is_restored, self.is_assigned = False, bool(owned)
        self.tasks, self.positions, self._committed = {}, {}, {}
        self._n_open = 0
        self.metrics.released()
        self.alarms, self.concerns = {}, {}
        for stage in self.stages:
            for number in sorted({p.partition for p in owned if p.topic in stage.topics}):
                task = stage.task(number)
                if all(at in owned for at in task.inputs):
                    made.append(task)
                    self.tasks.update(dict.fromkeys(task.inputs, task))
                else:
                    log.error("inputs_not_together", stage=stage.name, partition=number)
        self._durable = [task for task in made if isinstance(task, Durable)]
        return made

    @property
    def is_whole(self) -> bool:
        """Whether no batch is under way, or was left half done."""
        return self._n_open == 0

    async def apply(
        self, fetched: Mapping[Partition, Sequence[Record]], *, is_last: bool = False
    ) -> Turn:
        """Fold a batch. What it caused must be delivered before what a later one caused."""
        turn = Turn({at: records[-1].offset + 1 for at, records in fetched.items()})
        now = self.now_ms()
        self._n_open += 1
        for at, records in fetched.items():
            began_s = time.perf_counter()
            self.tasks[at].apply(at, records, now, turn.effects)
            took_s = time.perf_counter() - began_s
            self.metrics.applied(self._stage_of[at.topic], len(records), took_s)
            await self.breathe()
        for task in dict.fromkeys(self.tasks.values()):
            task.tick(now, turn.effects, is_last=is_last)
        return turn

    @staticmethod
    async def breathe() -> None:
        """Let acknowledgements and heartbeats in between two partitions."""
        await asyncio.sleep(0)

    async def deliver(self, turn: Turn) -> None:
        """Write what a batch caused, and have every record acknowledged, part after part."""
        for part, sends in zip(PARTS, turn.effects.parts, strict=True):
            if sends:
                self.lease.check()
                began_s = time.perf_counter()
                await self.sender.deliver(sends)
                self.metrics.delivered(part, time.perf_counter() - began_s)
        self.positions.update(turn.positions)
        self._n_open -= 1
        for tell in turn.effects.told:
            tell()

    async def run(
        self, fetched: Mapping[Partition, Sequence[Record]], *, is_last: bool = False
    ) -> None:
        """A whole turn but for the offsets."""
        await self.deliver(await self.apply(fetched, is_last=is_last))

    def due(self) -> dict[Partition, Committed]:
        """Offsets that may be committed now, and were not yet; none while a batch is under way.

        A note tells of the task as it stands, and a task may not be ahead of its offsets.
        """
        if not self.is_whole:
            return {}
        return {
            at: Committed(offset, self.tasks[at].note(at, offset))
            for at, offset in self.positions.items()
            if self._committed.get(at) != offset
        }

    def is_due(self) -> bool:
        """Whether it is time to commit."""
        interval_s = self.settings.worker.commit_interval / 1_000.0
        return time.monotonic() - self.committed_s >= interval_s

    @property
    def is_committed(self) -> bool:
        """Whether nothing is left to commit."""
        return all(self._committed.get(at) == offset for at, offset in self.positions.items())

    def committed(self, offsets: Mapping[Partition, Committed]) -> None:
        """Note what the coordinator took."""
        self._committed.update({at: was.offset for at, was in offsets.items()})
        for task in self._durable:
            task.committed(offsets)
        self.committed_s = time.monotonic()
        self.metrics.committed(self.now_ms())
