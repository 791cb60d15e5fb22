"""How good the scores and the alerts were: a fold over labelled transactions, in bounded memory.

Prequential by nature: what is counted is the score that was given before the label was known.
Labels of frauds come early and those of the legitimate late, so a day's figures are right only
once all of it is labelled: it is *mature* when the clock, the highest time seen in the log, is
``maturity_ms`` past its end. ``mature`` holds only such days; ``seen`` all that has a label.

    what                                    | kept                        | bound
    ----------------------------------------+-----------------------------+-------------------
    counts that add up (``measures.counts``) | by day until mature, then in | days until mature
    best scores and cards of a day          | by day                      | ``days_max``
    groups of a segment                     | each value                  | ``values_max``
    frauds of a card                        | the latest episode of each  | ``cards_max``

A correction moves what was counted: the learner remembers how each transaction was counted, for
as many as it remembers at all (``learnt_max``). What a label said when it came (the maturity
curve, that a card was known) stays said.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from app.core.hashing import hash_id
from app.core.measures.cards import Cards
from app.core.measures.counts import Counts
from app.core.measures.day import Day, DayFigures
from app.core.measures.groups import Values
from app.core.measures.rows import DAY_MS, Rows
from app.core.pending import MATURITY
from app.core.scoremap import bins_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from app.core.measures.cards import Catch
    from app.core.measures.groups import Disparity, Group
    from app.records import Example

#: How a transaction was counted, as bits of a small number.
_FRAUD, _MATURED, _JUDGED = 1, 2, 4

Told = tuple["Example", "int | None"]


def was_fraud(code: int) -> bool:
    """Whether a transaction was counted as fraud, by the code of ``Evaluation.code``."""
    return bool(code & _FRAUD)


@dataclass(frozen=True)
class Terms:
    """What the figures are about, and how much may be kept for them."""

    top_k: int = 100  # cards a day that somebody looks at
    budget: int = 100  # transactions a day that somebody looks at
    days_max: int = 64
    maturity_ms: int = 30 * DAY_MS
    #: For so long a card with a known fraud is left out: as the Handbook does, a week.
    compromised_days: int = 7
    values_max: int = 64  # of a segment
    cards_max: int = 4_096
    review_cost: float = 5.0
    recovery: float = 1.0
    sources: frozenset[str] = frozenset({"analyst"})  # of labels of what the policy showed
    segments: tuple[str, ...] = ()

    @property
    def days_kept(self) -> int:
        """Latest days by which figures are kept: a day stays at least until it is mature."""
        return max(self.days_max, -(-self.maturity_ms // DAY_MS) + 2)


class Line(NamedTuple):
    """A labelled transaction as it is counted, or what was counted before its correction."""

    example: Example
    code: int
    weight: float  # less than 0: to take away


@dataclass
class Evaluation:
    """All figures of quality. Batches of any size give the same state, bit for bit.

    >>> Evaluation().n
    0
    """

    terms: Terms = field(default_factory=Terms)
    clock_ms: int = -1
    newest: int = -1  # day
    matured_weight: float = 1.0  # of the last transaction that nobody complained about

    def __post_init__(self) -> None:
        """Start with nothing counted."""
        self.values = [Values(self.terms.values_max) for _ in self.terms.segments]
        self.days: dict[int, Day] = {}
        self.cards = Cards(self.terms.cards_max, self.terms.compromised_days)
        self.mature = self._nothing()

    def _nothing(self) -> Counts:
        return Counts.of(len(self.terms.segments))

    def code(self, example: Example, before: int | None) -> int:
        """How an example is counted, for who remembers it; ``before``: the code it had, if any."""
        code = _FRAUD * example.is_fraud | _MATURED * (example.label_source == MATURITY)
        # What a person has looked at stays looked at, whoever corrects it.
        is_shown = example.is_alert and example.propensity > 0.0
        is_judged = is_shown and example.label_source in self.terms.sources
        return code | _JUDGED * (is_judged or bool((before or 0) & _JUDGED))

    # ---- The fold.

    def update(self, told: Sequence[Told]) -> None:
        """Count examples, in the order of the log, each with its code before: None: it is new."""
        if not told:
            return
        lines = self._lines(told)
        rows = self._rows(lines)
        ripe = self._clock(lines)
        # A day may ripen within a batch: what comes before it does is counted before.
        cuts = np.flatnonzero(np.diff(ripe)) + 1
        for start, stop in zip([0, *cuts.tolist()], [*cuts.tolist(), len(lines)], strict=True):
            self._ripen(int(ripe[start]))
            self._count(rows.at(slice(start, stop)), int(ripe[start]))
        self._rank(told)
        for number in [number for number in self.days if number <= self._oldest]:
            del self.days[number]

    @property
    def _oldest(self) -> int:
        return self.newest - self.terms.days_kept

    def _lines(self, told: Sequence[Told]) -> list[Line]:
        lines = []
        for example, before in told:
            if before is not None:
                weight = self.matured_weight if before & _MATURED else 1.0
                lines.append(Line(example, before, -weight))
            code = self.code(example, before)
            if code & _MATURED:
                self.matured_weight = example.weight
            lines.append(Line(example, code, example.weight))
        return lines

    def _rows(self, lines: list[Line]) -> Rows:
        examples = [line.example for line in lines]
        codes = np.array([line.code for line in lines], np.int64)
        scores = np.array([e.score for e in examples], np.float64)
        times = np.array([e.time_ms for e in examples], np.int64)
        labelled = np.array([e.label_time_ms for e in examples], np.int64)
        weights = np.array([line.weight for line in lines], np.float64)
        propensity = np.array([e.propensity for e in examples], np.float64)
        shares = np.sign(weights) / np.where(propensity > 0.0, propensity, np.inf)
        groups = [
            values.codes([e.segments.get(name, "") for e in examples])
            for name, values in zip(self.terms.segments, self.values, strict=True)
        ]
        return Rows(
            scores=scores,
            bins=bins_of(scores),
            is_fraud=codes & _FRAUD > 0,
            is_alert=np.array([e.is_alert for e in examples], np.bool_),
            amounts=np.array([e.amount for e in examples], np.float64),
            weights=weights,
            days=times // DAY_MS,
            delays_ms=np.where(codes & _MATURED > 0, -1, np.maximum(labelled - times, 0)),
            is_flagged=propensity >= 1.0,
            shares=np.where(codes & _JUDGED > 0, shares, 0.0),
            groups=np.array(groups, np.int64).reshape(len(groups), len(lines)).T,
        )

    def _clock(self, lines: list[Line]) -> NDArray[np.int64]:
        """Let time pass; gives for each line the first day that was not mature then."""
        seen = [max(line.example.time_ms, line.example.label_time_ms) for line in lines]
        clocks = np.maximum.accumulate(np.array([self.clock_ms, *seen], np.int64))[1:]
        self.clock_ms = int(clocks[-1])
        return (clocks - self.terms.maturity_ms) // DAY_MS

    @property
    def ripe(self) -> int:
        """The first day that is not mature."""
        return (self.clock_ms - self.terms.maturity_ms) // DAY_MS

    def _ripen(self, ripe: int) -> None:
        for number, day in self.days.items():
            if number < ripe and day.counts is not None:
                self.mature += day.counts
                day.counts = None

    def _count(self, rows: Rows, ripe: int) -> None:
        was_mature = rows.days < ripe
        if was_mature.any():
            self.mature.update(rows.at(was_mature))
        for number in np.unique(rows.days).tolist():
            self.newest = max(self.newest, number)
            if number <= self._oldest:
                continue  # it is mature, and counted as such
            day = self.days.get(number)
            if day is None:
                counts = None if number < ripe else self._nothing()
                day = Day.of(number, self.terms.top_k, self.terms.budget, counts)
                self.days = dict(sorted({**self.days, number: day}.items()))
            part = rows.at(rows.days == number)
            day.decisions.update(part)
            if number >= ripe and day.counts is not None:
                day.counts.update(part)

    def _rank(self, told: Sequence[Told]) -> None:
        """Keep what needs an order: the best of each day, the frauds of each card."""
        days = self.days
        for example, before in told:
            day = days.get(example.time_ms // DAY_MS)
            is_plain = not example.is_fraud and before is None
            if is_plain and (day is None or example.score < day.floor):
                continue  # most are
            self._rank_one(example, before, day)

    def _rank_one(self, example: Example, before: int | None, day: Day | None) -> None:
        card = next(iter(example.entities.values()), None)
        key = None if card is None else hash_id(card)
        is_fraud, time_ms, is_alert = example.is_fraud, example.time_ms, example.is_alert
        if day is not None:
            transaction = hash_id(example.transaction_id)
            day.on_transaction(transaction, example.score, example.weight, is_fraud=is_fraud)
            if key is not None and not self.cards.is_known(key, day.number):
                frauds = is_fraud - (before is not None and was_fraud(before))
                day.on_card(key, example.score, example.weight, frauds)
        if key is None:
            return
        if is_fraud:
            self.cards.on_fraud(key, time_ms, example.label_time_ms, is_alert=is_alert)
        elif before is not None:
            self.cards.on_legitimate(key, time_ms, is_alert=is_alert)

    # ---- The figures.

    @property
    def seen(self) -> Counts:
        """Counts of all that has a label. Cost: a millisecond, in a copy."""
        counts = self._nothing()
        counts += self.mature
        for day in self.days.values():
            if day.counts is not None:
                counts += day.counts
        return counts

    @property
    def settled(self) -> Counts:
        """Counts of mature days; before there is one, of all that has a label."""
        return self.mature if self.mature.decisions.n > 0.0 else self.seen

    @property
    def n(self) -> int:
        """How many labelled transactions were counted, each as many as it stands for."""
        return self.seen.ranking.n

    @property
    def average_precision(self) -> float:
        """Of all that has a label, in [0, 1]; NaN before any fraud."""
        return self.seen.ranking.average_precision

    @property
    def roc_auc(self) -> float:
        """Of all that has a label, in [0, 1]; NaN before both classes were seen."""
        return self.seen.ranking.roc_auc

    @property
    def brier(self) -> float:
        """Of all that has a label, in [0, 1]; NaN before the first."""
        return self.seen.ranking.brier

    @property
    def calibration_error(self) -> float:
        """Of all that has a label, in [0, 1]; NaN before the first."""
        return self.seen.ranking.calibration_error

    def by_day(self) -> list[DayFigures]:
        """Figures of the latest days, in order.

        Card precision is that of the Handbook (Le Borgne et al., 2022, chapter 4): of the
        ``top_k`` cards with the highest score of the day, the share with a fraud that day. Left
        out are cards with a fraud that was known when the day began and for no more than
        ``compromised_days``, and cards that this ranking found on one of as many days before.
        Exact, as long as no more cards than ``top_k`` of the best of a day are left out for what
        became known after they were ranked, and no card is forgotten (``cards_max``); beyond
        that a day's figure is too low. A sampled legitimate transaction stands for as many
        places as its weight says, so with ``join.negatives`` < 1 it is an estimate.
        """
        figures, found = list[DayFigures](), dict[int, int]()
        for number, day in self.days.items():
            hits = day.hits(self.terms.top_k, self.cards, found)
            found.update(dict.fromkeys(hits, number))
            is_mature = number < self.ripe
            share = len(hits) / self.terms.top_k
            recall = day.recall_at(self.terms.budget)
            figures.append(DayFigures(number, is_mature, day.decisions, share, recall))
        return figures

    def catch(self) -> Catch:
        """How soon cards were caught: episodes that began on mature days; before any, all."""
        has_mature = self.mature.decisions.n > 0.0
        return self.cards.catch(self.ripe * DAY_MS if has_mature else None)

    def by_segment(self) -> dict[str, list[Group]]:
        """Figures of the groups of each segment, of ``settled``."""
        told = zip(self.terms.segments, self.values, self.settled.groups, strict=True)
        return {segment: groups.figures(values.names) for segment, values, groups in told}

    def disparities(self) -> dict[str, list[Disparity]]:
        """How unlike the groups of each segment are treated, of ``settled``."""
        told = zip(self.terms.segments, self.values, self.settled.groups, strict=True)
        return {segment: groups.disparities(values.names) for segment, values, groups in told}


def mean_of(days: Sequence[DayFigures], figure: str) -> float:
    """Mean of a figure over the mature days that have it; NaN where none has.

    >>> mean_of([], "card_precision")
    nan
    """
    told = [getattr(day, figure) for day in days if day.is_mature]
    known = [value for value in told if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
