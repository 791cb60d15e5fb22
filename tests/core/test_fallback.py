"""Whose score a transaction gets where the model cannot give one, and what is said of it."""

import numpy as np
import pytest

from app.core.calibration import Calibration
from app.core.fallback import STAMPS, FallbackChain, Moment
from app.core.features import FeaturePlan
from app.core.investigators import Lesson
from app.core.learner import REFRESH_EXAMPLES, Learner
from app.core.mixture import Mixture
from app.core.models import make_model
from app.core.novelty import PRIOR
from app.core.policy import Policy, Rule
from app.core.scoring import Batch, Champion, Scorer
from app.records import Example, ModelVersion

NAMES = ("amount", "night")
NOW_MS = 1_000_000
LARGE = Rule("large", amount_min=100.0)
WEB = Rule("web", {"channel": frozenset({"web"})})
RULES = [(LARGE, 0.9), (WEB, 0.4)]


class Broken:
    """A model that raises, or gives a score that is none."""

    features = NAMES

    def __init__(self, answer: float | None = None) -> None:
        self.answer = answer

    def score_many(self, rows):
        """Every second score is ``answer``; without one it raises."""
        if self.answer is None:
            raise ZeroDivisionError("half of nothing")
        return np.where(np.arange(len(rows)) % 2 == 0, self.answer, 0.25)


def taught(seed: int = 1):
    """A model that finds large amounts suspicious."""
    rows = np.random.default_rng(seed).normal(size=(400, 2))
    model = make_model("logistic", NAMES, seed=seed)
    model.learn_many(rows, (rows[:, 0] > 0.5).astype(np.int8))
    return model


def batch_of(ages_ms, amounts, channels=None):
    """Transactions t0, t1... of these ages and amounts."""
    n = len(ages_ms)
    zeros, published = np.zeros(n, np.int64), NOW_MS - np.array(ages_ms, np.int64)
    money = np.array(amounts, np.float64)
    rows = np.stack([money / 100.0, np.zeros(n)], axis=1)
    ids = [f"t{i}" for i in range(n)]
    said = channels or ["shop"] * n
    return Batch(ids, zeros, money, [], rows, zeros, zeros, published, [None] * n, [said])


def scorer(chain, model=None, position=7):
    """The last step of the flow with a model that has learnt up to ``position``."""
    champion = Champion(Mixture(model or taught()), ModelVersion("m", position, "x"))
    plan = FeaturePlan(NAMES, (), {})
    return Scorer((), ("channel",), plan, champion, Policy(threshold=0.0), 2, chain)


def stamps(decided):
    """What each score says of how it came about."""
    return [STAMPS[code] for code in decided.fallback]


#: declared | moment | position | ages | stamps
SITUATIONS = [
    ({}, Moment(NOW_MS, 500.0), 7, [10, 9_000], ["", ""]),
    ({"budget_ms": 50}, Moment(NOW_MS, 500.0), 7, [50, 51], ["", "late"]),
    ({"budget_ms": 50}, Moment(NOW_MS, 99.0), 7, [50, 51], ["", ""]),
    ({"budget_ms": 50}, Moment(NOW_MS), 7, [50, 51], ["", ""]),
    ({"budget_ms": 50, "slow_us": 0.0}, Moment(NOW_MS), 7, [50, 51], ["", "late"]),
    ({"stale_ms": 60}, Moment(NOW_MS, 0.0, 60), 7, [1, 1], ["", ""]),
    ({"stale_ms": 60}, Moment(NOW_MS, 0.0, 61), 7, [1, 1], ["stale", "stale"]),
    ({"stale_ms": 60, "budget_ms": 50}, Moment(NOW_MS, 500.0, 61), 7, [1, 51], ["stale", "late"]),
    ({"budget_ms": 50}, Moment(NOW_MS, 500.0), -1, [1, 51], ["no_model", "no_model"]),
    ({"budget_ms": 50}, None, -1, [1, 51], ["", ""]),
]  # fmt: skip


@pytest.mark.parametrize(("declared", "moment", "position", "ages", "expected"), SITUATIONS)
def test_situation_decides_whose_score_it_is(declared, moment, position, ages, expected):
    """Late and slow, missing, stale; the model's score stands wherever it can."""
    scored = scorer(FallbackChain(rules=RULES, **declared), position=position)
    batch = batch_of(ages, [10.0, 200.0])
    decided = scored.decide(batch, moment)
    own, raw = scored.champion.mixture.score_many(batch.rows)
    rules = [PRIOR, 0.9]
    model = [stamp in {"", "stale"} for stamp in expected]
    assert expected == stamps(decided)
    assert np.where(model, own, rules).tolist() == decided.scores.tolist()
    assert np.where(model, raw, 0.0).tolist() == decided.raw.tolist()
    assert sorted(decided.reasons) == np.flatnonzero(model).tolist()


