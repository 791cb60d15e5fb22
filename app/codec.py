"""Bytes to words and back: the only module that knows JSON.

What comes from outside is decoded against the declared schema; what does not fit is a dead
letter with a reason that a person understands, and never an exception in the loop.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
import orjson

from app.core.buckets import BucketValue
from app.core.early import Label
from app.core.entity import SlotValue
from app.core.fallback import STAMPS
from app.core.repeats import Shown
from app.core.scoring import Batch, segment_of
from app.errors import SHOWN_MAX, Malformed
from app.records import (
    SCHEMA_VERSION,
    Action,
    Alert,
    Entry,
    Example,
    Fact,
    Feedback,
    Hops,
    LabelOutcome,
    Position,
    Record,
    Score,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from app.config import LabelSettings, TransactionSettings
    from app.core.entity import EntityStore, Row, Slot, SlotColumns
    from app.core.features import FeaturePlan
    from app.core.scoring import Decisions
    from app.records import Headers

ID_MAX: Final = 256
#: Below, a number is taken for seconds, from here on for milliseconds: 1e11 s is the year 5138,
#: 1e11 ms was 1973.
_SECONDS_MAX: Final = 1e11

encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines

_Refusal = tuple[Record, Malformed]
T = TypeVar("T")


@dataclass(frozen=True)
class Decoded(Generic[T]):
    """What could be read of some records, in order, and what could not."""

    read: T
    records: list[Record]
    refused: list[_Refusal]


class ValueReader:
    """Decoder of flat JSON objects with declared fields.

    ``fields`` maps a field's name to its type; ``read`` raises Malformed and names the field.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        optional: Iterable[str],
        *,
        refuse_unknown: bool,
        limit: int,
    ) -> None:
        """Compile the declared fields."""
        self.names = tuple(fields)
        self.limit = limit
        absent = set(optional)
        declared = [
            (
                f"f{i}",
                kind | None if name in absent else kind,
                msgspec.field(name=name, default=None)
                if name in absent
                else msgspec.field(name=name),
            )
            for i, (name, kind) in enumerate(fields.items())
        ]
        shape = msgspec.defstruct(
            "Value",
            declared,
            kw_only=True,
            forbid_unknown_fields=refuse_unknown,
            gc=False,
        )
        self._decode = msgspec.json.Decoder(shape).decode

    def read(self, value: bytes | None) -> tuple[Any, ...]:
        """Return the values of the declared fields, in their order."""
        values = self.decode(value)
        self.look(value or b"", values)
        return values

    def decode(self, value: bytes | None) -> tuple[Any, ...]:
        """As ``read``, but for what ``look`` refuses."""
        if value is None:
            raise Malformed("value", None, "a JSON object")
        if len(value) > self.limit:
            text = f"a value of at most {self.limit} bytes"
            raise Malformed("value", f"{len(value)} bytes long", text)
        try:
            return msgspec.structs.astuple(self._decode(value))
        except msgspec.ValidationError as error:
            raise self._explained(value, error) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Malformed("value", _near(value, error), f"JSON ({error})") from None
        except RecursionError:
            raise Malformed("value", _beginning(value), "a flat JSON object") from None

    def look(self, value: bytes, values: Iterable[Any]) -> None:
        """Refuse a key that stands twice; only where there are more marks than ``values`` bring."""
        if value.count(b'"') != sum(map(_marks, map(type, values))):
            self._look_closer(value)

    @staticmethod
    def _look_closer(value: bytes) -> None:
        """Refuse a key that stands twice, and what a decoder that skips fields lets pass."""
        try:
            json.loads(value, object_pairs_hook=_refuse_twice, parse_int=str)
        except RecursionError:
            raise Malformed("value", _beginning(value), "a flat JSON object") from None
        except ValueError as error:
            raise Malformed("value", _near(value, error), f"JSON ({error})") from None

    def _explained(self, value: bytes, error: msgspec.ValidationError) -> Malformed:
        text = str(error)
        what, _, where = text.partition(" - at `$.")
        field = where.rstrip("`")
        if "unknown field" in text:
            name = text.split("`")[1]
            return Malformed(name, _field(value, name), "no such field, or its declaration")
        if "missing required field" in text:
            name = text.split("`")[1]
            return Malformed(name, None, "a value")
        if not where:
            return Malformed("value", _beginning(value), "a JSON object")
        return Malformed(field, _field(value, field), _in_words(what))


