"""The parts of the evaluation, each against what it must equal."""

import pickle
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from app.core.measures.cards import MISSED_MAX, Cards
from app.core.measures.decisions import Decisions, Sample
from app.core.measures.groups import Groups, Values
from app.core.measures.intervals import ratio_interval
from app.core.measures.ranking import Ranking
from app.core.measures.rows import DAY_MS
from app.core.measures.shown import Shown
from app.core.measures.top import Top, first
from tests.core.examined import plain, rows_of

HOUR_MS = 3_600_000


def scored(seed: int, n: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores that tell frauds apart, more or less, and what they were."""
    rng = np.random.default_rng(seed)
    is_fraud = rng.random(n) < share
    odds = rng.normal(size=n) * 2 + 2.0 * is_fraud - 4
    return 1 / (1 + np.exp(-odds)), is_fraud


# ---- Ranking.


@pytest.mark.parametrize(("seed", "share"), [(1, 0.5), (2, 0.05), (3, 0.005)])
def test_ranking_is_that_of_scikit_learn(seed, share):
    """Average precision, AUC and Brier score, to the width of a bin; with weights, too."""
    scores, is_fraud = scored(seed, 20_000, share)
    for weights in (np.ones(20_000), np.where(is_fraud, 1.0, 2.5)):
        ranking = Ranking()
        ranking.update(scores, is_fraud, weights)
        assert round(weights.sum()) == ranking.n
        expected = average_precision_score(is_fraud, scores, sample_weight=weights)
        assert pytest.approx(expected, abs=2e-3) == ranking.average_precision
        expected = roc_auc_score(is_fraud, scores, sample_weight=weights)
        assert pytest.approx(expected, abs=1e-4) == ranking.roc_auc
        expected = brier_score_loss(is_fraud, scores, sample_weight=weights)
        assert pytest.approx(expected, abs=1e-12) == ranking.brier


def test_ties_count_as_scikit_learn_counts_them():
    """Few values of the score, many of each."""
    rng = np.random.default_rng(4)
    scores = rng.choice([0.01, 0.2, 0.5, 0.9], 5_000)
    is_fraud = rng.random(5_000) < scores
    ranking = Ranking()
    ranking.update(scores, is_fraud)
    expected = average_precision_score(is_fraud, scores)
    assert pytest.approx(expected, abs=1e-12) == ranking.average_precision
    assert pytest.approx(roc_auc_score(is_fraud, scores), abs=1e-12) == ranking.roc_auc


def test_what_was_not_seen_has_no_ranking():
    """NaN, not a figure that looks good, before both classes were seen."""
    ranking = Ranking()
    assert np.isnan([ranking.average_precision, ranking.roc_auc, ranking.brier]).all()
    ranking.update(np.array([0.2, 0.3]), np.array([False, False]))
    assert np.isnan([ranking.average_precision, ranking.roc_auc]).all()
    assert pytest.approx(0.065) == ranking.brier
    assert 0 == len(ranking.precision_recall().x)


def test_certain_scores_are_counted():
    """0 and 1 have no log-odds, and yet a place."""
    ranking = Ranking()
    ranking.update(np.array([1.0, 0.0]), np.array([True, False]))
    assert (1.0, 1.0) == (ranking.average_precision, ranking.roc_auc)


def test_calibration_error_is_the_distance_of_score_and_share():
    """None where scores are shares; their distance where they are off; and the curve shows it."""
    rng = np.random.default_rng(8)
    scores = rng.uniform(0.01, 0.6, 50_000)
    honest, bold = Ranking(), Ranking()
    honest.update(scores, rng.random(50_000) < scores)
    bold.update(np.minimum(scores + 0.3, 1.0), rng.random(50_000) < scores)
    assert honest.calibration_error < 0.01
    assert 0.28 < bold.calibration_error < 0.32
    assert np.isnan(Ranking().calibration_error)
    assert np.abs(honest.reliability().x - honest.reliability().y).mean() < 0.02
    assert pytest.approx(0.3, abs=0.03) == (bold.reliability().x - bold.reliability().y).mean()


def test_curve_ends_with_all_found():
    """Recall ascends to 1, where precision is the share of frauds; its steps are the area."""
    scores, is_fraud = scored(3, 5_000, 0.05)
    ranking = Ranking()
    ranking.update(scores, is_fraud)
    recall, precision = ranking.precision_recall()
    assert (1.0, is_fraud.mean()) == (recall[-1], pytest.approx(precision[-1]))
    assert (np.diff(recall) >= 0).all()
    area = np.sum(np.diff(recall, prepend=0.0) * precision)
    assert pytest.approx(area) == ranking.average_precision


def test_pickled_ranking_is_the_same():
    """Bins that hold something, bit for bit; a day of a thousand is small."""
    scores, is_fraud = scored(6, 1_000, 0.1)
    ranking = Ranking()
    ranking.update(scores, is_fraud, np.full(1_000, 1 / 0.3))
    packed = pickle.dumps(ranking)
    assert len(packed) < 12_000
    assert plain(ranking) == plain(pickle.loads(packed))


# ---- The best of a stream.


@settings(derandomize=True)
@given(
    told=st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]))),
    size=st.integers(1, 6),
    seed=st.integers(0, 2**16),
)
def test_top_is_the_best_of_all_in_whatever_order(told, size, seed):
    """The keys with the highest scores, each by its highest; ties go by the key."""
    best: dict[int, float] = {}
    for key, score in told:
        best[key] = max(best.get(key, 0.0), score)
    expected = sorted(best, key=lambda key: (best[key], key), reverse=True)[:size]
    for order in (told, random.Random(seed).sample(told, len(told))):
        top = Top(size)
        for key, score in order:
            top.offer(key, score)
        assert expected == [key for key, _ in top.ranked()]
        assert [best[key] for key in expected] == [kept.score for _, kept in top.ranked()]
        assert len(top.held) < size + max(size // 2, 1)


def test_one_that_stands_for_several_takes_their_places():
    """Of the first five places a weight of three takes three."""
    top = Top(5)
    for key, score, weight in [(1, 0.9, 1.0), (2, 0.8, 3.0), (3, 0.7, 1.0), (4, 0.6, 1.0)]:
        top.offer(key, score, weight)
    assert [1, 2, 3] == list(first(top.ranked(), 5))
    top.weigh(2, 1.0)
    assert [1, 2, 3, 4] == list(first(top.ranked(), 5))


# ---- Cards.

D, H = DAY_MS, HOUR_MS
# frauds of one card (time, alert) in the order of their labels | episodes, caught, frauds, hours
EPISODES: list[tuple[str, list[tuple[int, bool]], tuple[int, int, float, float]]] = [
    ("never caught", [(0, False), (H, False)], (1, 0, np.nan, np.nan)),
    ("caught at once", [(0, True)], (1, 1, 1, 0.0)),
    ("caught at the third", [(0, False), (H, False), (5 * H, True)], (1, 1, 3, 5.0)),
    ("the alert's label first", [(5 * H, True), (0, False), (H, False)], (1, 1, 3, 5.0)),
    ("later ones do not count", [(0, True), (H, False), (2 * H, True)], (1, 1, 1, 0.0)),
    ("an earlier alert turns up", [(5 * H, True), (0, False), (2 * H, True)], (1, 1, 2, 2.0)),
    ("far apart: two episodes", [(0, True), (20 * D, True)], (2, 2, 1, 0.0)),
    ("an old one late", [(40 * D, True), (0, False)], (2, 1, 1, 0.0)),
]


@pytest.mark.parametrize(("frauds", "expected"), [case[1:] for case in EPISODES],
                         ids=[case[0] for case in EPISODES])  # fmt: skip
def test_episode_ends_with_its_first_alert(frauds, expected):
    """How many frauds and hours it took, in the order in which they happened."""
    cards = Cards(cards_max=10, compromised_days=14)
    for time_ms, is_alert in frauds:
        cards.on_fraud(1, time_ms, time_ms + D, is_alert=is_alert)
    told = cards.catch()
    assert expected[:2] == (told.episodes, told.caught)
    assert pytest.approx(expected[2], nan_ok=True) == told.frauds_median
    assert pytest.approx(expected[3], rel=0.1, nan_ok=True) == told.hours_median


def test_corrected_fraud_leaves_its_episode():
    """A miss that was none does not count; without any fraud there is no episode."""
    cards = Cards(cards_max=10, compromised_days=14)
    cards.on_fraud(1, 0, D, is_alert=False)
    cards.on_fraud(1, H, D, is_alert=True)
    cards.on_legitimate(1, 0, is_alert=False)
    assert (1, 1.0) == (cards.catch().episodes, cards.catch().frauds_median)
    cards.on_legitimate(1, H, is_alert=True)
    assert 0 == cards.catch().episodes


def test_card_that_is_let_go_is_counted():
    """What was found of it stays in the figures; a miss without end is told as its bound."""
    cards = Cards(cards_max=2, compromised_days=14)
    for hour in range(100):
        cards.on_fraud(0, hour * H, D, is_alert=False)
    cards.on_fraud(0, 200 * H, D, is_alert=True)
    for card in range(1, 5):
        cards.on_fraud(card, 0, D, is_alert=False)
    assert [3, 4] == list(cards.held)
    told = cards.catch()
    assert (5, 1, MISSED_MAX + 1) == (told.episodes, told.caught, told.frauds_median)


# ---- Groups.


def test_groups_are_held_against_the_rest():
    """A group that alerts twice as often has a ratio of two, with an interval around it."""
    n = 4_000
    rng = np.random.default_rng(2)
    codes = rng.integers(1, 3, n)
    is_alert = rng.random(n) < np.where(codes == 1, 0.2, 0.1)
    is_fraud = rng.random(n) < 0.02
    values, groups = Values(4), Groups()
    values.codes(["web", "shop"])
    groups.update(
        rows_of(rng.random(n), is_fraud, is_alert=is_alert, groups=codes.reshape(-1, 1)), 0
    )
    told = {one.name: one for one in groups.disparities(values.names)}
    assert {"shop", "web"} == set(told)
    web = told["web"].alert_rate_ratio
    assert web.low < 2.0 < web.high
    assert 1.0 < web.low < web.value < web.high < 3.0
    assert pytest.approx(1 / web.value) == told["shop"].alert_rate_ratio.value
    assert pytest.approx(1 / web.low) == told["shop"].alert_rate_ratio.high
    false = told["web"].false_positive_rate_ratio
    assert false.low < 2.0 < false.high


def test_group_alone_is_held_against_nobody():
    """There is no ratio where there is no rest."""
    values, groups = Values(4), Groups()
    codes = np.array(values.codes(["web", "web"])).reshape(-1, 1)
    groups.update(rows_of(np.array([0.2, 0.9]), np.array([False, True]), groups=codes), 0)
    assert [] == groups.disparities(values.names)
    assert 1.0 == groups.figures(values.names)[0].average_precision


# ---- Intervals.


def test_interval_is_that_of_koopman():
    """The two examples of his paper: 36 of 40 against 16 of 80, and the other way round."""
    told = ratio_interval(Sample(36, 40), Sample(16, 80))
    assert pytest.approx((4.5, 2.939571, 7.151964), rel=1e-4) == tuple(told)
    turned = ratio_interval(Sample(16, 80), Sample(36, 40))
    assert pytest.approx((1 / 4.5, 1 / told.high, 1 / told.low)) == tuple(turned)


def test_interval_has_an_end_where_one_side_is_empty_handed():
    """No alert in a group: between nothing and something; nobody in it: no interval."""
    none = ratio_interval(Sample(0, 50), Sample(10, 100))
    assert (0.0, 0.0) == none[:2]
    assert 0.0 < none.high < 2.0
    only = ratio_interval(Sample(5, 50), Sample(0, 100))
    assert only.value == only.high == float("inf")
    assert only.low > 1.0
    assert np.isnan(ratio_interval(Sample(0, 50), Sample(0, 100)).value)
    assert np.isnan(ratio_interval(Sample(0, 0), Sample(1, 100))).all()


@pytest.mark.parametrize(
    ("n", "p", "m", "q"), [(50, 0.1, 400, 0.05), (200, 0.02, 2_000, 0.02), (1_000, 0.1, 900, 0.2)]
)
def test_intervals_cover(n, p, m, q):
    """The true ratio lies within 95 of 100 intervals, also where counts are small."""
    rng = np.random.default_rng(7)
    covered = 0
    for x, y in zip(rng.binomial(n, p, 1_500), rng.binomial(m, q, 1_500), strict=True):
        told = ratio_interval(Sample(float(x), n), Sample(float(y), m))
        covered += told.low <= p / q <= told.high
    assert 0.935 < covered / 1_500 < 0.975


def test_intervals_cover_where_the_legitimate_are_sampled():
    """One that stands for five tells no more than one; and its group's share is not moved."""
    rng = np.random.default_rng(9)
    covered = 0
    for _ in range(400):
        sides = []
        for n, p in ((2_000, 0.04), (6_000, 0.02)):
            is_alert = rng.random(n) < p
            kept = rng.random(n) < 0.2
            told = Decisions()
            told.update(
                rows_of(
                    np.zeros(kept.sum()), np.zeros(kept.sum(), np.bool_),
                    is_alert=is_alert[kept], weights=np.full(kept.sum(), 5.0),
                )
            )  # fmt: skip
            sides.append(told.false_alert_sample())
        interval = ratio_interval(*sides)
        covered += interval.low <= 2.0 <= interval.high
    assert 0.92 < covered / 400 < 0.98


# ---- What people looked at.


def simulated(
    rng: np.random.Generator, explore: float, judged: float
) -> tuple[Shown, float, float]:
    """Estimates from what a policy shows, and its true precision and recall in the long run."""
    n, line = 20_000, 0.0
    is_fraud = rng.random(n) < 0.03
    odds = rng.normal(size=n) + 1.5 * is_fraud - 1.5
    is_flagged = odds > line
    propensity = np.where(is_flagged, 1.0, explore)
    is_shown = (rng.random(n) < propensity) & (rng.random(n) < judged)
    told = Shown()
    told.update(
        rows_of(
            1 / (1 + np.exp(-odds)), is_fraud, is_alert=is_shown, is_flagged=is_flagged,
            shares=np.where(is_shown, 1 / propensity, 0.0),
        )
    )  # fmt: skip
    above, beyond = 0.5, 0.0668072  # of normal scores with mean 0 and -1.5 above 0
    return told, 0.03 * above / (0.03 * above + 0.97 * beyond), above


@pytest.mark.parametrize("judged", [1.0, 0.6])
def test_estimates_are_unbiased_and_their_errors_right(judged):
    """Over many runs: the mean is the truth, the errors are the deviation, intervals cover."""
    rng, found = np.random.default_rng(3), []
    for _ in range(400):
        told, precision, recall = simulated(rng, 0.1, judged)
        found.append([*told.precision(), *told.recall()])
    told_precision, precision_errors, told_recall, recall_errors = np.array(found).T
    for values, errors, truth in (
        (told_precision, precision_errors, precision),
        (told_recall, recall_errors, recall),
    ):
        assert pytest.approx(truth, abs=4 * values.std() / 20 + 0.003) == values.mean()
        assert pytest.approx(values.std(), rel=0.15) == errors.mean()
        assert 0.92 < np.mean(np.abs(values - truth) < 1.96 * errors) < 0.98


def test_recall_of_a_policy_that_never_explores_is_not_told():
    """What it does not show nobody has seen."""
    told, _, _ = simulated(np.random.default_rng(1), 1e-12, 1.0)
    assert np.isnan(told.recall().value)
    assert 0.0 < told.precision().value < 1.0
