"""Kernels of the forest that regrows its trees from a bounded memory of examples.

State, T trees of at most M nodes over d features, a memory of B = frauds + legitimate examples:
  node     (T, M, 3) int32    the feature it asks (-1: a leaf), its left child (the right one is
                              next to it), 1 where a missing value goes left
  value    (T, M, 3) float64  threshold; weight of legitimate and of fraud that came by
  used     (T,) int64         nodes of each tree; 0 before it has grown
  memory   (B, d) float32     examples: two rings, frauds first; thresholds are drawn from them
  label    (B,) int8, weight (B,) float64
  count    (6,) int64         examples learnt, frauds kept, legitimate kept, kept when the next
                              tree is due, trees grown so far, spare
  share    (2,) float64       faded weight of frauds, of all examples
"""

import math

import numpy as np

from app.core.models.base import Flags, Floats
from app.core.models.kernels import drawn, kernel, log_odds, mixed, to_log_odds, uniform

LEARNT, FRAUDS, LEGITIMATE, DUE, GROWN = 0, 1, 2, 3, 4
ASKED, LEFT, MISSING_LEFT = 0, 1, 2
# Streams of random numbers that must not meet: what is kept, and what the trees draw.
KEEP, GROW = 1, 2
# The fraud share is that of about the last 100,000 examples: a week's worth at 0.2 a second.
FADE = 1.0 - 1e-5
# No tree grows before so many frauds: it would only tell them from their neighbours.
FRAUDS_TO_START = 10
# What float32 can hold.
LARGEST_KEPT = 3e38
# A new tree is due after at least so many kept examples, however young the forest.
KEPT_BETWEEN = 20


@kernel
def fraud_share(share: Floats) -> float:
    """Share of frauds of late; 1 % before anything is known."""
    return (share[0] + 1.0) / (share[1] + 100.0)


@kernel
def _step(row: Floats, node: np.ndarray, value: Floats, at: int) -> int:
    """The child that a row goes to."""
    x = row[node[at, 0]]
    left = node[at, 2] == 1 if x != x else x <= value[at, 0]
    return node[at, 1] if left else node[at, 1] + 1


@kernel
def _smoothed(value: Floats, prior: float, smoothing: float) -> float:
    """Fraud share of a node, drawn to the prior by ``smoothing`` examples' weight."""
    return (value[2] + smoothing * prior) / (value[1] + value[2] + smoothing)


@kernel
def _row_score(
    row: Floats, node: np.ndarray, value: Floats, used: np.ndarray, prior: float, smoothing: float
) -> float:
    """Mean of the grown trees' leaves; the prior without any."""
    total, n_grown = 0.0, 0
    for t in range(len(used)):
        if used[t] == 0:
            continue
        at = 0
        while node[t, at, 0] >= 0:
            at = _step(row, node[t], value[t], at)
        total += _smoothed(value[t, at], prior, smoothing)
        n_grown += 1
    return total / n_grown if n_grown > 0 else prior


@kernel
def score(
    rows: Floats,
    node: np.ndarray,
    value: Floats,
    used: np.ndarray,
    share: Floats,
    smoothing: float,
    out: Floats,
) -> None:
    """Write the score of each row: the same additions in the same order as alone."""
    prior = fraud_share(share)
    n_grown = 0
    for i in range(rows.shape[0]):
        out[i] = 0.0
    # Tree by tree, because a tree fits the cache and a forest does not. The step is written out:
    # a call with slices of the arrays takes six times as long.
    for t in range(len(used)):
        if used[t] == 0:
            continue
        n_grown += 1
        question, number = node[t], value[t]
        for i in range(rows.shape[0]):
            at = 0
            while question[at, 0] >= 0:
                x = rows[i, question[at, 0]]
                left = question[at, 2] == 1 if x != x else x <= number[at, 0]
                at = question[at, 1] if left else question[at, 1] + 1
            out[i] += (number[at, 2] + smoothing * prior) / (
                number[at, 1] + number[at, 2] + smoothing
            )
    for i in range(rows.shape[0]):
        out[i] = out[i] / n_grown if n_grown > 0 else prior


