"""Kernels of the forest that regrows its trees from a bounded memory of examples.

State, T trees of at most M nodes over d features, a memory of B = frauds + legitimate examples:
  node      (T, M, 3) int32    the feature it asks (-1: a leaf), its left child (the right one is
                               next to it), 1 where a missing value goes left
  threshold (T, M) float32     of what is asked: a value that some example had
  leaf      (T, M, 2) float32  weight of legitimate and of fraud that came to a leaf
  used      (T,) int64         nodes of each tree; 0 before it has grown
  memory    (d, B) float32     examples: two rings, frauds first; thresholds are drawn from them.
                               A feature after the other: who grows reads one feature of many rows
  label     (B,) int8, weight (B,) float32
  count     (6,) int64         examples learnt, frauds kept, legitimate kept, kept when the next
                               tree is due, trees grown so far, steps that the last one took
  share     (2,) float64       faded weight of frauds, of all examples

A tree grows a little with every example that is kept, so that none has to wait for a whole one.
Its state, of use only while one grows:
  progress  (8,) int64         see the names below
  own       (B,) float32       weight of each row in the bootstrap; NEW: it came after that
  order     (B,) int32         rows of the bootstrap, those of a node side by side
  stack     (depth + 2, 4) int32  begin, end, node, depth of what is still to be grown
  pool      (d,) int32         the features, those asked by the open node first
  best      (4,) float64       impurity that remains, feature, threshold, missing goes left
and node, threshold and leaf of the tree itself, which takes its place when it is done.
"""

import math

import numpy as np

from app.core.models.base import Flags, Floats, Singles
from app.core.models.kernels import drawn, following, kernel, log_odds, mixed, to_log_odds, uniform

LEARNT, FRAUDS, LEGITIMATE, DUE, GROWN, STEPS = 0, 1, 2, 3, 4, 5
ASKED, LEFT, MISSING_LEFT = 0, 1, 2
# Of a tree that grows: whether one does, parts of its stack, nodes, random draws, features that
# the open node has asked (-1: no node is open), steps it has taken, steps it may take, and how
# many it is given with each example that is kept.
GROWS, OPEN, NODES, DRAWS, ASKING, TAKEN, CREDIT, PACE = 0, 1, 2, 3, 4, 5, 6, 7
NEW = -1.0
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
# What it takes to draw thresholds, in rows looked at.
DRAWING = 200
# Steps are rows looked at; 10,000 take less than 0.1 ms, so a small tree is soon done.
PACE_LEAST = 10_000
# A tree is done a little before the next is due, if it takes as long as the last.
PACE_RESERVE = 1.25


@kernel
def fraud_share(share: Floats) -> float:
    """Share of frauds of late; 1 % before anything is known."""
    return (share[0] + 1.0) / (share[1] + 100.0)


@kernel
def _leaf_of(row: Floats, node: np.ndarray, threshold: Singles) -> int:
    """The leaf of a tree that a row comes to."""
    at = 0
    while node[at, ASKED] >= 0:
        x = row[node[at, ASKED]]
        left = node[at, MISSING_LEFT] == 1 if x != x else x <= threshold[at]
        at = node[at, LEFT] if left else node[at, LEFT] + 1
    return at


@kernel
def _smoothed(legitimate: float, fraud: float, prior: float, smoothing: float) -> float:
    """Fraud share of a node, drawn to the prior by ``smoothing`` examples' weight."""
    return (fraud + smoothing * prior) / (legitimate + fraud + smoothing)


@kernel
def _row_score(
    row: Floats,
    node: np.ndarray,
    threshold: Singles,
    leaf: Singles,
    used: np.ndarray,
    prior: float,
    smoothing: float,
) -> float:
    """Mean of the grown trees' leaves; the prior without any."""
    total, n_grown = 0.0, 0
    for t in range(len(used)):
        if used[t] == 0:
            continue
        at = _leaf_of(row, node[t], threshold[t])
        total += _smoothed(float(leaf[t, at, 0]), float(leaf[t, at, 1]), prior, smoothing)
        n_grown += 1
    return total / n_grown if n_grown > 0 else prior


