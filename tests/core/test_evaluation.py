"""The evaluation is a function of its log, and says what a count of all examples says."""

import pickle
from collections import Counter

import cramjam
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from app.core.evaluation import Evaluation, Terms, mean_of
from app.core.measures.delays import AGES
from app.core.measures.rows import DAY_MS
from app.core.pending import MATURITY
from tests.core.examined import (
    HOUR_MS,
    TERMS,
    Feeder,
    an_example,
    card_precision,
    catches,
    corrected,
    evaluated,
    last_words,
    plain,
    recall_at,
    stream,
)


@settings(max_examples=15, derandomize=True)
@given(seed=st.integers(0, 2**32), weight=st.sampled_from([1.0, 1 / 0.3]))
def test_batches_make_no_difference(seed, weight):
    """One by one, all at once or cut anywhere: the same state to the last bit."""
    log = corrected(seed, stream(seed, 300, weight=weight))
    rng, states = np.random.default_rng(seed), []
    for sizes in ([len(log)], [1] * len(log), rng.integers(1, 60, len(log)).tolist()):
        feeder, at = Feeder(Evaluation(TERMS)), 0
        for size in sizes:
            feeder.feed(log[at : at + size])
            at += size
        states.append(plain(feeder.evaluation))
    assert states[0] == states[1] == states[2], f"seed {seed}"


@settings(max_examples=8, derandomize=True)
@given(seed=st.integers(0, 2**32), cut=st.integers(0, 400))
def test_pickled_evaluation_goes_on_identically(seed, cut):
    """A snapshot and what it was taken from end in the same state."""
    log = corrected(seed, stream(seed, 400))
    feeder = Feeder(Evaluation(TERMS))
    feeder.feed(log[:cut])
    copy = Feeder(pickle.loads(pickle.dumps(feeder.evaluation)))
    copy.learnt = dict(feeder.learnt)
    assert plain(feeder.evaluation) == plain(copy.evaluation)
    assert plain(feeder.feed(log[cut:])) == plain(copy.feed(log[cut:]))


@pytest.mark.parametrize("seed", [1, 2])
def test_figures_are_those_of_scikit_learn(seed):
    """Average precision and AUC of all that has a label, to the width of a bin."""
    log = stream(seed, 4_000)
    evaluation = evaluated(log)
    is_fraud, scores = [e.is_fraud for e in log], [e.score for e in log]
    assert len(log) == evaluation.n
    expected = average_precision_score(is_fraud, scores)
    assert pytest.approx(expected, abs=5e-3) == evaluation.average_precision
    assert pytest.approx(roc_auc_score(is_fraud, scores), abs=1e-3) == evaluation.roc_auc


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_days_are_as_counted_over_all_examples(seed):
    """Card precision and recall at the budget, day by day, corrections and late labels among."""
    log = corrected(seed, stream(seed, 2_000, n_days=12), share=0.03)
    days = evaluated(log).by_day()
    assert range(12) == range(len(days))
    cards, recalls = card_precision(log), recall_at(log, TERMS.budget)
    for day in days:
        assert pytest.approx(cards[day.day]) == day.card_precision, day.date
        assert pytest.approx(recalls[day.day], nan_ok=True) == day.recall_at_budget
    assert sum(cards.values()) > 1.0, "else nothing was asked"


