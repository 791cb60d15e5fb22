"""What Prometheus reads: names, units, closed sets of labels, and histograms that agree."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from app.core.evaluation import Evaluation, mean_of
from app.metrics import BatchHistogram, Metrics, Quality
from tests.core.examined import TERMS, evaluated, stream

BOUNDS = (0.1, 0.5, 1.0)


@given(st.lists(st.floats(-1, 3) | st.sampled_from(BOUNDS), max_size=50))
def test_histogram_counts_as_prometheus_does(values):
    """Buckets, sum and count of values given at once are those of the client, one by one."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    batch = BatchHistogram("weir_x", "x", BOUNDS)
    ours.register(batch)
    single = Histogram("weir_x", "x", buckets=BOUNDS, registry=theirs)
    batch.observe(np.array(values[:20]))
    batch.observe(np.array(values[20:]))
    for value in values:
        single.observe(value)
    for le in ("0.1", "0.5", "1.0", "+Inf"):
        expected = theirs.get_sample_value("weir_x_bucket", {"le": le})
        shown = le.removesuffix(".0")
        assert expected == ours.get_sample_value("weir_x_bucket", {"le": shown}), le
    assert len(values) == ours.get_sample_value("weir_x_count")
    assert pytest.approx(sum(values), abs=1e-9) == ours.get_sample_value("weir_x_sum")


def test_quantile_lies_in_its_bucket():
    """Interpolated within the bucket, as Prometheus does; NaN where nothing was seen."""
    histogram = BatchHistogram("x", "x", (1.0, 2.0, 4.0))
    assert np.isnan(histogram.quantile(0.5))
    histogram.observe(np.array([0.5, 1.5, 1.5, 3.0]))
    assert 1.5 == histogram.quantile(0.5)
    assert 1.0 == histogram.quantile(0.25)
    assert 4.0 == histogram.quantile(1.0)
    histogram.observe(np.array([100.0] * 100))
    assert 4.0 == histogram.quantile(0.99), "beyond the last bound nothing is known"


@pytest.fixture
def metrics():
    """Metrics after a little of everything."""
    made = Metrics()
    scores = np.array([0.1, 0.7])
    made.scored(scores, scores >= 0.5, np.array([5, 70_000]))
    made.consumed("card_id", 3)
    made.dead_letter("transactions")
    made.lag("transactions", 3, 17)
    made.committed(1_000)
    made.snapshot(2_048, 5_000)
    return made


def test_every_name_is_ours_and_in_base_units(metrics):
    """Prefix ``weir_``; seconds and bytes, never milliseconds; every metric explains itself."""
    text = generate_latest(metrics.registry).decode()
    families = list(text_string_to_metric_families(text))
    assert len(families) > 20
    for family in families:
        assert re.fullmatch(r"weir_[a-z_]+", family.name), family.name
        assert not re.search(r"_(ms|millis|kb|mb|minutes|percent)(_|$)", family.name), family.name
        assert family.documentation, family.name


def test_label_sets_are_closed(metrics):
    """No label holds what a publisher writes: ids and entities make no series."""
    text = generate_latest(metrics.registry).decode()
    labels = {
        name
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for name in sample.labels
    }
    allowed = {
        "stage", "topic", "partition", "outcome", "kind", "le", "version", "reason", "role",
        "quantile", "segment", "value",
    }  # fmt: skip
    assert labels <= allowed


def test_figures_arrive_where_they_belong(metrics):
    """A batch of two scores, one an alert, one a minute late."""
    read = metrics.registry.get_sample_value
    assert 2 == read("weir_transactions_scored_total")
    assert 1 == read("weir_alerts_total")
    assert 2 == read("weir_score_count")
    assert 1 == read("weir_score_latency_seconds_bucket", {"le": "0.005"})
    assert 1 == read("weir_score_latency_seconds_bucket", {"le": "60"})
    assert 70.005 == read("weir_score_latency_seconds_sum")
    assert 1 == read("weir_dead_letters_total", {"topic": "transactions"})
    assert 17 == read("weir_consumer_lag_records", {"topic": "transactions", "partition": "3"})
    assert 1.0 == read("weir_commit_timestamp_seconds")
    assert 2_048 == read("weir_snapshot_bytes")


def test_quality_is_told_as_far_as_it_is_known(metrics):
    """No sample where there is no figure; then those of the evaluation, by segment, too."""
    read = metrics.registry.get_sample_value
    assert read("weir_average_precision") is None
    metrics.quality.evaluation = Evaluation(TERMS)
    assert read("weir_average_precision") is None
    assert 0.0 == read("weir_days_mature")
    metrics.quality.evaluation = evaluation = evaluated(stream(1))
    assert 0.0 == read("weir_days_mature"), "what was reckoned just now stands for a while"
    metrics.quality = Quality(fresh_s=0.0)
    metrics.quality.evaluation = evaluation
    metrics.registry = CollectorRegistry()
    metrics.registry.register(metrics.quality)
    read = metrics.registry.get_sample_value
    assert evaluation.average_precision == read("weir_average_precision")
    assert evaluation.mature.decisions.recall == read("weir_alert_recall")
    assert evaluation.seen.shown.recall().value == read("weir_alert_recall_estimate")
    assert mean_of(evaluation.by_day(), "card_precision") == read("weir_card_precision")
    for group in evaluation.by_segment()["channel"]:
        labels = {"segment": "channel", "value": group.name}
        assert group.decisions.alert_rate == read("weir_segment_alert_ratio", labels)


def test_two_processes_in_one_do_not_meet():
    """Each has a registry of its own."""
    one, other = Metrics(), Metrics()
    one.dead_letter("t")
    assert other.registry.get_sample_value("weir_dead_letters_total", {"topic": "t"}) is None
