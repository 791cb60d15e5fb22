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

    def __init__(self, field: str, value: Any, expected: str) -> None:
        """Say which ``field`` holds which ``value`` and what was ``expected`` instead."""
        super().__init__(f"{field} is {shown(value)}; expected {expected}")
        self.field = field


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
    text = "null" if value is None else f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."
