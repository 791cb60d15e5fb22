"""Bytes to words and back: what cannot be read is named, and changes nothing."""

import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import fields

from app import codec, stages
from app.config import Settings, load
from app.core.buckets import BucketValue
from app.core.entity import EntityStore
from app.core.fallback import STAMPS
from app.core.features import FeaturePlan
from app.core.scoring import Batch, Decisions
from app.core.slots import SlotValue
from app.core.windows import WindowPlan
from app.errors import Malformed, shown
from app.join import JoinStage
from app.learning import LearnStage
from app.metrics import Metrics
from app.records import (
    Feedback,
    ModelVersion,
    Partition,
    Position,
    Reason,
    Record,
    Score,
    Source,
)
from app.stages import EntityStage, EntityTask, scorer_of
from app.tasks import Effects, Task
from app.topics import Topics
from app.worker import fresh_champion

#: 2023-11-14T22:13:20Z, when every record here was published.
NOW_MS = 1_700_000_000_000
GOOD: dict[str, Any] = {
    "transaction_id": "t1",
    "event_time": "2023-11-14T00:00:00Z",
    "card_id": "c1",
    "terminal_id": "s1",
    "amount": 12.5,
}
GOOD_LABEL: dict[str, Any] = {
    "transaction_id": "t1",
    "is_fraud": True,
    "event_time": "2023-11-20T00:00:00Z",
}
TIMES = "a time from 2000-01-01T00:00:00Z to 86400 s after it was published"
IDS = "1 to 256 characters, none of them NUL"


def json_of(**changed: Any) -> bytes:
    """The good transaction, with some values changed; ... leaves a field out."""
    return json.dumps({k: v for k, v in {**GOOD, **changed}.items() if v is not ...}).encode()


def raw(**changed: str) -> bytes:
    """The good transaction, with some values as they stand, JSON or not."""
    fields = {name: json.dumps(value) for name, value in GOOD.items()} | changed
    return ("{" + ",".join(f'"{name}":{text}' for name, text in fields.items()) + "}").encode()


def card(**tables: Any) -> Settings:
    """The default profile, with few changes."""
    return load(profile="card", **tables)


def reader_of(configured: Settings) -> codec.TransactionReader:
    """The reader of a configuration."""
    plan = FeaturePlan.of(configured.features, configured.transaction.entities)
    return codec.TransactionReader(configured.transaction, plan)


CARD = card()
STREAM = load(profile="stream")
READERS = {"card": reader_of(CARD), "stream": reader_of(STREAM)}
HOPS = codec.HopCodec(FeaturePlan.of(CARD.features, CARD.transaction.entities), 1)

