"""The judge of the chaos scenarios: silent on a sound world, and no counter that cannot rise."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys

import pytest
import structlog

from app.records import Position
from app.shelf import CHAMPION, LEARNER
from tests.chaos.checker import COUNTERS, check
from tests.chaos.cluster import Cluster, sweep
from tests.chaos.scenarios import SCENARIOS, SNAPSHOT_MAGIC
from tests.chaos.tamper import FORGED, forge_snapshot, forged, judged, sound, stale_snapshot
from tests.chaos.traffic import Traffic
from tests.simulator.runs import hush


@pytest.fixture(autouse=True)
def _quiet():
    hush()
    yield
    structlog.reset_defaults()
    logging.disable(logging.NOTSET)


def test_sound_world_breaks_no_law():
    """Processes were killed in it; what the checker reads is right, and it is not empty."""
    verdict = check(sound())
    assert ({}, []) == (dict(+verdict.violations), verdict.shown)
    assert set(COUNTERS) == set(verdict.violations)
    nothing = [
        name for name, n in verdict.figures.items() if not n and name[-5:] not in ("eated", "_late")
    ]
    assert [] == nothing


@pytest.mark.parametrize("counter", COUNTERS)
def test_counter_rises_when_what_it_counts_is_forged(counter):
    """A counter that cannot rise says nothing."""
    assert forged(counter) > 0


@pytest.mark.parametrize("kind", [LEARNER, CHAMPION])
def test_snapshots_of_either_kind_are_judged(kind):
    """That of what gives scores as that of the learner: what it holds, and when it was written."""
    assert 1 == judged(lambda read: forge_snapshot(read, kind)).violations["digest_differs"]
    assert 1 == judged(lambda read: stale_snapshot(read, kind)).violations["stale_writes"]


@pytest.mark.parametrize(("successor_wrote_before", "n"), [(False, 0), (True, 1)])
def test_row_behind_one_that_arrived_late_is_its_successors(successor_wrote_before, n):
    """Ahead of who had restored without it; a writer of before it is no successor, but stale."""

    def change(read):
        before = dict(read.ends)
        FORGED["stale_writes"](read)
        topic, p = at = next(at for at, end in read.ends.items() if end > before[at])
        read.writers = {Position(topic, p, record.offset): 1 for record in read.logs[at]}
        read.writers[Position(topic, p, before[at])] = 2
        if successor_wrote_before:
            read.writers[Position(topic, p, read.logs[at][0].offset)] = 2

    verdict = judged(change)
    assert n == verdict.violations["stale_writes"]
    assert 1 - n == verdict.figures["rows_ahead_late"]


def test_snapshots_begin_with_what_the_trap_waits_for():
    """Else the learner would never be killed while it sends one."""
    values = [record.value for _, record in sound().of(sound().topics.models.name)]
    assert all((value or b"").startswith(SNAPSHOT_MAGIC) for value in values)
    assert values


def test_clusters_of_who_is_gone_are_swept(tmp_path):
    """Those of a process that was killed, and no others."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for port, owner in ((20_001, gone.pid), (20_002, os.getpid())):
        (tmp_path / str(port)).mkdir()
        (tmp_path / str(port) / "owner").write_text(str(owner))
    assert 1 == asyncio.run(sweep(tmp_path))
    assert ["20002"] == [at.name for at in tmp_path.iterdir()]
    with pytest.raises(RuntimeError, match="20002 is that of process"):
        asyncio.run(Cluster(20_002, tmp_path).claim())


def test_every_counter_has_its_forgery():
    """And nothing is forged that is not counted."""
    assert set(COUNTERS) == set(FORGED)


def test_traffic_follows_from_its_seed():
    """Equal seeds, equal records; another seed, others."""
    ones = [Traffic(seed).take(500) for seed in (1, 1, 2)]
    assert ones[0] == ones[1] != ones[2]


def test_traffic_has_every_kind_of_label():
    """Before its transaction, long after it, twice, corrected, of nobody."""
    traffic = Traffic(3)
    published = [*traffic.take(4_000), *traffic.rest()]
    at = {one.value: i for i, one in enumerate(published) if one.role == "transactions"}
    labels = [one for one in published if one.role == "labels"]
    assert len(set(labels)) < len(labels)
    assert any((one.key or b"").startswith(b"nobody") for one in labels)
    assert len({one.key for one in labels}) < len(set(labels))
    assert 4_000 <= len(at)


def test_every_scenario_says_what_is_done_and_what_is_expected():
    """A name, words, and at least the twenty rounds that are asked for."""
    for name, one in SCENARIOS.items():
        assert name == one.name
        assert one.what
        assert one.expected
        assert one.rounds >= 20
