"""The audit: everything once, in a chain that shows whatever is done to it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest

from app import codec
from app.access import new_token
from app.audit import SEAL, configured, seal_of, told
from app.auditing import check, entry_of, heads_of
from app.config import NumberFeature, load
from app.core.chain import REMEMBERED_MAX, Chain, Check, digest_of
from app.learning import asked, new_learner
from app.records import Action, Entry, Partition, Record, Send, Undo
from app.testing import Driver, Killed
from app.topics import Topics, partition_of
from tests.drifting import drifting_log, until_promotion

SETTINGS = load(
    profile="card",
    model={"name": "logistic"},
    topics={"partitions": 2},
    policy={"threshold": 0.0},
    learner={"corrections": "relearn", "snapshot_every": 1},
)
ENTRY = Entry(
    place=0, previous="", kind="alert", subject="t1", actor="weir", time_ms=0, at=("alerts", 0, 0),
    identity="", detail={},
)  # fmt: skip
KEY = SETTINGS.learner.key.get_secret_value().encode()


class Breaking(Driver):
    """Kills a process at the n-th delivery, before or after it has arrived."""

    left = -1
    arrives = False

    def deliver(self, process, sends):
        """Break at the n-th, or deliver."""
        self.left -= 1
        if self.left != 0:
            super().deliver(process, sends)
            return
        super().deliver(process, sends if self.arrives else sends[: len(sends) // 2])
        raise Killed


def feed(driver: Driver, n: int = 6) -> None:
    """Transactions, each an alert; labels; corrections of the first two; an action."""
    for i in range(n):
        ids = {"transaction_id": f"t{i}", "card_id": f"c{i}", "terminal_id": "s1"}
        driver.publish("transactions", {**ids, "event_time": 1_767_225_600 + i, "amount": 5.0})
        label = {"transaction_id": f"t{i}", "event_time": 1_767_229_200 + i, "source": "analyst"}
        driver.publish("labels", {**label, "is_fraud": True})
        if i < 2:
            driver.publish("labels", {**label, "is_fraud": False})


def chains(driver: Driver) -> list[tuple[int, Record]]:
    """Every record of the audit, by partition."""
    found = []
    for p in range(2):
        log = driver.logs[driver.topics.audit.name, p]  # type: ignore[index]
        found += [(p, record) for record in log.records]
    return found


def verdict_of(found, known=None):
    """What a check says."""
    return check(found, "weir.audit", 2, KEY, known or {})


def said(found) -> list[tuple[str, str]]:
    """(kind, subject) of all entries, sorted."""
    entries = [entry_of(record) for _, record in found]
    assert all(entries)
    return sorted((e.kind, e.subject) for e in entries if e)


EXPECTED = sorted(
    [("alert", f"t{i}") for i in range(6)] + [("correction", "t0"), ("correction", "t1")]
)


def test_every_alert_and_correction_has_one_entry():
    """Ids and positions, no payload; the chains are whole."""
    driver = Driver(SETTINGS)
    feed(driver)
    driver.run()
    found = chains(driver)
    assert EXPECTED == said(found)
    assert [] == verdict_of(found).problems
    assert {0, 1} == {p for p, _ in found}
    assert not any(b'"c1"' in (r.value or b"") or b"amount" in (r.value or b"") for _, r in found)


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("delivery", range(1, 25))
def test_whoever_is_killed_wherever_nothing_is_doubled_or_lost(delivery, arrives):
    """Half of a delivery arrives, or all of it and nobody hears: each fact has one entry."""
    driver = Breaking(SETTINGS)
    driver.left, driver.arrives = delivery, arrives
    feed(driver)
    with suppress(Killed):
        driver.run(1)
    if driver.processes:  # the n-th never came
        driver.crash()
    else:
        driver.start("worker-0")
    driver.run(3)
    found = chains(driver)
    assert EXPECTED == said(found)
    assert [] == verdict_of(found).problems


@pytest.fixture(scope="module")
def whole():
    """Two chains of some entries."""
    driver = Driver(SETTINGS)
    feed(driver)
    driver.run()
    return chains(driver)


def changed(record: Record, **fields: object) -> Record:
    """An entry that says something else, sealed by somebody without the key."""
    entry = msgspec.structs.replace(codec.read_entry(record), **fields)
    return msgspec.structs.replace(record, value=codec.encode(entry))


def resealed(record: Record, **fields: object) -> Record:
    """The same by somebody who has the key."""
    one = changed(record, **fields)
    return msgspec.structs.replace(one, headers=((SEAL, seal_of(one.value or b"", KEY)),))


def after(record: Record, **fields: object) -> Record:
    """A record that follows one and, unless told otherwise, says the same."""
    offset = record.offset + 1
    link = {"place": offset, "previous": digest_of(record.value or b"")}
    return msgspec.structs.replace(resealed(record, **(link | fields)), offset=offset)


def last_of(found, partition):
    """Where the last entry of a chain stands in the list."""
    return max(i for i, (p, _) in enumerate(found) if p == partition)


def put(found, at, record):
    """The list with another record in the place of one."""
    return [(p, record if i == at else had) for i, (p, had) in enumerate(found)]


TAMPERED = {
    "the first is changed": (lambda f: put(f, 0, changed(f[0][1], subject="x")), "not sealed"),
    "the last is changed": (
        lambda f: put(f, len(f) - 1, changed(f[-1][1], actor="x")),
        "not sealed",
    ),
    "one is changed with the key": (
        lambda f: put(f, 0, resealed(f[0][1], subject="x")),
        "not the one it was written after",
    ),
    "one is taken out": (lambda f: [*f[:1], *f[2:]], "are gone"),
    "two change places": (
        lambda f: [
            (f[1][0], msgspec.structs.replace(f[1][1], offset=f[0][1].offset)),
            (f[0][0], msgspec.structs.replace(f[0][1], offset=f[1][1].offset)),
            *f[2:],
        ],
        "was written as entry",
    ),
    "one is foreign": (
        lambda f: [*f, (f[-1][0], Record(f[-1][1].offset + 1, None, b"{}", 0))],
        "is no entry",
    ),
    "one is said again, with the key": (
        lambda f: [*f, (f[-1][0], after(f[-1][1]))],
        "what was said before",
    ),
    "one follows nothing": (
        lambda f: [*f, (f[-1][0], after(f[-1][1], previous="0" * 63 + "1"))],
        "not the one it was written after",
    ),
    "one lies before what it was written after": (
        lambda f: [*f, (f[-1][0], after(f[-1][1], place=f[-1][1].offset))],
        "was written as entry",
    ),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_tampering_shows(whole, how):
    """Whatever is done to one record, the check names it."""
    tamper, expected = TAMPERED[how]
    problems = verdict_of(tamper(list(whole))).problems
    assert any(expected in problem for problem in problems), problems
    assert all(problem.startswith("weir.audit[") for problem in problems)


@pytest.mark.parametrize("is_copy", [True, False])
def test_entry_that_a_former_owner_wrote_late_lies_beside_and_breaks_nothing(is_copy):
    """The network held it past the session: the next owner knows nothing of it until a restart."""
    driver = Driver(SETTINGS)
    feed(driver)
    driver.run()
    at = Partition(driver.topics.audit.name, 0)
    *_, before, held = driver.logs[at].records
    late = held if is_copy else resealed(held, actor="x", at=("alerts", 0, 0))
    assert codec.read_entry(held).previous == digest_of(before.value or b"")

    subjects = [name for i in range(50) if partition_of((name := f"r{i}").encode(), 2) == 0]
    driver._append(Send(*at, None, late.value, late.headers))  # of whoever had the partition
    for name in subjects:
        driver._append(told(driver.topics, Action("reset", name, name, detail={})))
        driver.run()
        if name == subjects[4]:
            driver.crash()  # whoever restores goes on after whatever lies there
    verdict = verdict_of(chains(driver))
    assert [] == verdict.problems
    assert verdict.as_object()["whole"]
    told_of = f"weir.audit[0], entry {late.offset + 1}: it "
    assert told_of + (f"is entry {late.offset} once" if is_copy else "follows") in verdict.beside[0]
    assert len(verdict.beside) == (1 if is_copy else 2)
    assert sorted(subjects) == [name for kind, name in said(chains(driver)) if kind == "reset"]


def test_chain_that_was_cut_off_shows_against_what_was_known(whole):
    """Nothing in a chain says that it went on; who kept its end knows."""
    known = heads_of(verdict_of(whole).as_object())
    assert [] == verdict_of(whole, known).problems
    at = last_of(whole, 0)
    cut = [*whole[:at], *whole[at + 1 :]]
    assert [] == verdict_of(cut).problems
    assert ["cut off" in problem for problem in verdict_of(cut, known).problems] == [True]


def test_chain_that_was_written_anew_shows_against_what_was_known(whole):
    """With the key one can write another chain, but not that one."""
    known = heads_of(verdict_of(whole).as_object())
    at = last_of(whole, 0)
    anew = list(whole)
    anew[at] = (0, resealed(whole[at][1], subject="x"))
    assert [] == verdict_of(anew).problems
    (problem,) = verdict_of(anew, known).problems
    assert "not what was there" in problem


def test_other_settings_are_entered_and_the_same_are_not():
    """A process says at its start what it was told; who starts again says nothing new."""
    driver = Driver(SETTINGS)
    other = load(None, "card", policy={"threshold": 0.9}, learner={"key": "hidden"})
    starts = [SETTINGS, SETTINGS, other, SETTINGS]
    for at_ms, settings in enumerate(starts):
        driver._append(configured(settings, driver.topics, "worker", at_ms))
        driver.run()
    found = chains(driver)
    assert [("configuration", "worker")] * 3 == said(found)
    entries = [e for _, record in found if (e := entry_of(record))]
    assert [0.0, 0.9, 0.0] == [e.detail["settings"]["policy.threshold"] for e in entries]
    assert not any(b"hidden" in (record.value or b"") for _, record in found)
    assert "worker.web_port" not in entries[0].detail["settings"]


def test_settings_are_told_alike_whatever_order_sets_have_and_name_nobody():
    """Each start of each process would be another entry; and lists hold what cards are called."""
    told: dict[str, Any] = {"policy": {"block": {"card_id": ["c9", "c1", "c5"]}}}
    told["access"] = {"tokens": [{"name": "anna", "role": "read", "hash": new_token("anna")[1]}]}
    topics = Topics.of(SETTINGS)
    one, other = (
        configured(load(None, "card", learner={"key": "k"}, **told), topics, "worker", 0)
        for _ in range(2)
    )
    assert one == other
    assert not any(word in (one.value or b"") for word in (b"scrypt", b'"c9"'))
    held = load(None, "card", policy=told["policy"]).model_dump(mode="json")
    assert {"card_id": ["c1", "c5", "c9"]} == held["policy"]["block"]


def test_action_said_twice_is_one_entry():
    """A promotion by a person, with what it was from and to."""
    driver = Driver(SETTINGS)
    promotion = Action("promotion", "champion", "p1", "alice", {"to": "challenger@7"})
    for _ in range(2):
        driver._append(told(driver.topics, promotion))
        driver.run()
        driver.crash()
    driver.run()
    (entry,) = [entry_of(record) for _, record in chains(driver)]
    assert entry is not None
    assert ("promotion", "alice", {"to": "challenger@7"}) == (entry.kind, entry.actor, entry.detail)


REACTING = load(
    None,
    profile="stream",
    transaction={"numbers": ["value", "other"]},
    features=tuple(NumberFeature(kind="number", field=name) for name in ("value", "other")),
    model={"name": "logistic", "params": {"lr": 0.001}},
    topics={"partitions": 2},
    learner={"snapshot_every": 2_000},
    drift={"reaction": "background", "warmup": "4d", "learning": "0s"},
)


@pytest.fixture(scope="module")
def changing():
    """What the join would write of a world that changes, encoded."""
    plan = Driver(REACTING).plan
    facts = drifting_log(plan.names, plan.schema, days=16, change=8)
    return [codec.encode(fact) for fact in facts]


def reacted(driver: Driver) -> list[Entry]:
    """The entries of what the learner did."""
    found = [entry for _, record in chains(driver) if (entry := entry_of(record))]
    return [entry for entry in found if entry.kind in {"reaction", "promotion", "rollback"}]


def run_through(driver: Driver, facts: list[bytes]) -> None:
    """Learn all of it, some thousand at a time, killed now and then between two snapshots."""
    for fact in facts:
        driver.publish("examples", fact)
    driver.run(500)


def test_reactions_of_a_learner_that_is_killed_are_entered_once(changing):
    """It folds again from its snapshot and says again what it did: each of it is one entry."""
    driver = Driver(REACTING)
    run_through(driver, changing)
    expected = [(e.identity, e.detail) for e in reacted(driver)]
    assert ["reaction/", "promotion/"] == [name[: name.index("/") + 1] for name, _ in expected[:2]]

    killed = Breaking(REACTING)
    killed.arrives = True  # all is on the topics, and whoever wrote it does not know
    for n in (3, 9, 14, 21):
        killed.left = n
        with suppress(Killed):
            run_through(killed, changing if n == 3 else [])
        if not killed.processes:
            killed.start("worker-0")
    killed.left = -1
    killed.run(500)
    said = [codec.read_action(r) for r in killed.records("actions")]
    assert len(said) > len({action.identity for action in said}), "nothing was said twice"
    assert expected == [(e.identity, e.detail) for e in reacted(killed)]
    assert [] == verdict_of(chains(killed)).problems


def test_undo_is_entered_with_who_and_why(changing):
    """A person's word on the log: the reaction ends, and the entry names them."""
    driver = Driver(REACTING)
    facts = [codec.read_example(Record(0, None, value, 0)) for value in changing]
    run_through(driver, changing[: until_promotion(new_learner(REACTING, driver.plan), facts)])
    incident = reacted(driver)[0].detail["incident"]
    word = Undo(incident=incident, actor="alice", reason="a holiday")
    driver._append(asked(driver.topics, word))
    driver.run()
    *_, rollback, ended = reacted(driver)
    assert ("rollback", "alice") == (rollback.kind, rollback.actor)
    assert "undone by alice: a holiday" == ended.detail["why"]
    assert incident == rollback.detail["incident"] == ended.detail["incident"]


