"""What the console's lists are made of: nothing that comes is passed over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition

from app import codec
from app.boards import Boards
from app.config import load
from app.letters import settled_of
from app.records import Alert, ModelVersion, Position, Record, Source
from app.stages import dead_letter
from app.topics import DEAD_LETTER_BYTES, Topics

SETTINGS = load(profile="card")
NOW_MS = 1_780_272_000_000


def alert(offset: int, name: str, written_ms: int) -> Any:
    """A record of the topic of alerts, as aiokafka gives it."""
    told = Alert(
        transaction_id=name,
        time_ms=0,
        entities={"card_id": "c", "terminal_id": "t"},
        amount=1.0,
        score=0.9,
        policy="",
        reasons=[],
        model=ModelVersion("champion", 0, ""),
        source=Source("transactions", 0, offset, 0),
    )
    return SimpleNamespace(
        offset=offset, key=None, value=codec.encode(told), timestamp=written_ms, headers=()
    )


def test_dead_letter_with_null_headers_stops_no_board():
    """Kafka Connect writes its reason as null where an exception has no message."""
    boards = Boards(SETTINGS, Topics.of(SETTINGS), lambda kind, told: None)
    at = TopicPartition(boards._topics.dead_letters.name, 0)
    headers = (("__connect.errors.exception.message", None), ("traceparent", None))
    letter = SimpleNamespace(offset=0, key=b"k", value=b"x", timestamp=NOW_MS, headers=headers)
    boards.take({at: [letter]})
    shown = boards.board.letter(0)
    assert shown is not None
    assert ("", "k") == (shown.reason, shown.key)


def test_letter_of_a_refused_record_is_small_enough_and_takes_no_orders_from_it():
    """Whoever publishes can settle no dead letter, and none that no topic takes comes of it."""
    topics = Topics.of(SETTINGS)
    orders = (("weir-settles", b"12"), ("weir-state", b"dropped"), ("weir-by", b"anna"))
    forged = Record(3, b"12", None, NOW_MS, (*orders, ("mine", b"1"), ("big", b"0" * 3_000_000)))
    told = dead_letter(topics, Position("transactions", 0, 3), "card", forged, ValueError("no"))
    assert settled_of(Record(9, told.key, told.value, NOW_MS, told.headers)) is None
    assert b"1" == dict(told.headers)["mine"]
    huge = Record(4, b"k" * 3_000_000, b"v" * 3_000_000, NOW_MS, (("h", b"h" * 32_000),) * 9)
    told = dead_letter(topics, Position("transactions", 0, 4), "card", huge, ValueError("no"))
    size = len(told.key or b"") + len(told.value or b"")
    assert size + sum(len(n) + len(v) for n, v in told.headers) < DEAD_LETTER_BYTES - 10_000


def test_alerts_of_two_writers_are_all_taken():
    """Whose clocks, or whose ways to the broker, differ: what lies later may be older."""
    boards = Boards(SETTINGS, Topics.of(SETTINGS), lambda kind, told: None)
    one, other = (TopicPartition(boards._topics.alerts.name, p) for p in (0, 1))
    boards.take({
        one: [alert(0, "a", 6), alert(1, "b", 5), alert(2, "c", 9)],
        other: [alert(0, "d", 7)],
    })  # fmt: skip
    found = [boards.board.alert(name) for name in "abcd"]
    assert None not in found
