"""Logs hold no card number, whatever is logged; their level changes while they run."""

import io
import json
import logging

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from app.config import WorkerSettings
from app.errors import Misconfigured
from app.logs import MASK, configure, is_luhn, level, masked, redacted, set_level

#: Numbers that card schemes publish for tests; none is anybody's.
CARDS = ["4111111111111111", "5555555555554444", "378282246310005", "6011111111111117"]


@pytest.fixture
def written(monkeypatch):
    """What is written, as JSON lines; logging is as before after the test."""
    root = logging.getLogger()
    before, at = root.handlers[:], root.level
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    configure(WorkerSettings(log_format="json"))
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers = before
    root.setLevel(at)
    structlog.reset_defaults()


@pytest.mark.parametrize("card", CARDS)
def test_card_number_is_masked_however_it_is_written(card):
    """Plain, in groups, in the midst of a text, as a number, as bytes, as a key, deep inside."""
    grouped = " ".join(card[i : i + 4] for i in range(0, len(card), 4))
    for text in (card, grouped, grouped.replace(" ", "-"), f"id={card};", f"x{card}y"):
        assert MASK in masked(text), text
        assert card not in masked(text)
    value = {"a": [card, {"b": (int(card), card.encode())}], card: 1.5}
    assert card not in json.dumps(redacted(value))
    assert MASK == redacted(int(card))


@pytest.mark.parametrize(
    "text", ["1767225600000", "4111111111111112", "t123456", "12345678901234567890123", "3 1 4"]
)
def test_what_is_no_card_number_stays(text):
    """Times, ids, offsets: a log must remain of use."""
    assert text == masked(text)


@given(st.text("0123456789 -ab", max_size=60))
def test_nothing_that_looks_like_one_is_left(text):
    """A text that was masked once has nothing left to mask."""
    once = masked(text)
    assert once == masked(once)


@given(st.text("0123456789", min_size=12, max_size=18))
def test_one_check_digit_in_ten_fits(digits):
    """Exactly one of the ten digits that may follow."""
    assert 1 == sum(is_luhn(digits + last) for last in "0123456789")


def test_lines_of_ours_and_of_libraries_are_redacted(written):
    """Words, values, arguments of the library's own kind, and the text of an exception."""
    log = structlog.get_logger("app.test")
    log.warning("refused", id=CARDS[0], offset=7)
    logging.getLogger("other").warning("card %s refused", CARDS[1])
    try:
        float(f"amount of {CARDS[2]}")
    except ValueError:
        log.exception("failed")
    lines = written()
    assert 3 == len(lines)
    assert (MASK, 7, "refused") == (lines[0]["id"], lines[0]["offset"], lines[0]["event"])
    assert f"card {MASK} refused" == lines[1]["event"]
    assert f"amount of {MASK}" in lines[2]["exception"]
    assert not any(card in json.dumps(line) for card in CARDS for line in lines)


def test_level_changes_while_it_runs(written):
    """A logger that was used before follows, too."""
    log = structlog.get_logger("app.test")
    log.debug("unheard")
    set_level("debug")
    assert "debug" == level()
    log.debug("heard")
    set_level("error")
    log.warning("unheard")
    assert ["heard"] == [line["event"] for line in written()]
    with pytest.raises(Misconfigured, match="expected one of: debug, info, warning, error"):
        set_level("loud")
    assert "error" == level(), "what is refused changes nothing"
