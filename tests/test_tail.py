"""Looking on: what lies on a topic is told in words, and changes no terminal."""

from __future__ import annotations

import msgspec
import pytest

from app import codec, tail
from app.config import load
from app.errors import Malformed
from app.letters import escaped
from app.records import (
    Alert,
    Drift,
    LabelOutcome,
    ModelVersion,
    Position,
    Reason,
    Record,
    Score,
    Source,
)
from app.synth import Item
from app.tail import DeadLetter, json_of, text_of, topic_of
from app.tally import Tally, figures, line, view

AT = Position("alerts", 1, 42)
MODEL = ModelVersion("champion", 7, "00")
SOURCE = Source("transactions", 0, 3, 1_000)
ALERT = Alert(
    transaction_id="t-1",
    time_ms=1_704_067_200_000,
    entities={"card_id": "card-1", "terminal_id": "term-9"},
    amount=1_912.5,
    score=0.973,
    policy="score of at least 0.5",
    reasons=[Reason("amount", 1_912.5, 2.0, "amount = 1912.5 raises suspicion")],
    model=MODEL,
    source=SOURCE,
)


def score(name: str, value: float, *, is_alert: bool = False) -> Score:
    """A score of 1.00 by nobody."""
    return Score(
        transaction_id=name,
        time_ms=0,
        entities={},
        amount=1.0,
        score=value,
        is_alert=is_alert,
        features=[],
        feature_schema="",
        model=MODEL,
        source=SOURCE,
    )


def record(value: object, timestamp_ms: int = 1_250) -> Record:
    """A record of this value."""
    return Record(0, b"k", msgspec.json.encode(value), timestamp_ms)


def test_an_alert_tells_when_how_much_who_where_and_why():
    """Everything that a person needs to act stands in two lines."""
    told = text_of("alerts", AT, record(ALERT)).plain
    assert told.splitlines() == [
        "2024-01-01 00:00:00Z  0.973    1,912.50  card_id card-1  terminal_id term-9  t-1",
        "    raised by amount = 1912.5",
    ]


def test_every_kind_is_told_in_a_line():
    """Scores, drifts and outcomes name what matters of them."""
    drift = Drift(
        detector="ADWIN", kind="performance", subject="loss on frauds", before=0.25, after=0.5,
        since_ms=0, detected_ms=60_000, n_examples=1_234, model=MODEL,
    )  # fmt: skip
    outcome = LabelOutcome(
        transaction_id="t", outcome="duplicate", is_fraud=True, label_source="review",
        origin=("labels", 2, 5),
    )  # fmt: skip
    assert "0.250" in text_of("scores", AT, record(score("t", 0.25))).plain
    told = text_of("drift", AT, record(drift)).plain
    assert "performance drift opened  loss on frauds went from 0.25 to 0.5" in told
    assert "since 1970-01-01 00:00:00Z" in told
    told = text_of("outcomes", AT, record(outcome)).plain
    assert "duplicate" in told
    assert "labels[2]@5" in told


def test_what_is_not_ours_is_told_not_raised():
    """A foreign record on a topic is a line that says so."""
    assert "alerts[1]@42: not what weir writes" in text_of("alerts", AT, record({})).plain


def test_a_dead_letter_shows_position_and_reason_but_no_payload():
    """Where it lay and why it could not be read; never what it holds."""
    error = Malformed("amount", "12,50", "a finite number")
    at = Position("transactions", 3, 1_042)
    headers = codec.dead_letter_headers(at, "card_id", error, ())
    letter = Record(5, b"card-1", b'{"amount": "12,50", "iban": "secret"}', 0, headers)
    where = Position("dead-letters", 0, 5)
    told = text_of("dead-letters", where, letter).plain
    assert 'transactions[3]@1042  amount is "12,50"; expected a finite number' in told
    assert "secret" not in told
    assert b"secret" not in json_of("dead-letters", where, letter)
    assert "card_id" == DeadLetter.of(where, letter).stage


def test_nothing_from_outside_reaches_the_terminal_as_a_command():
    """Escape sequences in ids, reasons and keys are shown, not obeyed."""
    evil = "\x1b]0;gone\x07\r\n"
    alert = msgspec.structs.replace(ALERT, transaction_id=evil, entities={"card_id": evil})
    told = text_of("alerts", AT, record(alert)).plain
    assert "\x1b" not in told
    assert "\\x1b" in told
    headers = (("__connect.errors.exception.message", evil.encode()),)
    letter = Record(0, evil.encode(), b"", 0, headers)
    assert "\x1b" not in text_of("dead-letters", AT, letter).plain
    assert escaped(b"\xff\x00") == "\\xff\\x00"


@pytest.mark.parametrize("kind", tail.KINDS)
def test_every_kind_has_its_topic(kind: str):
    """Names on the command line are those of the topics, prefix included."""
    settings = load(profile="card", topics={"prefix": "demo."})
    assert f"demo.{kind}" == topic_of(kind, settings).name


def test_a_tally_lets_scores_and_labels_meet_in_any_order():
    """A label before its score counts as one after it; a second label counts for nothing."""
    tally = Tally()
    label = Item(0, "label", b"a", {"transaction_id": "a", "is_fraud": True})
    other = Item(0, "label", b"b", {"transaction_id": "b", "is_fraud": False})
    tally.on_published([label])
    tally.on_record("scores", AT, record(score("a", 0.9)))
    tally.on_record("scores", AT, record(score("b", 0.2)))
    tally.on_published([other, other])
    told = tally.summary()
    assert 2 == told["scored"]
    assert 1.0 == told["average_precision"] == told["average_precision_recent"]
    assert 0.5 == told["fraud_share"]
    assert 250.0 == told["latency_ms_p50"] == told["latency_ms_p99"]


def test_figures_are_there_before_anything_has_happened():
    """Nothing seen yet is shown as nothing, not as an error."""
    tally = Tally()
    assert "-" == figures(tally)["average precision so far"]
    assert "records/s 0.0" in line(tally)
    assert view(tally).renderables
