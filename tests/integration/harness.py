"""Starts workers against a real broker, publishes to them, and waits for what they say."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import OffsetAndMetadata
from prometheus_client.parser import text_string_to_metric_families

from app.admin import Admin
from app.config import Settings, load
from app.core.features import FeaturePlan
from app.core.learner import Learner
from app.learning import new_learner
from app.topics import Topics, TopicSpec

ROOT = Path(__file__).resolve().parent.parent.parent
DEADLINE_S = 60.0


class TooLate(AssertionError):
    """What was waited for did not come."""


async def until(what: Callable[[], Any], why: str, deadline_s: float = DEADLINE_S) -> Any:
    """Wait until ``what()`` is true; return it. Raises TooLate that says why it was waited for."""
    end = time.monotonic() + deadline_s
    while True:
        found = what()
        if found:
            return found
        if time.monotonic() > end:
            raise TooLate(f"after {deadline_s:g} s: {why}")
        await asyncio.sleep(0.05)


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Process:
    """One weir process and what it prints."""

    def __init__(self, role: str, env: dict[str, str], log: Path, port: int, *program: str) -> None:
        self.log, self.port = log, port
        with log.open("wb") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", *program, role, "--once"],
                cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    @property
    def said(self) -> str:
        """Everything it printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> tuple[int, str]:
        """HTTP status and body of a page; (0, why) while nobody answers."""
        url = f"http://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 where there is none."""
        status, text = self.get("/metrics")
        if status != 200:
            return 0.0
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def ready(self) -> Process:
        """Wait until it says that it scores."""

        def is_ready() -> bool:
            assert self.popen.poll() is None, f"it ended:\n{self.said}"
            return self.get("/readyz")[0] == 200

        await until(is_ready, f"not ready: {self.get('/readyz')}\n{self.said[-3_000:]}")
        return self

    async def ended(self, deadline_s: float = DEADLINE_S) -> int:
        """Wait for its end; return its exit code."""
        code = self.popen.poll

        def is_over() -> bool:
            return code() is not None

        await until(is_over, f"still running:\n{self.said[-3_000:]}", deadline_s)
        return int(self.popen.returncode)

    def kill(self) -> None:
        """As a power cut: no time for anything."""
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()

    async def stop(self, deadline_s: float = 10.0) -> int:
        """Ask it to end, as a service manager does; return its exit code."""
        self.popen.send_signal(signal.SIGTERM)
        return await self.ended(deadline_s)


