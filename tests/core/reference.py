"""What the entity fold must give, in plain Python: slow, and plain to see."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

FRAUD = 1


@dataclass
class Seen:
    """One transaction of an entity, as it came."""

    id: str
    time_ms: int
    amount: float
    other: str
    label: int = -1


@dataclass
class Reference:
    """Every transaction of every entity, in lists; the last ``history_max`` count."""

    windows: Sequence[tuple[Any, ...]]
    history_max: int
    known: dict[str, list[Seen]] = field(default_factory=dict)
    guards: dict[tuple[str, int], int] = field(default_factory=dict)

    def apply(self, key: str, one: Seen, upstream: int, offset: int) -> list[float] | None:
        """The features of a transaction, or None where it changes nothing."""
        if offset <= self.guards.get((key, upstream), -1):
            return None
        held = self.known.setdefault(key, [])
        before = held[-(self.history_max - 1) :]
        if any(seen.id == one.id for seen in before):
            return None
        held.append(one)
        del held[: -self.history_max]
        self.guards[key, upstream] = offset
        return [feature(window, before, one) for window in self.windows]

    def mark(self, key: str, transaction_id: str, *, is_fraud: bool) -> None:
        """Note a label."""
        for seen in self.known.get(key, ()):
            if seen.id == transaction_id:
                seen.label = int(is_fraud)


def feature(  # noqa: C901, PLR0911, PLR0912 - one definition after another
    window: tuple[Any, ...], before: Sequence[Seen], one: Seen
) -> float:
    """One statistic, by its definition."""
    stat, length, delay, prior = window[:4]
    now = one.time_ms
    others = [s for s in before if now - delay - length < s.time_ms <= now - delay]
    with_it = [*others, one] if delay == 0 else others
    amounts = [s.amount for s in with_it]
    if stat == "count":
        return float(len(amounts))
    if stat == "sum":
        return math.fsum(amounts)
    if stat == "mean":
        return math.fsum(amounts) / len(amounts) if amounts else 0.0
    if stat == "max":
        return max(amounts, default=0.0)
    if stat == "std":
        return deviation(amounts)
    if stat == "ratio":
        mean = math.fsum(s.amount for s in others) / len(others) if others else 0.0
        return one.amount / mean if mean > 0.0 else 1.0
    if stat == "zscore":
        spread = deviation([s.amount for s in others])
        mean = math.fsum(s.amount for s in others) / len(others) if others else 0.0
        return (one.amount - mean) / spread if spread > 0.0 else 0.0
    if stat == "since_last":
        last = max((s.time_ms for s in others), default=None)
        return (length if last is None else now - last) / 1_000.0
    if stat == "distinct":
        return float(len({s.other for s in with_it}))
    if stat == "seen":
        return float(any(s.other == one.other for s in others))
    if stat == "rank":
        return sum(s.amount >= one.amount for s in others) / len(others) if others else math.nan
    if stat in ("peak", "burst"):
        return contrast(stat, length, window[4], before, one)
    if stat in ("share", "since_fraud", "since_first_fraud", "since_legitimate", "last", "run"):
        return known(stat, length, delay, window[4], before, one)
    frauds = float(sum(s.label == FRAUD for s in with_it))
    if stat == "frauds":
        return frauds
    n = len(with_it) + prior
    return frauds / n if n > 0.0 else 0.0


def contrast(stat: str, length: int, against: int, before: Sequence[Seen], one: Seen) -> float:
    """A short window beside a long one."""
    long = [s for s in before if one.time_ms - against < s.time_ms <= one.time_ms]
    short = [s.amount for s in long if one.time_ms - length < s.time_ms]
    if stat == "burst":
        return (len(short) + 1) / (len(long) * length / against + 1)
    if not short or len(long) <= 1:
        return math.nan
    mean = math.fsum(s.amount for s in long) / len(long)
    spread = deviation([s.amount for s in long]) + abs(mean) / 100
    return (max(short) - mean) / spread if spread > 0.0 else 0.0


def known(
    stat: str, length: int, delay: int, newest: int, before: Sequence[Seen], one: Seen
) -> float:
    """What is known of earlier transactions, the newest first."""
    told = [
        ((one.time_ms - s.time_ms) / 86_400_000, s.label == FRAUD)
        for s in reversed(before)
        if one.time_ms - length < s.time_ms <= one.time_ms
        and (s.label != -1 or one.time_ms - s.time_ms >= delay)
    ]
    frauds = [days for days, is_fraud in told if is_fraud]
    legitimate = [days for days, is_fraud in told if not is_fraud]
    if stat == "since_fraud":
        return min(frauds, default=math.nan)
    if stat == "since_first_fraud":
        return max(frauds, default=math.nan)
    if stat == "since_legitimate":
        return min(legitimate, default=math.nan)
    if stat == "run":
        return float(next((i for i, (_, is_fraud) in enumerate(told) if not is_fraud), len(told)))
    looked = told[:newest] if stat == "last" else told
    return sum(is_fraud for _, is_fraud in looked) / len(looked) if looked else math.nan


def deviation(values: Sequence[float]) -> float:
    """Of the population; 0 for fewer than two."""
    if len(values) <= 1:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