# what is wrong | value | key | what the message says
TRANSACTIONS: list[tuple[str, bytes | None, bytes | None, tuple[str, ...]]] = [
    ("not JSON", b"hello", b"c1", ('value is "hello"', "expected JSON")),
    ("cut off", json_of()[:-1], b"c1", ("expected JSON", "truncated")),
    ("followed by more", json_of() + b"x", b"c1", ("expected JSON", "trailing")),
    ("two values", json_of() + json_of(), b"c1", ("expected JSON", "trailing")),
    ("empty", b"", b"c1", ('value is ""', "expected JSON")),
    ("a tombstone", None, b"c1", ("value is null", "expected a JSON object")),
    ("a list", b"[]", b"c1", ('value is "[]"', "expected a JSON object")),
    ("null", b"null", b"c1", ('value is "null"', "expected a JSON object")),
    ("a string", b'"x"', b"c1", ("value is", "expected a JSON object")),
    ("a number", b"17", b"c1", ('value is "17"', "expected a JSON object")),
    ("a byte order mark", b"\xef\xbb\xbf" + json_of(), b"c1", (r'"\ufeff{', "expected JSON")),
    ("UTF-16", json.dumps(GOOD).encode("utf-16"), b"c1", ("value is", "expected JSON")),
    ("not UTF-8", json_of().replace(b"t1", b"\xff\xfe"), b"c1", ("expected JSON", "utf-8")),
    ("half a surrogate", raw(transaction_id=r'"\ud800"'), b"c1", ("expected JSON", "surrogate")),
    ("a bare line end", raw(transaction_id='"a\nb"'), b"c1", (r"a\nb", "expected JSON")),
    ("NaN", raw(amount="NaN"), b"c1", ('"amount":NaN', "expected JSON")),
    ("Infinity", raw(amount="Infinity"), b"c1", ('"amount":Infinity', "expected JSON")),
    ("-Infinity", raw(amount="-Infinity"), b"c1", ('"amount":-Infinity', "expected JSON")),
    ("an infinite amount", raw(amount="1e999"), b"c1", ("amount is inf", "a finite number")),
    ("1e308", raw(amount="1e308"), b"c1", ("amount is 1e+308", "a finite number from 0 to 1e+12")),
    ("negative", json_of(amount=-0.01), b"c1", ("amount is -0.01", "a finite number from 0")),
    ("400 digits", raw(amount="9" * 400), b"c1", ("amount is 999", "a finite number")),
    ("5000 digits", raw(amount="9" * 5_000), b"c1", ("amount is", "a finite number")),
    ("a text for a number", json_of(amount="12,50"), b"c1", ('amount is "12,50"', "a finite")),
    ("a boolean for a number", json_of(amount=True), b"c1", ("amount is true", "a finite number")),
    ("null for a number", json_of(amount=None), b"c1", ("amount is null", "a finite number")),
    ("a list for a number", json_of(amount=[1]), b"c1", ("amount is [1]", "a finite number")),
    ("a missing number", json_of(amount=...), b"c1", ("amount is null", "expected a value")),
    ("a missing id", json_of(transaction_id=...), b"c1", ("transaction_id is null", "a value")),
    ("a missing entity", json_of(terminal_id=...), b"c1", ("terminal_id is null", "a value")),
    (
        "null for an entity",
        json_of(terminal_id=None),
        b"c1",
        ("terminal_id is null", "a string or"),
    ),
    ("an empty object", b"{}", b"c1", ("is null", "expected a value")),
    ("an empty id", json_of(transaction_id=""), b"c1", ('transaction_id is ""', IDS)),
    ("NUL in an id", json_of(transaction_id="a\0b"), b"c1", (r'"a\x00b"', IDS)),
    ("NUL in an entity", json_of(terminal_id="a\0b"), b"c1", ("terminal_id is", IDS)),
    ("a long id", json_of(transaction_id="x" * 257), b"c1", ("transaction_id is", IDS)),
    (
        "a boolean id",
        json_of(transaction_id=True),
        b"c1",
        ("is true", "a string or a whole number"),
    ),
    ("a broken id", json_of(transaction_id=1.5), b"c1", ("is 1.5", "a string or a whole number")),
    ("an id of 400 digits", raw(transaction_id="9" * 400), b"c1", ("transaction_id is", IDS)),
    (
        "an id of 5000 digits",
        raw(transaction_id="9" * 5_000),
        b"c1",
        ("transaction_id is", "fewer"),
    ),
    ("no time", json_of(event_time="yesterday"), b"c1", ('"yesterday"', "an ISO 8601 time")),
    ("a boolean time", json_of(event_time=True), b"c1", ("event_time is true", "an ISO 8601 time")),
    ("far ahead", json_of(event_time="2999-01-01T00:00:00Z"), b"c1", ("2999-01-01", TIMES)),
    ("a day and a bit ahead", json_of(event_time=NOW_MS + 86_400_001), b"c1", ("17000864", TIMES)),
    ("long ago", json_of(event_time="1999-12-31T23:59:59Z"), b"c1", ("1999-12-31", TIMES)),
    ("year one", json_of(event_time="0001-01-01T00:00:00+14:00"), b"c1", ("0001-01-01", TIMES)),
    ("time 1e308", raw(event_time="1e308"), b"c1", ("event_time is 1e+308", TIMES)),
    ("time of 400 digits", raw(event_time="-" + "9" * 400), b"c1", ("event_time is -999", TIMES)),
    ("time of 5000 digits", raw(event_time="9" * 5_000), b"c1", ("event_time is", "fewer digits")),
    ("a key twice", raw(amount='1,"amount":2'), b"c1", ('amount is "2"', "each key once")),
    ("a key twice, alike", raw(amount='1,"amount":1'), b"c1", ("amount is", "each key once")),
    (
        "a key twice, escaped",
        raw(amount=r'1,"\u0061mount":2'),
        b"c1",
        ("amount is", "each key once"),
    ),
    ("an unknown field", json_of(colour="red"), b"c1", ('colour is "red"', "no such field")),
    ("a huge unknown field", json_of(**{"x" * 60_000: 1}), b"c1", ("xxx... is 1", "no such field")),
    ("1 MB", json_of(transaction_id="x" * 1_000_000), b"c1", ("1000114 bytes", "at most 65536")),
    ("deep", raw(amount="[" * 30_000 + "]" * 30_000), b"c1", ("amount is", "a finite number")),
    ("too deep", raw(colour='{"a":' * 9_000 + "1" + "}" * 9_000), b"c1", ("colour is", "no such")),
    (
        "a deep value twice",
        raw(amount='1,"amount":' + "[" * 900 + "]" * 900),
        b"c1",
        ("amount is",),
    ),
    ("a null key", json_of(), None, ("key is null", "the value of card_id", "c1")),
    ("another's key", json_of(), b"c2", ('key is "c2"', "the value of card_id", "c1")),
    ("a key that is no text", json_of(), b"\xff", ("key is", "the value of card_id")),
]

