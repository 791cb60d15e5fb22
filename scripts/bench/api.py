"""POST /v1/score at a steady rate beside a running stream, and what idle readers of events cost.

An open-loop client, a process of its own, sends request i at ``start + i / rate``, whatever the
worker does, and its latency counts from that time (no coordinated omission). Meanwhile a stream of
transactions passes through the topics. Both use the same entities, so that read-only decisions peek
at what the stream changes. Afterwards the stream's scores are held against those of a worker that
was asked nothing: equal features, one by one, say that asking changed nothing. Then ``--readers``
open ``/v1/events`` and stay silent; their cost is the worker's CPU beside as long without them.

Worker, broker, stream and client share the cores of one machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from typing import Annotated, Any

import aiohttp
import numpy as np
import orjson
import typer
from aiokafka import AIOKafkaConsumer, TopicPartition
from common import ROOT, free_port, kafka, machine, wait_until_ready
from measured import cpu, create_topics, end_orderly

from app.synth import CARD_FIELDS, World, items, simulate

#: To start the client: it imports, connects, and waits for its time.
_LEAD_S = 6.0
_LATE_S = 30.0
_START_MS = 1_767_225_600_000  # 2026-01-01


def main(  # noqa: PLR0913, PLR0917 - options
    rate: Annotated[float, typer.Option(min=1.0, help="Requests a second.")] = 500.0,
    stream: Annotated[float, typer.Option(min=1.0, help="Transactions a second.")] = 1_000.0,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long.")] = 30.0,
    readers: Annotated[int, typer.Option(min=0, help="Idle readers of events.")] = 100,
    bootstrap: Annotated[str | None, typer.Option(help="A broker that runs already.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure, and print the figures."""
    end_orderly()
    with ExitStack() as stack:
        broker = bootstrap or stack.enter_context(kafka("api"))
        traffic = _traffic(round(stream * seconds))
        asked = _run(stack, broker, traffic, rate=rate, stream=stream, readers=readers)
        quiet = _run(stack, broker, traffic, rate=0.0, stream=stream, readers=0)
    differ = sum(asked["rows"][name] != quiet["rows"].get(name) for name in asked["rows"])
    told = {
        **machine(),
        "rate": rate,
        "stream": stream,
        "seconds": seconds,
        **asked["told"],
        "n_scored": len(asked["rows"]),
        "n_scored_quiet": len(quiet["rows"]),
        "n_scores_that_differ": differ,
        "cpu_without_requests": quiet["told"]["cpu"],
    }
    sys.stdout.write(json.dumps(told) + "\n" if as_json else _words(told))


def _words(told: dict[str, Any]) -> str:
    return "".join(f"{name:26} {value}\n" for name, value in told.items())


def _traffic(n: int) -> list[dict[str, Any]]:
    """Transactions of a simulated world, and none of its labels: features must be comparable."""
    world = World(seed=7, start_ms=_START_MS, per_day=20_000.0)
    found: list[dict[str, Any]] = []
    for day in simulate(world):
        paid = (item.value for item in items(day, CARD_FIELDS) if item.kind == "transaction")
        found += [value for value in paid if isinstance(value, dict)]
        if len(found) >= n:
            return found[:n]
    return found


def _run(  # noqa: PLR0913 - one run's terms
    stack: ExitStack, broker: str, traffic: list[dict[str, Any]], *, rate: float, stream: float,
    readers: int,
) -> dict[str, Any]:  # fmt: skip
    """One worker with topics of its own: the stream passes, and somebody asks."""
    port, prefix = free_port(), f"api{free_port()}."
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    env = {
        "WEIR_KAFKA__BOOTSTRAP": broker,
        "WEIR_TOPICS__PREFIX": prefix,
        # Of several partitions the hops meet in an order of their own at each run.
        "WEIR_TOPICS__PARTITIONS": "1",
        "WEIR_WORKER__GROUP": prefix + "g",
        "WEIR_WORKER__DATA_DIR": folder,
        "WEIR_WORKER__WEB_PORT": str(port),
        "WEIR_WORKER__LOG_LEVEL": "warning",
    }
    create_topics(env)
    command = [sys.executable, "-m", "app", "worker", "--once"]
    process = subprocess.Popen(command, env={**os.environ, **env}, cwd=ROOT, stdout=sys.stderr)
    try:
        wait_until_ready(process, port)
        return asyncio.run(
            _measure(process.pid, port, broker, prefix, traffic, rate, stream, readers)
        )
    finally:
        process.terminate()
        process.wait(30)


