"""The join of scores and labels: scored transactions wait for what is later known of them.

A fold over two logs of one partition, ``scores`` and ``labels``. Its state is nothing but
what stands in those logs, so it needs no changelog: to restore it is to read both again from
the oldest record that still matters (``low``) and to keep quiet. Time is event time: the
clock of a partition is the highest transaction time seen in it.

    state of the transaction | record           | what follows
    -------------------------+------------------+---------------------------------------------
    not known                | score            | waits
    not known                | label            | early: waits for its transaction
    not known                | label, too long  | unknown: a dead letter
    waiting                  | score again      | nothing: the first score is the canonical one
    waiting                  | label            | an example; confirmed fraud goes to the entities
    waiting                  | maturity         | a legitimate example, sampled
    labelled, matured        | label, the same  | duplicate (after maturity: expired)
    labelled, matured        | label, another   | an example that corrects
    labelled, matured        | long after       | forgotten
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from app.core.drift.sample import pack
from app.core.early import Early, Label, Unknown, Waited
from app.core.scoremap import bins_of
from app.core.waitlist import Known, Waiting, Waitlist, is_sampled
from app.records import Example, LabelOutcome, Position, Summary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from app.core.waitlist import Scored
    from app.records import Outcome, Score

#: 256 scores: a mean whose noise is a sixteenth of one score's, and a line in the log that
#: costs a two-hundredth of theirs. Where they take longer, an hour's are told of when it is over.
SUMMARY_SCORES = 256

#: One in 8, where traffic is high: their means are those of millions, and to read the features
#: costs as much as the rest.
LOOKED_AT = 8
#: All of them below 1,024 an hour and partition: there a change shows as soon as rows can tell it.
_ROWS_AN_HOUR = 1_024.0
_HOUR_MS = 3_600_000

MATURITY = "maturity"


class Confirmed(NamedTuple):
    """A label that the entities of its transaction should know."""

    score: Score
    is_fraud: bool


@dataclass(slots=True)
class JoinEffects:
    """What the world should be told."""

    examples: list[Example | Summary] = field(default_factory=list)
    outcomes: list[LabelOutcome] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)
    confirmed: list[Confirmed] = field(default_factory=list)


@dataclass
class Join:
    """Scores and labels of one partition; durations in milliseconds of event time.

    Bounds: ``pending_max`` transactions (the oldest leave, as forgotten) and ``early_max``
    labels (the oldest become unknown).
    """

    maturity_ms: int
    forget_ms: int
    early_ms: int
    negatives: float = 1.0
    pending_max: int = 1_000_000
    early_max: int = 100_000
    clock_ms: int = -1
    n_overflowed: int = 0
    #: While its logs are read again, scores before labels, no time passes: whom a label still
    #: concerns is not known before the labels were read. ``restored`` ends it.
    is_restoring: bool = False
    waited: Waited | None = None
    #: Where transactions wait: in memory, or on a disk.
    known: Known = field(default_factory=Waitlist)
    #: Scores below are known already; what no summary tells of is read again.
    resumed_at: int = 0

    def __post_init__(self) -> None:
        """Start with nothing known but what lies on a disk."""
        self.early = Early(self.early_ms, self.early_max, keeps_changes=self.known.is_durable)
        self._run: list[Scored] = []  # scores since the last summary
        self._run_first = -1
        self._run_last = Position("", 0, -1)

    def __len__(self) -> int:
        """How many transactions are known, labelled or not."""
        return len(self.known)

    @property
    def n_early(self) -> int:
        """How many labels wait for their transaction."""
        return len(self.early)

    def low(self, scores_next: int, labels_next: int) -> tuple[int, int]:
        """Offsets in scores and labels from which this state can be read again."""
        scores = [scores_next, self.known.low_score(), self._run_first if self._run else None]
        labels = [labels_next, self.known.low_label(), self.early.low()]
        return _least(scores), _least(labels)

    def resume(self, scores_next: int, clock_ms: int, early: Iterable[Unknown]) -> None:
        """Go on from a state that lies on a disk."""
        self.resumed_at, self.clock_ms = scores_next, clock_ms
        for unknown in early:
            self.early.wait(unknown)
        self._written()

    def expect(self, ids: Sequence[str], until_ms: int = -1, *, labelled: bool = False) -> None:
        """Prepare for a batch: scores up to this time, or labels. Changes nothing but the cost."""
        self.known.expect(ids, until_ms, labelled=labelled)

    def write(self) -> None:
        """Have the disk hold the state as it is, if there is one."""
        changes = self.early.changes or {}
        self.known.write(self.clock_ms, self._run_first if self._run else -1, changes)
        self._written()

    def restored(self) -> None:
        """Let the time pass that passed before; what followed then is not said again."""
        self._mature(Position("", 0, -1), JoinEffects())
        while len(self.known) > self.pending_max:
            self._let_oldest_go()
        self.is_restoring = False

    def on_score(self, score: Scored, at: Position, effects: JoinEffects) -> None:
        """Keep a scored transaction until its label or its maturity."""
        if at.offset < self.resumed_at:
            self._join_run(score, at)
            return
        self._summarise(score, at, effects)
        self.clock_ms = max(self.clock_ms, score.time_ms)
        if self.known.get(score.transaction_id) is None:
            self._keep(score, at, effects)
        effects.unknown += self.early.expire(self.clock_ms)  # whose transaction is not this one
        if not self.is_restoring:
            self._mature(at, effects)

    def _keep(self, score: Scored, at: Position, effects: JoinEffects) -> None:
        if len(self.known) >= self.pending_max and not self.is_restoring:
            self._let_oldest_go()
            self.n_overflowed += 1
        waiting = Waiting(score, at.offset, score.time_ms + self.maturity_ms)
        self.known.add(waiting)
        waited = self.early.take(score.transaction_id)
        if waited:
            self.known.label(waiting, waited[0].at.offset)
        for label, place in waited:
            self._meet(waiting, label, place, effects)

    def _let_oldest_go(self) -> None:
        oldest = self.known.oldest()
        if oldest is not None:
            self.known.let_go(oldest)
        self._relieve()

    def _relieve(self) -> None:
        """While logs are read again all that is known was committed, and may be written."""
        if self.is_restoring and self.known.is_full:
            self.write()

    def _written(self) -> None:
        if self.early.changes is not None:
            self.early.changes.clear()

    def find(self, transaction_id: str) -> Waiting | None:
        """What is known of a scored transaction; None: nothing, or it was forgotten."""
        return self.known.peek(transaction_id)

    def expects(self, transaction_id: str, *, is_fraud: bool) -> Outcome:
        """What a label would lead to if it came next; the learner has the last word."""
        waiting = self.known.peek(transaction_id)
        if waiting is None:
            return "early"
        known = False if waiting.is_matured and waiting.is_fraud is None else waiting.is_fraud
        if known is None:
            return "learn"
        if known is not is_fraud:
            return "corrected"
        return "expired" if waiting.is_matured else "duplicate"

    def on_label(self, label: Label, at: Position, effects: JoinEffects) -> None:
        """Let a label meet its transaction, or wait for it."""
        waiting = self.known.get(label.transaction_id)
        if self.is_restoring and self.waited is not None:
            came_later = waiting is not None and waiting.offset >= self.waited.scores_next
            has_waited = self.waited.has(at, waiting)
            if not has_waited and (waiting is None or came_later):
                return  # it was decided, before its transaction came or after that was forgotten
            if has_waited and not came_later:
                waiting = None
        if waiting is None:
            self._wait_early(label, at, effects)
            return
        if waiting.label_offset < 0:
            self.known.label(waiting, at.offset)
        self._meet(waiting, label, at, effects)

    def _meet(self, waiting: Waiting, label: Label, at: Position, effects: JoinEffects) -> None:
        """A label and its transaction are both there."""
        # Not forgotten before its label could no longer be taken for an early one by a restart.
        waiting.until_ms = max(waiting.until_ms, label.time_ms + self.early_ms)
        self.known.changed(waiting)
        known = False if waiting.is_matured and waiting.is_fraud is None else waiting.is_fraud
        if known is label.is_fraud:
            outcome: Outcome = "expired" if waiting.is_matured else "duplicate"
            effects.outcomes.append(outcome_of(label, at, outcome))
            return
        score = waiting.score
        waiting.is_fraud = label.is_fraud
        effects.examples.append(
            example_of(
                score,
                is_fraud=label.is_fraud,
                time_ms=label.time_ms,
                source=label.source,
                origin=at,
            )
        )
        if label.is_fraud or known is True:
            effects.confirmed.append(Confirmed(score, label.is_fraud))

    def _wait_early(self, label: Label, at: Position, effects: JoinEffects) -> None:
        unknown = Unknown(label, at)
        if label.time_ms + self.early_ms <= self.clock_ms:
            effects.unknown.append(unknown)
        else:
            effects.unknown += self.early.wait(unknown)

    def _mature(self, at: Position, effects: JoinEffects) -> None:
        """Do what is due for scored transactions: mature them, later forget them."""
        while (waiting := self.known.next_due(self.clock_ms)) is not None:
            if not waiting.is_matured:
                due_ms, waiting.is_matured = waiting.due_ms, True
                self.known.schedule(waiting, due_ms + self.forget_ms)
                if waiting.is_fraud is None and not self.is_restoring:
                    self._teach_matured(waiting, due_ms, at, effects)
            elif waiting.until_ms <= self.clock_ms:
                self.known.let_go(waiting)
            else:
                self.known.schedule(waiting, waiting.until_ms)
            self._relieve()

    def _teach_matured(
        self, waiting: Waiting, due_ms: int, at: Position, effects: JoinEffects
    ) -> None:
        """Take what nobody complained about as legitimate: a stated share, with its weight."""
        if not is_sampled(waiting.kept.transaction_id, self.negatives):
            return
        effects.examples.append(
            example_of(
                waiting.score,
                is_fraud=False,
                time_ms=due_ms,
                source=MATURITY,
                origin=at,
                weight=1.0 / self.negatives,
            )
        )

    def _summarise(self, score: Scored, at: Position, effects: JoinEffects) -> None:
        # Where a run ends follows from the log and its clock: a restart ends it there, too.
        if self._run and score.time_ms // _HOUR_MS > self.clock_ms // _HOUR_MS:
            self._end_run(effects)
        self._join_run(score, at)
        if at.offset % SUMMARY_SCORES == SUMMARY_SCORES - 1 or len(self._run) >= SUMMARY_SCORES:
            self._end_run(effects)

    def _join_run(self, score: Scored, at: Position) -> None:
        if not self._run:
            self._run_first = at.offset
        self._run.append(score)
        self._run_last = at

    def _end_run(self, effects: JoinEffects) -> None:
        run, self._run = self._run, []
        effects.examples.append(self._summary(run, self._run_last))

    def _summary(self, run: Sequence[Scored], at: Position) -> Summary:
        """What the monitor is told of a run of scores, the last of which lies at ``at``."""
        schema = run[-1].feature_schema  # a run may begin before a change of the features
        first_ms, last_ms = min(s.time_ms for s in run), max(s.time_ms for s in run)
        step = step_of(len(run), last_ms - first_ms)
        looked = [scored for scored in run if scored.feature_schema == schema][::step]
        rows, segments = _whole_of(looked)
        means, squares = moments(rows)
        return Summary(
            partition=at.partition,
            first_offset=self._run_first,
            last_offset=at.offset,
            n=len(run),
            n_alerts=sum(s.is_alert for s in run),
            mean_score=sum(s.score for s in run) / len(run),
            n_looked=len(looked),
            feature_schema=schema,
            feature_means=means,
            feature_squares=squares,
            rows=pack(rows),
            row_ids=[score.transaction_id for score in looked],
            row_times_ms=[score.time_ms for score in looked],
            row_segments=_columns_of(segments),
            bins=np.sort(bins_of(np.array([s.score for s in run]))).tolist(),
            first_time_ms=first_ms,
            last_time_ms=last_ms,
        )


def _least(offsets: Iterable[int | None]) -> int:
    return min(offset for offset in offsets if offset is not None)


def _whole_of(looked: Sequence[Scored]) -> tuple[NDArray[np.float64], list[dict[str, str]]]:
    """Features, shape (n, d), and segments of n scores; no more than one is whole at a time."""
    segments = []

    def features() -> Iterator[list[float | None]]:
        for scored in looked:
            score = scored.whole()
            segments.append(score.segments)
            yield score.features

    rows = np.fromiter(chain.from_iterable(features()), np.float64)
    return rows.reshape(len(looked), -1), segments


def _columns_of(segments: list[dict[str, str]]) -> dict[str, list[str]]:
    """Segments of several scores, by name; a score without one has an empty value."""
    names = sorted({name for told in segments for name in told})
    return {name: [told.get(name, "") for told in segments] for name in names}


def step_of(n: int, span_ms: int) -> int:
    """One in how many of n scores, whose times span so much, has its features looked at.

    >>> step_of(256, 10 * 3_600_000), step_of(256, 300_000), step_of(256, 1_000)
    (1, 3, 8)
    """
    an_hour = n * _HOUR_MS / max(span_ms, 1)
    return min(max(round(an_hour / _ROWS_AN_HOUR), 1), LOOKED_AT)


def moments(rows: NDArray[np.float64]) -> tuple[list[float | None], list[float]]:
    """Mean of each feature over rows, shape (n, d), and the sum of squared deviations from it."""
    there = ~np.isnan(rows)
    n = there.sum(axis=0)
    means = np.where(there, rows, 0.0).sum(axis=0) / np.maximum(n, 1)
    squares = np.where(there, (rows - means) ** 2, 0.0).sum(axis=0)
    known: list[float | None] = [m if k else None for m, k in zip(means.tolist(), n, strict=True)]
    return known, squares.tolist()


def example_of(
    score: Score,
    *,
    is_fraud: bool,
    time_ms: int,
    source: str,
    origin: Position,
    weight: float = 1.0,
) -> Example:
    """One fact for the learner: the features as they were when scored, and the label."""
    return Example(
        transaction_id=score.transaction_id,
        time_ms=score.time_ms,
        amount=score.amount,
        entities=score.entities,
        score=score.score,
        features=score.features,
        feature_schema=score.feature_schema,
        is_fraud=is_fraud,
        label_time_ms=time_ms,
        label_source=source,
        origin=(origin.topic, origin.partition, origin.offset),
        weight=weight,
        is_alert=score.is_alert,
        propensity=score.propensity,
        raw=score.raw,
        segments=score.segments,
        fallback=score.fallback,
    )


def outcome_of(label: Label, at: Position, outcome: Outcome, reason: str = "") -> LabelOutcome:
    """What became of a label."""
    return LabelOutcome(
        transaction_id=label.transaction_id,
        outcome=outcome,
        is_fraud=label.is_fraud,
        label_source=label.source,
        origin=(at.topic, at.partition, at.offset),
        reason=reason,
    )