#: Each key and each string brings two quotation marks; any more are escapes or a key that stands
#: twice, and only then is a closer look worth its time.
_marks: Final = {str: 4, datetime: 4, int: 2, float: 2, bool: 2, type(None): 0}.__getitem__


def _in_words(expected: str) -> str:
    words = expected.removeprefix("Expected ").split(", got")[0].replace("`", "")
    return _WORDS.get(frozenset(words.split(" | ")) - {"null"}, words)


#: What msgspec expects, as a person says it; null may stand where a field is optional.
_WORDS: Final = {
    frozenset({"float"}): "a finite number",
    frozenset({"Number out of range"}): "a finite number",
    frozenset({"Integer value out of range"}): "a number of fewer digits",
    frozenset({"str"}): "a string",
    frozenset({"int", "str"}): "a string or a whole number",
    frozenset({"bool", "int"}): "true, false, 1 or 0",
    frozenset({"bool", "int", "str"}): "a string, a whole number, true or false",
    frozenset({"datetime", "int", "float"}): "an ISO 8601 time or a number",
    frozenset({"Invalid RFC3339 encoded datetime"}): "an ISO 8601 time or a number",
}


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise Malformed(key, value, "each key once")
        seen[key] = value
    return seen


def _field(value: bytes, name: str) -> Any:
    try:
        return json.loads(value).get(name)
    except (ValueError, AttributeError, RecursionError):
        return _beginning(value)


def _beginning(value: bytes) -> str:
    return value[:SHOWN_MAX].decode("utf-8", "replace")