class World:
    """Topics of their own on a real broker, and the processes that work on them."""

    def __init__(self, bootstrap: str, folder: Path, **overrides: dict[str, Any]) -> None:
        name = uuid.uuid4().hex[:8]
        tables: dict[str, dict[str, Any]] = {
            "kafka": {"bootstrap": bootstrap, "session_timeout": "6s"},
            "topics": {"prefix": f"t{name}.", "partitions": 2},
            "worker": {"group": f"g{name}", "data_dir": str(folder), "commit_interval": "100ms"},
            "learner": {"snapshot_interval": "500ms"},
            "model": {"name": "logistic"},
        }
        for table, values in overrides.items():
            tables[table] = {**tables.get(table, {}), **values}
        self.tables, self.folder = tables, folder
        self.settings: Settings = load(None, "card", **tables)
        self.topics = Topics.of(self.settings)
        self.processes: list[Process] = []
        self.sequence = 0

    def env(self, port: int, **more: str) -> dict[str, str]:
        """The environment of a process: its settings, and none of ours."""
        told = {n: v for n, v in os.environ.items() if not n.startswith("WEIR_")}
        for table, values in self.tables.items():
            for key, value in values.items():
                plain = value if isinstance(value, str) else json.dumps(value)
                told[f"WEIR_{table.upper()}__{key.upper()}"] = plain
        return {**told, "WEIR_WORKER__WEB_PORT": str(port), "PYTHONUNBUFFERED": "1", **more}

    def start(
        self, role: str = "worker", module: str = "app", *, without: str | None = None, **env: str
    ) -> Process:
        """Start a process, perhaps without a guard (``unguarded``); ``ready`` waits for it."""
        port = free_port()
        log = self.folder / f"{role}{len(self.processes)}.log"
        program = (module,) if without is None else ("tests.integration.unguarded", without)
        process = Process(role, self.env(port, **env), log, port, *program)
        self.processes.append(process)
        return process

    async def create_topics(self) -> None:
        """Make all topics and wait until the broker shows them whole."""
        async with Admin(self.settings) as admin:
            await admin.create(self.topics)
            assert [] == await admin.settled(self.topics)

    @property
    def bootstrap(self) -> str:
        """Where the broker is."""
        return self.settings.kafka.bootstrap

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[AIOKafkaProducer]:
        """A producer, for as long as it is needed."""
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, max_request_size=4_000_000)
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    async def publish(
        self, topic: TopicSpec, records: Iterable[tuple[bytes | None, bytes | None]], **more: Any
    ) -> None:
        """Write (key, value) in order and wait for every acknowledgement."""
        async with self.producer() as producer:
            sent = [await producer.send(topic.name, v, key=k, **more) for k, v in records]
            await asyncio.gather(*sent)

    async def transact(self, transactions: Sequence[dict[str, Any]], **more: Any) -> None:
        """Publish transactions, keyed by card."""
        rows = [(str(t["card_id"]).encode(), json.dumps(t).encode()) for t in transactions]
        await self.publish(self.topics.transactions, rows, **more)

    async def label(self, labels: Sequence[dict[str, Any]]) -> None:
        """Publish labels, keyed by transaction."""
        rows = [(str(x["transaction_id"]).encode(), json.dumps(x).encode()) for x in labels]
        await self.publish(self.topics.labels, rows)

    async def read(self, topic: TopicSpec) -> list[Any]:
        """Every record of a topic, by partition and offset."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap, enable_auto_commit=False,
            max_partition_fetch_bytes=33_554_432,
        )  # fmt: skip
        await consumer.start()
        try:
            tps = [TopicPartition(topic.name, p) for p in range(topic.partitions)]
            consumer.assign(tps)
            await consumer.seek_to_beginning(*tps)
            ends = await consumer.end_offsets(tps)
            found: list[Any] = []
            for tp in tps:
                while await consumer.position(tp) < ends[tp]:
                    found += (await consumer.getmany(tp, timeout_ms=500)).get(tp, [])
            return sorted(found, key=lambda r: (r.partition, r.offset))
        finally:
            await consumer.stop()

    async def values(self, topic: TopicSpec) -> list[Any]:
        """Every value of a topic, as JSON."""
        return [json.loads(record.value) for record in await self.read(topic)]

    async def collect(
        self, topic: TopicSpec, is_enough: Callable[[list[Any]], bool], why: str
    ) -> list[Any]:
        """Wait until the records of a topic are enough; return them."""
        end = time.monotonic() + DEADLINE_S
        while True:
            found = await self.read(topic)
            if is_enough(found):
                return found
            if time.monotonic() > end:
                tails = "\n".join(p.said[-2_000:] for p in self.processes)
                raise TooLate(f"{topic.name} holds {len(found)} records: {why}\n{tails}")
            await asyncio.sleep(0.2)

    async def scored(self, ids: Iterable[str]) -> list[Any]:
        """Wait until every id has a score; return all scores in words."""
        wanted = set(ids)

        def has_all(found: list[Any]) -> bool:
            return wanted <= {record.key.decode() for record in found}

        records = await self.collect(self.topics.scores, has_all, "not every id is scored")
        return [json.loads(record.value) for record in records]

    async def outcomes(self, n: int) -> list[Any]:
        """Wait for outcomes of n different labels; return all in words."""

        def has_all(found: list[Any]) -> bool:
            return n <= len({tuple(json.loads(r.value)["origin"]) for r in found})

        records = await self.collect(self.topics.outcomes, has_all, f"not {n} labels decided")
        return [json.loads(record.value) for record in records]

    async def replayed(self) -> Learner:
        """The learner that the examples log makes, folded here from its first record."""
        from app import codec  # noqa: PLC0415 - only few tests need it
        from app.records import Record  # noqa: PLC0415 - the same

        plan = FeaturePlan.of(self.settings.features, self.settings.transaction.entities)
        learner = new_learner(self.settings, plan)
        read = codec.read_example
        learner.apply(
            [
                (r.offset, read(Record(r.offset, r.key, r.value, 0)))
                for r in await self.read(self.topics.examples)
            ]
        )
        return learner

    @asynccontextmanager
    async def group(self) -> AsyncIterator[AIOKafkaConsumer]:
        """Somebody who knows what the group has committed, and is not in it."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap, group_id=self.settings.worker.group,
            enable_auto_commit=False,
        )  # fmt: skip
        await consumer.start()
        try:
            yield consumer
        finally:
            await consumer.stop()

    async def committed(self, topic: TopicSpec) -> dict[int, int]:
        """What the group has committed of a topic, by partition; -1: nothing."""
        async with self.group() as group:
            found = {}
            for p in range(topic.partitions):
                offset = await group.committed(TopicPartition(topic.name, p))
                found[p] = -1 if offset is None else offset
            return found

    async def commit_begun(self, topics: Iterable[TopicSpec]) -> None:
        """Have the group, which nobody is in, commit 0 of what it has committed nothing of."""
        async with self.group() as group:
            tps = [TopicPartition(t.name, p) for t in topics for p in range(t.partitions)]
            group.assign(tps)
            begun = {tp: OffsetAndMetadata(0, "") for tp in tps if not await group.committed(tp)}
            await group.commit(begun)

    def close(self) -> None:
        """End what still runs."""
        for process in self.processes:
            if process.popen.poll() is None:
                process.kill()


def transactions(
    n: int, seed: int, first: int = 0, n_cards: int = 12, n_terminals: int = 7
) -> list[dict[str, Any]]:
    """Transactions, five seconds apart, of a few cards at a few terminals.

    All within a day: a label that runs ahead of its transaction waits that long and no longer.
    """
    rng = random.Random(seed)
    start_ms = 1_767_225_600_000  # 2026-01-01
    return [
        {
            "transaction_id": f"t{i}",
            "event_time": start_ms + i * 5_000,
            "card_id": f"c{rng.randrange(n_cards)}",
            "terminal_id": f"s{rng.randrange(n_terminals)}",
            "amount": round(rng.lognormvariate(3, 1), 2),
        }
        for i in range(first, first + n)
    ]


def labels_of(some: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """A label for each, an hour later; about one in ten is a fraud."""
    rng = random.Random(seed)
    return [
        {
            "transaction_id": t["transaction_id"],
            "is_fraud": rng.random() < 0.1,
            "event_time": t["event_time"] + 3_600_000,
            "source": "analyst",
        }
        for t in some
    ]
