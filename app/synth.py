"""Card payments that never were: cards, terminals, frauds, and labels that come late.

A pure simulator. A world is drawn from a seed; each day of it is drawn from the seed and the
number of the day, so that a stream may go on for ever in bounded memory and be the same for
every reader. Cards pay mostly at terminals near home, as in the Fraud Detection Handbook
(Le Borgne et al., 2022); four patterns of fraud are laid over that:

    pattern  | what a thief does                                  | what gives it away
    ---------+----------------------------------------------------+------------------------
    large    | pays once, four to ten times the card's usual      | amount, ratio to own mean
    terminal | copies cards at a terminal for two weeks           | the terminal's risk
    stolen   | pays often within hours, far from home             | count of the last hour
    testing  | tries many cards with tiny amounts at one terminal | amount, the terminal's count

Labels follow by a log-normal delay. Some never come, some come twice, some are corrected.

    scenario | what happens at the declared moment
    ---------+-------------------------------------------------------------------------------
    steady   | nothing
    drift    | amounts rise for everyone; large frauds give way to tests and stolen cards
    attack   | for two days ten times as many cards are tested and stolen
    outage   | no transaction and no label for eighteen hours; then all labels held back at once
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.random import Generator
    from numpy.typing import NDArray

Scenario = Literal["steady", "drift", "attack", "outage"]
SCENARIOS: Final[tuple[str, ...]] = get_args(Scenario)
Kind = Literal["transaction", "label"]

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
#: 2024-01-01, a Monday.
START_MS: Final = 1_704_067_200_000

PATTERNS: Final = ("none", "large", "terminal", "stolen", "testing")
_NONE, _LARGE, _TERMINAL, _STOLEN, _TESTING = range(5)
SOURCES: Final = ("chargeback", "settlement", "review", "correction")
_CHARGEBACK, _SETTLEMENT, _REVIEW, _CORRECTION = range(4)

#: Days between two draws of compromised terminals, and for how many of them each stays so.
_PERIOD_DAYS, _COMPROMISED_DAYS = 28, 14
_ATTACK_MS: Final = 2 * DAY_MS
_OUTAGE_MS: Final = 18 * HOUR_MS
#: Amounts once money has lost its worth, in the scenario "drift".
_INFLATION: Final = 1.8
_AMOUNT_MIN, _AMOUNT_MAX = 0.01, 10_000.0
#: Draws of one day have a number of their own each, so that none shifts another.
_CARDS, _DAY, _COMPROMISED = range(3)


@dataclass(frozen=True)
class Shares:
    """Frauds by pattern: ``large`` and ``terminal`` a transaction, the others bursts a day.

    ``stolen`` and ``testing`` count bursts a thousand transactions.
    """

    large: float = 0.004
    terminal: float = 0.5  # of the transactions at a compromised terminal
    stolen: float = 0.5
    testing: float = 0.12


@dataclass(frozen=True)
class Delays:
    """Verification latency: log-normal around ``median_ms``, cut at both ends."""

    median_ms: int = DAY_MS
    sigma: float = 0.7
    min_ms: int = 600_000
    max_ms: int = 20 * DAY_MS

    def draw(self, rng: Generator, n: int) -> NDArray[np.int64]:
        """``n`` delays in milliseconds."""
        drawn = self.median_ms * np.exp(self.sigma * rng.standard_normal(n))
        delays: NDArray[np.int64] = np.clip(drawn, self.min_ms, self.max_ms).astype(np.int64)
        return delays


@dataclass(frozen=True)
class World:
    """What is simulated; equal worlds give equal streams.

    ``per_day`` is the mean number of legitimate transactions a day, ``moment_ms`` the event
    time at which the scenario sets in. Shares are in [0, 1]. ``n_cards`` None: so many that
    each pays twice a day. Raises ValueError where that cannot be.
    """

    scenario: Scenario = "steady"
    seed: int = 42
    start_ms: int = START_MS
    per_day: float = 20_000.0
    moment_ms: int = START_MS + 14 * DAY_MS
    n_cards: int | None = None
    terminals_side: int = 24  # terminals stand on a grid of this many by as many
    shares: Shares = Shares()
    delays: Delays = Delays()
    missing_frauds: float = 0.05  # labels that never come
    missing_legitimate: float = 0.1
    duplicated: float = 0.01
    corrected_frauds: float = 0.02  # first said to be legitimate
    corrected_legitimate: float = 0.0005  # first said to be fraud

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated."""
        if self.scenario not in SCENARIOS:
            msg = f"scenario is {self.scenario!r}; expected one of: {', '.join(SCENARIOS)}"
            raise ValueError(msg)
        if not (self.per_day > 0.0 and self.terminals_side > 0 and self.cards > 0):
            msg = f"{self.per_day} a day, {self.cards} cards; expected at least one of each"
            raise ValueError(msg)
        if self.seed < 0:
            msg = f"seed is {self.seed}; expected a number >= 0"
            raise ValueError(msg)

    @property
    def cards(self) -> int:
        """How many cards there are."""
        return max(int(self.per_day / 2.0), 1) if self.n_cards is None else self.n_cards

    @property
    def run(self) -> str:
        """Eight hexadecimal digits that tell this world's ids from another's."""
        return hashlib.blake2b(repr(self).encode(), digest_size=4).hexdigest()

    def rng(self, *path: int) -> Generator:
        """A generator of its own for one thing in this world."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, *path])))


class Transactions(NamedTuple):
    """Transactions in columns, shape (n,); cards and terminals are numbers."""

    ids: NDArray[np.int64]  # running number within the world
    times_ms: NDArray[np.int64]
    cards: NDArray[np.int64]
    terminals: NDArray[np.int64]
    amounts: NDArray[np.float64]
    patterns: NDArray[np.int8]  # index in PATTERNS: the truth

    def take(self, which: NDArray[Any]) -> Transactions:
        """The transactions at these indices, in this order."""
        return Transactions(*(column[which] for column in self))

    @property
    def is_fraud(self) -> NDArray[np.bool_]:
        """The truth, whatever the labels say."""
        is_fraud: NDArray[np.bool_] = self.patterns != _NONE
        return is_fraud


class Labels(NamedTuple):
    """Labels in columns, shape (n,), in the order in which they become known."""

    ids: NDArray[np.int64]  # of their transactions
    times_ms: NDArray[np.int64]  # when they become known
    is_fraud: NDArray[np.bool_]
    sources: NDArray[np.int8]  # index in SOURCES

    def take(self, which: NDArray[Any]) -> Labels:
        """The labels at these indices, in this order."""
        return Labels(*(column[which] for column in self))


class Day(NamedTuple):
    """A day: its transactions and the labels that become known on it, each in order of time."""

    world: World
    transactions: Transactions
    labels: Labels

    @property
    def order(self) -> NDArray[np.int64]:
        """Both as one stream: below n a transaction, from n on a label; at one time labels first.

        Shape (n transactions + n labels,).
        """
        n = len(self.transactions.ids)
        times = np.concatenate([self.transactions.times_ms, self.labels.times_ms])
        is_transaction = np.arange(len(times)) < n
        return np.lexsort((is_transaction, times))


class Item(NamedTuple):
    """One record of the stream, before it is bytes; ``value`` is raw where it is spoilt."""

    time_ms: int
    kind: Kind
    key: bytes
    value: dict[str, Any] | bytes


@dataclass(frozen=True)
class Fields:
    """What the fields of a record are called; the default is the profile ``card``."""

    id: str = "transaction_id"
    time: str = "event_time"
    card: str = "card_id"
    terminal: str = "terminal_id"
    amount: str = "amount"
    label_id: str = "transaction_id"
    label_value: str = "is_fraud"
    label_time: str = "event_time"
    label_source: str | None = "source"


CARD_FIELDS: Final = Fields()


def simulate(world: World) -> Iterator[Day]:
    """The days of a world, one after the other, without end.

    Cost about 1 us a transaction, and 2 ms a day.

    >>> days = simulate(World(seed=7, per_day=1_000.0))
    >>> first = next(days)
    >>> len(first.transactions.ids), int(first.transactions.is_fraud.sum())
    (1033, 9)
    """
    cards = _Cards.of(world)
    waiting = _no_labels()
    first_id = 0
    for number in count():
        transactions = _transactions(world, cards, number, first_id)
        first_id += len(transactions.ids)
        labels = _labels(world, transactions, world.rng(_DAY, number, 1))
        both: Iterator[tuple[Any, Any]] = zip(waiting, labels, strict=True)
        waiting = Labels(*(np.concatenate(pair) for pair in both))
        is_due = waiting.times_ms < world.start_ms + (number + 1) * DAY_MS
        due, waiting = waiting.take(is_due), waiting.take(~is_due)
        yield Day(world, transactions, due.take(np.lexsort((due.ids, due.times_ms))))


def items(day: Day, fields: Fields = CARD_FIELDS) -> Iterator[Item]:
    """The records of a day in the order of event time, labels before transactions of their time.

    >>> item = next(items(next(simulate(World(seed=7)))))
    >>> item.kind, item.key == item.value["card_id"].encode(), item.value["amount"]
    ('transaction', True, 42.24)
    """
    run, transactions, labels = day.world.run, day.transactions, day.labels
    paid = list(zip(*(column.tolist() for column in transactions), strict=True))
    known = list(zip(*(column.tolist() for column in labels), strict=True))
    for at in day.order.tolist():
        if at < len(paid):
            number, time_ms, card, terminal, amount, _ = paid[at]
            value = {
                fields.id: f"{run}-{number:08d}",
                fields.time: time_ms,
                fields.card: f"card-{card:06d}",
                fields.terminal: f"term-{terminal:05d}",
                fields.amount: amount,
            }
            yield Item(time_ms, "transaction", value[fields.card].encode(), value)
        else:
            number, time_ms, is_fraud, source = known[at - len(paid)]
            name = f"{run}-{number:08d}"
            value = {
                fields.label_id: name,
                fields.label_value: is_fraud,
                fields.label_time: time_ms,
            }
            if fields.label_source:
                value[fields.label_source] = SOURCES[source]
            yield Item(time_ms, "label", name.encode(), value)


def rows(
    days: Iterable[Day], *, n: int | None = None, until_ms: int | None = None
) -> dict[str, list[Any]]:
    """Transactions as a table in the columns of the profile ``card``, with the truth beside.

    At most ``n``, and none from event time ``until_ms`` on. One of them must be given, for days
    do not end; raises ValueError.

    >>> table = rows(simulate(World(seed=7)), n=2)
    >>> table["amount"], table["is_fraud"], table["pattern"]
    ([42.24, 10.05], [False, False], ['none', 'none'])
    """
    if n is None and until_ms is None:
        raise ValueError("n and until_ms are None; expected one of them")
    table: dict[str, list[Any]] = {}
    left = n
    for day in days:
        kept = day.transactions
        if until_ms is not None:
            kept = kept.take(kept.times_ms < until_ms)
        kept = kept.take(np.arange(len(kept.ids))[:left])
        for name, column in _table(day.world.run, kept).items():
            table.setdefault(name, []).extend(column)
        left = None if left is None else left - len(kept.ids)
        if left == 0 or len(kept.ids) < len(day.transactions.ids):
            break
    return table


def _table(run: str, paid: Transactions) -> dict[str, list[Any]]:
    return {
        "transaction_id": [f"{run}-{number:08d}" for number in paid.ids.tolist()],
        "event_time": paid.times_ms.tolist(),
        "card_id": [f"card-{card:06d}" for card in paid.cards.tolist()],
        "terminal_id": [f"term-{terminal:05d}" for terminal in paid.terminals.tolist()],
        "amount": paid.amounts.tolist(),
        "is_fraud": paid.is_fraud.tolist(),
        "pattern": [PATTERNS[pattern] for pattern in paid.patterns.tolist()],
    }


def spoilt(item: Item, number: int, fields: Fields = CARD_FIELDS) -> Item:
    """A transaction as a broken service would publish it, in one of five ways by ``number``.

    >>> item = Item(0, "transaction", b"card-1", {"transaction_id": "t", "amount": 9.5})
    >>> spoilt(item, 0).value
    b'{"transaction_id": '
    >>> spoilt(item, 1).value
    {'transaction_id': 't-spoilt-1', 'amount': -9.5}
    """
    if not isinstance(item.value, dict):
        return item
    value = {**item.value, fields.id: f"{item.value[fields.id]}-spoilt-{number}"}
    match number % 5:
        case 0:
            return item._replace(value=f'{{"{fields.id}": '.encode())
        case 1:
            value[fields.amount] = -value[fields.amount]
        case 2:
            value[fields.amount] = "12,50"
        case 3:
            del value[fields.amount]
        case _:
            value[fields.time] = "yesterday"
    return item._replace(value=value)


class _Cards(NamedTuple):
    """Where cards live on the terminals' grid, how often and how much they pay; shape (cards,)."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    usual: NDArray[np.float64]  # median amount
    cumulated: NDArray[np.float64]  # share of all payments, summed up

    @classmethod
    def of(cls, world: World) -> _Cards:
        rng, n = world.rng(_CARDS), world.cards
        often = rng.gamma(2.0, 1.0, n)
        side = world.terminals_side
        return cls(
            rng.uniform(0.0, side, n),
            rng.uniform(0.0, side, n),
            np.exp(rng.normal(3.5, 0.6, n)),  # around 33, as in the Handbook's means of 5 to 100
            np.cumsum(often) / often.sum(),
        )

    def who(self, rng: Generator, n: int) -> NDArray[np.int64]:
        """Who pays: those more often who pay often."""
        found = np.searchsorted(self.cumulated, rng.random(n), side="right")
        return np.minimum(found, len(self.cumulated) - 1)

    def near(self, rng: Generator, cards: NDArray[np.int64], side: int) -> NDArray[np.int64]:
        """A terminal near home; one time in fifty anywhere."""
        n = len(cards)
        x = np.clip(self.x[cards] + rng.normal(0.0, 1.2, n), 0, side - 1).astype(np.int64)
        y = np.clip(self.y[cards] + rng.normal(0.0, 1.2, n), 0, side - 1).astype(np.int64)
        away = rng.random(n) < 1.0 / 50.0
        return np.where(away, rng.integers(0, side * side, n), x * side + y)


