"""A history of labels, late, missing and wrong at first: every one leads to one outcome.

Transactions and labels are published in event-time order, a label before the transactions of
its time or later. What came out is then counted against what went in: each label has exactly one
outcome, the learner has learnt what the outcomes say and nothing twice, and who was never
labelled matured as legitimate. The data say when the label that stood last became known; where
there was another before it, that one is taken to say the opposite, half of the time earlier.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import msgspec
import numpy as np
import orjson
import typer
from aiokafka import TopicPartition
from common import data_file, err, kafka, machine, progress, worker
from pyarrow import parquet
from rich.console import Console
from rich.table import Table

from app import codec
from app.config import Settings, load
from app.core.pending import MATURITY
from app.kafka import Reader, Sender, read
from app.learning import LearnTask
from app.records import Example, LabelOutcome, Outcome, Score, Send
from app.testing import Driver
from app.topics import Topics

FILE = "fraudtwin_small.parquet"
DAY_MS = 86_400_000
POLICIES = ("ignore", "relearn")
NAMES = {"terminal_id": "merchant_id"}
ENTITIES = ("card_id", "merchant_id")


class Through(StrEnum):
    """What carries the records."""

    DRIVER = "driver"
    KAFKA = "kafka"


class Item(NamedTuple):
    """One record to be published; at one time labels go first."""

    time_ms: int
    is_transaction: bool
    identity: str
    value: dict[str, Any]


@dataclass
class History:
    """What goes in: records in event-time order, and what is known of each transaction."""

    items: list[Item] = field(default_factory=list)
    times_ms: dict[str, int] = field(default_factory=dict)
    labels_ms: dict[str, list[int]] = field(default_factory=dict)
    frauds: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> History:
        """The transactions of the file and every version of their labels."""
        found = cls()
        for row in parquet.read_table(path).to_pylist():
            found._take(row)
        found.items.sort(key=lambda item: item[:2])
        return found

    @property
    def n_labels(self) -> int:
        """How many labels are published."""
        return sum(not item.is_transaction for item in self.items)

    def steps(self) -> Iterator[list[Item]]:
        """Runs of transactions and runs of labels, by turns."""
        for _, run in groupby(self.items, key=lambda item: item.is_transaction):
            yield list(run)

    def matured(self, maturity_ms: int) -> set[str]:
        """Transactions that no label had reached when they matured; one partition, one clock."""
        times = np.array(sorted(self.times_ms.values()))
        found = set()
        for identity, time_ms in self.times_ms.items():
            at = int(np.searchsorted(times, time_ms + maturity_ms))
            if at < len(times):
                passed_ms = int(times[at])  # the clock that first shows that it is old enough
                if all(label_ms > passed_ms for label_ms in self.labels_ms.get(identity, ())):
                    found.add(identity)
        return found

    def _take(self, row: dict[str, Any]) -> None:
        identity, time_ms = row["payment_id"], _ms(row["initiated_at"])
        value = {name: row[name] for name in ("payment_id", *ENTITIES, "amount")}
        self.items.append(Item(time_ms, True, identity, {**value, "initiated_at": time_ms}))
        self.times_ms[identity] = time_ms
        if row["is_fraud"]:
            self.frauds.add(identity)
        if row["label_available_at"] is None:
            return
        last_ms, is_fraud = _ms(row["label_available_at"]), row["final_label"] == "FRAUD"
        versions = [(last_ms, is_fraud)]
        if row["n_versions"] > 1:
            versions.insert(0, ((time_ms + last_ms) // 2, not is_fraud))
        for label_ms, says in versions:
            told = {"payment_id": identity, "is_fraud": says, "known_at": label_ms}
            self.items.append(Item(label_ms, False, identity, told))
            self.labels_ms.setdefault(identity, []).append(label_ms)


def _ms(time: datetime) -> int:
    return round(time.timestamp() * 1_000)


def configuration(maturity: str, policy: str) -> Path:
    """The default features under this file's names; one partition, so that there is one order."""
    card = resources.files("app.profiles").joinpath("card.toml").read_text()
    for ours, theirs in NAMES.items():
        card = card.replace(f'"{ours}"', f'"{theirs}"')
    card = card.replace(
        "[transaction]", '[transaction]\nid = "payment_id"\ntime = "initiated_at"', 1
    )
    prefix = f"fraudtwin.{maturity}.{policy}"
    text = f"""
[label]
transaction_id = "payment_id"
time = "known_at"

[join]
maturity = "{maturity}"

[learner]
corrections = "{policy}"

[worker]
group = "{prefix}"

[topics]
prefix = "{prefix}."
partitions = 1
"""
    path = Path(tempfile.mkdtemp(prefix="weir-fraudtwin-")) / "weir.toml"
    path.write_text(card + text)
    return path


