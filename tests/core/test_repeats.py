"""Alerts of one entity, soon after another, are held back and counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.repeats import COUNTED_MAX, Repeats

WINDOW_MS = 1_000


Candidate = tuple[str, str, int]


def told(repeats: Repeats, alerts: list[Candidate], start: int = 0) -> list[int | None]:
    """What becomes of (entity, transaction, time) in the order of their log."""
    return [repeats.on_alert(a, t, ms, at) for at, (a, t, ms) in enumerate(alerts, start)]


@pytest.mark.parametrize(
    ("alerts", "expected"),
    [
        ([("a", "t1", 0), ("a", "t2", 999)], [0, None]),
        ([("a", "t1", 0), ("a", "t2", 1_000)], [0, 0]),
        ([("a", "t1", 0), ("a", "t2", 5), ("a", "t3", 6), ("a", "t4", 1_000)], [0, None, None, 2]),
        ([("a", "t1", 0), ("b", "t2", 1)], [0, 0]),
        ([("a", "t1", 5_000), ("a", "t2", 0)], [0, None]),  # late: shown would be out of order
        ([("a", "t1", 0), ("a", "t1", 0)], [0, 0]),  # delivered again: shown again
        ([("a", "t1", 0), ("a", "t2", 5), ("a", "t2", 5), ("a", "t3", 1_000)], [0, None, None, 1]),
        (  # both said again after a crash of the stage before
            [("a", "t1", 0), ("a", "t2", 1_000), ("a", "t1", 0), ("a", "t2", 1_000)],
            [0, 0, None, 0],
        ),
    ],
)
def test_what_follows_within_the_window_is_held_back(alerts, expected):
    """By entity, in event time; what is held back is counted once."""
    assert expected == told(Repeats(WINDOW_MS), alerts)


#: Forty transactions, some of which come several times.
KNOWN = [("abc"[i % 3], f"t{i}", i * 7_919 % 9_000) for i in range(40)]
ALERTS = st.lists(st.sampled_from(KNOWN), max_size=60)


@given(ALERTS)
def test_shown_alerts_of_an_entity_are_a_window_apart(alerts):
    """Nobody is shown two different alerts of one entity within the window."""
    repeats = Repeats(WINDOW_MS)
    last: dict[str, Candidate] = {}
    for offset, alert in enumerate(alerts):
        key, transaction, time_ms = alert
        if repeats.on_alert(key, transaction, time_ms, offset) is None:
            continue
        assert key not in last or alert == last[key] or time_ms >= last[key][2] + WINDOW_MS
        last[key] = alert


@given(ALERTS, st.integers(0, 60), st.integers(0, 10), st.integers(1, 3))
def test_restart_goes_on_as_if_nothing_had_been(alerts, died, back, entities_max):
    """State from the changelog, the log from an older offset: afterwards the same is shown."""
    died = min(died, len(alerts))
    want = told(Repeats(WINDOW_MS, entities_max), alerts)
    first, rows = Repeats(WINDOW_MS, entities_max), []
    for offset, (key, transaction, time_ms) in enumerate(alerts[:died]):
        first.on_alert(key, transaction, time_ms, offset)
        rows += first.changes()
    again = Repeats(WINDOW_MS, entities_max)
    again.restore(rows)
    assert dict(first.shown) == dict(again.shown)
    assert list(first.shown) == list(again.shown)
    start = max(0, died - back) if entities_max == len("abc") else died
    assert want[died:] == told(again, alerts[start:], start)[died - start :]


def test_how_far_candidates_were_applied_is_known():
    """A shorter log is another one, and its alerts would be passed over: the worker refuses it."""
    repeats = Repeats(window_ms=1_000)
    assert -1 == repeats.applied_high
    repeats.on_alert("card-1", "a", 0, 500)
    repeats.on_alert("card-2", "b", 0, 400)
    assert 500 == repeats.applied_high


def test_memory_is_bounded():
    """Of too many entities the one shown longest ago is forgotten, with a word to the log."""
    repeats = Repeats(WINDOW_MS, entities_max=5)
    for i in range(100):
        repeats.on_alert(f"a{i}", f"t{i}", 0, i)
    assert len(repeats.shown) == 5
    assert len(repeats.changes()) == 100
    for i in range(3 * COUNTED_MAX):
        repeats.on_alert("a99", f"u{i}", 1, 100 + i)
    assert len(repeats.shown["a99"].held) == COUNTED_MAX