@kernel
def explain(
    rows: Floats,
    node: np.ndarray,
    value: Floats,
    used: np.ndarray,
    share: Floats,
    smoothing: float,
    out: Floats,
) -> None:
    """Write what each question on the paths adds to the log-odds, and the roots' mean as the bias.

    In probabilities the steps along a path telescope (Saabas 2014); they are then scaled by one
    positive factor a row, so signs and order stay and the row sums to the margin.
    """
    prior, d = fraud_share(share), rows.shape[1]
    n_grown = 0
    for t in range(len(used)):
        n_grown += 1 if used[t] > 0 else 0
    for i in range(rows.shape[0]):
        for j in range(d + 1):
            out[i, j] = 0.0
        out[i, d] = 0.0 if n_grown > 0 else prior
        for t in range(len(used)):
            if used[t] == 0:
                continue
            at = 0
            here = _smoothed(value[t, 0], prior, smoothing)
            out[i, d] += here / n_grown
            while node[t, at, 0] >= 0:
                asked = node[t, at, 0]
                at = _step(rows[i], node[t], value[t], at)
                after = _smoothed(value[t, at], prior, smoothing)
                out[i, asked] += (after - here) / n_grown
                here = after
        to_log_odds(out[i])


@kernel
def _impurity(legitimate: float, fraud: float) -> float:
    """Entropy in bits times the weight."""
    total = legitimate + fraud
    if legitimate <= 0.0 or fraud <= 0.0:
        return 0.0
    return -(legitimate * math.log2(legitimate / total) + fraud * math.log2(fraud / total))


@kernel
def _candidates(
    memory: np.ndarray,
    feature: int,
    rows: np.ndarray,
    n_wanted: int,
    seed: np.uint64,
    serial: np.uint64,
    into: Floats,
) -> int:
    """Fill ``into`` with ascending, distinct values of the feature among the rows; return how many.

    Values are drawn at random from the rows, so they lie as densely as the examples do.
    """
    n = 0
    for c in range(n_wanted):
        x = memory[rows[int(uniform(mixed(seed, serial, np.uint64(c))) * len(rows))], feature]
        if x != x:
            continue
        at = n
        while at > 0 and into[at - 1] > x:
            at -= 1
        if at > 0 and into[at - 1] == x:
            continue
        for k in range(n, at, -1):
            into[k] = into[k - 1]
        into[at] = x
        n += 1
    return n


@kernel
def _best_threshold(
    memory: np.ndarray,
    label: Flags,
    weight: Floats,
    rows: np.ndarray,
    feature: int,
    into: Floats,
    n: int,
    min_leaf: int,
    cell: Floats,
    best: Floats,
) -> None:
    """Improve ``best`` (remaining impurity, feature, threshold, missing goes left) by a feature.

    ``cell`` (n + 2, 3) gathers legitimate weight, fraud weight and rows between thresholds; the
    last used line is for missing values, which are tried on both sides.
    """
    cell[: n + 2] = 0.0
    for i in rows:
        x = memory[i, feature]
        at = n + 1
        if x == x:
            at, high = 0, n
            while at < high:
                middle = (at + high) // 2
                if x <= into[middle]:
                    high = middle
                else:
                    at = middle + 1
        cell[at, label[i]] += weight[i]
        cell[at, 2] += 1.0
    p0, p1 = 0.0, 0.0
    for c in range(n + 2):
        p0 += cell[c, 0]
        p1 += cell[c, 1]
    a0, a1, m = 0.0, 0.0, 0.0
    for c in range(n):
        a0 += cell[c, 0]
        a1 += cell[c, 1]
        m += cell[c, 2]
        for side in range(2 if cell[n + 1, 2] > 0.0 else 1):
            l0, l1, k = (
                a0 + side * cell[n + 1, 0],
                a1 + side * cell[n + 1, 1],
                m + side * cell[n + 1, 2],
            )
            if k < min_leaf or len(rows) - k < min_leaf:
                continue
            left = _impurity(l0, l1) + _impurity(max(p0 - l0, 0.0), max(p1 - l1, 0.0))
            if left < best[0] - 1e-9:
                best[0], best[1], best[2], best[3] = left, feature, into[c], side


