"""A few rounds of chaos on an Apache Kafka of their own; scripts/bench/chaos plays many."""

from __future__ import annotations

import socket
from random import Random

import pytest

from tests.chaos import scenarios
from tests.chaos.runs import Played, play

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

#: Traffic light enough for a machine that tests beside it.
RATE = 120.0


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return one.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def port(bootstrap: str) -> int:
    """The first of three ports whose doors (see scripts/kafka) are free, too."""
    del bootstrap  # there is an Apache Kafka to be had
    tries = (Random().randrange(20_000, 28_000) for _ in range(200))
    beyond = [at + node for at in (0, 1_000, 2_000, 3_000) for node in range(3)]
    return next(p for p in tries if all(_is_free(p + more) for more in beyond))


def _judged(played: Played) -> None:
    broken = {counter: n for counter, n in played.violations.items() if n}
    assert {} == broken, "\n".join(played.shown)
    assert played.figures["scored"] > RATE
    assert played.figures["taught"] > RATE
    assert played.figures["alerts"] > 0


async def test_no_law_is_broken_by_kills_and_a_broken_network(port):
    """Kills, a pause past the session, a cut and a one-way link, bad input: one after another."""
    rounds = [
        scenarios.kill_both,
        scenarios.kill_in_recovery,
        scenarios.kill_in_snapshot,
        scenarios.poison,
        scenarios.pause_worker,
        scenarios.link_cut,
        scenarios.one_way,
    ]
    linked = frozenset({"worker-0", "learner-0"})
    played = await play("some", rounds, "7/some/0", port, rate=RATE, linked=linked)
    _judged(played)
    assert played.kills >= 5


async def test_no_law_is_broken_by_a_broker_that_is_killed(port):
    """One of three, with every topic on all of them."""
    played = await play("broker-kill", [scenarios.broker_kill], "7/b/0", port, rate=RATE, nodes=3)
    _judged(played)
