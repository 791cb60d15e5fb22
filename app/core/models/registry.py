"""Models by name."""

from collections.abc import Sequence
from typing import Any

from app.core.models.base import Model
from app.core.models.ensemble import Average, Stack
from app.core.models.forest import Forest
from app.core.models.hoeffding import Hoeffding
from app.core.models.logistic import Logistic
from app.core.models.river_models import RiverModel, pipeline

MODELS = ("logistic", "forest", "hoeffding", "average", "stack")


def make_model(name: str, features: Sequence[str], seed: int = 0, **params: Any) -> Model:
    """The model called ``name`` over ``features``; random choices follow from ``seed`` alone.

    Names: ``logistic``, ``forest``, ``hoeffding``, ``average`` and ``stack`` (of forest and
    logistic; the tables ``forest`` and
    ``logistic`` hold the members' parameters), or River's estimators by dotted path, piped with
    ``|``. ``params`` are the model's own, in a pipeline the last estimator's. Raises ValueError
    that says what is known.

    >>> make_model("logistic", ["amount"], lr=0.005).lr
    0.005
    >>> name = "river.preprocessing.StandardScaler | river.linear_model.ALMAClassifier"
    >>> alma = make_model(name, ["amount"], C=1.5)
    >>> alma.score_one({"amount": 3.0})
    0.5
    >>> make_model("oracle", ["amount"])
    Traceback (most recent call last):
    ValueError: unknown model 'oracle'; known: logistic, forest, hoeffding, average, stack, and ...
    """
    if name.startswith("river."):
        return RiverModel(
            features, pipeline([part.strip() for part in name.split("|")], seed, params)
        )
    if name not in MODELS:
        msg = (
            f"unknown model {name!r}; known: {', '.join(MODELS)}, and dotted paths of River "
            "such as 'river.linear_model.ALMAClassifier', piped with '|'"
        )
        raise ValueError(msg)
    try:
        return _compiled(name, features, seed, params)
    except TypeError as error:
        msg = f"model {name!r}: {error}"
        raise ValueError(msg) from error


def _compiled(name: str, features: Sequence[str], seed: int, params: dict[str, Any]) -> Model:
    """One of the models of this package."""
    if name == "logistic":
        return Logistic(features, **params)
    if name == "forest":
        return Forest(features, seed=seed, **params)
    if name == "hoeffding":
        return Hoeffding(features, seed=seed, **params)
    own = dict(params)
    members = [
        Forest(features, seed=seed, **own.pop("forest", {})),
        Logistic(features, **own.pop("logistic", {})),
    ]
    return Average(members, **own) if name == "average" else Stack(members, **own)
