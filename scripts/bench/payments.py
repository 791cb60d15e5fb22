"""What the benchmarks of speed feed: simulated card payments as bytes, models that know such."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from speed_contenders.shared import NAMES

from app.admin import Admin
from app.backtest import Backtest, due_after
from app.codec import encode
from app.config import Settings, load
from app.core.features import FeaturePlan
from app.core.learner import Learner
from app.files import Columns
from app.kafka import Sender
from app.learning import new_learner
from app.records import Send
from app.shelf import CHAMPION, sealed
from app.synth import DAY_MS, Item, World, items, rows, simulate
from app.topics import TopicSpec, partition_of

PARTITIONS = 4
#: Event days that a hundred thousand records last: windows of a week fill and empty again.
PER_DAY = 10_000.0
#: Another world than that which is measured, so that nothing is learnt by heart.
TAUGHT_SEED, TAUGHT = 7, 20_000
#: Records handed to a sender at once.
_CHUNK = 20_000

RIVER_LOGISTIC = "river.preprocessing.StandardScaler | river.linear_model.LogisticRegression"

#: 19 features that every contender can compute: of the amount, of the clock, of two entities.
_COMPARED = (
    """
[transaction]
entities = ["card_id", "terminal_id"]
amount = "amount"

[[features]]
kind = "number"
field = "amount"

[[features]]
kind = "number"
field = "amount"
transform = "log1p"

[[features]]
kind = "calendar"
parts = ["weekend", "hour_sin", "hour_cos"]
"""
    + "".join(
        f"""
[[features]]
kind = "window"
entity = "{entity}"
stat = "{stat}"
windows = {windows}
"""
        for entity in ("card_id", "terminal_id")
        for stat, windows in (
            ("count", '["1d", "7d"]'),
            ("sum", '["1d", "7d"]'),
            ("mean", '["1d", "7d"]'),
            ("since_last", '["7d"]'),
        )
    )
    + """
[model]
cold_start = 0
"""
)
#: As shipped, but that the model decides from the first record on, as those of the others do.
_SHIPPED = """
[model]
cold_start = 0
"""


def worker_environment(bootstrap: str, prefix: str, folder: Path, level: str) -> dict[str, str]:
    """What a worker is told; all but where it runs is as shipped."""
    return {
        "WEIR_KAFKA__BOOTSTRAP": bootstrap,
        "WEIR_TOPICS__PREFIX": prefix,
        "WEIR_TOPICS__PARTITIONS": str(PARTITIONS),
        "WEIR_WORKER__GROUP": prefix.rstrip("."),
        "WEIR_WORKER__DATA_DIR": str(folder),
        "WEIR_WORKER__LOG_LEVEL": level,
    }


class Payment(NamedTuple):
    """A transaction as bytes, and the partition where its key belongs."""

    partition: int
    key: bytes
    value: bytes


def payments(n: int, world: World) -> list[Payment]:
    """The first ``n`` transactions of a world, as a service would publish them."""
    return [
        Payment(partition_of(item.key, PARTITIONS), item.key, encode(item.value))
        for item in islice(transactions(world), n)
    ]


def transactions(world: World) -> Iterable[Item]:
    """The transactions of a world without end, without their labels."""
    return (item for day in simulate(world) for item in items(day) if item.kind == "transaction")


def measured_world() -> World:
    """The world whose payments are measured."""
    return World(seed=42, per_day=PER_DAY)


@dataclass(frozen=True)
class Subject:
    """A configuration of weir: its features and its model, or all as shipped."""

    model: str | None = None  # None: the default model and the default card profile
    batch_max: int | None = None

    @cached_property
    def file(self) -> Path:
        """The configuration as a file."""
        text = _SHIPPED if self.model is None else f'{_COMPARED}name = "{self.model}"\n'
        if self.batch_max:
            text += f"\n[worker]\nbatch_max = {self.batch_max}\n"
        path = Path(tempfile.mkdtemp(prefix="weir-speed-")) / "weir.toml"
        path.write_text(text)
        return path

    def settings(self, bootstrap: str = "", prefix: str = "") -> Settings:
        """The settings that a worker of this configuration runs with."""
        return load(
            self.file,
            kafka={"bootstrap": bootstrap} if bootstrap else {},
            topics={"prefix": prefix, "partitions": PARTITIONS},
        )

    @cached_property
    def learner(self) -> Learner:
        """A learner whose model was taught another world; it says that it stands at the beginning.

        So a worker takes it from the models topic, and no label was ever in the examples topic.
        """
        settings = self.settings()
        plan = FeaturePlan.of(settings.features, settings.transaction.entities)
        if self.model is not None and plan.names != NAMES:
            raise RuntimeError(f"the contenders compute {NAMES}; the configuration {plan.names}")
        learner = new_learner(settings, plan)
        x, y, _ = examples(settings, World(seed=TAUGHT_SEED, per_day=PER_DAY), TAUGHT)
        learner.model.learn_many(x, y, np.ones(len(y)))
        return learner

    def snapshot(self, settings: Settings) -> Send:
        """The taught model as a record of the models topic."""
        value = sealed(self.learner, settings)
        return Send(f"{settings.topics.prefix}models", 0, f"{CHAMPION}/0".encode(), value)


def river_pipeline(folder: Path) -> Path:
    """The taught pipeline of River in a pickle: the very object that weir scores with."""
    model: Any = Subject(RIVER_LOGISTIC).learner.model
    path = folder / "pipeline.pickle"
    path.write_bytes(pickle.dumps(model.estimator))
    return path


def examples(
    settings: Settings, world: World, n: int, delay_ms: int = DAY_MS
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], tuple[str, ...]]:
    """Features and labels of the first ``n`` transactions of a world: X (n, d), y (n,), names.

    The features are those of a backtest in which every label is known ``delay_ms`` later.
    """
    quick = settings.model_copy(
        update={"model": settings.model.model_copy(update={"name": "logistic", "params": {}})}
    )
    table = rows(simulate(world), n=n)
    labels = np.array(table["is_fraud"], np.int8)
    amounts = np.array(table["amount"], np.float64)
    columns = Columns(
        table["transaction_id"],
        np.array(table["event_time"], np.int64),
        amounts,
        [table["card_id"], table["terminal_id"]],
        {"amount": amounts},
        {},
        labels,
    )
    backtest = Backtest(quick, keep_features=True)
    found = backtest.run(columns, due_after(columns.times_ms, delay_ms))
    if found.features is None:
        raise RuntimeError("the backtest kept no features")
    return found.features, labels == 1, backtest.plan.names


async def publish(sender: Sender, topic: str, stream: Sequence[Payment]) -> None:
    """Write payments to a topic, each into its partition."""
    for start in range(0, len(stream), _CHUNK):
        await sender.deliver(
            [Send(topic, p.partition, p.key, p.value) for p in stream[start : start + _CHUNK]]
        )


async def make_topics(settings: Settings, specs: Iterable[TopicSpec]) -> None:
    """Make topics; the broker's clock tells when a score was written."""
    by_broker = {"message.timestamp.type": "LogAppendTime"}
    async with Admin(settings) as admin:
        await admin.create(
            [  # type: ignore[arg-type]
                replace(spec, config={**spec.config, **by_broker})
                if spec.name.endswith("scores")
                else spec
                for spec in specs
            ]
        )
