"""What follows from drift: who decides, that it is told, and that a person can undo it."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest

from app.core.drift.channels import Terms
from app.core.drift.reaction import FASTER, Reactions, Rival
from app.core.drift.watch import DAY_MS
from app.core.learner import Learner, LearnerEffects
from app.core.models import make_model
from app.records import Action, Drift, Fact, ModelVersion, Undo
from tests.drifting import drifting_log

NAMES, SCHEMA = ("a", "b"), "s1"
DAYS, CHANGE = 20, 11
V = [ModelVersion("champion", n, f"{n:016x}") for n in range(100)]
Log = list[tuple[int, Fact]]


def learner_of(reaction: str) -> Learner:
    """A slow model, so that a new one beside it is soon better."""
    kinds = ("feature", "score", "performance", "label", "traffic")
    terms = Terms(
        NAMES, (0, 0), warmup_ms=5 * DAY_MS, learning_ms=0, reactions=dict.fromkeys(kinds, reaction)
    )
    return Learner("champion", make_model("logistic", NAMES, lr=0.001), SCHEMA, drift=terms)


@pytest.fixture(scope="module")
def log() -> Log:
    """A world that changes after eleven days."""
    return list(enumerate(drifting_log(NAMES, SCHEMA, days=DAYS, change=CHANGE)))


def folded(learner: Learner, log: Log, size: int = 0, seed: int = 0) -> LearnerEffects:
    """Everything said of a log, in batches of a size, or of any."""
    rng, all_of, at = random.Random(seed), LearnerEffects(), 0
    while at < len(log):
        step = size or rng.randint(1, 700)
        effects = learner.apply(log[at : at + step])
        all_of.actions += effects.actions
        all_of.drifts += effects.drifts
        at += step
    return all_of


def opened(drifts: list[Drift]) -> Drift:
    """The first incident."""
    return next(drift for drift in drifts if drift.event == "opened")


def with_undo(log: Log, at: int, incident: str) -> Log:
    """The same log in which somebody has had enough at an offset."""
    word = Undo(incident=incident, actor="alice", reason="it pages me")
    return list(enumerate([*(f for _, f in log[:at]), word, *(f for _, f in log[at:])]))


def told(actions: list[Action]) -> list[tuple[str, str, Any]]:
    """Kind, actor, and what happened to a reaction."""
    return [(a.kind, a.actor, a.detail.get("event")) for a in actions]


# ---- It is told.


def test_background_learner_that_takes_over_is_told(log):
    """Begun, promoted from one version to another, with the incident that was the reason."""
    learner = learner_of("background")
    said = folded(learner, log)
    first = opened(said.drifts)
    begun, promoted = said.actions[:2]
    assert [("reaction", "weir", "begun"), ("promotion", "weir", None)] == told(said.actions[:2])
    assert {first.incident} == {begun.detail["incident"], promoted.detail["incident"]}
    detail = promoted.detail
    assert detail["from"].startswith(f"champion@{detail['position']}/")
    assert "champion@-1/0000000000000000" == detail["to"], "it had learnt nothing before"
    assert begun.detail["position"] == detail["to_taught_after"]
    precision = detail["average_precision"]
    assert precision["to"] > precision["from"]
    assert first.detected_ms < detail["time_ms"] < DAYS * DAY_MS


def test_rollback_is_told_with_the_version_it_goes_back_to(log):
    """That of the copy: a version that was the learner's own, before the change."""
    learner = learner_of("rollback")
    versions, said = set[str](), LearnerEffects()
    for one in log:
        said.actions += learner.apply([one]).actions
        versions.add(str(learner.version))
    back = said.actions[0]
    assert ("rollback", "weir", None) == told([back])[0]
    assert {back.detail["from"], back.detail["to"]} <= versions
    before, after = (int(back.detail[k].split("@")[1].split("/")[0]) for k in ("to", "from"))
    assert before < after == back.detail["position"] == back.detail["to_taught_after"]


@pytest.mark.parametrize("reaction", ["faster", "page"])
def test_reaction_that_changes_no_model_is_told(log, reaction):
    """When it began; and of faster learning when the incident was over."""
    said = folded(learner_of(reaction), log)
    first = opened(said.drifts)
    assert ("reaction", "weir", "begun") == told(said.actions)[0]
    assert (first.incident, reaction) == tuple(
        said.actions[0].detail[name] for name in ("incident", "reaction")
    )
    closed = {drift.incident: drift.ended for drift in said.drifts if drift.event == "closed"}
    ended = {a.detail["incident"]: a.detail["why"] for a in said.actions[1:]}
    assert closed
    assert (closed if reaction == "faster" else {}) == ended