def test_without_a_fallback_nothing_changes_to_the_bit():
    """Off, on and not needed, or before any of it was there: the same scores."""
    batch, moment = batch_of([9_000] * 300, np.linspace(0.0, 300.0, 300)), Moment(NOW_MS, 9.0)
    off = scorer(None).decide(batch, moment)
    needless = scorer(FallbackChain(budget_ms=50, rules=RULES)).decide(batch, moment)
    for name in ("scores", "raw", "alerts", "propensity"):
        assert getattr(off, name).tobytes() == getattr(needless, name).tobytes()
    assert (off.reasons, off.words) == (needless.reasons, needless.words)


@pytest.mark.parametrize(
    ("amounts", "channels", "expected"),
    [([200.0], ["web"], [0.9]), ([10.0], ["web"], [0.4]), ([10.0], ["shop"], [PRIOR])],
)
def test_first_rule_that_covers_gives_the_score(amounts, channels, expected):
    """What no rule covers gets its unlikeness."""
    scored = scorer(FallbackChain(rules=RULES), position=-1)
    decided = scored.decide(batch_of([0], amounts, channels), Moment(NOW_MS))
    assert expected == decided.scores.tolist()
    assert decided.words[0].endswith("nothing has been learnt yet")


def test_model_that_raises_is_told_and_stood_in_for():
    """With a fallback the last good model decides, then rules; without one the error is ours."""
    batch, moment = batch_of([0, 0], [10.0, 200.0]), Moment(NOW_MS)
    scored = scorer(FallbackChain(rules=RULES))
    good = scored.decide(batch, moment).scores
    scored.champion.mixture = scorer(None, Broken()).champion.mixture
    decided = scored.decide(batch, moment)
    assert ["failed", "failed"] == stamps(decided)
    assert good.tolist() == decided.scores.tolist()
    assert "ZeroDivisionError('half of nothing')" == decided.failure
    first = scorer(FallbackChain(rules=RULES), Broken()).decide(batch, moment)
    assert [PRIOR, 0.9] == first.scores.tolist(), "there was no good one before"
    with pytest.raises(ZeroDivisionError):
        scorer(None, Broken()).decide(batch, moment)


@pytest.mark.parametrize("answer", [np.nan, np.inf])
def test_score_that_is_none_is_stood_in_for_alone(answer):
    """The other scores of the batch are the model's."""
    scored = scorer(FallbackChain(rules=RULES), Broken(answer))
    scored = Scorer(
        (), ("channel",), scored.plan, scored.champion, scored.policy, 0, scored.fallback
    )
    decided = scored.decide(batch_of([0, 0], [200.0, 200.0]), Moment(NOW_MS))
    assert ["failed", ""] == stamps(decided)
    assert [0.9, 0.25] == decided.scores.tolist()


def test_model_is_unlearnt_from_when_there_was_something_to_learn():
    """A quiet night makes no model old; scores that it does not learn from do."""
    champion = Champion(Mixture(taught()), ModelVersion("m", 5, "x"))
    champion.given(255, 1_000, 256)
    assert 0 == champion.unlearnt_ms(9_000)
    champion.given(1, 2_000, 256)
    champion.given(500, 3_000, 256)
    assert 7_000 == champion.unlearnt_ms(9_000)
    champion.follow(Champion(Mixture(taught()), ModelVersion("m", 5, "y")))
    assert 7_000 == champion.unlearnt_ms(9_000), "of the same position: nothing was learnt"
    champion.follow(Champion(Mixture(taught()), ModelVersion("m", 6, "y")))
    assert 0 == champion.unlearnt_ms(9_000)


def example(i, fallback):
    """A labelled transaction whose score came so."""
    return Example(
        transaction_id=f"t{i}", time_ms=i, amount=1.0, entities={}, score=0.9, raw=0.9,
        features=[float(i % 7), 0.0], feature_schema="s", is_fraud=i % 3 == 0, label_time_ms=i,
        label_source="bank", origin=("labels", 0, i), fallback=fallback,
    )  # fmt: skip


@pytest.mark.parametrize(("fallback", "is_heard"), [("", True), ("stale", True), ("late", False)])
def test_fallback_teaches_the_model_and_not_its_calibration(fallback, is_heard):
    """The features are as always; what the model did not say says nothing of the model."""
    learner = Learner("m", make_model("logistic", NAMES, seed=1), "s", calibrates=True)
    learner.apply([(i, example(i, fallback)) for i in range(REFRESH_EXAMPLES // 2)])
    always = Learner("m", make_model("logistic", NAMES, seed=1), "s", calibrates=True)
    always.apply([(i, example(i, "")) for i in range(REFRESH_EXAMPLES // 2)])
    assert always.digest == learner.digest
    assert (REFRESH_EXAMPLES // 2 if is_heard else 0) == learner.calibration.counts.sum()
    assert Calibration().slope == learner.calibration.slope
    assert np.isnan(Lesson.of(example(1, fallback)).raw) != is_heard
