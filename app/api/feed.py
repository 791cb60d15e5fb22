"""Server-sent events: what happens, to everybody who listens, encoded once."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from app import codec
from app.tasks import Bound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: Events that somebody who comes back may have missed.
HELD_MAX: Final = 1_000
#: Events that one reader may be behind; then it is told to begin again.
BEHIND_MAX: Final = 500
#: Seconds without an event after which a comment is sent: proxies close what is silent.
_ALIVE_S: Final = 15.0


def frame(kind: str, told: Any, identity: str = "") -> bytes:
    r"""One event as it goes over the wire.

    >>> frame("drift", {"a": 1}, "1-7")
    b'event: drift\nid: 1-7\ndata: {"a":1}\n\n'
    """
    head = f"event: {kind}\n" + (f"id: {identity}\n" if identity else "")
    return head.encode() + b"data: " + codec.encode(told) + b"\n\n"


class Feed:
    """The events of this process, numbered; ``name`` tells them from those of another."""

    def __init__(self, name: str, streams_max: int) -> None:
        """Begin without events and readers."""
        self._name, self._n = name, 0
        self.streams_max = streams_max
        self._held: deque[tuple[int, bytes]] = deque(maxlen=HELD_MAX)
        self._readers: set[asyncio.Queue[bytes | None]] = set()

    def __len__(self) -> int:
        """How many listen."""
        return len(self._readers)

    def bounds(self) -> tuple[Bound]:
        """The readers."""
        return (Bound("access.streams_max", "api", 0, len(self), self.streams_max),)

    @property
    def id(self) -> str:
        """Of the last event."""
        return f"{self._name}-{self._n}"

    def tell(self, kind: str, told: Any, *, is_kept: bool = True) -> None:
        """Tell everybody; what is not kept has no number, and is missed by who is not there."""
        if is_kept:
            self._n += 1
            event = frame(kind, told, self.id)
            self._held.append((self._n, event))
        elif self._readers:
            event = frame(kind, told)
        else:
            return
        for queue in self._readers:
            if queue.qsize() < BEHIND_MAX:
                queue.put_nowait(event)
            elif queue.qsize() == BEHIND_MAX:
                queue.put_nowait(frame("reset", {}))

    def missed(self, after: str) -> list[bytes] | None:
        """Events after the one with that id; None: they are not held any more."""
        name, _, number = after.rpartition("-")
        if name != self._name or not number.isdigit():
            return None
        seen = int(number)
        if seen > self._n or (self._held and seen < self._held[0][0] - 1):
            return None
        return [event for n, event in self._held if n > seen]

    async def listen(self, hello: dict[str, Any], after: str = "") -> AsyncIterator[bytes]:
        """Events for one reader, until it goes or the process does."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        missed = self.missed(after) if after else []
        self._readers.add(queue)
        try:
            told = {**hello, "id": self.id, "missed": missed is None}
            yield b"retry: 2000\n" + frame("hello", told)
            for event in missed or []:
                yield event
            while True:
                try:
                    async with asyncio.timeout(_ALIVE_S):
                        came = await queue.get()
                except TimeoutError:
                    came = b": alive\n\n"
                if came is None:
                    return
                yield came
        finally:
            self._readers.discard(queue)

    def close(self) -> None:
        """Let every reader go."""
        for queue in self._readers:
            queue.put_nowait(None)
