"""What reads bytes, and what may become of them: read, or refused in words with nothing changed."""

from __future__ import annotations

import hashlib
import hmac
import json
import pickle
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app import codec
from app.config import load
from app.core.features import FeaturePlan
from app.core.learner import Learner
from app.core.repeats import Shown
from app.errors import Malformed, Refused
from app.join import JoinStage
from app.learning import LearnStage, new_learner
from app.metrics import Metrics
from app.records import Feedback, Record
from app.snapshots import seal, unseal
from app.stages import EntityStage, scorer_of
from app.tasks import Effects
from app.testing import Driver
from app.topics import Topics
from app.worker import fresh_champion

#: 2023-11-14T22:13:20Z, when every record here was published.
NOW_MS = 1_700_000_000_000
KEY = b"a key of this installation"
_MAGIC = b"WEIR2"


class Broken(AssertionError):
    """Something was read or refused in a way that breaks a law."""


@dataclass(frozen=True)
class Target:
    """One reader: samples of what it reads, and a call that raises only where a law is broken.

    The call returns what became of the bytes: "read", or the words of the refusal.
    """

    name: str
    samples: tuple[bytes, ...]
    call: Callable[[bytes], str]


def _refusal(error: Exception) -> str:
    text = str(error)
    if not text.replace("\n", "").isprintable() or not text:
        raise Broken(f"a refusal that cannot be printed: {text!r}") from error
    return text


def _state(task: Any) -> bytes:
    kept = {k: v for k, v in vars(task).items() if k not in {"stage", "_next", "_kept_ms"}}
    return pickle.dumps(kept)


class _Tasks:
    """One task of each stage, and what they are while nothing good was read."""

    def __init__(self) -> None:
        self.settings = load(
            profile="card",
            model={"name": "logistic"},
            entity={"entities_max": 16, "history_max": 16},
        )
        of = self.settings
        self.plan = FeaturePlan.of(of.features, of.transaction.entities)
        topics, metrics = Topics.of(of), Metrics()
        champion = fresh_champion(of, self.plan)
        scorer = scorer_of(of, self.plan, champion)
        self.tasks: dict[str, Any] = {
            "card": EntityStage(of, topics, self.plan, scorer, metrics, 0).task(0),
            "terminal": EntityStage(of, topics, self.plan, scorer, metrics, 1).task(0),
            "join": JoinStage(of, topics, metrics).task(0),
            "learn": LearnStage(of, topics, self.plan, champion, metrics).task(0),
        }
        self.states = {name: _state(task) for name, task in self.tasks.items()}

    def refuses(self, name: str, at: int, record: Record) -> None:
        """Law 7: one dead letter, raw; no state, no state's row, no other word."""
        task, effects = self.tasks[name], Effects()
        task.apply(task.inputs[at], [record], NOW_MS, effects)
        letters = [send for send in effects.outputs if send.topic == "dead-letters"]
        if len(letters) != 1 or letters[0].value != record.value:
            raise Broken(f"{name}: {len(letters)} dead letters of one record")
        if len(effects.outputs) > 1 or effects.first or effects.state:
            raise Broken(f"{name}: bad input caused {effects}")
        if _state(task) != self.states[name]:
            raise Broken(f"{name}: bad input changed the state")


def _record(value: bytes, key: bytes | None = b"c1") -> Record:
    return Record(9, key, value, NOW_MS)


def _reading(
    tasks: _Tasks, stage: str, at: int, read: Callable[[Record], Any], key: bytes = b"c1"
) -> Callable[[bytes], str]:
    def call(value: bytes) -> str:
        record = _record(value, key)
        try:
            read(record)
        except Malformed as error:
            tasks.refuses(stage, at, record)
            return _refusal(error)
        return "read"

    return call


def _first(decoded: Any) -> None:
    """Raise what a reader of many refused."""
    for _, error in decoded.refused:
        raise error


def _flow() -> dict[str, list[bytes]]:
    """What weir itself writes, by topic, of a few transactions with their labels."""
    driver = Driver(load(profile="card", topics={"partitions": 1}, model={"name": "logistic"}))
    for i in range(3):
        at = f"2026-05-01T00:0{i}:00Z"
        names = {"transaction_id": f"t{i}", "card_id": "c1", "terminal_id": "s1"}
        told = json.dumps({**names, "event_time": at, "amount": 9.5}).encode()
        driver.publish("transactions", told, key="c1")
        label = {"transaction_id": f"t{i}", "is_fraud": i == 1, "event_time": at}
        driver.publish("labels", json.dumps(label).encode(), key=f"t{i}")
    driver.run()
    return {
        at.topic: [record.value for record in log.records if record.value]
        for at, log in driver.logs.items()
        if log.records
    }