@dataclass
class Outcomes:
    """What came out: of each label its outcomes, of each example what it was, what was learnt."""

    labels: set[tuple[str, int, int]] = field(default_factory=set)  # published, by position
    outcomes: list[LabelOutcome] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    n_learned: int = 0


def through_driver(settings: Settings, history: History) -> Outcomes:
    """The real stages, with topics as lists."""
    driver, told = Driver(settings), Outcomes()
    with progress() as bar:
        shown = bar.add_task("driver", total=len(history.items), note="")
        for run in history.steps():
            for item in run:
                topic = "transactions" if item.is_transaction else "labels"
                at = driver.publish(topic, item.value)
                if not item.is_transaction:
                    told.labels.add((at.topic, at.partition, at.offset))
            driver.run()
            bar.advance(shown, len(run))
    told.outcomes = driver.read("outcomes")
    told.examples = [one for one in driver.read("examples") if isinstance(one, Example)]
    tasks = driver.processes["worker-0"].flow.tasks.values()
    told.n_learned = next(t.learner.n_learned for t in tasks if isinstance(t, LearnTask))
    return told


class Publisher:
    """Publishes to Apache Kafka, run by run, each answered before the next."""

    def __init__(self, settings: Settings, told: Outcomes) -> None:
        self.settings, self.topics, self.told = settings, Topics.of(settings), told
        self.sender, self.consumer = Sender(settings), Reader(settings).client()
        self.scored: set[str] = set()

    async def run(self, history: History, advance: Any) -> None:
        """Publish everything; return when all is scored, and every label has an outcome."""
        await self.sender.start()
        await self.consumer.start()
        names = (self.topics.scores, self.topics.outcomes, self.topics.examples)
        self.consumer.assign([TopicPartition(topic.name, 0) for topic in names])
        await self.consumer.seek_to_beginning()
        n_labels = n_transactions = 0
        try:
            for run in history.steps():
                await self.sender.deliver(self._send(item) for item in run)
                if run[0].is_transaction:
                    n_transactions += len(run)
                    await self._until(lambda: len(self.scored) >= n_transactions)  # noqa: B023
                else:
                    first, n_labels = n_labels, n_labels + len(run)
                    topic = self.topics.labels.name
                    self.told.labels |= {(topic, 0, i) for i in range(first, n_labels)}
                    await self._until(lambda: len(self.told.outcomes) >= n_labels)  # noqa: B023
                advance(len(run))
            await self._rest()
        finally:
            await self.sender.stop()
            await self.consumer.stop()

    def _send(self, item: Item) -> Send:
        topic = self.topics.transactions if item.is_transaction else self.topics.labels
        key = item.value["card_id"] if item.is_transaction else item.identity
        return Send(topic.name, 0, key.encode(), orjson.dumps(item.value))

    async def _until(self, is_reached: Any, deadline_s: float = 120) -> None:
        until = time.monotonic() + deadline_s
        while not is_reached():
            if time.monotonic() > until:
                err.print(f"[red]no answer[/] for {deadline_s:g} s; see the worker's log")
                sys.exit(1)
            await self._take(1_000)

    async def _rest(self, quiet_s: float = 3) -> None:
        """Take what still comes: an outcome too many would, too."""
        while await self._take(round(quiet_s * 1_000)):
            pass

    async def _take(self, timeout_ms: int) -> int:
        n = 0
        for tp, records in (await self.consumer.getmany(timeout_ms=timeout_ms)).items():
            n += len(records)
            for record in records:
                if tp.topic == self.topics.scores.name:
                    self.scored.add(msgspec.json.decode(record.value, type=Score).transaction_id)
                elif tp.topic == self.topics.outcomes.name:
                    told = msgspec.json.decode(record.value, type=LabelOutcome)
                    self.told.outcomes.append(told)
                else:
                    example = codec.read_example(read(record))
                    if isinstance(example, Example):
                        self.told.examples.append(example)
        return n


