"""What weir itself writes in JSON, but for scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from app.codec.values import own
from app.errors import Malformed
from app.records import Action, Alert, Drift, Entry, Example, Fact, Feedback, LabelOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.records import Record

_fact: Callable[[bytes], Fact] = msgspec.json.Decoder(Fact).decode
_feedback = msgspec.json.Decoder(Feedback).decode
_alert = msgspec.json.Decoder(Alert).decode
_outcome = msgspec.json.Decoder(LabelOutcome).decode
_drift = msgspec.json.Decoder(Drift).decode
_action = msgspec.json.Decoder(Action).decode
_entry = msgspec.json.Decoder(Entry).decode

#: The year 9999: what lies beyond is no time, and may be no number of 64 bits.
_TIME_MAX_MS: Final = 253_402_300_800_000


def read_example(record: Record) -> Fact:
    """A record of the examples log. Raises Malformed if it is none."""
    fact = own(_fact, record)
    if isinstance(fact, Example):
        for name, time_ms in (("time_ms", fact.time_ms), ("label_time_ms", fact.label_time_ms)):
            if abs(time_ms) > _TIME_MAX_MS:
                raise Malformed(name, time_ms, f"at most {_TIME_MAX_MS}")
    return fact


def read_alert(record: Record) -> Alert:
    """An alert on its way to a person. Raises Malformed if it is none."""
    return own(_alert, record)


def read_outcome(record: Record) -> LabelOutcome:
    """What became of a label. Raises Malformed if it is none."""
    return own(_outcome, record)


def read_drift(record: Record) -> Drift:
    """What changed in the world. Raises Malformed if it is none."""
    return own(_drift, record)


def read_action(record: Record) -> Action:
    """What somebody did, on its way into the audit. Raises Malformed if it is none."""
    return own(_action, record)


def read_entry(record: Record) -> Entry:
    """An entry of the audit. Raises Malformed if it is none."""
    return own(_entry, record)


def read_feedback(record: Record) -> Feedback:
    """A confirmed label on its way back. Raises Malformed if it is none."""
    return own(_feedback, record)
