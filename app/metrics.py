"""What Prometheus sees: base units, prefix ``weir_``, closed label sets, one call a batch."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Info
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from app import __version__
from app.core.evaluation import mean_of
from app.core.measures.delays import AGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from app.core.entity import EntityStore
    from app.core.evaluation import Evaluation
    from app.core.learner import Learner, LearnerEffects
    from app.core.measures.groups import Group
    from app.core.pending import Join
    from app.records import LabelOutcome

#: Seconds: from below one fetch to a minute behind.
_LATENCY_S: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)
_SCORE: Final = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)


class BatchHistogram(Collector):
    """A Prometheus histogram that takes arrays: 0.02 us a value instead of 2."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        """Buckets end at ``bounds``, ascending."""
        self._name, self._text, self._bounds = name, text, np.array(bounds)
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0

    def observe(self, values: NDArray[np.float64]) -> None:
        """Count values, shape (n,)."""
        at = np.searchsorted(self._bounds, values, side="left")
        self._counts += np.bincount(at, minlength=len(self._counts))
        self._sum += float(values.sum())

    def quantile(self, share: float) -> float:
        """Value below which ``share`` of all values lie, interpolated; NaN before the first."""
        total = int(self._counts.sum())
        if not total:
            return float("nan")
        wanted, cumulated = share * total, np.cumsum(self._counts)
        at = int(np.searchsorted(cumulated, wanted))
        if at >= len(self._bounds):
            return float(self._bounds[-1])
        low = float(self._bounds[at - 1]) if at else 0.0
        below = float(cumulated[at - 1]) if at else 0.0
        return low + (float(self._bounds[at]) - low) * (wanted - below) / float(self._counts[at])

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Give the buckets as Prometheus wants them, cumulated."""
        cumulated = np.cumsum(self._counts)
        edges = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        buckets = [(edge, float(n)) for edge, n in zip(edges, cumulated, strict=True)]
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


