"""One seed from beginning to verdict."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

import structlog

from app.core import pending
from tests.simulator.laws import violations
from tests.simulator.mutants import MUTANTS
from tests.simulator.world import Figures, World

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Summaries of 4 scores, not 256: a history has some fifty.
SUMMARY_SCORES = 4


class Run(NamedTuple):
    """What one seed came to."""

    seed: int
    violations: list[str]
    figures: Figures


def run(seed: int, mutant: str | None = None) -> Run:
    """Play a history, with a guard taken away if ``mutant`` names one, and judge it."""
    world = World(seed)
    with ExitStack() as patches:
        patches.enter_context(patch.object(pending, "SUMMARY_SCORES", SUMMARY_SCORES))
        if mutant:  # outside of what may crash: a mutant that fits nothing has caught nothing
            patches.enter_context(MUTANTS[mutant]())
        try:
            world.play()
        except Exception as error:
            if mutant is None:
                raise
            return Run(seed, [f"crash loop: {error!r}"], world.figures)
        patches.pop_all().close()
    return Run(seed, violations(world), world.figures)


def first_to_catch(mutant: str, seeds: Iterable[int]) -> Run | None:
    """Return the first run that notices a mutant."""
    for seed in seeds:
        found = run(seed, mutant)
        if found.violations:
            return found
    return None


def hush() -> None:
    """Let the program say nothing of what is done to it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
