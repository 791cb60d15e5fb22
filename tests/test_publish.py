"""Publishing: files as columns, the order of labels, pace, and what is sent where."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import csv, parquet

from app import codec, files
from app import publish as publishing
from app.codec.times import SECONDS_MAX
from app.config import Settings, load
from app.core.features import FeaturePlan
from app.errors import Refused, Undelivered
from app.files import Columns, due_order, read_columns, write_rows
from app.publish import AtRate, Free, InEventTime, items_of, n_items, publish, send_of
from app.records import Record, Send
from app.synth import Item
from app.topics import Topics, partition_of

CARD = load(profile="card")
T0 = 1_704_067_200_000


def table(**over: Any) -> dict[str, list[Any]]:
    """Three payments as columns of a file."""
    return {
        "transaction_id": ["a", "b", "c"],
        "event_time": [T0, T0 + 1_000, T0 + 2_000],
        "card_id": ["1", "2", "1"],
        "terminal_id": ["x", "x", "y"],
        "amount": [1.5, 2.0, 3.25],
        "is_fraud": [0, 1, 0],
        **over,
    }


def written(folder: Path, columns: dict[str, list[Any]], suffix: str = ".parquet") -> Path:
    """A file of these columns."""
    path = folder / f"payments{suffix}"
    write_rows(path, columns)
    return path


times = st.lists(st.integers(0, 50), min_size=0, max_size=30).map(sorted)


@given(times, st.integers(0, 60))
def test_due_order_is_that_of_event_time(times_ms: list[int], delay_ms: int):
    """Labels that are due go before transactions of that time, never before their own."""
    n = len(times_ms)
    order = due_order(np.array(times_ms, np.int64), delay_ms).tolist()
    assert list(range(2 * n)) == sorted(order)
    at = {entry: place for place, entry in enumerate(order)}
    for i in range(n):
        assert at[i] < at[n + i]
        for j in range(n):
            if j != i and times_ms[i] + delay_ms <= times_ms[j] and at[j] < at[n + i]:
                # Only where its own transaction comes that late itself.
                assert j < i
            if times_ms[j] < times_ms[i] + delay_ms:
                assert at[j] < at[n + i]
    assert [i for i in order if i < n] == list(range(n))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 60)), max_size=30))
def test_due_order_takes_a_time_for_each_label(pairs: list[tuple[int, int]]):
    """With delays of their own, labels still come in the order in which they are due."""
    pairs.sort()
    times_ms = np.array([time for time, _ in pairs], np.int64)
    due = times_ms + np.array([delay for _, delay in pairs], np.int64)
    n = len(pairs)
    order = due_order(times_ms, due).tolist()
    told = [int(due[i - n]) if i >= n else int(times_ms[i]) for i in order]
    assert told == sorted(told)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_formats_give_the_same_columns(tmp_path: Path, suffix: str):
    """Parquet, CSV and JSON lines of one table are read alike."""
    columns = read_columns(written(tmp_path, table(), suffix), CARD)
    assert ["a", "b", "c"] == columns.ids
    assert [["1", "2", "1"], ["x", "x", "y"]] == columns.keys
    assert [T0, T0 + 1_000, T0 + 2_000] == columns.times_ms.tolist()
    assert [1.5, 2.0, 3.25] == columns.amounts.tolist()
    assert [0, 1, 0] == columns.labels.tolist()


def test_a_csv_keeps_leading_zeros(tmp_path: Path):
    """An id is text, whatever it looks like."""
    path = tmp_path / "payments.csv"
    csv.write_csv(pa.table(table(card_id=["007", "008", "007"])), path)
    assert ["007", "008", "007"] == read_columns(path, CARD).keys[0]


def test_columns_are_sorted_by_event_time_and_ties_keep_their_order(tmp_path: Path):
    """Rows come in the order of time; those of one time as in the file."""
    mixed = table(event_time=[T0 + 9, T0, T0])
    columns = read_columns(written(tmp_path, mixed), CARD)
    assert ["b", "c", "a"] == columns.ids
    assert [1, 0, 0] == columns.labels.tolist()


@pytest.mark.parametrize(
    ("given_times", "expected"),
    [
        ([T0, T0 + 1, T0 + 2], T0),
        ([T0 / 1_000, T0 / 1_000 + 1, T0 / 1_000 + 2], T0),
        (["2024-01-01 00:00:00", "2024-01-01 00:00:01.5", "2024-01-02"], T0),
        (["2024-01-01T00:00:00Z", "2024-01-01T00:00:01Z", "2024-01-01T00:00:02Z"], T0),
        (["2024-01-01T01:00:00+01:00", "2024-01-01T00:00:01", "2024-01-01T00:00:02Z"], T0),
        ([datetime(2024, 1, 1, tzinfo=UTC)] * 3, T0),
    ],
)
def test_a_time_is_read_as_the_codec_reads_it(
    tmp_path: Path, given_times: list[Any], expected: int
):
    """Milliseconds, seconds, and ISO 8601 with and without a zone."""
    columns = read_columns(written(tmp_path, table(event_time=given_times)), CARD)
    assert expected == columns.times_ms[0]


def test_files_and_codec_agree_on_seconds():
    """One bound separates seconds from milliseconds, wherever a number is read."""
    assert SECONDS_MAX == files.SECONDS_MAX


@pytest.mark.parametrize(
    ("over", "named"),
    [
        ({"amount": [1.0, None, 2.0]}, "row 1: amount is null"),
        ({"amount": [1.0, math.inf, 2.0]}, "row 1: amount is inf"),
        ({"amount": ["1", "x", "2"]}, 'row 1: amount is "x"'),
        ({"card_id": ["1", "2", None]}, "row 2: card_id is null"),
        ({"is_fraud": [0, 1, 2]}, "row 2: is_fraud is 2"),
        ({"event_time": ["2024-01-01", "soon", "2024-01-02"]}, 'row 1: event_time is "soon"'),
    ],
)
def test_what_cannot_be_read_names_row_and_value(tmp_path: Path, over: dict[str, Any], named: str):
    """An error says where, what, and what was expected."""
    with pytest.raises(Refused, match=named):
        read_columns(written(tmp_path, table(**over)), CARD)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("gone.parquet", None, "expected a file"),
        ("odd.xlsx", b"", "expected one of"),
        ("odd.parquet", b"no parquet at all", "not what its name says"),
        ("odd.csv", b"transaction_id,amount\na,1\n", "no column 'event_time'"),
    ],
)
def test_a_file_that_is_none_is_refused(
    tmp_path: Path, name: str, content: bytes | None, named: str
):
    """A missing, foreign or broken file is told in a sentence."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=named):
        read_columns(tmp_path / name, CARD)


