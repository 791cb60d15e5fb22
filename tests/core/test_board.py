"""What lists show of drift: an incident is one entry, as it was told last."""

from typing import Literal

from app.core.board import Board
from app.records import Drift, ModelVersion, Position


def told(event: Literal["opened", "updated", "closed"], incident: str) -> Drift:
    """A record of an incident."""
    return Drift(
        detector="CUSUM", kind="feature", subject="amount", before=0.1, after=0.5, since_ms=1,
        detected_ms=2, n_examples=3, model=ModelVersion("champion", 1, "ab"),
        incident=incident, event=event,
    )  # fmt: skip


def test_incident_is_one_entry_as_it_was_told_last():
    """Opened, updated, closed: three records, one entry; another's stays where it is."""
    board = Board()
    drifts = [told("opened", "a"), told("opened", "b"), told("updated", "a"), told("closed", "a")]
    for i, drift in enumerate(drifts):
        board.on_drift(Position("drift", 0, i), 10 + i, drift)
    shown = [(view.drift.incident, view.drift.event) for view in board.drifts.newest()]
    assert [("a", "closed"), ("b", "opened")] == shown
    assert board.on_drift(Position("drift", 0, 3), 20, told("closed", "a")) is None


def test_records_of_no_incident_stand_apart_and_the_oldest_leave():
    """As older programs wrote them; what is held is bounded, and so is what is known of it."""
    board = Board(held_max=3)
    for i in range(8):
        board.on_drift(Position("drift", 0, i), i, told("opened", "" if i < 4 else f"i{i}"))
    assert ["i7", "i6", "i5"] == [view.drift.incident for view in board.drifts.newest()]
    board.on_drift(Position("drift", 0, 8), 8, told("closed", "i4"))
    assert ["i4", "i7", "i6"] == [view.drift.incident for view in board.drifts.newest()]
