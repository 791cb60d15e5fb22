"""The driver: a flow without a broker."""

from __future__ import annotations

import pytest

from app.config import load
from app.errors import Fenced
from app.records import Partition, Send
from app.stages import entity_of
from app.testing import Driver, Killed, Log, Stalled

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
    return load(profile="card", model={"name": "logistic"}, topics={"partitions": 2}, **tables)


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
