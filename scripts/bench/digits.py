"""Elec2 and SMTP through Apache Kafka and a worker, in lockstep, against River's own digits.

Each record is published, scored, labelled, learnt and the model adopted before the next is
published; so accuracy and F1 of the scaled logistic regression must equal River's to six places.
A pipeline that loses, doubles, reorders or leaks a single record shows other digits.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
import orjson
import pyarrow.parquet as pq
import typer
from aiokafka import TopicPartition
from common import data_file, err, kafka, machine, progress, worker

from app.config import Settings, load
from app.kafka import Reader, Sender
from app.records import Send
from app.topics import Topics

#: 2020-01-01: any time will do, one record a second.
START_MS = 1_577_836_800_000

#: River says fraud above even odds.
EVEN = 0.5


@dataclass(frozen=True)
class Stream:
    """A labelled stream and what River 0.26.1 reaches on it, prequential, labels at once."""

    file: str
    label: str
    positive: Any
    accuracy: float
    f1: float


STREAMS = {
    "elec2": Stream("elec2.parquet", "class", "UP", 0.822144, 0.777086),
    "smtp": Stream("kdd99_smtp.parquet", "service", 1, 0.999769, 0.421053),
}


def configuration(columns: list[str], prefix: str, bootstrap: str) -> dict[str, str]:
    """Environment of a worker for a stream of numbers with no entity, one partition each."""
    numbers = json.dumps(columns)
    features = json.dumps([{"kind": "number", "field": c} for c in columns])
    return {
        "WEIR_PROFILE": "stream",
        "WEIR_KAFKA__BOOTSTRAP": bootstrap,
        "WEIR_TRANSACTION": f'{{"id":"id","time":"time","numbers":{numbers}}}',
        "WEIR_FEATURES": features,
        "WEIR_TOPICS__PREFIX": prefix,
        "WEIR_TOPICS__PARTITIONS": "1",
        "WEIR_MODEL__NAME": "logistic",
        "WEIR_MODEL__COLD_START": "0",
        "WEIR_MODEL__PARAMS": '{"lr": 0.005}',
        "WEIR_WORKER__GROUP": prefix.rstrip("."),
        "WEIR_WORKER__LOG_LEVEL": "warning",
    }


class Lockstep:
    """Publishes a record or a label and waits for what follows from it."""

    def __init__(self, settings: Settings) -> None:
        self.topics = Topics.of(settings)
        self.sender, self.consumer = Sender(settings), Reader(settings).client()
        self.found: dict[str, dict[str, Any]] = {}

    async def __aenter__(self) -> Self:
        await self.sender.start()
        await self.consumer.start()
        watched = (self.topics.scores, self.topics.outcomes)
        self.consumer.assign([TopicPartition(topic.name, 0) for topic in watched])
        await self.consumer.seek_to_end()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.sender.stop()
        await self.consumer.stop()

    async def ask(self, topic: str, answer: str, identity: str, value: bytes) -> dict[str, Any]:
        """Publish a value; return the record of the topic ``answer`` that tells of it."""
        await self.sender.deliver([Send(topic, 0, identity.encode(), value)])
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for tp, records in (await self.consumer.getmany(timeout_ms=1_000)).items():
                for record in records:
                    told: dict[str, Any] = orjson.loads(record.value)
                    if tp.topic == answer and told["transaction_id"] == identity:
                        return told
        err.print(f"[red]no answer[/] on {answer} for {identity} within 60 s")
        sys.exit(1)


async def measure(name: str, bootstrap: str, limit: int | None) -> dict[str, Any]:
    """One stream in lockstep; its digits beside River's."""
    stream = STREAMS[name]
    table = pq.read_table(data_file(stream.file))
    columns = [c for c in table.column_names if c != stream.label]
    rows = table.select(columns).to_pylist()[:limit]
    labels = [v == stream.positive for v in table[stream.label].to_pylist()][:limit]
    environment = configuration(columns, f"digits-{name}.", bootstrap)
    os.environ.update(environment)
    settings = load()
    scores = np.empty(len(rows))
    began = time.monotonic()
    with worker(environment), progress() as bar:
        shown = bar.add_task(name, total=len(rows), note="")
        async with Lockstep(settings) as step:
            topics = step.topics
            for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
                identity, time_ms = str(i), START_MS + i * 1_000
                transaction = orjson.dumps({"id": identity, "time": time_ms, **row})
                verdict = orjson.dumps({"id": identity, "is_fraud": label, "time": time_ms})
                told = await step.ask(
                    topics.transactions.name, topics.scores.name, identity, transaction
                )
                scores[i] = told["score"]
                told = await step.ask(topics.labels.name, topics.outcomes.name, identity, verdict)
                if told["outcome"] != "learn":
                    err.print(f"[red]label {i}[/] became {told['outcome']}; expected learn")
                    sys.exit(1)
                bar.advance(shown)
    y, said = np.array(labels), scores > EVEN
    hits = int((y & said).sum())
    accuracy = round(float((y == said).mean()), 6)
    f1 = round(2 * hits / (int(y.sum()) + int(said.sum())), 6)
    return {
        "stream": name,
        "records": len(rows),
        "accuracy": accuracy,
        "f1": f1,
        "river_accuracy": stream.accuracy,
        "river_f1": stream.f1,
        "equal": (accuracy, f1) == (stream.accuracy, stream.f1),
        "seconds": round(time.monotonic() - began, 1),
    }


def main(
    stream: Annotated[str, typer.Option(help="elec2, smtp or both.")] = "both",
    limit: Annotated[int | None, typer.Option(help="Only the first so many records.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Elec2 and SMTP through Apache Kafka, in lockstep, against River's published digits."""
    chosen = list(STREAMS) if stream == "both" else [stream]
    if not set(chosen) <= set(STREAMS):
        raise typer.BadParameter(f"{stream}; expected elec2, smtp or both")
    with kafka("digits") as bootstrap:
        results = [asyncio.run(measure(name, bootstrap, limit)) for name in chosen]
    if as_json:
        sys.stdout.write(orjson.dumps({"streams": results, **machine()}).decode() + "\n")
    else:
        for r in results:
            sys.stdout.write(
                f"{r['stream']}: accuracy {r['accuracy']:.6f} (River {r['river_accuracy']:.6f}), "
                f"F1 {r['f1']:.6f} (River {r['river_f1']:.6f}), {r['seconds']} s\n"
            )
    sys.exit(0 if limit or all(r["equal"] for r in results) else 1)


if __name__ == "__main__":
    typer.run(main)