def test_nothing_declared_is_nothing_told(log):
    """An incident alone is no change of weir."""
    said = folded(learner_of("nothing"), log)
    assert said.drifts
    assert [] == said.actions


@pytest.mark.parametrize("reaction", ["background", "rollback", "faster"])
def test_batches_make_no_difference_to_reactions(log, reaction):
    """Copies, swaps and what is told of them lie at one record, however records come."""
    found = []
    for size, seed in ((0, 1), (len(log), 0), (257, 0)):
        learner = learner_of(reaction)
        said = folded(learner, log, size, seed)
        kept = [(k.time_ms, k.version, k.model.state_digest()) for k in learner.reactions.kept]
        found.append((learner.model.state_digest(), kept, repr(said.actions), repr(said.drifts)))
    assert 1 == len(set(map(repr, found)))


def test_learner_that_folds_again_says_the_same(log):
    """Under the same identities: whoever enters them enters each once."""
    expected = folded(learner_of("background"), log).actions
    assert len({a.identity for a in expected}) == len(expected)
    promoted = next(a for a in expected if a.kind == "promotion").detail["position"]
    killed, kept = learner_of("background"), learner_of("background")
    first = folded(killed, log[: promoted + 100]).actions
    folded(kept, log[: promoted - 100])
    again = folded(pickle.loads(pickle.dumps(kept)), log).actions
    assert len(first) + len(again) > len(expected), "nothing was said twice"
    assert expected == list({a.identity: a for a in [*first, *again]}.values())


# ---- It can be undone.


@pytest.mark.parametrize("reaction", ["background", "rollback"])
def test_undone_it_is_as_if_nothing_had_been_done(log, reaction):
    """The model of before has learnt all the while: it is the one that would have been."""
    said = folded(learner_of(reaction), log)
    swap = next(a for a in said.actions if a.kind in {"promotion", "rollback"})
    after = swap.detail["position"] + 200
    undone, other = learner_of(reaction), with_undo(log, after, swap.detail["incident"])
    effects = folded(undone, other[: after + 1])
    assert undone.reactions.rival is None
    back, ended = effects.actions[-2:]
    assert [("rollback", "alice", None), ("reaction", "alice", "ended")] == told([back, ended])
    assert swap.detail["incident"] == back.detail["incident"]
    assert "undone by alice: it pages me" == ended.detail["why"]
    last = effects.drifts[-1]
    assert ("updated", swap.detail["incident"]) == (last.event, last.incident)
    assert "undone by alice" in last.reaction
    control = learner_of("nothing")
    folded(control, log[:after])
    assert control.model.state_digest() == undone.model.state_digest()


def test_undone_before_it_decided_the_one_beside_is_let_go(log):
    """Who decides stays the same: that is no rollback."""
    learner = learner_of("background")
    begun = folded(learner, log).actions[0]
    after = begun.detail["position"] + 1
    learner = learner_of("background")
    said = folded(learner, with_undo(log, after, begun.detail["incident"])[: after + 1])
    assert [("reaction", "weir", "begun"), ("reaction", "alice", "ended")] == told(said.actions)
    assert learner.reactions.rival is None


def test_faster_learning_can_be_undone(log):
    """From then on examples weigh what they usually do."""
    begun = folded(learner_of("faster"), log).actions[0]
    after, learner = begun.detail["position"] + 1, learner_of("faster")
    said = folded(learner, with_undo(log, after, begun.detail["incident"])[: after + 1])
    assert ("reaction", "alice", "ended") == told(said.actions)[-1]
    assert 1.0 == learner.model.pace


def test_undo_of_what_is_not_done_changes_nothing_and_says_so(log):
    """An incident that nobody knows, and one that was undone before."""
    learner, control = learner_of("background"), learner_of("background")
    folded(learner, log[:500])
    folded(control, log[:500])
    word = Undo(incident="drift-9-9", actor="alice", reason="x")
    effects = learner.apply([(500, word)])
    assert [("reaction", "alice", "not undone")] == told(effects.actions)
    assert [] == effects.drifts
    assert control.model.state_digest() == learner.model.state_digest()
    assert (500, control.digest) == (learner.position, learner.digest)


# ---- The rules, by hand.


def taught(model: Any, rng: np.random.Generator, n: int, sign: float) -> None:
    """Examples in which the first feature speaks for fraud, or against it."""
    rows = rng.normal(size=(n, 2))
    model.learn_many(rows, (sign * rows[:, 0] > 0.8).astype(np.int8))


