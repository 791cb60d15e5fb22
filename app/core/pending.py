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

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from app.core.entity import hash_id
from app.records import Example, LabelOutcome, Position, Summary

if TYPE_CHECKING:
    from app.records import Outcome, Record, Score

#: 256 scores: a mean whose noise is a sixteenth of one score's, and a line in the log that
#: costs a two-hundredth of theirs.
SUMMARY_SCORES = 256

MATURITY = "maturity"


class Label(NamedTuple):
    """What is later known of a transaction."""

    transaction_id: str
    is_fraud: bool
    time_ms: int
    source: str
    raw: Record | None = None  # as it was published


class Unknown(NamedTuple):
    """A label whose transaction never came, with its position."""

    label: Label
    at: Position


class Confirmed(NamedTuple):
    """A label that the entities of its transaction should know."""

    score: Score
    is_fraud: bool


@dataclass(slots=True)
class Waiting:
    """A scored transaction and what is known of it."""

    score: Score
    at: Position
    is_fraud: bool | None = None
    is_matured: bool = False


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

    def __post_init__(self) -> None:
        """Start with nothing known."""
        self._known: OrderedDict[str, Waiting] = OrderedDict()
        self._early: OrderedDict[str, list[Unknown]] = OrderedDict()
        self._n_early = 0
        self._due: list[tuple[int, str]] = []  # heap of (when, transaction): mature or forget
        self._early_due: list[tuple[int, str]] = []
        self._labelled: deque[tuple[int, str]] = deque()  # (label offset, transaction)
        self._run: list[Score] = []  # scores since the last summary
        self._run_first = -1

    def __len__(self) -> int:
        """How many transactions are known, labelled or not."""
        return len(self._known)

    @property
    def n_early(self) -> int:
        """How many labels wait for their transaction."""
        return self._n_early

    def low(self, scores_next: int, labels_next: int) -> tuple[int, int]:
        """Offsets in scores and labels from which this state can be read again."""
        first = next(iter(self._known.values()), None)
        scores_low = first.at.offset if first else scores_next
        if self._run:
            scores_low = min(scores_low, self._run_first)
        while self._labelled and not self._matters(*self._labelled[0]):
            self._labelled.popleft()
        return scores_low, self._labelled[0][0] if self._labelled else labels_next

    def on_score(self, score: Score, at: Position, effects: JoinEffects) -> None:
        """Keep a scored transaction until its label or its maturity."""
        self._summarise(score, at, effects)
        self._advance(score.time_ms, at, effects)
        if score.transaction_id in self._known:
            return
        if len(self._known) >= self.pending_max:
            self._known.popitem(last=False)
            self.n_overflowed += 1
        self._known[score.transaction_id] = Waiting(score, at)
        heapq.heappush(self._due, (score.time_ms + self.maturity_ms, score.transaction_id))
        for waited in self._early.pop(score.transaction_id, ()):
            self._n_early -= 1
            self.on_label(waited.label, waited.at, effects)

    def on_label(self, label: Label, at: Position, effects: JoinEffects) -> None:
        """Let a label meet its transaction, or wait for it."""
        self._labelled.append((at.offset, label.transaction_id))
        waiting = self._known.get(label.transaction_id)
        if waiting is None:
            self._wait_early(label, at, effects)
            return
        known = False if waiting.is_matured and waiting.is_fraud is None else waiting.is_fraud
        if known is label.is_fraud:
            outcome: Outcome = "expired" if waiting.is_matured else "duplicate"
            effects.outcomes.append(outcome_of(label, at, outcome))
            return
        waiting.is_fraud = label.is_fraud
        effects.examples.append(
            example_of(
                waiting.score,
                is_fraud=label.is_fraud,
                time_ms=label.time_ms,
                source=label.source,
                origin=at,
            )
        )
        if label.is_fraud or known is True:
            effects.confirmed.append(Confirmed(waiting.score, label.is_fraud))

    def _wait_early(self, label: Label, at: Position, effects: JoinEffects) -> None:
        unknown = Unknown(label, at)
        if label.time_ms + self.early_ms <= self.clock_ms:
            effects.unknown.append(unknown)
            return
        self._early.setdefault(label.transaction_id, []).append(unknown)
        self._n_early += 1
        heapq.heappush(self._early_due, (label.time_ms + self.early_ms, label.transaction_id))
        while self._n_early > self.early_max:
            _, oldest = self._early.popitem(last=False)
            self._n_early -= len(oldest)
            effects.unknown += oldest

    def _advance(self, time_ms: int, at: Position, effects: JoinEffects) -> None:
        self.clock_ms = max(self.clock_ms, time_ms)
        while self._due and self._due[0][0] <= self.clock_ms:
            due, transaction_id = heapq.heappop(self._due)
            waiting = self._known.get(transaction_id)
            if waiting is None:
                continue
            if waiting.is_matured:
                del self._known[transaction_id]
                continue
            waiting.is_matured = True
            heapq.heappush(self._due, (due + self.forget_ms, transaction_id))
            if waiting.is_fraud is None:
                self._teach_matured(waiting, due, at, effects)
        while self._early_due and self._early_due[0][0] <= self.clock_ms:
            _, transaction_id = heapq.heappop(self._early_due)
            late = self._early.pop(transaction_id, [])
            self._n_early -= len(late)
            effects.unknown += late

    def _teach_matured(
        self, waiting: Waiting, due_ms: int, at: Position, effects: JoinEffects
    ) -> None:
        """Take what nobody complained about as legitimate: a stated share, with its weight."""
        # The share is decided by the id, so that a restart decides alike.
        if hash_id(waiting.score.transaction_id) / 2.0**64 >= self.negatives:
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

    def _summarise(self, score: Score, at: Position, effects: JoinEffects) -> None:
        if not self._run:
            self._run_first = at.offset
        self._run.append(score)
        if at.offset % SUMMARY_SCORES != SUMMARY_SCORES - 1 and len(self._run) < SUMMARY_SCORES:
            return
        run, self._run = self._run, []
        effects.examples.append(
            Summary(
                partition=at.partition,
                first_offset=self._run_first,
                last_offset=at.offset,
                n=len(run),
                n_alerts=sum(s.is_alert for s in run),
                mean_score=sum(s.score for s in run) / len(run),
                first_time_ms=min(s.time_ms for s in run),
                last_time_ms=max(s.time_ms for s in run),
            )
        )

    def _matters(self, label_offset: int, transaction_id: str) -> bool:
        if transaction_id in self._known:
            return True
        return any(u.at.offset == label_offset for u in self._early.get(transaction_id, ()))


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