@pytest.mark.parametrize("seed", [1, 2])
def test_value_and_savings_are_as_counted_over_all_examples(seed):
    """Of the frauds' amount what was on alert, less what the reviews cost."""
    log = corrected(seed, stream(seed))
    last, told = last_words(log), evaluated(log).seen.decisions
    lost = sum(e.amount for e in last if e.is_fraud)
    caught = sum(e.amount for e in last if e.is_fraud and e.is_alert)
    alerts = sum(e.is_alert for e in last)
    assert pytest.approx(caught / lost) == told.value_detected
    assert pytest.approx(0.8 * caught - 3.0 * alerts) == told.saved(3.0, 0.8)
    assert pytest.approx((0.8 * caught - 3.0 * alerts) / lost) == told.savings(3.0, 0.8)
    hits = sum(e.is_alert and e.is_fraud for e in last)
    frauds = sum(e.is_fraud for e in last)
    assert pytest.approx(hits / alerts) == told.precision
    assert pytest.approx(hits / frauds) == told.recall
    assert pytest.approx(alerts / len(last)) == told.alert_rate
    assert pytest.approx((alerts - hits) / hits) == told.false_positive_ratio
    assert pytest.approx((alerts - hits) / (len(last) - frauds)) == told.false_positive_rate
    assert pytest.approx(np.mean([e.score for e in last])) == told.mean_score


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_time_to_catch_is_as_counted_over_all_examples(seed):
    """Frauds and hours until an alert, though labels come in another order than frauds."""
    log = stream(seed)
    cards, frauds, hours = catches(log)
    catch = evaluated(log).cards.catch()
    assert (cards, len(frauds)) == (catch.episodes, catch.caught)
    assert sorted(frauds)[(len(frauds) + 1) // 2 - 1] == catch.frauds_median
    expected = sorted(hours)[int(np.ceil(0.9 * len(hours))) - 1]
    assert pytest.approx(expected, rel=0.1) == catch.hours_p90


@pytest.mark.parametrize("seed", [1, 2])
def test_maturity_curve_is_as_counted_over_all_examples(seed):
    """Share of labels that came within so many days, of frauds and of all; nobody's are none."""
    log = stream(seed)
    delays = evaluated(log).seen.delays
    said = [e for e in log if e.label_source != MATURITY]
    for told, some in ((delays.frauds_known(), [e for e in said if e.is_fraud]),
                       (delays.labels_known(), said)):  # fmt: skip
        ages = np.array([e.label_time_ms - e.time_ms for e in some])
        expected = [np.mean(ages <= age * DAY_MS) for age in AGES]
        assert pytest.approx(expected) == told.tolist()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_corrections_move_what_was_counted(seed):
    """The counts are those of the last labels alone, as if the others had never been said."""
    log = corrected(seed, stream(seed), share=0.3)
    moved, direct = evaluated(log).seen, evaluated(last_words(log)).seen
    assert len(log) > 1.3 * moved.ranking.n
    np.testing.assert_allclose(direct.ranking.counts, moved.ranking.counts, atol=1e-9)
    np.testing.assert_allclose(direct.decisions.cells, moved.decisions.cells, atol=1e-9)
    np.testing.assert_allclose(
        sorted(g.decisions.n for g in evaluated(log).by_segment()["channel"]),
        sorted(g.decisions.n for g in evaluated(last_words(log)).by_segment()["channel"]),
    )


def test_correction_of_what_nobody_complained_about_moves_its_weight():
    """A fraud that comes to light after maturity is one; the three it stood for are gone."""
    first = an_example("t1", label_source=MATURITY, weight=3.0)
    later = msgspec.structs.replace(first, is_fraud=True, label_source="bank", weight=1.0)
    told = evaluated([first, later]).seen
    assert (1, 1.0, 1.0) == (told.ranking.n, told.decisions.n, told.decisions.frauds)


def test_sampled_transactions_stand_for_all():
    """A third of the legitimate with a weight of three gives the figures of all, on average."""
    log = stream(5, 6_000)
    rng = np.random.default_rng(5)
    kept = [
        e if e.label_source != MATURITY else msgspec.structs.replace(e, weight=3.0)
        for e in log
        if e.label_source != MATURITY or rng.random() < 1 / 3
    ]
    whole, part = evaluated(log), evaluated(kept)
    assert pytest.approx(whole.n, rel=0.05) == part.n
    assert pytest.approx(whole.average_precision, abs=0.02) == part.average_precision
    ours, theirs = part.seen.decisions, whole.seen.decisions
    assert pytest.approx(theirs.precision, abs=0.02) == ours.precision
    means = [np.mean([day.card_precision for day in one.by_day()]) for one in (whole, part)]
    assert pytest.approx(means[0], abs=0.05) == means[1]


def test_figures_of_mature_days_leave_out_the_others():
    """Frauds are known early: of days not all known they would look like more than they are."""
    log = stream(7, 3_000)
    now_ms = 13 * DAY_MS + 2 * HOUR_MS
    known = [e for e in log if e.label_time_ms <= now_ms]
    evaluation = evaluated(known)
    mature = [e for e in known if e.time_ms < 8 * DAY_MS]
    told = evaluation.mature
    assert len(mature) == told.ranking.n
    assert sum(e.is_fraud for e in mature) == told.decisions.frauds
    seen = evaluation.seen.decisions
    young = (seen.frauds - told.decisions.frauds) / (seen.n - told.decisions.n)
    assert young > 1.2 * told.decisions.frauds / told.decisions.n
    days = evaluation.by_day()
    assert [day.day < 8 for day in days] == [day.is_mature for day in days]
    expected = np.mean([day.card_precision for day in days if day.day < 8])
    assert pytest.approx(expected) == mean_of(days, "card_precision")


def test_day_that_matures_keeps_its_figures():
    """Late labels of a mature day still move it, and the sum of all that is mature."""
    evaluation = Evaluation(TERMS)
    feeder = Feeder(evaluation)
    feeder.feed([an_example("t1", score=0.9, is_alert=True)])
    assert (0.0, 1) == (evaluation.mature.decisions.n, evaluation.n)
    feeder.feed([an_example("t2", time_ms=7 * DAY_MS)])
    assert 1.0 == evaluation.mature.decisions.n
    late = an_example(
        "t1", score=0.9, is_alert=True, is_fraud=True, label_time_ms=8 * DAY_MS, label_source="x"
    )
    feeder.feed([late])
    day = evaluation.by_day()[0]
    assert (True, 1.0, 1.0) == (day.is_mature, day.decisions.frauds, day.recall_at_budget)
    assert (1.0, 1.0) == (evaluation.mature.decisions.n, evaluation.mature.decisions.caught)


def test_card_known_when_the_day_began_is_left_out():
    """Known on day 1: left out from day 2 on, for as long as it counts as compromised."""
    terms = Terms(top_k=1, compromised_days=3)
    log = [an_example("t0", time_ms=0, is_fraud=True, label_time_ms=DAY_MS + 1)]
    log += [
        an_example(f"t{day}", time_ms=day * DAY_MS + 5, is_fraud=True, label_time_ms=30 * DAY_MS)
        for day in range(1, 7)
    ]
    told = {day.day: day.card_precision for day in evaluated(log, terms).by_day()}
    # Day 0 finds it: so it is left out on days 1 and 2, and known on days 2, 3 and 4.
    assert {0: 1.0, 1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0, 5: 1.0, 6: 0.0} == told


def test_memory_is_bounded():
    """However long the stream, however many days, values, cards and frauds there are."""
    terms = Terms(
        top_k=10, budget=10, days_max=8, maturity_ms=2 * DAY_MS, values_max=4, cards_max=16,
        segments=("channel",),
    )  # fmt: skip
    feeder, sizes = Feeder(Evaluation(terms)), []
    for part in range(4):
        feeder.feed(
            an_example(
                f"{part} {i}", time_ms=(part * 30 + i // 100) * DAY_MS, is_fraud=i % 3 == 0,
                score=(i * 7 % 100) / 100, segments={"channel": f"{part} {i}" * 50},
                entities={"card": f"{part} {i // 2}"},
            )
            for i in range(3_000)
        )  # fmt: skip
        sizes.append(len(pickle.dumps(feeder.evaluation)))
    evaluation = feeder.evaluation
    assert sizes[-1] < 1.1 * sizes[0]
    assert 8 == len(evaluation.days)
    assert 16 == len(evaluation.cards.held)
    assert 5 == len(evaluation.values[0].names)
    assert max(len(name) for name in evaluation.values[0].names) <= 80
    for day in evaluation.days.values():
        assert len(day.scores.held) <= 15
        assert len(day.cards.held) <= 30


def test_snapshot_stays_small():
    """A month of which nothing is mature yet, thirty thousand labels: some hundred kB."""
    log = stream(3, 30_000, n_days=30)
    evaluation = evaluated(log, Terms(segments=("channel",)))
    packed = len(cramjam.zstd.compress(pickle.dumps(evaluation, protocol=5), 1))
    assert packed < 400_000, packed


def test_days_that_wait_for_maturity_are_all_kept():
    """Whatever ``days_max`` says: a day leaves only when it is part of all that is mature."""
    terms = Terms(days_max=1, maturity_ms=10 * DAY_MS)
    evaluation = evaluated([an_example(f"t{i}", time_ms=i * DAY_MS) for i in range(40)], terms)
    assert 40 == evaluation.n
    assert 12 == len(evaluation.days)
    assert 29 == evaluation.mature.decisions.n, "the clock is within day 39, ten days after 29"


def test_segments_are_counted_apart():
    """n, frauds, alerts and average precision by value; what is beyond the bound together."""
    log = stream(11, 3_000)
    evaluation = evaluated(log)
    groups = {group.name: group for group in evaluation.by_segment()["channel"]}
    told = Counter(e.segments["channel"] or "(missing)" for e in log)
    mature = evaluation.mature.decisions.n
    assert mature == sum(group.decisions.n for group in groups.values())
    assert "(other)" in groups
    assert 4 == len(groups)
    for name in set(groups) - {"(other)"}:
        assert 0.4 * told[name] < groups[name].decisions.n <= told[name]
        assert 0.0 < groups[name].average_precision < 1.0


def test_estimates_come_from_what_people_looked_at():
    """A label of another source says nothing of what people saw; one that was corrected stays."""
    seen = {"label_source": "analyst", "is_alert": True}
    log = [
        an_example("t1", is_fraud=True, propensity=1.0, **seen),
        an_example("t2", propensity=1.0, **seen),
        an_example("t3", is_fraud=True, propensity=0.25, **seen),
        an_example("t4", is_fraud=True, propensity=1.0, is_alert=True, label_source="bank"),
        an_example("t5", is_fraud=True, label_source="analyst", propensity=0.25),
    ]
    shown = evaluated(log).seen.shown
    assert 0.5 == shown.precision().value
    assert 0.2 == shown.recall().value
    right = msgspec.structs.replace(log[1], is_fraud=True, label_source="bank")
    assert 1.0 == evaluated([*log, right]).seen.shown.precision().value


def test_what_was_not_seen_has_no_figure():
    """NaN, not a figure that looks good, before anything was seen."""
    evaluation = Evaluation()
    told = [evaluation.average_precision, evaluation.roc_auc, evaluation.brier]
    told += [evaluation.calibration_error, evaluation.mature.decisions.precision]
    told += [mean_of(evaluation.by_day(), "card_precision"), evaluation.catch().hours_median]
    told += [*evaluation.seen.shown.recall(), *evaluation.seen.shown.precision()]
    assert np.isnan(told).all()
    assert [] == evaluation.by_day()
    evaluation.update([])
    assert -1 == evaluation.clock_ms


def test_transaction_without_entities_is_counted():
    """It has no card to rank or to catch."""
    evaluation = evaluated([an_example("t1", entities={}, is_fraud=True, is_alert=True)])
    assert (1, 0) == (evaluation.n, evaluation.catch().episodes)
    assert [0.0] == [day.card_precision for day in evaluation.by_day()]


def test_label_is_as_old_as_its_delay():
    """A label of the hour is known after a day; one of the eighth day is not after a week."""
    log = [an_example(f"t{i}", is_fraud=True, label_time_ms=1_000 + delay)
           for i, delay in enumerate([HOUR_MS, 8 * DAY_MS])]  # fmt: skip
    known = evaluated(log).seen.delays.frauds_known()
    assert [0.5] * 5 + [1.0] * 4 == known.tolist()
