"""A forest of compiled Hoeffding trees, or one such tree."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from app.core.models import hoeffding_kernels
from app.core.models.base import Flags, Floats, Model, checked_features
from app.core.models.kernels import log_odds_of, poisson_table


class Hoeffding(Model):
    """Bagged Hoeffding trees, each leaf watching a random subset of features.

    ``bagging`` is the mean of the Poisson weight an example has in a tree (0: weight 1 in each);
    ``subspace`` how many features a leaf watches (0: the root of their number, rounded; -1: all).
    ``max_leaves`` bounds all trees together: a full tree goes on counting but splits no more.
    A missing value goes to the child that has seen more weight. ``n_trees=1, bagging=0,
    subspace=-1`` is River's ``HoeffdingTreeClassifier(leaf_prediction="mc", max_share_to_split=1)``
    node for node.

    >>> model = Hoeffding(["amount", "hour"], seed=7, n_trees=5, grace_period=20)
    >>> for i in range(2000):
    ...     model.learn_one({"amount": i % 100, "hour": i % 24}, i % 100 > 90)
    >>> [model.score_one({"amount": amount, "hour": 3}) > 0.1 for amount in (10, 99)]
    [False, True]
    """

    def __init__(
        self,
        features: Sequence[str],
        seed: int = 0,
        n_trees: int = 25,
        bagging: float = 6.0,
        subspace: int = 0,
        grace_period: float = 50.0,
        delta: float = 0.01,
        tau: float = 0.05,
        min_branch_fraction: float = 0.01,
        max_leaves: int = 25_000,
    ) -> None:
        self.features = checked_features(features)
        self.seed = int(seed)
        self.n_trees = int(n_trees)
        self.bagging = float(bagging)
        self.subspace = int(subspace)
        self.grace_period = float(grace_period)
        self.delta = float(delta)
        self.tau = float(tau)
        self.min_branch_fraction = float(min_branch_fraction)
        self.max_leaves = int(max_leaves)
        if self.n_trees < 1 or self.max_leaves < self.n_trees:
            msg = f"n_trees {n_trees}, max_leaves {max_leaves}: expected at least 1, a leaf a tree"
            raise ValueError(msg)
        d = len(self.features)
        k = d if self.subspace < 0 else min(d, self.subspace or max(1, round(math.sqrt(d))))
        self._table = poisson_table(self.bagging) if self.bagging > 0.0 else np.empty(0)
        self._n_learnt = 0
        self._allocate(min(32, self.max_leaves // self.n_trees), k)
        self._used = np.ones((self.n_trees, 2), np.int64)
        for t in range(self.n_trees):
            hoeffding_kernels.draw_subspace(self._watched[t, 0], d, self.seed, t, 0)

    def _allocate(self, n_leaves: int, k: int) -> None:
        """Empty regions of ``n_leaves`` leaves for every tree."""
        t = self.n_trees
        self._feature = np.full((t, 2 * n_leaves), -1, np.int32)
        self._threshold = np.zeros((t, 2 * n_leaves))
        self._child = np.zeros((t, 2 * n_leaves), np.int32)
        self._leaf = np.zeros((t, 2 * n_leaves), np.int32)
        self._passed = np.zeros((t, 2 * n_leaves, 2))
        self._counts = np.zeros((t, n_leaves, 2))
        self._tried = np.zeros((t, n_leaves))
        self._watched = np.zeros((t, n_leaves, k), np.int32)
        self._seen = np.zeros((t, n_leaves, k, 2, 5))
        self._missing = np.zeros((t, n_leaves, k))

    def _nodes(self) -> dict[str, Any]:
        """The arrays by name, those of nodes first."""
        names = [
            "_feature",
            "_threshold",
            "_child",
            "_leaf",
            "_passed",
            "_counts",
            "_tried",
            "_watched",
            "_seen",
            "_missing",
        ]
        return {name: getattr(self, name) for name in names}

    def _enlarge(self) -> None:
        """Double every region, up to the bound."""
        old = self._nodes()
        n_leaves = min(2 * self._counts.shape[1], self.max_leaves // self.n_trees)
        self._allocate(n_leaves, self._watched.shape[2])
        for name, values in old.items():
            getattr(self, name)[:, : values.shape[1]] = values

    @property
    def nbytes(self) -> int:
        """Bytes of learnt state; at most about ``max_leaves * (120 + 92 k)``."""
        return sum(int(array.nbytes) for array in self._nodes().values())

    @property
    def n_leaves(self) -> int:
        """Leaves of all trees."""
        return int(self._used[:, 1].sum())

    def _learn(self, rows: Floats, is_fraud: Flags, weights: Floats) -> None:
        self._learn_into(rows, is_fraud, weights, np.empty(0))

    def _learn_prequential(self, rows: Floats, is_fraud: Flags, weights: Floats) -> Floats:
        before = np.zeros(len(rows))
        self._learn_into(rows, is_fraud, weights, before)
        before /= self.n_trees
        return log_odds_of(before)

    def _learn_into(self, rows: Floats, is_fraud: Flags, weights: Floats, before: Floats) -> None:
        start = np.zeros(2, np.int64)
        done = False
        while not done:
            may_grow = self._counts.shape[1] < self.max_leaves // self.n_trees
            done = hoeffding_kernels.learn(
                rows,
                is_fraud,
                weights,
                self._n_learnt,
                self.seed,
                self._table,
                start,
                self._feature,
                self._threshold,
                self._child,
                self._leaf,
                self._passed,
                self._counts,
                self._tried,
                self._watched,
                self._seen,
                self._missing,
                self._used,
                self.grace_period,
                self.delta,
                self.tau,
                self.min_branch_fraction,
                may_grow,
                before,
            )
            if not done:
                self._enlarge()
        self._n_learnt += len(rows)

    def _score(self, rows: Floats) -> Floats:
        out = np.empty(len(rows))
        hoeffding_kernels.score(
            rows,
            self._feature,
            self._threshold,
            self._child,
            self._leaf,
            self._passed,
            self._counts,
            out,
        )
        return out

    def _margin(self, rows: Floats) -> Floats:
        return log_odds_of(self._score(rows))

    def _contributions(self, rows: Floats) -> Floats:
        out = np.empty((len(rows), len(self.features) + 1))
        hoeffding_kernels.explain(
            rows,
            self._feature,
            self._threshold,
            self._child,
            self._leaf,
            self._passed,
            self._counts,
            out,
        )
        return out

    def _state(self) -> Iterator[tuple[str, Any]]:
        yield "features", self.features
        yield (
            "parameters",
            (
                self.seed,
                self.n_trees,
                self.bagging,
                self.subspace,
                self.grace_period,
                self.delta,
                self.tau,
                self.min_branch_fraction,
                self.max_leaves,
                self._n_learnt,
            ),
        )
        yield "used", self._used
        # Spare room does not count: it depends on nothing that is learnt.
        for t, (n_nodes, n_leaves) in enumerate(self._used):
            for name, values in self._nodes().items():
                n = (
                    n_nodes
                    if name in ("_feature", "_threshold", "_child", "_leaf", "_passed")
                    else n_leaves
                )
                yield f"{name}{t}", values[t, :n]
