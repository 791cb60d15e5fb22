"""Writes the Grafana dashboards in compose/grafana/dashboards; a test holds them against this.

python scripts/dashboards.py [FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent.parent / "compose" / "grafana" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
#: Grafana's grid is 24 wide: three panels a row.
WIDTH, HEIGHT = 8, 8


class Panel(NamedTuple):
    """A graph: its queries, each with what its lines are called."""

    title: str
    unit: str  # Grafana's name of it
    queries: dict[str, str]  # legend: PromQL


def rate(metric: str, by: str = "") -> str:
    """A counter as a rate, summed."""
    return f"sum{f' by ({by}) ' if by else ''}(rate({metric}[5m]))"


def quantile(share: float, metric: str, by: str = "") -> str:
    """A quantile of a histogram."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket[5m])))"


SERVICE = [
    Panel("Records read", "ops", {"{{stage}}": rate("weir_records_consumed_total", "stage")}),
    Panel("Transactions scored", "ops", {"scored": rate("weir_transactions_scored_total")}),
    Panel(
        "From publishing to the score",
        "s",
        {f"p{p}": quantile(p / 100, "weir_score_latency_seconds") for p in (50, 95, 99)},
    ),
    Panel(
        "Records not yet read",
        "short",
        {"{{topic}}": "sum by (topic) (weir_consumer_lag_records)"},
    ),
    Panel(
        "A stage's time for a batch, p99",
        "s",
        {"{{stage}}": quantile(0.99, "weir_stage_duration_seconds", "stage")},
    ),
    Panel(
        "Until a write is acknowledged, p99",
        "s",
        {"{{part}}": quantile(0.99, "weir_delivery_duration_seconds", "part")},
    ),
    Panel(
        "Records a batch, mean",
        "short",
        {
            "{{stage}}": f"{rate('weir_batch_records_sum', 'stage')}"
            f" / {rate('weir_batch_records_count', 'stage')}"
        },
    ),
    Panel(
        "Age of the last commit", "s", {"{{instance}}": "time() - weir_commit_timestamp_seconds"}
    ),
    Panel("Commits", "ops", {"{{result}}": rate("weir_commits_total", "result")}),
    Panel(
        "Could not be read",
        "ops",
        {"{{topic}}, {{reason}}": rate("weir_dead_letters_total", "topic, reason")},
    ),
    Panel(
        "Bounds of memory, share in use",
        "percentunit",
        {"{{bound}}": "max by (bound) (weir_bound_used / (weir_bound > 0))"},
    ),
    Panel(
        "Not ready",
        "short",
        {"{{instance}} {{reason}}": 'weir_failing or on (instance) up{job="weir"} * 0'},
    ),
    Panel("Memory", "bytes", {"{{instance}}": "process_resident_memory_bytes"}),
    Panel("CPU", "percentunit", {"{{instance}}": "rate(process_cpu_seconds_total[5m])"}),
    Panel("Entities", "short", {"{{stage}}": "sum by (stage) (weir_entities)"}),
    Panel("Buckets of older", "short", {"{{stage}}": "sum by (stage) (weir_entity_buckets)"}),
    Panel(
        "Let go at a bound",
        "short",
        {
            "entities of {{stage}}": "sum by (stage) (weir_entities_evicted)",
            "waiting": "sum(weir_pending_overflowed)",
        },
    ),
]

QUALITY = [
    Panel(
        "Average precision",
        "percentunit",
        {
            "of mature days": "weir_mature_average_precision",
            "of all labels so far": "weir_average_precision",
        },
    ),
    Panel(
        "ROC AUC",
        "percentunit",
        {"of mature days": "weir_mature_roc_auc", "of all labels so far": "weir_roc_auc"},
    ),
    Panel(
        "Calibration",
        "short",
        {"expected error": "weir_calibration_error", "Brier score": "weir_brier_score"},
    ),
    Panel(
        "A day's budget",
        "percentunit",
        {"card precision": "weir_card_precision", "recall": "weir_recall_at_budget"},
    ),
    Panel("Days that are mature", "short", {"days": "weir_days_mature"}),
    Panel("By segment", "percentunit", {"{{segment}} {{value}}": "weir_segment_average_precision"}),
    Panel("Labels by segment", "short", {"{{segment}} {{value}}": "weir_segment_labelled"}),
    Panel("Labels", "ops", {"{{outcome}}": rate("weir_labels_total", "outcome")}),
    Panel(
        "From a transaction to its label",
        "s",
        {f"p{p}": quantile(p / 100, "weir_label_delay_seconds") for p in (50, 90)},
    ),
    Panel("Known within a week", "percentunit", {"frauds": "weir_labels_known_within_week_ratio"}),
    Panel(
        "Waiting",
        "short",
        {"transactions": "sum(weir_pending)", "labels": "sum(weir_labels_early)"},
    ),
    Panel("Since the last label", "s", {"age": "time() - max(weir_label_timestamp_seconds)"}),
    Panel(
        "Learnt",
        "short",
        {"examples": "weir_examples_learned", "frauds": "weir_frauds_learned"},
    ),
    Panel("The learner is behind", "s", {"{{instance}}": "weir_learner_lag_seconds"}),
    Panel(
        "Position in the examples",
        "short",
        {"learner": "weir_model_position", "in use by {{instance}}": "weir_model_used_position"},
    ),
    Panel("Models that differ", "short", {"{{instance}}": "weir_models_differ_total"}),
    Panel("Last snapshot, age", "s", {"age": "time() - weir_snapshot_timestamp_seconds"}),
    Panel("Last snapshot, size", "bytes", {"size": "weir_snapshot_bytes"}),
]

