"""What decides before there are labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.mixture import Mixture
from app.core.models import make_model
from app.core.novelty import Novelty


def known(rows, cuts=()):
    """A novelty that has seen rows in the runs between ``cuts``."""
    novelty = Novelty.of(rows.shape[1])
    for run in np.split(rows, cuts):
        if len(run):
            means = run.mean(axis=0)
            novelty.merge(len(run), means, ((run - means) ** 2).sum(axis=0))
    return novelty


@given(st.lists(st.integers(0, 200), max_size=6).map(sorted), st.integers(0, 2**31))
def test_runs_merged_are_the_whole(cuts, seed):
    """Mean and deviation do not depend on where summaries end."""
    rows = np.random.default_rng(seed).normal([0, 50, -3], [1, 20, 0.1], (200, 3))
    novelty = known(rows, cuts)
    np.testing.assert_allclose(rows.mean(axis=0), novelty.means, atol=1e-9)
    np.testing.assert_allclose(rows.var(axis=0), novelty.squares / novelty.n, rtol=1e-9)


def test_unlike_rows_score_above_the_rest():
    """Five deviations off in a few features stands out; the rest stays near the prior."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(2_000, 10))
    odd = rows[:200].copy()
    odd[:, :6] += 5.0
    novelty = known(rows)
    legitimate, strange = novelty.score_many(rows), novelty.score_many(odd)
    assert np.median(legitimate) < 0.02
    assert strange.min() > np.quantile(legitimate, 0.99)


def test_before_anything_is_known_every_score_is_the_prior():
    """Nobody is flagged by a scorer that has seen nothing; missing values are no evidence."""
    novelty = Novelty.of(2)
    assert [0.00995] * 2 == novelty.score_many(np.array([[1.0, 1e9], [np.nan, 0]])).round(
        5
    ).tolist()


def test_constant_and_missing_features_are_no_evidence():
    """A feature that never varies cannot say who is unlike."""
    novelty = Novelty.of(2)
    novelty.merge(256, np.array([7.0, np.nan]), np.zeros(2))
    assert (novelty.contributions(np.array([[1e6, 5.0]]))[0, :-1] == 0.0).all()


@pytest.mark.parametrize(("trust", "expected"), [(1.0, "model"), (0.0, "novelty"), (0.4, "both")])
def test_hand_over_is_gradual(trust, expected):
    """The score moves from unlikeness to the model in proportion to the frauds learnt."""
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(500, 3))
    model = make_model("logistic", ("a", "b", "c"))
    model.learn_many(rows, (rows[:, 0] > 1).astype(np.int8))
    novelty = known(rows)
    mixture = Mixture(model, novelty=novelty, trust=trust)
    ours, theirs = model.score_many(rows), novelty.score_many(rows)
    wanted = {"model": ours, "novelty": theirs, "both": 0.4 * ours + 0.6 * theirs}[expected]
    told, raw = mixture.score_many(rows)
    np.testing.assert_allclose(wanted, told, rtol=1e-12)
    np.testing.assert_array_equal(ours, raw)
    shares = {"model": 1.0, "novelty": 0.0, "both": 0.4}[expected]
    told = shares * model.contributions(rows) + (1 - shares) * novelty.contributions(rows)
    np.testing.assert_allclose(told, mixture.contributions(rows), atol=1e-12)
