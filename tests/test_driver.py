"""The driver: a flow without a broker."""

from __future__ import annotations

import pytest

from app.config import load
from app.errors import Fenced, Refused
from app.records import Partition, Record, Send, Summary
from app.stages import EntityStage, entity_of
from app.testing import Driver, Killed, Log, Stalled
from app.web import readiness

T1 = {
    "transaction_id": "t1",
    "event_time": "2026-01-01T09:00:00Z",
    "card_id": "card-1",
    "terminal_id": "shop-1",
    "amount": 12.5,
}
L1 = {"transaction_id": "t1", "is_fraud": True, "event_time": "2026-01-08T09:00:00Z"}


def settings(**tables):
    """Two partitions and the smallest model."""
    small = {"model": {"name": "logistic"}, "topics": {"partitions": 2}}
    return load(profile="card", **{**small, **tables})


class Breaking(Driver):
    """Kills or stops a process at the n-th delivery."""

    left = -1
    error: type[Exception] = Killed

    def deliver(self, process, sends):
        """Break at the n-th, or deliver."""
        self.left -= 1
        if self.left == 0:
            process.in_flight = sends
            raise self.error
        super().deliver(process, sends)


def test_transaction_is_scored_and_its_label_taught():
    """What goes in at one end comes out at the other, through every stage."""
    driver = Driver(settings())
    driver.publish("transactions", T1)
    driver.publish("labels", L1)
    driver.run()
    (score,) = driver.read("scores")
    (example,) = driver.read("examples")
    assert "t1" == score.transaction_id
    assert score.features == example.features
    assert ["learn"] == [outcome.outcome for outcome in driver.read("outcomes")]


@pytest.mark.parametrize("batch", [1, 2, 500])
def test_batch_size_is_the_callers_choice(batch):
    """However many records are taken at once, all are."""
    driver = Driver(settings())
    for i in range(5):
        driver.publish("transactions", {**T1, "transaction_id": f"t{i}"})
    driver.run(batch)
    assert [f"t{i}" for i in range(5)] == sorted(s.transaction_id for s in driver.read("scores"))


def test_crash_loses_what_was_in_memory_and_nothing_else():
    """A transaction after the crash sees the one before it."""
    driver = Driver(settings())
    driver.publish("transactions", T1)
    driver.run()
    driver.crash()
    driver.publish("transactions", {**T1, "transaction_id": "t2"})
    driver.run()
    scores = {score.transaction_id: score for score in driver.read("scores")}
    counts = driver.plan.names.index("card_id_count_1d")
    assert [1.0, 2.0] == [scores[name].features[counts] for name in ("t1", "t2")]


@pytest.mark.parametrize("delivery", [1, 2, 3, 4])
def test_process_can_be_killed_at_each_delivery(delivery):
    """Killed before outputs or state arrived, a successor does it again."""
    driver = Breaking(settings())
    driver.left = delivery
    driver.publish("transactions", T1)
    with pytest.raises(Killed):
        driver.run()
    driver.start("worker-1")
    driver.run()
    assert {"t1"} == {score.transaction_id for score in driver.read("scores")}
    assert [] == driver.dead_letters()


def test_worker_that_slept_through_its_session_is_fenced():
    """What was on its way arrives late; nothing more is written."""
    driver = Breaking(settings())
    driver.left, driver.error = 1, Stalled
    driver.publish("transactions", T1)
    driver.run()
    (zombie,) = driver.processes.values()
    driver.advance(driver.settings.kafka.session_timeout)
    del driver.processes[zombie.name]
    driver.expel(zombie)
    driver.start("worker-1")
    driver.run()
    with pytest.raises(Fenced):
        driver.resume(zombie)
    driver.run()
    (score,) = driver.read("scores")
    assert "t1" == score.transaction_id


def test_workers_share_the_partitions():
    """Each partition of a topic belongs to one worker, and co-partitioned ones to the same."""
    driver = Driver(settings(), workers=2)
    driver.run()
    owners: dict[Partition, str] = {}
    for process in driver.processes.values():
        for at in process.flow.tasks:
            assert at not in owners
            owners[at] = process.name
    assert owners[Partition("scores", 0)] == owners[Partition("labels", 0)]
    assert {"worker-0", "worker-1"} == set(owners.values())


def test_follower_adopts_what_a_learner_of_its_own_has_learnt():
    """With the learner in another process the worker scores with its newest snapshot."""
    driver = Driver(settings(learner={"in_worker": False, "snapshot_interval": "30s"}))
    driver.publish("transactions", T1)
    driver.publish("labels", L1)
    driver.run()
    driver.advance(60_000)
    driver.run()
    driver.run()
    worker, learner = driver.processes["worker-0"], driver.processes["learner-0"]
    assert 0 == learner.champion.version.position
    assert learner.champion.version == worker.champion.version


