"""The audit's chain: each entry holds the digest of the one before, and its own place.

One partition is one chain, written by the one task that owns the partition. The entries are
also what that task knows: what was entered, from which source offset, under which identity. So
a task that comes back reads the newest of them and goes on; nothing is entered twice.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

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


class _Link(NamedTuple):
    """An entry as one that was written after it knows it."""

    offset: int
    place: int
    previous: str  # digest of the entry that it was itself written after


@dataclass
class Check:
    """Follows a chain from its first entry and says what is wrong with it.

    A worker that lost its partition may have had an entry on its way, which the network held: it
    lies *beside* the line that the next owner wrote, and whoever restores goes on after it. So an
    entry has to follow one that is there, not always the last; what a line says twice, has no
    place in its order, or follows nothing is wrong.

    ``known`` is what an earlier check found: how many entries, and the digest of the last. A chain
    that was cut off, or written anew with the key, differs from it.
    """

    known: tuple[int, str] = (0, GENESIS)
    n: int = 0
    head: str = GENESIS
    problems: list[str] = field(default_factory=list)
    #: No problems: where two workers wrote, for a moment, neither of whom knew of the other.
    beside: list[str] = field(default_factory=list)
    _links: OrderedDict[str, _Link] = field(
        default_factory=lambda: OrderedDict({GENESIS: _Link(-1, -1, "")})
    )
    _said: OrderedDict[str, str] = field(default_factory=OrderedDict)  # identity: digest of entry

    def look(self, offset: int, value: bytes, entry: Entry | None, *, is_sealed: bool) -> None:
        """Take the next record of the partition."""
        digest = digest_of(value)
        wrong = [f"{offset - self.n} entries before it are gone"] if offset != self.n else []
        if not is_sealed:
            wrong.append("it is not sealed with learner.key")
        if entry is None:
            wrong.append("it is no entry")
        elif (same := self._links.get(digest)) is not None:
            self.beside.append(f"entry {offset}: it is entry {same.offset} once more")
        else:
            wrong += self._misplaced(offset, entry)
            self._links[digest] = _Link(offset, entry.place, entry.previous)
            self._said[entry.identity] = digest
            for remembered in (self._links, self._said):
                if len(remembered) > REMEMBERED_MAX:  # as much as the writer remembers
                    remembered.popitem(last=False)
        self.n, self.head = offset + 1, digest
        if self.n == self.known[0] and self.head != self.known[1]:
            wrong.append("it is not what was there when the chain was last checked")
        self.problems += [f"entry {offset}: {text}" for text in wrong]

    def _misplaced(self, offset: int, entry: Entry) -> list[str]:
        """What is wrong with the place of an entry that nothing else is wrong with."""
        wrong = []
        after = self._links.get(entry.previous)
        if not (-1 if after is None else after.place) < entry.place <= offset:
            wrong.append(f"it was written as entry {entry.place}")
        if after is None:
            wrong.append("the entry before it is not the one it was written after")
        elif entry.previous != self.head:
            told = f"entry {offset}: it follows entry {after.offset}"
            self.beside.append(f"{told}, by a worker that knew of none between")
        if self._is_said_in_line(entry):
            wrong.append("it says what was said before")
        return wrong

    def _is_said_in_line(self, entry: Entry) -> bool:
        """Whether one of those that an entry was written after says the same."""
        said = self._said.get(entry.identity)
        if said is None or said not in self._links:
            return False
        back, until = entry.previous, self._links[said].offset
        while (link := self._links.get(back)) is not None and link.offset > until:
            back = link.previous
        return back == said

    def end(self) -> list[str]:
        """All that is wrong, once there are no more records."""
        if self.n < self.known[0]:
            short = f"{self.n} entries are left of the {self.known[0]} that there were"
            self.problems.append(f"it was cut off: {short}")
        return self.problems
