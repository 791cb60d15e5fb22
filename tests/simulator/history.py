"""Random input: transactions and labels, in the order in which they are published."""

from __future__ import annotations

import atexit
import itertools
import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from app.config import TO_READ, Settings, load
from app.testing import START_MS
from app.topics import partition_of

if TYPE_CHECKING:
    import random

MINUTE_MS = 60_000
#: A day before the driver's clock: no event time is ever ahead of it by more than is allowed.
FIRST_MS = START_MS - 1_440 * MINUTE_MS


class Input(NamedTuple):
    """One record to be published."""

    topic: str
    key: str
    value: bytes
    is_valid: bool
    id: str


@dataclass(frozen=True)
class Shape:
    """Which world a seed lives in."""

    partitions: int
    in_worker: bool  # the learner runs inside a worker
    corrections: str
    is_crowded: bool  # more entities than the stores hold
    is_busy: bool = False  # few entities, most of whose transactions leave their rings
    threshold: float = 0.1  # low, so that there are many alerts
    holds_repeats: bool = False  # of a card's alerts within two minutes the first is shown
    has_disk: bool = False  # what the stores do not hold lies on disk
    joins_on_disk: bool = False  # what waits for its label does so there; retention is short
    has_investigators: bool = False  # half of the labels are theirs, and teach a model apart


def shape_of(rng: random.Random) -> Shape:
    """Draw a world."""
    return Shape(
        partitions=rng.choice((2, 3)),
        in_worker=rng.random() < 0.6,
        corrections=rng.choice(("ignore", "relearn")),
        is_crowded=(drawn := rng.random()) < 0.12,
        is_busy=drawn > 0.6,
        has_disk=0.12 <= drawn < 0.15,
        holds_repeats=int(drawn * 1_000) % 5 < 2,
        joins_on_disk=int(drawn * 100_000) % 8 == 0,
        has_investigators=int(drawn * 10_000) % 2 == 0,
    )