def targets() -> dict[str, Target]:
    """Every reader, by name."""
    tasks, flow = _Tasks(), _flow()
    of, plan = tasks.settings, tasks.plan
    transactions = codec.TransactionReader(of.transaction, plan)
    labels = codec.LabelReader(of.label)
    hops = codec.HopCodec(plan, 1)
    transaction = {
        "transaction_id": "t1", "event_time": "2023-11-14T00:00:00Z", "card_id": "c1",
        "terminal_id": "s1", "amount": 12.5,
    }  # fmt: skip
    shown = codec.write_shown("c1", Shown(1, 7, 3, 4, (9,), 1))
    label = {"transaction_id": "t1", "is_fraud": True, "event_time": 1_699_999_999, "source": "x"}
    made = [
        Target("transactions", tuple(_texts(transaction)),
               _reading(tasks, "card", 0, lambda r: _first(transactions.read_many(0, [r])))),
        Target("labels", tuple(_texts(label)), _reading(tasks, "join", 1, labels.read, b"t1")),
        Target("hops", tuple(flow["weir.hop.terminal_id"]),
               _reading(tasks, "terminal", 0, lambda r: _first(hops.read([r])))),
        Target("scores", tuple(flow["scores"]),
               _reading(tasks, "join", 0, lambda r: codec.hold_score(r).whole())),
        Target("feedback", (codec.encode(Feedback("t1", True, 0, 7, 1)), b'["t1",false]'),
               _reading(tasks, "card", 1, codec.read_feedback)),
        Target("examples", tuple(flow["examples"]),
               _reading(tasks, "learn", 0, _learning(tasks))),
        Target("snapshots", (seal({"n": [1, 2.5, None]}, KEY),), _unseal),
        Target("signed", tuple(_bodies()), _unseal_signed),
        Target("changelog", tuple(_rows()), _row),
        Target("repeats", (b"c1\0" + (shown[1] or b""),), _shown),
        Target("configuration", tuple(_profiles()), _load),
    ]  # fmt: skip
    return {target.name: target for target in made}


def _texts(told: dict[str, Any]) -> Iterator[bytes]:
    yield json.dumps(told).encode()
    yield json.dumps(told, indent=1).encode()
    yield json.dumps({**told, "event_time": 1_699_999_999_123}).encode()


def _learning(tasks: _Tasks) -> Callable[[Record], Any]:
    """Read an example, and let a learner have it: it neither falls over nor is ruined."""
    fresh = pickle.dumps(new_learner(tasks.settings, tasks.plan))
    row = np.zeros((1, len(tasks.plan.names)))

    def read(record: Record) -> None:
        fact = codec.read_example(record)
        learner: Learner = pickle.loads(fresh)
        learner.apply([(0, fact)])
        if not np.isfinite(learner.mixture.score_many(row)[0]).all():
            raise Broken("an example ruined the model")

    return read


def _unseal(value: bytes) -> str:
    try:
        unseal(value, [KEY])
    except Refused as error:
        return _refusal(error)
    return "read"


def _bodies() -> Iterator[bytes]:
    """What is signed: a head, and a pickle with and without arrays beside it."""
    for state in ({"n": [1, 2.5]}, np.arange(4)):
        yield seal(state, KEY)[len(_MAGIC) + 32 :]


def _unseal_signed(value: bytes) -> str:
    """What lies under a signature that holds: a lost key opens no shell."""
    return _unseal(_MAGIC + hmac.digest(KEY, value, hashlib.sha256) + value)


def _rows() -> Iterator[bytes]:
    """Rows of a changelog, key and value in one: the first byte is the length of the key."""
    settings = load(profile="card", topics={"partitions": 1}, model={"name": "logistic"})
    driver = Driver(settings)
    told = {"transaction_id": "t1", "card_id": "c1", "terminal_id": "s1", "amount": 9.5}
    driver.publish(
        "transactions",
        json.dumps({**told, "event_time": "2026-05-01T00:00:00Z"}).encode(),
        key="c1",
    )
    driver.run()
    for at, log in driver.logs.items():
        if "changelog" in at.topic:
            for record in log.records:
                key = record.key or b""
                yield bytes([len(key)]) + key + (record.value or b"")


def _row(value: bytes) -> str:
    n = value[0] if value else 0
    try:
        codec.read_slot(value[1 : n + 1], value[n + 1 :])
    except Malformed as error:
        return _refusal(error)
    return "read"


def _shown(value: bytes) -> str:
    key, _, told = value.partition(b"\0")
    try:
        codec.read_shown(key, told)
    except Malformed as error:
        return _refusal(error)
    return "read"


def _profiles() -> Iterator[bytes]:
    yield b'[transaction]\nid = "a"\n[[features]]\nkind = "number"\nfield = "amount"\n'
    yield b'[join]\nmaturity = "30d"\nnegatives = 0.5\n[policy]\nkind = "budget"\nthreshold = 0.9\n'
    yield b'[[features]]\nkind = "window"\nentity = "card_id"\nstat = "count"\nwindows = ["1h"]\n'


def _load(value: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weir.toml")
        path.write_bytes(value)
        try:
            settings = load(path)
            plan = FeaturePlan.of(settings.features, settings.transaction.entities)
            new_learner(settings, plan)
        except Refused as error:
            return _refusal(error).replace(folder, "")
    return "read"