class Quality(Collector):
    """How good the scores and alerts were, reckoned when somebody reads it.

    That takes some 20 ms, so what was reckoned stands for ``fresh_s`` seconds. What has no figure
    yet has no sample. Segments are labels: there are few (``transaction.segments``), with at most
    ``evaluation.values_max`` values each.
    """

    def __init__(self, fresh_s: float = 5.0) -> None:
        """Nothing is known yet."""
        self.evaluation: Evaluation | None = None
        self._fresh_s, self._told_s = fresh_s, -math.inf
        self._told: list[GaugeMetricFamily] = []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give every figure that is known."""
        if self.evaluation is None:
            yield from self._families({}, {})
            return
        if time.monotonic() - self._told_s >= self._fresh_s:
            of = self.evaluation
            figures = {**_of_counts(of), **_of_days(of)}
            self._told = list(self._families(figures, of.by_segment()))
            self._told_s = time.monotonic()
        yield from self._told

    @staticmethod
    def _families(
        figures: Mapping[str, float], segments: Mapping[str, Sequence[Group]]
    ) -> Iterator[GaugeMetricFamily]:
        for name, text in _QUALITY.items():
            family = GaugeMetricFamily(name, text)
            if not math.isnan(value := figures.get(name, math.nan)):
                family.add_metric([], value)
            yield family
        for name, text, figure in _BY_SEGMENT:
            family = GaugeMetricFamily(name, text, labels=["segment", "value"])
            for segment, groups in segments.items():
                for group in groups:
                    if not math.isnan(value := figure(group)):
                        family.add_metric([segment, group.name], value)
            yield family


def _of_counts(of: Evaluation) -> dict[str, float]:
    seen, mature = of.seen, of.mature
    ranking, alerts, shown = seen.ranking, mature.decisions, seen.shown
    return {
        "weir_average_precision": ranking.average_precision,
        "weir_roc_auc": ranking.roc_auc,
        "weir_brier_score": ranking.brier,
        "weir_calibration_error": ranking.calibration_error,
        "weir_mature_average_precision": mature.ranking.average_precision,
        "weir_mature_roc_auc": mature.ranking.roc_auc,
        "weir_alert_precision": alerts.precision,
        "weir_alert_recall": alerts.recall,
        "weir_alert_ratio": alerts.alert_rate,
        "weir_false_positive_ratio": alerts.false_positive_ratio,
        "weir_value_detected_ratio": alerts.value_detected,
        "weir_savings_ratio": alerts.savings(of.terms.review_cost, of.terms.recovery),
        "weir_alert_precision_estimate": shown.precision().value,
        "weir_alert_recall_estimate": shown.recall().value,
        "weir_alert_recall_estimate_error": shown.recall().error,
        "weir_labels_known_within_week_ratio": float(
            mature.delays.frauds_known()[AGES.index(7)]
        ),
    }  # fmt: skip


def _of_days(of: Evaluation) -> dict[str, float]:
    days, catch = of.by_day(), of.catch()
    return {
        "weir_card_precision": mean_of(days, "card_precision"),
        "weir_recall_at_budget": mean_of(days, "recall_at_budget"),
        "weir_days_mature": float(sum(day.is_mature for day in days)),
        "weir_card_catch_frauds": catch.frauds_median,
        "weir_card_catch_seconds": catch.hours_median * 3_600.0,
    }


_QUALITY: Final = {
    "weir_average_precision": "Of all scores that have a label, prequential.",
    "weir_roc_auc": "Of all scores that have a label.",
    "weir_brier_score": "Of all scores that have a label.",
    "weir_calibration_error": "Expected calibration error of the same.",
    "weir_mature_average_precision": "Of days all of whose labels are known.",
    "weir_mature_roc_auc": "Of days all of whose labels are known.",
    "weir_alert_precision": "Frauds among alerts, of mature days.",
    "weir_alert_recall": "Alerts among frauds, of mature days.",
    "weir_alert_ratio": "Alerts among transactions, of mature days.",
    "weir_false_positive_ratio": "False alerts for each fraud caught, of mature days.",
    "weir_value_detected_ratio": "Amount on alert among that of frauds, of mature days.",
    "weir_savings_ratio": "Share saved of what is lost where nobody looks, of mature days.",
    "weir_alert_precision_estimate": "Precision of what is flagged, from what people looked at.",
    "weir_alert_recall_estimate": "Recall of what is flagged, from what people looked at.",
    "weir_alert_recall_estimate_error": "Standard error of that recall.",
    "weir_labels_known_within_week_ratio": "Labels of frauds that came within 7 days, of mature.",
    "weir_card_precision": "Of the evaluation.top_k cards a day, mean of mature days kept.",
    "weir_recall_at_budget": "Of the evaluation.budget scores a day, mean of mature days kept.",
    "weir_days_mature": "Days kept all of whose labels are known.",
    "weir_card_catch_frauds": "Frauds of a card until an alert, with it, median.",
    "weir_card_catch_seconds": "From the first fraud of a card to its first alert, median.",
}

#: Of mature days; before there is one, of all that has a label.
_BY_SEGMENT: Final[tuple[tuple[str, str, Callable[[Group], float]], ...]] = (
    ("weir_segment_labelled", "Labelled transactions.", lambda g: g.decisions.n),
    ("weir_segment_average_precision", "Of a segment.", lambda g: g.average_precision),
    ("weir_segment_alert_ratio", "Alerts among transactions.", lambda g: g.decisions.alert_rate),
    ("weir_segment_false_positive_rate", "Alerts among the legitimate.",
     lambda g: g.decisions.false_positive_rate),
)  # fmt: skip


class Metrics:
    """All metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        """Declare every metric."""
        r = self.registry = CollectorRegistry()
        Info("weir_build", "Version of this process.", registry=r).info({"version": __version__})
        self._consumed = Counter(
            "weir_records_consumed", "Records read, by stage.", ["stage"], registry=r
        )
        self._dead = Counter(
            "weir_dead_letters", "Records that could not be read, by topic.", ["topic"], registry=r
        )
        self._alerts = Counter("weir_alerts", "Scores that became alerts.", registry=r)
        self._suppressed = Counter(
            "weir_alerts_suppressed", "Alerts held back: one of the same entity was shown lately.",
            registry=r,
        )  # fmt: skip
        self._scored = Counter("weir_transactions_scored", "Transactions scored.", registry=r)
        self.latency = BatchHistogram(
            "weir_score_latency_seconds", "From publishing a transaction to its score.", _LATENCY_S
        )
        self.scores = BatchHistogram("weir_score", "Scores given.", _SCORE)
        r.register(self.latency)
        r.register(self.scores)
        self._entities = Gauge(
            "weir_entities", "Entities known, by stage and partition.", ["stage", "partition"],
            registry=r,
        )  # fmt: skip
        self._evicted = Gauge(
            "weir_entities_evicted", "Entities let go because entities_max was reached.",
            ["stage", "partition"], registry=r,
        )  # fmt: skip
        self._cold = Gauge(
            "weir_entities_on_disk", "Entities known that are not in memory.",
            ["stage", "partition"], registry=r,
        )  # fmt: skip
        self._buckets = Gauge(
            "weir_entity_buckets", "Buckets of what left the entities' rings.",
            ["stage", "partition"], registry=r,
        )  # fmt: skip
        self._pending = Gauge(
            "weir_pending", "Transactions that wait for a label or for maturity.", ["partition"],
            registry=r,
        )  # fmt: skip
        self._early = Gauge(
            "weir_labels_early", "Labels that wait for their transaction.", ["partition"],
            registry=r,
        )  # fmt: skip
        self._overflowed = Gauge(
            "weir_pending_overflowed", "Transactions forgotten because pending_max was reached.",
            ["partition"], registry=r,
        )  # fmt: skip
        self._outcomes = Counter(
            "weir_labels", "Labels by what became of them.", ["outcome"], registry=r
        )
        self._learned = Gauge("weir_examples_learned", "Examples the model has learnt.", registry=r)
        self._frauds = Gauge("weir_frauds_learned", "Frauds among them.", registry=r)
        self._position = Gauge("weir_model_position", "Offset of the last example.", registry=r)
        self.quality = Quality()
        r.register(self.quality)
        self._drifts = Counter("weir_drifts", "Changes announced, by kind.", ["kind"], registry=r)
        self._snapshot_bytes = Gauge(
            "weir_snapshot_bytes", "Size of the last snapshot.", registry=r
        )
        self._snapshot_time = Gauge(
            "weir_snapshot_timestamp_seconds", "When the last snapshot was written.", registry=r
        )
        self._commit_time = Gauge(
            "weir_commit_timestamp_seconds", "When offsets were last committed.", registry=r
        )
        self._lag = Gauge(
            "weir_consumer_lag_records", "Records not yet read, by topic and partition.",
            ["topic", "partition"], registry=r,
        )  # fmt: skip

    def consumed(self, stage: str, n: int) -> None:
        """Count a batch that a stage has read."""
        self._consumed.labels(stage).inc(n)

    def dead_letter(self, topic: str) -> None:
        """Count a record that could not be read."""
        self._dead.labels(topic).inc()

    def scored(
        self, scores: NDArray[np.float64], alerts: NDArray[np.bool_], latency_ms: NDArray[np.int64]
    ) -> None:
        """Count a batch of scores, shape (n,)."""
        n_alerts = int(alerts.sum())
        self._scored.inc(len(scores))
        self._alerts.inc(n_alerts)
        self.scores.observe(scores)
        self.latency.observe(latency_ms / 1_000.0)

    def suppressed(self) -> None:
        """Count an alert that is held back."""
        self._suppressed.inc()

    def entities(self, stage: str, partition: int, store: EntityStore) -> None:
        """Tell how full a store is."""
        self._entities.labels(stage, str(partition)).set(len(store))
        self._evicted.labels(stage, str(partition)).set(store.n_evicted)
        self._cold.labels(stage, str(partition)).set(store.n_cold)
        self._buckets.labels(stage, str(partition)).set(store.n_buckets)

    def joined(self, partition: int, join: Join) -> None:
        """Tell how full a join is."""
        self._pending.labels(str(partition)).set(len(join))
        self._early.labels(str(partition)).set(join.n_early)
        self._overflowed.labels(str(partition)).set(join.n_overflowed)

    def outcomes(self, outcomes: Sequence[LabelOutcome]) -> None:
        """Count what became of labels."""
        for outcome in outcomes:
            self._outcomes.labels(outcome.outcome).inc()

    def learned(self, learner: Learner, followed: LearnerEffects) -> None:
        """Tell how much was learnt, and how good the scores were."""
        self._learned.set(learner.n_learned)
        self._frauds.set(learner.n_frauds)
        self._position.set(learner.position)
        self.quality.evaluation = learner.evaluation
        for drift in followed.drifts:
            self._drifts.labels(drift.kind).inc()

    def snapshot(self, n_bytes: int, now_ms: int) -> None:
        """Tell of a snapshot that is on its way."""
        self._snapshot_bytes.set(n_bytes)
        self._snapshot_time.set(now_ms / 1_000.0)

    def committed(self, now_ms: int) -> None:
        """Tell that offsets were committed."""
        self._commit_time.set(now_ms / 1_000.0)

    def lag(self, topic: str, partition: int, n: int) -> None:
        """Tell how many records of a partition are still to be read."""
        self._lag.labels(topic, str(partition)).set(n)
