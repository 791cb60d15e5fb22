"""The schema of features, and the book's fifteen against a plain reading of the book."""

import hashlib
import json
import random
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from app import codec
from app.config import load
from app.core.entity import EntityStore
from app.core.features import FeaturePlan, calendar
from app.core.scoring import fold_entity
from app.errors import Misconfigured
from app.records import Record

DAY = 86_400_000
BOOK = load(profile="handbook")
PLAN = FeaturePlan.of(BOOK.features, BOOK.transaction.entities)


def transactions(seed: int, n: int = 1_200) -> list[dict[str, object]]:
    """Transactions of the Handbook's columns over forty days; about one in twelve is a fraud."""
    rng = random.Random(seed)
    start = datetime(2018, 5, 1, tzinfo=UTC)
    seconds = sorted(rng.randrange(40 * 86_400) for _ in range(n))
    return [
        {
            "TRANSACTION_ID": i,
            "TX_DATETIME": (start + timedelta(seconds=s)).isoformat(),
            "CUSTOMER_ID": rng.randrange(12),
            "TERMINAL_ID": rng.randrange(8),
            "TX_AMOUNT": round(rng.lognormvariate(3, 1), 2),
            "fraud": rng.random() < 1 / 12,
        }
        for i, s in enumerate(seconds)
    ]


def book_features(past: list[dict[str, object]], one: dict[str, object]) -> list[float]:
    """Chapter 3 of the Handbook, "Baseline feature transformation", word by word."""

    def at(t: dict[str, object]) -> datetime:
        return datetime.fromisoformat(str(t["TX_DATETIME"]))

    now = at(one)
    row = [float(str(one["TX_AMOUNT"])), float(now.weekday() >= 5), float(now.hour <= 6)]
    mine = [t for t in [*past, one] if t["CUSTOMER_ID"] == one["CUSTOMER_ID"]]
    counts, means = [], []
    for days in (1, 7, 30):
        within = [t for t in mine if now - timedelta(days=days) < at(t) <= now]
        counts.append(float(len(within)))
        means.append(sum(float(str(t["TX_AMOUNT"])) for t in within) / len(within))
    there = [t for t in [*past, one] if t["TERMINAL_ID"] == one["TERMINAL_ID"]]
    numbers, risks = [], []
    delayed = [t for t in there if now - timedelta(days=7) < at(t) <= now]
    for days in (1, 7, 30):
        long = [t for t in there if now - timedelta(days=7 + days) < at(t) <= now]
        n = len(long) - len(delayed)
        frauds = sum(bool(t["fraud"]) for t in long) - sum(bool(t["fraud"]) for t in delayed)
        numbers.append(float(n))
        risks.append(frauds / n if n else 0.0)
    return [*row, *counts, *means, *numbers, *risks]


@pytest.mark.parametrize("seed", [1, 2])
def test_book_features_are_those_of_the_book(seed):
    """Fifteen features, each equal to the book's own words, in the order of its list."""
    told = transactions(seed)
    reader = codec.TransactionReader(BOOK.transaction, PLAN)
    stores = {
        entity: EntityStore(PLAN.windows[entity][1], history_max=512)
        for entity in BOOK.transaction.entities
    }
    for i, one in enumerate(told):
        value = {k: v for k, v in one.items() if k != "fraud"}
        key = str(one["CUSTOMER_ID"]).encode()
        record = Record(i, key, json.dumps(value).encode(), 1_700_000_000_000)
        decoded = reader.read_many(0, [record])
        assert [] == decoded.refused
        batch = decoded.read
        for e, entity in enumerate(BOOK.transaction.entities):
            fold_entity(batch, e, stores[entity], PLAN.windows[entity][0])
        np.testing.assert_allclose(book_features(told[:i], one), batch.rows[0], rtol=1e-12)
        # Labels at once: the delay of the windows is what keeps them from being used too soon.
        terminal = str(one["TERMINAL_ID"])
        stores["TERMINAL_ID"].mark(
            terminal, str(one["TRANSACTION_ID"]), is_fraud=bool(one["fraud"])
        )


def test_book_features_have_the_names_of_the_book():
    """Whoever knows the book finds its columns."""
    ends = ("1DAY_WINDOW", "7DAY_WINDOW", "30DAY_WINDOW")
    expected = ["TX_AMOUNT", "TX_DURING_WEEKEND", "TX_DURING_NIGHT"]
    stems = (
        "CUSTOMER_ID_NB_TX", "CUSTOMER_ID_AVG_AMOUNT", "TERMINAL_ID_NB_TX", "TERMINAL_ID_RISK",
    )  # fmt: skip
    expected += [f"{stem}_{end}" for stem in stems for end in ends]
    assert expected == list(PLAN.names)


def test_calendar_is_that_of_the_standard_library():
    """Every hour of three weeks around a leap day, in UTC."""
    start = datetime(2024, 2, 20, tzinfo=UTC)
    times = [start + timedelta(hours=h, minutes=59) for h in range(24 * 21)]
    ms = np.array([int(t.timestamp() * 1_000) for t in times], np.int64)
    assert [t.weekday() for t in times] == calendar("weekday", ms, 6).tolist()
    assert [t.weekday() >= 5 for t in times] == calendar("weekend", ms, 6).tolist()
    assert [t.hour <= 6 for t in times] == calendar("night", ms, 6).tolist()
    angle = [2 * np.pi * (t.hour + t.minute / 60) / 24 for t in times]
    np.testing.assert_allclose(np.sin(angle), calendar("hour_sin", ms, 6), atol=1e-12)
    np.testing.assert_allclose(np.cos(angle), calendar("hour_cos", ms, 6), atol=1e-12)


@pytest.mark.parametrize("profile", ["card", "handbook", "stream"])
def test_every_column_has_one_owner(profile):
    """Each column is filled by the transaction or by one entity, and by none twice."""
    told = load(profile=profile)
    plan = FeaturePlan.of(told.features, told.transaction.entities)
    entity = [int(c) for columns, _ in plan.windows.values() for c in columns]
    assert len(entity) == len(set(entity))
    n_own = len(plan.names) - len(entity)
    times, numbers = np.array([DAY], np.int64), np.full(1, 3.0)
    fields = [*told.transaction.numbers, told.transaction.amount or ""]
    rows = plan.own_columns(times, dict.fromkeys(fields, numbers), {})
    assert not rows[0, entity].any()
    assert n_own == len(set(range(len(plan.names))) - set(entity))


def test_schema_is_a_digest_of_names_in_order():
    """Equal columns have an equal schema, everywhere and always; others have another."""
    expected = hashlib.sha256("\n".join(PLAN.names).encode()).hexdigest()[:16]
    assert expected == PLAN.schema
    turned = FeaturePlan.of(tuple(reversed(BOOK.features)), BOOK.transaction.entities)
    assert PLAN.schema != turned.schema


def test_two_features_of_one_name_are_refused():
    """A name is a column."""
    with pytest.raises(Misconfigured, match="two features are called 'TX_AMOUNT'"):
        FeaturePlan.of([BOOK.features[0], BOOK.features[0]], ())


def test_logarithm_keeps_sign_and_missing():
    """log1p of the size, with the sign of the number; what is missing stays missing."""
    told = load(profile="card").features[1]
    plan = FeaturePlan.of([told], ())
    values = np.array([0.0, np.e - 1, 1 - np.e, np.nan])
    rows = plan.own_columns(np.zeros(4, np.int64), {"amount": values}, {})
    np.testing.assert_allclose([0.0, 1.0, -1.0, np.nan], rows[:, 0])
