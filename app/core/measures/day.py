"""A day of transactions: what was decided, and its best scores and cards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from app.core.measures.counts import Counts
from app.core.measures.decisions import Decisions, ratio
from app.core.measures.top import Top, first

if TYPE_CHECKING:
    from app.core.measures.cards import Cards

#: Cards with a fraud on one day; the first of them leave. Ten times what a busy day has.
_FRAUD_CARDS_MAX = 1_024


class DayFigures(NamedTuple):
    """A day in figures; those of a day that is not mature will change."""

    day: int  # since 1970, UTC
    is_mature: bool
    decisions: Decisions
    card_precision: float
    recall_at_budget: float

    @property
    def date(self) -> str:
        """The day as a calendar has it.

        >>> DayFigures(19_723, True, Decisions(), 0.3, 0.5).date
        '2024-01-01'
        """
        return str(np.datetime64(self.day, "D"))


@dataclass
class Day:
    """One day. ``counts`` are there until it is mature; then they are part of all that is.

    Twice as many cards are kept as are looked at: half of them may turn out to be known.
    """

    number: int
    scores: Top  # of transactions
    cards: Top
    counts: Counts | None
    decisions: Decisions = field(default_factory=Decisions)
    fraud_ids: set[int] = field(default_factory=set)  # of transactions among the best
    fraud_cards: dict[int, int] = field(default_factory=dict)  # card -> its frauds of the day

    @classmethod
    def of(cls, number: int, top_k: int, budget: int, counts: Counts | None) -> Day:
        """A day of which nothing is known."""
        return cls(number, Top(budget), Top(2 * top_k), counts)

    @property
    def floor(self) -> float:
        """A legitimate transaction with a lower score changes nothing but counts."""
        return min(self.scores.floor, self.cards.floor)

    def on_transaction(self, key: int, score: float, weight: float, *, is_fraud: bool) -> None:
        """Let a transaction stand for its place, with the label that it has now."""
        self.scores.offer(key, score, weight)
        self.scores.weigh(key, weight)
        self.fraud_ids.discard(key)
        if is_fraud and key in self.scores.held:
            self.fraud_ids.add(key)
        if len(self.fraud_ids) > 2 * self.scores.size:
            self.fraud_ids &= self.scores.held.keys()

    def on_card(self, card: int, score: float, weight: float, frauds: int) -> None:
        """Let a card stand for its place; it has so many more frauds than was known."""
        self.cards.offer(card, score, weight)
        if frauds:
            left = self.fraud_cards.get(card, 0) + frauds
            self.fraud_cards.pop(card, None)
            if left > 0:
                self.fraud_cards[card] = left
            if len(self.fraud_cards) > _FRAUD_CARDS_MAX:
                del self.fraud_cards[next(iter(self.fraud_cards))]

    def recall_at(self, budget: int) -> float:
        """Share of the day's frauds among its ``budget`` highest scores; NaN without frauds."""
        best = first(self.scores.ranked(), budget)
        return ratio(float(sum(key in self.fraud_ids for key in best)), self.decisions.frauds)

    def hits(self, top_k: int, known: Cards, found: dict[int, int]) -> list[int]:
        """Cards with a fraud among the ``top_k`` cards with the highest scores.

        Left out are those with a fraud that was known, or ``found`` on an earlier day (card ->
        day), and so not in the ranking of somebody who works through it day after day.
        """
        days = known.compromised_days
        unknown = [
            (card, best)
            for card, best in self.cards.ranked()
            if not known.is_known(card, self.number)
            and not 0 < self.number - found.get(card, self.number) < days
        ]
        return [card for card in first(unknown, top_k) if card in self.fraud_cards]

    def __getstate__(self) -> dict[str, Any]:
        """State in an order that is nobody's: a set's own is that of its history."""
        return {**self.__dict__, "fraud_ids": sorted(self.fraud_ids)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go on exactly where the state was taken."""
        self.__dict__.update(state)
        self.fraud_ids = set(state["fraud_ids"])