@lru_cache(maxsize=1)
def disk_of_all() -> str:
    """A folder for what all processes have on disk, gone when Python ends."""
    folder = tempfile.mkdtemp(prefix="weir-simulator-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _entities_max(shape: Shape) -> int:
    if shape.has_disk:
        return 3  # most of a partition's entities are on disk at any time
    return 16 if shape.is_crowded else 1_000


@lru_cache(maxsize=64)
def settings_of(shape: Shape) -> Settings:
    """Everything small, so that every bound is met: minutes for weeks, rings of 16."""
    window = {"kind": "window", "windows": ["10m"]}
    features: list[dict[str, Any]] = [
        {"kind": "number", "field": "amount"},
        *(
            {**window, "entity": entity, "stat": stat}
            for entity in ("card_id", "terminal_id")
            for stat in ("count", "sum", "since_last", "distinct", "frauds")
        ),
        *(
            {**window, "entity": "terminal_id", "stat": stat, "windows": ["45m"]}
            for stat in ("count", "mean", "max", "std", "distinct")
        ),
        {**window, "entity": "terminal_id", "stat": "risk", "windows": ["30m"]},
    ]
    base = load(profile="card")
    return Settings(
        **{
            **{
                name: getattr(base, name).model_dump(context=TO_READ)
                for name in ("kafka", "label", "worker", "transaction")
            },
            "features": features,
            "topics": {"partitions": shape.partitions},
            "entity": {
                "history_max": 16,
                "entities_max": _entities_max(shape),
                "disk": disk_of_all() if shape.has_disk else None,
                "disk_cache_bytes": 1_048_576,
                "bucket": "7m",  # no window ends between two
                "buckets_max": 12,  # the busiest go round
            },
            "model": {"name": "logistic", "params": {"lr": 0.1}},
            "policy": {
                "threshold": shape.threshold,
                "reasons_max": 1,
                "repeats": {"entity": "card_id", "window": "2m"} if shape.holds_repeats else None,
            },
            "join": {"maturity": "20m", "forget": "20m", "early": "10m"},
            "learner": {
                "in_worker": shape.in_worker,
                "corrections": shape.corrections,
                "snapshot_every": 12,
                "snapshot_interval": "40s",
                "snapshots_kept": 3,
                "investigators": {
                    "sources": {"analyst"} if shape.has_investigators else set(),
                    "wait": "10m",
                    "waiting_max": 16,
                },
            },
        }
    )


def history_of(rng: random.Random, shape: Shape, n: int = 50) -> list[Input]:
    """Draw transactions and their labels: late, early, duplicated, corrected, unknown, broken."""
    if shape.is_crowded:
        n_cards, n_terminals = 40, 40
    elif shape.has_disk:
        n_cards, n_terminals = 16, 16
    elif shape.is_busy:
        n, n_cards, n_terminals = 2 * n, rng.randint(1, 2), 1
    else:
        n_cards, n_terminals = rng.randint(2, 6), rng.randint(1, 4)
    cards = [f"card-{i}" for i in range(n_cards)]
    terminals = [f"shop-{i}" for i in range(n_terminals)]
    placed: list[tuple[float, Input]] = []
    earlier: list[tuple[str, str, str]] = []
    for i in range(n):
        name = (f"t{i}", rng.choice(cards), rng.choice(terminals))
        if earlier and rng.random() < 0.06:
            name = _duplicate(rng, name, rng.choice(earlier))
        time_ms = FIRST_MS + i * MINUTE_MS + rng.randint(-3, 3) * MINUTE_MS
        if rng.random() < 0.03:
            time_ms -= 15 * MINUTE_MS
        placed.append((i, _transaction(rng, name, time_ms)))
        if not placed[-1][1].is_valid:
            continue
        earlier.append(name)
        placed += _labels(rng, name[0], i, time_ms)
    for k in range(rng.randint(0, 4)):
        at = rng.uniform(0, n)
        placed.append((at, _label(f"nobody-{k}", True, FIRST_MS + round(at) * MINUTE_MS)))
    return [made for _, made in sorted(placed, key=lambda pair: pair[0])]


def flush_of(n: int, partitions: int, round_no: int) -> list[Input]:
    """Transactions so late that all that waits is due, one for each partition of scores."""
    time_ms = FIRST_MS + (n + 200 * (round_no + 1)) * MINUTE_MS
    found: dict[int, Input] = {}
    for i in itertools.count():
        name = f"flush-{round_no}-{i}"
        fields = _fields(name, "card-flush", "shop-flush", time_ms, 1.0)
        found.setdefault(
            partition_of(name.encode(), partitions),
            _encoded("transactions", "card-flush", fields, name),
        )
        if len(found) == partitions:
            return list(found.values())
    raise AssertionError


def _duplicate(
    rng: random.Random, name: tuple[str, str, str], old: tuple[str, str, str]
) -> tuple[str, str, str]:
    """An id that was used before: for the same card, the same terminal, or by anybody."""
    return rng.choice(
        (old, (old[0], old[1], name[2]), (old[0], name[1], old[2]), (old[0], *name[1:]))
    )


def _transaction(rng: random.Random, name: tuple[str, str, str], time_ms: int) -> Input:
    fields = _fields(*name, time_ms, round(rng.lognormvariate(3, 1), 2))
    if rng.random() > 0.06:
        return _encoded("transactions", name[1], fields, name[0])
    broken = rng.choice(
        (
            b"{not json",
            json.dumps({**fields, "amount": "12,50"}).encode(),
            json.dumps({**fields, "amount": -1.0}).encode(),
            json.dumps({**fields, "stray": 1}).encode(),
            json.dumps({**fields, "event_time": "1970-01-01T00:00:00Z"}).encode(),
        )
    )
    return Input("transactions", name[1], broken, is_valid=False, id=name[0])


def _labels(
    rng: random.Random, transaction_id: str, at: float, time_ms: int
) -> list[tuple[float, Input]]:
    if rng.random() > 0.75:
        return []
    is_fraud = rng.random() < 0.4
    delay = rng.choice((0.0, 0.5, 3.0, 10.0, 19.0, 20.0, 21.0, 35.0, 40.0, 45.0))
    placed_at = at + delay + rng.uniform(-2.5, 1.0)
    label_ms = time_ms + round(rng.choice((0.0, delay, delay, delay + 10.0)) * MINUTE_MS)
    found = [(placed_at, _label(transaction_id, is_fraud, label_ms))]
    if rng.random() < 0.2:
        found.append((placed_at + rng.uniform(0, 6), _label(transaction_id, is_fraud, label_ms)))
    if rng.random() < 0.2:
        later = label_ms + MINUTE_MS
        found.append((placed_at + rng.uniform(0, 6), _label(transaction_id, not is_fraud, later)))
    if rng.random() < 0.05:
        raw = rng.choice((b"nonsense", b'{"transaction_id": "x"}', b"[]"))
        found.append(
            (placed_at, Input("labels", transaction_id, raw, is_valid=False, id=transaction_id))
        )
    return found


def _label(transaction_id: str, is_fraud: bool, time_ms: int) -> Input:
    fields = {"transaction_id": transaction_id, "is_fraud": is_fraud, "event_time": time_ms}
    fields["source"] = "analyst" if ord(transaction_id[-1]) % 2 else "chargeback"
    return _encoded("labels", transaction_id, fields, transaction_id)


def _fields(
    transaction_id: str, card: str, terminal: str, time_ms: int, amount: float
) -> dict[str, Any]:
    return {
        "transaction_id": transaction_id,
        "event_time": time_ms,
        "card_id": card,
        "terminal_id": terminal,
        "amount": amount,
    }


def _encoded(topic: str, key: str, fields: dict[str, Any], name: str) -> Input:
    return Input(topic, key, json.dumps(fields).encode(), is_valid=True, id=name)
