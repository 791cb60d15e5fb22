"""Tables of bytes that outlive the process, and how a fold goes through one in order.

What is in a table and what is yet to be written are gone through as if they were one.
"""

from __future__ import annotations

import heapq
import struct
from collections import deque
from itertools import takewhile
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

#: What a ledger keeps; ``ledger`` says what lies in each.
TABLES: Final = ("scores", "known", "due", "labels", "rest")
_NUMBER: Final = struct.Struct(">Q")  # in the order of numbers, those below zero first
_ZERO: Final = 1 << 63
#: 256 keys at once: those that are due in a batch or two.
CHUNK: Final = 256

Put = tuple[str, bytes, bytes]
Drop = tuple[str, bytes]


class Tables(Protocol):
    """Tables of bytes in the order of their keys, which outlive the process."""

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key."""

    def scan(self, table: str, start: bytes, n: int) -> list[bytes]:
        """The first ``n`` keys from ``start`` on."""

    def write(self, puts: Iterable[Put], drops: Iterable[Drop]) -> None:
        """Do all of it or nothing, whatever happens meanwhile."""

    def clear(self) -> None:
        """Drop everything."""


class Order:
    """The keys of one table in their order, with those that are yet to be written.

    ``is_alive``: whether what such a key says is still so.
    """

    def __init__(self, tables: Tables, name: str, is_alive: Callable[[int, str], bool]) -> None:
        """Begin at the beginning."""
        self._tables, self.name, self._is_alive = tables, name, is_alive
        self.begin(b"")

    def begin(self, floor: bytes) -> None:
        """Know that nothing lies below ``floor``, and of nothing that was not written."""
        self._floor = self._next = floor
        self._window: deque[tuple[int, str]] = deque()  # what lies below ``_next``, if alive
        self._heap: list[tuple[int, str]] = []  # what is yet to be written
        self._is_end = False

    def push(self, number: int, transaction_id: str) -> None:
        """Take in a key that will be written."""
        heapq.heappush(self._heap, (number, transaction_id))

    def first(self) -> tuple[int, str] | None:
        """The first that is alive."""
        while (one := self._top()) is not None and not self._is_alive(*one):
            self.pop()
        return one

    def pop(self) -> None:
        """Pass over the first."""
        if self._window and (not self._heap or self._window[0] <= self._heap[0]):
            self._window.popleft()
        else:
            heapq.heappop(self._heap)

    def upto(self, number: int) -> list[str]:
        """Of those at hand that lie on the disk, whose key is at most so much."""
        return [name for _, name in takewhile(lambda one: one[0] <= number, self._window)]

    def floor(self) -> bytes:
        """Below it nothing is alive, on the disk or yet to be written."""
        one = self.first()
        return self._next if one is None else key_of(*one)

    def written(self, floor: bytes) -> None:
        """What was yet to be written lies in the table; what is not alive no longer does."""
        if self._heap and key_of(*self._heap[0]) < self._next:
            self.begin(floor)
            return
        self._window = deque(one for one in self._window if self._is_alive(*one))
        self._is_end = self._is_end and not self._heap
        self._heap = []

    def _top(self) -> tuple[int, str] | None:
        if not self._window and not self._is_end:
            keys = self._tables.scan(self.name, self._next, CHUNK)
            self._window.extend(_unkeyed(key) for key in keys)
            self._is_end = len(keys) < CHUNK
            self._next = keys[-1] + b"\0" if keys else self._next
        if self._window and (not self._heap or self._window[0] <= self._heap[0]):
            return self._window[0]
        return self._heap[0] if self._heap else None


def key_of(number: int, transaction_id: str) -> bytes:
    """A key in the order of a number, then of a name.

    >>> key_of(-1, "b") < key_of(0, "a") < key_of(0, "b") < key_of(256, "")
    True
    """
    return numbered(number) + transaction_id.encode()


def numbered(number: int) -> bytes:
    """A number as its key begins with it."""
    return _NUMBER.pack(number + _ZERO)


def _unkeyed(key: bytes) -> tuple[int, str]:
    return _NUMBER.unpack(key[:8])[0] - _ZERO, key[8:].decode()
