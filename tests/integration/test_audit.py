"""The audit on Apache Kafka: a worker is killed, and every alert has one entry all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from app import codec
from app.core.features import FeaturePlan
from app.learning import new_learner
from tests.drifting import drifting_log, until_promotion
from tests.integration.harness import ROOT, World, labels_of, transactions

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


def weir(world: World, *arguments: str) -> tuple[int, str]:
    """Run a command; exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT, env=world.env(0), capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


async def test_killed_worker_leaves_a_whole_audit(make_world):
    """`weir audit verify` says so; and names a record that somebody else wrote into it."""
    world = make_world(policy={"threshold": 0.0})
    await world.create_topics()
    worker = await world.start().ready()
    some = transactions(300, seed=21)
    names = {t["transaction_id"] for t in some}
    await world.transact(some[:150])
    await world.label(labels_of(some[:150], seed=22))
    await world.scored([t["transaction_id"] for t in some[:100]])
    worker.kill()
    await world.transact(some[150:])
    worker = await world.start().ready()
    await world.scored(names)

    def has_all(found: list[Any]) -> bool:
        return names <= {json.loads(r.value)["subject"] for r in found}

    await world.collect(world.topics.audit, has_all, "not every alert has an entry")
    assert 0 == await worker.stop()
    code, said = weir(world, "audit", "verify", "--json")
    verdict = json.loads(said)
    assert (0, True, []) == (code, verdict["whole"], verdict["problems"])
    shown = [json.loads(line) for line in weir(world, "audit", "show", "--json")[1].splitlines()]
    alerts = [entry["subject"] for entry in shown if entry["kind"] == "alert"]
    assert sorted(names) == sorted(alerts), "each once"
    assert ["worker"] == [e["subject"] for e in shown if e["kind"] == "configuration"]
    kept = world.folder / "heads.json"
    kept.write_text(said, encoding="utf-8")
    assert 0 == weir(world, "audit", "verify", "--against", str(kept))[0]
    await world.publish(world.topics.audit, [(None, b'{"kind": "alert"}')], partition=0)
    code, said = weir(world, "audit", "verify", "--json")
    (first, *_) = json.loads(said)["problems"]
    assert 1 == code
    assert first.startswith(f"{world.topics.audit.name}[0], entry ")


async def test_reaction_is_entered_and_undone(make_world):
    """A new model takes over, the learner is killed, a person takes it back: each is one entry."""
    world = make_world(
        model={"name": "logistic", "params": {"lr": 0.001}, "cold_start": 0},
        learner={"snapshot_every": 3_000},
        kafka={"session_timeout": "20s"},  # thousands of examples at once, as fast as they come
        worker={"batch_max": 256},
        drift={"reaction": "background", "warmup": "4d", "learning": "0s"},
    )
    await world.create_topics()
    plan = FeaturePlan.of(world.settings.features, world.settings.transaction.entities)
    facts = drifting_log(plan.names, plan.schema, days=16, change=8)
    worker = await world.start().ready()
    n = until_promotion(new_learner(world.settings, plan), facts)
    values = [(None, codec.encode(fact)) for fact in facts[:n]]
    await world.publish(world.topics.examples, values, partition=0)

    def reacted(found: list[Any], *kinds: str) -> list[dict[str, Any]]:
        entries = [json.loads(record.value) for record in found]
        return [e for e in entries if e["kind"] in (kinds or ("reaction", "promotion", "rollback"))]

    def has_promotion(found: list[Any]) -> bool:
        return bool(reacted(found, "promotion"))

    found = await world.collect(world.topics.audit, has_promotion, "no new model took over")
    incident = reacted(found, "promotion")[0]["detail"]["incident"]
    worker.kill()
    worker = await world.start().ready()
    code, _ = weir(world, "drift", "undo", incident, "--because", "a holiday")
    assert 0 == code

    def has_rollback(found: list[Any]) -> bool:
        return bool(reacted(found, "rollback"))

    found = await world.collect(world.topics.audit, has_rollback, "it was not undone")
    told = [(e["kind"], e["detail"].get("event")) for e in reacted(found)]
    begun = [("reaction", "begun"), ("promotion", None)]
    assert [*begun, ("rollback", None), ("reaction", "ended")] == [
        one for one, e in zip(told, reacted(found), strict=True)
        if e["detail"]["incident"] == incident
    ]  # fmt: skip
    assert 0 != weir(world, "drift", "undo", "drift-9-9", "--because", "x")[0]
    assert 0 == await worker.stop()
    code, said = weir(world, "audit", "verify", "--json")
    assert (0, True) == (code, json.loads(said)["whole"])
    assert 0 == weir(world, "replay", "--verify")[0]