AHEAD = b'{"id":"a","time":"2023-11-14T00:00:00Z","value":1.5,"more":'
# What a profile that ignores unknown fields still refuses, inside of them.
IGNORED: list[tuple[str, bytes, tuple[str, ...]]] = [
    ("too deep", AHEAD + b"[" * 9_000 + b"]" * 9_000 + b"}", ("a flat JSON object",)),
    ("not UTF-8", AHEAD + b'"\xff"}', ("expected JSON",)),
    ("a bare line end", AHEAD + b'"a\nb"}', ("expected JSON", r"a\nb")),
    ("NaN", AHEAD + b"NaN}", ("expected JSON", '"more":NaN')),
    ("a key twice", AHEAD + b'{"a":1,"a":2}}', ("a is", "each key once")),
    ("a surrogate twice", AHEAD + rb'{"\ud800\ud800":1,"\ud800\ud800":2}}', ()),
    ("null for a number", AHEAD.replace(b"1.5", b"null") + b"1}", ("value is null", "a finite")),
    ("a text for a number", AHEAD.replace(b"1.5", b'"x"') + b"1}", ('value is "x"', "a finite")),
    ("1e308", AHEAD.replace(b"1.5", b"-1e308") + b"1}", ("value is -1e+308", "-1e+12 to 1e+12")),
]

# what is wrong | value | key | what the message says
LABELS: list[tuple[str, bytes | None, bytes | None, tuple[str, ...]]] = [
    ("not JSON", b"fraud", b"t1", ('value is "fraud"', "expected JSON")),
    ("a tombstone", None, b"t1", ("value is null", "a JSON object")),
    ("not UTF-8", b'{"transaction_id":"\xff"}', b"t1", ("expected JSON",)),
    ("a missing field", b'{"transaction_id":"t1","is_fraud":true}', b"t1",
     ("event_time", "a value")),
    *[
        (f"{name} {text[:12]}", json.dumps(GOOD_LABEL | {name: ...}, default=str)
         .replace('"Ellipsis"', text).encode(), b"t1", words)
        for name, text, words in [
            ("is_fraud", "2", ("is_fraud is 2", "true, false, 1 or 0")),
            ("is_fraud", '"yes"', ('is_fraud is "yes"', "true, false, 1 or 0")),
            ("is_fraud", "1.0", ("is_fraud is 1.0", "true, false, 1 or 0")),
            ("is_fraud", "9" * 400, ("is_fraud is 999", "true, false, 1 or 0")),
            ("is_fraud", "null", ("is_fraud is null", "true, false, 1 or 0")),
            ("event_time", "1e308", ("event_time is 1e+308", "a time from 1970 to 86400 s aft")),
            ("event_time", "9" * 400, ("event_time is 999", "a time from 1970 to 86400 s aft")),
            ("event_time", "-5e14", ("event_time is -5", "a time from 1970 to 86400 s aft")),
            ("event_time", '"soon"', ('event_time is "soon"', "an ISO 8601 time")),
            ("transaction_id", '""', ('transaction_id is ""', IDS)),
            ("transaction_id", "null", ("transaction_id is null", "a string or a whole number")),
        ]
    ],
    ("a key twice", b'{"transaction_id":"t1","is_fraud":true,"is_fraud":false,"event_time":1}',
     b"t1", ("is_fraud is", "each key once")),
    ("an unknown field", json.dumps(GOOD_LABEL | {"why": "x"}).encode(), b"t1", ("why", "no such")),
    ("1 MB", json.dumps(GOOD_LABEL | {"source": "x" * 1_000_000}).encode(), b"t1", ("at most",)),
    ("weir's own source", json.dumps(GOOD_LABEL | {"source": "maturity"}).encode(), b"t1",
     ('source is "maturity"', "weir's own word")),
    ("a long source", json.dumps(GOOD_LABEL | {"source": "x" * 300}).encode(), b"t1",
     ("source is", "up to 256 characters")),
    ("a null key", json.dumps(GOOD_LABEL).encode(), None, ("key is null", "the transaction id")),
    ("another's key", json.dumps(GOOD_LABEL).encode(), b"t2",
     ('key is "t2"', "the transaction id")),
]  # fmt: skip


def id_of(row: tuple[Any, ...]) -> str:
    """The name of a row of a table."""
    return str(row[0])


def said_of(reader: codec.TransactionReader, value: bytes | None, key: bytes | None) -> str:
    """What is said of a record that must be refused."""
    decoded = reader.read_many(3, [Record(1_042, key, value, NOW_MS)])
    assert (0, 1) == (len(decoded.read), len(decoded.refused))
    return str(decoded.refused[0][1])


@pytest.mark.parametrize("row", TRANSACTIONS, ids=id_of)
def test_bad_transaction_is_refused_in_words(row):
    """What is wrong, where, and what was expected, in at most a few lines that can be written."""
    _, value, key, expected = row
    said = said_of(READERS["card"], value, key)
    assert [] == [words for words in expected if words not in said]
    assert len(said.encode()) <= 1_000


@pytest.mark.parametrize("row", IGNORED, ids=id_of)
def test_bad_field_that_nobody_declared_is_refused_in_words(row):
    """What is skipped must still be JSON, of a depth that anyone can read."""
    _, value, expected = row
    said = said_of(READERS["stream"], value, None)
    assert [] == [words for words in expected if words not in said]


