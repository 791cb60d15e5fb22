"""The reference shell: the same core over a file, with no broker.

Transactions are folded, scored and joined in event-time order; each label comes when it is
due, before any transaction of that time or later. Frauds are made known to the entities at
exactly that point, so features are those of a stream that never waits; the model learns what
is due between two batches, as a worker's does.

Features and what is learnt when do not depend on the model. So a file is folded once, however
many models are compared (``Stream``); each of them is a ``Lane`` beside the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np

from app.core.buckets import FRAUD
from app.core.drift.sample import pack
from app.core.early import Label
from app.core.entity import EntityStore
from app.core.features import FeaturePlan
from app.core.pending import Join, JoinEffects, moments, step_of
from app.core.scoremap import bins_of
from app.core.scoring import Batch, Champion, fold_entity, segment_of
from app.files import UNLABELLED
from app.learning import new_learner
from app.records import Example, ModelVersion, Position, Score, Source, Summary
from app.stages import scorer_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.config import Settings
    from app.core.learner import Learner
    from app.files import Columns
    from app.records import Drift

Fact = tuple[int, Example | Summary]  # offset in the log of examples, record

_DAY_MS: Final = 86_400_000
#: Tables that decide what a stream is.
_SHARED: Final = ("transaction", "features", "entity", "join")
_NOBODY: Final = ModelVersion("", -1, "")


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


class Turn(NamedTuple):
    """A step as every model sees it: facts to learn, rows to score, facts that these brought."""

    before: list[Fact]
    part: slice
    after: list[Fact]


class Entities:
    """What is known of every entity, folded from columns; one partition of everything."""

    def __init__(self, settings: Settings, plan: FeaturePlan) -> None:
        """Begin with no entity known."""
        bounds, of = settings.entity, settings.transaction
        self.plan, self.names, self.segments = plan, of.entities, of.segments
        self.stores = [
            EntityStore(
                plan.windows[entity][1],
                history_max=bounds.history_max,
                entities_max=bounds.entities_max,
                bucket_ms=bounds.bucket,
                buckets_max=bounds.buckets_max,
            )
            for entity in self.names
        ]

    def mark(
        self, keys: Sequence[str], identity: str, *, is_fraud: bool, offset: int, time_ms: int
    ) -> None:
        """Tell the entities of a transaction, by its ``keys``, what it was."""
        for store, key in zip(self.stores, keys, strict=True):
            store.mark(key, identity, is_fraud=is_fraud, source=(0, offset), time_ms=time_ms)

    def batch(
        self, columns: Columns, rows: NDArray[np.float64], part: slice, first: int = 0
    ) -> Batch:
        """Rows of a file as a batch; ``first`` is the offset of the first of its columns."""
        n = part.stop - part.start
        return Batch(
            ids=columns.ids[part],
            times_ms=columns.times_ms[part],
            amounts=columns.amounts[part],
            keys=[column[part] for column in columns.keys],
            rows=rows[part],
            partitions=np.zeros(n, np.int64),
            offsets=np.arange(first + part.start, first + part.stop, dtype=np.int64),
            published_ms=columns.times_ms[part],
            traces=[],
            segments=[
                list(map(segment_of, columns.categories[name][part])) for name in self.segments
            ],
        )

    def fold(self, batch: Batch) -> None:
        """Apply a batch; fill the columns of its rows that look at entities."""
        for index, (entity, store) in enumerate(zip(self.names, self.stores, strict=True)):
            fold_entity(batch, index, store, self.plan.windows[entity][0])
            store.forget_changes()


class Stream:
    """A file as every model sees it: features, and which facts are learnt before which rows.

    ``turns`` folds as it goes, once; ``rows`` are the features, shape (n, features), whole when
    it has ended. What it yields may be kept and gone through again, for another model.
    """

    def __init__(
        self, settings: Settings, plan: FeaturePlan, columns: Columns, *, batch_max: int = 512
    ) -> None:
        """Put entities and join together as a worker does."""
        self.columns, self.plan, self.batch_max = columns, plan, batch_max
        self.entities = Entities(settings, plan)
        self.rows = plan.own_columns(columns.times_ms, columns.numbers, columns.categories)
        waits = settings.join
        self.join = Join(
            maturity_ms=waits.maturity,
            forget_ms=waits.forget,
            early_ms=waits.early,
            negatives=waits.negatives,
            pending_max=max(waits.pending_max, 1 << 24),
            early_max=waits.early_max,
        )
        self.n_labels = self._n_facts = 0

    def turns(self, due_ms: NDArray[np.int64], told_ms: NDArray[np.int64]) -> Iterator[Turn]:
        """Go through the file; ``due_ms``, ``told_ms`` are as ``Backtest.run`` takes them."""
        columns = self.columns
        for step in steps(columns, due_ms, told_ms, self.batch_max):
            for i in step.frauds.tolist():
                keys = [column[i] for column in columns.keys]
                time_ms = int(columns.times_ms[i])
                self.entities.mark(keys, columns.ids[i], is_fraud=True, offset=i, time_ms=time_ms)
            before = self._labels(step.labels, due_ms)
            part = slice(step.start, step.stop)
            if step.stop > step.start:
                self.entities.fold(self.batch(part))
            yield Turn(before, part, self._scored(part))

    def batch(self, part: slice) -> Batch:
        """Some rows as a batch."""
        return self.entities.batch(self.columns, self.rows, part)

    def whole(self, facts: list[Fact]) -> list[Fact]:
        """The facts with everything in them that no model has said."""
        return [(offset, self._whole(fact)) for offset, fact in facts]

    def _labels(self, at: NDArray[np.int64], due_ms: NDArray[np.int64]) -> list[Fact]:
        followed, columns = JoinEffects(), self.columns
        for i in at.tolist():
            label = Label(columns.ids[i], bool(columns.labels[i]), int(due_ms[i]), "file")
            self.join.on_label(label, Position("labels", 0, self.n_labels), followed)
            self.n_labels += 1
        return self._facts(followed)

    def _scored(self, part: slice) -> list[Fact]:
        """Let the join know of scores: which they are makes no difference to it.

        In their stead it hands on the row (``raw``), from which each lane takes its own; nor does
        it keep features, of which it would need a copy for all that wait.
        """
        followed, columns, schema = JoinEffects(), self.columns, self.plan.schema
        for i in range(part.start, part.stop):
            time_ms = int(columns.times_ms[i])
            score = Score(
                transaction_id=columns.ids[i],
                time_ms=time_ms,
                entities={},
                amount=float(columns.amounts[i]),
                score=0.0,
                is_alert=False,
                features=[],
                feature_schema=schema,
                model=_NOBODY,
                source=Source("file", 0, i, time_ms),
                raw=float(i),
            )
            self.join.on_score(score, Position("scores", 0, i), followed)
        return self._facts(followed)

    def _facts(self, followed: JoinEffects) -> list[Fact]:
        facts = list(enumerate(followed.examples, start=self._n_facts))
        self._n_facts += len(facts)
        return facts

    def _whole(self, fact: Example | Summary) -> Example | Summary:
        if isinstance(fact, Summary):
            step = step_of(fact.n, fact.last_time_ms - fact.first_time_ms)
            part, columns = rows_of(fact, step), self.columns
            rows = self.rows[part]
            means, squares = moments(rows)
            return msgspec.structs.replace(
                fact,
                feature_means=means,
                feature_squares=squares,
                rows=pack(rows),
                row_ids=columns.ids[part],
                row_times_ms=columns.times_ms[part].tolist(),
                row_segments={
                    name: list(map(segment_of, columns.categories[name][part]))
                    for name in self.entities.segments
                },
            )
        row, columns, entities = row_of(fact), self.columns, self.entities
        keys = [column[row] for column in columns.keys]
        segments = {name: segment_of(columns.categories[name][row]) for name in entities.segments}
        return msgspec.structs.replace(
            fact,
            entities=dict(zip(entities.names, keys, strict=True)),
            features=self.rows[row].tolist(),
            segments=segments,
        )


def row_of(example: Example) -> int:
    """Which row of a ``Stream`` an example is about, before a lane has put its scores in."""
    return int(example.raw)


def rows_of(summary: Summary, step: int = 1) -> slice:
    """Which rows a summary is about, or one in ``step``: in a file, row and offset are one."""
    return slice(summary.first_offset, summary.last_offset + 1, step)


class Lane:
    """One model beside others: its learner, what decides with it, and what it said so far."""

    def __init__(self, settings: Settings, plan: FeaturePlan, n: int) -> None:
        """Make room for scores of n transactions."""
        self.learner = new_learner(settings, plan)
        self.champion = Champion.of(self.learner)
        # Reasons cost more than scores, and a file's nobody reads.
        self.scorer = replace(scorer_of(settings, plan, self.champion), reasons_max=0)
        self.result = Result(
            np.empty(n), np.zeros(n, np.bool_), np.empty(n, np.int64), self.learner
        )
        self._raw, self._propensity = np.empty(n), np.empty(n)

    def score(self, batch: Batch, part: slice) -> None:
        """Score a batch, the rows ``part``."""
        decided, said = self.scorer.decide(batch), self.result
        said.scores[part], said.alerts[part] = decided.scores, decided.alerts
        said.positions[part] = decided.model.position
        self._raw[part], self._propensity[part] = decided.raw, decided.propensity

    def learn(self, facts: Sequence[Fact]) -> None:
        """Learn facts, each with what this lane has said about its rows."""
        if not facts:
            return
        own = [(offset, self._own(fact)) for offset, fact in facts]
        self.result.drifts += self.learner.apply(own).drifts
        self.champion.follow(self.learner)

    def _own(self, fact: Example | Summary) -> Example | Summary:
        if isinstance(fact, Summary):
            part = rows_of(fact)
            scores = self.result.scores[part]
            return msgspec.structs.replace(
                fact,
                n_alerts=int(self.result.alerts[part].sum()),
                mean_score=sum(scores.tolist()) / len(scores),
                bins=np.sort(bins_of(scores)).tolist(),
            )
        row = row_of(fact)
        return msgspec.structs.replace(
            fact,
            score=float(self.result.scores[row]),
            is_alert=bool(self.result.alerts[row]),
            propensity=float(self._propensity[row]),
            raw=float(self._raw[row]),
        )


class Backtest:
    """One pass over a file's columns.

    ``batch_max`` transactions are scored by one model, at most: 1 makes every score see every
    label that was due. ``keep_features`` holds on to the matrix (8 bytes a value). ``lanes`` are
    the settings of each model to compare, by a name for it; only ``[model]`` and ``[policy]`` may
    differ from ``settings``. Without them there is one lane.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        batch_max: int = 512,
        keep_features: bool = False,
        lanes: Mapping[str, Settings] | None = None,
    ) -> None:
        """Plan the features; nothing is folded yet."""
        self.settings, self.batch_max, self.keep_features = settings, batch_max, keep_features
        self.plan = FeaturePlan.of(settings.features, settings.transaction.entities)
        self.lanes = dict(lanes or {settings.model.name: settings})
        for name, its in self.lanes.items():
            if any(getattr(its, table) != getattr(settings, table) for table in _SHARED):
                raise ValueError(f"lane {name} differs in one of {_SHARED}; expected one stream")

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
        were scored just now. Of several lanes the first one's result is returned.
        """
        return next(iter(self.compare(columns, due_ms, progress, told_ms).values()))

    def compare(
        self,
        columns: Columns,
        due_ms: NDArray[np.int64],
        progress: Callable[[int], Any] = int,
        told_ms: NDArray[np.int64] | None = None,
    ) -> dict[str, Result]:
        """As ``run``, for every lane at once; each gives what it would give alone."""
        n = len(columns)
        lanes = {name: Lane(its, self.plan, n) for name, its in self.lanes.items()}
        stream = Stream(self.settings, self.plan, columns, batch_max=self.batch_max)
        for turn in stream.turns(due_ms, due_ms if told_ms is None else told_ms):
            advance(stream, turn, list(lanes.values()))
            progress(turn.part.stop - turn.part.start)
        results = {name: lane.result for name, lane in lanes.items()}
        for result in results.values():
            result.n_labels = stream.n_labels
            result.features = stream.rows if self.keep_features else None
        return results

    def steps(
        self, columns: Columns, due_ms: NDArray[np.int64], told_ms: NDArray[np.int64]
    ) -> Iterator[Step]:
        """What becomes known, and the transactions that see it; in the end all of both."""
        return steps(columns, due_ms, told_ms, self.batch_max)


def advance(stream: Stream, turn: Turn, lanes: Sequence[Lane]) -> None:
    """Take every lane through one turn."""
    before, after = stream.whole(turn.before), stream.whole(turn.after)
    batch = stream.batch(turn.part) if turn.part.stop > turn.part.start else None
    for lane in lanes:
        lane.learn(before)
        if batch is not None:
            lane.score(batch, turn.part)
        lane.learn(after)


def steps(
    columns: Columns, due_ms: NDArray[np.int64], told_ms: NDArray[np.int64], batch_max: int
) -> Iterator[Step]:
    """What becomes known, and the transactions that see it; in the end all of both.

    No fraud becomes known to its entities within the transactions of one step.
    """
    told_ms = np.maximum(told_ms, columns.times_ms + 1)  # never with its own transaction
    labels = np.argsort(due_ms, kind="stable")
    labels = labels[columns.labels[labels] != UNLABELLED]
    frauds = np.argsort(told_ms, kind="stable")
    frauds = frauds[columns.labels[frauds] == FRAUD]
    due, told, times = due_ms[labels], told_ms[frauds], columns.times_ms
    cuts = np.append(np.searchsorted(times, told, side="left"), len(columns))
    start = learnt = marked = 0
    for cut in np.unique(cuts):
        while start < cut:
            stop = min(start + batch_max, int(cut))
            learn = int(np.searchsorted(due, times[start], side="right"))
            mark = int(np.searchsorted(told, times[start], side="right"))
            yield Step(labels[learnt:learn], frauds[marked:mark], start, stop)
            start, learnt, marked = stop, learn, mark
    yield Step(labels[learnt:], frauds[marked:], start, start)


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
        "drift_alerts": sum(drift.event == "opened" for drift in result.drifts),
        "model": result.learner.model.__class__.__name__,
        "model_digest": result.learner.digest,
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 6)
