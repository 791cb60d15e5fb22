"""The web server and the client on Apache Kafka: real processes, real sockets."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from app.client import AsyncClient, Client
from app.errors import Malformed
from tests.integration.harness import Process, labels_of, transactions, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def post(process: Process, path: str, value: Any) -> tuple[int, Any]:
    """Status and answer of a POST."""
    asked = urllib.request.Request(
        f"http://127.0.0.1:{process.port}{path}",
        json.dumps(value).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310
            return int(answer.status), json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


async def test_any_worker_of_a_group_answers(make_world):
    """Two workers share the partitions; each answers of all entities, and records, alike."""
    world = make_world(policy={"threshold": "0.0"}, topics={"partitions": 4})
    await world.create_topics()
    workers = [await world.start().ready(), await world.start().ready()]
    await asyncio.gather(*[worker.ready() for worker in workers])
    some = transactions(60, seed=3)
    await world.transact(some[:40])
    await world.scored([t["transaction_id"] for t in some[:40]])
    for one in some[40:50]:
        told = [await asyncio.to_thread(post, w, "/v1/score", one) for w in workers]
        assert [200, 200] == [status for status, _ in told], told
        assert told[0][1]["features"] == told[1][1]["features"]
        path = "/v1/score?record=true"
        status, recorded = await asyncio.to_thread(post, workers[0], path, one)
        assert (200, told[0][1]["features"]) == (status, recorded["features"]), recorded
    for one in some[:10]:
        for worker in workers:
            assert 200 == worker.get(f"/v1/transactions/{one['transaction_id']}")[0]
            assert 200 == worker.get(f"/v1/entities/card_id/{one['card_id']}")[0]

    def totals() -> list[int]:
        return [json.loads(worker.get("/v1/alerts?limit=1")[1])["total"] for worker in workers]

    await until(lambda: min(totals()) >= 50, "not every alert is on both boards")
    assert [50, 50] == totals()


async def test_it_ends_at_once_with_readers_of_events(make_world):
    """SIGTERM, as a service manager sends it: nobody who listens holds it up."""
    world = make_world()
    await world.create_topics()
    worker = await world.start().ready()
    streams = [await asyncio.open_connection("127.0.0.1", worker.port) for _ in range(5)]
    for reader, writer in streams:
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await reader.readuntil(b"event: hello")
    started_s = time.monotonic()
    worker.popen.send_signal(signal.SIGINT)
    assert 0 == await worker.ended(), worker.said
    assert time.monotonic() - started_s < 20.0
    for _, writer in streams:
        writer.close()


async def test_the_client_publishes_labels_and_subscribes(make_world):
    """Each alert, also after a subscriber that ended without having handled its last."""
    world = make_world(policy={"threshold": "0.0"})
    await world.create_topics()
    await world.start().ready()
    some = transactions(20, seed=5)
    async with AsyncClient(world.settings) as weir:
        with pytest.raises(Malformed, match="amount"):
            await weir.publish({**some[0], "amount": "12,50"})
        await weir.publish_many(some)
        for label in labels_of(some, seed=5)[:5]:
            told = {"is_fraud": label["is_fraud"], "source": "analyst"}
            await weir.label(label["transaction_id"], time_ms=label["event_time"], **told)
        assert {"learn"} == {one["outcome"] for one in await world.outcomes(5)}
        handled: list[str] = []
        alerts = weir.alerts("desk")
        async for alert in alerts:
            if len(handled) == 12:
                break  # this one was not handled
            handled.append(alert.transaction_id)
        await alerts.aclose()  # type: ignore[attr-defined]
        # A worker that died says its last alerts again.
        again = (await world.read(world.topics.alerts))[0]
        async with world.producer() as producer:
            await producer.send_and_wait(
                world.topics.alerts.name, again.value, key=again.key,
                partition=again.partition, headers=list(again.headers),
            )  # fmt: skip
        rest: list[str] = []
        alerts = weir.alerts("desk")
        async for alert in alerts:
            rest.append(alert.transaction_id)
            if len({*handled, *rest}) == 20:
                break
        await alerts.aclose()  # type: ignore[attr-defined]
    assert {t["transaction_id"] for t in some} == {*handled, *rest}
    assert len(rest) == len(set(rest)), "what a worker says twice is given once"


async def test_the_examples_in_python_run(make_world):
    """Those of docs/api.md, as they stand there; the last one until its first alert."""
    world = make_world(policy={"threshold": "0.0"})
    await world.create_topics()
    await world.start().ready()
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert 3 == len(examples)
    for example in examples[:2]:
        assert Client.__name__ in example
        await asyncio.to_thread(exec, example, {"settings": world.settings})
    opened: list[str] = []

    class Enough(Exception):
        """The example would go on for ever."""

    def open_case(transaction_id: str, score: float, reasons: list[str]) -> None:
        opened.append(transaction_id)
        raise Enough

    lines = "".join(f"    {line}\n" for line in examples[2].splitlines())
    told: dict[str, Any] = {"settings": world.settings, "open_case": open_case}
    exec(f"async def example():\n{lines}", told)  # noqa: S102 - it is ours
    with pytest.raises(Enough):
        await asyncio.wait_for(told["example"](), 60)
    assert ["t-2001"] == opened
    assert ["learn"] == [one["outcome"] for one in await world.outcomes(1)]