def test_an_optional_number_may_be_absent(tmp_path: Path):
    """What is missing and optional is left out of the record; what is there stays."""
    settings = load(
        profile="stream",
        transaction={"numbers": ("value", "extra"), "categories": ("kind",),
                     "optional": ("extra", "kind")},
    )  # fmt: skip
    path = tmp_path / "numbers.parquet"
    rows = {"id": [1, 2], "time": [T0, T0 + 1], "value": [1.0, 2.0], "extra": [None, 7.0]}
    parquet.write_table(pa.table(rows), path)
    columns = read_columns(path, settings)
    assert [-1, -1] == columns.labels.tolist()
    one, two = items_of(columns, settings, 0)
    assert {"id": "1", "time": T0, "value": 1.0} == one.value
    assert {"id": "2", "time": T0 + 1, "value": 2.0, "extra": 7.0} == two.value
    assert b"1" == one.key


def stream_of(tmp_path: Path, delay_ms: int, **kwargs: Any) -> list[tuple[str, str, int]]:
    """Items of three payments, one of them unlabelled: kind, id, time."""
    columns = read_columns(written(tmp_path, table(is_fraud=[0, None, 1])), CARD)
    found: list[tuple[str, str, int]] = []
    for item in items_of(columns, CARD, delay_ms, **kwargs):
        assert isinstance(item.value, dict)
        found.append((item.kind, item.value["transaction_id"], item.time_ms - T0))
    return found


def test_labels_are_interleaved_in_event_time(tmp_path: Path):
    """A label follows by its delay; a row without one has none."""
    assert [
        ("transaction", "a", 0),
        ("transaction", "b", 1_000),
        ("label", "a", 1_500),
        ("transaction", "c", 2_000),
        ("label", "c", 3_500),
    ] == stream_of(tmp_path, 1_500)


def test_without_tail_nothing_follows_the_last_transaction(tmp_path: Path):
    """Labels that would be due later are left out."""
    told = stream_of(tmp_path, 1_500, with_tail=False)
    assert ("transaction", "c", 2_000) == told[-1]
    assert len(told) == 4


@pytest.mark.parametrize("unit", ["auto", "iso", "s", "ms"])
def test_what_is_published_is_what_the_codec_reads(tmp_path: Path, unit: str):
    """Transactions and labels of a file come back as they were, whatever unit times have."""
    settings = load(profile="card", transaction={"time_unit": unit})
    columns = read_columns(written(tmp_path, table()), CARD)
    sends = [send_of(item, Topics.of(settings)) for item in items_of(columns, settings, 10_000)]
    paid = [s for s in sends if s.topic == "transactions"]
    known = [s for s in sends if s.topic == "labels"]
    plan = FeaturePlan.of(settings.features, settings.transaction.entities)
    records = [Record(i, s.key, s.value, T0 + 10**9) for i, s in enumerate(paid)]
    decoded = codec.TransactionReader(settings.transaction, plan).read_many(0, records)
    assert [] == decoded.refused
    assert columns.ids == decoded.read.ids
    assert columns.times_ms.tolist() == decoded.read.times_ms.tolist()
    assert columns.amounts.tolist() == decoded.read.amounts.tolist()
    reader = codec.LabelReader(settings.label)
    labels = [reader.read(Record(0, s.key, s.value, T0)) for s in known]
    assert [("a", False), ("b", True), ("c", False)] == [
        (label.transaction_id, label.is_fraud) for label in labels
    ]
    assert [T0 + 10_000, T0 + 11_000, T0 + 12_000] == [label.time_ms for label in labels]
    assert all(s.partition == partition_of(s.key or b"", 4) for s in sends)
    assert 6 == n_items(columns) == len(sends)


