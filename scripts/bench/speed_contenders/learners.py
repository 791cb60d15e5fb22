"""One learner over one stream: score a chunk, then learn it; what each costs.

learners.py NAME INPUT: INPUT is an .npz with x (n, d), y (n,), names. Prints JSON. Runs in either
environment: each learner imports only what it needs.

    learner       | what
    --------------+-------------------------------------------------------------------
    weir-default  | weir's default model, in batches, as its learner does
    weir-logistic | weir's logistic, the same
    river-arf     | River's ARFClassifier, 10 trees
    river-logistic| River's StandardScaler | LogisticRegression
    moa-arf       | MOA's AdaptiveRandomForest through CapyMOA, 10 trees
    vw            | Vowpal Wabbit, logistic loss, its own defaults

The clock runs while a learner scores or learns, and not while its examples are put into the form
that it takes (dictionaries, instances, lines of text), which would weigh on all but weir. Missing
values are absent keys to River and VW, and -1 to MOA.
"""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

#: Labels come this many examples after the score, for all.
CHUNK = 64
TREES = 10
SEED = 42


class Learner(ABC):
    """What the loop asks of each."""

    def given(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
        """A chunk in the form that this learner takes; not timed."""
        return x, y

    @abstractmethod
    def score(self, chunk: Any) -> Any:
        """Scores of a chunk."""

    @abstractmethod
    def learn(self, chunk: Any) -> None:
        """Learn a chunk."""


class Weir(Learner):
    """A model that weir ships."""

    def __init__(self, name: str, names: list[str]) -> None:
        sys.path.insert(0, str(Path(__file__).parents[3]))
        from app.config import load  # noqa: PLC0415 - only here is it installed
        from app.core.models import make_model  # noqa: PLC0415 - as above

        name = load().model.name if name == "weir-default" else "logistic"
        self.model = make_model(name, names, seed=SEED)
        self.compile(len(names), make_model(name, names, seed=SEED))

    @staticmethod
    def compile(d: int, model: Any) -> None:
        """Compile what is compiled at first use, on a model thrown away."""
        model.learn_many(np.zeros((1, d)), np.zeros(1, np.bool_), np.ones(1))
        model.score_many(np.zeros((1, d)))

    def score(self, chunk: Any) -> Any:
        """In one call."""
        return self.model.score_many(chunk[0])

    def learn(self, chunk: Any) -> None:
        """In one call."""
        self.model.learn_many(chunk[0], chunk[1], np.ones(len(chunk[1])))


class River(Learner):
    """An estimator of River's."""

    def __init__(self, model: Any, names: list[str]) -> None:
        self.model, self.names = model, names

    def given(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
        """Dictionaries without what is missing."""
        rows = [
            {name: v for name, v in zip(self.names, row, strict=True) if v == v}  # noqa: PLR0124
            for row in x.tolist()
        ]
        return rows, y.tolist()

    def score(self, chunk: Any) -> Any:
        """One by one."""
        return [self.model.predict_proba_one(row).get(True, 0.0) for row in chunk[0]]

    def learn(self, chunk: Any) -> None:
        """One by one."""
        for row, label in zip(*chunk, strict=True):
            self.model.learn_one(row, label)


class Moa(Learner):
    """MOA's adaptive random forest, in a Java machine in this process."""

    def __init__(self, names: list[str]) -> None:
        from capymoa.classifier import AdaptiveRandomForestClassifier  # noqa: PLC0415
        from capymoa.core import LabeledInstance  # noqa: PLC0415
        from capymoa.stream import Schema  # noqa: PLC0415

        self.schema = Schema.from_custom(
            [*names, "fraud"], target="fraud", categories={"fraud": ["0", "1"]}
        )
        self.instance = LabeledInstance.from_array
        self.model = AdaptiveRandomForestClassifier(
            self.schema, random_seed=SEED, ensemble_size=TREES
        )

    def given(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
        """Instances; what is missing is -1."""
        rows = np.where(np.isnan(x), -1.0, x)
        instances = [self.instance(self.schema, r, int(v)) for r, v in zip(rows, y, strict=True)]
        for instance in instances:
            _ = instance.java_instance  # made when first asked for
        return instances

    def score(self, chunk: Any) -> Any:
        """One by one."""
        told = [self.model.predict_proba(instance) for instance in chunk]
        return [_fraud(p) for p in told]

    def learn(self, chunk: Any) -> None:
        """One by one."""
        for instance in chunk:
            self.model.train(instance)


def _fraud(p: Any) -> float:
    """Probability of the second class, where the votes have come to it yet."""
    return float(p[1]) if p is not None and len(p) > 1 and p[1] == p[1] else 0.0


class Wabbit(Learner):
    """Vowpal Wabbit."""

    def __init__(self, names: list[str]) -> None:
        from vowpalwabbit import Workspace  # noqa: PLC0415

        self.names = names
        self.model = Workspace(
            f"--loss_function logistic --link logistic --random_seed {SEED} --quiet"
        )

    def given(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
        """Lines of text without what is missing, with and without the label."""
        rows = [
            " ".join(f"{name}:{v:g}" for name, v in zip(self.names, row, strict=True) if v == v)  # noqa: PLR0124
            for row in x.tolist()
        ]
        told = [f"{1 if label else -1} | {row}" for label, row in zip(y, rows, strict=True)]
        return [f"| {row}" for row in rows], told

    def score(self, chunk: Any) -> Any:
        """One by one."""
        return [self.model.predict(line) for line in chunk[0]]

    def learn(self, chunk: Any) -> None:
        """One by one."""
        for line in chunk[1]:
            self.model.learn(line)


def learner(name: str, names: list[str]) -> Learner:
    """The learner of that name."""
    if name.startswith("weir-"):
        return Weir(name, names)
    if name == "moa-arf":
        return Moa(names)
    if name == "vw":
        return Wabbit(names)
    from river import forest, linear_model, preprocessing  # noqa: PLC0415

    if name == "river-arf":
        # Its own 0.99 keeps a tree from ever splitting where fewer than 1 % are frauds.
        told = {"n_models": TREES, "seed": SEED, "max_share_to_split": 1.0}
        return River(forest.ARFClassifier(**told), names)
    return River(preprocessing.StandardScaler() | linear_model.LogisticRegression(), names)


def average_precision(scores: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    """Area under precision and recall, by steps; equal scores count together."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(y[order])
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(y) - 1)
    recall = hits[ends] / max(hits[-1], 1)
    precision = hits[ends] / (ends + 1)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def main() -> None:
    """Score and learn the whole stream; say on standard error how far it came."""
    name, given = sys.argv[1], np.load(sys.argv[2])
    x, y = given["x"], given["y"]
    names = [str(column) for column in given["names"]]
    model = learner(name, names)
    scores, score_s, learn_s = np.empty(len(y)), 0.0, 0.0
    score_cpu_s, learn_cpu_s = 0.0, 0.0
    for start in range(0, len(y), CHUNK):
        part = slice(start, start + CHUNK)
        chunk = model.given(x[part], y[part])
        began_s, cpu_s = time.perf_counter(), time.process_time()
        scores[part] = model.score(chunk)
        scored_s, scored_cpu_s = time.perf_counter(), time.process_time()
        model.learn(chunk)
        learn_s += time.perf_counter() - scored_s
        learn_cpu_s += time.process_time() - scored_cpu_s
        score_s += scored_s - began_s
        score_cpu_s += scored_cpu_s - cpu_s
        if start % (CHUNK * 16) == 0:
            print(start, file=sys.stderr, flush=True)
    n = len(y)
    told = {
        "examples": n,
        "learnt_per_s": n / learn_s,
        "learn_us": learn_s * 1e6 / n,
        "score_us": score_s * 1e6 / n,
        "both_per_s": n / (learn_s + score_s),
        # All threads: those too that collect a Java machine's garbage and compile its code.
        "learn_cpu_us": learn_cpu_s * 1e6 / n,
        "score_cpu_us": score_cpu_s * 1e6 / n,
        "average_precision": average_precision(scores, y),
        "average_precision_second_half": average_precision(scores[n // 2 :], y[n // 2 :]),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
