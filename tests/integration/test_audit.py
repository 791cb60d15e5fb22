"""The audit on Apache Kafka: a worker is killed, and every alert has one entry all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

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
