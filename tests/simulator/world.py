"""One seed, one history: publish, process, and break whatever can break, then let it drain."""

from __future__ import annotations

import random
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from app.core.entity import EntityStore
from app.disk import Shelf
from app.errors import Fenced
from app.records import Partition, Send
from app.stages import EntityTask
from app.testing import Driver, Killed, Process, Stalled
from tests.simulator.history import disk_of_all, flush_of, history_of, settings_of, shape_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from app.config import Settings
    from app.core.buckets import BucketValue
    from app.records import Position, Record
    from tests.simulator.history import Input

#: Turns in which things break; about three for each transaction.
STEPS = 170
#: Of commits, where there is a disk that could be ahead of them.
COMMITS_LOST = 0.05
#: Machines with a disk: workers are started on any, so that partitions come back to old folders.
MACHINES = 3
_worlds = count()
#: A worker that lost its partitions is heard of no more after so many deliveries.
ZOMBIE_TURNS = 4


@dataclass
class Figures:
    """What happened in one history."""

    crashes: int = 0
    zombies: int = 0
    rebalances: int = 0
    compactions: int = 0
    transactions: int = 0
    duplicate_scores: int = 0
    bucketed: int = 0  # transactions that left their ring, in the end


class Known(NamedTuple):
    """What a store knows of one entity."""

    ring: list[tuple[int, float, int]]
    buckets: list[BucketValue]


def held_of(store: EntityStore) -> dict[str, Known]:
    """What a store knows of each entity, wherever it is.

    Not how often a label has changed: after a crash one and its correction are told again.
    """
    keys = set(store.rows)
    if isinstance(store.cold, Shelf):
        kept = store.cold._database.items()
        keys |= {key.decode() for key, _ in kept if isinstance(key, bytes)}
    return {
        key: Known(
            store.history(key),
            [b._replace(marks=tuple((*m[:3], 0) for m in b.marks)) for b in store.buckets(key)],
        )
        for key in sorted(keys)
    }