def through_kafka(settings: Settings, history: History, config: Path, bootstrap: str) -> Outcomes:
    """A worker process on Apache Kafka."""
    environment = {"WEIR_KAFKA__BOOTSTRAP": bootstrap, "WEIR_WORKER__LOG_LEVEL": "warning"}
    its = settings.model_copy(
        update={"kafka": settings.kafka.model_copy(update={"bootstrap": bootstrap})}
    )
    told = Outcomes()
    with worker(environment, "-c", str(config)) as web, progress() as bar:
        shown = bar.add_task("kafka", total=len(history.items), note="")

        async def publish() -> None:
            # Made inside the loop: its clients belong to it.
            await Publisher(its, told).run(history, lambda n: bar.advance(shown, n))

        asyncio.run(publish())
        with urllib.request.urlopen(f"{web}/metrics", timeout=10) as page:  # noqa: S310
            found = re.search(rb"^weir_examples_learned (\S+)$", page.read(), re.MULTILINE)
    told.n_learned = round(float(found[1])) if found else -1
    return told


def judged(history: History, settings: Settings, told: Outcomes) -> dict[str, Any]:
    """The outcomes in figures, and what is wrong with them: nothing, if all is well."""
    counts = Counter(outcome.outcome for outcome in told.outcomes)
    origins = Counter(outcome.origin for outcome in told.outcomes)
    matured = Counter(e.transaction_id for e in told.examples if e.label_source == MATURITY)
    expected = history.matured(settings.join.maturity)
    relearns = settings.learner.corrections == "relearn"
    taught = counts["learn"] + len(matured) + (counts["corrected"] if relearns else 0)
    checks = {
        "labels without an outcome": len(told.labels - set(origins)),
        "labels with more than one": sum(n > 1 for n in origins.values()),
        "outcomes of no label": len(set(origins) - told.labels),
        "learnt, beyond what the outcomes say": told.n_learned - taught,
        "matured more than once": sum(n > 1 for n in matured.values()),
        "matured otherwise than they should": len(set(matured) ^ expected),
        "matured as fraud": sum(e.is_fraud for e in told.examples if e.label_source == MATURITY),
    }
    never = {identity for identity in history.times_ms if identity not in history.labels_ms}
    return {
        "labels": len(told.labels),
        **{outcome: counts[outcome] for outcome in get_args(Outcome)},
        "matured": len(matured),
        "never labelled": len(set(matured) & never),
        "frauds among those": len(set(matured) & never & history.frauds),
        "examples learnt": told.n_learned,
        "wrong": {what: n for what, n in checks.items() if n},
    }


def main(
    through: Annotated[Through, typer.Option(help="What carries the records.")] = Through.DRIVER,
    maturity: Annotated[
        list[str] | None,
        typer.Option(help="join.maturity, one run each; default: 30d (as shipped), 10d and 3d."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Parquet with the same columns.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Publish a history of labels; count what became of each, for both policies of corrections."""
    history = History.read(data or data_file(FILE))
    runs = [(m, p) for m in maturity or ["30d", "10d", "3d"] for p in POLICIES]
    found: dict[str, dict[str, Any]] = {}

    def play(bootstrap: str | None) -> None:
        for its_maturity, policy in runs:
            config = configuration(its_maturity, policy)
            settings = load(config)
            if bootstrap is None:
                told = through_driver(settings, history)
            else:
                told = through_kafka(settings, history, config, bootstrap)
            found[f"{its_maturity}, {policy}"] = judged(history, settings, told)

    began = time.monotonic()
    if through is Through.KAFKA:
        with kafka("fraudtwin") as bootstrap:
            play(bootstrap)
    else:
        play(None)
    _show(found)
    told = {
        "through": through.value,
        "transactions": len(history.times_ms),
        "runs": found,
        "seconds": round(time.monotonic() - began, 1),
        **machine(),
    }
    if as_json:
        print(json.dumps(told))
    raise typer.Exit(1 if any(run["wrong"] for run in found.values()) else 0)


def _show(found: dict[str, dict[str, Any]]) -> None:
    table = Table("", box=None)
    for run in found:
        table.add_column(run, justify="right")
    first = next(iter(found.values()))
    for row in first:
        cells = [run[row] for run in found.values()]
        table.add_row(row, *("nothing" if cell == {} else str(cell) for cell in cells))
    Console(stderr=True).print(table)


if __name__ == "__main__":
    typer.run(main)
