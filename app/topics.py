"""Which topics there are, what each must look like, and where a key lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from aiokafka.partitioner import murmur2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.config import Settings

#: 2 MiB: a dead letter holds any record of the transactions topic (1 MiB) and says why.
DEAD_LETTER_BYTES: Final = 2 * 1_048_576
#: 32 MiB: a forest with 400,000 examples behind it takes ten.
SNAPSHOT_BYTES: Final = 32 * 1_048_576
FOREVER: Final = "-1"


@lru_cache(maxsize=65_536)  # a key recurs: entities far more often than transactions
def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key, as Kafka's own producers choose it (murmur2).

    >>> partition_of(b"card-1", 4)
    3
    """
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


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
            repeats=None
            if held is None
            else RepeatTopics(
                spec(f"weir.alerts.{held.entity}", f"alerts by {held.entity}", read),
                spec("weir.changelog-alerts", f"the last alert of each {held.entity}", compact),
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
        if self.repeats is not None:
            yield from (self.repeats.candidates, self.repeats.changelog)

    def stage_input(self, entities: tuple[str, ...], stage: int) -> TopicSpec:
        """The topic that a stage reads: transactions, or the hop to its entity."""
        return self.transactions if stage == 0 else self.hops[entities[stage]]
