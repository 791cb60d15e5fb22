"""The histograms against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from app.core.evaluation import Evaluation


def stream(seed: int, n: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores that tell frauds apart, more or less, and what they were."""
    rng = np.random.default_rng(seed)
    is_fraud = rng.random(n) < share
    odds = rng.normal(size=n) * 2 + 2.0 * is_fraud - 4
    return 1 / (1 + np.exp(-odds)), is_fraud


@pytest.mark.parametrize(("seed", "share"), [(1, 0.5), (2, 0.05), (3, 0.005)])
def test_figures_are_those_of_scikit_learn(seed, share):
    """Average precision, AUC and Brier score, to the width of a bin."""
    scores, is_fraud = stream(seed, 20_000, share)
    evaluation = Evaluation()
    evaluation.update(scores, is_fraud)
    assert 20_000 == evaluation.n
    expected = average_precision_score(is_fraud, scores)
    assert pytest.approx(expected, abs=2e-3) == evaluation.average_precision
    assert pytest.approx(roc_auc_score(is_fraud, scores), abs=1e-4) == evaluation.roc_auc
    assert pytest.approx(brier_score_loss(is_fraud, scores), abs=1e-12) == evaluation.brier


def test_ties_count_as_scikit_learn_counts_them():
    """Few values of the score, many of each."""
    rng = np.random.default_rng(4)
    scores = rng.choice([0.01, 0.2, 0.5, 0.9], 5_000)
    is_fraud = rng.random(5_000) < scores
    evaluation = Evaluation()
    evaluation.update(scores, is_fraud)
    expected = average_precision_score(is_fraud, scores)
    assert pytest.approx(expected, abs=1e-12) == evaluation.average_precision
    assert pytest.approx(roc_auc_score(is_fraud, scores), abs=1e-12) == evaluation.roc_auc


def test_batches_make_no_difference():
    """The same to the last bit, however the scores came."""
    scores, is_fraud = stream(5, 999, 0.1)
    whole, single = Evaluation(), Evaluation()
    whole.update(scores, is_fraud)
    for i in range(len(scores)):
        single.update(scores[i : i + 1], is_fraud[i : i + 1])
    assert whole.counts.tobytes() == single.counts.tobytes()
    assert whole.brier_sum == single.brier_sum


def test_what_was_not_seen_has_no_figure():
    """NaN, not a figure that looks good, before both classes were seen."""
    evaluation = Evaluation()
    figures = [evaluation.average_precision, evaluation.roc_auc, evaluation.brier]
    assert np.isnan(figures).all()
    evaluation.update(np.array([0.2, 0.3]), np.array([False, False]))
    assert np.isnan([evaluation.average_precision, evaluation.roc_auc]).all()
    assert pytest.approx(0.065) == evaluation.brier


def test_certain_scores_are_counted():
    """0 and 1 have no log-odds, and yet a place."""
    evaluation = Evaluation()
    evaluation.update(np.array([1.0, 0.0]), np.array([True, False]))
    assert (1.0, 1.0) == (evaluation.average_precision, evaluation.roc_auc)


def test_calibration_error_is_the_distance_of_score_and_share():
    """None where scores are shares; their distance where they are off."""
    rng = np.random.default_rng(8)
    scores = rng.uniform(0.01, 0.6, 50_000)
    honest, bold = Evaluation(), Evaluation()
    honest.update(scores, rng.random(50_000) < scores)
    bold.update(np.minimum(scores + 0.3, 1.0), rng.random(50_000) < scores)
    assert honest.calibration_error < 0.01
    assert 0.28 < bold.calibration_error < 0.32
    assert np.isnan(Evaluation().calibration_error)
