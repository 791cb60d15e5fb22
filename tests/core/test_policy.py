"""Which scores a person sees, and the reasons they are given."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.features import FeaturePlan
from app.core.learner import Learner
from app.core.mixture import Mixture
from app.core.models import make_model
from app.core.policy import BLOCKED, NOTHING, RULES, Policy, Rule, reasons
from app.core.scoremap import ScoreMap, bins_of
from app.core.scoring import Batch, Champion, Scorer
from app.records import ModelVersion

NAMES = ("amount", "night", "count")


def alerts_of(policy, scores, amounts=None, cards=None, line=None):
    """Which transactions t0, t1... a policy alerts."""
    n = len(scores)
    verdicts = policy.assess(
        np.array(scores, np.float64),
        np.ones(n) if amounts is None else np.array(amounts, np.float64),
        {"card": cards or ["c"] * n},
        [f"t{i}" for i in range(n)],
        line,
    )
    return verdicts.alerts


#: policy | scores | amounts | line | alerts
POLICIES = [
    (Policy(kind="cost", review_cost=5.0), [0.1, 0.1, 0.0], [20, 80, 1e9], None, [0, 1, 0]),
    (Policy(kind="cost", review_cost=5.0, recovery=0.5), [0.1, 0.1], [80, 120], None, [0, 1]),
    (Policy(kind="budget", threshold=0.5), [0.4, 0.6], [1, 1], None, [0, 1]),
    (Policy(kind="budget", threshold=0.5), [0.4, 0.6], [1, 1], 0.3, [1, 1]),
    (Policy(threshold=0.5), [0.4, 0.6], [1, 1], 0.3, [0, 1]),
]


@pytest.mark.parametrize(("policy", "scores", "amounts", "line", "expected"), POLICIES)
def test_policy_fires_where_it_says(policy, scores, amounts, line, expected):
    """A threshold, an expected loss or a budget's line; before there is one, the threshold."""
    assert expected == alerts_of(policy, scores, amounts, line=line).astype(int).tolist()


def test_lists_overrule_the_score_and_block_goes_first():
    """Blocked always, allowed never, whatever the score."""
    listed = {"card": frozenset({"a", "b"})}
    policy = Policy(threshold=0.5, allow=listed, block={"card": frozenset({"b"})})
    assert [False, True, True] == alerts_of(policy, [0.9, 0.1, 0.9], cards=["a", "b", "c"]).tolist()


def test_explored_share_is_as_declared_and_its_propensity_logged():
    """What chance shows to a person can be weighted; the same transaction is always drawn."""
    policy, n = Policy(threshold=0.5, explore=0.05), 20_000
    scores, amounts, ids = np.full(n, 0.1), np.ones(n), [f"t{i}" for i in range(n)]
    verdicts = policy.assess(scores, amounts, {}, ids)
    assert 0.045 < verdicts.alerts.mean() < 0.055
    assert {0.05} == set(verdicts.propensity.tolist())
    again = policy.assess(scores, amounts, {}, ids)
    np.testing.assert_array_equal(verdicts.alerts, again.alerts)


def test_budget_is_kept_while_the_scores_move():
    """Alerts a day stay near the budget when a model's scores shift by two in log-odds."""
    rng, scores = np.random.default_rng(5), ScoreMap()
    spent = []
    for hour in range(24 * 20):
        odds = rng.normal(-5.0 + 2.0 * (hour > 24 * 10), 1.5, 1_000)
        given = 1.0 / (1.0 + np.exp(-odds))
        line = scores.line(100.0)
        spent.append(0 if line is None else int((given >= line).sum()))
        scores.update(bins_of(given), hour * 3_600_000)
    days = np.array(spent).reshape(20, 24).sum(axis=1)
    assert 80 < days[4:10].mean() < 120, "steady"
    assert 80 < days[17:].mean() < 120, "a week after the shift"


@pytest.mark.parametrize("first_ms", [-9_000 * 86_400_000, -30 * 86_400_000])
def test_budget_is_kept_after_a_gap_in_event_time(first_ms):
    """An outage, or one record that bears a time of long ago: silence says little about a rate."""
    rng, scores, spent = np.random.default_rng(6), ScoreMap(), []
    scores.update(bins_of(np.full(1 if first_ms < -1e12 else 10_000, 0.01)), first_ms)
    for hour in range(24 * 5):
        given = 1.0 / (1.0 + np.exp(-rng.normal(-5.0, 1.5, 400)))
        line = scores.line(100.0)
        spent.append(0 if line is None else int((given >= line).sum()))
        scores.update(bins_of(given), hour * 3_600_000)
    days = np.array(spent).reshape(5, 24).sum(axis=1)
    assert days.max() < 300, days
    assert 70 < days[2:].mean() < 130, days


