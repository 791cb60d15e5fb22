"""Whose fault it is, and where, what and what was expected.

Every error that weir raises on purpose is one of these; anything else is a programmer's
error and stops the process.
"""

from __future__ import annotations

from typing import Any


class WeirError(Exception):
    """Base of all errors that weir raises on purpose."""


class Malformed(WeirError):
    """A record that cannot be read: theirs. It goes to the dead letters; nothing else changes."""

    def __init__(self, field: str, value: Any, expected: str, reason: str = "") -> None:
        """Say which ``field`` holds which ``value`` and what was ``expected`` instead.

        ``reason`` is one of few words, for counting; without one it follows from the field.
        """
        super().__init__(f"{_short(field)} is {shown(value)}; expected {expected}")
        self.field, self.reason = field, reason


class Refused(WeirError):
    """Something weir will not do in its present state or configuration: ours, or the operator's."""


class Misconfigured(Refused):
    """A setting that cannot work: the message names the key, the value and what was expected."""


class Fenced(Refused):
    """This process may no longer own its partitions: it must write nothing more and exit."""


class Undelivered(WeirError):
    """A record that the broker did not acknowledge: nothing it caused may be committed."""


#: 80 characters: enough to recognise a value, too few to carry a record into a log line.
SHOWN_MAX = 80


def shown(value: Any) -> str:
    """A value as an error message shows it: JSON-like, at most 80 characters.

    >>> shown("12,50")
    '"12,50"'
    >>> shown(None)
    'null'
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str):
        return _short(f'"{value}"')
    try:
        return _short(repr(value))
    except (ValueError, RecursionError):  # an integer of 5,000 digits; a list 1,000 deep
        return f"<{type(value).__name__}, too large to show>"


def _short(text: str) -> str:
    """At most 80 characters; what does not print (a line's end, half a surrogate) as its escape."""
    cut = text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
