"""Transactions of the declared schema."""

from __future__ import annotations

import json
from datetime import datetime
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from app.codec.headers import trace_of
from app.codec.times import NUMERIC, time_ms_of, time_or_far, times_ms_of
from app.codec.values import ID_MAX, Decoded, ValueReader, id_of, marks_of
from app.core.scoring import Batch, segment_of
from app.errors import Malformed
from app.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from app.codec.values import Refusal
    from app.config import TransactionSettings
    from app.core.features import FeaturePlan

#: Records, below which to look at each takes no longer than at columns: 2.7 us each, 23 us for any.
_FEW: Final = 8


def _as_text(column: Sequence[str | int]) -> list[str]:
    return list(map(str, column))  # a string is its own text


class _Columns(NamedTuple):
    """Transactions as they were told, in columns; n of each."""

    ids: list[str]
    times_ms: NDArray[np.int64]
    keys: list[list[str]]
    numbers: dict[str, NDArray[np.float64]]  # NaN: missing
    categories: dict[str, list[str | None]]


class TransactionReader:
    """Transactions of the declared schema, in columns."""

    def __init__(self, settings: TransactionSettings, plan: FeaturePlan) -> None:
        """Compile the declared schema."""
        self._of, self._plan = settings, plan
        amount = [settings.amount] if settings.amount else []
        numbers = [*settings.numbers, *amount]
        fields: dict[str, Any] = {
            settings.id: str | int,
            settings.time: datetime | int | float,
        }
        fields |= dict.fromkeys(settings.entities, str | int)
        fields |= dict.fromkeys(numbers, float)
        fields |= dict.fromkeys(settings.categories, str | int | bool)
        self._numbers, self._n_entities = numbers, len(settings.entities)
        self._time_min_ms = time_ms_of(datetime.fromisoformat(settings.time_min), "iso")
        self._reader = ValueReader(
            fields,
            settings.optional,
            refuse_unknown=settings.unknown_fields == "refuse",
            limit=settings.record_bytes_max,
        )

    def read_many(self, partition: int, records: Sequence[Record]) -> Decoded[Batch]:
        """Decode the records of one partition; what is refused has no place in the columns."""
        good: list[Record] = []
        told: list[tuple[Any, ...]] = []
        refused: list[Refusal] = []
        for record in records:
            try:
                told.append(self._reader.decode(record.value))
            except Malformed as error:
                refused.append((record, error))
            else:
                good.append(record)
        columns = self._columns(told)
        doubtful: Iterable[int] = range(len(good))
        if len(good) >= _FEW:
            doubtful = np.flatnonzero(~self._is_plain(good, told, columns)).tolist()
        bad: dict[int, Malformed] = {}
        for i in doubtful:
            try:
                self._check(good[i], told[i])
            except Malformed as error:
                bad[i] = error
        if bad:
            refused += [(good[i], error) for i, error in bad.items()]
            refused.sort(key=lambda refusal: refusal[0].offset)
            good = [record for i, record in enumerate(good) if i not in bad]
            columns = self._columns([values for i, values in enumerate(told) if i not in bad])
        return Decoded(self._batch(partition, good, columns), good, refused)

    def _columns(self, told: Sequence[tuple[Any, ...]]) -> _Columns:
        """The values of some records, side by side."""
        columns = list(zip(*told, strict=True)) or [()] * len(self._reader.names)
        n_keys = 2 + self._n_entities
        n_numbers = n_keys + len(self._numbers)
        numbers = [np.array(column, np.float64) for column in columns[n_keys:n_numbers]]
        categories = [[_category(value) for value in column] for column in columns[n_numbers:]]
        return _Columns(
            ids=_as_text(columns[0]),
            times_ms=times_ms_of(columns[1], self._of.time_unit),
            keys=list(map(_as_text, columns[2:n_keys])),
            numbers=dict(zip(self._numbers, numbers, strict=True)),
            categories=dict(zip(self._of.categories, categories, strict=True)),
        )

    def _is_plain(
        self, records: Sequence[Record], told: Sequence[tuple[Any, ...]], columns: _Columns
    ) -> NDArray[np.bool_]:
        """Which records, shape (n,), need no ``_check``: it would find nothing wrong with them."""
        n, of = len(records), self._of
        values = [record.value or b"" for record in records]
        marks = [
            np.fromiter(map(marks_of, map(type, c)), np.int64, n) for c in zip(*told, strict=True)
        ]
        quotes = np.fromiter(map(bytes.count, values, repeat(b'"')), np.int64, n)
        plain: NDArray[np.bool_] = quotes == sum(marks)
        for names in (columns.ids, *columns.keys):
            sizes = np.fromiter(map(len, names), np.int64, n)
            plain &= (sizes > 0) & (sizes <= ID_MAX)
            if "\0" in "".join(names):
                plain &= np.array(["\0" not in name for name in names])
        published = np.array([record.timestamp_ms for record in records], np.int64)
        plain &= columns.times_ms >= self._time_min_ms
        plain &= columns.times_ms <= published + of.ahead_max
        for name, numbers in columns.numbers.items():
            plain &= ~((numbers < self._low(name)) | (numbers > of.number_max))
        if columns.keys:
            belongs = zip(columns.keys[0], records, strict=True)
            plain &= np.fromiter((r.key == name.encode() for name, r in belongs), np.bool_, n)
        return plain

    def _batch(self, partition: int, records: list[Record], columns: _Columns) -> Batch:
        of, n = self._of, len(records)
        named, categories = columns.numbers, columns.categories
        return Batch(
            ids=columns.ids,
            times_ms=columns.times_ms,
            amounts=named[of.amount] if of.amount else np.zeros(n),
            keys=columns.keys,
            rows=self._plan.own_columns(columns.times_ms, named, categories),
            partitions=np.full(n, partition, np.int64),
            offsets=np.array([record.offset for record in records], np.int64),
            published_ms=np.array([record.timestamp_ms for record in records], np.int64),
            traces=[trace_of(record.headers) for record in records],
            segments=[list(map(segment_of, categories[name])) for name in of.segments],
        )

    def _check(self, record: Record, values: tuple[Any, ...]) -> None:
        """Raise Malformed where the values of a record are none that may be."""
        of = self._of
        self._reader.look(record.value or b"", values)
        n_keys = 2 + self._n_entities
        id_of(of.id, values[0])
        self._time(values[1], record)
        keys = list(map(id_of, of.entities, values[2:n_keys]))
        for name, value in zip(self._numbers, values[n_keys:], strict=False):
            self._number(name, value)
        if keys and record.key != keys[0].encode():
            key = None if record.key is None else record.key.decode("utf-8", "replace")
            raise Malformed("key", key, f"the value of {of.entities[0]}, {keys[0]!r}")

    def _time(self, value: datetime | float, record: Record) -> None:
        of = self._of
        if isinstance(value, datetime) and of.time_unit in NUMERIC:
            raise Malformed(of.time, value.isoformat(), f"a number of {of.time_unit}")
        time_ms = time_or_far(value, of.time_unit)
        if not self._time_min_ms <= time_ms <= record.timestamp_ms + of.ahead_max:
            shown = value.isoformat() if isinstance(value, datetime) else value
            ahead = f"{of.ahead_max // 1000} s after it was published"
            raise Malformed(of.time, shown, f"a time from {of.time_min} to {ahead}")

    def _low(self, name: str) -> float:
        of = self._of
        return 0.0 if name == of.amount and not of.negative_amounts else -of.number_max

    def _number(self, name: str, value: float | None) -> None:
        low, high = self._low(name), self._of.number_max
        if value is not None and not low <= value <= high:
            raise Malformed(name, value, f"a finite number from {low:g} to {high:g}")


def record_of(value: bytes, of: TransactionSettings, now_ms: int) -> Record:
    """A transaction as its publisher would write it, keyed by its first entity.

    What cannot be read has no key; ``TransactionReader`` says why.
    """
    return Record(0, key_of(value, of.entities[0] if of.entities else of.id), value, now_ms)


def key_of(value: bytes, field: str) -> bytes | None:
    """The key of a JSON object: one of its fields, as text."""
    try:
        found = json.loads(value).get(field)
    except (ValueError, AttributeError, RecursionError):
        return None
    return str(found).encode("utf-8", "replace") if isinstance(found, str | int) else None


def _category(value: Any) -> str | None:
    return None if value is None else str(value)
