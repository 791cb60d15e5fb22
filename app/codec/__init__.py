"""Bytes to words and back: the only place that decodes what lies on the topics.

What comes from outside is decoded against the declared schema; what does not fit is a dead
letter with a reason that a person understands, and never an exception in the loop.
"""

from app.codec.facts import (
    read_action,
    read_alert,
    read_drift,
    read_entry,
    read_example,
    read_feedback,
    read_outcome,
)
from app.codec.headers import TRACE, dead_letter_headers, headers_of
from app.codec.hops import HopCodec
from app.codec.labels import LabelReader
from app.codec.rows import (
    read_shown,
    read_slot,
    write_rows,
    write_shown,
    write_slot,
    write_slots,
)
from app.codec.scores import (
    HeldScore,
    ScoreWriter,
    held_bytes,
    held_whole,
    hold_score,
    read_score,
)
from app.codec.times import time_ms_of, times_ms_of
from app.codec.transactions import TransactionReader, record_of
from app.codec.values import ID_MAX, encode

__all__ = [
    "ID_MAX",
    "TRACE",
    "HeldScore",
    "HopCodec",
    "LabelReader",
    "ScoreWriter",
    "TransactionReader",
    "dead_letter_headers",
    "encode",
    "headers_of",
    "held_bytes",
    "held_whole",
    "hold_score",
    "read_action",
    "read_alert",
    "read_drift",
    "read_entry",
    "read_example",
    "read_feedback",
    "read_outcome",
    "read_score",
    "read_shown",
    "read_slot",
    "record_of",
    "time_ms_of",
    "times_ms_of",
    "write_rows",
    "write_shown",
    "write_slot",
    "write_slots",
]