class Recorder:
    """A sender that keeps what it was given, and fails from the n-th batch on."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.batches: list[list[Send]] = []
        self.fails_at = fails_at
        self.is_stopped = False

    def __call__(self, settings: Settings) -> Recorder:
        """Stand in for the class."""
        return self

    async def start(self) -> None:
        """Connect to nothing."""

    async def stop(self) -> None:
        """Note it."""
        self.is_stopped = True

    async def deliver(self, sends: list[Send]) -> None:
        """Keep a batch, or fail."""
        if self.fails_at is not None and len(self.batches) >= self.fails_at:
            raise Undelivered("the broker is away")
        self.batches.append(sends)
        await asyncio.sleep(0)


class NoAdmin:
    """Topics that are as they should be, but for what it was told."""

    def __init__(self, problems: list[str]) -> None:
        self.told = problems

    def __call__(self, settings: Settings) -> NoAdmin:
        """Stand in for the class."""
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def problems(self, topics: object) -> list[str]:
        """What was told."""
        return self.told


def faked(monkeypatch: pytest.MonkeyPatch, sender: Recorder, *problems: str) -> None:
    """Publish into a recorder."""
    monkeypatch.setattr(publishing, "Sender", sender)
    monkeypatch.setattr(publishing, "Admin", NoAdmin(list(problems)))


def numbered(n: int) -> list[Item]:
    """A stream of n numbers."""
    return [Item(i, "transaction", b"k", {"i": i}) for i in range(n)]


async def test_everything_is_sent_once_and_in_order(monkeypatch: pytest.MonkeyPatch):
    """Batches hold the stream, whole and in its order; what was acknowledged is counted."""
    sender, seen = Recorder(), 0

    def count(batch: list[Item]) -> None:
        nonlocal seen
        seen += len(batch)

    faked(monkeypatch, sender)
    published = await publish(numbered(10_000), CARD, Free(), on_batch=count)
    sent = [msgspec.json.decode(s.value or b"")["i"] for batch in sender.batches for s in batch]
    assert list(range(10_000)) == sent
    assert (10_000, 0, 9_999) == (published.transactions, published.labels, published.time_ms)
    assert 10_000 == seen
    assert len(sender.batches) == 3
    assert sender.is_stopped


async def test_what_was_not_acknowledged_is_not_counted(monkeypatch: pytest.MonkeyPatch):
    """A failing broker ends the publishing, and the count holds what came before."""
    sender, published = Recorder(fails_at=1), publishing.Published()
    faked(monkeypatch, sender)
    with pytest.raises(Undelivered):
        await publish(numbered(10_000), CARD, Free(), published=published)
    assert 4_096 == published.n
    assert sender.is_stopped


async def test_nothing_is_sent_to_topics_that_differ(monkeypatch: pytest.MonkeyPatch):
    """Missing topics, or others' partitions, are refused before the first record."""
    sender = Recorder()
    faked(monkeypatch, sender, "labels does not exist; run `weir topics create`")
    with pytest.raises(Refused, match="topics create"):
        await publish(numbered(1), CARD, Free())
    assert [] == sender.batches


@pytest.mark.parametrize(
    ("pace", "expected"),
    [
        (Free(), [0.0, 0.0, 0.0]),
        (AtRate(10.0), [0.0, 0.1, 0.2]),
        (InEventTime(2.0), [0.0, 0.5, 2.0]),
        (InEventTime(1.0, T0 - 1_000), [1.0, 2.0, 5.0]),
    ],
)
def test_a_pace_says_when_each_may_go(pace: publishing.Pace, expected: list[float]):
    """By number or by event time, from the first item on."""
    told = [pace.due_s(n, T0 + after) for n, after in enumerate((0, 1_000, 4_000))]
    assert expected == pytest.approx(told)


def test_columns_have_the_length_of_their_ids():
    """An empty file is a stream of nothing."""
    none = np.empty(0)
    empty = Columns([], none.astype(np.int64), none, [[], []], {"amount": none}, {},
                    none.astype(np.int8))  # fmt: skip
    assert 0 == len(empty)
    assert [] == list(items_of(empty, CARD, 1_000))
    assert [] == list(items_of(empty, CARD, 1_000, with_tail=False))