@pytest.mark.parametrize("row", LABELS, ids=id_of)
def test_bad_label_is_refused_in_words(row):
    """The same for labels."""
    _, value, key, expected = row
    with pytest.raises(Malformed) as caught:
        codec.LabelReader(CARD.label).read(Record(7, key, value, NOW_MS))
    said = str(caught.value)
    assert [] == [words for words in expected if words not in said]
    assert len(said.encode()) <= 1_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a large whole number", AHEAD + b"9" * 5_000 + b"}"),
        ("nested a little", AHEAD + b"[" * 50 + b"]" * 50 + b"}"),
        ("nothing unknown", AHEAD.removesuffix(b',"more":') + b"}"),
        ("escapes", AHEAD + rb'"\"\u00e9\\"}'),
    ],
)
def test_fields_that_nobody_declared_are_ignored_where_told_so(name, value):
    """A schema may say no more than weir needs of it."""
    decoded = READERS["stream"].read_many(0, [Record(0, None, value, NOW_MS)])
    assert (["a"], []) == (decoded.read.ids, decoded.refused)


# JSON of the time | unit | epoch milliseconds
TIMES_READ = [
    ('"2023-11-14T00:00:00Z"', "auto", 1_699_920_000_000),
    ('"2023-11-14T01:00:00+01:00"', "auto", 1_699_920_000_000),
    ('"2023-11-14T00:00:00"', "auto", 1_699_920_000_000),
    ('"2023-11-14 00:00:00"', "iso", 1_699_920_000_000),
    ('"2023-11-14T00:00:00.125Z"', "auto", 1_699_920_000_125),
    ("1699920000", "auto", 1_699_920_000_000),
    ("1699920000.125", "auto", 1_699_920_000_125),
    ("1699920000000", "auto", 1_699_920_000_000),
    ("1699920000", "s", 1_699_920_000_000),
    ("1699920000000", "ms", 1_699_920_000_000),
]


@pytest.mark.parametrize(("text", "unit", "expected"), TIMES_READ)
def test_time_is_read_as_people_write_it(text, unit, expected):
    """ISO 8601 with or without a zone, seconds and milliseconds mean one moment."""
    reader = reader_of(card(transaction={"time_unit": unit}))
    decoded = reader.read_many(0, [Record(0, b"c1", raw(event_time=text), NOW_MS)])
    assert [expected] == decoded.read.times_ms.tolist(), decoded.refused


@pytest.mark.parametrize("unit", ["s", "ms"])
def test_text_is_no_time_where_numbers_were_declared(unit):
    """A declared unit is a promise of the publisher."""
    said = said_of(reader_of(card(transaction={"time_unit": unit})), json_of(), b"c1")
    assert f"expected a number of {unit}" in said


def test_good_records_keep_their_order_and_bad_ones_leave_no_gap():
    """Refused records have no place in the columns, wherever they stood."""
    values = [json_of(transaction_id=f"t{i}") if i % 3 else b"{" for i in range(10)]
    records = [Record(100 + i, b"c1", value, NOW_MS) for i, value in enumerate(values)]
    decoded = READERS["card"].read_many(2, records)
    assert [f"t{i}" for i in range(10) if i % 3] == decoded.read.ids
    assert [100 + i for i in range(10) if i % 3] == decoded.read.offsets.tolist()
    assert [100, 103, 106, 109] == [record.offset for record, _ in decoded.refused]
    assert {2} == set(decoded.read.partitions.tolist())
    assert len(decoded.read) == len(decoded.records) == len(decoded.read.rows)


@pytest.mark.parametrize("seed", range(5))
def test_batch_is_read_as_its_records_one_by_one(seed):
    """Who stands beside a record has no say in how it is read, nor in why it is refused."""
    rng, reader = np.random.default_rng(seed), READERS["card"]
    told = [(value, key) for _, value, key, _ in TRANSACTIONS]
    told += [(json_of(event_time=time, amount=i), b"c1") for i, time in enumerate(VARIED)] * 3
    told += [(raw(card_id='"\\u00e9"', transaction_id="7"), "é".encode())] * 5
    rng.shuffle(told)
    records = [Record(i, key, value, NOW_MS) for i, (value, key) in enumerate(told)]
    decoded = reader.read_many(0, records)
    alone = [reader.read_many(0, [record]) for record in records]
    read = [one.read for one in alone if len(one.read)]
    refused = [(r.offset, str(error)) for one in alone for r, error in one.refused]
    assert refused == [(record.offset, str(error)) for record, error in decoded.refused]
    joined = Batch.joined(read)
    assert (joined.ids, joined.keys) == (decoded.read.ids, decoded.read.keys)
    for name in ("times_ms", "amounts", "rows", "offsets", "published_ms"):
        assert getattr(joined, name).tobytes() == getattr(decoded.read, name).tobytes(), name


#: Times that may be; in one batch they are of several types.
VARIED = [1_699_920_000_000, 1_699_920_000, 1_699_920_000.25, "2023-11-14T00:00:00Z", NOW_MS]