def test_rival_that_ranks_better_decides_and_the_other_is_kept():
    """A new model takes over from one that learnt another world; that one may come back."""
    rng, old = np.random.default_rng(3), make_model("logistic", ("a", "b"), lr=0.001)
    taught(old, rng, 4_000, 1.0)
    reactions = Reactions(frozenset({"background"}))
    model, _ = reactions.begin("d1", "background", 0, old, V[1])
    assert model is old
    for i in range(20):
        rows = rng.normal(size=(100, 2))
        is_fraud, ones = -rows[:, 0] > 0.8, np.ones(100)
        reactions.teach(model, rows, is_fraud, ones)
        model, _ = reactions.choose(model, V[2 + i])
    assert model is not old
    assert reactions.rival is not None
    assert reactions.rival.model is old
    assert 1 == reactions.n_swaps
    reactions.end("d1", "adopted")
    assert reactions.rival is None


def test_rollback_takes_the_copy_from_before_the_change():
    """Not the newest copy: that may have learnt the change."""
    rng, model = np.random.default_rng(4), make_model("logistic", ("a", "b"))
    reactions, digests = Reactions(frozenset({"rollback"}), every_ms=10), {}
    for time_ms in (0, 10, 20):
        taught(model, rng, 50, 1.0)
        digests[time_ms] = model.state_digest()
        reactions.keep(model, time_ms, V[time_ms])
    done = reactions.begin("d1", "rollback", 15, model, V[30])
    assert digests[10] == done.model.state_digest()
    assert {"from": str(V[30]), "to": str(V[10]), "to_taught_after": 30} == done.changes[0].detail
    assert reactions.rival is not None
    assert reactions.rival.model is model


def test_rollback_without_a_copy_says_that_there_is_none():
    """Nothing is done, and who reads the audit knows why."""
    reactions, model = Reactions(frozenset({"rollback"})), make_model("logistic", ("a",))
    reactions.keep(model, 100, V[1])
    done = reactions.begin("d1", "rollback", 50, model, V[2])
    assert (model, None) == (done.model, reactions.rival)
    assert ("not begun", "no copy is kept from before the change") == (
        done.changes[0].detail["event"], done.changes[0].detail["why"],
    )  # fmt: skip


def test_second_incident_does_not_push_out_the_model_of_before():
    """There would be no way back; one that only learns beside gives way, and that is told."""
    reactions, model = Reactions(frozenset({"rollback"})), make_model("logistic", ("a",))
    reactions.begin("d1", "background", 0, model, V[1])
    reactions.keep(model, 0, V[2])
    given_way = reactions.begin("d2", "background", 0, model, V[3])
    assert ["ended", "begun"] == [c.detail["event"] for c in given_way.changes]
    assert "d2 takes its place" == given_way.changes[0].detail["why"]
    reactions.end("d2", "returned")
    reactions.kept = []
    reactions.keep(model, 0, V[4])
    back = reactions.begin("d3", "rollback", 5, model, V[5])
    refused = reactions.begin("d4", "background", 5, back.model, V[6])
    assert "not begun" == refused.changes[0].detail["event"]
    assert model is reactions.undo("d3", "x", refused.model, V[7]).model


def test_pace_is_that_of_the_incidents_that_are_open():
    """Four times the usual one until the last is over."""
    reactions, model = Reactions(), make_model("logistic", ("a",))
    for name in ("d1", "d2"):
        assert model is reactions.begin(name, "faster", 0, model, V[1]).model
    assert FASTER == reactions.pace
    assert FASTER == reactions.end("d1", "returned")[0].detail["pace"]
    assert 1.0 == reactions.end("d2", "returned")[0].detail["pace"]
    assert [] == reactions.end("d2", "returned")


@pytest.mark.parametrize("name", ["logistic", "forest", "hoeffding", "average", "stack"])
def test_model_at_a_pace_learns_as_from_weights(name):
    """Twice the pace is twice the weight; and a model told beside learns the same."""
    rng = np.random.default_rng(5)
    rows, is_fraud = rng.normal(size=(300, 2)), np.arange(300) % 5 == 0
    params = {} if name in {"average", "stack"} else {"seed": 1}
    quick, weighed = (make_model(name, ("a", "b"), **params) for _ in range(2))
    quick.pace = 2.0
    quick.learn_told_many(rows, is_fraud)
    weighed.learn_many(rows, is_fraud, np.full(300, 2.0))
    if name != "forest":  # its trees are regrown sooner, too
        assert np.array_equal(quick.score_many(rows), weighed.score_many(rows))
    fresh = make_model(name, ("a", "b"), **params)
    assert np.array_equal(fresh.score_many(rows), weighed.blank().score_many(rows))


def test_few_frauds_decide_nothing():
    """Average precision of a handful is noise."""
    rival = Rival(make_model("logistic", ("a",)), "d1", "background", V[0], 0)
    rival.hear(np.array([True, False]), np.array([-1.0, 1.0]), np.array([1.0, -1.0]))
    assert rival.compared() is None
    assert not rival.is_better()
