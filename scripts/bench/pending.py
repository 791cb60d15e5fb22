"""What scored transactions that wait for their labels cost: in memory, and on disk.

One partition of the join as a worker runs it, without a broker: scores of 1.2 KB as the default
card profile makes them, in batches (``--batch``), a commit after every four. Each way (``memory``,
``disk``) and size in a process of its own:

- ``us``: CPU a score while they pile up, all threads, RocksDB's included; ``us_by_the_clock`` too.
- ``steady_us``: the same while for each score one matures, and one is forgotten.
- ``label_us``: CPU a label of a transaction drawn at random from all that wait.
- ``rss_bytes``, ``disk_bytes``: of one that waits. ``rss_mb`` is what the process has gained.
- ``restart_s``: until a process that begins with an empty memory may go on, by the clock, and
  ``read_again``, how many scores that took. The broker's part is not in it.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import err, machine, progress
from measured import end_orderly, rss_bytes

from app import codec
from app.config import Settings, load
from app.core.features import FeaturePlan
from app.join import JoinStage, JoinTask
from app.metrics import Metrics
from app.records import ModelVersion, Partition, Record, Score, Source
from app.tasks import Committed, Effects
from app.topics import Topics

_START_MS = 1_767_225_600_000
_STEP_MS = 10
#: Scores whose features are their own; the others repeat them under other names and times.
_MADE = 4_096
#: As wide as any name or time, to be put in their place.
_NAME, _TIME_MS = "transaction-0000000000", 1_000_000_000_000
_COMMIT_EVERY = 4
_LABELS = 20_000
_DAY_MS = 86_400_000


def _settings(folder: Path | None, n: int, **join: Any) -> Settings:
    room = {"pending_max": max(2 * n, 16), "disk": folder}
    return load(profile="card", topics={"partitions": 1}, join={**room, **join})


def _values(settings: Settings) -> list[bytes]:
    """Scores as a worker writes them, under one name and time."""
    plan, rng = FeaturePlan.of(settings.features, settings.transaction.entities), random.Random(1)
    noise = np.random.default_rng(1).lognormal(2.0, 1.0, (_MADE, len(plan.names)))
    return [
        codec.encode(
            Score(
                transaction_id=_NAME,
                time_ms=_TIME_MS,
                entities={"card_id": f"card-{rng.randrange(10**6):07}", "terminal_id": f"t-{i:05}"},
                amount=round(rng.lognormvariate(3, 1), 2),
                score=rng.random(),
                is_alert=False,
                features=noise[i].tolist(),
                feature_schema=plan.schema,
                model=ModelVersion("forest", 10**6 + i, "0123456789abcdef"),
                source=Source("weir.transactions", 0, 10**9 + i, _TIME_MS),
            )
        )
        for i in range(_MADE)
    ]


class Log:
    """Scores by offset, made when they are asked for."""

    def __init__(self, settings: Settings) -> None:
        """Make those that the others repeat."""
        self._values = _values(settings)
        self.bytes = sum(map(len, self._values)) / _MADE

    def between(self, first: int, end: int, batch: int) -> Iterator[list[Record]]:
        """Records in batches."""
        for begin in range(first, end, batch):
            yield [self._record(i) for i in range(begin, min(begin + batch, end))]

    def _record(self, i: int) -> Record:
        name, time_ms = f"transaction-{i:010}".encode(), b"%d" % (_START_MS + i * _STEP_MS)
        value = self._values[i % _MADE].replace(_NAME.encode(), name)
        return Record(i, name, value.replace(b"%d" % _TIME_MS, time_ms), 0)


class Run:
    """One partition, and how far it was read."""

    def __init__(self, settings: Settings) -> None:
        """Begin with nothing."""
        self.settings = settings
        self.stage = JoinStage(settings, Topics.of(settings), Metrics())
        self.task: JoinTask = self.stage.task(0)
        self.task.ranges({})
        self.task.start()
        self.committed: dict[Partition, Committed] = {}
        self.used_s = 0.0

    def take(self, at: Partition, batches: Iterator[list[Record]]) -> float:
        """Apply batches and commit; CPU seconds, the making of the records not included."""
        used_s = 0.0
        for number, records in enumerate(batches):
            began_s = time.process_time()
            self.task.apply(at, records, 0, Effects())
            if number % _COMMIT_EVERY == _COMMIT_EVERY - 1:
                self.commit(at, records[-1].offset + 1)
            used_s += time.process_time() - began_s
        began_s = time.process_time()
        self.commit(at, records[-1].offset + 1)
        return used_s + time.process_time() - began_s

    def commit(self, at: Partition, offset: int) -> None:
        """As the loop does."""
        self.committed[at] = Committed(offset, self.task.note(at, offset))
        self.task.committed({at: self.committed[at]})

    def restart(self, log: Log, batch: int) -> tuple[float, int]:
        """Begin with an empty memory; seconds by the clock, and how many scores were read."""
        self.task.close()
        del self.task
        gc.collect()
        began_s, made_s = time.monotonic(), 0.0
        self.task = self.stage.task(0)
        for wanted in self.task.ranges(self.committed):
            if wanted.partition != self.task.scores:
                continue
            batches = log.between(wanted.start or 0, wanted.stop or 0, batch)
            while True:
                making_s = time.monotonic()
                records = next(batches, None)
                made_s += time.monotonic() - making_s
                if records is None:
                    break
                self.task.restore(wanted.partition, records)
        self.task.start()
        return time.monotonic() - began_s - made_s, self.task.n_read_again


def _labels(settings: Settings, n: int, batch: int) -> Iterator[list[Record]]:
    """Labels of transactions drawn at random, all legitimate, some twice."""
    rng, of = random.Random(2), settings.label
    for first in range(0, _LABELS, batch):
        yield [
            Record(
                first + i,
                None,
                codec.encode({
                    of.transaction_id: f"transaction-{rng.randrange(n):010}",
                    of.value: False, of.time: _START_MS + n * _STEP_MS,
                }),
                0,
            )
            for i in range(min(batch, _LABELS - first))
        ]  # fmt: skip


def waiting(n: int, batch: int, where: str) -> dict[str, Any]:
    """Let ``n`` wait, in memory or in a folder; what that takes."""
    with tempfile.TemporaryDirectory(prefix="weir-pending-") as told:
        folder = Path(told) if where == "disk" else None
        run = Run(_settings(folder, n))
        log = Log(run.settings)
        gc.collect()
        gc.freeze()
        before, began_s = rss_bytes(os.getpid()), time.monotonic()
        used_s = run.take(run.task.scores, log.between(0, n, batch))
        taken_s = time.monotonic() - began_s
        rss = rss_bytes(os.getpid()) - before
        disk = sum(p.stat().st_size for p in Path(told).rglob("*") if p.is_file())
        label_s = run.take(run.task.labels, _labels(run.settings, n, batch))
        restart_s, read_again = run.restart(log, batch)
        run.task.close()
        return {
            "where": where,
            "waiting": len(run.task.join),
            "score_bytes": log.bytes,
            "us": used_s * 1e6 / n,
            "us_by_the_clock": taken_s * 1e6 / n,
            "label_us": label_s * 1e6 / _LABELS,
            "rss_mb": rss / 1e6,
            "rss_bytes": rss / n,
            "disk_bytes": disk / n,
            "restart_s": restart_s,
            "read_again": read_again,
        }


def steady(n: int, batch: int, where: str) -> dict[str, Any]:
    """Let one mature and one be forgotten for each that comes, after ``n`` of them."""
    with tempfile.TemporaryDirectory(prefix="weir-pending-") as told:
        folder = Path(told) if where == "disk" else None
        half = f"{n * _STEP_MS // 2 // 1_000}s"
        run = Run(_settings(folder, n, maturity=half, forget=half, negatives=0.1))
        log = Log(run.settings)
        run.take(run.task.scores, log.between(0, n, batch))
        used_s = run.take(run.task.scores, log.between(n, n + n // 2, batch))
        run.task.close()
        return {"where": where, "steady_waiting": n, "steady_us": used_s * 1e6 / (n // 2)}


def _in_child(measured: Any, *given: Any) -> dict[str, Any]:
    """The same in a process that ends after it: memory is given back to nobody else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: dict[str, Any] = pool.apply(measured, given)
        return found


def main(
    sizes: Annotated[str, typer.Option(help="How many wait on disk, one run each.")] = "1000000",
    memory: Annotated[int, typer.Option(min=0, help="How many in memory; 0: none.")] = 1_000_000,
    turning: Annotated[int, typer.Option(min=1_000, help="How many in steady state.")] = 200_000,
    batch: Annotated[int, typer.Option(min=1, help="Records at once.")] = 500,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on the last line.")
    ] = False,
) -> None:
    """Bytes and microseconds of a transaction that waits; seconds of a restart."""
    end_orderly()
    jobs = [(waiting, int(size), "disk") for size in sizes.split(",")]
    jobs += [(waiting, memory, "memory")] if memory else []
    jobs += [(steady, turning, "disk"), (steady, turning, "memory")]
    runs: list[dict[str, Any]] = []
    with progress() as bar:
        shown = bar.add_task("runs", total=len(jobs), note="")
        for measured, n, where in jobs:
            runs.append(_in_child(measured, n, batch, where))
            err.print(runs[-1])
            bar.advance(shown)
    for run in runs if not as_json else ():
        print(run)
    if as_json:
        print(json.dumps({"runs": runs, "batch": batch, **machine()}))


if __name__ == "__main__":
    typer.run(main)
