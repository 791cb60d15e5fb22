"""What the tests of guards share: who runs without which guard, and what came of it."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import Any

import pytest

from app.core.features import FeaturePlan
from app.topics import TopicSpec
from tests.integration.harness import DEADLINE_S, World, transactions


def guarded_or_not(*mutants: str) -> Any:
    """All runs of a law: with all guards, and without each of some."""
    return pytest.mark.parametrize("without", ["", *mutants], ids=["guarded", *mutants])


def ids(some: list[dict[str, Any]]) -> list[str]:
    """The ids of some transactions."""
    return [t["transaction_id"] for t in some]


async def unscored(world: World, some: list[dict[str, Any]]) -> set[str]:
    """Which of some transactions have no score, once all that will come has come."""
    last = transactions(8, seed=77, first=900_000)  # behind all others, in every partition
    await world.transact(last)
    scores = await world.scored(ids(last))
    return set(ids(some)) - {score["transaction_id"] for score in scores}


async def all_committed(world: World, topic: TopicSpec) -> None:
    """Wait until the group has committed all that a topic holds."""
    n = len(await world.read(topic))
    await commits(world, topic, n)


async def commits(world: World, topic: TopicSpec, n: int) -> None:
    """Wait until the group has committed n records of a topic."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            held = await world.committed(topic)
            if sum(max(offset, 0) for offset in held.values()) >= n:
                return
            await asyncio.sleep(0.1)


def seen(text: str) -> None:
    """What came of it, for docs/reliability.md: `pytest -rP` shows it."""
    sys.stdout.write(f"{text}\n")


def told(without: str, *faults: str) -> str | None:
    """What to run: faults, and the guard that is taken away."""
    return ",".join([*faults, *filter(None, [without])]) or None


def flat(text: str) -> str:
    """What was said, without where its lines end."""
    return " ".join(text.split())


def card_counts(world: World) -> tuple[int, str]:
    """The feature that counts the transactions of a card: its column, and its name."""
    plan = FeaturePlan.of(world.settings.features, world.settings.transaction.entities)
    return next(
        (i, n) for i, n in enumerate(plan.names) if "card_id" in n and "count" in n and "30d" in n
    )


def counts(world: World, scores: list[Any]) -> dict[str, float]:
    """By id, how many transactions of its card the first score of it had seen."""
    column, _ = card_counts(world)
    found: dict[str, float] = {}
    for score in scores:
        found.setdefault(score["transaction_id"], score["features"][column])
    return found


def right_counts(some: list[dict[str, Any]]) -> dict[str, float]:
    """The same, as it should be."""
    seen = Counter[str]()
    expected = {}
    for t in some:
        seen[t["card_id"]] += 1
        expected[t["transaction_id"]] = float(seen[t["card_id"]])
    return expected


def wrong(found: dict[str, float], expected: dict[str, float]) -> int:
    """How many counts are not what they should be."""
    return sum(found[name] != n for name, n in expected.items())
