"""The laws under random crashes, and that the simulator would notice if one were broken."""

from __future__ import annotations

import random

import numpy as np
import pytest
import structlog

from app.core.learner import Learner
from app.learning import new_learner
from app.records import Example, Send
from app.shelf import sealed
from app.testing import Driver
from app.topics import Topics
from tests.simulator.history import Shape, history_of, settings_of
from tests.simulator.mutants import MUTANTS
from tests.simulator.runs import first_to_catch, hush, run

#: 12 blocks of 8 histories: some ten crashes and a zombie or two in each history.
BLOCKS = 12
SEEDS = 8
#: Every mutant is noticed by one of these; most by the first few.
MUTANT_SEEDS = 200
#: A history that notices, of those that the first few do not: it is played before the others.
MET_AT = {
    "buckets_absorb_nothing": 34,
    "committed_under_way": 118,
    "disk_forgets_guards": 8,
    "evicted_rows_stay": 6,
    "feedback_does_not_wait": 27,
    "feedback_not_read_again": 27,
    "guard_of_the_whole_batch": 11,
    "settled_buckets_not_written": 34,
}


@pytest.fixture(autouse=True)
def _quiet():
    hush()
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_law_is_broken_by_crashes(block):
    """Whatever is killed, stopped or delivered by half: the logs end as if nothing had been."""
    for seed in range(block * SEEDS, (block + 1) * SEEDS):
        assert [] == run(seed).violations, f"seed {seed}"


@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_guard_is_needed(mutant):
    """Without the guard some history breaks a law."""
    seeds = (MET_AT.get(mutant, 0), *range(MUTANT_SEEDS))
    assert first_to_catch(mutant, seeds) is not None


def test_a_seed_is_one_history():
    """The same seed gives the same figures and, in a broken design, the same violations."""
    first, again = (run(5, "state_not_restored") for _ in range(2))
    assert first == again
    assert first.violations


@pytest.mark.parametrize("seed", range(4))
def test_batches_make_no_difference_to_scores(seed):
    """One by one or many at once: the same log and snapshot give the same scores, bit for bit."""
    one_by_one = _scores_of(seed, lambda rng: 1)
    assert one_by_one
    assert one_by_one == _scores_of(seed, lambda rng: rng.randint(1, 30))
    assert one_by_one == _scores_of(seed, lambda rng: 10_000)


def _scores_of(seed, draw):
    """Scores by source, by a model that was trained before and does not change.

    Partitions are worked off one after the other, so that the order in which a terminal sees
    its transactions is the same however large the batches are.
    """
    settings = settings_of(Shape(3, in_worker=False, corrections="ignore", is_crowded=False))
    driver = Driver(settings, learners=0)
    learner = _trained(settings, driver.plan)
    models = Topics.of(settings).models.name
    Driver.deliver(
        driver,
        driver.processes["worker-0"],
        [Send(models, 0, b"champion/0", sealed(learner, settings))],
    )
    for made in history_of(random.Random(seed), Shape(3, False, "ignore", is_crowded=False), n=80):
        if made.topic == "transactions":
            driver.publish(made.topic, made.value, key=made.key)
    driver.rebalance(settings.worker.group)
    process, rng = driver.processes["worker-0"], random.Random(seed + 1)
    for at in list(process.fetch):
        while True:
            records = driver.logs[at].between(process.fetch[at])[: draw(rng)]
            if not records:
                break
            driver.take(process, {at: records})
    return {
        (score.source.partition, score.source.offset): (
            score.score,
            score.model,
            tuple(score.features),
        )
        for score in driver.read("scores")
    }


def _trained(settings, plan) -> Learner:
    learner, rng = new_learner(settings, plan), np.random.default_rng(3)
    examples = [
        Example(
            transaction_id=f"x{i}", time_ms=i, amount=1.0, entities={}, score=0.5,
            features=[*rng.lognormal(1, 1, len(plan.names)).tolist()], feature_schema=plan.schema,
            is_fraud=bool(rng.random() < 0.3), label_time_ms=i, label_source="test",
            origin=("labels", 0, i),
        )
        for i in range(50)
    ]  # fmt: skip
    learner.apply(list(enumerate(examples)))
    return learner
