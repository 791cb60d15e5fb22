"""What is known of cards with frauds: since when, and how soon an alert caught them.

A card's frauds come in whatever order their labels do; those of alerts first, where people look
at alerts. So its episode is kept with their times until nothing more can belong to it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.core.measures.rows import DAY_MS

_HOUR_MS: Final = 3_600_000.0
#: A thief who was missed so often was missed: the rest is told as "32 or more".
MISSED_MAX: Final = 32
#: Of a card in one episode; the latest. Labels of a card come on few different days.
_KNOWN_MAX: Final = 8
#: At once, then from a minute to 64 days in steps of 19.6 %: quantiles to a tenth.
_EDGES_H: Final = np.geomspace(1.0 / 60.0, 64 * 24.0, 65)


@dataclass(slots=True)
class Card:
    """A card's latest episode of frauds (event times), and the days that began knowing of one."""

    first_ms: int
    last_ms: int
    caught_ms: int = -1  # the first fraud that was an alert
    missed: list[int] = field(default_factory=list)  # frauds before it, ascending
    known: list[int] = field(default_factory=list)  # first day that began with a label known

    def add(self, time_ms: int, *, is_alert: bool) -> None:
        """Take in a fraud."""
        self.first_ms, self.last_ms = min(self.first_ms, time_ms), max(self.last_ms, time_ms)
        if is_alert and (self.caught_ms < 0 or time_ms < self.caught_ms):
            self.caught_ms = time_ms
            self.missed = [missed for missed in self.missed if missed < time_ms]
        elif not is_alert and (self.caught_ms < 0 or time_ms < self.caught_ms):
            self.missed = sorted([*self.missed, time_ms])[:MISSED_MAX]

    def remove(self, time_ms: int, *, is_alert: bool) -> None:
        """Forget a fraud that turned out to be none.

        If it was the one that caught the card, the next alert is that does; one that came before
        the correction is forgotten.
        """
        if is_alert and time_ms == self.caught_ms:
            self.caught_ms = -1
        elif time_ms in self.missed:
            self.missed.remove(time_ms)

    def is_known(self, day: int, compromised_days: int) -> bool:
        """Whether a fraud was known when ``day`` began, for no longer than ``compromised_days``."""
        return any(since <= day < since + compromised_days for since in self.known)

    def know(self, label_time_ms: int) -> None:
        """Take in when a label became known."""
        day = -(-label_time_ms // DAY_MS)
        if day not in self.known:
            self.known = [*self.known, day][-_KNOWN_MAX:]


class Catch(NamedTuple):
    """How soon cards with frauds were caught."""

    episodes: int
    caught: int
    frauds_median: float  # up to the first alert, and with it; NaN: none was caught
    hours_median: float  # from the first fraud to the first alert
    hours_p90: float


@dataclass
class Caught:
    """Episodes by how many frauds and hours passed until an alert."""

    frauds: NDArray[np.int64] = field(default_factory=lambda: np.zeros(MISSED_MAX + 2, np.int64))
    hours: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(_EDGES_H) + 1, np.int64))
    n_missed: int = 0

    def add(self, card: Card) -> None:
        """Count an episode, if it has frauds."""
        if card.caught_ms < 0:
            self.n_missed += bool(card.missed)
            return
        self.frauds[len(card.missed) + 1] += 1
        passed = (card.caught_ms - card.missed[0]) / _HOUR_MS if card.missed else 0.0
        self.hours[np.searchsorted(_EDGES_H, passed, side="right")] += 1

    def figures(self) -> Catch:
        """Medians and the ninth decile."""
        n = int(self.frauds.sum())
        return Catch(
            n + self.n_missed,
            n,
            float(_place(self.frauds, 0.5)) if n else float("nan"),
            _hours(_place(self.hours, 0.5)) if n else float("nan"),
            _hours(_place(self.hours, 0.9)) if n else float("nan"),
        )


def _place(counts: NDArray[np.int64], share: float) -> int:
    """Where the value lies below which ``share`` of all do: the lower one of two."""
    cumulated = np.cumsum(counts)
    return int(np.searchsorted(cumulated, np.ceil(share * cumulated[-1])))


def _hours(place: int) -> float:
    """The middle of a bin, in hours; the first is nothing at all."""
    if place == 0:
        return 0.0
    if place == len(_EDGES_H):
        return float(_EDGES_H[-1])
    return float(np.sqrt(_EDGES_H[place - 1] * _EDGES_H[place]))


@dataclass
class Cards:
    """The cards with frauds, ``cards_max`` at most; those without news for longest leave.

    Frauds of a card that lie further apart than ``compromised_days`` are two episodes; so long,
    too, a card with a known fraud is left out of a ranking of cards.
    """

    cards_max: int
    compromised_days: int

    def __post_init__(self) -> None:
        """Start with no card known."""
        self.held: OrderedDict[int, Card] = OrderedDict()
        self.closed = Caught()

    def on_fraud(self, card: int, time_ms: int, label_time_ms: int, *, is_alert: bool) -> None:
        """Take in a label that says fraud."""
        gap = self.compromised_days * DAY_MS
        held = self.held.get(card)
        if held is not None and time_ms < held.first_ms - gap:
            alone = Card(time_ms, time_ms)  # a late label of an episode that is over
            alone.add(time_ms, is_alert=is_alert)
            self.closed.add(alone)
        else:
            if held is None or time_ms > held.last_ms + gap:
                if held is not None:
                    self.closed.add(held)
                held = Card(time_ms, time_ms, known=held.known if held else [])
                self.held[card] = held
            held.add(time_ms, is_alert=is_alert)
        held.know(label_time_ms)
        self.held.move_to_end(card)
        if len(self.held) > self.cards_max:
            self.closed.add(self.held.popitem(last=False)[1])

    def on_legitimate(self, card: int, time_ms: int, *, is_alert: bool) -> None:
        """Take in a label that says a fraud was none. What was known on a day remains so."""
        held = self.held.get(card)
        if held is not None:
            held.remove(time_ms, is_alert=is_alert)

    def is_known(self, card: int, day: int) -> bool:
        """Whether a fraud of a card was known when ``day`` began."""
        held = self.held.get(card)
        return held is not None and held.is_known(day, self.compromised_days)

    def catch(self, before_ms: int | None = None) -> Catch:
        """How soon cards were caught whose first fraud lies before ``before_ms``; default all."""
        told = Caught(self.closed.frauds.copy(), self.closed.hours.copy(), self.closed.n_missed)
        for card in self.held.values():
            if before_ms is None or card.first_ms < before_ms:
                told.add(card)
        return told.figures()

    def __getstate__(self) -> dict[str, Any]:
        """State as plain values, small when pickled."""
        held = [
            (key, c.first_ms, c.last_ms, c.caught_ms, c.missed, c.known)
            for key, c in self.held.items()
        ]
        return {**self.__dict__, "held": held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go on exactly where the state was taken."""
        self.__dict__.update(state)
        self.held = OrderedDict((key, Card(*told)) for key, *told in state["held"])
