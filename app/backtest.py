"""The reference shell: the same core over a file, with no broker.

Transactions are folded, scored and joined in event-time order; each label comes when it is
due, before any transaction of that time or later. Frauds are made known to the entities at
exactly that point, so features are those of a stream that never waits; the model learns what
is due between two batches, as a worker's does.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from app.core.entity import EntityStore
from app.core.features import FeaturePlan
from app.core.pending import Join, JoinEffects, Label
from app.core.scoring import Batch, Champion, fold_entity
from app.core.windows import FRAUD
from app.files import UNLABELLED
from app.learning import new_learner
from app.records import Position
from app.stages import scorer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from app.config import Settings
    from app.core.learner import Learner
    from app.files import Columns
    from app.records import Drift


_DAY_MS = 86_400_000


def due_after(times_ms: NDArray[np.int64], delay_ms: int) -> NDArray[np.int64]:
    """When labels are known that come ``delay_ms`` after their transactions, shape (n,)."""
    return times_ms + delay_ms


def due_whole_days(times_ms: NDArray[np.int64], days: int) -> NDArray[np.int64]:
    """When labels are known if those of day D are known from the beginning of day D + ``days``.

    >>> due_whole_days(np.array([0, 86_399_999, 86_400_000]), 8) // 86_400_000
    array([8, 8, 9])
    """
    return (times_ms // _DAY_MS + days) * _DAY_MS


@dataclass
class Result:
    """What a backtest found: scores in event-time order, shape (n,), and the learner at the end."""

    scores: NDArray[np.float64]
    alerts: NDArray[np.bool_]
    positions: NDArray[np.int64]  # of the model that gave each score
    learner: Learner
    drifts: list[Drift] = field(default_factory=list)
    n_labels: int = 0
    features: NDArray[np.float64] | None = None


class Step(NamedTuple):
    """Rows whose label is learnt, frauds of which their entities hear, then rows to score."""

    labels: NDArray[np.int64]
    frauds: NDArray[np.int64]
    start: int
    stop: int


class Backtest:
    """One pass over a file's columns.

    ``batch_max`` transactions are scored by one model, at most: 1 makes every score see every
    label that was due. ``keep_features`` holds on to the matrix (8 bytes a value).
    """

    def __init__(
        self, settings: Settings, *, batch_max: int = 512, keep_features: bool = False
    ) -> None:
        """Put the core together as a worker does, with one partition of everything."""
        self.settings, self.batch_max, self.keep_features = settings, batch_max, keep_features
        self.entities = settings.transaction.entities
        self.plan = FeaturePlan.of(settings.features, self.entities)
        self.learner = new_learner(settings, self.plan)
        self.champion = Champion.of(self.learner)
        # Reasons cost more than scores, and a file's nobody reads.
        self.scorer = replace(scorer_of(settings, self.plan, self.champion), reasons_max=0)
        bounds, waits = settings.entity, settings.join
        self.stores = [
            EntityStore(
                self.plan.windows[entity][1],
                history_max=bounds.history_max,
                entities_max=bounds.entities_max,
            )
            for entity in self.entities
        ]
        self.join = Join(
            maturity_ms=waits.maturity,
            forget_ms=waits.forget,
            early_ms=waits.early,
            negatives=waits.negatives,
            pending_max=max(waits.pending_max, 1 << 24),
            early_max=waits.early_max,
        )
        self._n_facts = self._n_labels = 0

    def run(
        self,
        columns: Columns,
        due_ms: NDArray[np.int64],
        progress: Callable[[int], Any] = int,
        told_ms: NDArray[np.int64] | None = None,
    ) -> Result:
        """Score every transaction of ``columns``; the model learns each label at its ``due_ms``.

        ``told_ms`` says when the entities are told of a fraud, if that is another time: both
        have shape (n,), epoch milliseconds. ``progress`` is called with how many transactions
        were scored just now.
        """
        n = len(columns)
        result = Result(np.empty(n), np.zeros(n, np.bool_), np.empty(n, np.int64), self.learner)
        rows = self.plan.own_columns(columns.times_ms, columns.numbers, columns.categories)
        for step in self.steps(columns, due_ms, due_ms if told_ms is None else told_ms):
            self._mark(columns, step.frauds)
            self._labels(columns, step.labels, due_ms, result)
            self._transactions(columns, rows, slice(step.start, step.stop), result)
            progress(step.stop - step.start)
        result.n_labels = self._n_labels
        result.features = rows if self.keep_features else None
        return result

    def steps(
        self, columns: Columns, due_ms: NDArray[np.int64], told_ms: NDArray[np.int64]
    ) -> Iterator[Step]:
        """What becomes known, and the transactions that see it; in the end all of both.

        No fraud becomes known to its entities within the transactions of one step.
        """
        labels = np.argsort(due_ms, kind="stable")
        labels = labels[columns.labels[labels] != UNLABELLED]
        frauds = np.argsort(told_ms, kind="stable")
        frauds = frauds[columns.labels[frauds] == FRAUD]
        due, told, times = due_ms[labels], told_ms[frauds], columns.times_ms
        cuts = np.append(np.searchsorted(times, told, side="left"), len(columns))
        start = learnt = marked = 0
        for cut in np.unique(cuts):
            while start < cut:
                stop = min(start + self.batch_max, int(cut))
                learn = int(np.searchsorted(due, times[start], side="right"))
                mark = int(np.searchsorted(told, times[start], side="right"))
                yield Step(labels[learnt:learn], frauds[marked:mark], start, stop)
                start, learnt, marked = stop, learn, mark
        yield Step(labels[learnt:], frauds[marked:], start, start)

    def _mark(self, columns: Columns, frauds: NDArray[np.int64]) -> None:
        for i in frauds.tolist():
            for store, keys in zip(self.stores, columns.keys, strict=True):
                store.mark(keys[i], columns.ids[i], is_fraud=True, source=(0, i))

    def _transactions(
        self, columns: Columns, rows: NDArray[np.float64], part: slice, result: Result
    ) -> None:
        n = part.stop - part.start
        if not n:
            return
        offsets = np.arange(part.start, part.stop, dtype=np.int64)
        batch = Batch(
            ids=columns.ids[part],
            times_ms=columns.times_ms[part],
            amounts=columns.amounts[part],
            keys=[column[part] for column in columns.keys],
            rows=rows[part],
            partitions=np.zeros(n, np.int64),
            offsets=offsets,
            published_ms=columns.times_ms[part],
            traces=[],
            segments=[
                [value or "" for value in columns.categories[name][part]]
                for name in self.scorer.segments
            ],
        )
        for index, (entity, store) in enumerate(zip(self.entities, self.stores, strict=True)):
            fold_entity(batch, index, store, self.plan.windows[entity][0])
            store.touched.clear()
        decided = self.scorer.decide(batch)
        result.scores[part], result.alerts[part] = decided.scores, decided.alerts
        result.positions[part] = decided.model.position
        followed = JoinEffects()
        for score in self.scorer.told(batch, decided, "file"):
            self.join.on_score(score, Position("scores", 0, score.source.offset), followed)
        self._follow(followed, result)

    def _labels(
        self, columns: Columns, at: NDArray[np.int64], due_ms: NDArray[np.int64], result: Result
    ) -> None:
        followed = JoinEffects()
        for i in at.tolist():
            label = Label(columns.ids[i], bool(columns.labels[i]), int(due_ms[i]), "file")
            self.join.on_label(label, Position("labels", 0, self._n_labels), followed)
            self._n_labels += 1
        self._follow(followed, result)

    def _follow(self, followed: JoinEffects, result: Result) -> None:
        if not followed.examples:
            return
        facts = list(enumerate(followed.examples, start=self._n_facts))
        self._n_facts += len(facts)
        result.drifts += self.learner.apply(facts).drifts
        self.champion.follow(self.learner)


def report(result: Result) -> dict[str, Any]:
    """A backtest in figures; the quality ones are prequential, over all scores with a label."""
    evaluation = result.learner.evaluation
    return {
        "transactions": len(result.scores),
        "alerts": int(result.alerts.sum()),
        "labels": result.n_labels,
        "learned": result.learner.n_learned,
        "frauds": result.learner.n_frauds,
        "average_precision": _or_none(evaluation.average_precision),
        "roc_auc": _or_none(evaluation.roc_auc),
        "brier": _or_none(evaluation.brier),
        "calibration_error": _or_none(evaluation.calibration_error),
        "drift_alerts": len(result.drifts),
        "model": result.learner.model.__class__.__name__,
        "model_digest": result.learner.digest,
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 6)