@kernel
def _count(row: Floats, label: int, weight: float, node: np.ndarray, value: Floats) -> None:
    """Count an example at every node of a tree that it passes."""
    at = 0
    value[at, 1 + label] += weight
    while node[at, 0] >= 0:
        x = row[node[at, 0]]
        left = node[at, 2] == 1 if x != x else x <= value[at, 0]
        at = node[at, 1] if left else node[at, 1] + 1
        value[at, 1 + label] += weight


@kernel
def _bootstrapped(
    label: Flags,
    weight: Floats,
    chosen: np.ndarray,
    share: float,
    table: Floats,
    seed: np.uint64,
    into: Floats,
    order: np.ndarray,
) -> int:
    """Fill ``into`` with Poisson(1) weights and ``order`` with the rows that have any.

    The rings need not reach equally far back, so the frauds' weights are scaled until frauds have
    their ``share`` of the whole.
    """
    total = np.zeros(2)
    for i in chosen:
        total[label[i]] += weight[i]
    scale = share / (1.0 - share) * total[0] / total[1]
    m = 0
    for i in chosen:
        into[i] = weight[i] * drawn(table, uniform(mixed(seed, np.uint64(0), np.uint64(i))))
        if label[i] == 1:
            into[i] *= scale
        if into[i] > 0.0:
            order[m] = i
            m += 1
    return m


@kernel
def grow(
    memory: np.ndarray,
    label: Flags,
    weight: Floats,
    chosen: np.ndarray,
    share: float,
    table: Floats,
    seed: np.uint64,
    n_asked: int,
    n_thresholds: int,
    min_leaf: int,
    max_depth: int,
    node: np.ndarray,
    value: Floats,
) -> int:
    """Grow a tree on a bootstrap of the chosen examples; return its nodes.

    Depth first, the best of ``n_thresholds`` drawn values of ``n_asked`` drawn features a node.
    """
    d = memory.shape[1]
    own = np.empty(memory.shape[0])
    order = np.empty(len(chosen), np.int64)
    spare = np.empty(len(chosen), np.int64)
    # begin, end, node, depth of what is still to be grown
    stack = np.empty((max_depth + 2, 4), np.int64)
    pool, into, best = np.arange(d), np.empty(n_thresholds), np.empty(4)
    cell = np.empty((n_thresholds + 2, 3))
    stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3] = (
        0,
        _bootstrapped(label, weight, chosen, share, table, seed, own, order),
        0,
        0,
    )
    n_open, n_nodes, serial = 1, 1, np.uint64(1)
    while n_open > 0:
        n_open -= 1
        begin, end, at, depth = (
            stack[n_open, 0],
            stack[n_open, 1],
            stack[n_open, 2],
            stack[n_open, 3],
        )
        rows = order[begin:end]
        node[at, 0], value[at, 1], value[at, 2] = -1, 0.0, 0.0
        for i in rows:
            value[at, 1 + label[i]] += own[i]
        here = _impurity(value[at, 1], value[at, 2])
        if (
            here <= 0.0
            or len(rows) < 2 * min_leaf
            or depth >= max_depth
            or n_nodes + 2 > node.shape[0]
        ):
            continue
        best[0], best[1] = here, -1.0
        for q in range(n_asked):
            pick = q + int(uniform(mixed(seed, serial, np.uint64(1 << 20))) * (d - q))
            pool[q], pool[pick] = pool[pick], pool[q]
            n = _candidates(memory, pool[q], rows, n_thresholds, seed, serial, into)
            _best_threshold(memory, label, own, rows, pool[q], into, n, min_leaf, cell, best)
            serial += np.uint64(1)
        if best[1] < 0.0:
            continue
        feature = int(best[1])
        n_left, n_right = 0, 0
        for i in rows:
            x = memory[i, feature]
            if best[3] == 1.0 if x != x else x <= best[2]:
                rows[n_left] = i
                n_left += 1
            else:
                spare[n_right] = i
                n_right += 1
        rows[n_left:] = spare[:n_right]
        node[at, 0], node[at, 1], node[at, 2], value[at, 0] = (
            feature,
            n_nodes,
            int(best[3]),
            best[2],
        )
        for side in range(2):
            stack[n_open, 0] = begin if side == 0 else begin + n_left
            stack[n_open, 1] = begin + n_left if side == 0 else end
            stack[n_open, 2], stack[n_open, 3] = n_nodes + side, depth + 1
            n_open += 1
        n_nodes += 2
    return n_nodes


