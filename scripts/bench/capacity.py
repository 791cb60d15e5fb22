"""Arithmetic of size: what a rate asks for, by what a record weighs and what it costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from app.core.pending import SUMMARY_SCORES

DAY_S = 86_400.0
#: What a worker packed into one hop when its CPU was measured: batches of 2,048, four partitions.
_MEASURED_HOP = 512
#: More workers make more partitions, those smaller hops, those more workers: it settles in a few.
_ROUNDS = 16


@dataclass(frozen=True)
class Topic:
    """One topic: records and bytes for each scored transaction, who reads it, how long it is kept.

    ``kept_s`` is None where it is kept for ever, 0 where only the last of each key is.
    """

    per_record: float
    bytes: float
    readers: float
    kept_s: float | None
    partitions: int = 0  # 0: as many as are declared for all


@dataclass(frozen=True)
class Costs:
    """What was measured elsewhere, and what is assumed; see the options of ``scale``."""

    worker_us: float
    learn_us: float
    entity_bytes: float
    rows: float = 16.0  # of an entity in its changelog
    utilisation: float = 0.6
    turn_ms: float = 50.0
    network_bytes: float = 1.25e9
    replication: int = 3
    per_worker: int = 1
    labels: float = 0.01
    frauds: float = 0.002
    alerts: float = 0.002
    negatives: float | None = None  # None: as many as one learner takes
    subscribers: int = 1


@dataclass(frozen=True)
class Weights:
    """What was measured here: bytes with headers and framing, CPU microseconds."""

    topics: dict[str, float]  # a record
    per_record: dict[str, float]  # bytes a transaction: changelogs
    hops: dict[int, tuple[float, float]]  # transactions in one: bytes and us of each
    summary: float
    guard: float  # of a row, for each partition that its entity was paid from
    guards: int  # of the rows measured, at most
    pending: float  # in memory
    snapshots: dict[str, float]
    restore_us: float  # a row
    join_us: float  # a score, read again
    beside_us: float  # of an example, beside the model
    summary_us: float  # of a summary, to learn


@dataclass(frozen=True)
class Bounds:
    """Of the configuration."""

    pending_max: int
    known_s: float  # maturity, and how long after it a transaction is known
    maturity_s: float
    kept: dict[str, float | None]  # seconds that a topic keeps what lies on it, as ``Topic.kept_s``
    snapshot_every: int
    snapshot_interval_s: float


def at(points: dict[int, tuple[float, float]], x: float) -> tuple[float, float]:
    """Values at x between the points beside it, straight over 1 / x; the nearest beyond them.

    What a batch costs is a part for each of it and a part for itself, so 1 / x is straight.

    >>> at({1: (10.0, 4.0), 4: (4.0, 1.0)}, 2)
    (6.0, 2.0)
    """
    low = max((n for n in points if n <= x), default=min(points))
    high = min((n for n in points if n >= x), default=max(points))
    if low == high or not low <= x <= high:
        return points[low if x >= low else high]
    share = (1.0 / low - 1.0 / x) / (1.0 / low - 1.0 / high)
    (a, b), (c, d) = points[low], points[high]
    return a + (c - a) * share, b + (d - b) * share


def packed(rate: float, workers: int, partitions: int, turn_ms: float) -> float:
    """Transactions in one hop: what a partition brings in a turn, spread over all partitions.

    >>> packed(100_000, 10, 10, 50.0)
    50.0
    """
    a_turn = min(rate / workers * turn_ms / 1e3, 2_048.0)
    return max(a_turn / (partitions / workers) / partitions, 1.0)


def learner(rate: float, weights: Weights, costs: Costs) -> dict[str, float]:
    """Examples a second: what comes, and what one core learns at its share of utilisation.

    Every transaction becomes an example, by its label or at its maturity; of those without a
    label ``negatives`` are kept. Summaries of scores take their part of the core first.
    """
    us = costs.learn_us + weights.beside_us
    summaries = rate / SUMMARY_SCORES * weights.summary_us / 1e6
    most = max(costs.utilisation - summaries, 0.0) * 1e6 / us
    room = (most / rate - costs.labels) / (1.0 - costs.labels)
    negatives = min(max(room, 0.0), 1.0) if costs.negatives is None else costs.negatives
    return {
        "negatives": negatives,
        "examples_per_s": rate * (costs.labels + (1.0 - costs.labels) * negatives),
        "us_an_example": us,
        "core_for_summaries": summaries,
        "learnt_per_s_max": most,
    }


@dataclass(frozen=True)
class Fleet:
    """Workers that take a rate, a core each, and the partitions that every topic has."""

    rate: float
    workers: int
    partitions: int
    packed: float  # transactions in one hop
    us_more: float  # a transaction costs than when it was measured, for that

    @classmethod
    def of(cls, rate: float, weights: Weights, costs: Costs) -> Fleet:
        """Enough workers, each hop's cost by how few transactions then lie in it."""
        n_packed, more = float(_MEASURED_HOP), 0.0
        workers = partitions = 0
        for _ in range(_ROUNDS):
            workers = ceil(rate * (costs.worker_us + more) / 1e6 / costs.utilisation)
            partitions = workers * costs.per_worker
            n_packed = packed(rate, workers, partitions, costs.turn_ms)
            more = at(weights.hops, n_packed)[1] - at(weights.hops, _MEASURED_HOP)[1]
        return cls(rate, workers, partitions, n_packed, more)


