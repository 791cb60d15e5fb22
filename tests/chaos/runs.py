"""A world, some rounds of a scenario, its end and the verdict on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.chaos.checker import check
from tests.chaos.world import World

if TYPE_CHECKING:
    from tests.chaos.scenarios import Round


@dataclass
class Played:
    """What came of the rounds of one world."""

    scenario: str
    seed: str
    rounds: int
    kills: int
    violations: dict[str, int]
    figures: dict[str, int]
    noted: dict[str, int]
    ended: dict[str, int]  # why processes ended by themselves
    recoveries_s: list[float]
    stops_s: list[float]
    seconds: float
    shown: list[str] = field(default_factory=list)


async def play(
    name: str,
    rounds: Sequence[Round],
    seed: str,
    port: int,
    tell: Callable[[int, World], Any] = lambda _n, _world: None,
    **world_of: Any,
) -> Played:
    """Break a new world in each round, let it come to rest, and judge it."""
    began_s = time.monotonic()
    async with World(seed, port, **world_of) as world:
        for n, one in enumerate(rounds, start=1):
            await one(world, world.rng)
            await world.recovered()
            tell(n, world)
        await world.rest()
        read = await world.read()
    verdict = check(read)
    late = sum(n for what, n in world.noted.items() if what.startswith("not at rest"))
    violations = {**verdict.violations, "not_at_rest": late}
    return Played(
        name,
        seed,
        len(rounds),
        world.kills,
        violations,
        verdict.figures,
        dict(world.noted),
        dict(world.ended),
        world.recoveries_s,
        world.stops_s,
        round(time.monotonic() - began_s, 1),
        verdict.shown,
    )