@given(st.lists(st.floats(0, 1), max_size=50), st.floats(0, 1))
def test_alerts_are_the_scores_at_or_above_the_threshold(scores, threshold):
    """No more and no fewer."""
    assert [score >= threshold for score in scores] == alerts_of(
        Policy(threshold=threshold), scores
    ).tolist()


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3),
    st.lists(st.floats(-10, 10), min_size=4, max_size=4),
    st.integers(0, 5),
)
def test_reasons_are_the_largest_positive_contributions(row, shares, most):
    """In order, none that lowers the score, never the bias, no more than asked for."""
    told = reasons(NAMES, np.array(row), np.array(shares), most)
    positive = sorted((s for s in shares[:-1] if s > 0.0), reverse=True)
    assert positive[:most] == [reason.contribution for reason in told]
    for reason in told:
        assert row[NAMES.index(reason.feature)] == reason.value
        assert reason.feature in reason.text


def test_missing_value_is_named_as_missing():
    """NaN has no place in JSON, nor in a sentence."""
    (reason,) = reasons(NAMES, np.array([np.nan, 0, 0]), np.array([1.0, 0, 0, 9]), 5)
    assert (None, "amount = missing raises suspicion") == (reason.value, reason.text)


def test_reasons_are_told_of_alerts_alone():
    """Explaining costs more than scoring: only what a person sees is explained."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(400, 3))
    model = make_model("logistic", NAMES, seed=1)
    model.learn_many(rows, (rows[:, 0] > 0.5).astype(np.int8))
    champion = Champion(Mixture(model), ModelVersion("m", 1, "x"))
    none, zeros = np.zeros(400), np.zeros(400, np.int64)
    ids = [f"t{i}" for i in range(400)]
    batch = Batch(ids, zeros, none, [], rows, zeros, zeros, zeros, [None] * 400)
    plan = FeaturePlan(NAMES, (), {})
    decided = Scorer((), (), plan, champion, Policy(threshold=0.5), 2).decide(batch)
    assert np.flatnonzero(decided.alerts).tolist() == sorted(decided.reasons)
    assert 0 < decided.alerts.sum() < 400
    assert {"amount"} == {told[0].feature for told in decided.reasons.values() if told}
    assert max(len(told) for told in decided.reasons.values()) <= 2


@pytest.mark.parametrize(("position", "expected"), [(4, False), (5, True), (6, True)])
def test_older_model_is_not_adopted(position, expected):
    """A snapshot that comes late does not turn the champion back."""
    model = make_model("logistic", NAMES, seed=1)
    champion = Champion(Mixture(model), ModelVersion("m", 5, "x"))
    newer = Learner("m", model, "schema", position=position, digest="y")
    assert expected == champion.follow(newer)
    assert ("y" if expected else "x") == champion.version.digest


AMOUNTS = np.array([10.0, 10.0, 500.0, 10.0])
SEGMENTS = {"channel": ["web", "shop", "web", "web"], "country": ["A", "A", "A", "B"]}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], [False] * 4),
        ([Rule("web", {"channel": frozenset({"web"})}, threshold=0.3)], [True, False, True, True]),
        (
            [
                Rule("far", {"country": frozenset({"B"})}),
                Rule("web", {"channel": frozenset({"web"})}, threshold=0.3),
            ],
            [True, False, True, False],
        ),
        ([Rule("high", amount_min=100.0, threshold=0.0)], [False, False, True, False]),
        ([Rule("low", amount_max=100.0, threshold=0.5)], [False] * 4),
    ],
)
def test_first_rule_that_covers_a_transaction_decides(rules, expected):
    """A part of the traffic is held to another line; a rule without one never alerts."""
    policy = Policy(threshold=0.5, rules=rules)
    scores = np.full(4, 0.4)
    found = policy.assess(scores, AMOUNTS, {}, list("abcd"), segments=SEGMENTS)
    assert expected == found.alerts.tolist()
    for fired in found.fired[found.alerts]:
        assert policy.words(int(fired)).startswith("rule ")


def test_never_is_never():
    """What may not alert is not shown at random either, and says so in its propensity."""
    n = 2_000
    policy = Policy(
        threshold=2.0,
        explore=0.5,
        rules=[Rule("small", amount_max=5.0)],
        allow={"card": frozenset({"own"})},
    )
    cards, amounts = ["own", "other"] * (n // 2), np.repeat([1.0, 10.0], n // 2)
    ids = [f"t{i}" for i in range(n)]
    found = policy.assess(np.zeros(n), amounts, {"card": cards}, ids)
    never = (np.array(cards) == "own") | (amounts < 5.0)
    assert not found.alerts[never].any()
    assert set(found.propensity[never]) == {0.0}
    assert set(found.propensity[~never]) == {0.5}
    assert 0 < found.alerts[~never].sum() < n / 4


def test_lists_go_before_rules():
    """Block always alerts and allow never does, whatever a rule says of the amount."""
    policy = Policy(
        rules=[Rule("all", threshold=0.0)],
        allow={"card": frozenset({"a"})},
        block={"card": frozenset({"b"})},
    )
    found = policy.assess(np.zeros(4), AMOUNTS, {"card": ["a", "b", "c", "d"]}, list("abcd"))
    assert [NOTHING, BLOCKED, RULES, RULES] == found.fired.tolist()