@settings(max_examples=200, derandomize=True)
@given(
    told=st.lists(st.integers(-(10**20), 10**20) | st.integers(-(2**63), 2**63 - 1), min_size=1)
    | st.lists(st.integers() | st.floats(allow_nan=False) | st.datetimes(), min_size=1),
    unit=st.sampled_from(["auto", "iso", "s", "ms"]),
)
def test_times_of_a_batch_are_those_of_its_records(told, unit):
    """Many at once or one by one; what is none in that unit is farther off than any time."""
    far = 8_000_000_000_000_000

    def alone(value):
        if isinstance(value, datetime) and unit in {"s", "ms"}:
            return None
        try:
            time_ms = codec.time_ms_of(value, unit)
        except OverflowError:
            return None
        return time_ms if abs(time_ms) < far else None

    found = [time if abs(time) < far else None for time in codec.times_ms_of(told, unit).tolist()]
    assert list(map(alone, told)) == found


def test_optional_fields_may_be_absent_or_null():
    """A missing number is NaN; a missing category is none of its buckets."""
    features = [
        {"kind": "number", "field": "amount"},
        {"kind": "number", "field": "risk"},
        {"kind": "category", "field": "country", "buckets": 4},
    ]
    settings_ = Settings.model_validate({
        "transaction": {
            "amount": "amount", "numbers": ["risk"], "categories": ["country"],
            "optional": ["risk", "country"],
        },
        "features": features,
    })  # fmt: skip
    reader = reader_of(settings_)
    given_ = {"transaction_id": 7, "event_time": 1_699_920_000, "amount": 3}
    values = [
        given_,
        given_ | {"risk": None, "country": None},
        given_ | {"risk": 1, "country": "DE"},
    ]
    records = [Record(i, None, json.dumps(v).encode(), NOW_MS) for i, v in enumerate(values)]
    decoded = reader.read_many(0, records)
    assert [] == decoded.refused
    assert ["7", "7", "7"] == decoded.read.ids
    np.testing.assert_array_equal([[3, np.nan, 0, 0, 0, 0]] * 2, decoded.read.rows[:2])
    assert 1.0 == decoded.read.rows[2, 2:].sum()


# ---- Bad input changes nothing: every task, before and after.


def tasks_of(configured: Settings) -> dict[str, Task]:
    """One task of each stage of the card profile, by name."""
    plan = FeaturePlan.of(configured.features, configured.transaction.entities)
    topics, metrics = Topics.of(configured), Metrics()
    champion = fresh_champion(configured, plan)
    scorer = scorer_of(configured, plan, champion)
    return {
        "card": EntityStage(configured, topics, plan, scorer, metrics, 0).task(0),
        "terminal": EntityStage(configured, topics, plan, scorer, metrics, 1).task(0),
        "join": JoinStage(configured, topics, metrics).task(0),
        "learn": LearnStage(configured, topics, plan, champion, metrics).task(0),
    }


def state_of(task: Any) -> bytes:
    """Everything a task keeps, as bytes."""
    kept = {
        name: value
        for name, value in vars(task).items()
        if name not in {"stage", "_next", "_kept_ms"}
    }
    return pickle.dumps(kept)


def applied(task: Task, record: Record, at: Partition | None = None) -> Effects:
    """What a task makes of one record."""
    effects = Effects()
    task.apply(at or task.inputs[0], [record], NOW_MS, effects)
    return effects


def bad_records() -> list[tuple[str, str, int, Record]]:
    """(case, stage, which input, record) of everything that some stage must refuse."""
    raw_bytes = [
        b"", b"hello", b"\xff", b"[", b"{}", b"[]", b"null", b'{"kind":"\xff"}', b'["\xff",true]',
        b'{"transaction_id":"\xff"}', b'{"kind":' + b"[" * 60_000, b"[" * 100_000,
        b'{"kind":"example"}', b"[" + b"9" * 5_000 + b"]",
    ]  # fmt: skip
    cases = [(c, "card", 0, Record(9, key, value, NOW_MS)) for c, value, key, _ in TRANSACTIONS]
    cases += [(c, "join", 1, Record(9, key, value, NOW_MS)) for c, value, key, _ in LABELS]
    for stage, at in [("terminal", 0), ("card", 1), ("terminal", 1), ("join", 0), ("learn", 0)]:
        values = [*raw_bytes, None]
        cases += [(repr(v)[:20], stage, at, Record(9, b"c1", v, NOW_MS)) for v in values]
    return cases


@pytest.fixture(scope="module")
def tasks():
    """Tasks that know of a transaction; no test here may change them."""
    made = tasks_of(CARD)
    applied(made["card"], Record(0, b"c1", json_of(transaction_id="t0"), NOW_MS))
    return made


@pytest.mark.parametrize(
    ("case", "stage", "at", "record"),
    bad_records(),
    ids=[f"{s}-{at}-{case}" for case, s, at, _ in bad_records()],
)
def test_bad_input_becomes_a_dead_letter_and_changes_nothing(tasks, case, stage, at, record):
    """One dead letter, raw, with position and reason; the state is the same to the last byte."""
    task = tasks[stage]
    before = state_of(task)
    effects = applied(task, record, task.inputs[at])
    assert before == state_of(task)
    assert [] == effects.state
    (letter,) = effects.outputs
    headers = dict(letter.headers)
    assert ("dead-letters", record.key, record.value) == (letter.topic, letter.key, letter.value)
    assert task.inputs[at].topic.encode() == headers["__connect.errors.topic"]
    assert (b"0", b"9") == (
        headers["__connect.errors.partition"],
        headers["__connect.errors.offset"],
    )
    assert b"Malformed" == headers["__connect.errors.exception.class.name"]
    said = headers["__connect.errors.exception.message"].decode()
    assert said.startswith(f"{task.inputs[at].topic}[0]@9: ")
    assert "; expected " in said


