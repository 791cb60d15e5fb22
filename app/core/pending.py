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
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec
import numpy as np

from app.core.drift.sample import pack
from app.core.hashing import hash_id
from app.core.scoremap import bins_of
from app.records import Example, LabelOutcome, Position, Summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from app.records import Outcome, Record, Score

#: 256 scores: a mean whose noise is a sixteenth of one score's, and a line in the log that
#: costs a two-hundredth of theirs.
SUMMARY_SCORES = 256

#: One in 8, where traffic is high: their means are those of millions, and to read the features
#: costs as much as the rest.
LOOKED_AT = 8
#: All of them below 1,024 an hour and partition: there a change shows as soon as rows can tell it.
_ROWS_AN_HOUR = 1_024.0
_HOUR_MS = 3_600_000

MATURITY = "maturity"

#: 400 steps of a few digits: a broker takes notes of up to 4096 bytes.
_WAITS_MAX = 400


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


class Scored(Protocol):
    """A score, of which the join knows little until a label asks for all of it."""

    @property
    def transaction_id(self) -> str:
        """Whose score it is."""

    @property
    def time_ms(self) -> int:
        """Event time of the transaction."""

    @property
    def score(self) -> float:
        """In [0, 1]."""

    @property
    def is_alert(self) -> bool:
        """Whether the policy brings it to a person."""

    @property
    def feature_schema(self) -> str:
        """Which features it was given for."""

    def whole(self) -> Score:
        """Everything that was used to decide."""


class Waiting(msgspec.Struct, gc=False):
    """A scored transaction and what is known of it."""

    kept: Any  # Scored
    offset: int  # of the score
    due_ms: int  # when it matures; once matured, when it may be forgotten
    is_fraud: bool | None = None
    is_matured: bool = False
    until_ms: int = -1  # its labels could be taken for early ones until then
    has_label: bool = False  # one of its labels stands in the list that ``low`` looks at

    @property
    def score(self) -> Score:
        """The score as it came."""
        whole: Score = self.kept.whole()
        return whole


