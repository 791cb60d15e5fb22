"""Kernels against River's own estimators."""

import numpy as np
import pytest
from river import linear_model, optim, preprocessing, tree

from app.core.models import make_model
from app.core.models.hoeffding import Hoeffding
from app.core.models.logistic import Logistic
from tests.core.models.laws import FEATURES, stream


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("l2", [0.0, 0.01])
def test_logistic_equals_river(seed, l2):
    """Scores before every example, with weights, differ by no more than 1e-9."""
    rows, label, _ = stream(400, seed)
    weight = np.random.default_rng(seed).exponential(size=400)
    ours = Logistic(FEATURES, lr=0.05, intercept_lr=0.02, l2=l2)
    theirs = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.05), l2=l2, intercept_lr=0.02)
    for row, y, w in zip(rows.tolist(), label.tolist(), weight.tolist(), strict=True):
        x = dict(zip(FEATURES, row, strict=True))
        assert ours.predict_proba_one(x)[True] == pytest.approx(theirs.predict_proba_one(x)[True], abs=1e-9)
        ours.learn_one(x, y, w)
        theirs.learn_one(x, bool(y), w=w)


def _same_nodes(model, node, river_node):
    """Assert that a subtree asks the same questions and holds the same counts."""
    if not hasattr(river_node, "children"):
        assert model._feature[0, node] < 0
        counts = model._counts[0, model._leaf[0, node]]
        assert counts == pytest.approx([river_node.stats.get(False, 0.0), river_node.stats.get(True, 0.0)], abs=1e-9)
        return 1
    assert FEATURES[model._feature[0, node]] == river_node.feature
    assert model._threshold[0, node] == pytest.approx(river_node.threshold, abs=1e-9)
    left = model._child[0, node]
    return sum(_same_nodes(model, left + side, child) for side, child in enumerate(river_node.children))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("grace", "delta", "tau"), [(30, 0.05, 0.05), (200, 1e-7, 0.2)])
def test_a_single_tree_equals_river_node_for_node(seed, grace, delta, tau):
    """Same questions, thresholds, counts and scores as River's Hoeffding tree."""
    rows, label, _ = stream(2500, seed)
    weight = np.random.default_rng(seed).exponential(size=2500)
    ours = Hoeffding(FEATURES, n_trees=1, bagging=0.0, subspace=-1, grace_period=grace, delta=delta, tau=tau)
    theirs = tree.HoeffdingTreeClassifier(
        leaf_prediction="mc", max_share_to_split=1.0, grace_period=grace, delta=delta, tau=tau
    )
    for row, y, w in zip(rows.tolist(), label.tolist(), weight.tolist(), strict=True):
        theirs.learn_one(dict(zip(FEATURES, row, strict=True)), bool(y), w=w)
    ours.learn_many(rows, label, weight)
    assert _same_nodes(ours, 0, theirs._root) == theirs.n_leaves >= 3


@pytest.mark.parametrize("estimator", ["river.linear_model.ALMAClassifier", "river.linear_model.LogisticRegression"])
def test_a_dotted_path_is_rivers_own(estimator):
    """The adapter gives River's bits, missing values as absent keys."""
    rows, label, _ = stream(300, 1, missing=0.1)
    name = estimator.rpartition(".")[2]
    ours = make_model(f"river.preprocessing.StandardScaler | {estimator}", FEATURES)
    theirs = preprocessing.StandardScaler() | getattr(linear_model, name)()
    for row, y in zip(rows.tolist(), label.tolist(), strict=True):
        x = dict(zip(FEATURES, row, strict=True))
        present = {key: value for key, value in x.items() if not np.isnan(value)}
        assert ours.predict_proba_one(x)[True] == theirs.predict_proba_one(present)[True]
        ours.learn_one(x, y)
        theirs.learn_one(present, bool(y))


def test_a_fraud_learnt_at_x_does_not_lower_the_score_at_x():
    """A gradient step on a fraud raises its score; at certainty the scaler's own step outweighs it."""
    rows, label, _ = stream(2000, 1)
    model = Logistic(FEATURES, lr=0.05)
    model.learn_many(rows, label)
    for row in rows[:300]:
        before = model.score_many(row[None])[0]
        model.learn_many(row[None], [1])
        assert model.score_many(row[None])[0] >= min(before, 0.99)
