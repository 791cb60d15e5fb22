"""One run of a contender: warmed up, then timed while it drains a backlog.

How a run goes, the same for all:

1. Topics of its own are made; the first ``warm`` records are published; the process starts,
   compiles, joins its group, scores them, and comes to rest (next to no CPU for 3/4 s).
2. The process is halted (SIGSTOP), the rest of the records is published, the process goes on
   (SIGCONT). That is the beginning: nothing of the measured part was read before, and the
   publisher is done, so the machine's cores are the process's and the broker's.
3. It drains. The end of scoring is when the broker wrote the last score (LogAppendTime);
   the process is settled when it came to rest again, that is when all that follows from the
   scores (weir's join reads every score back) is done too.

``records_per_s`` is records over the time from the beginning to the last score;
``settled_per_s`` the same to rest. ``cpu_us`` is user and system time of the process, all its
threads, from the beginning to rest, by record: so work put off until after the last score is
counted, and start-up and compilation are not. The broker's CPU is not in it.

Every measured record must have exactly one score, or the run is void and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from contenders import Contender
from measured import Ended, at_rest, check, cpu, rss_bytes, running, said_last
from payments import PARTITIONS, Payment, Subject, make_topics, publish

from app.config import Settings
from app.kafka import Reader, Sender
from app.topics import Topics, TopicSpec

# A topic that was made just now has no leader for a moment; the clients try again by themselves.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

#: Until a process has scored its first records: compiling, joining, restoring.
_START_S = 180.0
#: Without one more score for so long a run is given up.
_STALL_S = 60.0
_POLL_S = 0.1


class Where(NamedTuple):
    """The broker, the prefix of a run's topics, and the model of those that unpickle it."""

    bootstrap: str
    prefix: str
    model: Path


class Scores:
    """The scores topic of one run, seen from outside."""

    def __init__(self, consumer: AIOKafkaConsumer, topic: str) -> None:
        self._consumer = consumer
        self._at = [TopicPartition(topic, p) for p in range(PARTITIONS)]

    @classmethod
    async def of(cls, reader: Reader, topic: str) -> Self:
        """Connect."""
        consumer = reader.client()
        await consumer.start()
        consumer.assign([TopicPartition(topic, p) for p in range(PARTITIONS)])
        return cls(consumer, topic)

    async def ends(self) -> dict[TopicPartition, int]:
        """Where each partition ends."""
        return dict(await self._consumer.end_offsets(self._at))

    async def n(self) -> int:
        """How many scores there are."""
        return sum((await self.ends()).values())

    async def read(self, since: dict[TopicPartition, int]) -> tuple[list[str], Any, Any]:
        """Ids, scores and times in ms of the records since some offsets."""
        ends = await self.ends()
        for at, offset in since.items():
            self._consumer.seek(at, offset)
        left = sum(ends[at] - offset for at, offset in since.items())
        ids, scores, times = [], [], []
        while left > 0:
            for records in (await self._consumer.getmany(timeout_ms=1_000)).values():
                left -= len(records)
                for record in records:
                    told = orjson.loads(record.value)
                    ids.append(told["transaction_id"])
                    scores.append(told["score"])
                    times.append(record.timestamp)
        return ids, np.array(scores), np.array(times)

    async def stop(self) -> None:
        """Disconnect."""
        await self._consumer.stop()


async def until(
    scores: Scores, wanted: int, watch: Callable[[], None], advance: Callable[[int], Any]
) -> int:
    """Wait for so many scores, or until no more come; return how many there are."""
    n, moved_s = await scores.n(), time.monotonic()
    advance(n)
    while n < wanted and time.monotonic() < moved_s + (_STALL_S if n else _START_S):
        await asyncio.sleep(_POLL_S)
        watch()
        now = await scores.n()
        if now > n:
            moved_s = time.monotonic()
        n = now
        advance(n)
    return n


def _topics(contender: Contender, topics: Topics, where: Where) -> Iterable[TopicSpec]:
    """What must be there before a contender starts."""
    if contender.subject:
        return topics
    compact = {"cleanup.policy": "compact"}
    group = where.prefix.rstrip(".")
    changelogs = [
        TopicSpec(f"{group}{name}", PARTITIONS, 1, "", compact) for name in contender.changelogs
    ]
    return [topics.transactions, topics.scores, *changelogs]


@dataclass
class Trial:
    """A contender that is warm and at rest, and what it reads and writes."""

    settings: Settings
    topics: Topics
    sender: Sender
    scores: Scores
    processes: dict[Path, subprocess.Popen[bytes]]  # by where each writes what it says
    warmed_s: float = 0.0  # from their start to rest

    @property
    def pids(self) -> list[int]:
        """Those that are measured."""
        return [process.pid for process in self.processes.values()]

    def check(self) -> None:
        """Raise Ended if a process has ended."""
        for log, process in self.processes.items():
            check(process, log)

    def signal(self, what: int) -> None:
        """Tell every process."""
        for process in self.processes.values():
            process.send_signal(what)