def test_second_transaction_of_an_id_is_a_dead_letter():
    """An id names one transaction: another of the same card is refused and applied nowhere."""
    card = tasks_of(CARD)["card"]
    assert isinstance(card, EntityTask)
    assert card.store is not None
    applied(card, Record(0, b"c1", json_of(transaction_id="t0"), NOW_MS))
    before = card.store.history("c1")
    again = Record(5, b"c1", json_of(transaction_id="t0", amount=99), NOW_MS)
    effects = applied(card, again)
    assert before == card.store.history("c1")
    assert ["dead-letters"] == [send.topic for send in effects.outputs]
    assert 1 == len(effects.state)  # it has passed
    said = dict(effects.outputs[0].headers)["__connect.errors.exception.message"].decode()
    assert 'transactions[0]@5: transaction_id is "t0"; expected an id that was not used' in said


def test_good_records_pass_between_bad_ones():
    """A batch goes on around what cannot be read."""
    task = tasks_of(CARD)["card"]
    values = [b"", json_of(transaction_id="a"), b"{", json_of(transaction_id="b"), b"]"]
    effects = Effects()
    records = [Record(i, b"c1", value, NOW_MS) for i, value in enumerate(values)]
    task.apply(task.inputs[0], records, NOW_MS, effects)
    hops = [send for send in effects.outputs if send.topic == "weir.hop.terminal_id"]
    plan = FeaturePlan.of(CARD.features, CARD.transaction.entities)
    read = codec.HopCodec(plan, 1).read([Record(0, None, send.value, NOW_MS) for send in hops])
    assert ["a", "b"] == read.read.ids
    assert 3 == sum(send.topic == "dead-letters" for send in effects.outputs)
    assert 2 == len(effects.state)


def test_dead_letter_keeps_the_headers_of_its_record(tasks):
    """Whoever mends the record needs all of it, its trace too."""
    original = (("traceparent", b"00-1-2-01"), ("x", b"1"), ("x", b"2"))
    effects = applied(tasks["card"], Record(9, b"c1", b"{", NOW_MS, original))
    assert original == effects.outputs[0].headers[:3]


@settings(max_examples=300, derandomize=True)
@given(value=st.binary(max_size=200), key=st.none() | st.binary(max_size=5))
def test_no_bytes_break_a_reader(value, key):
    """Whatever the bytes, a reader reads them or says Malformed."""
    record = Record(0, key, value, NOW_MS)
    calls: list[Callable[[Record], Any]] = [
        codec.read_score, codec.read_example, codec.read_feedback,
        codec.LabelReader(CARD.label).read,
    ]  # fmt: skip
    for call in calls:
        try:
            call(record)
        except Malformed as error:
            str(error).encode()
    for reader in READERS.values():
        for _, refusal in reader.read_many(0, [record]).refused:
            str(refusal).encode()
    for _, refusal in HOPS.read([record]).refused:
        str(refusal).encode()


#: Values that JSON can say, not too deep.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, derandomize=True)
@given(field=st.sampled_from(sorted(GOOD)), value=JSON)
def test_no_value_of_a_field_breaks_a_reader(field, value):
    """What is read is finite and bounded; all else is Malformed and can be written as a header."""
    text = json.dumps(GOOD | {field: value}).encode()
    decoded = READERS["card"].read_many(0, [Record(0, b"c1", text, NOW_MS)])
    assert 1 == len(decoded.read) + len(decoded.refused)
    assert np.isfinite(decoded.read.rows).all()
    for _, error in decoded.refused:
        codec.dead_letter_headers(Position("t", 0, 0), "card", error, ())


# ---- What weir writes, it reads.


def test_hops_carry_a_batch_unchanged():
    """Stage to stage nothing is lost: ids, times, amounts, keys, features, source, trace."""
    trace = (("traceparent", b"00-1-2-01"),)
    records = [Record(i, b"c1", json_of(transaction_id=i), NOW_MS, trace) for i in range(5)]
    batch = READERS["card"].read_many(3, records).read
    batch.rows[2, 1] = np.nan
    parts = [batch.take(np.array(at)) for at in ([0, 1, 2], [3], [4])]
    records = [Record(i, None, HOPS.write(part), 0) for i, part in enumerate(parts)]
    read = HOPS.read(records)
    assert [] == read.refused
    assert [0, 0, 0, 1, 2] == [record.offset for record in read.records]
    for name, value in vars(batch).items():
        np.testing.assert_array_equal(value, getattr(read.read, name), err_msg=name)


