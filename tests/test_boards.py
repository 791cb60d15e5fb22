"""What the console's lists are made of: nothing that comes is passed over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition

from app import codec
from app.boards import Boards
from app.config import load
from app.records import Alert, ModelVersion, Source
from app.topics import Topics

SETTINGS = load(profile="card")


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
