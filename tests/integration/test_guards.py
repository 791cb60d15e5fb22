"""What Faust and aiokafka would do, on Apache Kafka: each law with its guard, and without it.

Every test runs twice. The second run takes the guard away and asserts that the law is then
broken: so it is the guard that keeps it, and the history that tests it is fit to tell.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from typing import Any

import pytest
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from app.admin import Admin
from app.topics import TopicSpec
from tests.integration.harness import DEADLINE_S, World, transactions, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def guarded_or_not(mutant: str) -> Any:
    """Both runs of a law: with all guards, and without one."""
    return pytest.mark.parametrize("without", ["", mutant], ids=["guarded", mutant])


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


def counts(world: World, scores: list[Any]) -> dict[str, float]:
    """By id, how many transactions of its card the first score of it had seen."""
    from app.core.features import FeaturePlan  # noqa: PLC0415 - here only

    plan = FeaturePlan.of(world.settings.features, world.settings.transaction.entities)
    column = next(
        i for i, n in enumerate(plan.names) if "card_id" in n and "count" in n and "30d" in n
    )
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


@guarded_or_not("errors_are_skipped")
async def test_law_1_error_in_a_batch_skips_no_transaction(make_world, without):
    """Whatever raises, the process ends before it commits; the next one scores the batch."""
    world = make_world()
    await world.create_topics()
    some = transactions(60, seed=61)
    await world.transact(some)
    worker = world.start(without=told(without, "error_in_a_batch"))
    if not without:
        assert 0 != await worker.ended()
    else:
        await worker.ready()
        await all_committed(world, world.topics.transactions)
        worker.kill()
    worker = await world.start().ready()
    missing = await unscored(world, some)
    assert bool(without) == ("t17" in missing), f"{len(missing)} unscored"
    seen(f"unscored: {len(missing)} of 60")


@guarded_or_not("rejected_batches_are_forgotten")
async def test_law_3_rejected_batch_is_not_committed(make_world, without):
    """A batch that the broker rejects leaves its offsets where they were."""
    world = make_world(worker={"delivery_timeout": "2s"})
    await _limit(world, 200)
    await world.create_topics()
    some = transactions(50, seed=62)
    await world.transact(some)
    worker = world.start(without=told(without))
    if not without:
        assert 0 != await worker.ended()
    else:
        await until(lambda: "forgotten" in worker.said, "nothing was rejected")
        await all_committed(world, world.topics.transactions)
        assert 0 == await worker.stop()
    await _limit(world, 1_048_576)
    worker = await world.start().ready()
    missing = await unscored(world, some)
    seen(f"unscored: {len(missing)} of 50")
    assert bool(without) == bool(missing)


async def _limit(world: World, n_bytes: int) -> None:
    """Let the topic of scores take records of so many bytes."""
    spec = world.topics.scores
    config = {**spec.config, "max.message.bytes": str(n_bytes)}
    async with Admin(world.settings) as admin:
        client = admin._client
        if spec.name in await client.list_topics():
            kind = ConfigResourceType.TOPIC
            await client.alter_configs([ConfigResource(kind, spec.name, configs=config)])
        else:
            await client.create_topics([NewTopic(spec.name, spec.partitions, 1, None, config)])


@guarded_or_not("commit_before_delivery")
async def test_law_3_commit_does_not_pass_what_is_in_work(make_world, without):
    """Killed while scores are on their way: they are given again."""
    world = make_world()
    await world.create_topics()
    worker = await world.start(without=told(without, "delivery_hangs")).ready()
    some = transactions(50, seed=63)
    await world.transact(some)
    hop = world.topics.hops["terminal_id"]
    await world.collect(hop, bool, "nothing is on its way")
    if without:
        await commits(world, hop, 1)
    else:
        await asyncio.sleep(1.0)  # a commit would have come by now: ten times the interval
    worker.kill()
    worker = await world.start().ready()
    missing = await unscored(world, some)
    seen(f"unscored: {len(missing)} of 50")
    assert bool(without) == bool(missing)


@guarded_or_not("offset_guard_off")
async def test_law_4_record_is_applied_once_though_it_is_read_twice(make_world, without):
    """Killed before its commit: the state is durable, the offset is not."""
    world = make_world(worker={"commit_interval": "1h"})
    await world.create_topics()
    worker = await world.start(without=told(without)).ready()
    some = transactions(300, seed=64)
    await world.transact(some[:10])
    await world.scored(ids(some[:10]))  # with its first batch a worker commits at once
    await world.transact(some[10:200])
    await world.scored(ids(some[:200]))
    worker.kill()
    worker = await world.start(without=told(without)).ready()
    await world.transact(some[200:])
    found = counts(world, await world.scored(ids(some)))
    expected = right_counts(some)
    n = wrong(found, {name: expected[name] for name in ids(some[200:])})
    letters = len(await world.read(world.topics.dead_letters))
    seen(f"wrong counts: {n} of 100; valid transactions among the dead letters: {letters}")
    assert 0 == n, "their ids tell those apart that are still in the ring"
    assert bool(without) == bool(letters)


@guarded_or_not("state_not_restored")
async def test_law_5_nothing_is_scored_before_its_state_is_restored(make_world, without):
    """After a restart every count goes on where it stood."""
    world = make_world()
    await world.create_topics()
    worker = await world.start().ready()
    some = transactions(300, seed=65)
    await world.transact(some[:200])
    await world.scored(ids(some[:200]))
    assert 0 == await worker.stop()
    worker = await world.start(without=told(without)).ready()
    await world.transact(some[200:])
    found = counts(world, await world.scored(ids(some)))
    expected = right_counts(some)
    n = wrong(found, {name: expected[name] for name in ids(some[200:])})
    seen(f"wrong counts: {n} of 100")
    assert bool(without) == bool(n)


@guarded_or_not("lease_off")
async def test_law_6_worker_that_lost_its_partitions_writes_nothing_more(make_world, without):
    """Stopped with a batch in hand for longer than its session, then woken up."""
    world = make_world()
    await world.create_topics()
    sleeper = await world.start(without=told(without, "deliveries_lag")).ready()
    some = transactions(200, seed=66)
    await world.transact(some)
    await until(lambda: sleeper.metric("weir_transactions_scored_total") > 0, "it scores nothing")
    sleeper.popen.send_signal(signal.SIGSTOP)
    heir = await world.start().ready()
    await world.scored(ids(some))
    await all_committed(world, world.topics.hops["terminal_id"])  # the heir writes no more
    before = len(await world.read(world.topics.scores))
    sleeper.popen.send_signal(signal.SIGCONT)
    if without:
        await world.collect(world.topics.scores, lambda found: len(found) > before, "none is stale")
    else:
        assert 0 != await sleeper.ended()
        assert "no heartbeat was answered" in sleeper.said
    stale = len(await world.read(world.topics.scores)) - before
    seen(f"stale writes: {stale}")
    assert bool(without) == bool(stale)
    assert 0 == await heir.stop()
