"""What a rate asks for, on paper: workers, partitions, brokers, disk, memory, learner.

Weighed here, without a broker, on the default card profile with its two entities (``weigh``):

- bytes of a record on every topic: simulated payments and their labels go through the real stages
  (``app.testing``), and what they send is built into batches as a worker builds them: keys, values,
  headers, framing. Nothing is compressed by a worker; ``zstd`` is what ``compression.type=zstd`` on
  the topic would leave of it;
- bytes and CPU microseconds of a hop (written and read) by how many transactions lie in one;
- both snapshots of a forest with its memory full; bytes in memory of a transaction that waits
  for its label; CPU of a row restored, and of an example beside the model.

Costs come from elsewhere, as options; the defaults are those of docs/speed.md. A figure of CPU is
of one core; nothing here says that brokers, network or many workers keep up: it is arithmetic
(``capacity.py``), and each figure of it can be made again with other costs.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Annotated, Any

import cramjam
import numpy as np
import typer
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from capacity import Bounds, Costs, Weights, size
from common import err, machine
from snapshots import taught

from app import codec
from app.config import Settings, load
from app.core.features import FeaturePlan
from app.core.learner import Learner
from app.core.scoring import Champion
from app.core.slots import SlotValue
from app.join import JoinStage
from app.learning import new_learner
from app.metrics import Metrics
from app.records import Example, Partition, Record, Send, Summary
from app.shelf import frozen
from app.stages import EntityStage, scorer_of
from app.synth import World, items, simulate
from app.tasks import Effects
from app.testing import Driver, Process
from app.topics import Topics

PARTITIONS = 4
#: As ``app.kafka`` has it.
_BATCH_BYTES = 524_288
_PACKED = (1, 2, 4, 8, 16, 64, 512)
#: Four hours of event time are taken at once: with 6,000 payments some forty of each partition.
_TURN_MS = 4 * 3_600_000
_DAYS = 6
#: One in fifty is shown at random, so that there are alerts before the model knows frauds; who
#: is not labelled within two days counts as legitimate, so that there are such examples.
_TOLD: dict[str, Any] = {
    "topics": {"partitions": PARTITIONS},
    "policy": {"explore": 0.02},
    "join": {"maturity": "2d"},
}


def batches(sends: Iterable[Send]) -> Iterable[tuple[str, int, bytes]]:
    """Batches as they go to a broker: topic, records, bytes."""
    mine: dict[tuple[str, int], list[Send]] = defaultdict(list)
    for send in sends:
        mine[send.topic, send.partition].append(send)
    for (topic, _), records in mine.items():
        builder, n = _builder(), 0
        for send in records:
            told = {"key": send.key, "value": send.value, "headers": list(send.headers)}
            if builder.append(n, timestamp=0, **told) is None:
                yield topic, n, bytes(builder.build())
                builder, n = _builder(), 0
                builder.append(n, timestamp=0, **told)
            n += 1
        yield topic, n, bytes(builder.build())


def _builder() -> DefaultRecordBatchBuilder:
    return DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, _BATCH_BYTES)


class Weighed(Driver):
    """A driver that weighs what is sent."""

    def __init__(self, settings: Settings) -> None:
        self.weighed: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        super().__init__(settings)

    def deliver(self, process: Process, sends: list[Send]) -> None:
        """Weigh, then bring to the broker."""
        self.weigh(sends)
        super().deliver(process, sends)

    def weigh(self, sends: Iterable[Send]) -> None:
        """Count records, bytes, and bytes compressed, by topic."""
        for topic, n, built in batches(sends):
            counted = self.weighed[topic]
            counted[0] += n
            counted[1] += len(built)
            counted[2] += len(bytes(cramjam.zstd.compress(built, 3)))


def run(n: int) -> tuple[Weighed, int]:
    """Payments and labels of some days through the stages; how many payments."""
    driver, n_paid = Weighed(load(**_TOLD)), 0
    sends: list[Send] = []
    for day, _ in zip(simulate(World(seed=42, per_day=n / _DAYS)), range(_DAYS), strict=False):
        turn = -1
        for item in items(day):
            if item.time_ms // _TURN_MS != turn:
                turn = item.time_ms // _TURN_MS
                driver.weigh(sends)
                sends = []
                driver.run()
            topic = f"{item.kind}s"
            at = driver.publish(topic, item.value)
            sends.append(Send(topic, at.partition, item.key, codec.encode(item.value)))
            n_paid += item.kind == "transaction"
        err.print(f"{n_paid} payments of {n}")
    driver.weigh(sends)
    driver.run()
    return driver, n_paid


def cpu_us(work: Callable[[], Any], n: int, rounds: int = 3) -> float:
    """Median CPU microseconds of one of n; the first call, which may compile, is not counted."""
    work()
    took = []
    for _ in range(rounds):
        began_s = time.process_time()
        work()
        took.append((time.process_time() - began_s) * 1e6 / n)
    return median(took)


def hops(driver: Driver, settings: Settings) -> dict[int, tuple[float, float]]:
    """Bytes, and CPU to write and read, of each of so many transactions in one hop."""
    stage = _stages(driver, settings)[0]
    records = driver.logs[Partition("transactions", 0)].records[:512]
    batch, came = stage.reader.read_many(0, records).read, _stages(driver, settings)[1].came
    found = {}
    for n in _PACKED:
        parts = [np.arange(i, i + n) for i in range(0, len(batch) - n + 1, n)]
        values = [stage.goes.write(batch.take(part)) for part in parts]
        sent = [built for v in values for _, _, built in batches([Send("hop", 0, None, v)])]

        def work(parts: Sequence[Any] = parts) -> None:
            read = [Record(0, None, stage.goes.write(batch.take(part)), 0) for part in parts]
            came.read(read)

        found[n] = sum(map(len, sent)) / (n * len(parts)), cpu_us(work, n * len(parts))
    return found


def _stages(driver: Driver, settings: Settings) -> list[EntityStage]:
    scorer = scorer_of(settings, driver.plan, Champion.of(new_learner(settings, driver.plan)))
    told = settings, driver.topics, driver.plan, scorer, Metrics()
    return [EntityStage(*told, index) for index in range(2)]


def pending_bytes(driver: Driver, settings: Settings) -> float:
    """Bytes allocated for a scored transaction that waits, its score's bytes included."""
    task = JoinStage(settings, driver.topics, Metrics()).task(0)
    at, held = Partition("scores", 0), driver.logs[Partition("scores", 0)].records
    task.apply(at, held[:1], 0, Effects())
    tracemalloc.start()
    for record in held[1:]:
        # A copy, as if it had just been fetched.
        value = bytes(bytearray(record.value or b""))
        task.apply(at, [Record(record.offset, record.key, value, 0)], 0, Effects())
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return allocated / (len(task.join) - 1)


