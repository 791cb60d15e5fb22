"""Which topics there are, what each must look like, and where a key lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numba as nb
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from app.config import Settings

#: 2 MiB: a dead letter holds any record of the transactions topic (1 MiB) and says why.
DEAD_LETTER_BYTES: Final = 2 * 1_048_576
#: 32 MiB: a forest with 400,000 examples behind it takes ten.
SNAPSHOT_BYTES: Final = 32 * 1_048_576
FOREVER: Final = "-1"


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key, as Kafka's own producers choose it (murmur2).

    >>> partition_of(b"card-1", 4)
    3
    """
    return partitions_of([key], partitions)[0]


def partitions_of(keys: Sequence[bytes], partitions: int) -> list[int]:
    """The partition of each of n keys; 0.2 us a key where there are many.

    >>> partitions_of([b"card-1", b"card-2"], 4)
    [3, 0]
    """
    ends = np.cumsum(np.fromiter(map(len, keys), np.int64, len(keys)))
    joined = np.frombuffer(b"".join(keys), np.uint8)
    found: list[int] = (_murmur2(joined, ends) % np.uint32(partitions)).tolist()
    return found


@nb.njit(cache=True, nogil=True)
def _murmur2(data: NDArray[np.uint8], ends: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Hashes of n keys that stand one after another, each ending at ``ends``; positive, 31 bits.

    Austin Appleby's MurmurHash2 with the seed of Kafka's ``Utils.murmur2``.
    """
    # 32 bits in 64: numba widens what it multiplies.
    m, low = np.uint64(0x5BD1E995), np.uint64(0xFFFFFFFF)
    out = np.empty(len(ends), np.uint32)
    start = 0
    for i in range(len(ends)):
        n = ends[i] - start
        tail = start + n - n % 4
        h = np.uint64(0x9747B28C) ^ np.uint64(n)
        for at in range(start, tail, 4):
            k = np.uint64(0)
            for b in range(4):
                k |= np.uint64(data[at + b]) << np.uint64(8 * b)
            k = (k * m) & low
            k ^= k >> np.uint64(24)
            h = ((h * m) & low) ^ ((k * m) & low)
        for b in range(n % 4):
            h ^= np.uint64(data[tail + b]) << np.uint64(8 * b)
        if n % 4:
            h = (h * m) & low
        h ^= h >> np.uint64(13)
        h = (h * m) & low
        h ^= h >> np.uint64(15)
        out[i] = h & np.uint64(0x7FFFFFFF)
        start = ends[i]
    return out


@dataclass(frozen=True)
class TopicSpec:
    """One topic: its name, partitions, replication and what else it must be set to."""

    name: str
    partitions: int
    replication: int
    what: str
    config: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RepeatTopics:
    """Alerts on their way to a person, by the entity of which a second one is held back."""

    candidates: TopicSpec
    changelog: TopicSpec


@dataclass(frozen=True)
class Topics:
    """All topics of one configuration, by role."""

    transactions: TopicSpec
    labels: TopicSpec
    scores: TopicSpec
    alerts: TopicSpec
    drift: TopicSpec
    dead_letters: TopicSpec
    outcomes: TopicSpec
    examples: TopicSpec
    models: TopicSpec
    hops: dict[str, TopicSpec]  # entity: its input, but for the first entity
    feedback: dict[str, TopicSpec]
    changelogs: dict[str, TopicSpec]
    actions: TopicSpec
    audit: TopicSpec
    repeats: RepeatTopics | None = None

    @classmethod
    def of(cls, settings: Settings) -> Topics:
        """Topics that a configuration asks for."""
        named, prefix = settings.topics, settings.topics.prefix
        join = settings.join
        entities = settings.transaction.entities
        read = {"retention.ms": str(named.retention)}
        # The join reads scores and labels again from the oldest that still matters.
        kept = {"retention.ms": str(join.maturity + join.forget + named.retention)}
        compact = {"cleanup.policy": "compact"}
        held = settings.policy.repeats

        def spec(
            name: str,
            what: str,
            config: dict[str, str] | None = None,
            partitions: int = 0,
        ) -> TopicSpec:
            shape = partitions or named.partitions
            return TopicSpec(f"{prefix}{name}", shape, named.replication, what, config or {})

        return cls(
            transactions=spec(named.transactions, "what is to be scored, key: first entity", read),
            labels=spec(named.labels, "what is later known, key: transaction id", kept),
            scores=spec(named.scores, "every transaction scored, key: transaction id", kept),
            alerts=spec(named.alerts, "scores that a person should see", read),
            drift=spec(named.drift, "the world changed", read, 1),
            dead_letters=spec(
                named.dead_letters,
                "what could not be read, raw, and why",
                {**read, "max.message.bytes": str(DEAD_LETTER_BYTES)},
                1,
            ),
            outcomes=spec(named.outcomes, "what became of each label", read),
            examples=spec(
                named.examples,
                "what the model learns, in order",
                {"retention.ms": FOREVER},
                1,
            ),
            models=spec(
                named.models,
                "signed snapshots of the model",
                {**compact, "max.message.bytes": str(SNAPSHOT_BYTES)},
                1,
            ),
            hops={e: spec(f"weir.hop.{e}", f"on the way to {e}", read) for e in entities[1:]},
            feedback={
                e: spec(f"weir.feedback.{e}", f"confirmed labels of a {e}", read) for e in entities
            },
            changelogs={
                e: spec(f"weir.changelog.{e}", f"what is known of each {e}", compact)
                for e in entities
            },
            actions=spec("weir.actions", "what is done to weir, on its way into the audit", read),
            audit=spec(
                "weir.audit",
                "alerts, corrections and actions, a sealed chain a partition",
                {"retention.ms": FOREVER},
            ),
            repeats=None
            if held is None
            else RepeatTopics(
                spec(f"weir.alerts.{held.entity}", f"alerts by {held.entity}", read),
                spec(
                    f"weir.changelog-alerts.{held.entity}",
                    f"the last alert of each {held.entity}",
                    compact,
                ),
            ),
        )

    def __iter__(self) -> Iterator[TopicSpec]:
        """Every topic, in the order of the flow."""
        yield from (
            self.transactions,
            *self.hops.values(),
            self.scores,
            self.alerts,
            self.labels,
        )
        yield from (
            self.outcomes,
            self.examples,
            self.models,
            self.drift,
            self.dead_letters,
        )
        yield from (*self.feedback.values(), *self.changelogs.values())
        yield from (self.actions, self.audit)
        if self.repeats is not None:
            yield from (self.repeats.candidates, self.repeats.changelog)

    def stage_input(self, entities: tuple[str, ...], stage: int) -> TopicSpec:
        """The topic that a stage reads: transactions, or the hop to its entity."""
        return self.transactions if stage == 0 else self.hops[entities[stage]]