def test_hop_of_other_features_is_refused():
    """A configuration that changed on the way is a dead letter, not a wrong column."""
    batch = READERS["card"].read_many(0, [Record(0, b"c1", json_of(), NOW_MS)]).read
    other = codec.HopCodec(FeaturePlan.of(CARD.features[1:], CARD.transaction.entities), 1)
    read = other.read([Record(0, None, HOPS.write(batch), 0)])
    assert "the configuration changed on the way" in str(read.refused[0][1])


def test_hops_are_cut_to_what_a_broker_takes(monkeypatch):
    """However large transactions are, none is left out, and one alone goes whole."""
    monkeypatch.setattr(stages, "HOPS_BYTES", 2_000)
    task = tasks_of(CARD)["card"]
    records = [Record(i, b"c1", json_of(transaction_id=f"t{i}"), NOW_MS) for i in range(40)]
    effects = Effects()
    task.apply(task.inputs[0], records, NOW_MS, effects)
    hops = [send for send in effects.outputs if send.topic == "weir.hop.terminal_id"]
    assert len(hops) > 4
    assert all(len(send.value or b"") <= 2_000 for send in hops)
    read = HOPS.read([Record(0, None, send.value, NOW_MS) for send in hops])
    assert [f"t{i}" for i in range(40)] == read.read.ids


def test_score_that_is_not_whole_is_refused_when_it_comes():
    """What is kept unread can be read later: nothing fails at another record."""
    with pytest.raises(Malformed):
        codec.hold_score(Record(0, b"t", b'{"transaction_id":"t","time_ms":1,"score":0.5}', 0))


@settings(max_examples=200, derandomize=True)
@given(st.data())
def test_hop_of_torn_columns_is_refused(data):
    """Columns of unlike lengths never meet the fold."""
    records = [Record(i, b"c1", json_of(transaction_id=i), NOW_MS) for i in range(3)]
    hops = msgspec.msgpack.decode(HOPS.write(READERS["card"].read_many(0, records).read))
    at = data.draw(st.integers(1, len(hops) - 1))
    hops[at] = hops[at][: data.draw(st.integers(0, 1))] if hops[at] else [b"", b""]
    read = HOPS.read([Record(0, None, msgspec.msgpack.encode(hops), 0)])
    assert len(read.refused) == 1
    assert not len(read.read)


@settings(max_examples=200, derandomize=True)
@given(
    key=st.text(min_size=1, max_size=40).filter(lambda t: "\0" not in t and t.isprintable()),
    slot=st.integers(0, 4_095),
    value=st.none()
    | st.builds(
        SlotValue,
        sequence=st.integers(0, 2**62),
        time_ms=st.integers(-(2**62), 2**62),
        amount=st.floats(allow_nan=False),
        id_hash=st.integers(0, 2**64 - 1),
        other_hash=st.integers(0, 2**64 - 1),
        label=st.sampled_from([-1, 0, 1]),
        guard=st.lists(st.tuples(st.integers(0, 1_023), st.integers(0, 2**62)), max_size=5).map(
            tuple
        ),
        revision=st.integers(0, 255),
    ),
)
def test_changelog_row_is_read_as_it_was_written(key, slot, value):
    """A row of the changelog has one meaning."""
    assert ((key, slot), value) == codec.read_slot(*codec.write_slot((key, slot), value))


@settings(max_examples=200, derandomize=True)
@given(
    place=st.integers(0, 4_095),
    value=st.none()
    | st.builds(
        BucketValue,
        absorbed=st.integers(0, 2**62),
        n=st.integers(0, 2**62),
        total=st.floats(allow_nan=False),
        squares=st.floats(allow_nan=False),
        top=st.floats(allow_nan=False),
        first_ms=st.integers(-(2**63), 2**63 - 1),
        last_ms=st.integers(-(2**63), 2**63 - 1),
        frauds=st.integers(0, 2**62),
        legitimate=st.integers(0, 2**62),
        first_fraud_ms=st.integers(-(2**63), 2**63 - 1),
        last_fraud_ms=st.integers(-(2**63), 2**63 - 1),
        sketch=st.binary(min_size=32, max_size=32),
        marks=st.lists(
            st.tuples(
                st.integers(0, 2**64 - 1),
                st.integers(-(2**62), 2**62),
                st.sampled_from([0, 1]),
                st.integers(1, 255),
            ),
            max_size=5,
        ).map(tuple),
    ),
)
def test_bucket_in_the_changelog_is_read_as_it_was_written(place, value):
    """It lies beside the slots of its entity, at a place below theirs."""
    key, written = codec.write_slot(("card-1", ~place), value)
    assert (("card-1", ~place), value) == codec.read_slot(key, written)
    assert key != codec.write_slot(("card-1", place), None)[0]


