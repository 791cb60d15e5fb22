"""Laws that every model keeps, and kernels against River's own estimators."""

import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from river import linear_model, optim, preprocessing, tree

from app.core.models import Model, make_model
from app.core.models.forest import Forest
from app.core.models.hoeffding import Hoeffding
from app.core.models.logistic import Logistic

Maker = Callable[[int], Model]
FEATURES = ("amount", "hour", "constant", "ratio")


def stream(n: int, seed: int, missing: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows over FEATURES, labels that depend on them (about one in five), and weights."""
    rng = np.random.default_rng(seed)
    rows = np.column_stack(
        [rng.exponential(50.0, n), rng.integers(0, 24, n), np.full(n, 3.0), rng.normal(size=n)]
    ).astype(np.float64)
    label = (rows[:, 0] / 50.0 + rows[:, 3] + rng.normal(scale=0.5, size=n) > 2.0).astype(np.int8)
    rows[rng.random(rows.shape) < missing] = np.nan
    return rows, label, rng.integers(0, 4, n).astype(np.float64)


def scores_are_finite_and_in_the_unit_interval(make: Maker) -> None:
    """Whatever a row holds, its score is a number in [0, 1]."""
    rows, label, weight = stream(600, 1, missing=0.1)
    model = make(0)
    assert (np.abs(model.score_many(rows) - 0.5) <= 0.5).all()
    model.learn_many(rows, label, weight)
    scores = model.score_many(
        np.vstack([rows, rows * 1e6, np.full((1, 4), np.nan), np.full((1, 4), 1e99)])
    )
    assert np.isfinite(scores).all()
    assert (np.abs(scores - 0.5) <= 0.5).all()


def inference_is_pure(make: Maker) -> None:
    """Scoring and explaining leave the digest as it was."""
    rows, label, weight = stream(400, 2, missing=0.1)
    model = make(0)
    for learnt in (0, 200):
        model.learn_many(rows[:learnt], label[:learnt], weight[:learnt])
        before = model.state_digest()
        model.score_many(rows)
        model.margin_many(rows)
        model.contributions(rows)
        model.predict_proba_one(dict(zip(FEATURES, rows[0].tolist(), strict=True)))
        assert model.state_digest() == before


def pickling_goes_on_identically(make: Maker) -> None:
    """A restored model learns and scores as if it had never been stored."""
    rows, label, weight = stream(600, 3, missing=0.1)
    model = make(0)
    model.learn_many(rows[:300], label[:300], weight[:300])
    copy = pickle.loads(pickle.dumps(model))
    assert copy.state_digest() == model.state_digest()
    for one in (model, copy):
        one.learn_many(rows[300:], label[300:], weight[300:])
    assert copy.state_digest() == model.state_digest()
    assert np.array_equal(copy.score_many(rows), model.score_many(rows))


def a_batch_equals_its_rows_one_by_one(make: Maker) -> None:
    """However a log is cut, the model ends with the same bits."""
    rows, label, weight = stream(500, 4, missing=0.1)
    whole, parts, singles = make(0), make(0), make(0)
    whole.learn_many(rows, label, weight)
    cuts = np.sort(np.random.default_rng(5).integers(0, 500, 9))
    for part in np.split(np.arange(500), cuts):
        parts.learn_many(rows[part], label[part], weight[part])
    for row, y, w in zip(rows.tolist(), label.tolist(), weight.tolist(), strict=True):
        singles.learn_one(dict(zip(FEATURES, row, strict=True)), y, w)
    assert whole.state_digest() == parts.state_digest() == singles.state_digest()
    scores = whole.score_many(rows)
    assert np.array_equal(
        scores, [whole.score_one(dict(zip(FEATURES, row, strict=True))) for row in rows.tolist()]
    )
    assert np.array_equal(scores[100:217], whole.score_many(rows[100:217]))


def seeds_repeat(make: Maker) -> None:
    """The same seed and log give the same model."""
    rows, label, weight = stream(300, 6)
    one, other = make(3), make(3)
    for model in (one, other):
        model.learn_many(rows, label, weight)
    assert one.state_digest() == other.state_digest()


def refusal_leaves_the_model_as_it_was(make: Maker) -> None:
    """What is refused teaches nothing."""
    rows, label, weight = stream(100, 7)
    model = make(0)
    model.learn_many(rows, label, weight)
    before = model.state_digest()
    bad_rows = [np.inf, -np.inf, 1e308]
    attempts = [
        (np.where(np.arange(400).reshape(100, 4) == 399, value, rows), label, weight)
        for value in bad_rows
    ]
    attempts += [
        (rows[:, :3], label, weight),
        (rows, label[:99], weight),
        (rows, label * 2, weight),
        (rows, label, -weight),
    ]
    attempts += [(rows, label, weight * np.nan)]
    for attempt in attempts:
        try:
            model.learn_many(*attempt)
        except ValueError:
            assert model.state_digest() == before
        else:
            msg = "learnt what it must refuse"
            raise AssertionError(msg)


def contributions_add_up_to_the_margin(make: Maker) -> None:
    """A row's contributions sum to its margin, whose link is the score."""
    rows, label, weight = stream(500, 8, missing=0.1)
    model = make(0)
    model.learn_many(rows, label, weight)
    margin = model.margin_many(rows)
    assert np.allclose(model.contributions(rows).sum(axis=1), margin, atol=1e-8)
    assert np.allclose(1.0 / (1.0 + np.exp(-margin)), model.score_many(rows), atol=1e-9)


def features_may_vanish_and_emerge(make: Maker) -> None:
    """Absent features are missing values; unknown ones are ignored."""
    model = make(0)
    rows, label, _ = stream(300, 9)
    for row, y in zip(rows.tolist(), label.tolist(), strict=True):
        model.learn_one(dict(zip(FEATURES, row, strict=True)), y)
    assert 0.0 <= model.score_one({"hour": 3.0, "emerging": 1.0}) <= 1.0
    model.learn_one({"hour": 3.0, "emerging": 1.0}, 1)
    model.learn_one({}, 0)
    assert 0.0 <= model.score_one({}) <= 1.0


def constant_features_and_one_class_are_survived(make: Maker) -> None:
    """No spread and no fraud leave a model sound."""
    model = make(0)
    model.learn_many(np.ones((300, 4)), np.zeros(300))
    assert model.score_many(np.ones((1, 4)))[0] <= 0.5
    model.learn_many(np.ones((300, 4)), np.arange(300) % 2)
    assert np.isfinite(model.score_many(np.ones((1, 4)))).all()


def memory_is_bounded(make: Maker) -> None:
    """What is learnt beyond the bound takes no more bytes."""
    model = make(0)
    sizes = []
    for part in range(6):
        rows, label, weight = stream(3000, part)
        model.learn_many(rows, label, weight)
        sizes.append(model.nbytes)
    assert sizes[-1] == sizes[-2] < 4e6


LAWS = [
    scores_are_finite_and_in_the_unit_interval,
    inference_is_pure,
    pickling_goes_on_identically,
    a_batch_equals_its_rows_one_by_one,
    seeds_repeat,
    refusal_leaves_the_model_as_it_was,
    contributions_add_up_to_the_margin,
    features_may_vanish_and_emerge,
    constant_features_and_one_class_are_survived,
]

SMALL = {"n_trees": 4, "n_frauds": 50, "kept_per_tree": 100, "max_nodes": 63}
MODELS: dict[str, dict[str, Any]] = {
    "logistic": {},
    "forest": SMALL,
    "hoeffding": {"n_trees": 4, "grace_period": 20, "max_leaves": 200},
    "average": {"forest": SMALL},
    "stack": {"forest": SMALL},
    "river.preprocessing.StandardScaler | river.linear_model.ALMAClassifier": {},
    "river.preprocessing.StandardScaler | river.linear_model.LogisticRegression": {
        "optimizer": {"class": "river.optim.SGD", "lr": 0.005}
    },
    "river.tree.HoeffdingTreeClassifier": {},
    "river.forest.ARFClassifier": {"n_models": 2},
    "river.preprocessing.MinMaxScaler | river.anomaly.HalfSpaceTrees": {
        "n_trees": 3,
        "height": 3,
        "window_size": 50,
    },
    "river.preprocessing.StandardScaler | river.anomaly.OneClassSVM": {},
}
COMPILED = [name for name in MODELS if "." not in name]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_every_model(law, name):
    """Each law for each model."""
    law(lambda seed: make_model(name, FEATURES, seed, **MODELS[name]))


@pytest.mark.parametrize("name", COMPILED)
def test_memory_is_bounded(name):
    """The compiled models keep within their parameters' bound."""
    memory_is_bounded(functools.partial(make_model, name, FEATURES, **MODELS[name]))


@pytest.mark.parametrize("name", COMPILED[1:])
def test_seeds_matter_where_there_is_chance(name):
    """Another seed is another forest."""
    rows, label, weight = stream(300, 6)
    digests = set()
    for seed in range(3):
        model = make_model(name, FEATURES, seed, **MODELS[name])
        model.learn_many(rows, label, weight)
        digests.add(model.state_digest())
    assert len(digests) == 3


def test_an_unknown_name_is_answered_with_the_known_ones():
    """A wrong name or parameter is refused with what was expected."""
    for name in (
        "oracle",
        "river.linear_model.Oracle",
        "os.system",
        "river.preprocessing.StandardScaler",
    ):
        with pytest.raises(ValueError, match=r"known|River|neither"):
            make_model(name, ("a",))
    with pytest.raises(ValueError, match="depth"):
        make_model("forest", ("a",), depth=3)
    with pytest.raises(ValueError, match="depth"):
        make_model("river.linear_model.ALMAClassifier", ("a",), depth=3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("l2", [0.0, 0.01])
def test_logistic_equals_river(seed, l2):
    """Scores before every example, with weights, differ by no more than 1e-9."""
    rows, label, _ = stream(400, seed)
    weight = np.random.default_rng(seed).exponential(size=400)
    ours = Logistic(FEATURES, lr=0.05, intercept_lr=0.02, l2=l2)
    theirs = preprocessing.StandardScaler() | linear_model.LogisticRegression(
        optim.SGD(0.05), l2=l2, intercept_lr=0.02
    )
    for row, y, w in zip(rows.tolist(), label.tolist(), weight.tolist(), strict=True):
        x = dict(zip(FEATURES, row, strict=True))
        assert ours.predict_proba_one(x)[True] == pytest.approx(
            theirs.predict_proba_one(x)[True], abs=1e-9
        )
        ours.learn_one(x, y, w)
        theirs.learn_one(x, bool(y), w=w)


def _same_nodes(model, node, river_node):
    """Assert that a subtree asks the same questions and holds the same counts."""
    if not hasattr(river_node, "children"):
        assert model._feature[0, node] < 0
        counts = model._counts[0, model._leaf[0, node]]
        assert counts == pytest.approx(
            [river_node.stats.get(False, 0.0), river_node.stats.get(True, 0.0)], abs=1e-9
        )
        return 1
    assert FEATURES[model._feature[0, node]] == river_node.feature
    assert model._threshold[0, node] == pytest.approx(river_node.threshold, abs=1e-9)
    left = model._child[0, node]
    return sum(
        _same_nodes(model, left + side, child) for side, child in enumerate(river_node.children)
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("grace", "delta", "tau"), [(30, 0.05, 0.05), (200, 1e-7, 0.2)])
def test_a_single_tree_equals_river_node_for_node(seed, grace, delta, tau):
    """Same questions, thresholds, counts and scores as River's Hoeffding tree."""
    rows, label, _ = stream(2500, seed)
    weight = np.random.default_rng(seed).exponential(size=2500)
    ours = Hoeffding(
        FEATURES, n_trees=1, bagging=0.0, subspace=-1, grace_period=grace, delta=delta, tau=tau
    )
    theirs = tree.HoeffdingTreeClassifier(
        leaf_prediction="mc", max_share_to_split=1.0, grace_period=grace, delta=delta, tau=tau
    )
    for row, y, w in zip(rows.tolist(), label.tolist(), weight.tolist(), strict=True):
        theirs.learn_one(dict(zip(FEATURES, row, strict=True)), bool(y), w=w)
    ours.learn_many(rows, label, weight)
    assert _same_nodes(ours, 0, theirs._root) == theirs.n_leaves >= 3


@pytest.mark.parametrize(
    "estimator", ["river.linear_model.ALMAClassifier", "river.linear_model.LogisticRegression"]
)
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
    """A step on a fraud raises its score; near certainty the scaler's step may outweigh it."""
    rows, label, _ = stream(2000, 1)
    model = Logistic(FEATURES, lr=0.05)
    model.learn_many(rows, label)
    for row in rows[:300]:
        before = model.score_many(row[None])[0]
        model.learn_many(row[None], [1])
        assert model.score_many(row[None])[0] >= min(before, 0.99)


def _after_the_turn(n_frauds):
    """Mean score of old and of new frauds, after frauds have changed sides for 3000 examples."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(9000, 4))
    side = np.where(np.arange(9000) < 6000, rows[:, 0], -rows[:, 0])
    model = Forest(FEATURES, seed=1, n_trees=10, n_frauds=n_frauds, kept_per_tree=50)
    model.learn_many(rows, side > 1.5)
    late = rng.normal(size=(2000, 4))
    old, new = late[late[:, 0] > 1.6], late[late[:, 0] < -1.6]
    return model.score_many(old).mean(), model.score_many(new).mean()


def test_an_old_example_fades():
    """A forest forgets frauds of a kind that no longer comes as soon as its rings turn over."""
    old, new = _after_the_turn(100)
    assert old < 0.1
    assert new > 0.5
    assert _after_the_turn(10_000)[0] > 0.3


def test_sampling_of_legitimate_examples_keeps_scores_probabilities():
    """The mean score is near the share of frauds, although few legitimate examples are kept."""
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(40_000, 4))
    label = (rows[:, 0] + rng.normal(size=40_000) > 3.2).astype(np.int8)
    model = Forest(FEATURES, seed=1, n_trees=10, min_leaf=50)
    model.learn_many(rows[:30_000], label[:30_000])
    assert model._count[2] < 5_000
    assert model.score_many(rows[30_000:]).mean() == pytest.approx(0.012, abs=0.004)


def test_a_missing_value_can_be_the_strongest_sign():
    """Where only frauds lack a feature, a row that lacks it scores high."""
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(4000, 4))
    label = (rng.random(4000) < 0.05).astype(np.int8)
    rows[label == 1, 2] = np.nan
    model = Forest(FEATURES, seed=1, n_trees=10)
    model.learn_many(rows, label)
    without, with_it = np.array([[0.0, 0.0, np.nan, 0.0]]), np.zeros((1, 4))
    assert model.score_many(without)[0] > 0.5
    assert model.score_many(with_it)[0] < 0.1


def test_a_wrong_parameter_is_refused_with_its_value():
    """Zero trees, no memory, no smoothing: none makes a forest."""
    for wrong in ({"n_trees": 0}, {"n_frauds": 0}, {"smoothing": 0.0}, {"max_nodes": 0}):
        with pytest.raises(ValueError, match=str(next(iter(wrong)))):
            Forest(FEATURES, **wrong)


DIGESTS = """
import numpy as np
from app.core.models import make_model
rng = np.random.default_rng(1)
rows, label = rng.normal(size=(150, 2)), rng.integers(0, 2, 150)
for name in ("river.forest.ARFClassifier", "river.naive_bayes.GaussianNB", "logistic"):
    model = make_model(name, ("a", "b"), 1)
    model.learn_many(rows, label)
    print(model.state_digest())
"""


def test_a_digest_is_the_same_in_every_process():
    """Neither the hash seed nor addresses enter into a digest."""
    printed = {
        subprocess.run(
            [sys.executable, "-c", DIGESTS],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert len(set(printed.pop().split())) == 3
