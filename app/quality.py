"""How good scores and alerts are, as Prometheus reads it: live, and masked by maturity."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.core.evaluation import mean_of
from app.core.measures.delays import AGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from app.core.evaluation import Evaluation
    from app.core.measures.groups import Group


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
        for name, text in QUALITY.items():
            family = GaugeMetricFamily(name, text)
            if not math.isnan(value := figures.get(name, math.nan)):
                family.add_metric([], value)
            yield family
        for name, text, figure in BY_SEGMENT:
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


QUALITY: Final = {
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
BY_SEGMENT: Final[tuple[tuple[str, str, Callable[[Group], float]], ...]] = (
    ("weir_segment_labelled", "Labelled transactions.", lambda g: g.decisions.n),
    ("weir_segment_average_precision", "Of a segment.", lambda g: g.average_precision),
    ("weir_segment_alert_ratio", "Alerts among transactions.", lambda g: g.decisions.alert_rate),
    ("weir_segment_false_positive_rate", "Alerts among the legitimate.",
     lambda g: g.decisions.false_positive_rate),
)  # fmt: skip
