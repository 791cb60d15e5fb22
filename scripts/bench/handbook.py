"""One online pass over transactions with the Handbook's columns: every one scored, once.

Through the backtest, or published through Apache Kafka and a worker. There the labels that are
due are published and their outcomes awaited before the next transactions are, in the same
steps as in the backtest; so both give the same scores, but for what arrived in another order.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import orjson
import typer
from aiokafka import TopicPartition
from common import data_file, err, kafka, machine, progress, worker
from numpy.typing import NDArray

from app.backtest import Backtest, due_after, due_whole_days
from app.config import Settings, load
from app.core.drift.channels import HOUR_MS
from app.core.measures.ranking import Ranking
from app.core.pending import SUMMARY_SCORES
from app.files import Columns, read_columns, write_rows
from app.kafka import Reader, Sender
from app.records import LabelOutcome, Score, Send
from app.topics import Topics

#: The shared file begins on 2018-04-01, with a month in which frauds only begin to be simulated:
#: a model whose old examples do not fade begins after it. The test weeks end on 2018-09-04.
START = {"all": "2018-04-01", "handbook": "2018-05-01"}
STOP = "2018-09-05"
PREFIX = "handbook."


class Through(StrEnum):
    """What carries the transactions."""

    BACKTEST = "backtest"
    KAFKA = "kafka"


class Labels(StrEnum):
    """When labels are known: to the model, and to the features that look at earlier frauds.

    ``7d``: both 7 days after the transaction, to the second. ``D+8``: both when day D + 8 begins.
    ``book``: as the book has it, the model from day D + 8, its features after 7 days.
    """

    WEEK = "7d"
    DAYS = "D+8"
    BOOK = "book"


#: What the card profile's fields are called in the Handbook's columns.
NAMES = {'"card_id"': '"CUSTOMER_ID"', '"terminal_id"': '"TERMINAL_ID"', '"amount"': '"TX_AMOUNT"'}


def configuration(features: str) -> Path:
    """A configuration file: the book's features, or the default profile under the book's names."""
    text = 'profile = "handbook"\n'
    if features == "all":
        card = resources.files("app.profiles").joinpath("card.toml").read_text()
        for ours, theirs in NAMES.items():
            card = card.replace(ours, theirs)
        text += card.replace(
            "[transaction]", '[transaction]\nid = "TRANSACTION_ID"\ntime = "TX_DATETIME"'
        )
    path = Path(tempfile.mkdtemp(prefix="weir-handbook-")) / "weir.toml"
    path.write_text(text)
    return path


def period(columns: Columns, start: str, stop: str) -> Columns:
    """The transactions from one day to another, that one not included."""
    days = np.array([start, stop], "datetime64[ms]").astype(np.int64)
    return columns.between(int(days[0]), int(days[1]))


def noisy(labels: np.ndarray[Any, Any], share: float, seed: int) -> np.ndarray[Any, Any]:
    """Labels of which a share says the opposite, both ways alike; those that say nothing stay."""
    flips = (np.random.default_rng(seed).random(len(labels)) < share) & (labels >= 0)
    return np.where(flips, 1 - labels, labels).astype(labels.dtype)


class Publisher:
    """Publishes what a backtest would fold, step by step, and collects the scores."""

    def __init__(self, settings: Settings, columns: Columns, web: str) -> None:
        self.web = web
        self.settings, self.columns, self.topics = settings, columns, Topics.of(settings)
        self.sender, self.consumer = Sender(settings), Reader(settings).client()
        self.scores = np.full(len(columns), np.nan)
        self.at = {identity: i for i, identity in enumerate(columns.ids)}
        self.n_outcomes = self.n_scores = 0
        self.outcomes: dict[str, int] = {}

    async def run(self, due_ms: np.ndarray[Any, Any], advance: Any) -> None:
        """Publish everything; return when every transaction was scored and every label learnt."""
        await self.sender.start()
        await self.consumer.start()
        self.consumer.assign(
            [
                TopicPartition(topic.name, p)
                for topic in (self.topics.scores, self.topics.outcomes)
                for p in range(topic.partitions)
            ]
        )
        await self.consumer.seek_to_beginning()
        steps = Backtest(self.settings).steps(self.columns, due_ms, due_ms)
        n_summaries = self._n_summaries()
        n_labels = 0
        try:
            for labels, _, start, stop in steps:
                n_labels += len(labels)
                await self.sender.deliver(self._label(int(i), int(due_ms[i])) for i in labels)
                await self._until(lambda: self.n_outcomes >= n_labels)  # noqa: B023
                await self.sender.deliver(self._transaction(i) for i in range(start, stop))
                await self._until(lambda: self.n_scores >= stop)  # noqa: B023
                self._until_learnt(n_labels + int(n_summaries[stop - 1]))
                advance(stop - start)
        finally:
            await self.sender.stop()
            await self.consumer.stop()

    def _n_summaries(self) -> NDArray[np.int64]:
        """How many summaries there are once each transaction is scored, shape (n,)."""
        hours = np.maximum.accumulate(self.columns.times_ms) // HOUR_MS
        at = np.arange(len(hours))
        is_full = at % SUMMARY_SCORES == SUMMARY_SCORES - 1
        is_later = np.diff(hours, prepend=hours[:1]) > 0  # ends the run before it, if there is one
        ends_run = is_later & (at % SUMMARY_SCORES > 0)
        return np.cumsum(is_full.astype(np.int64) + ends_run)

    def _transaction(self, i: int) -> Send:
        key = self.columns.keys[0][i].encode()
        of, columns = self.settings.transaction, self.columns
        value = {of.id: columns.ids[i], of.time: int(columns.times_ms[i])}
        value |= {name: k[i] for name, k in zip(of.entities, columns.keys, strict=True)}
        value |= {name: float(v[i]) for name, v in columns.numbers.items()}
        return Send(self.topics.transactions.name, 0, key, orjson.dumps(value))

    def _label(self, i: int, due_ms: int) -> Send:
        of, identity = self.settings.label, self.columns.ids[i]
        value = {
            of.transaction_id: identity,
            of.value: int(self.columns.labels[i]),
            of.time: due_ms,
        }
        return Send(self.topics.labels.name, 0, identity.encode(), orjson.dumps(value))

    async def _until(self, is_reached: Any, deadline_s: float = 120) -> None:
        until = time.monotonic() + deadline_s
        while not is_reached():
            if time.monotonic() > until:
                err.print(f"[red]no answer[/] for {deadline_s:g} s; see the worker's log")
                sys.exit(1)
            for tp, records in (await self.consumer.getmany(timeout_ms=1_000)).items():
                for record in records:
                    self._take(tp.topic, record.value)

    def _until_learnt(self, n: int) -> None:
        """Wait until the learner has taken n records: labels, and summaries of scores, too."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with urllib.request.urlopen(f"{self.web}/metrics", timeout=10) as page:  # noqa: S310
                found = re.search(rb"^weir_model_position (\S+)$", page.read(), re.MULTILINE)
            if found and float(found[1]) >= n - 1:
                return
        err.print("[red]no answer[/] of the learner for 120 s; see the worker's log")
        sys.exit(1)

    def _take(self, topic: str, value: bytes) -> None:
        if topic == self.topics.scores.name:
            told = _score(value)
            at = self.at[told.transaction_id]
            if np.isnan(self.scores[at]):  # the first score of an id is the canonical one
                self.scores[at] = told.score
                self.n_scores += 1
        else:
            outcome = _outcome(value).outcome
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
            self.n_outcomes += 1


