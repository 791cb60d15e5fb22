"""Laws every model must keep, as functions of a maker of models; each raises where it is broken."""

import pickle
from collections.abc import Callable

import numpy as np

from app.core.models import Model

Maker = Callable[[int], Model]
FEATURES = ("amount", "hour", "constant", "ratio")


def stream(n: int, seed: int, missing: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows over FEATURES, labels that depend on them (about one in five), and weights."""
    rng = np.random.default_rng(seed)
    rows = np.column_stack(
        [rng.exponential(50.0, n), rng.integers(0, 24, n), np.full(n, 3.0), rng.normal(size=n)]
    ).astype(np.float64)
    label = (rows[:, 0] / 50.0 + rows[:, 3] + rng.normal(scale=0.5, size=n) > 2.0).astype(np.int8)
    rows[rng.random(rows.shape) < missing] = np.nan
    return rows, label, rng.integers(0, 4, n).astype(np.float64)


def scores_are_finite_and_in_the_unit_interval(make: Maker) -> None:
    rows, label, weight = stream(600, 1, missing=0.1)
    model = make(0)
    assert (np.abs(model.score_many(rows) - 0.5) <= 0.5).all()
    model.learn_many(rows, label, weight)
    scores = model.score_many(np.vstack([rows, rows * 1e6, np.full((1, 4), np.nan), np.full((1, 4), 1e99)]))
    assert np.isfinite(scores).all()
    assert (np.abs(scores - 0.5) <= 0.5).all()


def inference_is_pure(make: Maker) -> None:
    rows, label, weight = stream(400, 2, missing=0.1)
    model = make(0)
    for learnt in (0, 200):
        model.learn_many(rows[:learnt], label[:learnt], weight[:learnt])
        before = model.state_digest()
        model.score_many(rows)
        model.margin_many(rows)
        model.contributions(rows)
        model.predict_proba_one(dict(zip(FEATURES, rows[0].tolist(), strict=True)))
        assert model.state_digest() == before


def pickling_goes_on_identically(make: Maker) -> None:
    rows, label, weight = stream(600, 3, missing=0.1)
    model = make(0)
    model.learn_many(rows[:300], label[:300], weight[:300])
    copy = pickle.loads(pickle.dumps(model))
    assert copy.state_digest() == model.state_digest()
    for one in (model, copy):
        one.learn_many(rows[300:], label[300:], weight[300:])
    assert copy.state_digest() == model.state_digest()
    assert np.array_equal(copy.score_many(rows), model.score_many(rows))


def a_batch_equals_its_rows_one_by_one(make: Maker) -> None:
    rows, label, weight = stream(500, 4, missing=0.1)
    whole, parts, singles = make(0), make(0), make(0)
    whole.learn_many(rows, label, weight)
    cuts = np.sort(np.random.default_rng(5).integers(0, 500, 9))
    for part in np.split(np.arange(500), cuts):
        parts.learn_many(rows[part], label[part], weight[part])
    for row, y, w in zip(rows.tolist(), label.tolist(), weight.tolist(), strict=True):
        singles.learn_one(dict(zip(FEATURES, row, strict=True)), y, w)
    assert whole.state_digest() == parts.state_digest() == singles.state_digest()
    scores = whole.score_many(rows)
    assert np.array_equal(scores, [whole.score_one(dict(zip(FEATURES, row, strict=True))) for row in rows.tolist()])
    assert np.array_equal(scores[100:217], whole.score_many(rows[100:217]))


def seeds_repeat(make: Maker) -> None:
    rows, label, weight = stream(300, 6)
    one, other = make(3), make(3)
    for model in (one, other):
        model.learn_many(rows, label, weight)
    assert one.state_digest() == other.state_digest()


def refusal_leaves_the_model_as_it_was(make: Maker) -> None:
    rows, label, weight = stream(100, 7)
    model = make(0)
    model.learn_many(rows, label, weight)
    before = model.state_digest()
    bad_rows = [np.inf, -np.inf, 1e308]
    attempts = [(np.where(np.arange(400).reshape(100, 4) == 399, value, rows), label, weight) for value in bad_rows]
    attempts += [(rows[:, :3], label, weight), (rows, label[:99], weight), (rows, label * 2, weight), (rows, label, -weight)]
    attempts += [(rows, label, weight * np.nan)]
    for attempt in attempts:
        try:
            model.learn_many(*attempt)
        except ValueError:
            assert model.state_digest() == before
        else:
            msg = "learnt what it must refuse"
            raise AssertionError(msg)


def contributions_add_up_to_the_margin(make: Maker) -> None:
    rows, label, weight = stream(500, 8, missing=0.1)
    model = make(0)
    model.learn_many(rows, label, weight)
    margin = model.margin_many(rows)
    assert np.allclose(model.contributions(rows).sum(axis=1), margin, atol=1e-8)
    assert np.allclose(1.0 / (1.0 + np.exp(-margin)), model.score_many(rows), atol=1e-9)


def features_may_vanish_and_emerge(make: Maker) -> None:
    model = make(0)
    rows, label, _ = stream(300, 9)
    for row, y in zip(rows.tolist(), label.tolist(), strict=True):
        model.learn_one(dict(zip(FEATURES, row, strict=True)), y)
    assert 0.0 <= model.score_one({"hour": 3.0, "emerging": 1.0}) <= 1.0
    model.learn_one({"hour": 3.0, "emerging": 1.0}, 1)
    model.learn_one({}, 0)
    assert 0.0 <= model.score_one({}) <= 1.0


def constant_features_and_one_class_are_survived(make: Maker) -> None:
    model = make(0)
    model.learn_many(np.ones((300, 4)), np.zeros(300))
    assert model.score_many(np.ones((1, 4)))[0] <= 0.5
    model.learn_many(np.ones((300, 4)), np.arange(300) % 2)
    assert np.isfinite(model.score_many(np.ones((1, 4)))).all()


def memory_is_bounded(make: Maker) -> None:
    model = make(0)
    sizes = []
    for part in range(6):
        rows, label, weight = stream(3000, part)
        model.learn_many(rows, label, weight)
        sizes.append(model.nbytes)
    assert sizes[-1] == sizes[-2] < 4e6


LAWS = [
    scores_are_finite_and_in_the_unit_interval, inference_is_pure, pickling_goes_on_identically,
    a_batch_equals_its_rows_one_by_one, seeds_repeat, refusal_leaves_the_model_as_it_was,
    contributions_add_up_to_the_margin, features_may_vanish_and_emerge, constant_features_and_one_class_are_survived,
]