def test_repeats_are_held_back_and_history_is_at_hand():
    """One alert of a card a day; it links to what is known of the card and the terminal."""
    driver = Driver(settings(policy={"threshold": 0.0, "repeats": {"entity": "card_id"}}))
    times = ["2026-05-01T09:00:00Z", "2026-05-01T10:00:00Z", "2026-05-02T09:00:00Z"]
    for i, time in enumerate(times):
        driver.publish("transactions", {**T1, "transaction_id": f"t{i}", "event_time": time})
        driver.run()
        driver.crash()
    driver.run()
    shown = {alert.transaction_id: alert.repeats for alert in driver.read("alerts")}
    assert shown == {"t0": 0, "t2": 1}
    alert = driver.read("alerts")[0]
    tasks = [task for p in driver.processes.values() for task in p.flow.tasks.values()]
    for link, (kind, name) in zip(alert.links.values(), alert.entities.items(), strict=True):
        assert link == f"/v1/entities/{kind}/{name}"
        found = entity_of(tasks, kind, name)
        assert found is not None
        assert [row["amount"] for row in found["transactions"]] == [T1["amount"]] * 3
    assert entity_of(tasks, "card_id", "nobody") is None


def test_compaction_keeps_the_last_of_each_key():
    """Offsets stay; a null goes with the second cleaning."""
    log = Log()
    for key, value in ((b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"b", None), (b"c", b"1")):
        log.append(Send("t", 0, key, value), 0)
    log.compact(below=4)
    assert [(2, b"2"), (3, None), (4, b"1")] == [(r.offset, r.value) for r in log.records]
    log.compact(below=5)
    assert [2, 4] == [record.offset for record in log.records]
    assert 5 == log.append(Send("t", 0, b"a", b"3"), 0)
    assert [4, 5] == [record.offset for record in log.between(3)]


def test_driver_does_the_same_twice():
    """No clock, no chance: the same calls give the same bytes."""

    def logs():
        driver = Driver(settings(), workers=2)
        for i in range(20):
            driver.publish(
                "transactions", {**T1, "transaction_id": f"t{i}", "card_id": f"c{i % 3}"}
            )
        driver.run(3)
        driver.advance(60_000)
        driver.run()
        return {at: log.records for at, log in driver.logs.items() if at.topic != "models"}

    assert logs() == logs()


def payments(driver, first, n):
    """Publish n transactions, of 10 and 500 by turns."""
    for i in range(first, first + n):
        amount = 500.0 if i % 2 else 10.0
        driver.publish("transactions", {**T1, "transaction_id": f"t{i}", "amount": amount})


def told_by(driver, first, last=10**6):
    """(stamp, score) of the transactions from the first to the last."""
    scores = [s for s in driver.read("scores") if first <= int(s.transaction_id[1:]) <= last]
    return {(score.fallback, score.score) for score in scores}


def reading(driver, name, **labels):
    """What a metric of the only worker stands at."""
    registry = driver.processes["worker-0"].flow.metrics.registry
    return registry.get_sample_value(name, labels)


RULES = [
    {"name": "large", "amount_min": 100.0, "score": 0.75},
    {"name": "rest", "score": 0.125},
]


def test_late_batch_is_told_by_rules_where_the_model_is_slow():
    """Stamped on scores and alerts, counted; in time again, the model decides again."""
    driver = Driver(settings(latency={"budget": "50ms", "slow_us": 0, "rules": RULES}))
    payments(driver, 0, 300)
    driver.publish("labels", {**L1, "transaction_id": "t1"})
    driver.run()
    assert {"no_model"} == {stamp for stamp, _ in told_by(driver, 0)}, "nothing was learnt before"
    payments(driver, 300, 4)
    driver.advance(51)
    driver.run()
    assert {("late", 0.75), ("late", 0.125)} == told_by(driver, 300)
    assert 4 == reading(driver, "weir_fallback_scores_total", reason="late")
    late = [alert for alert in driver.read("alerts") if alert.fallback == "late"]
    assert {"t301", "t303"} == {alert.transaction_id for alert in late}
    assert "too slow" in late[0].policy
    payments(driver, 304, 2)
    driver.advance(50)
    driver.run()
    assert {""} == {stamp for stamp, _ in told_by(driver, 304)}
    driver.publish("labels", {**L1, "transaction_id": "t301"})
    driver.run()
    (example,) = [e for e in driver.read("examples") if getattr(e, "fallback", "") == "late"]
    (score,) = [s for s in driver.read("scores") if s.transaction_id == "t301"]
    assert score.features == example.features


