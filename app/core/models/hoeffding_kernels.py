"""Hoeffding trees in flat arrays, one region a tree: descend, observe, split, explain.

Layout, T trees of at most L leaves and d features of which a leaf watches k:
  feature, threshold, child, leaf   (T, 2 L)      node: the feature it asks (-1: a leaf), left
                                                  child (the right one is next), its leaf's row
  passed                            (T, 2 L, 2)   weight of legitimate and fraud that came by
  counts, tried                     (T, L, 2)     a leaf's class weights; (T, L) at its last attempt
  watched                           (T, L, k)     the features a leaf watches
  seen                              (T, L, k, 2, 5)  per class: weight, mean, sum of squares,
                                                  minimum, maximum
  missing                           (T, L, k)     weight of examples without the feature
  used                              (T, 2)        nodes and leaves in use
Source: Domingos and Hulten 2000; node for node River's ``HoeffdingTreeClassifier`` with
majority-class leaves, information gain and Gaussian observers.
"""

import math

import numpy as np

from app.core.models.base import Flags, Floats
from app.core.models.kernels import drawn, kernel, mixed, to_log_odds, uniform

# River's candidate thresholds a feature.
N_CANDIDATES = 10


@kernel
def _entropy(legitimate: float, fraud: float) -> float:
    """Entropy in bits of two weights; 0 when there is none."""
    total, bits = 0.0, 0.0
    if legitimate > 0.0:
        bits -= legitimate * math.log2(legitimate)
        total += legitimate
    if fraud > 0.0:
        bits -= fraud * math.log2(fraud)
        total += fraud
    return (bits + total * math.log2(total)) / total if total > 0.0 else 0.0


@kernel
def _left_weight(observer: Floats, threshold: float) -> float:
    """Weight at or below the threshold, from a Gaussian cut at its minimum and maximum."""
    weight = observer[0]
    if weight <= 0.0 or threshold < observer[3]:
        return 0.0
    if threshold >= observer[4]:
        return weight
    if weight > 1.0:
        variance = observer[2] / (weight - 1.0)
        if variance > 0.0:
            z = (threshold - observer[1]) / variance**0.5
            return 0.5 * (1.0 + math.erf(z / math.sqrt(2.0))) * weight
    return 0.0


@kernel
def _best_split(
    counts: Floats,
    watched: np.ndarray,
    seen: Floats,
    missing: Floats,
    min_branch_fraction: float,
    best: Floats,
) -> float:
    """Fill ``best`` with merit, feature, threshold, four child weights; return the second merit.

    Without a candidate the feature is -1. Of equal merits the later feature wins, as in River. A
    feature's gain is scaled by the share of examples that had it.
    """
    first, second = -np.inf, -np.inf
    best[0], best[1] = -np.inf, -1.0
    before = _entropy(counts[0], counts[1])
    for q in range(len(watched)):
        low = min(
            seen[q, 0, 3] if seen[q, 0, 0] > 0.0 else np.inf,
            seen[q, 1, 3] if seen[q, 1, 0] > 0.0 else np.inf,
        )
        high = max(
            seen[q, 0, 4] if seen[q, 0, 0] > 0.0 else -np.inf,
            seen[q, 1, 4] if seen[q, 1, 0] > 0.0 else -np.inf,
        )
        present = seen[q, 0, 0] + seen[q, 1, 0]
        share = present / (present + missing[q]) if missing[q] > 0.0 else 1.0
        merit, threshold, l0, l1, r0, r1 = -np.inf, 0.0, 0.0, 0.0, 0.0, 0.0
        step = (high - low) / (N_CANDIDATES + 1.0)
        for c in range(N_CANDIDATES if low < high else 0):
            at = low + step * (c + 1)
            if not low < at < high:
                continue
            a0, a1 = _left_weight(seen[q, 0], at), _left_weight(seen[q, 1], at)
            b0, b1 = seen[q, 0, 0] - a0, seen[q, 1, 0] - a1
            left, right = a0 + a1, b0 + b1
            total = left + right
            if left / total <= min_branch_fraction or right / total <= min_branch_fraction:
                continue
            gain = share * (before - (left * _entropy(a0, a1) + right * _entropy(b0, b1)) / total)
            if gain > merit:
                merit, threshold, l0, l1, r0, r1 = gain, at, a0, a1, b0, b1
        if merit >= first:
            second, first = first, merit
            best[0], best[2], best[3], best[4], best[5], best[6] = merit, threshold, l0, l1, r0, r1
            best[1] = float(watched[q]) if merit > -np.inf else -1.0
        elif merit > second:
            second = merit
    return second


