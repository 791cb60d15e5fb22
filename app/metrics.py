"""What Prometheus sees: base units, prefix ``weir_``, closed label sets, one call a batch.

``docs/metrics.md`` is generated from what is declared here (``weir metrics --markdown``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, get_args, get_type_hints

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Info, ProcessCollector

from app import __version__
from app.collectors import BatchHistogram, Pulled
from app.core.fallback import MODEL, STAMPS
from app.core.pending import MATURITY
from app.quality import BY_SEGMENT, QUALITY, Quality
from app.records import Drift, Example, LabelOutcome
from app.tasks import Bounded, Levelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from app.core.learner import Learner, LearnerEffects
    from app.errors import Malformed
    from app.tasks import Level

#: Seconds: from below one fetch to a minute behind.
_LATENCY_S: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)
#: Seconds: a batch of one takes a tenth of a millisecond, one that takes seconds is in trouble.
_WORK_S: Final = (0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)
_RECORDS: Final = (1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0)
_SCORE: Final = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
#: Seconds: an hour, an investigator's shift, a day, a week, a chargeback's month and quarter.
_DELAY_S: Final = tuple(h * 3_600.0 for h in (1, 8, 24, 72, 168, 336, 720, 1_440, 2_160))


#: Parts of a record that weir names; whatever else a publisher has is a "field".
_PARTS: Final = ("value", "key", "schema")

#: Law 11: what is kept in memory is bounded, and what happens at the bound.
BOUNDS: Final = {
    "entity.entities_max": "Entities a partition; those longest without news leave.",
    "entity.history_max": "Transactions kept exactly, of all entities known; older go to buckets.",
    "entity.buckets_max": "Buckets of what is older, of all entities known; the oldest go.",
    "entity.expected_max": "Confirmed labels ahead of their transaction; the oldest are forgotten.",
    "join.pending_max": "Scored transactions that are known; the oldest are forgotten.",
    "join.disk_max": "The same, where they lie on disk; the oldest are forgotten.",
    "join.early_max": "Labels that wait for their transaction; the oldest become unknown.",
    "policy.repeats.entities_max": "Entities whose last alert is known; the oldest are forgotten.",
    "learner.learnt_max": "Transactions lately learnt; older could be learnt again.",
    "learner.investigators.waiting_max": "Labels of people yet to be learnt; the oldest go on.",
    "evaluation.cards_max": "Cards with frauds; those longest without news leave.",
    "evaluation.days_max": "Days by which figures are kept (more if maturity asks it).",
    "evaluation.values_max": "Values of a segment, the fullest; the rest is counted together.",
    "access.streams_max": "Readers of /v1/events; one more is refused.",
    "board.held_max": "Alerts that the pages show, or outcomes, or dead letters; the oldest leave.",
    "audit.remembered_max": "Entries lately made; what is said again later is entered again.",
    "snapshot_bytes": "Size of the last snapshot; a larger one is not taken by the broker.",
}


def _words(struct: type, field: str) -> tuple[str, ...]:
    """The words that a field may hold: a series that begins with its first one has no increase."""
    words: tuple[str, ...] = get_args(get_type_hints(struct)[field])
    return words


class Declared(NamedTuple):
    """A metric as the table shows it."""

    group: str
    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


_FULL: Final = {
    "weir_bound": ("What is kept in memory may become so much.", ("bound", "stage", "partition")),
    "weir_bound_used": ("How much of it is in use.", ("bound", "stage", "partition")),
}
_STAGE: Final = ("stage", "partition")
_JOIN: Final = ("partition",)
STATE: Final = {
    "weir_entities": ("Entities known.", _STAGE),
    "weir_entities_evicted": ("Entities let go at entities_max since the start.", _STAGE),
    "weir_entities_on_disk": ("Entities known that are not in memory.", _STAGE),
    "weir_entity_buckets": ("Buckets of what left the entities' rings.", _STAGE),
    "weir_pending": ("Transactions that wait for a label or maturity.", _JOIN),
    "weir_labels_early": ("Labels that wait for their transaction.", _JOIN),
    "weir_pending_overflowed": ("Transactions forgotten at pending_max.", _JOIN),
    "weir_pending_on_disk": ("Of weir_pending, those on disk.", _JOIN),
    "weir_join_read_again": (
        "Scores and labels read again when the partition was taken.",
        _JOIN,
    ),
}
_FAILING: Final = {
    "weir_failing": ("1 for each reason that /readyz gives, else none.", ("reason",))
}
_USED: Final = {"weir_model_used_position": ("Offset of the last example of the model in use.", ())}


class Metrics:
    """All metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        """Declare every metric."""
        self.registry = CollectorRegistry()
        self.declared: list[Declared] = []
        # Asked at each reading.
        self.bounded: Callable[[], Iterable[object]] = tuple  # what holds memory
        self.reasons: Callable[[], Iterable[str]] = tuple  # why the process is not ready
        self.in_use: Callable[[], Iterable[int]] = tuple  # position of the model that scores
        self._of_process()
        self._of_stages()
        self._of_scoring()
        self._of_state()
        self._of_labels()
        self._of_learning()

    def _declare(self, group: str, name: str, kind: str, labels: Iterable[str], text: str) -> None:
        self.declared.append(Declared(group, name, kind, tuple(labels), text))

    def _counter(self, group: str, name: str, text: str, *labels: str) -> Counter:
        self._declare(group, f"{name}_total", "counter", labels, text)
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, group: str, name: str, text: str, *labels: str) -> Gauge:
        self._declare(group, name, "gauge", labels, text)
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(
        self, group: str, name: str, text: str, bounds: Sequence[float], label: str = ""
    ) -> BatchHistogram:
        made = BatchHistogram(name, text, bounds, label)
        self._declare(group, name, "histogram", [label] if label else [], text)
        self.registry.register(made)
        return made

    def _pulled(
        self,
        group: str,
        told: Mapping[str, tuple[str, tuple[str, ...]]],
        ask: Callable[[], Iterable[tuple[str, tuple[str, ...], float]]],
    ) -> None:
        for name, (text, labels) in told.items():
            self._declare(group, name, "gauge", labels, text)
        self.registry.register(Pulled(told, ask))

    def _of_process(self) -> None:
        text = "Version of this process."
        self._declare("Process", "weir_build_info", "info", ("version",), text)
        Info("weir_build", text, registry=self.registry).info({"version": __version__})
        # Memory, CPU and open files under the names that every dashboard knows: process_*.
        ProcessCollector(registry=self.registry)
        self._pulled(
            "Process", _FAILING, lambda: (("weir_failing", (r,), 1.0) for r in self.reasons())
        )
        self._pulled("Memory", _FULL, self._how_full)

    def _how_full(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        for task in self.bounded():
            if isinstance(task, Bounded):
                for bound in task.bounds():
                    at = (bound.name, bound.stage, str(bound.partition))
                    yield "weir_bound", at, float(bound.limit)
                    yield "weir_bound_used", at, float(bound.used)

    def _of_stages(self) -> None:
        group = "Stages and Kafka"
        self._consumed = self._counter(group, "weir_records_consumed", "Records read.", "stage")
        self._dead = self._counter(
            group, "weir_dead_letters", "Records that could not be read.", "topic", "reason"
        )
        self.work = self._histogram(
            group, "weir_stage_duration_seconds", "What a stage takes for a batch, writing apart.",
            _WORK_S, "stage",
        )  # fmt: skip
        self.batches = self._histogram(
            group, "weir_batch_records", "Records of a partition taken at once.", _RECORDS, "stage"
        )
        self.deliveries = self._histogram(
            group, "weir_delivery_duration_seconds", "Until what a turn wrote is acknowledged.",
            _WORK_S, "part",
        )  # fmt: skip
        self._lag = self._gauge(
            group, "weir_consumer_lag_records", "Records not yet read.", "topic", "partition"
        )
        self._commit_time = self._gauge(
            group, "weir_commit_timestamp_seconds", "When offsets were last committed."
        )
        self._commits = self._counter(group, "weir_commits", "Commits of offsets.", "result")
        for result in ("ok", "overtaken"):
            self._commits.labels(result)

    def _of_scoring(self) -> None:
        group = "Scores and alerts"
        self._scored = self._counter(group, "weir_transactions_scored", "Transactions scored.")
        self._alerts = self._counter(group, "weir_alerts", "Scores that became alerts.")
        self._suppressed = self._counter(
            group, "weir_alerts_suppressed", "Alerts held back: one of the same entity was shown."
        )
        self._fallback = self._counter(
            group, "weir_fallback_scores", "Scores that are not simply the model's.", "reason"
        )
        for stamp in STAMPS[1:]:
            self._fallback.labels(stamp)
        self._model_age = self._gauge(
            group,
            "weir_model_age_seconds",
            "How long the model in use has not learnt what there is.",
        )
        self._budget = self._gauge(
            group, "weir_alert_budget_per_day", "Alerts a day that people have time for."
        )
        self.latency = self._histogram(
            group, "weir_score_latency_seconds", "From publishing a transaction to its score.",
            _LATENCY_S,
        )  # fmt: skip
        self.scores = self._histogram(group, "weir_score", "Scores given.", _SCORE)

    def _of_state(self) -> None:
        self._pulled("State", STATE, self._how_it_stands)

    def _how_it_stands(self) -> Iterator[Level]:
        for task in self.bounded():
            if isinstance(task, Levelled):
                yield from task.levels()

    def _of_labels(self) -> None:
        group = "Labels"
        self._outcomes = self._counter(
            group, "weir_labels", "Labels by what became of them.", "outcome"
        )
        for outcome in _words(LabelOutcome, "outcome"):
            self._outcomes.labels(outcome)
        self.delays = self._histogram(
            group, "weir_label_delay_seconds", "From a transaction to its label, event time.",
            _DELAY_S,
        )  # fmt: skip
        self._label_time = self._gauge(
            group, "weir_label_timestamp_seconds", "When a label was last learnt."
        )

    def _of_learning(self) -> None:
        group = "Model and drift"
        self._learned = self._gauge(
            group, "weir_examples_learned", "Examples the model has learnt."
        )
        self._frauds = self._gauge(group, "weir_frauds_learned", "Frauds among them.")
        self._position = self._gauge(
            group, "weir_model_position", "Offset of the last example the learner has learnt."
        )
        self._learner_lag = self._gauge(
            group, "weir_learner_lag_seconds", "How long the last example had lain when learnt."
        )
        self._pulled(
            group, _USED, lambda: (("weir_model_used_position", (), p) for p in self.in_use())
        )
        self._snapshot_bytes = self._gauge(
            group, "weir_snapshot_bytes", "Size of the last snapshot."
        )
        self._snapshot_time = self._gauge(
            group, "weir_snapshot_timestamp_seconds", "When the last snapshot was written."
        )
        self._differ = self._counter(
            group, "weir_models_differ", "Snapshots that contradict another of the same log."
        )
        self._drifts = self._counter(group, "weir_drifts", "Changes announced.", "kind")
        for kind in _words(Drift, "kind"):
            self._drifts.labels(kind)
        self._distance = self._gauge(
            group, "weir_drift_distance", "How far it has moved; an incident opens at 1.",
            "kind", "subject",
        )  # fmt: skip
        self.quality = Quality()
        self.registry.register(self.quality)
        for name, told in QUALITY.items():
            self._declare("Quality", name, "gauge", (), told)
        for name, told, _ in BY_SEGMENT:
            self._declare("Quality", name, "gauge", ("segment", "value"), told)

    # ---- What the shells tell.

    def totals(self) -> dict[str, int]:
        """How much there was since the start, for people: scored, alerts, dead letters, lag."""
        return {
            "n_scored": round(_sum(self._scored)),
            "n_alerts": round(_sum(self._alerts)),
            "n_dead_letters": round(_sum(self._dead)),
            "lag": round(_sum(self._lag)),
        }

    def consumed(self, stage: str, n: int) -> None:
        """Count a batch that a stage has read."""
        self._consumed.labels(stage).inc(n)

    def applied(self, stage: str, n: int, took_s: float) -> None:
        """Count a batch and what it took."""
        self.work.observe_one(took_s, stage)
        self.batches.observe_one(n, stage)

    def delivered(self, part: str, took_s: float) -> None:
        """Tell how long a turn's ``first``, ``outputs`` or ``state`` took to be acknowledged."""
        self.deliveries.observe_one(took_s, part)

    def dead_letter(self, topic: str, error: Malformed) -> None:
        """Count a record that could not be read; the reason is one of a few words."""
        reason = error.reason or (error.field if error.field in _PARTS else "field")
        self._dead.labels(topic, reason).inc()

    def scored(
        self, scores: NDArray[np.float64], alerts: NDArray[np.bool_], latency_ms: NDArray[np.int64]
    ) -> None:
        """Count a batch of scores, shape (n,)."""
        n_alerts = int(alerts.sum())
        self._scored.inc(len(scores))
        self._alerts.inc(n_alerts)
        self.scores.observe(scores)
        self.latency.observe(latency_ms / 1_000.0)

    def told_by(self, fallback: NDArray[np.int8], unlearnt_ms: int) -> None:
        """Count whose scores they were; tell how old the model is."""
        self._model_age.set(unlearnt_ms / 1_000.0)
        other = fallback[fallback != MODEL]
        for code in set(other.tolist()):
            self._fallback.labels(STAMPS[code]).inc(int((fallback == code).sum()))

    def suppressed(self) -> None:
        """Count an alert that is held back."""
        self._suppressed.inc()

    def budget(self, alerts_per_day: float) -> None:
        """Tell how many alerts a day there should be."""
        self._budget.set(alerts_per_day)

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
            if drift.event == "opened":
                self._drifts.labels(drift.kind).inc()
        for (kind, subject), height in learner.monitor.heights().items():
            self._distance.labels(kind, subject).set(height)

    def labelled(self, records: Iterable[object], published_ms: int, now_ms: int) -> None:
        """Tell how late the labels among some examples came, and how late they are learnt."""
        told = [r for r in records if isinstance(r, Example) and r.label_source != MATURITY]
        if told:
            self._label_time.set(now_ms / 1_000.0)
            late = np.array([r.label_time_ms - r.time_ms for r in told], np.float64)
            self.delays.observe(late / 1_000.0)
        self._learner_lag.set(max(now_ms - published_ms, 0) / 1_000.0)

    def snapshot(self, n_bytes: int, now_ms: int) -> None:
        """Tell of a snapshot that is on its way."""
        self._snapshot_bytes.set(n_bytes)
        self._snapshot_time.set(now_ms / 1_000.0)

    def models_differ(self) -> None:
        """Count a snapshot that another learner's contradicts."""
        self._differ.inc()

    def committed(self, now_ms: int) -> None:
        """Tell that offsets were committed."""
        self._commits.labels("ok").inc()
        self._commit_time.set(now_ms / 1_000.0)

    def commit_overtaken(self) -> None:
        """Tell that the group had moved on before a commit."""
        self._commits.labels("overtaken").inc()

    def lag(self, topic: str, partition: int, n: int) -> None:
        """Tell how many records of a partition are still to be read."""
        self._lag.labels(topic, str(partition)).set(n)

    def released(self) -> None:
        """Forget what was told by partition: it may be another's from now on."""
        self._lag.clear()


def _sum(metric: Counter | Gauge) -> float:
    """All samples of a metric, but for when it was made."""
    samples = (sample for family in metric.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if not sample.name.endswith("_created"))