@pytest.mark.parametrize(("n", "expected"), [(63, ""), (64, "late")])
def test_cost_is_measured_where_a_batch_is_large_enough(n, expected):
    """What a call costs by itself makes no model slow."""
    driver = Driver(settings(topics={"partitions": 1}, latency={"budget": "50ms", "rules": RULES}))
    stage = driver.processes["worker-0"].flow.stages[1]
    assert isinstance(stage, EntityStage)
    ticks = iter(range(0, 10**9, n * 100_000))  # a batch of n takes 100 us a record
    stage.pace.cpu_ns = lambda: next(ticks)
    driver.publish("transactions", T1)
    driver.publish("labels", L1)
    driver.run()
    payments(driver, 2, n)
    driver.run()
    payments(driver, 200, 4)
    driver.advance(51)
    driver.run()
    assert {expected} == {stamp for stamp, _ in told_by(driver, 200)}


def test_model_that_no_longer_learns_is_stale():
    """While its learner is away the last model decides, and says so; then no longer."""
    driver = Driver(settings(
        topics={"partitions": 1}, learner={"in_worker": False, "snapshot_interval": "1s"},
        latency={"stale_after": "1m", "rules": RULES},
    ))  # fmt: skip
    driver.publish("transactions", T1)
    driver.publish("labels", L1)
    driver.run()
    driver.advance(1_000)
    driver.step(driver.processes["learner-0"])
    driver.kill(driver.processes["learner-0"])
    champion = driver.processes["worker-0"].champion
    payments(driver, 2, 255)
    driver.run()
    driver.advance(3_600_000)
    assert 0 == champion.unlearnt_ms(driver.now_ms), "there may be nothing to learn"
    payments(driver, 300, 1)
    driver.run()
    driver.advance(60_001)
    payments(driver, 301, 1)
    driver.run()
    assert {""} == {stamp for stamp, _ in told_by(driver, 2, 300)}
    assert {"stale"} == {stamp for stamp, _ in told_by(driver, 301)}
    assert 60.001 == reading(driver, "weir_model_age_seconds")
    flow = driver.processes["worker-0"].flow
    stale = readiness(flow, lambda: True, lambda: champion.unlearnt_ms(driver.now_ms))
    assert "the model has learnt nothing for 60 s" == stale["unlearnt"]
    driver.start("learner-0", "learner", "weir-learner-0")
    driver.run()
    driver.advance(1_000)
    driver.step(driver.processes["learner-0"])
    payments(driver, 400, 1)
    driver.run()
    assert {""} == {stamp for stamp, _ in told_by(driver, 400)}


def test_worker_is_bounded_while_its_learner_is_away():
    """What waits has bounds, by the metrics too; what is to be learnt lies in the log."""
    driver = Driver(settings(
        topics={"partitions": 1}, learner={"in_worker": False},
        join={"pending_max": 64, "early_max": 16},
    ), learners=0)  # fmt: skip
    for first in range(0, 1_024, 128):
        payments(driver, first, 128)
        driver.publish("labels", {**L1, "transaction_id": f"t{first}"})
        for i in range(20):
            driver.publish("labels", {**L1, "transaction_id": f"x{first + i}"})
        driver.run()
        assert reading(driver, "weir_pending", partition="0") <= 64
        assert reading(driver, "weir_labels_early", partition="0") <= 16
    assert 1_024 - 64 == reading(driver, "weir_pending_overflowed", partition="0")
    assert 1_024 // 256 == len([e for e in driver.read("examples") if isinstance(e, Summary)])
    driver.advance(60_000)
    payments(driver, 2_000, 1)
    driver.run()
    assert 60.0 == reading(driver, "weir_model_age_seconds")


def test_quick_model_decides_what_is_late():
    """A fallback would be no quicker: lateness alone stamps nothing."""
    driver = Driver(settings(latency={"budget": "50ms", "slow_us": 1e9, "rules": RULES}))
    driver.publish("transactions", T1)
    driver.publish("labels", L1)
    driver.run()
    payments(driver, 2, 200)
    driver.advance(60_000)
    driver.run()
    assert {""} == {stamp for stamp, _ in told_by(driver, 2)}


def test_row_of_a_stranger_in_a_changelog_is_refused_with_its_place():
    """State that cannot be read would be missing: nothing is scored without it."""
    driver = Driver(load(profile="card"))
    task = next(t for t in driver.processes["worker-0"].flow.stages if t.name == "card_id").task(0)
    at = Partition("weir.changelog.card_id", 0)
    for key, value in ((b"x", b"y"), (b"card-1\0\0\0", b"short"), (b"\xff\0\0\0", None)):
        with pytest.raises(Refused, match=r"weir\.changelog\.card_id\[0\]@17: row is"):
            task.restore(at, [Record(17, key, value, 0)])
