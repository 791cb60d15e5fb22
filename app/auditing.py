"""The audit as seen from outside: whether every chain is whole, and what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from app import codec
from app.audit import is_sealed
from app.core.chain import GENESIS, Check
from app.errors import Malformed
from app.tail import records
from app.topics import Topics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from app.config import Settings
    from app.records import Entry, Position, Record

#: By partition, how many entries a chain has and the digest of the last.
Heads = dict[int, tuple[int, str]]


class Verdict(NamedTuple):
    """What a check of all chains came to."""

    heads: Heads
    problems: list[str]
    beside: list[str]  # no problems: entries that a former owner wrote late

    def as_object(self) -> dict[str, Any]:
        """For programs; ``heads`` is what a later check is held against."""
        heads = {str(p): {"entries": n, "digest": head} for p, (n, head) in self.heads.items()}
        is_whole, n = not self.problems, sum(n for n, _ in self.heads.values())
        told = {"problems": self.problems, "beside": self.beside, "heads": heads}
        return {"whole": is_whole, "entries": n, **told}


def heads_of(told: Mapping[str, Any]) -> Heads:
    """Inverse of the heads of ``Verdict.as_object``. Raises Malformed."""
    try:
        return {int(p): (int(h["entries"]), str(h["digest"])) for p, h in told["heads"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Malformed("heads", told, "what `weir audit verify --json` printed") from None


def check(
    entries: Iterable[tuple[int, Record]], topic: str, partitions: int, key: bytes, known: Heads
) -> Verdict:
    """Check all chains: (partition, record), in order within each."""
    checks = {p: Check(known.get(p, (0, GENESIS))) for p in range(partitions)}
    for partition, record in entries:
        entry, value = entry_of(record), record.value or b""
        checks[partition].look(record.offset, value, entry, is_sealed=is_sealed(record, key))
    heads = {p: (one.n, one.head) for p, one in checks.items()}
    problems = [f"{topic}[{p}], {text}" for p, one in checks.items() for text in one.end()]
    beside = [f"{topic}[{p}], {text}" for p, one in checks.items() for text in one.beside]
    return Verdict(heads, problems, beside)


def entry_of(record: Record) -> Entry | None:
    """The entry in a record, if it is one."""
    try:
        return codec.read_entry(record)
    except Malformed:
        return None


async def verify(settings: Settings, known: Heads) -> Verdict:
    """Check the chains on the topic as they are now."""
    spec, key = Topics.of(settings).audit, settings.learner.key.get_secret_value().encode()
    found = [(at.partition, record) async for at, record in _all(settings)]
    return check(found, spec.name, spec.partitions, key, known)


async def entries(settings: Settings, kind: str | None) -> AsyncIterator[tuple[Position, Entry]]:
    """The entries, of one kind if that is asked for, in order within each partition."""
    async for at, record in _all(settings):
        entry = entry_of(record)
        if entry is not None and kind in {None, entry.kind}:
            yield at, entry


def _all(settings: Settings) -> AsyncIterator[tuple[Position, Record]]:
    return records(settings, Topics.of(settings).audit, from_beginning=True, to_end=True)
