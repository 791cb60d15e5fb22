"""An online forest that regrows its trees from a bounded memory of examples."""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.core.models import forest_kernels
from app.core.models.base import Flags, Floats, Model, checked_features
from app.core.models.forest_kernels import FRAUDS, GROWS, LEGITIMATE, NODES, OPEN
from app.core.models.kernels import log_odds_of, poisson_table

#: What is kept of a tree that grows, beside the weights of its bootstrap.
_OF_GROWTH = ("order", "stack", "pool", "best", "next_node", "next_threshold", "next_leaf")


class Forest(Model):
    """A random forest in one pass: examples are kept in two rings, and trees regrown in turn.

    The memory holds the last ``n_frauds`` frauds and a sample of the legitimate examples,
    ``legitimate_per_fraud`` times as many, each weighted by how many it stands for, so that
    scores stay probabilities. After every ``kept_per_tree`` examples kept (sooner while young) the
    oldest tree is regrown on a bootstrap of the memory, each node choosing the best of
    ``n_thresholds`` values of ``n_asked`` features (0: a quarter of them); between growths each
    kept example is counted in the leaves at once. So an old example fades when its ring
    overwrites it. Hoeffding trees, which see an example once, reach less with few frauds.

    A tree grows a little with every example kept, in steps that are counted, not timed: whoever
    learns never waits for a whole tree, and the forest remains a function of what it has learnt.

    A missing value goes where it does less harm to the node's impurity, both sides tried. Leaves
    are drawn to the overall fraud share by ``smoothing`` examples. Memory is bounded:
    ``n_frauds * (1 + legitimate_per_fraud) * (4 d + 13)`` bytes of examples, ``(n_trees + 1) *
    max_nodes * 24`` of trees. Most examples cost less than 1 us; one that is kept some 5 us, and
    with a full memory of 57 features up to 0.5 ms while a tree grows.

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
        self._allocate(
            self.max_nodes, self.n_frauds + math.ceil(self.n_frauds * self.legitimate_per_fraud)
        )

    def _allocate(self, n_nodes: int, n_memory: int) -> None:
        """Trees of so many nodes and a memory of so many examples, all of them empty."""
        d = len(self.features)
        shape = (self.n_trees, n_nodes)
        self._table = poisson_table(1.0)
        self._node = np.full((*shape, 3), -1, np.int32)
        self._threshold = np.zeros(shape, np.float32)
        self._leaf = np.zeros((*shape, 2), np.float32)
        self._used = np.zeros(self.n_trees, np.int64)
        self._count = np.zeros(6, np.int64)
        self._share = np.zeros(2)
        self._memory = np.zeros((d, n_memory), np.float32)
        self._label = np.zeros(n_memory, np.int8)
        self._weight = np.zeros(n_memory, np.float32)
        self._progress = np.zeros(8, np.int64)
        self._own = np.zeros(n_memory, np.float32)
        self._order = np.zeros(n_memory, np.int32)
        self._stack = np.zeros((self.max_depth + 2, 4), np.int32)
        self._pool = np.zeros(d, np.int32)
        self._best = np.zeros(4)
        self._next_node, self._next_threshold, self._next_leaf = (
            np.zeros_like(of[0]) for of in (self._node, self._threshold, self._leaf)
        )

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
        if not self._memory.shape[1]:
            msg = "this forest gives scores only: its examples stayed with whoever learns"
            raise RuntimeError(msg)
        forest_kernels.learn(
            rows,
            is_fraud,
            weights,
            self.seed,
            self._table,
            self.n_frauds,
            self.legitimate_per_fraud,
            max(1, round(self.kept_per_tree / self.pace)),
            min(d, self.n_asked or math.ceil(d / 4)),
            self.n_thresholds,
            self.min_leaf,
            self.max_depth,
            self.smoothing,
            self._node,
            self._threshold,
            self._leaf,
            self._used,
            self._memory,
            self._label,
            self._weight,
            self._count,
            self._share,
            self._progress,
            self._own,
            self._order,
            self._stack,
            self._pool,
            self._best,
            self._next_node,
            self._next_threshold,
            self._next_leaf,
            before,
        )

    def _score(self, rows: Floats) -> Floats:
        out = np.empty(len(rows))
        forest_kernels.score(
            rows,
            self._node,
            self._threshold,
            self._leaf,
            self._used,
            self._share,
            self.smoothing,
            out,
        )
        return out

    def _margin(self, rows: Floats) -> Floats:
        return log_odds_of(self._score(rows))

    def _contributions(self, rows: Floats) -> Floats:
        out = np.empty((len(rows), len(self.features) + 1))
        forest_kernels.explain(
            rows,
            self._node,
            self._threshold,
            self._leaf,
            self._used,
            self._share,
            self.smoothing,
            out,
        )
        return out

    def _state(self) -> Iterator[tuple[str, Any]]:
        yield "features", self.features
        yield "parameters", sorted(self._rates().items())
        yield from self._learnt().items()

    def _learnt(self) -> dict[str, Any]:
        """All that was learnt and nothing else: what is not in use is never read."""
        return {
            "used": self._used,
            "count": self._count,
            "share": self._share,
            **self._of_trees(),
            "memory": self._kept(self._memory),
            "label": self._kept(self._label),
            "weight": self._kept(self._weight),
            "progress": self._progress,
            **(self._of_growth() if self._progress[GROWS] else {}),
        }

    def _rings(self, array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The places of both rings that hold an example, frauds first, in an array of theirs."""
        n_frauds, n_legitimate = self._count[FRAUDS], self._count[LEGITIMATE]
        first = min(self.n_frauds, array.shape[-1])
        return array[..., : min(n_frauds, first)], array[..., first : first + n_legitimate]

    def _kept(self, array: NDArray[Any]) -> NDArray[Any]:
        """Copy what both rings hold, one after the other."""
        return np.concatenate(self._rings(array), axis=-1)

    def _of_trees(self) -> dict[str, Any]:
        """The trees, one after another, a column for each thing a node holds."""
        at = np.flatnonzero(np.arange(self._node.shape[1]) < self._used[:, None])
        nodes = self._node.reshape(-1, 3)[at]
        asks = nodes[:, 0] >= 0
        return {
            "asked": nodes[:, 0].copy(),
            "left": nodes[asks, 1],
            "missing_left": nodes[asks, 2].astype(np.int8),
            "threshold": self._threshold.reshape(-1)[at[asks]],
            "leaf": self._leaf.reshape(-1, 2)[at[~asks]].T.copy(),
        }

    def _of_growth(self) -> dict[str, Any]:
        """The tree that grows."""
        n_nodes, n_open = self._progress[NODES], self._progress[OPEN]
        return {
            "own": self._kept(self._own),
            "order": self._order[: self._stack[:n_open, 1].max()],
            "stack": self._stack[:n_open],
            "pool": self._pool,
            "best": self._best,
            "next_node": self._next_node[:n_nodes],
            "next_threshold": self._next_threshold[:n_nodes],
            "next_leaf": self._next_leaf[:n_nodes],
        }

    def for_scoring(self) -> "Forest":
        """The trees alone; the examples that they grew from are most of a forest."""
        trees = copy.copy(self)
        for name in ("_memory", "_label", "_weight", "_own", "_order"):
            setattr(trees, name, getattr(self, name)[..., :0])
        vars(trees)["_progress"] = np.zeros_like(self._progress)
        return trees

    def __getstate__(self) -> dict[str, Any]:
        """Parameters, and what was learnt: no place that is not in use."""
        told = {"features": self.features, "rates": self._rates()}
        return {**told, "n_memory": self._memory.shape[1], "learnt": self._learnt()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go on exactly where the state was taken."""
        self.features = state["features"]
        vars(self).update(state["rates"])
        n_memory, learnt = state["n_memory"], state["learnt"]
        # Who has no memory grows no tree.
        n_nodes = self.max_nodes if n_memory else max(int(learnt["used"].max()), 1)
        self._allocate(n_nodes, n_memory)
        for name in ("used", "count", "share", "progress"):
            getattr(self, f"_{name}")[:] = learnt[name]
        for name in ("memory", "label", "weight"):
            self._fill(name, learnt[name])
        self._plant(learnt)
        if self._progress[GROWS]:
            self._fill("own", learnt["own"])
            for name in _OF_GROWTH:
                getattr(self, f"_{name}")[: len(learnt[name])] = learnt[name]

    def _fill(self, name: str, kept: NDArray[Any]) -> None:
        """Put what both rings held where it was."""
        frauds, legitimate = self._rings(getattr(self, f"_{name}"))
        frauds[:], legitimate[:] = np.split(kept, [frauds.shape[-1]], axis=-1)

    def _plant(self, learnt: dict[str, Any]) -> None:
        """Put the nodes of the trees where they were."""
        at = np.flatnonzero(np.arange(self._node.shape[1]) < self._used[:, None])
        asks = learnt["asked"] >= 0
        nodes = self._node.reshape(-1, 3)
        nodes[at, 0] = learnt["asked"]
        nodes[at[asks], 1], nodes[at[asks], 2] = learnt["left"], learnt["missing_left"]
        self._threshold.reshape(-1)[at[asks]] = learnt["threshold"]
        self._leaf.reshape(-1, 2)[at[~asks]] = learnt["leaf"].T
