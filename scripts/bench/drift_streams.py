"""Streams whose change is known: what changes, when, and what counts as its cause.

What is true of a change is said here, before any detector looks. A true cause is the feature that
was changed, one computed from it, or, where labels changed, what is measured of labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from common import data_file
from numpy.typing import NDArray
from river.datasets import synth as river
from river.datasets.base import SyntheticDataset

from app.config import NumberFeature, Settings, load
from app.files import Columns, read_columns
from app.synth import World, rows, simulate

DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000
WEEK_MS: Final = 7 * DAY_MS
#: The Handbook's profile looks back 37 days, and two weeks more are needed to know what is usual.
WATCHED_FROM_DAYS: Final = 52
MOMENT_DAY: Final = 66
DAYS: Final = 86

AMOUNTS: Final = frozenset(
    {"TX_AMOUNT", *(f"CUSTOMER_ID_AVG_AMOUNT_{w}DAY_WINDOW" for w in (1, 7, 30))}
)
COUNTS: Final = frozenset(f"CUSTOMER_ID_NB_TX_{w}DAY_WINDOW" for w in (1, 7, 30))
CARDS: Final = COUNTS | (AMOUNTS - {"TX_AMOUNT"})
TERMINALS: Final = frozenset(f"TERMINAL_ID_NB_TX_{w}DAY_WINDOW" for w in (1, 7, 30))
RISKS: Final = frozenset(f"TERMINAL_ID_RISK_{w}DAY_WINDOW" for w in (1, 7, 30))
LABELS: Final = frozenset(
    {
        "labels an hour", "labels of frauds an hour", "share of frauds", "delay of frauds",
        "delay of the legitimate",
    }
)  # fmt: skip
QUALITY: Final = frozenset({"rank of frauds", "precision of alerts", "calibration"})
SCORES: Final = frozenset({"mean score", "share of alerts"})
#: What frauds look like, where their pattern changed: by any feature.
FRAUDS: Final = frozenset(
    f"{name} of frauds"
    for name in (*AMOUNTS, *COUNTS, *TERMINALS, *RISKS, "TX_DURING_NIGHT", "TX_DURING_WEEKEND")
)
TRAFFIC: Final = frozenset({"transactions an hour"})


@dataclass(frozen=True)
class Case:
    """A stream, the moment at which it changes (None: never), and what its causes are."""

    name: str
    settings: Settings
    columns: Columns
    due_ms: NDArray[np.int64]
    moment_ms: int | None = None
    causes: frozenset[str] = frozenset()
    watched_days: int = WATCHED_FROM_DAYS

    @property
    def begun_ms(self) -> int:
        """Event time of the first transaction."""
        return int(self.columns.times_ms[0])

    @property
    def watched_ms(self) -> int:
        """From when on alarms count."""
        return self.begun_ms + self.watched_days * DAY_MS


def handbook(seed: int, share: int) -> Columns:
    """The Handbook's transactions of one customer in ``share``, from a day that the seed says."""
    settings = load(profile="handbook")
    whole = read_columns(data_file("handbook_transactions.parquet"), settings)
    start = int(whole.times_ms[0]) + (seed % 90) * DAY_MS
    part = whole.between(start, start + DAYS * DAY_MS)
    chosen = np.random.default_rng(seed).random(5_000) < 1.0 / share
    return taken(part, np.array([chosen[int(key) % 5_000] for key in part.keys[0]]))


def taken(columns: Columns, which: NDArray[np.bool_]) -> Columns:
    """Some of the transactions."""
    at = np.flatnonzero(which)
    return Columns(
        ids=[columns.ids[i] for i in at],
        times_ms=columns.times_ms[at],
        amounts=columns.amounts[at],
        keys=[[column[i] for i in at] for column in columns.keys],
        numbers={name: column[at] for name, column in columns.numbers.items()},
        categories={},
        labels=columns.labels[at],
    )


def delays(columns: Columns, seed: int) -> NDArray[np.int64]:
    """When labels are known: log-normal around two days, cut at 20."""
    drawn = np.exp(0.7 * np.random.default_rng(seed).standard_normal(len(columns)))
    return columns.times_ms + np.clip(2.0 * DAY_MS * drawn, 600_000, 20 * DAY_MS).astype(np.int64)