def _no_labels() -> Labels:
    none = np.empty(0, np.int64)
    return Labels(none, none, none.astype(np.bool_), none.astype(np.int8))


def _transactions(world: World, cards: _Cards, number: int, first_id: int) -> Transactions:
    """All transactions of one day, in the order of time."""
    rng = world.rng(_DAY, number, 0)
    parts = [
        _payments(world, cards, rng, number),
        _stolen(world, cards, rng, number),
        _testing(world, rng, number),
    ]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    paid = Transactions(*columns)
    if world.scenario == "outage":
        is_out = (paid.times_ms >= world.moment_ms) & (paid.times_ms < world.moment_ms + _OUTAGE_MS)
        paid = paid.take(~is_out)
    paid = paid.take(np.argsort(paid.times_ms, kind="stable"))
    amounts: NDArray[np.float64] = np.clip(paid.amounts, _AMOUNT_MIN, _AMOUNT_MAX)
    amounts = np.round(amounts, 2).astype(np.float64)
    return paid._replace(ids=first_id + np.arange(len(paid.ids)), amounts=amounts)


def _payments(world: World, cards: _Cards, rng: Generator, number: int) -> Transactions:
    """What card holders pay, and thieves among them one by one."""
    day_ms = world.start_ms + number * DAY_MS
    n = int(rng.poisson(world.per_day))
    # Most pay in the afternoon; a tenth at any time.
    at = np.where(rng.random(n) < 1.0 / 10.0, rng.random(n), rng.normal(0.6, 0.17, n) % 1.0)
    times = day_ms + np.minimum((at * DAY_MS).astype(np.int64), DAY_MS - 1)
    who = cards.who(rng, n)
    where = cards.near(rng, who, world.terminals_side)
    amounts = cards.usual[who] * np.exp(rng.normal(0.0, 0.5, n))
    is_changed = (times >= world.moment_ms) & (world.scenario == "drift")
    amounts = np.where(is_changed, amounts * _INFLATION, amounts)

    patterns = np.zeros(n, np.int8)
    copied = np.isin(where, _compromised(world, number))
    patterns[copied & (rng.random(n) < world.shares.terminal)] = _TERMINAL
    share = np.where(is_changed, world.shares.large / 20.0, world.shares.large)
    is_large = (rng.random(n) < share) & (patterns == _NONE)
    patterns[is_large] = _LARGE
    amounts = np.where(is_large, amounts * rng.uniform(4.0, 10.0, n) + 50.0, amounts)
    return Transactions(np.zeros(n, np.int64), times, who, where, amounts, patterns)


