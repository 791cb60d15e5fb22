"""Any of River's classifiers and anomaly detectors, or pipelines of them, behind ``Model``."""

import copy
import importlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from river import base, compose

from app.core.models.base import Flags, Floats, Model, checked_features
from app.core.models.digest import digest_of
from app.core.models.kernels import log_odds

# Detectors whose scores lie in [0, 1] already; others are squashed.
WITHIN_UNIT = ("HalfSpaceTrees",)


def build(path: str, seed: int, params: Mapping[str, Any]) -> Any:
    """The River object at a dotted path; parameters may be objects of River in turn.

    A parameter that is a table with a key ``class`` becomes that object; ``seed`` is given where
    the class takes one and none is stated. Raises ValueError for what is not River's, or does not
    exist, or does not take the parameters.

    >>> sgd = {"class": "river.optim.SGD", "lr": 0.005}
    >>> build("river.linear_model.LogisticRegression", 0, {"optimizer": sgd}).optimizer.lr
    Constant({'learning_rate': 0.005})
    """
    module, _, name = path.rpartition(".")
    if module.split(".")[0] != "river":
        msg = f"{path!r} is not a dotted path of River, such as 'river.linear_model.ALMAClassifier'"
        raise ValueError(msg)
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        msg = f"{path!r} does not exist in River: {error}"
        raise ValueError(msg) from error
    if not inspect.isclass(kind):
        msg = f"{path!r} is no class"
        raise ValueError(msg)
    arguments = {key: _built(value, seed) for key, value in params.items()}
    if "seed" in inspect.signature(kind).parameters:
        arguments.setdefault("seed", seed)
    try:
        return kind(**arguments)
    except TypeError as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from error


def _built(value: Any, seed: int) -> Any:
    """A configured value: tables with ``class`` become objects, in lists too."""
    if isinstance(value, Mapping) and "class" in value:
        return build(str(value["class"]), seed, {k: v for k, v in value.items() if k != "class"})
    if isinstance(value, list):
        return [_built(item, seed) for item in value]
    return value


def pipeline(names: Sequence[str], seed: int, params: Mapping[str, Any]) -> Any:
    """One River estimator, or several piped; parameters are the last one's.

    >>> names = ["river.preprocessing.StandardScaler", "river.linear_model.ALMAClassifier"]
    >>> list(pipeline(names, 0, {}).steps)
    ['StandardScaler', 'ALMAClassifier']
    """
    parts = [build(name, seed, {}) for name in names[:-1]] + [build(names[-1], seed, params)]
    return parts[0] if len(parts) == 1 else compose.Pipeline(*parts)


class RiverModel(Model):
    """A River estimator, called one example at a time with the present features as a dictionary.

    A missing value is an absent key. A weight is passed on where the estimator takes one; another
    learns an example of positive weight once. Anomaly detectors learn every example without its
    label; a score outside [0, 1] is squashed by ``(1 + s / (1 + |s|)) / 2``. Contributions are
    not known: all of the margin is bias. Some of River's estimators set themselves up at the first
    score: so that scoring changes nothing, an estimator that has learnt nothing is copied to be
    asked, and features it has never learnt are kept from it. Memory is bounded as far
    as the estimator bounds it.

    >>> model = RiverModel(["amount"], build("river.naive_bayes.GaussianNB", 0, {}))
    >>> model.learn_one({"amount": 5.0}, 0)
    >>> model.score_one({"amount": 5.0})
    0.0
    """

    def __init__(self, features: Sequence[str], estimator: Any) -> None:
        self.features = checked_features(features)
        self.estimator = estimator
        last = (
            list(estimator.steps.values())[-1]
            if isinstance(estimator, compose.Pipeline)
            else estimator
        )
        self._detects = isinstance(last, base.AnomalyDetector)
        if not self._detects and not isinstance(last, base.Classifier):
            msg = f"{type(last).__name__} is neither a classifier nor an anomaly detector"
            raise ValueError(msg)
        self._within_unit = type(last).__name__ in WITHIN_UNIT
        self._learnt = np.zeros(len(self.features), dtype=np.bool_)
        self._weighs = "w" in inspect.signature(last.learn_one).parameters

    @property
    def nbytes(self) -> int:
        """Bytes of the estimator, as River counts them; costs as much as pickling it."""
        return int(self.estimator._raw_memory_usage)  # noqa: SLF001 -- River's only way to ask

    def _dict_of(self, row: Floats) -> dict[str, float]:
        """The present features of a row."""
        return {
            name: value
            for name, value in zip(self.features, row.tolist(), strict=True)
            if value == value
        }

    def _learn(self, rows: Floats, is_fraud: Flags, weights: Floats) -> None:
        for row, label, weight in zip(rows, is_fraud.tolist(), weights.tolist(), strict=True):
            if weight == 0.0:
                continue
            self._learnt |= ~np.isnan(row)
            if self._detects:
                self.estimator.learn_one(self._dict_of(row))
            elif self._weighs:
                self.estimator.learn_one(self._dict_of(row), bool(label), w=weight)
            else:
                self.estimator.learn_one(self._dict_of(row), bool(label))

    def _score(self, rows: Floats) -> Floats:
        if not self._learnt.any():
            estimator = copy.deepcopy(self.estimator)
            return np.array(
                [self._score_row(estimator, self._dict_of(row)) for row in rows], dtype=np.float64
            )
        known = np.where(self._learnt, rows, np.nan)
        return np.array(
            [self._score_row(self.estimator, self._dict_of(row)) for row in known], dtype=np.float64
        )

    def _score_row(self, estimator: Any, x: dict[str, float]) -> float:
        """A score in [0, 1], 0 where the estimator knows nothing yet."""
        if self._detects:
            raw = float(estimator.score_one(x))
            score = raw if self._within_unit else 0.5 * (1.0 + raw / (1.0 + abs(raw)))
        else:
            try:
                score = float(estimator.predict_proba_one(x).get(True, 0.0))
            except NotImplementedError:
                score = float(bool(estimator.predict_one(x)))
        return min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0

    def _margin(self, rows: Floats) -> Floats:
        return np.array([log_odds(score) for score in self._score(rows)], dtype=np.float64)

    def _contributions(self, rows: Floats) -> Floats:
        out = np.zeros((len(rows), len(self.features) + 1))
        out[:, -1] = self._margin(rows)
        return out

    def _state(self) -> Iterator[tuple[str, Any]]:
        yield "features", self.features
        yield "learnt", self._learnt
        yield "estimator", digest_of(self.estimator)