def amounts_times(columns: Columns, is_after: NDArray[np.bool_], factor: float) -> Columns:
    """Amounts in another unit."""
    changed = np.where(is_after, columns.amounts * factor, columns.amounts)
    return replace(columns, amounts=changed, numbers={"TX_AMOUNT": changed})


def new_tokens(columns: Columns, is_after: NDArray[np.bool_]) -> Columns:
    """Every card under another name: what was known of it is lost."""
    cards = [
        f"{key}-new" if late else key for key, late in zip(columns.keys[0], is_after, strict=True)
    ]
    return replace(columns, keys=[cards, columns.keys[1]])


def other_frauds(columns: Columns, is_after: NDArray[np.bool_], seed: int) -> Columns:
    """As many frauds, but small ones at night, where there were none."""
    late, n, night = _late_frauds(columns, is_after)
    small = night[(columns.amounts[night] > 10.0) & (columns.amounts[night] < 40.0)]  # noqa: PLR2004
    return _frauds_at(columns, late, small, n, seed)


def frauds_to_learn(columns: Columns, is_after: NDArray[np.bool_], seed: int) -> Columns:
    """As many frauds, four of five of the smallest payments at night: AP can reach .8."""
    late, n, night = _late_frauds(columns, is_after)
    smallest = night[np.argsort(columns.amounts[night], kind="stable")][: n + n // 4]
    return _frauds_at(columns, late, smallest, n, seed)


def _late_frauds(
    columns: Columns, is_after: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], int, NDArray[np.intp]]:
    """What comes after the change, how many frauds are in it, and what of it is at night."""
    late = np.flatnonzero(is_after)
    night = late[columns.times_ms[late] % DAY_MS < 7 * HOUR_MS]
    return late, int((columns.labels[late] == 1).sum()), night


def _frauds_at(
    columns: Columns, late: NDArray[np.intp], some: NDArray[np.intp], n: int, seed: int
) -> Columns:
    """``n`` of ``some`` are the frauds among ``late``."""
    labels, rng = columns.labels.copy(), np.random.default_rng(seed)
    labels[late] = 0
    labels[rng.choice(some, min(n, len(some)), replace=False)] = 1
    return replace(columns, labels=labels)


def handbook_cases(seed: int, share: int) -> Iterator[Case]:
    """The Handbook's stream as it is, and with one thing spliced in."""
    settings = load(profile="handbook", model={"name": "logistic"})
    columns = handbook(seed, share)
    due, begun = delays(columns, seed), int(columns.times_ms[0])
    moment = begun + MOMENT_DAY * DAY_MS + int(np.random.default_rng(seed).integers(0, 3 * DAY_MS))
    is_after = columns.times_ms >= moment

    def case(name: str, changed: Columns, causes: Iterable[str], when: NDArray[np.int64]) -> Case:
        return Case(f"handbook {name}", settings, changed, when, moment, frozenset(causes))

    yield Case("handbook steady", settings, columns, due)
    yield case("amount", amounts_times(columns, is_after, 1.5), AMOUNTS, due)
    yield case("group", new_tokens(columns, is_after), CARDS, due)
    yield case(
        "pattern", other_frauds(columns, is_after, seed), QUALITY | RISKS | SCORES | FRAUDS, due
    )
    yield case("delay", columns, LABELS | RISKS, np.where(is_after, due + 10 * DAY_MS, due))


def recovering(seed: int, share: int) -> Case:
    """The Handbook's stream with another pattern of frauds, one that can be learnt as well."""
    columns = handbook(seed, share)
    moment = int(columns.times_ms[0]) + MOMENT_DAY * DAY_MS
    changed = frauds_to_learn(columns, columns.times_ms >= moment, seed)
    settings = load(profile="handbook")
    return Case("handbook recovery", settings, changed, delays(columns, seed), moment)