def _near(value: bytes, error: Exception) -> str:
    """The part of a value where reading it failed."""
    place = re.search(r"\(byte (\d+)\)", str(error))
    start = max(0, int(place[1]) - SHOWN_MAX // 2) if place else 0
    return value[start : start + SHOWN_MAX - 2].decode("utf-8", "replace")


def time_ms_of(value: datetime | float, unit: str) -> int:
    """Epoch milliseconds of a time as it stands in JSON; a time without a zone is UTC.

    ``unit`` is "s", "ms" or "auto" (a number below 1e11 counts seconds).

    >>> time_ms_of(datetime(1970, 1, 2), "auto"), time_ms_of(86400, "auto")
    (86400000, 86400000)
    """
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return round(aware.timestamp() * 1_000)
    seconds = unit == "s" or (unit == "auto" and abs(value) < _SECONDS_MAX)
    return round(value * 1_000) if seconds else round(value)


#: Farther from 1970 than any time that is taken; a thousand times as much is a number of 64 bits.
_FAR: Final = 9_000_000_000_000_000
#: Records, below which to look at each takes no longer than at columns: 2.7 us each, 23 us for any.
_FEW: Final = 8
#: Units in which a time is a number and nothing else.
_NUMERIC: Final = ("s", "ms")


def times_ms_of(told: Sequence[datetime | float], unit: str) -> NDArray[np.int64]:
    """``time_ms_of`` of each, shape (n,); ``_FAR`` from 1970 or more: no time in that unit.

    >>> times_ms_of([86400, 86400000], "ms").tolist()
    [86400, 86400000]
    """
    if set(map(type, told)) == {int}:
        with contextlib.suppress(OverflowError):
            numbers = np.array(told, np.int64)
            limit = {"s": _FAR, "auto": _SECONDS_MAX}.get(unit, 0)
            return np.where((-limit < numbers) & (numbers < limit), numbers * 1_000, numbers)
    return np.array([_time_or_far(one, unit) for one in told], np.int64)


def _time_or_far(value: datetime | float, unit: str) -> int:
    if isinstance(value, datetime) and unit in _NUMERIC:
        return -_FAR
    try:
        return max(-_FAR, min(time_ms_of(value, unit), _FAR))
    except OverflowError:
        return -_FAR


def _as_text(column: Sequence[str | int]) -> list[str]:
    return list(map(str, column))  # a string is its own text


class _Columns(NamedTuple):
    """Transactions as they were told, in columns; n of each."""

    ids: list[str]
    times_ms: NDArray[np.int64]
    keys: list[list[str]]
    numbers: dict[str, NDArray[np.float64]]  # NaN: missing
    categories: dict[str, list[str | None]]


def _id(field: str, value: str | int) -> str:
    text = value if isinstance(value, str) else str(value)
    if not 0 < len(text) <= ID_MAX or "\0" in text:
        raise Malformed(field, value, f"1 to {ID_MAX} characters, none of them NUL")
    return text


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
        refused: list[_Refusal] = []
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
            np.fromiter(map(_marks, map(type, c)), np.int64, n) for c in zip(*told, strict=True)
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
        _id(of.id, values[0])
        self._time(values[1], record)
        keys = list(map(_id, of.entities, values[2:n_keys]))
        for name, value in zip(self._numbers, values[n_keys:], strict=False):
            self._number(name, value)
        if keys and record.key != keys[0].encode():
            key = None if record.key is None else record.key.decode("utf-8", "replace")
            raise Malformed("key", key, f"the value of {of.entities[0]}, {keys[0]!r}")

    def _time(self, value: datetime | float, record: Record) -> None:
        of = self._of
        if isinstance(value, datetime) and of.time_unit in _NUMERIC:
            raise Malformed(of.time, value.isoformat(), f"a number of {of.time_unit}")
        time_ms = _time_or_far(value, of.time_unit)
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


class LabelReader:
    """Labels of the declared schema."""

    def __init__(self, settings: LabelSettings, ahead_ms: int = 86_400_000) -> None:
        """Compile the declared schema; ``ahead_ms``: how far a label may be ahead of its record."""
        self._of, self._ahead_ms = settings, ahead_ms
        fields: dict[str, Any] = {
            settings.transaction_id: str | int,
            settings.value: bool | int,
            settings.time: datetime | int | float,
        }
        if settings.source:
            fields[settings.source] = str
        optional = [settings.source] if settings.source else []
        self._reader = ValueReader(fields, optional, refuse_unknown=True, limit=65_536)

    def read(self, record: Record) -> Label:
        """One label. Raises Malformed."""
        of = self._of
        told, value, at, *source = self._reader.read(record.value)
        transaction_id = _id(of.transaction_id, told)
        if value not in (0, 1):
            raise Malformed(of.value, value, "true, false, 1 or 0")
        if record.key != transaction_id.encode():
            key = None if record.key is None else record.key.decode("utf-8", "replace")
            raise Malformed("key", key, f"the transaction id, {transaction_id!r}")
        named = next(filter(None, source), "unknown")
        try:
            time = time_ms_of(at, "auto")
        except OverflowError:
            time = -1
        if not 0 <= time <= record.timestamp_ms + self._ahead_ms:
            shown = at.isoformat() if isinstance(at, datetime) else at
            ahead = f"{self._ahead_ms // 1000} s after it was published"
            raise Malformed(of.time, shown, f"a time from 1970 to {ahead}")
        return Label(transaction_id, bool(value), time, named, record)


_hops = msgspec.msgpack.Decoder(Hops).decode
_pack = msgspec.msgpack.Encoder().encode
_score = msgspec.json.Decoder(Score).decode
_fact: Callable[[bytes], Fact] = msgspec.json.Decoder(Fact).decode
_feedback = msgspec.json.Decoder(Feedback).decode
_alert = msgspec.json.Decoder(Alert).decode
_outcome = msgspec.json.Decoder(LabelOutcome).decode
_action = msgspec.json.Decoder(Action).decode
_entry = msgspec.json.Decoder(Entry).decode


class HopCodec:
    """Transactions on their way to the stage of the ``index``-th entity, in columns."""

    def __init__(self, plan: FeaturePlan, index: int, n_segments: int = 0) -> None:
        """Know which features are filled by then."""
        self._schema, self._n_features = plan.schema, len(plan.names)
        self._columns = plan.filled(index)
        self._shape = (len(plan.windows), n_segments)

    def write(self, batch: Batch) -> bytes:
        """A batch, for the next stage."""
        whole = (batch.times_ms, batch.partitions, batch.offsets, batch.published_ms)
        return _pack(
            Hops(
                self._schema,
                batch.ids,
                batch.keys,
                batch.segments,
                batch.traces if any(batch.traces) else [],
                np.concatenate(whole).astype("<i8").tobytes(),
                batch.amounts.astype("<f8").tobytes(),
                batch.rows[:, self._columns].astype("<f8").tobytes(),
            )
        )

    def read(self, records: Sequence[Record]) -> Decoded[Batch]:
        """Transactions that the stage before sent on; each with the record that it came in."""
        good: list[Batch] = []
        whose: list[Record] = []
        refused: list[_Refusal] = []
        for record in records:
            try:
                good.append(self._read(record))
                whose += [record] * len(good[-1])
            except Malformed as error:
                refused.append((record, error))
        return Decoded(Batch.joined(good) if good else self._empty(), whose, refused)

    def _read(self, record: Record) -> Batch:
        hops = _own(_hops, record)
        if hops.schema != self._schema:
            text = f"{self._schema}: the configuration changed on the way"
            raise Malformed("schema", hops.schema, text)
        n = len(hops.ids)
        lists = [*hops.keys, *hops.segments, hops.traces or hops.ids]
        packed = (len(hops.whole), len(hops.amounts), len(hops.rows))
        if (
            not n
            or (len(hops.keys), len(hops.segments)) != self._shape
            or any(len(column) != n for column in lists)
            or packed != (32 * n, 8 * n, 8 * n * len(self._columns))
        ):
            raise Malformed("value", f"columns of {packed} bytes", f"those of {n} transactions")
        whole = np.frombuffer(hops.whole, "<i8").astype(np.int64)
        times, partitions, offsets, published = whole.reshape(4, n)
        rows = np.zeros((n, self._n_features))
        rows[:, self._columns] = np.frombuffer(hops.rows, "<f8").reshape(n, -1)
        return Batch(
            ids=hops.ids,
            times_ms=times,
            amounts=np.frombuffer(hops.amounts, "<f8").astype(np.float64),
            keys=hops.keys,
            rows=rows,
            partitions=partitions,
            offsets=offsets,
            published_ms=published,
            traces=hops.traces or [None] * n,
            segments=hops.segments,
        )

    def _empty(self) -> Batch:
        none, (n_keys, n_segments) = np.zeros(0, np.int64), self._shape
        rows = np.zeros((0, self._n_features))
        keys: list[list[str]] = [[] for _ in range(n_keys)]
        segments: list[list[str]] = [[] for _ in range(n_segments)]
        return Batch([], none, np.zeros(0), keys, rows, none, none, none, [], segments)


class ScoreWriter:
    """Scores in JSON, out of columns: what ``encode`` makes of each, at a third of the cost.

    ``topic`` is where the transactions lie; the others name the columns of a batch.
    """

    def __init__(
        self, entities: Sequence[str], segments: Sequence[str], schema: str, topic: str
    ) -> None:
        """Know what all scores have in common."""
        self._entities, self._segments = entities, segments
        self._schema, self._topic = schema, topic
        self._template = b""  # the same for every batch

    def write(self, batch: Batch, decided: Decisions) -> list[bytes]:
        """Each transaction of a batch, at least one, as it was decided."""
        reasons = [b"[]"] * len(batch)
        for i, told in decided.reasons.items():
            reasons[i] = encode(told)
        fields = {
            "transaction_id": _texts(batch.ids),
            "time_ms": _numbers(batch.times_ms),
            "entities": dict(zip(self._entities, map(_texts, batch.keys), strict=True)),
            "amount": _numbers(batch.amounts),
            "score": _numbers(decided.scores),
            "is_alert": _numbers(decided.alerts),
            "features": _lists(batch.rows),
            "feature_schema": self._schema,
            "model": [encode(decided.model)] * len(batch),
            "source": {
                "topic": self._topic,
                "partition": _numbers(batch.partitions),
                "offset": _numbers(batch.offsets),
                "published_ms": _numbers(batch.published_ms),
            },
            "reasons": reasons,
            "propensity": _numbers(decided.propensity),
            "raw": _numbers(decided.raw),
            "segments": dict(zip(self._segments, map(_texts, batch.segments), strict=True)),
            "fallback": [_STAMPS[code] for code in decided.fallback.tolist()],
            "schema_version": SCHEMA_VERSION,
        }
        self._template = self._template or _template(fields)
        return [self._template % row for row in zip(*_columns_of(fields), strict=True)]


#: As JSON has them.
_STAMPS: Final = [encode(stamp) for stamp in STAMPS]


def _template(fields: Mapping[str, Any]) -> bytes:
    """JSON of an object with a ``%b`` for each value that is a list: its column."""
    parts = []
    for name, told in fields.items():
        if isinstance(told, list):
            text = b"%b"
        elif isinstance(told, dict):
            text = _template(told)
        else:
            text = encode(told).replace(b"%", b"%%")
        parts.append(encode(name).replace(b"%", b"%%") + b":" + text)
    return b"{" + b",".join(parts) + b"}"


def _columns_of(fields: Mapping[str, Any]) -> Iterator[list[bytes]]:
    """The lists in an object, as ``_template`` comes by them."""
    for told in fields.values():
        if isinstance(told, list):
            yield told
        elif isinstance(told, dict):
            yield from _columns_of(told)


def _texts(column: Sequence[str]) -> list[bytes]:
    """Each string in JSON; no line break stands in any, so that they part there."""
    return _encode_lines(column).split(b"\n")[:-1]


def _numbers(column: NDArray[Any]) -> list[bytes]:
    """Each number or truth value in JSON; null where it is missing."""
    return _dump(column)[1:-1].split(b",")


def _lists(rows: NDArray[np.float64]) -> list[bytes]:
    """Each row of numbers as a JSON list."""
    return [b"[%b]" % row for row in _dump(rows)[2:-2].split(b"],[")]


def _dump(values: NDArray[Any]) -> bytes:
    return orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)


