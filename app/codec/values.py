"""Flat JSON objects with declared fields, and words for what is none."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from app.errors import SHOWN_MAX, Malformed
from app.records import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

ID_MAX: Final = 256

encode = msgspec.json.Encoder().encode

Refusal = tuple[Record, Malformed]
T = TypeVar("T")


@dataclass(frozen=True)
class Decoded(Generic[T]):
    """What could be read of some records, in order, and what could not."""

    read: T
    records: list[Record]
    refused: list[Refusal]


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
            raise Malformed("value", beginning(value), "a flat JSON object") from None

    def look(self, value: bytes, values: Iterable[Any]) -> None:
        """Refuse a key that stands twice; only where there are more marks than ``values`` bring."""
        if value.count(b'"') != sum(map(marks_of, map(type, values))):
            self._look_closer(value)

    @staticmethod
    def _look_closer(value: bytes) -> None:
        """Refuse a key that stands twice, and what a decoder that skips fields lets pass."""
        try:
            json.loads(value, object_pairs_hook=_refuse_twice, parse_int=str)
        except RecursionError:
            raise Malformed("value", beginning(value), "a flat JSON object") from None
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
            return Malformed("value", beginning(value), "a JSON object")
        return Malformed(field, _field(value, field), _in_words(what))


#: Each key and each string brings two quotation marks; any more are escapes or a key that stands
#: twice, and only then is a closer look worth its time.
marks_of: Final = {str: 4, datetime: 4, int: 2, float: 2, bool: 2, type(None): 0}.__getitem__


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
        return beginning(value)


def beginning(value: bytes) -> str:
    """As much of it as a person needs to recognise it."""
    return value[:SHOWN_MAX].decode("utf-8", "replace")


def _near(value: bytes, error: Exception) -> str:
    """The part of a value where reading it failed."""
    place = re.search(r"\(byte (\d+)\)", str(error))
    start = max(0, int(place[1]) - SHOWN_MAX // 2) if place else 0
    return value[start : start + SHOWN_MAX - 2].decode("utf-8", "replace")


def id_of(field: str, value: str | int) -> str:
    """A name as text. Raises Malformed if it is none that may be."""
    text = value if isinstance(value, str) else str(value)
    if not 0 < len(text) <= ID_MAX or "\0" in text:
        raise Malformed(field, value, f"1 to {ID_MAX} characters, none of them NUL")
    return text


def own(decode: Callable[[bytes], T], record: Record) -> T:
    """What weir itself has written. Raises Malformed if it is not."""
    try:
        return decode(record.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(
            "value", beginning(record.value or b""), f"what weir writes: {error}"
        ) from None
