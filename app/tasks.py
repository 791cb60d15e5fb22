"""What a shell hands to whatever moves records: a task, and what it wants written.

A task owns one partition of one stage: its inputs, its state, nothing else. Whoever runs it
(the Faust transport, or the driver in ``testing``) keeps one order, and that order is the
whole protocol: outputs, then state, then offsets, each acknowledged before the next.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from app.records import Partition, Record, Send


class Committed(NamedTuple):
    """A committed offset (the next to be read) and what the task noted beside it.

    ``first``: where the log begins, as far as that was asked.
    """

    offset: int
    note: str = ""
    first: int = 0


class Range(NamedTuple):
    """Offsets [start, stop) to be read again; None: as far as the log goes."""

    partition: Partition
    start: int | None = None
    stop: int | None = None


def out_of_reach(at: Partition, offset: int, first: int, end: int) -> str:
    """Why a log that holds [first, end) cannot be read on from ``offset``; empty: it can.

    >>> from app.records import Partition
    >>> out_of_reach(Partition("labels", 0), 7, first=5, end=7)
    ''
    """
    where = f"{at.topic}[{at.partition}]"
    if offset < first:
        return (
            f"{where} begins at offset {first}; expected {offset}, the next to be read: retention "
            f"has deleted {first - offset} records unread. They cannot be had again; to go on "
            "without them set the offset of the group by hand (kafka-consumer-groups.sh "
            f"--reset-offsets --to-earliest --topic {at.topic}), and raise topics.retention"
        )
    if offset > end:
        return (
            f"{where} ends at offset {end}; expected at least {offset}, the next to be read: the "
            "topic was deleted and made anew, or the broker lost records. What was made of the old "
            "one would take its new records for those it knows: put the records back, or begin "
            "anew with another topics.prefix and worker.group"
        )
    return ""


@dataclass(slots=True)
class Effects:
    """What a batch caused, in the order in which it must become durable."""

    #: What must not be missing once an output tells of it: the alert of a score. An output that
    #: is repeated after a crash may be another one, by a newer model, and have no alert.
    first: list[Send] = field(default_factory=list)
    outputs: list[Send] = field(default_factory=list)
    state: list[Send] = field(default_factory=list)
    #: Called once all of that is durable: somebody waits to hear of it.
    told: list[Callable[[], None]] = field(default_factory=list)

    @property
    def parts(self) -> tuple[list[Send], list[Send], list[Send]]:
        """Each is acknowledged before the next is written."""
        return self.first, self.outputs, self.state


class Task(Protocol):
    """One partition of one stage. It decides; whoever runs it reads, writes and commits."""

    @property
    def inputs(self) -> tuple[Partition, ...]:
        """Partitions that this task reads."""

    def ranges(self, committed: Mapping[Partition, Committed]) -> list[Range]:
        """What must be read again before the first new record, in this order."""

    def restore(self, partition: Partition, records: Sequence[Record]) -> None:
        """Take records of those ranges, quietly: nothing is said of them again."""

    def start(self) -> Mapping[Partition, int]:
        """Inputs that begin elsewhere than at their committed offset, after restoring."""

    def reached(self) -> Mapping[Partition, int]:
        """Offsets that its restored state has applied: a log that ends before is another one."""

    def apply(
        self, partition: Partition, records: Sequence[Record], now_ms: int, effects: Effects
    ) -> None:
        """Fold new records of one input; add to ``effects`` what follows."""

    def tick(self, now_ms: int, effects: Effects, *, is_last: bool) -> None:
        """Do what is due by the clock, or, at a graceful stop, what is left to do."""

    def note(self, partition: Partition, offset: int) -> str:
        """What to keep beside the committed ``offset`` of an input."""


class Bound(NamedTuple):
    """Something that is kept in memory: how much, and how much it may become."""

    name: str  # as ``metrics.BOUNDS`` has it: the setting, where there is one
    stage: str
    partition: int
    used: int
    limit: int


@runtime_checkable
class Bounded(Protocol):
    """A task that says how full it is."""

    def bounds(self) -> Iterable[Bound]:
        """What it keeps in memory."""


class Level(NamedTuple):
    """How one of ``metrics.STATE`` stands; ``labels`` are the values of its labels."""

    name: str
    labels: tuple[str, ...]
    value: float


@runtime_checkable
class Levelled(Protocol):
    """A task that says how it stands, whenever somebody asks."""

    def levels(self) -> Iterable[Level]:
        """How much it holds."""


@runtime_checkable
class Durable(Protocol):
    """A task with a state of its own beside the logs, never ahead of what is committed."""

    def committed(self, offsets: Mapping[Partition, Committed]) -> None:
        """The coordinator has taken these offsets; the task stands exactly there."""

    def close(self) -> None:
        """It is another's partition from now on."""


class Stage(Protocol):
    """All partitions of one step of the flow."""

    @property
    def name(self) -> str:
        """What logs and metrics call it."""

    @property
    def topics(self) -> tuple[str, ...]:
        """Inputs, co-partitioned."""

    def task(self, partition: int) -> Task:
        """Return a new task for one partition, with nothing restored yet."""