def topics(fleet: Fleet, weights: Weights, costs: Costs, bounds: Bounds) -> dict[str, Topic]:
    """Every topic that has traffic, two entities."""
    w, kept, n = weights.topics, bounds.kept, costs.subscribers
    shown, marked = costs.alerts, 2 * costs.frauds
    learns = learner(fleet.rate, weights, costs)
    learnt = learns["examples_per_s"] / fleet.rate
    example = learnt * w["examples"] + weights.summary / SUMMARY_SCORES
    learnt_per_s = min(learns["examples_per_s"], learns["learnt_per_s_max"])
    turn_s = min(bounds.snapshot_interval_s, bounds.snapshot_every / learnt_per_s)
    snapshots = 2.0 / turn_s / fleet.rate
    snapshot = snapshots * sum(weights.snapshots.values()) / len(weights.snapshots)
    # At most: an entity that was paid from every partition.
    guards = max(fleet.partitions - weights.guards, 0) * weights.guard
    first, second = weights.per_record.values()
    everyone = 1 + fleet.workers  # each worker keeps the lists of its console
    return {
        "transactions": Topic(1.0, w["transactions"], 1, kept["transactions"]),
        "hop": Topic(1.0, at(weights.hops, fleet.packed)[0], 1, kept["hop"]),
        "scores": Topic(1.0, w["scores"], 1 + n, kept["scores"]),
        "alerts": Topic(shown, shown * w["alerts"], n + everyone, kept["alerts"]),
        "labels": Topic(costs.labels, costs.labels * w["labels"], 1, kept["labels"]),
        "outcomes": Topic(costs.labels, costs.labels * w["outcomes"], everyone, kept["outcomes"]),
        "examples": Topic(learnt, example, 1, kept["examples"], 1),
        "feedback": Topic(marked, marked * w["feedback"], 1, kept["feedback"]),
        "changelog, first": Topic(1.0, first, 0, kept["changelog"]),
        "changelog, second": Topic(1.0, second + guards, 0, kept["changelog"]),
        "audit": Topic(shown, shown * w["audit"], 0, kept["audit"]),
        "models": Topic(snapshots, snapshot, fleet.workers, kept["models"], 1),
    }


def size(
    rate: float, weights: Weights, costs: Costs, bounds: Bounds, entities: list[int]
) -> dict[str, Any]:
    """Everything that a rate asks for, steady all day; bytes, seconds, a second."""
    fleet = Fleet.of(rate, weights, costs)
    flow = topics(fleet, weights, costs, bounds)
    return {
        **asdict(fleet),
        **brokers(fleet, flow, costs),
        "topics": {name: _told(t, rate, costs.replication) for name, t in flow.items()},
        "snapshots": {
            "seconds_between": 2.0 / (flow["models"].per_record * rate),
            "bytes_a_follower_per_s": rate * flow["models"].bytes,
            "bytes_all_followers_per_s": rate * flow["models"].bytes * fleet.workers,
        },
        "learner": learner(rate, weights, costs),
        "join": waiting(fleet, weights, bounds),
        "entities": [held(n, fleet, flow, weights, costs) for n in entities],
    }