def simulated(seed: int, scenario: Any, days: int, per_day: float) -> Columns:
    """The simulator's payments, in the Handbook's columns."""
    world = World(
        scenario, seed=seed, per_day=per_day, moment_ms=World().start_ms + MOMENT_DAY * DAY_MS
    )
    table = rows(simulate(world), until_ms=world.start_ms + days * DAY_MS)
    amounts = np.array(table["amount"])
    return Columns(
        ids=table["transaction_id"],
        times_ms=np.array(table["event_time"], np.int64),
        amounts=amounts,
        keys=[table["card_id"], table["terminal_id"]],
        numbers={"TX_AMOUNT": amounts},
        categories={},
        labels=np.array(table["is_fraud"]).astype(np.int8),
    )


def simulator_cases(seed: int, per_day: float) -> Iterator[Case]:
    """The simulator's own scenarios."""
    settings = load(profile="handbook", model={"name": "logistic"})
    moment = World().start_ms + MOMENT_DAY * DAY_MS
    everything = AMOUNTS | COUNTS | TERMINALS | RISKS | QUALITY | LABELS | SCORES | TRAFFIC | FRAUDS
    for scenario, causes in (
        ("steady", frozenset[str]()),
        ("drift", everything - TRAFFIC - TERMINALS),
        ("attack", everything - {"delay of the legitimate"}),
        ("outage", TRAFFIC | LABELS | COUNTS | TERMINALS | RISKS),
    ):
        columns = simulated(seed, scenario, DAYS, per_day)
        when = None if scenario == "steady" else moment
        yield Case(f"simulator {scenario}", settings, columns, delays(columns, seed), when, causes)


def year(seed: int, days: int, per_day: float) -> Case:
    """A year in which nothing changes."""
    columns = simulated(seed, "steady", days, per_day)
    settings = load(profile="handbook", model={"name": "logistic"})
    return Case("simulator year", settings, columns, delays(columns, seed))


def river_cases(seed: int, per_day: int, days: int = 50) -> Iterator[Case]:
    """River's streams, one concept before the middle and another after it."""
    at = 38 * per_day

    def drifting(before: SyntheticDataset, after: SyntheticDataset) -> SyntheticDataset:
        return river.ConceptDriftStream(before, after, seed=seed, position=at, width=at // 100)

    made: tuple[tuple[str, Callable[[], SyntheticDataset], bool], ...] = (
        (
            "agrawal",
            lambda: drifting(river.Agrawal(0, seed=seed), river.Agrawal(3, seed=seed + 1)),
            False,
        ),
        ("sea", lambda: drifting(river.SEA(0, seed=seed), river.SEA(3, seed=seed + 1)), False),
        (
            "rbf",
            lambda: drifting(
                river.RandomRBF(seed, seed, n_classes=2, n_features=8, n_centroids=20),
                river.RandomRBF(seed + 7, seed + 1, n_classes=2, n_features=8, n_centroids=20),
            ),
            True,
        ),
    )
    for name, stream, moves_features in made:
        yield river_case(
            f"river {name}", stream(), days * per_day, per_day, seed, at, moves_features
        )


def river_case(  # noqa: PLR0913, PLR0917 - a stream in words
    name: str,
    stream: SyntheticDataset,
    n: int,
    per_day: int,
    seed: int,
    at: int,
    moves_features: bool,
) -> Case:
    """One of River's streams as transactions of numbers alone."""
    drawn = list(stream.take(n))
    fields = tuple(f"x{i}" for i in range(len(drawn[0][0])))
    features = [NumberFeature(kind="number", field=field) for field in fields]
    settings = load(
        profile="stream",
        transaction={"numbers": fields},
        features=features,
        model={"name": "logistic"},
    )
    values = np.array([list(x.values()) for x, _ in drawn], np.float64)
    rng = np.random.default_rng(seed)
    times = World().start_ms + np.sort(rng.integers(0, n * DAY_MS // per_day, n))
    columns = Columns(
        ids=[f"r{i}" for i in range(n)],
        times_ms=times,
        amounts=np.zeros(n),
        keys=[],
        numbers={field: values[:, i].copy() for i, field in enumerate(fields)},
        categories={},
        labels=np.array([int(y) for _, y in drawn], np.int8),
    )
    causes = QUALITY | SCORES | LABELS | {"scores of the legitimate"}
    causes = causes | frozenset(f"{field} of frauds" for field in fields)
    causes = causes | frozenset(fields) if moves_features else causes
    return Case(name, settings, columns, delays(columns, seed), int(times[at]), causes, 29)
