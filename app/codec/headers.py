"""Headers of records, ours and others'."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.records import Headers, Position

TRACE: Final = "traceparent"
#: 55 by the W3C's first version; what is longer is not passed on.
TRACE_BYTES: Final = 128
#: 32 KiB: of a refused record's own headers, as much as its dead letter has room for.
THEIR_BYTES: Final = 32_768
#: Headers in which a dead letter says what it is, and what was done about it.
_OURS: Final = ("__connect.errors.", "weir-")


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
    """What a dead letter says of itself, in the words of Kafka Connect, after its own headers.

    Of those, what only weir may say is left out, and what there is no room for.
    """
    return (
        *_theirs(original),
        ("__connect.errors.topic", at.topic.encode()),
        ("__connect.errors.partition", str(at.partition).encode()),
        ("__connect.errors.offset", str(at.offset).encode()),
        ("__connect.errors.stage", stage.encode()),
        ("__connect.errors.exception.class.name", type(error).__name__.encode()),
        ("__connect.errors.exception.message", f"{at}: {error}".encode()),
    )


def _theirs(headers: Headers) -> Iterator[tuple[str, bytes]]:
    room = THEIR_BYTES
    for name, value in headers:
        room -= len(name.encode()) + len(value)
        if room < 0:
            return
        if not name.startswith(_OURS):
            yield name, value