@contextlib.asynccontextmanager
async def warmed(
    contender: Contender,
    warm: Sequence[Payment],
    where: Where,
    *,
    profile_to: Path | None = None,
    advance: Callable[[int], Any] = int,
) -> AsyncIterator[Trial]:
    """A contender that has scored ``warm``; all that was made for it is taken away at the end."""
    subject = contender.subject or Subject("logistic")
    settings = subject.settings(where.bootstrap, where.prefix)
    topics = Topics.of(settings)
    await make_topics(settings, _topics(contender, topics, where))
    sender, scores = Sender(settings), await Scores.of(Reader(settings), topics.scores.name)
    await sender.start()
    try:
        with tempfile.TemporaryDirectory(prefix="weir-speed-") as told, ExitStack() as stack:
            if contender.subject:
                await sender.deliver([contender.subject.snapshot(settings)])
            await publish(sender, topics.transactions.name, warm)
            started_s = time.monotonic()
            trial = Trial(settings, topics, sender, scores, {})
            for i in range(contender.processes):
                log = Path(told, f"log-{i}")
                run = _started(contender, where, Path(told, f"state-{i}"), log, profile_to)
                trial.processes[log] = stack.enter_context(run)
            if not await until(scores, len(warm), trial.check, advance):
                said = said_last(next(iter(trial.processes)))
                raise Ended(f"no score within {_START_S:g} s; {said}")
            await at_rest(*trial.pids)
            trial.warmed_s = time.monotonic() - started_s
            yield trial
    finally:
        await scores.stop()
        await sender.stop()
        await _forget(where)


def _started(
    contender: Contender, where: Where, folder: Path, log: Path, profile_to: Path | None
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """One process of a contender, with a folder of its own."""
    folder.mkdir()
    told = contender.environment(where.bootstrap, where.prefix, folder, where.model)
    return running(contender.command(profile_to), told, log)


async def drained(  # noqa: PLR0913 - what a run is made of
    contender: Contender,
    stream: Sequence[Payment],
    warm: int,
    where: Where,
    *,
    profile_to: Path | None = None,
    advance: Callable[[int], Any] = int,
) -> dict[str, Any]:
    """Run a contender over a stream whose first ``warm`` records only warm it up.

    ``advance`` is told how many scores there are. Raises Ended if the process ends.
    """
    n = len(stream) - warm
    opened = warmed(contender, stream[:warm], where, profile_to=profile_to, advance=advance)
    async with opened as trial:
        base = await trial.scores.ends()
        n_base = sum(base.values())
        trial.signal(signal.SIGSTOP)
        await publish(trial.sender, trial.topics.transactions.name, stream[warm:])
        began_ms, began_s, before = time.time() * 1e3, time.monotonic(), cpu(*trial.pids)
        if profile_to is not None:
            trial.signal(signal.SIGRTMIN)
        trial.signal(signal.SIGCONT)
        await until(trial.scores, n_base + n, trial.check, advance)
        rest = await at_rest(*trial.pids)
        trial.check()
        if profile_to is not None:
            trial.signal(signal.SIGRTMIN + 1)
            await asyncio.sleep(1.0)
        rss = sum(map(rss_bytes, trial.pids))
        ids, values, times_ms = await trial.scores.read(base)
    wanted = {orjson.loads(p.value)["transaction_id"] for p in stream[warm:]}
    used = rest.cpu.since(before)
    last_s = (float(times_ms.max()) - began_ms) / 1e3 if len(times_ms) else float("nan")
    return {
        "records": n,
        "scores": len(ids),
        "problem": _problem(ids, wanted, values),
        "records_per_s": n / last_s,
        "settled_per_s": n / (rest.at_s - began_s),
        "cpu_us": used.total_s * 1e6 / n,
        "user_us": used.user_s * 1e6 / n,
        "system_us": used.system_s * 1e6 / n,
        "seconds": last_s,
        "settled_seconds": rest.at_s - began_s,
        "rss_mb": rss / 1e6,
        "mean_score": float(values.mean()) if len(values) else None,
        "warmed_seconds": trial.warmed_s,
        "warm_scores_missing": warm - n_base,
    }


def _problem(ids: list[str], wanted: set[str], values: Any) -> str | None:
    """What is wrong with the scores of a run; None: one for each record, each within [0, 1]."""
    found = set(ids)
    missing, twice, foreign = len(wanted - found), len(ids) - len(found), len(found - wanted)
    if missing or twice or foreign:
        return f"{missing} records without a score, {twice} scored again, {foreign} of others"
    if not ((values >= 0.0) & (values <= 1.0)).all():
        return "scores outside [0, 1]"
    return None


async def _forget(where: Where) -> None:
    """Delete the topics of a run, those that the contender made itself too."""
    admin = AIOKafkaAdminClient(bootstrap_servers=where.bootstrap)
    await admin.start()
    try:
        names = await admin.list_topics()
        group = where.prefix.rstrip(".")
        marks = (group, f"repartition__{group}", f"changelog__{group}")
        own = [name for name in names if name.startswith(marks)]
        if own:
            await admin.delete_topics(own)
    finally:
        await admin.close()