def read_score(record: Record) -> Score:
    """A score that a worker published. Raises Malformed if it is none."""
    return _own(_score, record)


class HeldScore(msgspec.Struct, gc=False):
    """A score as the join keeps it: what it decides by, and the bytes of all."""

    transaction_id: str
    time_ms: int
    score: float
    is_alert: bool
    feature_schema: str
    value: bytes
    read: Score | None = None  # until it was summarised

    def whole(self) -> Score:
        """Everything that was used to decide: what was read once can be read again."""
        return self.read or _score(self.value)

    def shrink(self) -> None:
        """Keep no more than the bytes."""
        self.read = None


def hold_score(record: Record) -> HeldScore:
    """A score that a worker published, ready to be kept. Raises Malformed if it is none."""
    score, value = read_score(record), record.value or b""
    return HeldScore(
        score.transaction_id,
        score.time_ms,
        score.score,
        score.is_alert,
        score.feature_schema,
        value,
        score,
    )


def held_bytes(held: HeldScore) -> bytes:
    """A score that is kept, for a disk."""
    return held.value


def held_whole(value: bytes) -> Score:
    """All of a score that was kept, from a disk."""
    return _score(value)


#: The year 9999: what lies beyond is no time, and may be no number of 64 bits.
_TIME_MAX_MS: Final = 253_402_300_800_000


