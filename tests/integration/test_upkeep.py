"""A model's upkeep on Apache Kafka: verified against its log, rebuilt where labels changed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from functools import partial
from typing import Any

import pytest
from aiokafka.admin import RecordsToDelete
from aiokafka.structs import TopicPartition

from app.admin import Admin
from app.learning import new_learner
from app.replay import Log
from app.shelf import sealed
from tests.integration.harness import ROOT, Process, World, labels_of, transactions, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


async def weir(world: World, *arguments: str, **env: str) -> tuple[int, dict[str, Any], str]:
    """Run a command to its end: exit code, what it printed as JSON, what it said beside."""
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "app", *arguments, "--json"],
        cwd=ROOT, env=world.env(0, **env), capture_output=True, timeout=90, check=False,
    )  # fmt: skip
    out = ran.stdout.decode().strip()
    return ran.returncode, json.loads(out) if out else {}, ran.stderr.decode()


def states(told: dict[str, Any]) -> Counter[str]:
    """How many snapshots are in which state."""
    return Counter(one["state"] for one in told["snapshots"])


def has_learnt(process: Process, n: int) -> bool:
    """Whether a process has learnt so many examples."""
    return process.metric("weir_examples_learned") >= n


async def learnt(world: World, worker: Any, n: int, seed: int) -> None:
    """Publish transactions and their labels, and wait until all are learnt."""
    some = transactions(n, seed=seed)
    await world.transact(some)
    await world.scored([t["transaction_id"] for t in some])
    await world.label(labels_of(some, seed=seed + 1))
    await world.outcomes(n)
    await until(lambda: worker.metric("weir_examples_learned") >= n, "not all are learnt")


async def test_every_snapshot_is_what_the_log_makes(make_world):
    """Though the worker was killed between; a foreign one is told apart, a wrong one is found."""
    world = make_world(learner={"snapshot_every": 40, "snapshots_kept": 50})
    await world.create_topics()
    worker = await world.start().ready()
    await learnt(world, worker, 300, seed=21)
    worker.kill()
    worker = await world.start().ready()
    assert 0 == await worker.stop()
    await world.publish(world.topics.models, [(b"whoever", b"WEIR1" + b"x" * 100)])
    code, told, _ = await weir(world, "replay", "--verify")
    found = states(told)
    assert (0, 1, 0) == (code, found["not checked"], found["differs"])
    assert found["equal"] >= 1

    learner = new_learner(world.settings, Log(world.settings).plan)
    learner.position = 100
    await world.publish(world.topics.models, [(b"champion/9", sealed(learner, world.settings))])
    code, told, _ = await weir(world, "replay", "--verify")
    assert (1, 1) == (code, states(told)["differs"])
    assert "the log makes position 100, digest" in told["snapshots"][-1]["why"]

    code, told, _ = await weir(world, "replay")
    assert (0, 300) == (code, told["learned"])


async def test_log_that_lost_its_beginning_verifies_what_can_be(make_world):
    """Retention took examples: it says so, judges later snapshots, and rebuilds nothing."""
    world = make_world(learner={"snapshot_every": 40, "snapshots_kept": 50})
    await world.create_topics()
    worker = await world.start().ready()
    await learnt(world, worker, 120, seed=23)
    more = transactions(240, seed=23)[120:]
    await world.transact(more)
    await world.scored([t["transaction_id"] for t in more])
    await world.label(labels_of(more, seed=24))
    await world.outcomes(240)
    assert 0 == await worker.stop()
    at = TopicPartition(world.topics.examples.name, 0)
    async with Admin(world.settings) as admin:
        await admin._client.delete_records({at: RecordsToDelete(before_offset=60)})
    code, told, _ = await weir(world, "replay", "--verify")
    found = states(told)
    assert (0, 1, 0) == (code, found["given"], found["differs"]), told
    given = next(one for one in told["snapshots"] if one["state"] == "given")
    assert "retention has passed the beginning of the log, which begins at 60" in given["why"]
    code, _, said = await weir(world, "rebuild")
    assert 2 == code
    assert "begins at offset 60; expected 0" in " ".join(said.split())


async def test_corrected_labels_replace_what_was_taught(make_world):
    """A rebuilt model passes the gate, is adopted after a restart, and goes on as the champion."""
    world = make_world(learner={"corrections": "rebuild"})
    await world.create_topics()
    worker = await world.start().ready()
    some = transactions(300, seed=25)
    await world.transact(some)
    await world.scored([t["transaction_id"] for t in some])
    truth = labels_of(some, seed=26)
    wrong = [{**label, "is_fraud": not label["is_fraud"]} for label in truth]
    await world.label(wrong)
    await world.outcomes(300)
    await world.label(truth)
    outcomes = await world.outcomes(600)
    assert {"learn": 300, "corrected": 300} == Counter(o["outcome"] for o in outcomes)
    assert 300 == worker.metric("weir_examples_learned")

    code, told, said = await weir(world, "rebuild", "--dry-run")
    assert (300, 300) == (told["learned"], told["corrected"]), said
    assert told["published"] is False
    code, told, said = await weir(world, "rebuild", "--force", "test")
    assert (0, True) == (code, told["published"]), said
    digest = told["digest"]

    def is_entered(found: list[Any]) -> bool:
        entries = [json.loads(record.value) for record in found]
        promoted = [e["detail"] for e in entries if e["kind"] == "promotion"]
        return [("rebuild", "test", digest)] == [
            (one["reaction"], one["why"], one["to"].rpartition("/")[2]) for one in promoted
        ]

    await world.collect(world.topics.audit, is_entered, "the promotion is not in the audit")
    await until(lambda: digest in worker.said, "the rebuilt model was not adopted")

    more = transactions(320, seed=25)[300:]
    await world.transact(more)
    await world.scored([t["transaction_id"] for t in more])
    await world.label(labels_of(more, seed=27))
    assert 0 != await worker.ended()
    assert "starting again from there" in worker.said
    worker = await world.start().ready()
    await world.outcomes(620)
    await until(lambda: worker.metric("weir_examples_learned") >= 320, "it did not go on")
    assert 0 == await worker.stop()
    code, told, _ = await weir(world, "replay", "--verify")
    newest = max(told["snapshots"], key=lambda one: (one["rebuilt"], one["position"]))
    assert (0, "equal", 320) == (code, newest["state"], newest["learned"]), told
    assert 0 == states(told)["differs"]


async def test_two_learners_at_once_are_harmless(make_world):
    """Both fold the same log: same position, same digest, and each label has one outcome."""
    world = make_world(learner={"in_worker": False, "snapshot_every": 20})
    await world.create_topics()
    worker = world.start()
    # Groups of their own: as if two installations shared their topics by mistake.
    learners = [world.start("learner", WEIR_WORKER__GROUP=f"{i}{world.settings.worker.group}")
                for i in range(2)]  # fmt: skip
    for process in (worker, *learners):
        await process.ready()
    some = transactions(200, seed=28)
    await world.transact(some)
    await world.scored([t["transaction_id"] for t in some])
    await world.label(labels_of(some, seed=29))
    for learner in learners:
        await until(partial(has_learnt, learner, 200), "not all are learnt")
    outcomes = await world.outcomes(200)
    said: dict[str, set[str]] = {}
    for outcome in outcomes:
        said.setdefault(outcome["transaction_id"], set()).add(outcome["outcome"])
    assert {("learn",)} == {tuple(words) for words in said.values()}
    for process in (worker, *learners):
        assert 0 == process.metric("weir_models_differ_total")
        assert 0 == await process.stop()
    code, told, _ = await weir(world, "replay", "--verify")
    assert (0, 0) == (code, states(told)["differs"])


async def test_two_learners_that_differ_raise_the_alarm(make_world):
    """One has learnt another log: metric, log and readiness say so; scoring goes on."""
    world = make_world()
    await world.create_topics()
    worker = await world.start().ready()
    await learnt(world, worker, 100, seed=30)
    log = Log(world.settings)
    other = new_learner(world.settings, log.plan)

    assert 0 == await worker.stop()
    extent = await log.extent()
    await log.read(0, extent.stop, other.apply)
    other.digest = "f" * 16
    other.milestones.clear()
    worker = await world.start().ready()
    await world.publish(world.topics.models, [(b"champion/9", sealed(other, world.settings))])
    await until(lambda: worker.metric("weir_models_differ_total") == 1, "no alarm")
    status, text = worker.get("/readyz")
    assert (503, True) == (status, "two learners differ" in json.loads(text)["reasons"]["models"])
    assert "models_differ" in worker.said
    some = transactions(120, seed=30)[100:]
    await world.transact(some)
    await world.scored([t["transaction_id"] for t in some])


async def test_torn_snapshot_is_passed_over_for_the_next_older_one(make_world):
    """The newest is cut in the middle: the worker goes on from the one before, to the same end."""
    world = make_world(learner={"snapshot_every": 40, "snapshots_kept": 50})
    await world.create_topics()
    worker = await world.start().ready()
    await learnt(world, worker, 200, seed=31)
    assert 0 == await worker.stop()
    records = await world.read(world.topics.models)
    last = records[-1]
    torn = (last.key, last.value[: len(last.value) // 2])
    await world.publish(world.topics.models, [torn])
    worker = await world.start().ready()
    assert "torn or foreign" in worker.said
    await until(lambda: worker.metric("weir_examples_learned") == 200, "it does not learn the rest")
    assert 0 == await worker.stop()
