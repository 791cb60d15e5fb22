"""Scores: written out of columns, read whole, kept as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import orjson

from app.codec.values import encode, own
from app.core.fallback import STAMPS
from app.records import SCHEMA_VERSION, Score

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from app.core.scoring import Batch, Decisions
    from app.records import Record

_encode_lines = msgspec.json.Encoder().encode_lines

_score = msgspec.json.Decoder(Score).decode


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
    return own(_score, record)


class HeldScore(msgspec.Struct, gc=False):
    """A score as the join keeps it: what it decides by, and the bytes of all."""

    transaction_id: str
    time_ms: int
    score: float
    is_alert: bool
    feature_schema: str
    value: bytes

    def whole(self) -> Score:
        """Everything that was used to decide: what was read once can be read again."""
        return _score(self.value)


def hold_score(record: Record) -> HeldScore:
    """A score that a worker published, ready to be kept. Raises Malformed if it is none.

    All of it is read, and let go at once: to read it again costs less than to keep it until then.
    """
    score = read_score(record)
    return HeldScore(
        score.transaction_id,
        score.time_ms,
        score.score,
        score.is_alert,
        score.feature_schema,
        record.value or b"",
    )


def held_bytes(held: HeldScore) -> bytes:
    """A score that is kept, for a disk."""
    return held.value


def held_whole(value: bytes) -> Score:
    """All of a score that was kept, from a disk."""
    return _score(value)