def restore_us(driver: Driver, settings: Settings) -> float:
    """CPU of a row of the second entity's changelog, restored."""
    stage, name = _stages(driver, settings)[1], driver.settings.transaction.entities[1]
    at = Partition(driver.topics.changelogs[name].name, 0)
    rows = driver.logs[at].records
    return cpu_us(lambda: stage.task(0).restore(at, rows), len(rows))


def join_us(driver: Driver, settings: Settings) -> float:
    """CPU of a score that the join reads again."""
    stage, at = JoinStage(settings, driver.topics, Metrics()), Partition("scores", 0)
    held = driver.logs[at].records
    return cpu_us(lambda: stage.task(0).restore(at, held), len(held))


def learn_us(settings: Settings, records: Sequence[Record]) -> float:
    """CPU of a fact of the examples log without a forest: reading, ids, quality, drift.

    The model is weir's logistic regression; its 1 us an example is in it.
    """
    quick = load(**_TOLD, model={"name": "logistic"})
    plan = FeaturePlan.of(settings.features, quick.transaction.entities)
    values = [Record(i, r.key, r.value, 0) for i, r in enumerate(records)]

    def work() -> None:
        learner = new_learner(quick, plan)
        for start in range(0, len(values), 2_048):
            part = values[start : start + 2_048]
            learner.apply([(record.offset, codec.read_example(record)) for record in part])

    return cpu_us(work, len(values))


def snapshots(examples: int) -> dict[str, float]:
    """Bytes of both snapshots of a grown forest."""
    settings = load()
    learner, _ = taught(
        settings, FeaturePlan.of(settings.features, settings.transaction.entities), examples
    )
    champion = Champion.of(learner).for_scoring()
    states: dict[str, Learner | Champion] = {"learner": learner, "scores": champion}
    key = settings.learner.key.get_secret_value().encode()
    return {name: len(frozen(state, learner).sealed(key)) for name, state in states.items()}


def weigh(payments: int, examples: int) -> tuple[Weights, dict[str, Any]]:
    """Everything weighed; bytes of each topic as they are, and compressed."""
    driver, n = run(payments)
    settings, weighed = driver.settings, driver.weighed
    each = {topic: told[1] / told[0] for topic, told in weighed.items()}
    facts = driver.read("examples")
    by_kind = {
        kind: [r for r, f in zip(driver.records("examples"), facts, strict=True) if type(f) is kind]
        for kind in (Example, Summary)
    }
    mean = {kind: _mean_bytes(records) for kind, records in by_kind.items()}
    entities = settings.transaction.entities
    each |= {"examples": mean[Example], "feedback": each[f"weir.feedback.{entities[0]}"]}
    each["audit"] = each["weir.audit"]
    weights = Weights(
        topics=each,
        per_record={e: weighed[f"weir.changelog.{e}"][1] / n for e in entities},
        hops=hops(driver, settings),
        summary=mean[Summary],
        guard=_guard_bytes(),
        guards=PARTITIONS,
        pending=pending_bytes(driver, settings),
        snapshots=snapshots(examples),
        restore_us=restore_us(driver, settings),
        join_us=join_us(driver, settings),
        beside_us=learn_us(settings, by_kind[Example]),
        summary_us=learn_us(settings, by_kind[Summary] * 100),
    )
    told = {
        topic: {"records": r, "bytes": b / r, "bytes_a_payment": b / n, "zstd": z / b}
        for topic, (r, b, z) in sorted(weighed.items())
    }
    return weights, told


