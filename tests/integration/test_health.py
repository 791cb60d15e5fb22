"""What lives and does not do its work says so within 30 seconds, on Apache Kafka."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from tests.integration.harness import Process, World, labels_of, transactions, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

CAUGHT_S = 30.0


def reasons(process: Process, page: str) -> dict[str, str]:
    """What a page of health gives as reasons; none while it is well."""
    status, body = process.get(page)
    told: dict[str, Any] = json.loads(body) if status else {"reasons": {}}
    assert (status == 503) == bool(told["reasons"]), body
    found: dict[str, str] = told["reasons"]
    return found


async def caught(process: Process, page: str, reason: str) -> str:
    """Wait for a reason; return it. It must come within 30 s from now."""
    began_s = time.monotonic()
    await until(
        lambda: reason in reasons(process, page),
        f"{page} does not say {reason}: {process.get(page)}", CAUGHT_S,
    )  # fmt: skip
    print(f"{reason}: caught after {time.monotonic() - began_s:.1f} s")  # noqa: T201 - the figure
    return reasons(process, page)[reason]


async def sabotaged(world: World, what: str) -> Process:
    """A worker that works, and then breaks; there is something to do when it does."""
    file = world.folder / f"break-{what}"
    env = {"SABOTAGE": what, "SABOTAGE_FILE": str(file)}
    await world.create_topics()
    worker = await world.start(module="tests.integration.saboteur", **env).ready()
    some = transactions(100, seed=1)
    await world.transact(some[:50])
    await world.scored([t["transaction_id"] for t in some[:50]])
    assert ({}, {}) == (reasons(worker, "/healthz"), reasons(worker, "/readyz"))
    file.touch()
    await asyncio.sleep(0.2)  # the saboteur looks twenty times a second
    await world.transact(some[50:])
    return worker


async def test_consumer_that_stopped_consuming_is_caught(make_world):
    """A partition is passed over, or nothing is committed any more: the process lives on."""
    frozen, stalled = make_world(), make_world()

    async def freeze() -> str:
        worker = await sabotaged(frozen, "freeze")
        return await caught(worker, "/healthz", "frozen")

    async def stall() -> str:
        worker = await sabotaged(stalled, "commit")
        assert "commit" in await caught(worker, "/healthz", "commit")
        return await caught(worker, "/readyz", "commit")

    why_frozen, why_stalled = await asyncio.gather(freeze(), stall())
    assert why_frozen.startswith(f"{frozen.topics.transactions.name}[0] stands at ")
    assert "committed" in why_stalled
    for process in [*frozen.processes, *stalled.processes]:
        assert process.popen.poll() is None, "it lives: that is the point"
        assert 1.0 == process.metric("weir_failing")


async def test_dead_learner_and_stale_model_are_caught(make_world):
    """Workers say who does not learn, and whose snapshots they cannot take; both mend."""
    world = make_world(learner={"in_worker": False, "snapshot_interval": "500ms"})
    await world.create_topics()
    learner = await world.start("learner").ready()
    deaf = world.start(WEIR_LEARNER__KEY="another key than the learner has")
    worker = world.start()
    await asyncio.gather(worker.ready(), deaf.ready())
    some = transactions(300, seed=5)
    await world.transact(some)
    await world.scored([t["transaction_id"] for t in some])
    await world.label(labels_of(some[:150], seed=6))
    await world.outcomes(150)
    assert "not signed with learner.key" in await caught(deaf, "/readyz", "stale")
    assert {} == reasons(deaf, "/healthz"), "a restart would mend nothing"
    assert {} == reasons(worker, "/readyz")
    learner.kill()
    await world.label(labels_of(some[150:], seed=7))
    assert "learning stands at example" in await caught(worker, "/readyz", "learner")
    assert {} == reasons(worker, "/healthz"), "a restart of the worker would mend nothing"
    await world.start("learner").ready()
    await until(lambda: not reasons(worker, "/readyz"), "it does not get well")
