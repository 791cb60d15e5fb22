"""An online forest that regrows its trees from a bounded memory of examples."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from app.core.models import forest_kernels
from app.core.models.base import Flags, Floats, Model, checked_features
from app.core.models.kernels import log_odds_of, poisson_table


class Forest(Model):
    """A random forest in one pass: examples are kept in two rings, and trees regrown in turn.

    The memory holds the last ``n_frauds`` frauds and a sample of the legitimate examples,
    ``legitimate_per_fraud`` times as many, each weighted by how many it stands for, so that
    scores stay probabilities. After every ``kept_per_tree`` examples kept (sooner while young) the
    oldest tree is regrown on a bootstrap of the memory, each node choosing the best of
    ``n_thresholds`` values of ``n_asked`` features (0: a quarter of them); between growths each
    kept example is counted in the leaves at once. So an old example fades when its ring
    overwrites it. Hoeffding trees, which see an example once, reach less with few frauds.

    A missing value goes where it does less harm to the node's impurity, both sides tried. Leaves
    are drawn to the overall fraud share by ``smoothing`` examples. Memory is bounded:
    ``n_frauds * (1 + legitimate_per_fraud) * (4 d + 9)`` bytes of examples, ``n_trees * max_nodes *
    36`` of trees. Learning takes time in steps: most examples cost less than 1 us, one that is kept
    some 5 us, and one that a tree grows upon up to 0.2 s with a full memory of 57 features.

    >>> model = Forest(["amount", "hour"], seed=7, n_trees=10)
    >>> for i in range(2000):
    ...     model.learn_one({"amount": i % 100, "hour": i % 24}, i % 100 > 90)
    >>> [model.score_one({"amount": amount, "hour": 3}) > 0.1 for amount in (10, 99)]
    [False, True]
    """

    def __init__(
        self,
        features: Sequence[str],
        seed: int = 0,
        n_trees: int = 100,
        n_frauds: int = 4000,
        legitimate_per_fraud: float = 10.0,
        kept_per_tree: int = 500,
        n_asked: int = 0,
        n_thresholds: int = 24,
        min_leaf: int = 5,
        max_depth: int = 16,
        max_nodes: int = 2047,
        smoothing: float = 1.0,
    ) -> None:
        self.features = checked_features(features)
        self.seed = int(seed)
        self.n_trees = int(n_trees)
        self.n_frauds = int(n_frauds)
        self.legitimate_per_fraud = float(legitimate_per_fraud)
        self.kept_per_tree = int(kept_per_tree)
        self.n_asked = int(n_asked)
        self.n_thresholds = int(n_thresholds)
        self.min_leaf = int(min_leaf)
        self.max_depth = int(max_depth)
        self.max_nodes = int(max_nodes)
        self.smoothing = float(smoothing)
        smallest = min(
            self.seed + 1,
            self.n_trees,
            self.n_frauds,
            self.legitimate_per_fraud,
            self.kept_per_tree,
            self.n_asked + 1,
            self.n_thresholds,
            self.min_leaf,
            self.max_depth,
            self.max_nodes,
        )
        if smallest < 1 or not self.smoothing > 0.0:
            msg = f"{self._rates()!r}: expected seed, n_asked >= 0, smoothing > 0, all others >= 1"
            raise ValueError(msg)
        d = len(self.features)
        n_memory = self.n_frauds + math.ceil(self.n_frauds * self.legitimate_per_fraud)
        self._table = poisson_table(1.0)
        self._node = np.full((self.n_trees, self.max_nodes, 3), -1, np.int32)
        self._value = np.zeros((self.n_trees, self.max_nodes, 3))
        self._used = np.zeros(self.n_trees, np.int64)
        self._memory = np.zeros((n_memory, d), np.float32)
        self._label = np.zeros(n_memory, np.int8)
        self._weight = np.zeros(n_memory)
        self._count = np.zeros(6, np.int64)
        self._share = np.zeros(2)

    def _rates(self) -> dict[str, Any]:
        """The parameters by name."""
        return {
            name: value
            for name, value in vars(self).items()
            if name[0] != "_" and name != "features"
        }

    @property
    def nbytes(self) -> int:
        """Bytes of learnt state, all of it allocated from the beginning."""
        return sum(
            int(value.nbytes) for value in vars(self).values() if isinstance(value, np.ndarray)
        )

    def _learn(self, rows: Floats, is_fraud: Flags, weights: Floats) -> None:
        self._learn_into(rows, is_fraud, weights, np.empty(0))

    def _learn_prequential(self, rows: Floats, is_fraud: Flags, weights: Floats) -> Floats:
        before = np.empty(len(rows))
        self._learn_into(rows, is_fraud, weights, before)
        return before

    def _learn_into(self, rows: Floats, is_fraud: Flags, weights: Floats, before: Floats) -> None:
        d = len(self.features)
        forest_kernels.learn(
            rows,
            is_fraud,
            weights,
            self.seed,
            self._table,
            self.n_frauds,
            self.legitimate_per_fraud,
            self.kept_per_tree,
            min(d, self.n_asked or math.ceil(d / 4)),
            self.n_thresholds,
            self.min_leaf,
            self.max_depth,
            self.smoothing,
            self._node,
            self._value,
            self._used,
            self._memory,
            self._label,
            self._weight,
            self._count,
            self._share,
            before,
        )

    def _score(self, rows: Floats) -> Floats:
        out = np.empty(len(rows))
        forest_kernels.score(
            rows, self._node, self._value, self._used, self._share, self.smoothing, out
        )
        return out

    def _margin(self, rows: Floats) -> Floats:
        return log_odds_of(self._score(rows))

    def _contributions(self, rows: Floats) -> Floats:
        out = np.empty((len(rows), len(self.features) + 1))
        forest_kernels.explain(
            rows, self._node, self._value, self._used, self._share, self.smoothing, out
        )
        return out

    def _state(self) -> Iterator[tuple[str, Any]]:
        yield "features", self.features
        yield "parameters", sorted(self._rates().items())
        yield "count", self._count
        yield "share", self._share
        yield "used", self._used
        yield "memory", self._memory
        yield "label", self._label
        yield "weight", self._weight
        # What an earlier, larger tree left beyond the nodes in use is never read.
        for t, n_nodes in enumerate(self._used):
            yield f"node{t}", self._node[t, :n_nodes]
            yield f"value{t}", self._value[t, :n_nodes]