@kernel
def _teach_leaves(
    row: Floats, label: int, weight: float, node: np.ndarray, value: Floats, used: np.ndarray
) -> None:
    """Count an example at every node it passes, so that scores follow at once."""
    for t in range(len(used)):
        if used[t] > 0:
            _count(row, label, weight, node[t], value[t])


@kernel
def _present(count: np.ndarray, n_frauds: int, n_memory: int) -> np.ndarray:
    """Places of the memory that hold an example."""
    a = min(count[FRAUDS], n_frauds)
    b = min(count[LEGITIMATE], n_memory - n_frauds)
    chosen = np.empty(a + b, np.int64)
    for i in range(a):
        chosen[i] = i
    for i in range(b):
        chosen[a + i] = n_frauds + i
    return chosen


@kernel
def learn(
    rows: Floats,
    is_fraud: Flags,
    weights: Floats,
    seed: int,
    table: Floats,
    n_frauds: int,
    legitimate_per_fraud: float,
    kept_per_tree: int,
    n_asked: int,
    n_thresholds: int,
    min_leaf: int,
    max_depth: int,
    smoothing: float,
    node: np.ndarray,
    value: Floats,
    used: np.ndarray,
    memory: np.ndarray,
    label: Flags,
    weight: Floats,
    count: np.ndarray,
    share: Floats,
    before: Floats,
) -> None:
    """Keep, count, and grow a tree when one is due; ``before`` receives scores if it has room."""
    for i in range(rows.shape[0]):
        if len(before) > 0:
            before[i] = log_odds(
                _row_score(rows[i], node, value, used, fraud_share(share), smoothing)
            )
        number = count[LEARNT]
        count[LEARNT] += 1
        if weights[i] <= 0.0:
            continue
        fraud = is_fraud[i] != 0
        share[0] = share[0] * FADE + (weights[i] if fraud else 0.0)
        share[1] = share[1] * FADE + weights[i]
        kept_share = 1.0
        if fraud:
            place = count[FRAUDS] % n_frauds
            count[FRAUDS] += 1
        else:
            kept_share = min(1.0, legitimate_per_fraud * fraud_share(share))
            if uniform(mixed(np.uint64(seed), np.uint64(KEEP), np.uint64(number))) >= kept_share:
                continue
            place = n_frauds + count[LEGITIMATE] % (memory.shape[0] - n_frauds)
            count[LEGITIMATE] += 1
        for j in range(rows.shape[1]):
            memory[place, j] = (
                min(max(rows[i, j], -LARGEST_KEPT), LARGEST_KEPT)
                if rows[i, j] == rows[i, j]
                else np.nan
            )
        label[place] = is_fraud[i]
        weight[place] = weights[i] / kept_share
        _teach_leaves(rows[i], is_fraud[i], weight[place], node, value, used)
        kept = count[FRAUDS] + count[LEGITIMATE]
        if (
            kept < count[DUE]
            or count[FRAUDS] < FRAUDS_TO_START
            or count[LEGITIMATE] < FRAUDS_TO_START
        ):
            continue
        t = count[GROWN] % len(used)
        tree_seed = mixed(np.uint64(seed), np.uint64(GROW), np.uint64(count[GROWN]))
        used[t] = grow(
            memory,
            label,
            weight,
            _present(count, n_frauds, memory.shape[0]),
            fraud_share(share),
            table,
            tree_seed,
            n_asked,
            n_thresholds,
            min_leaf,
            max_depth,
            node[t],
            value[t],
        )
        count[GROWN] += 1
        # A young forest renews itself as fast as its memory doubles, an old one steadily.
        count[DUE] = kept + min(kept_per_tree, max(KEPT_BETWEEN, kept // len(used)))
