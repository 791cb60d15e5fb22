"""A model is what its log makes: verified by the snapshot, made anew where labels changed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from app.config import Settings, load
from app.core.learner import Learner
from app.core.scoring import Champion
from app.errors import Refused
from app.learning import Follower, LearnTask, new_learner
from app.metrics import Metrics
from app.records import Example, Record
from app.replay import Checked, Extent, Log, examine, fold_corrected, rebuild, verify
from app.shelf import frozen, hints, sealed
from app.snapshots import seal
from app.testing import Driver
from app.topics import Topics

STREAM = load(profile="stream", model={"name": "logistic"}, learner={"corrections": "rebuild"})
OTHER = load(profile="stream", model={"name": "logistic", "seed": 7})
N = 600


def log_of(
    settings: Settings, wrong: float = 0.0, seed: int = 1, n: int = N
) -> list[tuple[int, Example]]:
    """Examples that can be learnt; so large a share has its label wrong at first."""
    plan = Log(settings).plan
    rng, said = random.Random(seed), list[Example]()
    for i in range(n):
        is_fraud = rng.random() < 0.2
        features = [rng.gauss(1.5 if is_fraud else 0.0, 1.0) for _ in plan.names]
        told = is_fraud is not (rng.random() < wrong)
        for label in [told] if told is is_fraud else [told, is_fraud]:
            said.append(
                Example(
                    transaction_id=f"t{i}", time_ms=i * 60_000, amount=1.0, entities={}, score=0.5,
                    features=[*features], feature_schema=plan.schema, is_fraud=label,
                    label_time_ms=i * 60_000, label_source="bank", origin=("labels", 0, len(said)),
                )
            )  # fmt: skip
    return list(enumerate(said))


class Kept(Log):
    """A log in memory, of which the beginning may be gone."""

    def __init__(
        self, settings: Settings, facts: list[tuple[int, Example]], first: int = 0
    ) -> None:
        super().__init__(settings)
        self.facts, self.first = facts, first
        self.n_read = 0

    async def extent(self) -> Extent:
        """What it holds."""
        return Extent(self.first, len(self.facts))

    async def read(self, start: int, stop: int, take: Callable[[Any], object]) -> None:
        """In pieces of no particular size."""
        held = [fact for fact in self.facts if max(start, self.first) <= fact[0] < stop]
        for at in range(0, len(held), 97):
            take(held[at : at + 97])
            self.n_read += len(held[at : at + 97])


def snapshots_at(settings: Settings, facts: Any, *positions: int) -> list[Record]:
    """Snapshots of a learner that stood at these positions."""
    learner, found = new_learner(settings, Log(settings).plan), list[Record]()
    for position in positions:
        learner.apply([fact for fact in facts if fact[0] <= position])
        found.append(Record(len(found), b"champion/0", sealed(learner, settings), 0))
    return found


def scores_at(settings: Settings, facts: Any, *positions: int) -> list[Record]:
    """Of the same learner, what gives scores: all that a follower reads where there are headers."""
    learner, found = new_learner(settings, Log(settings).plan), list[Record]()
    for position in positions:
        learner.apply([fact for fact in facts if fact[0] <= position])
        found.append(scores_of(settings, learner))
    return found


def scores_of(settings: Settings, learner: Learner) -> Record:
    """What gives scores, as it lies on the topic."""
    copy = frozen(Champion.of(learner).for_scoring(), learner)
    key = settings.learner.key.get_secret_value().encode()
    return Record(0, b"scores/0", copy.sealed(key), 0, hints(copy.about))


def verified(log: Log, records: list[Record]) -> list[Checked]:
    """What is found of some snapshots."""
    checked = examine(records, log)

    async def run() -> None:
        await verify(checked, log, await log.extent())

    asyncio.run(run())
    return checked


def states(checked: list[Checked]) -> list[str]:
    """In short."""
    return [one.state for one in checked]


def test_every_snapshot_of_the_log_is_equal_to_what_it_makes():
    """In one pass, whatever the order of the snapshots, up to the last of them."""
    facts = log_of(STREAM)
    log = Kept(STREAM, facts)
    records = snapshots_at(STREAM, facts, 99, 250, 400)
    checked = verified(log, records[::-1])
    assert ["equal"] * 3 == states(checked)
    assert 401 == log.n_read
    assert [one.told["digest"] for one in checked] == [one.told["recomputed"] for one in checked]


def test_what_gives_scores_alone_is_not_judged():
    """It lies beside a learner that is."""
    facts = log_of(STREAM)
    records = [*scores_at(STREAM, facts, 99), *snapshots_at(STREAM, facts, 99)]
    assert ["equal"] == states(verified(Kept(STREAM, facts), records))


def test_snapshot_of_another_log_differs():
    """One label is enough; and the milestone says where."""
    facts = log_of(STREAM)
    records = snapshots_at(STREAM, facts, 50, 590)
    strange = [*facts[:300], (300, log_of(STREAM, wrong=1.0)[300][1]), *facts[301:]]
    first, second = verified(Kept(STREAM, strange), records)
    assert ("equal", "differs") == (first.state, second.state)
    assert "the log makes position 590, digest" in second.why


def test_model_that_was_changed_by_hand_differs():
    """The examples are those of the log, the numbers are not."""
    facts = log_of(STREAM)
    learner = new_learner(STREAM, Log(STREAM).plan)
    learner.apply(facts)
    learner.model.learn_many(*_one_more(learner))
    record = Record(0, b"champion/0", sealed(learner, STREAM), 0)
    (one,) = verified(Kept(STREAM, facts), [record])
    assert ("differs", True) == (one.state, "the model's numbers are others" in one.why)


def _one_more(learner: Learner) -> Any:
    import numpy as np  # noqa: PLC0415 - here only

    return np.ones((1, len(learner.model.features))), np.ones(1, np.bool_), np.ones(1)


def test_log_whose_beginning_is_gone_verifies_from_the_oldest_snapshot_that_fits():
    """What ended before the log begins cannot be judged; one is taken as it is, later ones not."""
    facts = log_of(STREAM)
    records = snapshots_at(STREAM, facts, 99, 250, 400)
    old, base, judged = verified(Kept(STREAM, facts, first=200), records)
    assert ("not checked", "given", "equal") == (old.state, base.state, judged.state)
    assert "retention: the log begins at 200, the snapshot ends at 99" == old.why
    assert "retention has passed the beginning of the log, which begins at 200" in base.why


def test_model_of_other_settings_verifies_from_its_oldest_snapshot():
    """The settings it was made with are its own; it says which."""
    facts = log_of(STREAM)
    base, judged = verified(Kept(OTHER, facts), snapshots_at(STREAM, facts, 99, 250))
    assert ("given", "equal") == (base.state, judged.state)
    assert base.why.endswith("made with other settings: model, learner.corrections")


def test_snapshot_beyond_the_log_differs():
    """The log it learnt is not this one."""
    facts = log_of(STREAM)
    (one,) = verified(Kept(STREAM, facts[:100]), snapshots_at(STREAM, facts, 250))
    assert ("differs", True) == (one.state, "the log ends before 100" in one.why)


def test_snapshot_that_cannot_be_opened_says_why(monkeypatch):
    """Torn, foreign, of another format: the others are judged all the same."""
    facts = log_of(STREAM)
    good, torn, foreign = snapshots_at(STREAM, facts, 99, 150, 200)
    torn = Record(torn.offset, torn.key, (torn.value or b"")[:-9], 0)
    foreign = Record(foreign.offset, foreign.key, seal({}, b"theirs"), 0)
    monkeypatch.setattr("app.shelf.FORMAT", 1)
    (old,) = snapshots_at(STREAM, facts, 250)
    monkeypatch.undo()
    checked = verified(Kept(STREAM, facts), [good, torn, foreign, old])
    assert ["equal", *["not checked"] * 3] == states(checked)
    whys = [one.why for one in checked[1:]]
    for why, words in zip(
        whys, ("torn or foreign", "torn or foreign", "another version"), strict=True
    ):
        assert words in why


# ---- Rebuilding.


def rebuilt(log: Log, records: list[Record], **more: Any) -> Any:
    """A model of the corrected log beside the one in use."""

    async def run() -> Any:
        return await rebuild(
            examine(records, log), log, await log.extent(), **{"recent": 400, **more}
        )

    return asyncio.run(run())


def test_rebuilt_model_learns_what_corrected_labels_say_and_is_better():
    """Most labels were wrong at first: the gate lets pass what learnt the right ones."""
    facts = log_of(STREAM, wrong=0.8)
    made = rebuilt(Kept(STREAM, facts), snapshots_at(STREAM, facts, len(facts) - 1))
    assert "" == made.objection
    assert made.average_precision > made.champion_average_precision + 0.05
    assert (made.candidate.position, made.candidate.rebuilt) == (len(facts) - 1,) * 2
    right = new_learner(STREAM, Log(STREAM).plan)
    right.apply(log_of(STREAM))
    assert right.digest == made.candidate.digest
    assert right.model.state_digest() == made.candidate.model.state_digest()


def test_gate_holds_back_a_model_that_is_worse():
    """Corrections that are nonsense make a model that is: the measure says by how much."""
    facts = log_of(STREAM)
    rng = random.Random(5)
    nonsense = [
        (N + i, _said_otherwise(fact, i)) for i, (_, fact) in enumerate(facts[:200])
        if rng.random() < 0.9
    ]  # fmt: skip
    facts = [*facts[:200], *nonsense, *facts[200:]]
    facts = [(i, fact) for i, (_, fact) in enumerate(facts)]
    made = rebuilt(Kept(STREAM, facts), snapshots_at(STREAM, facts, 500), recent=395)
    assert "average precision" in made.objection
    assert "that of the model in use" in made.objection
    assert (
        ""
        == rebuilt(
            Kept(STREAM, facts), snapshots_at(STREAM, facts, 500), recent=395, tolerance=1.0
        ).objection
    )


def _said_otherwise(fact: Example, i: int) -> Example:
    import msgspec  # noqa: PLC0415 - here only

    origin = ("labels", 1, i)
    return msgspec.structs.replace(fact, is_fraud=not fact.is_fraud, origin=origin)


def test_gate_does_not_judge_by_a_handful():
    """Nine frauds say nothing."""
    facts = log_of(STREAM)
    made = rebuilt(Kept(STREAM, facts), snapshots_at(STREAM, facts, 99), recent=20)
    assert "expected at least 10 frauds" in made.objection


def test_model_is_not_rebuilt_from_a_part_of_its_log():
    """What retention took would be forgotten."""
    with pytest.raises(Refused, match="begins at offset 10; expected 0"):
        rebuilt(Kept(STREAM, log_of(STREAM), first=10), [])


def test_rebuilt_model_is_verified_as_any_other():
    """And what it learnt since then, too."""
    facts = log_of(STREAM, wrong=0.3)
    log = Kept(STREAM, facts)
    learner = asyncio.run(fold_corrected(log, 400))
    records = [Record(0, b"champion/rebuilt", sealed(learner, STREAM), 0)]
    learner.apply(facts[:500])
    records.append(Record(1, b"champion/1", sealed(learner, STREAM), 0))
    assert ["equal", "equal"] == states(verified(log, records))


# ---- Two learners, and one that was overtaken.


def follower() -> tuple[Follower, Champion, Metrics]:
    """What follows snapshots."""
    plan = Log(STREAM).plan
    champion, metrics = Champion.of(new_learner(STREAM, plan)), Metrics()
    return Follower(STREAM, Topics.of(STREAM), plan, champion, metrics), champion, metrics


@pytest.mark.parametrize("kept", [snapshots_at, scores_at])
def test_two_learners_of_one_log_are_harmless(kept):
    """Their snapshots agree wherever they stand: the newest is followed, no alarm."""
    facts = log_of(STREAM)
    follows, champion, metrics = follower()
    for records in (kept(STREAM, facts, 99, 400), kept(STREAM, facts, 250, 400)):
        follows.take(records)
    assert ("", 400) == (follows.contradiction, champion.version.position)
    assert 0.0 == metrics.registry.get_sample_value("weir_models_differ_total")


@pytest.mark.parametrize("kept", [snapshots_at, scores_at])
def test_two_learners_that_differ_raise_the_alarm(kept):
    """Same position, another digest: a metric, a reason not to be ready, and the model stays."""
    facts, others = log_of(STREAM), log_of(STREAM, seed=2)
    follows, champion, metrics = follower()
    follows.take(kept(STREAM, facts, 400))
    digest = champion.version.digest
    follows.take(kept(STREAM, others, 400))
    assert "two learners differ: before offset 401" in follows.contradiction
    assert 1.0 == metrics.registry.get_sample_value("weir_models_differ_total")
    assert digest == champion.version.digest


def test_learner_that_lags_behind_and_differs_raises_the_alarm():
    """Its model is never adopted, and still it is looked at."""
    follows, champion, _ = follower()
    follows.take(scores_at(STREAM, log_of(STREAM, n=1_101), 1_100))
    digest = champion.version.digest
    assert "" == follows.contradiction
    follows.take(scores_at(STREAM, log_of(STREAM, seed=2, n=1_101), 1_050))
    assert "before offset 1024" in follows.contradiction
    assert digest == champion.version.digest


def test_rebuilt_model_is_followed_though_it_has_seen_less_of_the_log():
    """It goes before every model of before, and none of those takes its place again."""
    facts = log_of(STREAM, wrong=0.3)
    follows, champion, _ = follower()
    follows.take(scores_at(STREAM, facts, 500))
    learner = asyncio.run(fold_corrected(Kept(STREAM, facts), 401))
    follows.take([scores_of(STREAM, learner)])
    assert (learner.digest, 400) == (champion.version.digest, champion.version.position)
    follows.take(scores_at(STREAM, facts, 550))
    assert ("", learner.digest) == (follows.contradiction, champion.version.digest)


def test_learner_that_was_overtaken_by_a_rebuilt_model_ends():
    """It has passed examples that the other has yet to learn: its next start is from there."""
    driver = Driver(STREAM)
    worker = driver.processes["worker-0"]
    driver.rebalance(worker.group)
    task = next(t for t in worker.flow.tasks.values() if isinstance(t, LearnTask))
    learner = new_learner(STREAM, driver.plan)
    learner.rebuilt = learner.position = 40
    worker.champion.follow(learner)
    with pytest.raises(Refused, match="rebuilt from the examples before offset 41"):
        task.start()
