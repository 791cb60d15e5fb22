"""What Prometheus reads: names, units, closed sets of labels, and histograms that agree."""

import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client import Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry
from pydantic import BaseModel

from app.catalogue import default_of, markdown
from app.collectors import BatchHistogram
from app.config import Settings, load
from app.core.evaluation import Evaluation, mean_of
from app.core.fallback import LATE, MODEL
from app.core.features import FeaturePlan
from app.errors import Malformed
from app.flow import Flow
from app.metrics import BOUNDS, Metrics
from app.quality import Quality
from app.records import Example, Partition
from app.worker import fresh_champion, stages_of
from tests.core.examined import TERMS, evaluated, stream

EDGES = (0.1, 0.5, 1.0)
ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = Example(
    transaction_id="t1", time_ms=0, amount=1.0, entities={}, score=0.5, features=[],
    feature_schema="", is_fraud=True, label_time_ms=0, label_source="analyst", origin=("l", 0, 0),
)  # fmt: skip


@given(st.lists(st.floats(-1, 3) | st.sampled_from(EDGES), max_size=50))
def test_histogram_counts_as_prometheus_does(values):
    """Buckets, sum and count of values given at once are those of the client, one by one."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    batch = BatchHistogram("weir_x", "x", EDGES)
    ours.register(batch)
    single = Histogram("weir_x", "x", buckets=EDGES, registry=theirs)
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
    made.told_by(np.array([MODEL, LATE], np.int8), 90_000)
    made.consumed("card_id", 3)
    made.dead_letter("transactions", Malformed("amount", "x", "a number"))
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
        assert re.fullmatch(r"(weir|process)_[a-z_]+", family.name), family.name
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
        "quantile", "segment", "value", "bound", "part", "result", "subject",
    }  # fmt: skip
    assert labels <= allowed


def test_figures_arrive_where_they_belong(metrics):
    """A batch of two scores, one an alert, one a minute late."""
    read = metrics.registry.get_sample_value
    assert 2 == read("weir_transactions_scored_total")
    assert 1 == read("weir_alerts_total")
    assert 1 == read("weir_fallback_scores_total", {"reason": "late"})
    assert 0 == read("weir_fallback_scores_total", {"reason": "failed"})
    assert 90.0 == read("weir_model_age_seconds")
    assert 2 == read("weir_score_count")
    assert 1 == read("weir_score_latency_seconds_bucket", {"le": "0.005"})
    assert 1 == read("weir_score_latency_seconds_bucket", {"le": "60"})
    assert 70.005 == read("weir_score_latency_seconds_sum")
    assert 1 == read("weir_dead_letters_total", {"topic": "transactions", "reason": "field"})
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
    one.dead_letter("t", Malformed("value", "x", "JSON"))
    labels = {"topic": "t", "reason": "value"}
    assert 1 == one.registry.get_sample_value("weir_dead_letters_total", labels)
    assert other.registry.get_sample_value("weir_dead_letters_total", labels) is None


def test_table_is_what_the_code_declares(metrics):
    """docs/metrics.md is up to date: weir metrics --markdown > docs/metrics.md."""
    told = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert markdown(metrics.declared) == told


def test_what_is_declared_is_what_is_served(metrics):
    """The table and the registry hold the same names, kinds and texts."""
    served = {
        (f"{f.name}_total" if f.type == "counter" else f.name, f.type, f.documentation)
        for f in metrics.registry.collect()
        if f.name.startswith("weir_")
    }
    declared = {
        (one.name.removesuffix("_info") if one.kind == "info" else one.name, one.kind, one.text)
        for one in metrics.declared
    }
    assert declared == served


#: Settings that end in _max and bound no memory: a record, a batch, an answer, a number.
OF_ONE = {
    "transaction.number_max", "transaction.record_bytes_max", "transaction.ahead_max",
    "worker.batch_max", "access.body_max", "policy.reasons_max", "policy.rules.amount_max",
    "latency.rules.amount_max",
}  # fmt: skip


def settings_of(table, prefix=""):
    """Every setting below a table, by its dotted name."""
    for name, field in table.model_fields.items():
        kinds = [k for k in (field.annotation, *get_args(field.annotation)) if isinstance(k, type)]
        tables = [kind for kind in kinds if issubclass(kind, BaseModel)]
        yield f"{prefix}{name}"
        for below in tables:
            yield from settings_of(below, f"{prefix}{name}.")


def test_every_bound_has_a_metric():
    """Law 11: a setting that bounds memory is a bound that Prometheus sees."""
    bounds = {name for name in settings_of(Settings) if name.endswith("_max")}
    assert set() == bounds - OF_ONE - set(BOUNDS)
    assert all(default_of(name) > 0 for name in BOUNDS)


def test_every_bound_is_told_by_a_task():
    """Each stage tells its bounds, and all of them are those of the table, but for the server's."""
    repeats = {"entity": "card_id"}
    settings = load(
        profile="card",
        transaction={"categories": ["channel"], "segments": ["channel"]},
        policy={"repeats": repeats},
        learner={"investigators": {"sources": ["analyst"]}},
    )
    plan = FeaturePlan.of(settings.features, settings.transaction.entities)
    champion, metrics = fresh_champion(settings, plan), Metrics()
    flow = Flow(settings, stages_of(settings, "worker", metrics, champion, plan), metrics)
    flow.own(Partition(topic, 0) for topic in flow.topics)
    text = generate_latest(metrics.registry).decode()
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
    limits = {s.labels["bound"] for s in samples if s.name == "weir_bound"}
    used = {s.labels["bound"] for s in samples if s.name == "weir_bound_used"}
    elsewhere = {"access.streams_max", "board.held_max", "join.disk_max"}  # of a disk
    assert set(BOUNDS) - elsewhere == limits == used


def test_series_of_partitions_go_with_them(metrics):
    """What a worker no longer owns it no longer tells."""
    labels = {"topic": "transactions", "partition": "3"}
    assert 17 == metrics.registry.get_sample_value("weir_consumer_lag_records", labels)
    metrics.released()
    assert metrics.registry.get_sample_value("weir_consumer_lag_records", labels) is None


def test_label_delay_is_of_labels_that_came(metrics):
    """Maturity is no label; a label three hours late lies between one and eight."""
    late = replace(EXAMPLE, label_time_ms=EXAMPLE.time_ms + 3 * 3_600_000)
    matured = replace(late, label_source="maturity")
    metrics.labelled([late, matured], 1_000, 4_000)
    read = metrics.registry.get_sample_value
    assert 1 == read("weir_label_delay_seconds_count")
    assert 0 == read("weir_label_delay_seconds_bucket", {"le": "3600"})
    assert 1 == read("weir_label_delay_seconds_bucket", {"le": "28800"})
    assert 3.0 == read("weir_learner_lag_seconds")
    assert 4.0 == read("weir_label_timestamp_seconds")