def _mean_bytes(records: Sequence[Record]) -> float:
    sends = (Send("", 0, r.key, r.value, r.headers) for r in records)
    return sum(len(built) for _, _, built in batches(sends)) / len(records)


def _guard_bytes() -> float:
    row = SlotValue(0, 0, 0.0, 0, 0, 0, ((0, 0),))
    one, two = (codec.write_slot(("a", 0), row._replace(guard=((0, 0),) * n))[1] for n in (1, 2))
    return len(two or b"") - len(one or b"")


def bounds() -> Bounds:
    """What the default configuration declares."""
    settings = load()
    topics = Topics.of(settings)
    first = settings.transaction.entities[0]
    specs = {
        name: getattr(topics, name)
        for name in (
            *("transactions", "scores", "alerts", "labels"),
            *("outcomes", "examples", "audit", "models"),
        )
    }
    specs |= {
        "hop": next(iter(topics.hops.values())),
        "feedback": topics.feedback[first],
        "changelog": topics.changelogs[first],
    }
    kept = {name: float(spec.config.get("retention.ms", 0)) / 1e3 for name, spec in specs.items()}
    join, learner = settings.join, settings.learner
    return Bounds(
        pending_max=join.pending_max,
        known_s=(join.maturity + join.forget) / 1e3,
        maturity_s=join.maturity / 1e3,
        kept={name: None if s < 0 else s for name, s in kept.items()},
        snapshot_every=learner.snapshot_every,
        snapshot_interval_s=learner.snapshot_interval / 1e3,
    )


def _show(told: dict[str, Any], *, is_nested: bool = False) -> None:
    for name, value in told.items():
        if isinstance(value, dict):
            print(f"{'  ' * is_nested}{name}:")
            _show(value, is_nested=True)
        elif isinstance(value, list):
            for one in value:
                _show({name: one}, is_nested=is_nested)
        else:
            shown = f"{value:,.6g}" if isinstance(value, float) else value
            print(f"{'  ' * (is_nested + 1)}{name}: {shown}")


def main(  # noqa: PLR0913, PLR0917 - a command's options are its arguments
    rate: Annotated[list[float] | None, typer.Option(help="Transactions a second.")] = None,
    entities: Annotated[
        list[int] | None, typer.Option(help="Of each kind: memory, restore.")
    ] = None,
    payments: Annotated[int, typer.Option(min=3_000, help="Simulated and weighed.")] = 6_000,
    examples: Annotated[int, typer.Option(min=1_000, help="That grow the forest.")] = 60_000,
    worker_us: Annotated[float, typer.Option(help="CPU of a worker, a transaction.")] = 52.0,
    learn_us: Annotated[float, typer.Option(help="CPU of the model, an example.")] = 17.7,
    entity_bytes: Annotated[float, typer.Option(help="Resident, an entity.")] = 1_027.0,
    rows: Annotated[float, typer.Option(help="Of an entity in its changelog.")] = 16.0,
    utilisation: Annotated[float, typer.Option(help="Of cores and network.")] = 0.6,
    turn_ms: Annotated[float, typer.Option(help="From one batch to the next.")] = 50.0,
    network_bytes: Annotated[float, typer.Option(help="A second, a broker, each way.")] = 1.25e9,
    replication: Annotated[int, typer.Option(min=1, help="Of each partition.")] = 3,
    per_worker: Annotated[int, typer.Option(min=1, help="Partitions a worker.")] = 1,
    labels: Annotated[float, typer.Option(help="Share that gets a label.")] = 0.01,
    frauds: Annotated[float, typer.Option(help="Share confirmed as fraud.")] = 0.002,
    alerts: Annotated[float, typer.Option(help="Share that is alerted.")] = 0.002,
    negatives: Annotated[
        float | None, typer.Option(help="`join.negatives`; not told: what one learner takes.")
    ] = None,
    subscribers: Annotated[int, typer.Option(help="Of scores and alerts, not weir's.")] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on the last line.")
    ] = False,
) -> None:
    """What some rates ask for, steady all day, from measured bytes and costs."""
    costs = Costs(
        worker_us=worker_us,
        learn_us=learn_us,
        entity_bytes=entity_bytes,
        rows=rows,
        utilisation=utilisation,
        turn_ms=turn_ms,
        network_bytes=network_bytes,
        replication=replication,
        per_worker=per_worker,
        labels=labels,
        frauds=frauds,
        alerts=alerts,
        negatives=negatives,
        subscribers=subscribers,
    )
    weights, weighed = weigh(payments, examples)
    many = entities or [10_000_000, 100_000_000]
    told = {
        "weighed": weighed,
        "weights": asdict(weights),
        "costs": asdict(costs),
        "rates": [
            size(one, weights, costs, bounds(), many)
            for one in rate or [10_000.0, 100_000.0, 1_000_000.0]
        ],
        **machine(),
    }
    if as_json:
        print(json.dumps(told))
    else:
        _show(told)


if __name__ == "__main__":
    typer.run(main)
