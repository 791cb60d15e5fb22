"""Drift is announced where there is one, and not where there is none."""

import numpy as np
import pytest

from app.core.monitor import Change, Monitor, Watch
from app.records import Example, Summary


def example(i: int, *, is_fraud: bool, score: float) -> Example:
    """One example with its score."""
    return Example(
        transaction_id=f"t{i}", time_ms=1_000 * i, amount=1.0, entities={}, score=score,
        features=[], feature_schema="s", is_fraud=is_fraud, label_time_ms=0, label_source="x",
        origin=("labels", 0, i),
    )  # fmt: skip


def summary(i: int, mean: float) -> Summary:
    """A run of scores in numbers."""
    return Summary(
        partition=0, first_offset=i, last_offset=i, n=1, n_alerts=0, mean_score=mean,
        first_time_ms=1_000 * i, last_time_ms=1_000 * i,
    )  # fmt: skip


def losses(rng: np.random.Generator, mean: float, n: int) -> list[float]:
    """Losses around a mean."""
    return [float(loss) for loss in np.clip(rng.normal(mean, 0.1, n), 0, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_step_is_announced_with_before_after_and_onset(seed):
    """A mean that moves from .2 to .6 is told within 500 values, and when it began."""
    rng = np.random.default_rng(seed)
    watch = Watch("score", "mean score", 0.002)
    values = losses(rng, 0.2, 3_000) + losses(rng, 0.6, 1_000)
    changes = [c for i, v in enumerate(values) if (c := watch.update(v, 1_000 * i)) is not None]
    assert changes, f"seed {seed}"
    first = changes[0]
    assert ("score", "mean score") == (first.kind, first.subject)
    assert 3_000_000 < first.detected_ms < 3_500_000
    assert 2_900_000 <= first.since_ms <= first.detected_ms
    assert pytest.approx(0.2, abs=0.1) == first.before
    assert first.after > first.before


@pytest.mark.parametrize("seed", range(5))
def test_steady_stream_is_left_in_peace(seed):
    """Ten thousand values of one distribution raise next to nothing."""
    rng = np.random.default_rng(seed)
    watch = Watch("score", "mean score", 0.002)
    told = [watch.update(v, i) for i, v in enumerate(losses(rng, 0.3, 10_000))]
    assert sum(change is not None for change in told) <= 1, f"seed {seed}"


def fed(monitor: Monitor, rng: np.random.Generator, n: int, fraud_score: float) -> list[Change]:
    """Changes heard over n examples, one in five a fraud."""
    heard: list[Change] = []
    start = monitor.n_examples
    for i in range(start, start + n):
        is_fraud = i % 5 == 0
        score = float(np.clip(rng.normal(fraud_score if is_fraud else 0.1, 0.05), 0, 1))
        heard += monitor.on_example(example(i, is_fraud=is_fraud, score=score))
    return heard


def test_performance_is_watched_by_class():
    """Frauds that are no longer found are told as such, though legitimate ones are as ever."""
    rng = np.random.default_rng(1)
    monitor = Monitor(warmup=100)
    assert [] == fed(monitor, rng, 5_000, 0.9)
    heard = fed(monitor, rng, 3_000, 0.3)
    assert {("performance", "loss on frauds")} == {(c.kind, c.subject) for c in heard}
    assert heard[0].after > heard[0].before


def test_score_drift_needs_no_labels():
    """Summaries of scores are enough once the model is warm."""
    rng = np.random.default_rng(2)
    monitor = Monitor(warmup=100)
    fed(monitor, rng, 200, 0.9)
    means = [0.1] * 1_000 + [0.5] * 300
    heard = [c for i, m in enumerate(means) for c in monitor.on_summary(summary(i, m))]
    assert {"score"} == {c.kind for c in heard}
    assert heard[0].detected_ms >= 1_000_000


def test_model_that_has_hardly_learnt_announces_nothing():
    """Scores that move because the model learns are no news."""
    rng = np.random.default_rng(3)
    monitor = Monitor(warmup=6_000)
    assert [] == fed(monitor, rng, 3_000, 0.9) + fed(monitor, rng, 2_900, 0.2)


def test_memory_is_bounded():
    """Times of the last 4096 values, whatever comes."""
    watch = Watch("score", "mean score", 0.002)
    for i in range(10_000):
        watch.update(0.5, i)
    assert 4_096 == len(watch.times_ms)
