"""The arithmetic of ``scripts/bench/scale``: what a rate asks for."""

import sys
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import pytest

_PATH = Path(__file__).parents[1] / "scripts" / "bench" / "capacity.py"


def _loaded() -> Any:
    spec = util.spec_from_file_location("capacity", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules["capacity"] = module  # dataclasses look there for their annotations
    spec.loader.exec_module(module)
    return module


capacity = _loaded()
TOPICS = ("transactions", "scores", "alerts", "labels", "outcomes", "examples", "feedback", "audit")
WEIGHTS = capacity.Weights(
    topics=dict.fromkeys(TOPICS, 100.0),
    per_record={"card": 50.0, "terminal": 60.0},
    hops={1: (400.0, 20.0), 512: (300.0, 1.0)},
    summary=256.0,
    guard=10.0,
    guards=4,
    pending=1_000.0,
    snapshots={"learner": 4e6, "scores": 1e6},
    restore_us=5.0,
    join_us=10.0,
    beside_us=10.0,
    summary_us=0.0,
)
COSTS = capacity.Costs(worker_us=50.0, learn_us=10.0, entity_bytes=1_000.0, utilisation=0.5)
KEPT = {**dict.fromkeys(TOPICS, 10.0), "hop": 10.0, "changelog": 0.0, "models": 0.0}
BOUNDS = capacity.Bounds(
    pending_max=1_000,
    known_s=100.0,
    maturity_s=50.0,
    kept={**KEPT, "examples": None, "audit": None},
    snapshot_every=50_000,
    snapshot_interval_s=30.0,
)


def test_workers_take_the_rate_at_their_share_and_pay_for_small_hops():
    """9,000/s of 50 us at half of a core is one; at 100 times that hops are small."""
    assert 1 == capacity.Fleet.of(9_000.0, WEIGHTS, COSTS).workers
    fleet = capacity.Fleet.of(1_000_000.0, WEIGHTS, COSTS)
    used = fleet.rate * (COSTS.worker_us + fleet.us_more) / 1e6
    assert fleet.workers > 100
    assert fleet.workers - 1 < used / COSTS.utilisation <= fleet.workers


def test_every_byte_is_written_in_all_copies_and_read_by_all_readers():
    """Network in is what comes, three times; out is what is read and two copies."""
    found = capacity.size(10_000.0, WEIGHTS, COSTS, BOUNDS, [])
    comes = sum(topic["bytes_per_s"] for topic in found["topics"].values())
    assert pytest.approx(3 * comes) == found["network_in_bytes_per_s"]
    assert pytest.approx(found["read_bytes_per_s"] + 2 * comes) == found["network_out_bytes_per_s"]
    assert pytest.approx(10.0 * 10_000.0 * 100.0 * 3) == found["topics"]["scores"]["kept_bytes"]


@pytest.mark.parametrize("rate", [20_000.0, 100_000.0, 1_000_000.0])
def test_the_negatives_named_are_those_that_one_core_learns(rate):
    """With ``join.negatives`` as it says the learner is asked for what it can."""
    told = capacity.learner(rate, WEIGHTS, COSTS)
    assert 25_000.0 == told["learnt_per_s_max"]
    assert pytest.approx(min(rate, 25_000.0)) == told["examples_per_s"]
    every = capacity.learner(rate, WEIGHTS, replace(COSTS, negatives=1.0))
    assert rate == every["examples_per_s"]


def test_summaries_take_their_part_of_the_learner_first():
    """1,000 of 250 us a second take the half of a half of a core."""
    weights = replace(WEIGHTS, summary_us=250.0)
    told = capacity.learner(256_000.0, weights, COSTS)
    assert (0.25, 12_500.0) == (told["core_for_summaries"], told["learnt_per_s_max"])


def test_more_partitions_make_rows_of_the_second_entity_heavier():
    """A guard for each partition beyond those that were weighed."""
    four, ten = (
        capacity.topics(capacity.Fleet(1e3, n, n, 1.0, 0.0), WEIGHTS, COSTS, BOUNDS)
        for n in (4, 10)
    )
    assert (60.0, 120.0) == tuple(told["changelog, second"].bytes for told in (four, ten))


def test_what_the_join_knows_ends_at_its_bound():
    """Two partitions of a thousand at 100/s: twenty seconds, where a hundred are declared."""
    told = capacity.waiting(capacity.Fleet(100.0, 2, 2, 1.0, 0.0), WEIGHTS, BOUNDS)
    assert (20.0, 20.0) == (told["known_s"], told["rate_max_as_declared"])
    assert 1e7 == told["bytes_as_declared"]