@pytest.mark.parametrize("upstreams", [1, 3])
def test_rows_in_columns_are_the_rows_one_by_one(upstreams):
    """However a batch is written, the changelog holds the same bytes."""
    store = EntityStore(WindowPlan.of([("count", 60_000, 0, 0.0, 0)]), upstreams=upstreams)
    n, rng = 40, np.random.default_rng(upstreams)
    store.apply(
        [f"e{i % 7}" for i in range(n)],
        times_ms=np.arange(n),
        amounts=rng.random(n),
        ids=[f"t{i}" for i in range(n)],
        others=[f"o{i % 3}" for i in range(n)],
        upstreams=rng.integers(0, upstreams, n),
        offsets=np.arange(n),
    )
    labelled = range(0, n, 9)
    for i in labelled:
        store.mark(f"e{i % 7}", f"t{i}", is_fraud=i % 2 == 0, source=(0, -1))
    _, slots, _ = store.written()
    want = [codec.write_slot(*row) for row in slots.rows()]
    assert len(want) == n + len(labelled), "a slot that is labelled is said again"
    assert want == list(codec.write_slots(slots))


def test_feedback_is_read_as_it_was_written():
    """A confirmed label survives the way back; one of before there were buckets has no time."""
    feedback = Feedback("t1", is_fraud=True, time_ms=5)
    assert feedback == codec.read_feedback(Record(0, b"c1", msgspec.json.encode(feedback), 0))
    older = codec.read_feedback(Record(0, b"c1", b'["t1",true,0,7]', 0))
    assert Feedback("t1", is_fraud=True, offset=7) == older


@settings(max_examples=60)
@given(
    names=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=1,
                   max_size=5),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_scores_written_in_columns_are_those_written_one_by_one(names, seed):
    """Whatever stands in a text, and whichever number is missing."""
    rng, n = np.random.default_rng(seed), len(names)
    rows = rng.normal(size=(n, 3)) * 10.0 ** rng.integers(-9, 20, (n, 3))
    rows[rng.random((n, 3)) < 0.3] = np.nan
    whole = rng.integers(0, 2**53, (4, n))
    batch = Batch(
        names, whole[0], rng.exponential(size=n), [names[::-1], names], rows,
        whole[1], whole[2], whole[3], [None] * n, [names],
    )  # fmt: skip
    told = [Reason("50% off", None, 0.1, "so it is"), Reason("b", 2.0, -1.0, '"')]
    decided = Decisions(
        rng.random(n), rng.random(n), rng.random(n) < 0.5, rng.random(n), {n - 1: told}, {},
        ModelVersion("a%b", 7, "d"), rng.integers(0, 5, n).astype(np.int8),
    )  # fmt: skip
    writer = codec.ScoreWriter(("card", "shop %s"), ("se%gment",), "schema", "topic")
    expected = [
        Score(
            transaction_id=names[i],
            time_ms=int(batch.times_ms[i]),
            entities={"card": names[::-1][i], "shop %s": names[i]},
            amount=float(batch.amounts[i]),
            score=float(decided.scores[i]),
            is_alert=bool(decided.alerts[i]),
            features=[None if np.isnan(x) else float(x) for x in rows[i]],
            feature_schema="schema",
            model=decided.model,
            source=Source("topic", *whole[1:, i].tolist()),
            reasons=told if i == n - 1 else [],
            propensity=float(decided.propensity[i]),
            raw=float(decided.raw[i]),
            segments={"se%gment": names[i]},
            fallback=STAMPS[decided.fallback[i]],
        )
        for i in range(n)
    ]
    written = writer.write(batch, decided)
    assert expected == [codec.read_score(Record(0, None, value, 0)) for value in written]
    assert list(msgspec.json.decode(written[0])) == [f.encode_name for f in fields(Score)]


def test_headers_are_cloudevents_and_pass_the_trace_on():
    """CloudEvents in binary mode: the four required attributes, content type, trace context."""
    headers = dict(
        codec.headers_of("score", "transactions/3/17", "transactions/3/17", b"00-1-2-01")
    )
    assert b"1.0" == headers["ce_specversion"]
    assert b"transactions/3/17" == headers["ce_id"]
    assert b"weir.score.v1" == headers["ce_type"]
    assert headers["ce_source"]
    assert b"application/json" == headers["content-type"]
    assert b"00-1-2-01" == headers["traceparent"]
    assert "traceparent" not in dict(codec.headers_of("score", "x", "x"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"), (True, "true"), ("a\nb", r'"a\nb"'), ("\ud800", r'"\ud800"'), (1.5, "1.5"),
        ("x" * 100, '"' + "x" * 79 + "..."),
    ],
)  # fmt: skip
def test_any_value_can_be_shown(value, expected):
    """A message can always be written, and never carries a record into a log."""
    assert expected == shown(value)


def test_values_that_python_cannot_write_are_shown_too():
    """An integer of 5,000 digits stops str(), a deep list repr()."""
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    assert "<int, too large to show>" == shown(10**5_000)
    assert "<list, too large to show>" == shown(deep)


def test_time_without_a_zone_is_utc():
    """The machine's zone has no say."""
    naive, aware = datetime(2020, 5, 1), datetime(2020, 5, 1, tzinfo=UTC)  # noqa: DTZ001
    assert 1_588_291_200_000 == codec.time_ms_of(naive, "auto") == codec.time_ms_of(aware, "auto")