def read_example(record: Record) -> Fact:
    """A record of the examples log. Raises Malformed if it is none."""
    fact = _own(_fact, record)
    if isinstance(fact, Example):
        for name, time_ms in (("time_ms", fact.time_ms), ("label_time_ms", fact.label_time_ms)):
            if abs(time_ms) > _TIME_MAX_MS:
                raise Malformed(name, time_ms, f"at most {_TIME_MAX_MS}")
    return fact


def read_alert(record: Record) -> Alert:
    """An alert on its way to a person. Raises Malformed if it is none."""
    return _own(_alert, record)


def read_outcome(record: Record) -> LabelOutcome:
    """What became of a label. Raises Malformed if it is none."""
    return _own(_outcome, record)


def read_action(record: Record) -> Action:
    """What somebody did, on its way into the audit. Raises Malformed if it is none."""
    return _own(_action, record)


def read_entry(record: Record) -> Entry:
    """An entry of the audit. Raises Malformed if it is none."""
    return _own(_entry, record)


def read_feedback(record: Record) -> Feedback:
    """A confirmed label on its way back. Raises Malformed if it is none."""
    return _own(_feedback, record)


def _own(decode: Callable[[bytes], T], record: Record) -> T:
    try:
        return decode(record.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(
            "value", _beginning(record.value or b""), f"what weir writes: {error}"
        ) from None


_SLOT = struct.Struct("<qqdQQbBH")
_GUARD = struct.Struct("<Hq")
#: The same, as columns hold them.
_SLOTS = np.dtype(
    [
        ("sequence", "<i8"),
        ("time", "<i8"),
        ("amount", "<f8"),
        ("id", "<u8"),
        ("other", "<u8"),
        ("label", "i1"),
        ("revision", "u1"),
        ("guards", "<u2"),
    ]
)
_GUARDS = np.dtype([("upstream", "<u2"), ("offset", "<i8")])
_SLOT_KEY = struct.Struct("<h")  # below 0: the place of a bucket
#: The end of a row's key, by its slot: as many as a ring may have.
_SLOT_KEYS = [b"\0" + _SLOT_KEY.pack(slot) for slot in range(8_192)]
_BUCKET = struct.Struct("<qqqdddqqqqqq32sH")
_MARK = struct.Struct("<Qqb")


def write_slot(slot: Slot, value: SlotValue | BucketValue | None) -> tuple[bytes, bytes | None]:
    """One row of an entity's changelog, (key, value); the value is None where it was let go."""
    key = slot[0].encode() + b"\0" + _SLOT_KEY.pack(slot[1])
    if value is None:
        return key, None
    if isinstance(value, BucketValue):
        fixed = _BUCKET.pack(*value[:-1], len(value.marks))
        return key, fixed + b"".join(_MARK.pack(*mark) for mark in value.marks)
    fixed = _SLOT.pack(*value[:6], value.revision, len(value.guard))
    return key, fixed + b"".join(_GUARD.pack(*pair) for pair in value.guard)


def write_slots(columns: SlotColumns) -> Iterator[tuple[bytes, bytes]]:
    """Rows of an entity's changelog, each as ``write_slot`` has it; half a microsecond a row."""
    n, upstreams = columns.guards.shape
    known = columns.guards >= 0
    row = np.dtype([("fixed", _SLOTS), ("guards", _GUARDS, (upstreams,))])
    rows = np.empty(n, row)
    fixed, guards = rows["fixed"], rows["guards"]
    fixed["sequence"], fixed["time"] = columns.sequences, columns.times_ms
    fixed["amount"], fixed["id"], fixed["other"] = columns.amounts, columns.ids, columns.others
    fixed["label"], fixed["revision"] = columns.labels, columns.revisions
    fixed["guards"] = known.sum(axis=1)
    guards["upstream"], guards["offset"] = np.arange(upstreams), columns.guards
    packed = rows.tobytes()
    if not known.all():  # of a row only the guards that it has
        is_kept = np.ones((n, row.itemsize), np.bool_)
        is_kept[:, _SLOT.size :] = np.repeat(known, _GUARD.size, axis=1)
        packed = rows.view(np.uint8).reshape(n, -1)[is_kept].tobytes()
    ends = np.cumsum(_SLOT.size + fixed["guards"].astype(np.int64) * _GUARD.size).tolist()
    start = 0
    for name, slot, end in zip(columns.keys, columns.slots.tolist(), ends, strict=True):
        yield name.encode() + _SLOT_KEYS[slot], packed[start:end]
        start = end


def write_rows(store: EntityStore) -> Iterator[tuple[bytes, bytes | None]]:
    """What a batch changed in a store, as rows of its changelog."""
    before, slots, buckets = store.written()
    yield from (write_slot(*row) for row in before)
    yield from write_slots(slots)
    yield from (write_slot(*row) for row in buckets)


def read_slot(key: bytes, value: bytes | None) -> Row:
    """Inverse of ``write_slot``. Raises Malformed.

    >>> row = SlotValue(3, 1_000, 9.5, 1, 2, 0, ((0, 17),), 1)
    >>> read_slot(*write_slot(("card-1", 3), row)) == (("card-1", 3), row)
    True
    """
    try:
        return _read_slot(key, value)
    except (struct.error, UnicodeDecodeError) as error:
        raise Malformed("row", _beginning(key), f"a row that weir writes: {error}") from None


def _read_slot(key: bytes, value: bytes | None) -> Row:
    slot = (key[:-3].decode(), _SLOT_KEY.unpack(key[-2:])[0])
    if value is None:
        return slot, None
    if slot[1] < 0:
        *fields, n = _BUCKET.unpack_from(value)
        marks = _MARK.iter_unpack(value[_BUCKET.size : _BUCKET.size + n * _MARK.size])
        return slot, BucketValue._make([*fields, tuple(marks)])
    sequence, time_ms, amount, id_hash, other_hash, label, revision, n = _SLOT.unpack_from(value)
    pairs = _GUARD.iter_unpack(value[_SLOT.size : _SLOT.size + n * _GUARD.size])
    guard = tuple((int(upstream), int(offset)) for upstream, offset in pairs)
    return slot, SlotValue(sequence, time_ms, amount, id_hash, other_hash, label, guard, revision)


_shown = msgspec.json.Decoder(Shown).decode


def write_shown(key: str, told: Shown | None) -> tuple[bytes, bytes | None]:
    """One row of the changelog of alerts, (key, value); None: the entity was forgotten."""
    return key.encode(), None if told is None else encode(told)


def read_shown(key: bytes, value: bytes | None) -> tuple[str, Shown | None]:
    """Inverse of ``write_shown``. Raises Malformed.

    >>> row = ("card-1", Shown(1_000, 7, 3, 4, (9,), 1))
    >>> read_shown(*write_shown(*row)) == row
    True
    """
    try:
        return key.decode(), None if value is None else _shown(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed("row", _beginning(key), f"a row that weir writes: {error}") from None


TRACE: Final = "traceparent"
#: 55 by the W3C's first version; what is longer is not passed on.
TRACE_BYTES: Final = 128


def trace_of(headers: Headers) -> bytes | None:
    """The W3C trace context of a record, if it carries one."""
    for name, value in headers:
        if name == TRACE:
            return value if len(value) <= TRACE_BYTES else None
    return None


def headers_of(kind: str, identity: str, source: str, trace: bytes | None = None) -> Headers:
    """Headers of what weir publishes: CloudEvents (binary mode), content type, source, trace.

    ``identity`` is the same whenever the same record is delivered again.
    """
    name, at = identity.encode(), source.encode()
    headers = (*_SAME, _type(kind), ("ce_id", name), ("weir-source", at))
    return (*headers, (TRACE, trace)) if trace else headers


_SAME: Final = (
    ("ce_specversion", b"1.0"),
    ("ce_source", b"/weir"),
    ("content-type", b"application/json"),
)


@cache
def _type(kind: str) -> tuple[str, bytes]:
    return "ce_type", f"weir.{kind}.v1".encode()


def dead_letter_headers(at: Position, stage: str, error: Exception, original: Headers) -> Headers:
    """What a dead letter says of itself, in the words of Kafka Connect, after its own headers."""
    return (
        *original,
        ("__connect.errors.topic", at.topic.encode()),
        ("__connect.errors.partition", str(at.partition).encode()),
        ("__connect.errors.offset", str(at.offset).encode()),
        ("__connect.errors.stage", stage.encode()),
        ("__connect.errors.exception.class.name", type(error).__name__.encode()),
        ("__connect.errors.exception.message", f"{at}: {error}".encode()),
    )