@kernel
def score(
    rows: Floats,
    node: np.ndarray,
    threshold: Singles,
    leaf: Singles,
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
        question, number, weight = node[t], threshold[t], leaf[t]
        for i in range(rows.shape[0]):
            at = 0
            while question[at, 0] >= 0:
                x = rows[i, question[at, 0]]
                left = question[at, 2] == 1 if x != x else x <= number[at]
                at = question[at, 1] if left else question[at, 1] + 1
            out[i] += _smoothed(float(weight[at, 0]), float(weight[at, 1]), prior, smoothing)
    for i in range(rows.shape[0]):
        out[i] = out[i] / n_grown if n_grown > 0 else prior


@kernel
def explain(
    rows: Floats,
    node: np.ndarray,
    threshold: Singles,
    leaf: Singles,
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
    total = np.empty((node.shape[1], 2))
    for t in range(len(used)):
        if used[t] == 0:
            continue
        # Only leaves are counted; a child has a higher number than its parent.
        for at in range(used[t] - 1, -1, -1):
            child = node[t, at, 1]
            for c in range(2):
                asks = node[t, at, 0] >= 0
                total[at, c] = total[child, c] + total[child + 1, c] if asks else leaf[t, at, c]
        for i in range(rows.shape[0]):
            at = 0
            here = _smoothed(total[0, 0], total[0, 1], prior, smoothing)
            out[i, d] += here / n_grown
            while node[t, at, 0] >= 0:
                asked = node[t, at, 0]
                x = rows[i, asked]
                left = node[t, at, 2] == 1 if x != x else x <= threshold[t, at]
                at = node[t, at, 1] if left else node[t, at, 1] + 1
                after = _smoothed(total[at, 0], total[at, 1], prior, smoothing)
                out[i, asked] += (after - here) / n_grown
                here = after
    for i in range(rows.shape[0]):
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
    column: Singles, rows: np.ndarray, n_wanted: int, bits: np.uint64, into: Singles
) -> int:
    """Fill ``into`` with ascending, distinct values of a feature among the rows; return how many.

    Values are drawn at random from the rows, so they lie as densely as the examples do.
    """
    n = 0
    for _ in range(n_wanted):
        bits = following(bits)
        x = column[rows[int(uniform(bits) * len(rows))]]
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
def _bins(
    column: Singles, rows: np.ndarray, into: Singles, n: int, value: Singles, bins: np.ndarray
) -> None:
    """Write how many of n thresholds lie below each row's value; n + 1 where it is missing.

    Every threshold is held against every value: eight at once, and no jump to be foreseen wrongly,
    so that it takes a quarter of the time of halving.
    """
    for k in range(len(rows)):
        x = column[rows[k]]
        value[k] = x
        bins[k] = 0 if x == x else n + 1
    for c in range(n):
        threshold = into[c]
        for k in range(len(rows)):
            bins[k] += np.int32(value[k] > threshold)


@kernel
def _best_threshold(
    label: Flags,
    own: Singles,
    rows: np.ndarray,
    bins: np.ndarray,
    feature: int,
    into: Singles,
    n: int,
    min_leaf: int,
    cell: Floats,
    best: Floats,
) -> None:
    """Improve ``best`` (remaining impurity, feature, threshold, missing goes left) by a feature.

    ``cell`` (n + 2, 3) gathers legitimate weight, fraud weight and rows between thresholds; the
    last used line is for missing values, which are tried on both sides. A row that was overwritten
    since the bootstrap counts no longer.
    """
    cell[: n + 2] = 0.0
    for k in range(len(rows)):
        w = own[rows[k]]
        if w > 0.0:
            cell[bins[k], label[rows[k]]] += w
            cell[bins[k], 2] += 1.0
    p0, p1, rest = 0.0, 0.0, 0.0
    for c in range(n + 2):
        p0 += cell[c, 0]
        p1 += cell[c, 1]
        rest += cell[c, 2]
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
            if k < min_leaf or rest - k < min_leaf:
                continue
            left = _impurity(l0, l1) + _impurity(max(p0 - l0, 0.0), max(p1 - l1, 0.0))
            if left < best[0] - 1e-9:
                best[0], best[1], best[2], best[3] = left, feature, into[c], side


@kernel
def _bootstrapped(
    label: Flags,
    weight: Singles,
    chosen: np.ndarray,
    share: float,
    table: Floats,
    seed: np.uint64,
    into: Singles,
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
def _begin(
    n_rows: int, pace: int, progress: np.ndarray, stack: np.ndarray, pool: np.ndarray
) -> None:
    """Begin to grow a tree: one node that holds all rows of the bootstrap."""
    stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3] = 0, n_rows, 0, 0
    progress[GROWS], progress[OPEN], progress[NODES], progress[DRAWS] = 1, 1, 1, 1
    progress[ASKING], progress[TAKEN], progress[CREDIT], progress[PACE] = -1, 0, 0, pace
    for j in range(len(pool)):
        pool[j] = j


@kernel
def _opened(rows: np.ndarray, label: Flags, own: Singles, at: int, leaf: Singles) -> float:
    """Count the rows of a node; return their impurity."""
    held = np.zeros(2)
    for i in rows:
        if own[i] > 0.0:
            held[label[i]] += own[i]
    leaf[at, 0], leaf[at, 1] = held[0], held[1]
    return _impurity(held[0], held[1])


@kernel
def _clear(at: int, node: np.ndarray, threshold: Singles, leaf: Singles) -> None:
    """Make a node a leaf without examples: what an earlier tree left there does not count."""
    node[at, ASKED], node[at, LEFT], node[at, MISSING_LEFT] = -1, 0, 0
    threshold[at], leaf[at, 0], leaf[at, 1] = 0.0, 0.0, 0.0


@kernel
def _split(
    memory: np.ndarray,
    begin: int,
    end: int,
    at: int,
    depth: int,
    best: Floats,
    progress: np.ndarray,
    order: np.ndarray,
    spare: np.ndarray,
    stack: np.ndarray,
    node: np.ndarray,
    threshold: Singles,
    leaf: Singles,
) -> None:
    """Part the rows of a node by the best question; both sides are still to be grown."""
    feature, rows = int(best[1]), order[begin:end]
    n_left, n_right = 0, 0
    for i in rows:
        x = memory[feature, i]
        if best[3] == 1.0 if x != x else x <= best[2]:
            rows[n_left] = i
            n_left += 1
        else:
            spare[n_right] = i
            n_right += 1
    rows[n_left:] = spare[:n_right]
    node[at, ASKED], node[at, LEFT], node[at, MISSING_LEFT] = feature, progress[NODES], int(best[3])
    threshold[at] = best[2]
    for side in range(2):
        top = progress[OPEN]
        stack[top, 0] = begin if side == 0 else begin + n_left
        stack[top, 1] = begin + n_left if side == 0 else end
        stack[top, 2], stack[top, 3] = progress[NODES], depth + 1
        _clear(progress[NODES], node, threshold, leaf)
        progress[OPEN] += 1
        progress[NODES] += 1


@kernel
def _grow(
    memory: np.ndarray,
    label: Flags,
    seed: np.uint64,
    n_asked: int,
    n_thresholds: int,
    min_leaf: int,
    max_depth: int,
    progress: np.ndarray,
    own: Singles,
    order: np.ndarray,
    stack: np.ndarray,
    pool: np.ndarray,
    best: Floats,
    node: np.ndarray,
    threshold: Singles,
    leaf: Singles,
    spare: np.ndarray,
    value: Singles,
    into: Singles,
    cell: Floats,
) -> None:
    """Grow a tree for as many steps as it was given, or until it is done.

    Depth first, the best of ``n_thresholds`` drawn values of ``n_asked`` drawn features a node.
    One step is one row looked at; what is begun (a feature of a node) is ended, and what that
    took too many is taken from those that it is given next.
    """
    d = memory.shape[0]
    progress[CREDIT] += progress[PACE]
    while progress[CREDIT] > 0 and progress[OPEN] > 0:
        top = progress[OPEN] - 1
        begin, end, at, depth = stack[top, 0], stack[top, 1], stack[top, 2], stack[top, 3]
        rows = order[begin:end]
        cost = len(rows)
        if progress[ASKING] < 0:
            best[0], best[1] = _opened(rows, label, own, at, leaf), -1.0
            is_open = (
                best[0] > 0.0
                and len(rows) >= 2 * min_leaf
                and depth < max_depth
                and progress[NODES] + 2 <= node.shape[0]
            )
            progress[ASKING] = 0
            if not is_open:
                progress[ASKING], progress[OPEN] = -1, top
        elif progress[ASKING] < n_asked:
            q, draw = progress[ASKING], np.uint64(progress[DRAWS])
            pick = q + int(uniform(mixed(seed, draw, np.uint64(1 << 20))) * (d - q))
            pool[q], pool[pick] = pool[pick], pool[q]
            column = memory[pool[q]]
            n = _candidates(column, rows, n_thresholds, mixed(seed, draw, np.uint64(0)), into)
            _bins(column, rows, into, n, value, spare)
            _best_threshold(label, own, rows, spare, pool[q], into, n, min_leaf, cell, best)
            progress[ASKING] += 1
            progress[DRAWS] += 1
            cost += DRAWING
        else:
            progress[ASKING], progress[OPEN] = -1, top
            if best[1] >= 0.0:
                _split(
                    memory, begin, end, at, depth, best, progress, order, spare, stack, node,
                    threshold, leaf,
                )  # fmt: skip
        progress[CREDIT] -= cost
        progress[TAKEN] += cost


@kernel
def _teach_leaves(
    row: Floats,
    label: int,
    weight: float,
    node: np.ndarray,
    threshold: Singles,
    leaf: Singles,
    used: np.ndarray,
) -> None:
    """Count an example in the leaf of each tree that it comes to, so that scores follow at once."""
    for t in range(len(used)):
        if used[t] > 0:
            leaf[t, _leaf_of(row, node[t], threshold[t]), label] += weight


@kernel
def _teach_missed(
    memory: np.ndarray,
    label: Flags,
    weight: Singles,
    chosen: np.ndarray,
    own: Singles,
    node: np.ndarray,
    threshold: Singles,
    leaf: Singles,
) -> None:
    """Count in a tree that is just done the examples that came while it grew."""
    for i in chosen:
        if own[i] == NEW:
            row = memory[:, i].astype(np.float64)
            leaf[_leaf_of(row, node, threshold), label[i]] += weight[i]


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
    threshold: Singles,
    leaf: Singles,
    used: np.ndarray,
    memory: np.ndarray,
    label: Flags,
    weight: Singles,
    count: np.ndarray,
    share: Floats,
    progress: np.ndarray,
    own: Singles,
    order: np.ndarray,
    stack: np.ndarray,
    pool: np.ndarray,
    best: Floats,
    next_node: np.ndarray,
    next_threshold: Singles,
    next_leaf: Singles,
    before: Floats,
) -> None:
    """Keep, count, and grow the tree that is due; ``before`` receives scores if it has room."""
    n_memory = memory.shape[1]
    spare, value = np.empty(n_memory, np.int32), np.empty(n_memory, np.float32)
    into, cell = np.empty(n_thresholds, np.float32), np.empty((n_thresholds + 2, 3))
    for i in range(rows.shape[0]):
        if len(before) > 0:
            before[i] = log_odds(
                _row_score(rows[i], node, threshold, leaf, used, fraud_share(share), smoothing)
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
            place = n_frauds + count[LEGITIMATE] % (n_memory - n_frauds)
            count[LEGITIMATE] += 1
        for j in range(rows.shape[1]):
            memory[j, place] = (
                min(max(rows[i, j], -LARGEST_KEPT), LARGEST_KEPT)
                if rows[i, j] == rows[i, j]
                else np.nan
            )
        label[place] = is_fraud[i]
        weight[place] = weights[i] / kept_share
        _teach_leaves(rows[i], is_fraud[i], weight[place], node, threshold, leaf, used)
        kept = count[FRAUDS] + count[LEGITIMATE]
        if progress[GROWS] == 1:
            own[place] = NEW
        elif (
            kept >= count[DUE]
            and count[FRAUDS] >= FRAUDS_TO_START
            and count[LEGITIMATE] >= FRAUDS_TO_START
        ):
            chosen = _present(count, n_frauds, n_memory)
            tree_seed = mixed(np.uint64(seed), np.uint64(GROW), np.uint64(count[GROWN]))
            n_rows = _bootstrapped(
                label, weight, chosen, fraud_share(share), table, tree_seed, own, order
            )
            # A young forest renews itself as fast as its memory doubles, an old one steadily.
            pause = min(kept_per_tree, max(KEPT_BETWEEN, kept // len(used)))
            count[DUE] = kept + pause
            expected = max(count[STEPS], n_rows * n_asked)
            pace = max(PACE_LEAST, int(PACE_RESERVE * expected / pause))
            _begin(n_rows, pace, progress, stack, pool)
            _clear(0, next_node, next_threshold, next_leaf)
        if progress[GROWS] == 0:
            continue
        tree_seed = mixed(np.uint64(seed), np.uint64(GROW), np.uint64(count[GROWN]))
        _grow(
            memory,
            label,
            tree_seed,
            n_asked,
            n_thresholds,
            min_leaf,
            max_depth,
            progress,
            own,
            order,
            stack,
            pool,
            best,
            next_node,
            next_threshold,
            next_leaf,
            spare,
            value,
            into,
            cell,
        )
        if progress[OPEN] > 0:
            continue
        chosen = _present(count, n_frauds, n_memory)
        _teach_missed(memory, label, weight, chosen, own, next_node, next_threshold, next_leaf)
        t, n_nodes = count[GROWN] % len(used), progress[NODES]
        node[t, :n_nodes] = next_node[:n_nodes]
        threshold[t, :n_nodes] = next_threshold[:n_nodes]
        leaf[t, :n_nodes] = next_leaf[:n_nodes]
        used[t] = n_nodes
        count[GROWN] += 1
        count[STEPS] = progress[TAKEN]
        progress[GROWS] = 0
