"""Each law for each model."""

import functools

import pytest

from app.core.models import make_model
from tests.core.models import laws

SMALL = {"n_trees": 4, "n_frauds": 50, "kept_per_tree": 100, "max_nodes": 63}
MODELS = {
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
    "river.preprocessing.MinMaxScaler | river.anomaly.HalfSpaceTrees": {"n_trees": 3, "height": 3, "window_size": 50},
    "river.preprocessing.StandardScaler | river.anomaly.OneClassSVM": {},
}
COMPILED = [name for name in MODELS if "." not in name]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_every_model(law, name):
    law(lambda seed: make_model(name, laws.FEATURES, seed, **MODELS[name]))


@pytest.mark.parametrize("name", COMPILED)
def test_memory_is_bounded(name):
    laws.memory_is_bounded(functools.partial(make_model, name, laws.FEATURES, **MODELS[name]))


@pytest.mark.parametrize("name", COMPILED[1:])
def test_seeds_matter_where_there_is_chance(name):
    rows, label, weight = laws.stream(300, 6)
    digests = set()
    for seed in range(3):
        model = make_model(name, laws.FEATURES, seed, **MODELS[name])
        model.learn_many(rows, label, weight)
        digests.add(model.state_digest())
    assert len(digests) == 3


def test_an_unknown_name_is_answered_with_the_known_ones():
    for name in ("oracle", "river.linear_model.Oracle", "os.system", "river.preprocessing.StandardScaler"):
        with pytest.raises(ValueError, match=r"known|River|neither"):
            make_model(name, ("a",))
    with pytest.raises(ValueError, match="depth"):
        make_model("forest", ("a",), depth=3)
    with pytest.raises(ValueError, match="depth"):
        make_model("river.linear_model.ALMAClassifier", ("a",), depth=3)