def test_model_that_is_learnt_anew_is_entered(changing):
    """No snapshot could be opened: it begins from nothing, and the audit says why, once."""
    driver = Driver(REACTING)
    run_through(driver, changing[:200])
    driver.logs[driver.topics.models.name, 0].records.clear()  # type: ignore[index]
    driver.publish("models", b"not a snapshot", key="champion/0")
    for _ in range(2):
        driver.crash()
        driver.run(500)
    found = [entry for _, record in chains(driver) if (entry := entry_of(record))]
    (reset,) = [entry for entry in found if entry.kind == "reset"]
    assert "champion@-1/0000000000000000" == reset.detail["to"]
    assert "torn or foreign" in reset.detail["why"]


def test_guard_outlasts_the_memory_of_identities():
    """What was entered long ago is not entered again, though its identity is forgotten."""
    chain = Chain()
    for i in range(REMEMBERED_MAX + 1):
        entry = msgspec.structs.replace(ENTRY, at=("alerts", 0, i), identity=f"alert/{i}")
        chain.follow(i, b"", entry)
    assert REMEMBERED_MAX == len(chain)
    assert chain.has("alert/0", "alerts", 0)
    assert not chain.has("alert/0", "alerts", REMEMBERED_MAX + 1), "another record of that name"
    assert chain.has("alert/1", "alerts", REMEMBERED_MAX + 1)
    assert 1 == chain.low
    chain.begin_again("alerts")  # made anew
    assert not chain.has("alert/0", "alerts", 0)
    assert chain.has("alert/1", "alerts", 0), "what is remembered is remembered"


def test_what_is_said_again_after_long_is_no_damage():
    """A model that is learnt anew says again what the writer of the chain has forgotten."""
    found = Check()
    for place in range(REMEMBERED_MAX + 2):
        name = f"reaction/{place % (REMEMBERED_MAX + 1)}"
        entry = msgspec.structs.replace(ENTRY, place=place, previous=found.head, identity=name)
        found.look(place, codec.encode(entry), entry, is_sealed=True)
    assert [] == found.end()
    again = msgspec.structs.replace(entry, place=found.n, previous=found.head)
    found.look(found.n, codec.encode(again), again, is_sealed=True)
    assert ["it says what was said before" in problem for problem in found.end()] == [True]