@dataclass
class World(Driver):
    """A driver that breaks things; everything follows from ``seed``."""

    seed: int
    figures: Figures = field(default_factory=Figures)

    def __post_init__(self) -> None:
        """Draw the world and its history."""
        self.rng = random.Random(self.seed)
        self.shape = shape_of(self.rng)
        self.history = history_of(self.rng, self.shape)
        self.inputs: dict[Position, Input] = {}
        self.todo = list(self.history)
        self.zombies: list[Process] = []
        self.late: dict[str, list[Send]] = {}  # what was on its way when one was expelled
        self.broken: list[str] = []  # laws that only show on the way
        self.stale: dict[Partition, int] = {}  # where late writes of zombies begin
        self.names = 0
        self.is_rough = False
        self.doomed = 0.0
        self.pace = 0.7  # of the first input of each task; when it lags, the others overtake it
        self.disks = Path(disk_of_all()) / f"joins-{next(_worlds)}"
        self.torn = random.Random(self.seed + 1)  # of disks: other worlds stay as they are
        super().__init__(settings_of(self.shape), workers=self.rng.randint(1, 3), learners=1)
        if not self.shape.in_worker and self.rng.random() < 0.3:
            self.start("learner-b", "learner", "second")

    def settings_of(self, name: str) -> Settings:
        """A worker's join has the disk of the machine it is started on."""
        if not self.shape.joins_on_disk:
            return self.settings
        disk = self.disks / str(self.torn.randrange(MACHINES))
        told = {"disk": disk, "disk_cache_bytes": 1_048_576}
        return self.settings.model_copy(update={"join": self.settings.join.model_copy(update=told)})

    # What breaks.

    def commit(self, process: Process) -> bool:
        """Commit; the coordinator may die and not know of it, though it has said so."""
        group = self.groups[process.group]
        before = dict(group.committed)
        is_taken = super().commit(process)
        is_lossy = self.is_rough and self.shape.joins_on_disk and before != group.committed
        if is_lossy and self.torn.random() < COMMITS_LOST:
            group.committed.clear()
            group.committed.update(before)
            self.figures.crashes += 1
            raise Killed
        return is_taken

    def deliver(self, process: Process, sends: list[Send]) -> None:
        """Deliver all, or a prefix of each partition and then crash or stand still."""
        if process in self.zombies:
            if sends is not self.late[process.name]:
                self.broken.append(f"zombie: {process.name} writes after it lost its partitions")
            for send in sends:
                at = Partition(send.topic, send.partition)
                self.stale.setdefault(at, self.logs[at].end)
        x = self.rng.random()
        if not self.is_rough or x >= self.doomed:
            super().deliver(process, sends)
            return
        arrived, rest = self._cut(sends)
        super().deliver(process, arrived)
        if x < 0.6 * self.doomed or process in self.zombies:
            self.figures.crashes += 1
            raise Killed
        process.in_flight = rest
        if process in self.zombies:
            self.late[process.name] = rest
        raise Stalled

    def _cut(self, sends: list[Send]) -> tuple[list[Send], list[Send]]:
        """Split what is on its way: each partition gets a prefix of its own."""
        counts: dict[tuple[str, int], int] = {}
        for send in sends:
            at = (send.topic, send.partition)
            counts[at] = counts.get(at, 0) + 1
        left = {at: self.rng.choice((0, n, self.rng.randint(0, n))) for at, n in counts.items()}
        arrived: list[Send] = []
        rest: list[Send] = []
        for send in sends:
            at = (send.topic, send.partition)
            (arrived if left[at] > 0 else rest).append(send)
            left[at] -= 1
        return arrived, rest

    def chunks(self, records: list[Record]) -> Iterable[list[Record]]:
        """Come off the wire in pieces of any size."""
        at = 0
        while at < len(records):
            n = self.rng.randint(1, 40)
            yield records[at : at + n]
            at += n

    def poll(self, process: Process, batch: int) -> dict[Partition, list[Record]]:
        """Some partitions, in any order, up to any number of records."""
        fetched = super().poll(process, batch)
        if not self.is_rough:
            return fetched
        feeds = {task.inputs[0] for task in process.flow.tasks.values()}
        some = [at for at in fetched if self.rng.random() < (self.pace if at in feeds else 0.7)]
        self.rng.shuffle(some)
        return {at: fetched[at][: self.rng.choice((1, 3, 20))] for at in some}

    # The history.

    def play(self) -> None:
        """Run from the first record to the last restart."""
        self.is_rough = True
        for _ in range(STEPS):
            self._settle_groups()
            self._publish(self.rng.choice((0, 0, 1, 1, 2)))
            self._something()
        while self.todo:
            self._publish(1)
            if self.rng.random() < 0.2:
                self._settle_groups()
                self._something()
        self._drain()
        for round_no in range(2):
            for made in flush_of(len(self.history), self.shape.partitions, round_no):
                self._publish_one(made)
            self._drain()
        self._compare_with_changelogs()
        scores = self.read("scores")
        self.figures.transactions = len(self.records("transactions"))
        self.figures.duplicate_scores = len(scores) - len(
            {(s.source.partition, s.source.offset) for s in scores}
        )
        # Whatever was not durable comes to light now.
        for process in list(self.processes.values()):
            self.kill(process)
            self._restart(process)
        self._drain()
        shutil.rmtree(self.disks, ignore_errors=True)

    def _something(self) -> None:
        rng = self.rng
        self.doomed = rng.choice((0.0, 0.02, 0.1))
        if rng.random() < 0.05:
            self.pace = rng.choice((0.7, 0.7, 0.1))
        self.advance(rng.randint(0, 3_000))
        if self.shape.joins_on_disk and self.torn.random() < 0.05:
            self._retain()
        x = rng.random()
        if x < 0.02:
            self._compact()
        elif x < 0.04:
            self._start_another()
        elif x < 0.05:
            self._spoil_snapshots()
        elif x < 0.09 and self.zombies:
            self._wake(rng.choice(self.zombies))
        elif self.processes:
            self._turn(rng.choice(list(self.processes.values())))

    def _turn(self, process: Process) -> None:
        rng = self.rng
        if process.is_stalled:
            self._stalled(process)
            return
        try:
            self._maybe_kill()
            if rng.random() < 0.5:
                self.follow(process)
            self.take(process, self.poll(process, 20))
            self._maybe_kill()  # between delivery and commit
            if rng.random() < 0.4 and not process.is_stalled:
                self.commit(process)
        except (Killed, Fenced):
            self.kill(process)
            self._restart(process)

    def _maybe_kill(self) -> None:
        if self.rng.random() < 0.03:
            self.figures.crashes += 1
            raise Killed

    def _stalled(self, process: Process) -> None:
        """Wake in time, or be taken for dead while the network still holds what was sent.

        Meanwhile the next batch may have been applied, which no commit may know of.
        """
        if process.behind is None and self.rng.random() < 0.6:
            self.take(process, self.poll(process, 20))
            self.commit(process)
        if self.rng.random() < 0.4:
            try:
                self.heartbeat(process)
                self.resume(process)
            except (Killed, Fenced):
                self._restart(process)
            return
        self.figures.zombies += 1
        self.advance(self.settings.kafka.session_timeout)
        del self.processes[process.name]
        self.expel(process)
        self.zombies.append(process)
        self.late[process.name] = process.in_flight
        self._restart(process)

    def _wake(self, zombie: Process) -> None:
        """Let one that lost its partitions go on as if nothing had happened."""
        try:
            self.resume(zombie)
            for _ in range(self.rng.randint(0, ZOMBIE_TURNS)):
                if not zombie.is_stalled:
                    self.take(zombie, self.poll(zombie, 20))
                    self.commit(zombie)
        except (Killed, Fenced):
            pass
        if not zombie.is_stalled or self.rng.random() < 0.5:
            self.kill(zombie)
            self.zombies.remove(zombie)

    def _restart(self, process: Process) -> None:
        self.names += 1
        role = "worker" if process.follower is not None else "learner"
        self.start(f"{role}-{self.names + 10}", role, process.group)  # type: ignore[arg-type]

    def _start_another(self) -> None:
        """Scale out, or in."""
        workers = [p for p in self.processes.values() if p.follower is not None]
        if len(workers) < 3:
            self.names += 1
            self.start(f"worker-{self.names + 10}")
            return
        leaver = self.rng.choice(workers)
        with suppress(Killed, Fenced):
            self.release(leaver)
        if leaver.name in self.processes:
            self.kill(leaver)

    def _compact(self) -> None:
        self.figures.compactions += 1
        for at, log in self.logs.items():
            if self.is_compacted(at.topic) and self.rng.random() < 0.7:
                # What a worker wrote late stays beside what it came after: a cleaner that kept
                # only the later one of the two could not be survived by any reader.
                log.compact(self.rng.randint(0, self.stale.get(at, log.end)))

    def _spoil_snapshots(self) -> None:
        """Leave a torn or a foreign snapshot among the others."""
        name = self.topics.models.name
        held = [r.value for r in self.records("models") if r.value]
        torn = self.rng.choice(held)[: self.rng.randint(0, 200)] if held else b""
        key = self.rng.choice((b"champion/0", b"champion/1", b"foreign"))
        self._append(Send(name, 0, key, self.rng.choice((torn, b"WEIR1 not ours"))))

    def _retain(self) -> None:
        """Retention takes what nobody needs who begins at the commit, without a disk."""
        committed = self.groups[self.settings.worker.group].committed
        for at, was in committed.items():
            if at.topic in {self.topics.scores.name, self.topics.labels.name} and was.note:
                self.logs[at].first = max(self.logs[at].first, int(was.note.split()[0]))

    def _settle_groups(self) -> None:
        """Tell the groups who came and went; not always at once."""
        for name, group in self.groups.items():
            while group.is_stale and (not self.is_rough or self.rng.random() < 0.7):
                before = set(group.members)
                self.figures.rebalances += 1
                self.rebalance(name)
                # Who died while it let go of its partitions is started again.
                dead = before - set(group.members)
                role = "learner" if self._is_learner(name) else "worker"
                for _ in dead:
                    self.names += 1
                    self.start(f"{role}-{self.names + 10}", role, name)  # type: ignore[arg-type]

    def _is_learner(self, group: str) -> bool:
        return group != self.settings.worker.group

    def _publish(self, n: int) -> None:
        for made in self.todo[:n]:
            self._publish_one(made)
        self.todo = self.todo[n:]

    def _publish_one(self, made: Input) -> None:
        self.inputs[self.publish(made.topic, made.value, key=made.key)] = made

    def _drain(self) -> None:
        """Nothing breaks any more; late bytes arrive, and all is done that can be."""
        self.is_rough = False
        for zombie in list(self.zombies):
            with suppress(Killed, Fenced):
                self.resume(zombie)
            self.kill(zombie)
        self.zombies.clear()
        for process in list(self.processes.values()):
            if process.is_stalled:
                self.heartbeat(process)
                self.resume(process)
        self.advance(60_000)
        self.run(batch=self.rng.choice((1, 7, 500)))
        self.advance(60_000)  # time for a last snapshot
        self.run()

    def _compare_with_changelogs(self) -> None:
        """Law 5: what a worker holds is what another would restore."""
        for process in self.processes.values():
            for task in dict.fromkeys(process.flow.tasks.values()):
                if isinstance(task, EntityTask) and task.store is not None:
                    again = task.stage.task(task.partition)
                    at = Partition(task.changelog, task.partition)
                    again.restore(at, self.logs[at].records)
                    held = [b for known in held_of(task.store).values() for b in known.buckets]
                    self.figures.bucketed += sum(bucket.n for bucket in held)
                    if again.store is None or held_of(task.store) != held_of(again.store):
                        self.broken.append(f"changelog: {at} is not what {process.name} holds")