def _compromised(world: World, number: int) -> NDArray[np.int64]:
    """Terminals at which cards are copied on this day: one in 120, for two weeks each."""
    period, day = divmod(number, _PERIOD_DAYS)
    rng = world.rng(_COMPROMISED, period)
    n = world.terminals_side**2
    which = rng.permutation(n)[: max(n // 60, 1)]
    since = rng.integers(0, _PERIOD_DAYS - _COMPROMISED_DAYS, len(which), endpoint=True)
    return which[(since <= day) & (day < since + _COMPROMISED_DAYS)]


def _bursts(
    world: World, rng: Generator, number: int, per_thousand: float, sizes: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """When the bursts of a day begin, and how many transactions each has."""
    day_ms = world.start_ms + number * DAY_MS
    often = {"drift": 3.0, "attack": 10.0}.get(world.scenario, 1.0)
    n = int(rng.poisson(often * per_thousand * world.per_day / 1_000.0))
    starts = day_ms + rng.integers(0, 21 * HOUR_MS, n)
    on = starts >= world.moment_ms
    if world.scenario == "attack":
        on &= starts < world.moment_ms + _ATTACK_MS
    kept = on | (rng.random(n) < 1.0 / often)
    lengths = rng.integers(*sizes, n, endpoint=True)
    return starts[kept], lengths[kept]


def _stolen(world: World, cards: _Cards, rng: Generator, number: int) -> Transactions:
    """Stolen cards: four to twelve payments within three hours, anywhere."""
    starts, lengths = _bursts(world, rng, number, world.shares.stolen, (4, 12))
    who = np.repeat(cards.who(rng, len(starts)), lengths)
    n = len(who)
    times = np.repeat(starts, lengths) + rng.integers(0, 3 * HOUR_MS, n)
    where = rng.integers(0, world.terminals_side**2, n)
    amounts = cards.usual[who] * np.exp(rng.normal(0.5, 0.5, n))
    patterns = np.full(n, _STOLEN, np.int8)
    return Transactions(np.zeros(n, np.int64), times, who, where, amounts, patterns)


def _testing(world: World, rng: Generator, number: int) -> Transactions:
    """Card testing: ten to forty cards, tiny amounts, one terminal, half an hour."""
    starts, lengths = _bursts(world, rng, number, world.shares.testing, (10, 40))
    where = np.repeat(rng.integers(0, world.terminals_side**2, len(starts)), lengths)
    n = len(where)
    times = np.repeat(starts, lengths) + rng.integers(0, HOUR_MS // 2, n)
    who = rng.integers(0, world.cards, n)
    amounts = rng.uniform(0.5, 2.0, n)
    patterns = np.full(n, _TESTING, np.int8)
    return Transactions(np.zeros(n, np.int64), times, who, where, amounts, patterns)


def _labels(world: World, paid: Transactions, rng: Generator) -> Labels:
    """Everything that will ever be said of these transactions."""
    n, is_fraud = len(paid.ids), paid.is_fraud
    times = paid.times_ms + world.delays.draw(rng, n)
    missing = np.where(is_fraud, world.missing_frauds, world.missing_legitimate)
    is_known = rng.random(n) >= missing
    mistaken = np.where(is_fraud, world.corrected_frauds, world.corrected_legitimate)
    is_mistaken = is_known & (rng.random(n) < mistaken)
    is_repeated = is_known & (rng.random(n) < world.duplicated)
    said = is_fraud ^ is_mistaken
    source = np.where(said, _CHARGEBACK, _SETTLEMENT).astype(np.int8)
    source[is_fraud & (rng.random(n) < 1.0 / 4.0)] = _REVIEW
    first = Labels(paid.ids, times, said, source)
    again = first._replace(times_ms=times + world.delays.draw(rng, n))
    corrected = Labels(
        paid.ids,
        times + world.delays.draw(rng, n),
        is_fraud,
        np.full(n, _CORRECTION, np.int8),
    )
    parts = [first.take(is_known), again.take(is_repeated), corrected.take(is_mistaken)]
    labels = Labels(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    if world.scenario == "outage":
        over = world.moment_ms + _OUTAGE_MS
        held = (labels.times_ms >= world.moment_ms) & (labels.times_ms < over)
        # All that was held back comes within ten minutes, in its old order.
        late = over + (labels.times_ms - world.moment_ms) * 600_000 // _OUTAGE_MS
        labels = labels._replace(times_ms=np.where(held, late, labels.times_ms))
    return labels
