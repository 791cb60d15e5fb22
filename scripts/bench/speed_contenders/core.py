"""The pure core fed from memory, with no broker: what a record costs, step by step.

Reads the stages' own functions in the order in which a worker calls them, in batches of one
partition. ``decode``, ``fold``, ``score`` and ``encode`` are the core; ``hop``, ``changelog``,
``join`` and ``produce`` are what durability, the second entity's own stage and the wait for
labels add in a worker: they are measured beside it and are not part of it.

    step      | what
    ----------+-----------------------------------------------------------------------
    decode    | JSON to columns, with all checks
    fold      | both entities' stores: features and state
    score     | model, policy, reasons of alerts
    encode    | a score to JSON, its headers and its partition
    hop       | a transaction to JSON and back, between the two stages
    changelog | the rows that changed, as bytes
    join      | scores read back and held for their labels
    produce   | scores, hops and rows packed into batches as they go to the broker

Environment: SPEED_INPUT (a pickle of subject, payments, warm and batch). Prints JSON.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import orjson

sys.path.insert(0, str(Path(__file__).parents[1]))

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from payments import PARTITIONS, Payment

from app import codec
from app.config import Settings
from app.core.features import FeaturePlan
from app.core.learner import Learner
from app.core.scoring import Champion, applied, fold_entity
from app.join import JoinStage
from app.metrics import Metrics
from app.records import Partition, Record, Send
from app.stages import EntityStage, scorer_of
from app.tasks import Effects
from app.topics import Topics

_CORE = ("decode", "fold", "score", "encode")
_BATCH_BYTES = 524_288


class Clock:
    """CPU seconds of this process by step."""

    def __init__(self) -> None:
        self.s: dict[str, float] = defaultdict(float)
        self._at = time.process_time()

    def step(self, name: str) -> None:
        """All that was used since the last step belongs to this one."""
        now = time.process_time()
        self.s[name] += now - self._at
        self._at = now


class Core:
    """A worker's stages without a worker."""

    def __init__(self, settings: Settings, learner: Learner) -> None:
        self.settings, self.clock = settings, Clock()
        plan = FeaturePlan.of(settings.features, settings.transaction.entities)
        self.topics, metrics = Topics.of(settings), Metrics()
        scorer = scorer_of(settings, plan, Champion.of(learner))
        stages = [
            EntityStage(settings, self.topics, plan, scorer, metrics, i)
            for i in range(len(settings.transaction.entities))
        ]
        self.stages = stages
        self.tasks = [[stage.task(p) for p in range(PARTITIONS)] for stage in stages]
        join = JoinStage(settings, self.topics, metrics)
        self.joins = [join.task(p) for p in range(PARTITIONS)]
        self.n_joined = [0] * PARTITIONS
        self.n_scores = 0

    def take(self, partition: int, records: list[Record]) -> None:
        """One batch of one partition, through everything."""
        clock, stage = self.clock, self.stages[-1]
        clock.step("beside")
        batch = self.stages[0].reader.read_many(partition, records).read
        clock.step("decode")
        rows: list[Send] = []
        for index, tasks in enumerate(self.tasks):
            # In a worker the second stage has partitions of its own; one store does here.
            task = tasks[partition if index == 0 else 0]
            status = fold_entity(batch, index, task.store, task.columns)
            batch = batch.where(applied(status))
            clock.step("fold")
            rows += [Send(task.changelog, partition, *row) for row in codec.write_rows(task.store)]
            clock.step("changelog")
        effects = Effects()
        sent = Effects()
        self.tasks[0][partition]._send_on(batch, sent)  # noqa: SLF001 - the very code of the stage
        stage.came.read([Record(i, s.key, s.value, 0) for i, s in enumerate(sent.outputs)])
        clock.step("hop")
        stage.scorer.decide(batch)
        clock.step("score")
        # Decides once more, so what that took is taken away again below.
        self.tasks[-1][0]._score(batch, 0, effects)  # noqa: SLF001 - as above
        clock.step("score and encode")
        self.n_scores += len(effects.outputs)
        self._join(effects.outputs)
        clock.step("join")
        pack([*rows, *sent.outputs, *effects.first, *effects.outputs])
        clock.step("produce")

    def _join(self, scores: list[Send]) -> None:
        by_partition: dict[int, list[Record]] = defaultdict(list)
        for send in scores:
            offset = self.n_joined[send.partition]
            self.n_joined[send.partition] += 1
            by_partition[send.partition].append(
                Record(offset, send.key, send.value, 0, send.headers)
            )
        for p, records in by_partition.items():
            self.joins[p].apply(Partition(self.topics.scores.name, p), records, 0, Effects())


def pack(sends: list[Send]) -> None:
    """Records into the batches that go to a broker, one for each partition of each topic."""
    builders: dict[tuple[str, int], Any] = {}
    counts: dict[tuple[str, int], int] = defaultdict(int)
    for send in sends:
        at = send.topic, send.partition
        if at not in builders:
            builders[at] = _builder()
        added = builders[at].append(
            counts[at], timestamp=0, key=send.key, value=send.value, headers=list(send.headers)
        )
        if added is None:
            builders[at].build()
            builders[at], counts[at] = _builder(), 0
            continue
        counts[at] += 1
    for builder in builders.values():
        builder.build()


def _builder() -> DefaultRecordBatchBuilder:
    return DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, _BATCH_BYTES)


def by_partition(stream: list[Payment], batch: int) -> list[tuple[int, list[Record]]]:
    """Batches of records of one partition each, in the order in which they fill."""
    now_ms = time.time_ns() // 1_000_000
    waiting: dict[int, list[Record]] = defaultdict(list)
    offsets = [0] * PARTITIONS
    batches = []
    for payment in stream:
        p = payment.partition
        waiting[p].append(Record(offsets[p], payment.key, payment.value, now_ms))
        offsets[p] += 1
        if len(waiting[p]) >= batch:
            batches.append((p, waiting.pop(p)))
    return [*batches, *waiting.items()]


def main() -> None:
    """Warm up on the first part, measure the rest."""
    given = pickle.loads(Path(os.environ["SPEED_INPUT"]).read_bytes())  # noqa: S301 - made just now
    core = Core(given["settings"], given["learner"])
    batches = by_partition(given["payments"], given["batch"])
    n_warm = 0
    while batches and n_warm < given["warm"]:
        p, records = batches.pop(0)
        core.take(p, records)
        n_warm += len(records)
    core.clock, core.n_scores = Clock(), 0
    began_s, cpu_s = time.perf_counter(), time.process_time()
    for p, records in batches:
        core.take(p, records)
    took_s, used_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    n = sum(len(records) for _, records in batches)
    us = {name: s * 1e6 / n for name, s in core.clock.s.items()}
    us["encode"] = us.pop("score and encode") - us["score"]
    us.pop("beside")
    told = {
        "records": n,
        "scores": core.n_scores,
        "batch": given["batch"],
        "us": us,
        "cpu_us": sum(us[name] for name in _CORE),
        "with_the_rest_us": sum(us.values()),
        "seconds": took_s,
        "cpu_seconds": used_s,
    }
    told["records_per_s"] = 1e6 / told["cpu_us"]
    sys.stdout.buffer.write(orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")


if __name__ == "__main__":
    main()