DRIFT = [
    Panel(
        "How far it has moved: at 100 % an incident opens",
        "percentunit",
        {"{{subject}}": "weir_drift_distance"},
    ),
    Panel("Changes announced, an hour", "short", {"{{kind}}": "increase(weir_drifts_total[1h])"}),
    Panel(
        "Scores",
        "percentunit",
        {f"p{p}": quantile(p / 100, "weir_score") for p in (50, 90, 99)},
    ),
    Panel(
        "Mean score",
        "percentunit",
        {"mean": f"{rate('weir_score_sum')} / {rate('weir_score_count')}"},
    ),
    Panel(
        "Share of frauds among what is learnt",
        "percentunit",
        {"frauds": "weir_frauds_learned / weir_examples_learned"},
    ),
    Panel(
        "Labels that do not teach",
        "percentunit",
        {
            "{{outcome}}": 'sum by (outcome) (rate(weir_labels_total{outcome!="learn"}[5m]))'
            " / scalar(sum(rate(weir_labels_total[5m])))"
        },
    ),
]

FRAUD = [
    Panel(
        "Alerts a day",
        "short",
        {
            "shown": "sum(increase(weir_alerts_total[1d]))"
            " - sum(increase(weir_alerts_suppressed_total[1d]))",
            "budget": "max(weir_alert_budget_per_day)",
        },
    ),
    Panel(
        "Alerts",
        "ops",
        {
            "raised": rate("weir_alerts_total"),
            "held back": rate("weir_alerts_suppressed_total"),
        },
    ),
    Panel(
        "Alerts among transactions",
        "percentunit",
        {
            "now": f"{rate('weir_alerts_total')} / {rate('weir_transactions_scored_total')}",
            "of mature days": "weir_alert_ratio",
        },
    ),
    Panel(
        "Of mature days",
        "percentunit",
        {
            "precision": "weir_alert_precision",
            "recall": "weir_alert_recall",
            "value detected": "weir_value_detected_ratio",
        },
    ),
    Panel("Savings", "percentunit", {"of what is lost": "weir_savings_ratio"}),
    Panel("False alerts for each fraud", "short", {"ratio": "weir_false_positive_ratio"}),
    Panel(
        "Alerts by segment",
        "percentunit",
        {"{{segment}} {{value}}": "weir_segment_alert_ratio"},
    ),
    Panel(
        "False alerts by segment",
        "percentunit",
        {"{{segment}} {{value}}": "weir_segment_false_positive_rate"},
    ),
    Panel("Frauds until a card is caught", "short", {"median": "weir_card_catch_frauds"}),
    Panel("Time until a card is caught", "s", {"median": "weir_card_catch_seconds"}),
    Panel(
        "From what people looked at",
        "percentunit",
        {
            "precision": "weir_alert_precision_estimate",
            "recall": "weir_alert_recall_estimate",
            "its standard error": "weir_alert_recall_estimate_error",
        },
    ),
]

DASHBOARDS = {
    "service": ("weir: service", SERVICE),
    "quality": ("weir: model quality", QUALITY),
    "drift": ("weir: drift", DRIFT),
    "fraud": ("weir: fraud operations", FRAUD),
}


def dashboard(uid: str, title: str, panels: list[Panel]) -> dict[str, Any]:
    """A dashboard as Grafana reads it."""
    return {
        "uid": f"weir-{uid}",
        "title": title,
        "tags": ["weir"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "panels": [drawn(i, panel) for i, panel in enumerate(panels)],
    }


def drawn(i: int, panel: Panel) -> dict[str, Any]:
    """A panel in its place."""
    return {
        "id": i + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": {"x": i % 3 * WIDTH, "y": i // 3 * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(65 + j), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for j, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def files() -> dict[str, str]:
    """Every file by its name."""
    return {
        f"{uid}.json": json.dumps(dashboard(uid, title, panels), indent=1) + "\n"
        for uid, (title, panels) in DASHBOARDS.items()
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")