def _told(topic: Topic, rate: float, replication: int) -> dict[str, float | None]:
    a_second = rate * topic.bytes
    kept = None if topic.kept_s is None else topic.kept_s / DAY_S
    return {
        "bytes_a_transaction": topic.bytes,
        "bytes_per_s": a_second,
        "day_bytes": a_second * DAY_S * replication,
        "kept_days": kept,
        "kept_bytes": None if kept is None else kept * a_second * DAY_S * replication,
    }


def brokers(fleet: Fleet, flow: dict[str, Topic], costs: Costs) -> dict[str, float]:
    """Brokers by network, replicas included; what is written, read and kept.

    What is compacted is not in ``kept_bytes``; ``day_bytes_for_ever`` is what a day adds to
    topics that are never deleted.
    """
    copies = costs.replication
    comes = fleet.rate * sum(t.bytes for t in flow.values())
    goes = fleet.rate * sum(t.bytes * t.readers for t in flow.values())
    net_in, net_out = comes * copies, goes + comes * (copies - 1)
    n = max(ceil(max(net_in, net_out) / (costs.network_bytes * costs.utilisation)), copies)
    logs = sum(t.partitions or fleet.partitions for t in flow.values()) + fleet.partitions
    for_ever = fleet.rate * sum(t.bytes for t in flow.values() if t.kept_s is None)
    return {
        "brokers": n,
        "replicas_a_broker": ceil(logs * copies / n),  # of feedback there are two topics
        "written_bytes_per_s": comes,
        "read_bytes_per_s": goes,
        "network_in_bytes_per_s": net_in,
        "network_out_bytes_per_s": net_out,
        "kept_bytes": fleet.rate * sum((t.kept_s or 0.0) * t.bytes for t in flow.values()) * copies,
        "day_bytes_for_ever": for_ever * DAY_S * copies,
    }


def waiting(fleet: Fleet, weights: Weights, bounds: Bounds) -> dict[str, float]:
    """How far back the join knows a transaction; what it would take to know all that is declared.

    Beyond ``pending_max`` the oldest are forgotten: they teach nothing, and a label that comes
    later finds no transaction. After a restart the scores of all that wait are read again.
    """
    most = fleet.partitions * bounds.pending_max
    return {
        "known_s": min(most / fleet.rate, bounds.known_s),
        "bytes_a_partition": bounds.pending_max * weights.pending,
        "bytes_until_maturity": fleet.rate * bounds.maturity_s * weights.pending,
        "bytes_as_declared": fleet.rate * bounds.known_s * weights.pending,
        "rate_max_as_declared": most / bounds.known_s,
        "read_again_bytes_a_partition": bounds.pending_max * weights.topics["scores"],
        "restore_s_a_partition": bounds.pending_max * weights.join_us / 1e6,
    }


def held(
    entities: int, fleet: Fleet, flow: dict[str, Topic], weights: Weights, costs: Costs
) -> dict[str, float]:
    """Memory for so many entities of the first and of the second kind; the time to restore one.

    One of the second kind has a guard of eight bytes for each partition. A worker restores its
    partitions one after another.
    """
    second = costs.entity_bytes + 8.0 * fleet.partitions
    rows = entities * costs.rows
    row_bytes = flow["changelog, first"].bytes + flow["changelog, second"].bytes
    return {
        "entities": entities,
        "first_bytes": entities * costs.entity_bytes,
        "second_bytes": entities * second,
        "both_bytes_a_worker": entities * (costs.entity_bytes + second) / fleet.workers,
        "entities_a_partition": entities / fleet.partitions,
        "changelogs_kept_bytes": rows * row_bytes * costs.replication,
        "rows_a_partition": rows / fleet.partitions,
        "restore_s_a_partition": rows / fleet.partitions * weights.restore_us / 1e6,
    }