async def _measure(  # noqa: PLR0913, PLR0917 - one run's terms
    pid: int, port: int, broker: str, prefix: str, traffic: list[dict[str, Any]], rate: float,
    stream: float, readers: int,
) -> dict[str, Any]:  # fmt: skip
    start_s = time.monotonic() + _LEAD_S
    seconds = len(traffic) / stream
    client = None
    if rate:
        told = {
            "port": port, "rate": rate, "seconds": seconds, "start_s": start_s,
            "transactions": traffic[-2_000:],
        }  # fmt: skip
        command = [sys.executable, __file__, "ask"]
        client = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        asking = asyncio.create_task(client.communicate(orjson.dumps(told)))
    publishing = asyncio.create_task(_publish(broker, prefix, traffic, stream, start_s))
    await asyncio.sleep(max(start_s - time.monotonic(), 0.0))
    before = cpu(pid)
    await publishing
    used = sum(cpu(pid)) - sum(before)
    figures: dict[str, Any] = {"cpu": round(used / seconds, 3)}
    if client is not None:
        figures |= orjson.loads((await asking)[0])
    rows = await _rows(broker, prefix, len(traffic))
    if readers:
        figures["cpu_idle"] = await _idle(pid, port, 0)
        figures["cpu_idle_with_readers"] = await _idle(pid, port, readers)
        figures["readers"] = readers
    return {"told": figures, "rows": rows}


async def _publish(
    broker: str, prefix: str, traffic: list[dict[str, Any]], stream: float, start_s: float
) -> None:
    """The stream, at its rate."""
    from app.client import AsyncClient  # noqa: PLC0415 - the client that asks has no need of it
    from app.config import load  # noqa: PLC0415

    settings = load(
        None, "card", kafka={"bootstrap": broker}, topics={"prefix": prefix, "partitions": 1}
    )
    async with AsyncClient(settings) as weir:
        n = 0
        while n < len(traffic):
            due = min(len(traffic), int((time.monotonic() - start_s) * stream) + 1)
            await weir.publish_many(traffic[n : max(due, n)])
            n = max(due, n)
            await asyncio.sleep(0.002)


async def _rows(broker: str, prefix: str, n: int) -> dict[str, list[Any]]:
    """Features of every score, by the id of its transaction."""
    found: dict[str, list[Any]] = {}
    consumer = AIOKafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(f"{prefix}scores", 0)])
        until_s = time.monotonic() + _LATE_S
        while len(found) < n and time.monotonic() < until_s:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    told = orjson.loads(record.value)
                    found.setdefault(told["transaction_id"], told["features"])
    finally:
        await consumer.stop()
    return found


async def _idle(pid: int, port: int, readers: int, seconds: float = 20.0) -> float:
    """The worker's share of a core with so many readers of events that hear little."""
    streams = []
    for _ in range(readers):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        streams.append((asyncio.create_task(_swallow(reader)), writer))
    await asyncio.sleep(3.0)
    before, at_s = cpu(pid), time.monotonic()
    await asyncio.sleep(seconds)
    used, took_s = sum(cpu(pid)) - sum(before), time.monotonic() - at_s
    for task, writer in streams:
        task.cancel()
        writer.close()
    return round(used / took_s, 4)


async def _swallow(reader: asyncio.StreamReader) -> None:
    while await reader.read(65_536):
        pass


async def _ask() -> None:
    """The client: its terms come on standard input, its figures go to standard output."""
    told = orjson.loads(sys.stdin.buffer.read())
    n = round(told["rate"] * told["seconds"])
    latencies, statuses = np.full(n, np.nan), dict[int, int]()
    url = f"http://127.0.0.1:{told['port']}/v1/score"
    pool = told["transactions"]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)) as session:

        async def one(i: int) -> None:
            due_s = told["start_s"] + i / told["rate"]
            value = orjson.dumps({**pool[i % len(pool)], "transaction_id": f"asked-{i}"})
            headers = {"content-type": "application/json"}
            async with session.post(url, data=value, headers=headers) as answer:
                await answer.read()
                latencies[i] = time.monotonic() - due_s
                statuses[answer.status] = statuses.get(answer.status, 0) + 1

        asked = []
        for i in range(n):
            wait_s = told["start_s"] + i / told["rate"] - time.monotonic()
            if wait_s > 0.001:  # noqa: PLR2004 - a loop's own grain
                await asyncio.sleep(wait_s)
            asked.append(asyncio.ensure_future(one(i)))
        await asyncio.gather(*asked)
    shares = {f"p{share:g}_ms": float(np.percentile(latencies, share)) for share in (50, 95, 99)}
    figures = {name: round(1_000.0 * value, 2) for name, value in shares.items()}
    sys.stdout.write(json.dumps({**figures, "statuses": statuses}))


if __name__ == "__main__":
    if sys.argv[1:] == ["ask"]:
        asyncio.run(_ask())
    else:
        typer.run(main)
