"""The audit's chain: each entry holds the digest of the one before, and its own place.

One partition is one chain, written by the one task that owns the partition. The entries are
also what that task knows: what was entered, from which source offset, under which identity. So
a task that comes back reads the newest of them and goes on; nothing is entered twice.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from app.records import Entry

#: What the first entry holds in place of a digest.
GENESIS: Final = "0" * 64
#: 16,384: what comes again after a crash came within a batch, or since the last snapshot.
REMEMBERED_MAX: Final = 16_384


def digest_of(value: bytes) -> str:
    """The digest of an entry as it lies on the topic, SHA-256.

    >>> digest_of(b"")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(value).hexdigest()


@dataclass
class Chain:
    """The end of a chain, and what its newest entries say was entered."""

    next: int = 0  # place of the next entry: its offset
    head: str = GENESIS
    configured: dict[str, str] = field(default_factory=dict)  # role: digest of its settings
    _guard: dict[str, int] = field(default_factory=dict)  # topic: highest offset entered
    _seen: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        """How many identities are remembered."""
        return len(self._seen)

    def has(self, identity: str, topic: str, offset: int) -> bool:
        """Whether something was entered: that record, or one that said the same."""
        return offset <= self._guard.get(topic, -1) or identity in self._seen

    def follow(self, offset: int, value: bytes, entry: Entry | None) -> None:
        """Go on after an entry; None: what lies there is none, which ``check`` will tell."""
        self.next, self.head = offset + 1, digest_of(value)
        if entry is None:
            return
        topic, _, source = entry.at
        self._guard[topic] = max(source, self._guard.get(topic, -1))
        self.configured = entry.configured
        self._seen[entry.identity] = None
        if len(self._seen) > REMEMBERED_MAX:
            self._seen.popitem(last=False)

    def begin_again(self, topic: str) -> None:
        """A topic was made anew: its offsets say nothing of what was entered, identities do."""
        self._guard.pop(topic, None)

    @property
    def low(self) -> int:
        """From which entry on a task must read to know what it has to."""
        return max(0, self.next - REMEMBERED_MAX)


@dataclass
class Check:
    """Follows a chain from its first entry and says what is wrong with it.

    ``known`` is what an earlier check found: how many entries, and the digest of the last. A chain
    that was cut off, or written anew with the key, differs from it.
    """

    known: tuple[int, str] = (0, GENESIS)
    n: int = 0
    head: str = GENESIS
    problems: list[str] = field(default_factory=list)
    _seen: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def look(self, offset: int, value: bytes, entry: Entry | None, *, is_sealed: bool) -> None:
        """Take the next record of the partition."""
        wrong = []
        if offset != self.n:
            wrong.append(f"{offset - self.n} entries before it are gone")
        if entry is None:
            wrong.append("it is no entry")
        else:
            if entry.place != offset:
                wrong.append(f"it was written as entry {entry.place}")
            if entry.previous != self.head:
                wrong.append("the entry before it is not the one it was written after")
            if entry.identity in self._seen:
                wrong.append("it says what was said before")
            self._see(entry.identity)
        if not is_sealed:
            wrong.append("it is not sealed with learner.key")
        self.n, self.head = offset + 1, digest_of(value)
        if self.n == self.known[0] and self.head != self.known[1]:
            wrong.append("it is not what was there when the chain was last checked")
        self.problems += [f"entry {offset}: {text}" for text in wrong]

    def _see(self, identity: str) -> None:
        """Remember as much as the writer does: a model that is learnt anew says all of it again."""
        self._seen[identity] = None
        if len(self._seen) > REMEMBERED_MAX:
            self._seen.popitem(last=False)

    def end(self) -> list[str]:
        """All that is wrong, once there are no more records."""
        if self.n < self.known[0]:
            short = f"{self.n} entries are left of the {self.known[0]} that there were"
            self.problems.append(f"it was cut off: {short}")
        return self.problems
