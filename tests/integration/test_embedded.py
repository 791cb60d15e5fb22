"""The same flow on the broker in memory: what a demonstration needs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest

from app.broker import embedded
from app.errors import Refused
from tests.integration.harness import World, labels_of, transactions

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(120)]


@pytest.fixture
def world(tmp_path) -> Iterator[World]:
    """A world on a broker of its own."""
    try:
        with embedded(log=tmp_path / "broker.log") as broker:
            # It knows no producer ids.
            made = World(broker.bootstrap, tmp_path, kafka={"idempotent": False})
            yield made
            made.close()
    except Refused as error:
        pytest.skip(str(error))


async def test_from_end_to_end(world):
    """Every transaction scored, every label learnt, what cannot be read put aside."""
    await world.create_topics()
    worker = await world.start().ready()
    some = transactions(200, seed=1)
    await world.transact(some)
    await world.publish(world.topics.transactions, [(b"c1", b"{")])
    names = [t["transaction_id"] for t in some]
    scores = await world.scored(names)
    assert Counter(names) == Counter(s["transaction_id"] for s in scores)
    await world.label(labels_of(some, seed=2))
    outcomes = await world.outcomes(200)
    assert {"learn": 200} == Counter(o["outcome"] for o in outcomes)
    letters = await world.collect(world.topics.dead_letters, bool, "no dead letter")
    assert [b"{"] == [letter.value for letter in letters]
    assert (200, "ok") == (worker.get("/readyz")[0], json.loads(worker.get("/readyz")[1])["status"])
    assert 0 == await worker.stop()


async def test_restart_goes_on_where_it_was(world):
    """As long as the broker lives, so does what was learnt."""
    await world.create_topics()
    worker = await world.start().ready()
    some = transactions(100, seed=3)
    await world.transact(some[:60])
    await world.label(labels_of(some[:60], seed=4))
    await world.outcomes(60)
    worker.kill()
    worker = await world.start().ready()
    await world.transact(some[60:])
    await world.scored([t["transaction_id"] for t in some])
    await world.label(labels_of(some[60:], seed=5))
    outcomes = await world.outcomes(100)
    learnt = {tuple(o["origin"]) for o in outcomes if o["outcome"] == "learn"}
    assert 100 == len(learnt)
    assert 100 == worker.metric("weir_examples_learned")
    assert 0 == await worker.stop()