_score = msgspec.json.Decoder(Score).decode
_outcome = msgspec.json.Decoder(LabelOutcome).decode


def through_backtest(
    settings: Settings, columns: Columns, due_ms: Any, told_ms: Any
) -> dict[str, Any]:
    """Scores of a backtest, and what it learnt."""
    with progress() as bar:
        shown = bar.add_task("backtest", total=len(columns), note="")
        found = Backtest(settings).run(columns, due_ms, lambda n: bar.advance(shown, n), told_ms)
    ap = found.learner.evaluation.average_precision
    return {"scores": found.scores, "learned": found.learner.n_learned, "prequential_ap": ap}


def through_kafka(
    settings: Settings, columns: Columns, due_ms: Any, environment: dict[str, str], config: Path
) -> dict[str, Any]:
    """Scores that came back from a worker, and what became of the labels."""
    with worker(environment, "-c", str(config)) as web, progress() as bar:
        shown = bar.add_task("kafka", total=len(columns), note="")

        async def publish() -> Publisher:
            publisher = Publisher(settings, columns, web)
            await publisher.run(due_ms, lambda n: bar.advance(shown, n))
            return publisher

        publisher = asyncio.run(publish())
    return {"scores": publisher.scores, "outcomes": publisher.outcomes}


def main(  # noqa: PLR0913, PLR0917 - a command's options are its arguments
    through: Annotated[Through, typer.Option(help="What carries the transactions.")] = (
        Through.BACKTEST
    ),
    model: Annotated[str | None, typer.Option(help="Model; default: weir's own default.")] = None,
    features: Annotated[
        str | None,
        typer.Option(help="handbook (the book's 15) or all; default: all, handbook for logistic."),
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="Parquet: transaction_id, score.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Parquet with the Handbook's columns, used whole.")
    ] = None,
    labels: Annotated[
        Labels | None, typer.Option(help="When labels are known; default: book, through Kafka 7d.")
    ] = None,
    noise: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Flip this share of the labels, both ways, in all that is learnt and in what the "
            "features look at; scores are judged against the true ones.",
        ),
    ] = 0.0,
    noise_seed: Annotated[int, typer.Option(min=0, help="Equal seeds flip the same.")] = 42,
    *,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Score transactions with the Handbook's columns, online, in one pass."""
    chosen = features or ("handbook" if model == "logistic" else "all")
    environment = {"WEIR_TOPICS__PREFIX": PREFIX, "WEIR_TOPICS__PARTITIONS": "1"}
    if model:
        environment["WEIR_MODEL__NAME"] = model
    os.environ.update(environment)
    config = configuration(chosen)
    settings = load(config)
    columns = read_columns(data or data_file("handbook_transactions.parquet"), settings)
    if data is None:
        columns = period(columns, START[chosen], STOP)
    true = columns.labels
    if noise:
        columns = replace(columns, labels=noisy(true, noise, noise_seed))
    known = labels or (Labels.WEEK if through is Through.KAFKA else Labels.BOOK)
    if through is Through.KAFKA and known is Labels.BOOK:
        raise typer.BadParameter("through Kafka a label is one record: expected 7d or D+8")
    days, week = due_whole_days(columns.times_ms, 8), due_after(columns.times_ms, 7 * 86_400_000)
    due_ms = week if known is Labels.WEEK else days
    began = time.monotonic()
    told: dict[str, Any] = {}
    found = through_backtest(settings, columns, due_ms, days if known is Labels.DAYS else week)
    told["backtest_seconds"] = round(time.monotonic() - began, 1)
    if through is Through.KAFKA:
        with kafka("handbook") as bootstrap:
            environment |= {"WEIR_KAFKA__BOOTSTRAP": bootstrap, "WEIR_WORKER__LOG_LEVEL": "warning"}
            os.environ.update(environment)
            began = time.monotonic()
            back = through_kafka(load(config), columns, due_ms, environment, config)
            told["kafka_seconds"] = round(time.monotonic() - began, 1)
        differ = back["scores"] != found["scores"]
        told["scores_that_differ"] = int(differ.sum())
        told["largest_difference"] = float(np.abs(back["scores"] - found["scores"]).max())
        found |= back
    if scores:
        ids = [int(i) for i in columns.ids]
        write_rows(scores, {"transaction_id": ids, "score": found["scores"]})
    if noise:
        # The learner judges by what it is told; here the truth is known.
        ranking, is_known = Ranking(), true >= 0
        ranking.update(found["scores"][is_known], true[is_known] == 1)
        told |= {
            "noise": noise,
            "noise_seed": noise_seed,
            "flipped": int((true != columns.labels).sum()),
            "true_ap": ranking.average_precision,
            "true_auc": ranking.roc_auc,
        }
    told |= {
        "transactions": len(columns),
        "model": settings.model.name,
        "features": chosen,
        "labels": known.value,
        **{name: value for name, value in found.items() if name != "scores"},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **machine(),
    }
    sys.stdout.write((json.dumps(told) if as_json else _lines(told)) + "\n")


def _lines(told: dict[str, Any]) -> str:
    return "\n".join(f"{name:20} {value}" for name, value in told.items())


if __name__ == "__main__":
    typer.run(main)
