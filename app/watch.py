"""Looks whether a process that lives does its work: what should move is seen not to.

A consumer can stop consuming while its process, its loop and its heartbeat are well
(aiokafka#1176), and then its own idea of where a log ends stands still as well. So the ends are
asked for by a client that has no part in the consuming.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from mode import Service

from app.kafka import client_settings, reach
from app.records import Partition

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Mapping

    from app.core.scoring import Champion
    from app.flow import Flow
    from app.topics import Topics

log = structlog.get_logger(__name__)

#: A batch takes well under a second: what has not moved for so long does not move.
STILL_S: Final = 20.0
_LOOK_S: Final = 2.0
_ASK_S: Final = 5.0

Reasons = dict[str, str]


class Seen(NamedTuple):
    """What is seen of a process at one moment."""

    ends: Mapping[Partition, int]  # of its inputs
    fetched: Mapping[Partition, int]  # the next offsets that its consumer takes
    is_committed: bool  # all that was processed
    committed_s: float  # when it last committed
    examples_end: int
    learned: int  # the next example to be learnt, by whoever learns
    model: int  # the next example that the model in use has not seen
    snapshots_end: int
    snapshots_taken: int  # the next snapshot to be taken; that of a learner: the end
    snapshot_refused: str = ""  # why the newest that came was


@dataclass
class Watch:
    """Remembers since when each thing stands still; gives reasons, no time of its own.

    >>> watch, at = Watch(), Partition("transactions", 0)
    >>> seen = Seen({at: 9}, {at: 4}, True, 0.0, 0, 0, 0, 0, 0)
    >>> watch.look(seen, 100.0)
    ({}, {})
    >>> watch.look(seen, 121.0)[0]
    {'frozen': 'transactions[0] stands at 4, of 9, for 21 s'}
    """

    commit_s: float = 0.0  # how seldom offsets are committed
    _moved: dict[Hashable, tuple[object, float]] = field(default_factory=dict)

    def look(self, seen: Seen, now_s: float) -> tuple[Reasons, Reasons]:
        """What a restart would mend, and what it would not: why this process does not do its work.

        ``now_s``: any clock that goes forward.
        """
        alarms = {**self._frozen(seen, now_s), **self._commit(seen, now_s)}
        return alarms, {**self._learner(seen, now_s), **self._stale(seen, now_s)}

    def forget(self) -> None:
        """Begin anew: the partitions are others now, or nothing could be seen."""
        self._moved.clear()

    def _still_s(self, what: Hashable, value: object, *, waits: bool, now_s: float) -> float:
        """For how long ``value`` has been the same while something waited for it to move."""
        before = self._moved.get(what)
        if not waits or before is None or before[0] != value:
            self._moved[what] = (value, now_s)
            return 0.0
        return now_s - before[1]

    def _frozen(self, seen: Seen, now_s: float) -> Reasons:
        told = []
        for at, end in seen.ends.items():
            if (position := seen.fetched.get(at)) is None:
                continue
            still_s = self._still_s(at, position, waits=position < end, now_s=now_s)
            if still_s > STILL_S:
                where = f"{at.topic}[{at.partition}]"
                told.append(f"{where} stands at {position}, of {end}, for {still_s:.0f} s")
        more = f"; and {len(told) - 1} more" if len(told) > 1 else ""
        return {"frozen": told[0] + more} if told else {}

    def _commit(self, seen: Seen, now_s: float) -> Reasons:
        waits = not seen.is_committed
        still_s = self._still_s("commit", seen.committed_s, waits=waits, now_s=now_s)
        if still_s <= STILL_S + self.commit_s:
            return {}
        return {"commit": f"no offset was committed for {still_s:.0f} s, though some are due"}

    def _learner(self, seen: Seen, now_s: float) -> Reasons:
        waits = seen.learned < seen.examples_end
        still_s = self._still_s("learner", seen.learned, waits=waits, now_s=now_s)
        if still_s <= STILL_S:
            return {}
        where = f"example {seen.learned}, of {seen.examples_end}"
        return {"learner": f"nobody has learnt for {still_s:.0f} s; learning stands at {where}"}

    def _stale(self, seen: Seen, now_s: float) -> Reasons:
        is_behind = seen.model < seen.learned
        is_refused = is_behind and bool(seen.snapshot_refused)
        waits = is_refused or seen.snapshots_taken < seen.snapshots_end
        value = (seen.model, seen.snapshots_taken if not is_refused else None)
        still_s = self._still_s("stale", value, waits=waits, now_s=now_s)
        if still_s <= STILL_S:
            return {}
        why = seen.snapshot_refused or f"snapshots up to {seen.snapshots_end} are not taken"
        where = f"example {seen.model}, of {seen.learned} learnt"
        return {"stale": f"the model in use stands at {where}, for {still_s:.0f} s: {why}"}


class Following(Protocol):
    """Whoever follows the snapshots, as far as it is watched."""

    taken: int

    @property
    def refused(self) -> str:
        """Why the newest snapshot that came was; empty where it was not."""


class Watcher(Service):
    """Looks every two seconds, and leaves what it sees with the flow."""

    def __init__(
        self,
        flow: Flow,
        topics: Topics,
        champion: Champion,
        follower: Following | None,
        fetched: Callable[[], Awaitable[Mapping[Partition, int]]],
        **kwargs: Any,
    ) -> None:
        """Describe what to look at; nothing is connected yet. A learner follows nobody."""
        super().__init__(**kwargs)
        worker = flow.settings.worker
        is_of_workers = flow.settings.learner.in_worker and follower is not None
        self._group = worker.group if is_of_workers else f"{worker.group}-learner"
        self._flow, self._champion, self._follower = flow, champion, follower
        self._fetched = fetched
        self._examples, self._models = (
            TopicPartition(topic.name, 0) for topic in (topics.examples, topics.models)
        )
        self._watch = Watch(flow.settings.worker.commit_interval / 1_000.0)

    @Service.task
    async def _look_on(self) -> None:
        kafka = self._flow.settings.kafka
        # Of the group of those who learn, to ask what it has committed; it joins nothing.
        client = AIOKafkaConsumer(
            **client_settings(kafka), group_id=self._group, enable_auto_commit=False
        )
        await reach(client.start, kafka.bootstrap)
        try:
            while not self.should_stop:
                await self._look(client)
                await self.sleep(_LOOK_S)
        finally:
            await client.stop()

    async def _look(self, client: AIOKafkaConsumer) -> None:
        flow = self._flow
        if not flow.is_restored:
            self._watch.forget()
        else:
            try:
                async with asyncio.timeout(_ASK_S):
                    seen = await self._see(client)
            except (KafkaError, TimeoutError) as error:
                # What cannot be seen is not held against the process; its lease tells of that.
                log.info("not_seen", reason=repr(error))
                self._watch.forget()
            else:
                flow.alarms, flow.concerns = self._watch.look(seen, time.monotonic())
        flow.looked_s = time.monotonic()

    async def _see(self, client: AIOKafkaConsumer) -> Seen:
        flow, follower = self._flow, self._follower
        inputs = [TopicPartition(*at) for at in flow.tasks]
        ends = await client.end_offsets([*inputs, self._examples, self._models])
        learned = await client.committed(self._examples)
        snapshots_end = ends[self._models]
        return Seen(
            ends={Partition(*tp): ends[tp] for tp in inputs},
            fetched=await self._fetched(),
            is_committed=flow.is_committed,
            committed_s=flow.committed_s,
            examples_end=ends[self._examples],
            learned=learned or 0,
            model=self._champion.version.position + 1,
            snapshots_end=snapshots_end,
            snapshots_taken=follower.taken if follower else snapshots_end,
            snapshot_refused=follower.refused if follower else "",
        )