@kernel
def _next_node(
    node: int, value: float, threshold: Floats, child: np.ndarray, passed: Floats
) -> int:
    """The child for a value; a missing one goes where more weight went."""
    left = child[node]
    if value != value:
        heavier = passed[left, 0] + passed[left, 1] >= passed[left + 1, 0] + passed[left + 1, 1]
        return left if heavier else left + 1
    return left if value <= threshold[node] else left + 1


@kernel
def _observe(
    row: Floats, label: int, weight: float, watched: np.ndarray, seen: Floats, missing: Floats
) -> None:
    """Count one example in a leaf's observers (Welford with weights)."""
    for q in range(len(watched)):
        value = row[watched[q]]
        if value != value:
            missing[q] += weight
            continue
        observer = seen[q, label]
        if observer[0] <= 0.0:
            observer[3] = value
            observer[4] = value
        observer[3] = min(observer[3], value)
        observer[4] = max(observer[4], value)
        observer[0] += weight
        before = observer[1]
        observer[1] += (weight / observer[0]) * (value - before)
        observer[2] += weight * (value - before) * (value - observer[1])


@kernel
def draw_subspace(watched: np.ndarray, n_features: int, seed: int, tree: int, serial: int) -> None:
    """Choose the features that a new leaf watches: all in order, or a random subset."""
    k = len(watched)
    if k == n_features:
        for q in range(k):
            watched[q] = q
        return
    pool = np.arange(n_features)
    for q in range(k):
        bits = mixed(
            np.uint64(seed),
            np.uint64(0x5AB5) + np.uint64(tree) * np.uint64(1 << 32),
            np.uint64(serial * k + q),
        )
        pick = q + int(uniform(bits) * (n_features - q))
        pool[q], pool[pick] = pool[pick], pool[q]
        watched[q] = pool[q]


@kernel
def _share(passed: Floats) -> float:
    """Fraud share of the weight that came by a node."""
    total = passed[0] + passed[1]
    return passed[1] / total if total > 0.0 else 0.0


@kernel
def _tree_score(
    row: Floats,
    feature: np.ndarray,
    threshold: Floats,
    child: np.ndarray,
    leaf: np.ndarray,
    passed: Floats,
    counts: Floats,
) -> float:
    """Fraud share of the leaf a row falls into; 0 where it is empty."""
    node = 0
    while feature[node] >= 0:
        node = _next_node(node, row[feature[node]], threshold, child, passed)
    return _share(counts[leaf[node]])