class Waited(NamedTuple):
    """Which labels waited when the offsets were committed; the logs alone cannot tell.

    ``scores_next`` is how far the scores were read then; ``cut`` the offset after which the
    list did not fit (-1: it is whole).
    """

    scores_next: int
    offsets: frozenset[int]
    cut: int = -1

    @classmethod
    def of(cls, note: str) -> Waited | None:
        """Read what ``Join.waits`` has written, after the first word of a note.

        >>> Waited.of("3 1f 5 2 +")
        Waited(scores_next=31, offsets=frozenset({5, 7}), cut=7)
        """
        words = note.split()[1:]
        if not words:
            return None
        is_cut = words[-1] == "+"
        scores_next, *steps = [int(word, 16) for word in (words[:-1] if is_cut else words)]
        offsets = list(accumulate(steps))
        return cls(scores_next, frozenset(offsets), offsets[-1] if is_cut else -1)

    def has(self, label: Position, waiting: Waiting | None) -> bool:
        """Whether a label waited."""
        is_beyond = self.cut >= 0 and label.offset > self.cut
        return waiting is None if is_beyond else label.offset in self.offsets


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

    def __post_init__(self) -> None:
        """Start with nothing known."""
        self._known: OrderedDict[str, Waiting] = OrderedDict()
        self._early: OrderedDict[str, list[Unknown]] = OrderedDict()
        self._n_early = 0
        self._due: list[tuple[int, str]] = []  # heap of (when, transaction): mature or forget
        self._early_due: list[tuple[int, str]] = []
        #: (label offset, transaction): the first label of each, and those that wait
        self._labelled: deque[tuple[int, str]] = deque()
        self._run: list[Scored] = []  # scores since the last summary
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
        scores_low = first.offset if first else scores_next
        if self._run:
            scores_low = min(scores_low, self._run_first)
        while self._labelled and not self._matters(*self._labelled[0]):
            self._labelled.popleft()
        return scores_low, self._labelled[0][0] if self._labelled else labels_next

    def waits(self, scores_next: int) -> str:
        """Note of which labels wait, for ``Waited.of``: hexadecimal, the offsets as steps."""
        offsets = sorted(u.at.offset for waited in self._early.values() for u in waited)
        steps = [b - a for a, b in pairwise([0, *offsets])]
        words = [f"{step:x}" for step in [scores_next, *steps[:_WAITS_MAX]]]
        return " ".join([*words, "+"] if len(steps) > _WAITS_MAX else words)

    def restored(self) -> None:
        """Let the time pass that passed before; what followed then is not said again."""
        self.is_restoring = False
        self._mature(Position("", 0, -1), JoinEffects())
        while len(self._known) > self.pending_max:
            self._known.popitem(last=False)

    def on_score(self, score: Scored, at: Position, effects: JoinEffects) -> None:
        """Keep a scored transaction until its label or its maturity."""
        self._summarise(score, at, effects)
        self._advance(score.time_ms, effects)
        if score.transaction_id not in self._known:
            self._keep(score, at, effects)
        if not self.is_restoring:
            self._mature(at, effects)

    def _keep(self, score: Scored, at: Position, effects: JoinEffects) -> None:
        if len(self._known) >= self.pending_max and not self.is_restoring:
            self._known.popitem(last=False)
            self.n_overflowed += 1
        due = score.time_ms + self.maturity_ms
        waiting = self._known[score.transaction_id] = Waiting(score, at.offset, due)
        heapq.heappush(self._due, (due, score.transaction_id))
        self._due = _pruned(self._due, len(self._known), self._is_due)
        for waited in self._early.pop(score.transaction_id, ()):
            self._n_early -= 1
            waiting.has_label = True  # since it came
            self.on_label(waited.label, waited.at, effects)

    def find(self, transaction_id: str) -> Waiting | None:
        """What is known of a scored transaction; None: nothing, or it was forgotten."""
        return self._known.get(transaction_id)

    def expects(self, transaction_id: str, *, is_fraud: bool) -> Outcome:
        """What a label would lead to if it came next; the learner has the last word."""
        waiting = self._known.get(transaction_id)
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
        waiting = self._known.get(label.transaction_id)
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
        if not waiting.has_label:
            waiting.has_label = True
            self._keep_offset(label, at)
        # Not forgotten before its label could no longer be taken for an early one by a restart.
        waiting.until_ms = max(waiting.until_ms, label.time_ms + self.early_ms)
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
            return
        self._keep_offset(label, at)
        self._early.setdefault(label.transaction_id, []).append(unknown)
        self._n_early += 1
        heapq.heappush(self._early_due, (label.time_ms + self.early_ms, label.transaction_id))
        while self._n_early > self.early_max:
            _, oldest = self._early.popitem(last=False)
            self._n_early -= len(oldest)
            effects.unknown += oldest
        self._early_due = _pruned(self._early_due, self._n_early, self._is_early_due)

    def _keep_offset(self, label: Label, at: Position) -> None:
        self._labelled.append((at.offset, label.transaction_id))
        if len(self._labelled) > _room(len(self._known) + self._n_early):
            self._labelled = deque(one for one in self._labelled if self._matters(*one))

    def _is_due(self, due_ms: int, transaction_id: str) -> bool:
        waiting = self._known.get(transaction_id)
        return waiting is not None and waiting.due_ms == due_ms

    def _is_early_due(self, due_ms: int, transaction_id: str) -> bool:
        waited = self._early.get(transaction_id, ())
        return any(one.label.time_ms + self.early_ms == due_ms for one in waited)

    def _advance(self, time_ms: int, effects: JoinEffects) -> None:
        """Let the clock go on; labels that waited too long have no transaction."""
        self.clock_ms = max(self.clock_ms, time_ms)
        while self._early_due and self._early_due[0][0] <= self.clock_ms:
            _, transaction_id = heapq.heappop(self._early_due)
            waited = self._early.pop(transaction_id, [])
            late = [u for u in waited if u.label.time_ms + self.early_ms <= self.clock_ms]
            if len(late) < len(waited):
                self._early[transaction_id] = [u for u in waited if u not in late]
            self._n_early -= len(late)
            effects.unknown += late

    def _mature(self, at: Position, effects: JoinEffects) -> None:
        """Do what is due for scored transactions: mature them, later forget them."""
        while self._due and self._due[0][0] <= self.clock_ms:
            due, transaction_id = heapq.heappop(self._due)
            waiting = self._known.get(transaction_id)
            if waiting is None or waiting.due_ms != due:
                continue  # it was let go, and perhaps came again
            if waiting.is_matured and waiting.until_ms <= self.clock_ms:
                del self._known[transaction_id]
                continue
            waiting.due_ms = waiting.until_ms if waiting.is_matured else due + self.forget_ms
            heapq.heappush(self._due, (waiting.due_ms, transaction_id))
            if not waiting.is_matured:
                waiting.is_matured = True
                if waiting.is_fraud is None:
                    self._teach_matured(waiting, due, at, effects)

    def _teach_matured(
        self, waiting: Waiting, due_ms: int, at: Position, effects: JoinEffects
    ) -> None:
        """Take what nobody complained about as legitimate: a stated share, with its weight."""
        # The share is decided by the id, so that a restart decides alike.
        if hash_id(waiting.kept.transaction_id) / 2.0**64 >= self.negatives:
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
        if not self._run:
            self._run_first = at.offset
        self._run.append(score)
        if at.offset % SUMMARY_SCORES != SUMMARY_SCORES - 1 and len(self._run) < SUMMARY_SCORES:
            return
        run, self._run = self._run, []
        schema = run[-1].feature_schema  # a run may begin before a change of the features
        first_ms, last_ms = min(s.time_ms for s in run), max(s.time_ms for s in run)
        step = step_of(len(run), last_ms - first_ms)
        some = [scored for scored in run[::step] if scored.feature_schema == schema]
        looked = [scored.whole() for scored in some]
        rows = np.array([score.features for score in looked], np.float64)
        means, squares = moments(rows)
        effects.examples.append(
            Summary(
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
                row_segments=_columns_of([score.segments for score in looked]),
                bins=np.sort(bins_of(np.array([s.score for s in run]))).tolist(),
                first_time_ms=first_ms,
                last_time_ms=last_ms,
            )
        )

    def _matters(self, label_offset: int, transaction_id: str) -> bool:
        if transaction_id in self._known:
            return True
        return any(u.at.offset == label_offset for u in self._early.get(transaction_id, ()))


#: 64: below, a heap is not worth its pruning.
_ROOM = 64


def _room(n: int) -> int:
    """How many entries may stand for n that are alive."""
    return 2 * n + _ROOM


def _pruned(
    heap: list[tuple[int, str]], n: int, is_alive: Callable[[int, str], bool]
) -> list[tuple[int, str]]:
    """The heap, without what is no longer alive once that is more than half of it."""
    if len(heap) <= _room(n):
        return heap
    return sorted({one for one in heap if is_alive(*one)})  # a sorted list is a heap


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
