"""The join on a disk, under a real worker on Apache Kafka that is killed."""

from __future__ import annotations

import asyncio
import shutil
from collections import defaultdict
from typing import Any

import pytest

from tests.integration.harness import Process, World, labels_of, transactions, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

N = 1_200
#: Scores that no summary tells of yet are read again, up to 255 of each of two partitions.
RUNS = 2 * 255


def waiting(worker: Process) -> tuple[float, float]:
    """How many transactions wait, and how many of them on disk."""
    return worker.metric("weir_pending"), worker.metric("weir_pending_on_disk")


async def one_outcome_each(world: World, n: int) -> dict[str, set[str]]:
    """What became of the labels of each transaction; no label has two outcomes."""
    said: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    of: dict[str, set[str]] = defaultdict(set)
    for outcome in await world.outcomes(n):
        said[tuple(outcome["origin"])].add(outcome["outcome"])
        of[outcome["transaction_id"]].add(outcome["outcome"])
    assert n == len(said)
    assert {1} == {len(outcomes) for outcomes in said.values()}
    return of


async def test_killed_worker_reads_on_from_where_its_disk_stands(make_world, tmp_path):
    """SIGKILL while scores and labels flow: each label has one outcome; little is read again.

    Without its folder a worker makes the state again from the logs, and nothing is lost by it.
    """
    folder = tmp_path / "waiting"
    world = make_world(join={"disk": str(folder)})
    await world.create_topics()
    worker = await world.start().ready()
    some = transactions(N, seed=31)
    first, second = some[: N // 2], some[N // 2 :]
    await world.transact(first)
    await until(lambda: waiting(worker) == (N // 2, N // 2), "not all of them are on disk")

    flowing = asyncio.gather(world.transact(second), world.label(labels_of(first, seed=32)))
    await until(lambda: worker.metric("weir_pending") > N // 2, "nothing flows")
    worker.kill()
    await flowing
    worker = await world.start().ready()
    await world.scored([t["transaction_id"] for t in some])
    await until(lambda: waiting(worker) == (N, N), "not all of them are on disk")
    came = await one_outcome_each(world, N // 2)
    assert {frozenset({"learn"})} == {frozenset(outcomes) for outcomes in came.values()}

    worker.kill()  # at rest: the disk stands where the group does
    worker = await world.start().ready()
    assert (N, N) == waiting(worker)
    assert worker.metric("weir_join_read_again") <= RUNS
    await world.label(labels_of(second, seed=33))
    came = await one_outcome_each(world, N)
    assert {frozenset({"learn"})} == {frozenset(outcomes) for outcomes in came.values()}

    worker.kill()
    shutil.rmtree(folder)
    worker = await world.start().ready()
    assert (N, N) == waiting(worker)
    scores = await world.read(world.topics.scores)  # what was under way at a kill is said again
    assert worker.metric("weir_join_read_again") == len(scores) + N  # and all labels
    await world.label(labels_of(some[:100], seed=32))
    came = await one_outcome_each(world, N + 100)
    assert all("duplicate" in came[t["transaction_id"]] for t in some[:100])
    assert 0 == await worker.stop()