@kernel
def learn(
    rows: Floats,
    is_fraud: Flags,
    weights: Floats,
    n_before: int,
    seed: int,
    table: Floats,
    start: np.ndarray,
    feature: np.ndarray,
    threshold: Floats,
    child: np.ndarray,
    leaf: np.ndarray,
    passed: Floats,
    counts: Floats,
    tried: Floats,
    watched: np.ndarray,
    seen: Floats,
    missing: Floats,
    used: np.ndarray,
    grace_period: float,
    delta: float,
    tau: float,
    min_branch_fraction: float,
    may_grow: bool,
    before: Floats,
) -> bool:
    """Learn rows tree by tree; False when a region is full, with ``start`` where to go on.

    The Poisson weight of an example in a tree is drawn from (seed, tree, number of the example).
    ``may_grow`` says that a full region will be enlarged; otherwise it stops splitting. ``before``
    gathers the sum of the trees' scores each row had before it was learnt, if it has room.
    """
    best = np.empty(7)
    log_delta = math.log(1.0 / delta)
    while start[0] < feature.shape[0]:
        t = start[0]
        while start[1] < rows.shape[0]:
            i = start[1]
            weight = weights[i]
            if len(table) > 0:
                weight *= drawn(
                    table, uniform(mixed(np.uint64(seed), np.uint64(t), np.uint64(n_before + i)))
                )
            if weight <= 0.0 and len(before) == 0:
                start[1] += 1
                continue
            full = used[t, 1] + 1 > counts.shape[1]
            if full and may_grow:
                return False
            label = is_fraud[i]
            if len(before) > 0:
                before[i] += _tree_score(
                    rows[i], feature[t], threshold[t], child[t], leaf[t], passed[t], counts[t]
                )
            start[1] += 1
            if weight <= 0.0:
                continue
            node = 0
            passed[t, 0, label] += weight
            while feature[t, node] >= 0:
                node = _next_node(
                    node, rows[i, feature[t, node]], threshold[t], child[t], passed[t]
                )
                passed[t, node, label] += weight
            here = leaf[t, node]
            counts[t, here, label] += weight
            if full:
                continue
            _observe(rows[i], label, weight, watched[t, here], seen[t, here], missing[t, here])
            total = counts[t, here, 0] + counts[t, here, 1]
            if total - tried[t, here] < grace_period:
                continue
            tried[t, here] = total
            if counts[t, here, 0] == 0.0 or counts[t, here, 1] == 0.0:
                continue
            second = _best_split(
                counts[t, here],
                watched[t, here],
                seen[t, here],
                missing[t, here],
                min_branch_fraction,
                best,
            )
            bound = math.sqrt(log_delta / (2.0 * total))
            if not (best[0] - second > bound or bound < tau):
                continue
            if best[1] < 0.0:
                # No threshold separates anything: River deactivates the leaf and, being allowed
                # to grow, reactivates it with empty observers.
                seen[t, here] = 0.0
                missing[t, here] = 0.0
                continue
            left, other = used[t, 0], used[t, 1]
            feature[t, node], threshold[t, node], child[t, node] = int(best[1]), best[2], left
            used[t, 0] += 2
            used[t, 1] += 1
            for side in range(2):
                row_of_leaf = here if side == 0 else other
                feature[t, left + side], leaf[t, left + side] = -1, row_of_leaf
                for c in range(2):
                    counts[t, row_of_leaf, c] = best[3 + 2 * side + c]
                    passed[t, left + side, c] = best[3 + 2 * side + c]
                tried[t, row_of_leaf] = counts[t, row_of_leaf, 0] + counts[t, row_of_leaf, 1]
                seen[t, row_of_leaf] = 0.0
                missing[t, row_of_leaf] = 0.0
                draw_subspace(watched[t, row_of_leaf], rows.shape[1], seed, t, left + side)
        start[0] += 1
        start[1] = 0
    return True


@kernel
def score(
    rows: Floats,
    feature: np.ndarray,
    threshold: Floats,
    child: np.ndarray,
    leaf: np.ndarray,
    passed: Floats,
    counts: Floats,
    out: Floats,
) -> None:
    """Write the mean over trees of the fraud share in the leaf; 0 where a leaf is empty."""
    for i in range(rows.shape[0]):
        out[i] = 0.0
    for t in range(feature.shape[0]):
        for i in range(rows.shape[0]):
            out[i] += _tree_score(
                rows[i], feature[t], threshold[t], child[t], leaf[t], passed[t], counts[t]
            )
    for i in range(rows.shape[0]):
        out[i] /= feature.shape[0]


@kernel
def explain(
    rows: Floats,
    feature: np.ndarray,
    threshold: Floats,
    child: np.ndarray,
    leaf: np.ndarray,
    passed: Floats,
    counts: Floats,
    out: Floats,
) -> None:
    """Write, in log-odds, what each question on the paths adds, and the roots' share as the bias.

    In probabilities the steps along a path telescope (Saabas); all steps of a row are then scaled
    by one positive factor, the slope of the secant of the log-odds from bias to score, so signs
    and order stay and the row sums to the margin.
    """
    d = rows.shape[1]
    n_trees = feature.shape[0]
    for i in range(rows.shape[0]):
        for j in range(d + 1):
            out[i, j] = 0.0
        for t in range(n_trees):
            node = 0
            share = _share(passed[t, 0])
            out[i, d] += share / n_trees
            while feature[t, node] >= 0:
                asked = feature[t, node]
                node = _next_node(node, rows[i, asked], threshold[t], child[t], passed[t])
                after = _share(passed[t, node])
                if feature[t, node] < 0:
                    after = _share(counts[t, leaf[t, node]])
                out[i, asked] += (after - share) / n_trees
                share = after
        to_log_odds(out[i])
