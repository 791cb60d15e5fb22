"""Publishes transactions and their labels, in the order of event time, as services would.

A stream is items in order; a pace says when each may go; the publisher sends what is due, in
batches, and goes on when the brokers have acknowledged every record of them.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from app.admin import Admin
from app.codec import encode
from app.errors import Refused
from app.files import SECONDS_MAX, UNLABELLED, due_order
from app.kafka import Sender
from app.records import Send
from app.synth import Fields, Item, items, simulate
from app.topics import Topics, partition_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

    from app.config import Settings
    from app.files import Columns
    from app.synth import World

#: 4096 records of 100 bytes in 4 partitions: 100 KB each, a fifth of what fits a batch.
BATCH_MAX: Final = 4_096
#: 20 ms: what waits for its time waits no longer than a fetch takes, at 50 sends a second.
_WAKE_S: Final = 0.02
#: 2 s: who is interrupted waits so long for the batch under way.
_LAST_S: Final = 2.0
#: Rows of a file that are made into items at once.
_ROWS: Final = 16_384


class Pace(Protocol):
    """When each item may go."""

    def due_s(self, n: int, time_ms: int) -> float:
        """Seconds after the start at which the item may go: number ``n``, of event time."""


class Free:
    """As fast as it goes."""

    def due_s(self, n: int, time_ms: int) -> float:
        """At once."""
        return 0.0


@dataclass(frozen=True)
class AtRate:
    """So many records a second.

    >>> AtRate(50.0).due_s(100, 0)
    2.0
    """

    rate: float

    def due_s(self, n: int, time_ms: int) -> float:
        """In even distances."""
        return n / self.rate


@dataclass
class InEventTime:
    """As in the stream itself, ``speedup`` times faster.

    >>> pace = InEventTime(3_600.0)
    >>> pace.due_s(0, 5_000), pace.due_s(1, 3_605_000)
    (0.0, 1.0)
    """

    speedup: float
    start_ms: int | None = None

    def due_s(self, n: int, time_ms: int) -> float:
        """So long after the first item as the stream says."""
        if self.start_ms is None:
            self.start_ms = time_ms
        return (time_ms - self.start_ms) / 1_000.0 / self.speedup


@dataclass
class Published:
    """What the brokers have acknowledged."""

    transactions: int = 0
    labels: int = 0
    time_ms: int = 0  # event time of the last record
    started_s: float = field(default_factory=time.monotonic)
    ended_s: float | None = None

    def count(self, batch: Iterable[Item]) -> None:
        """Add a batch."""
        for item in batch:
            self.transactions += item.kind == "transaction"
            self.labels += item.kind == "label"
            self.time_ms = item.time_ms

    @property
    def n(self) -> int:
        """Records of both kinds."""
        return self.transactions + self.labels

    @property
    def rate(self) -> float:
        """Records a second since the start."""
        until_s = time.monotonic() if self.ended_s is None else self.ended_s
        return self.n / max(until_s - self.started_s, 1e-9)

    def end(self) -> None:
        """Let the clock stand."""
        self.ended_s = time.monotonic()


def send_of(item: Item, topics: Topics) -> Send:
    """Where an item goes, and as what bytes."""
    topic = topics.transactions if item.kind == "transaction" else topics.labels
    value = item.value if isinstance(item.value, bytes) else encode(item.value)
    return Send(topic.name, partition_of(item.key, topic.partitions), item.key, value)


async def publish(
    stream: Iterable[Item],
    settings: Settings,
    pace: Pace,
    *,
    published: Published | None = None,
    on_batch: Callable[[list[Item]], Any] = lambda _: None,
) -> Published:
    """Send a stream at a pace; return what was acknowledged.

    Raises Undelivered, and Refused where the topics are not as the configuration says.
    ``published`` counts on the way, so that whoever cancels this knows how far it came;
    ``on_batch`` is called with each batch once it is acknowledged.
    """
    topics, sender = Topics.of(settings), Sender(settings)
    published = published or Published()
    await _refuse_unfit(settings, topics)
    await sender.start()
    flight: asyncio.Task[None] | None = None
    try:
        async for batch in _paced(stream, pace):
            sends = [send_of(item, topics) for item in batch]
            # One batch is under way while the next is encoded; never two, so order is kept.
            if flight is not None:
                await flight
            flight = asyncio.create_task(_deliver(sender, sends, batch, published, on_batch))
            await asyncio.sleep(0)
        if flight is not None:
            await flight
    finally:
        if flight is not None:
            await asyncio.wait([flight], timeout=_LAST_S)
        await sender.stop()
    return published


async def _refuse_unfit(settings: Settings, topics: Topics) -> None:
    """Refuse topics that are missing or differ: a key would lie in another partition."""
    async with Admin(settings) as admin:
        problems = await admin.problems([topics.transactions, topics.labels])
    if problems:
        raise Refused("\n".join(problems))


async def _deliver(
    sender: Sender,
    sends: list[Send],
    batch: list[Item],
    published: Published,
    on_batch: Callable[[list[Item]], Any],
) -> None:
    await sender.deliver(sends)
    published.count(batch)
    on_batch(batch)


async def _paced(stream: Iterable[Item], pace: Pace) -> AsyncIterator[list[Item]]:
    """Batches of what is due, in order."""
    started_s = time.monotonic()
    batch: list[Item] = []
    for n, item in enumerate(stream):
        due_s = started_s + pace.due_s(n, item.time_ms)
        if len(batch) >= BATCH_MAX or (batch and due_s > time.monotonic()):
            yield batch
            batch = []
        if (wait_s := due_s - time.monotonic()) > 0.0:
            # Whatever falls due within a wake goes together.
            await asyncio.sleep(max(wait_s, _WAKE_S))
        batch.append(item)
    if batch:
        yield batch


def items_of(
    columns: Columns, settings: Settings, delay_ms: int, *, with_tail: bool = True
) -> Iterator[Item]:
    """The stream of a file: each transaction, and its label ``delay_ms`` later.

    Without ``with_tail`` the labels are left out that are due after the last transaction.
    """
    n = len(columns)
    order = due_order(columns.times_ms, delay_ms)
    order = order[(order < n) | (columns.labels[order % max(n, 1)] != UNLABELLED)]
    if not with_tail:
        order = order[: int(np.max(np.flatnonzero(order < n), initial=-1)) + 1]
    # With one delay for all, labels come in the order of their transactions.
    transactions = _transactions(columns, settings)
    labels = _labels(columns, settings, delay_ms)
    for start in range(0, len(order), _ROWS):
        for is_transaction in (order[start : start + _ROWS] < n).tolist():
            yield next(transactions if is_transaction else labels)


def n_items(columns: Columns) -> int:
    """How many items a file has at most, transactions and labels."""
    return len(columns) + int(np.count_nonzero(columns.labels != UNLABELLED))


def _transactions(columns: Columns, settings: Settings) -> Iterator[Item]:
    of = settings.transaction
    fields: dict[str, Sequence[Any]] = {
        of.id: columns.ids,
        of.time: [_told(time_ms, of.time_unit) for time_ms in columns.times_ms.tolist()],
        **dict(zip(of.entities, columns.keys, strict=True)),
        **{name: values.tolist() for name, values in columns.numbers.items()},
        **columns.categories,
    }
    is_whole = not any(np.isnan(v).any() for v in columns.numbers.values())
    is_whole &= not any(None in v for v in columns.categories.values())
    names = tuple(fields)
    keys = columns.keys[0] if columns.keys else columns.ids
    times, rows = columns.times_ms.tolist(), zip(*fields.values(), strict=True)
    for time_ms, key, row in zip(times, keys, rows, strict=True):
        value = dict(zip(names, row, strict=True))
        if not is_whole:
            value = {name: v for name, v in value.items() if not _is_missing(v)}
        yield Item(time_ms, "transaction", key.encode(), value)


def _labels(columns: Columns, settings: Settings, delay_ms: int) -> Iterator[Item]:
    of = settings.label
    source = {of.source: "file"} if of.source else {}
    labelled = np.flatnonzero(columns.labels != UNLABELLED).tolist()
    times, labels = columns.times_ms + delay_ms, columns.labels
    for i, time_ms, label in zip(
        labelled, times[labelled].tolist(), labels[labelled].tolist(), strict=True
    ):
        name = columns.ids[i]
        told = _told(time_ms, "auto")
        value = {of.transaction_id: name, of.value: label == 1, of.time: told, **source}
        yield Item(time_ms, "label", name.encode(), value)


def _is_missing(value: Any) -> bool:
    return value is None or value != value  # noqa: PLR0124 - NaN is what differs from itself


def _told(time_ms: int, unit: str) -> Any:
    """A time as the configuration wants it; milliseconds where they cannot be mistaken."""
    if unit == "s":
        return time_ms / 1_000.0
    if unit == "ms" or (unit == "auto" and abs(time_ms) >= SECONDS_MAX):
        return time_ms
    return datetime.fromtimestamp(time_ms / 1_000.0, UTC).isoformat()


def fields_of(settings: Settings) -> Fields:
    """What the simulator's fields are called in a configuration. Raises Refused.

    >>> from app.config import load
    >>> fields_of(load(profile="handbook")).card
    'CUSTOMER_ID'
    """
    of, label = settings.transaction, settings.label
    needed = (set(of.numbers) | set(of.categories)) - set(of.optional)
    if len(of.entities) != 2 or of.amount is None or needed:  # noqa: PLR2004 - card and terminal
        msg = (
            "the simulator knows transactions with two entities (card, terminal) and an amount; "
            f"this configuration declares {list(of.entities)}, amount {of.amount!r}"
        )
        raise Refused(f"{msg}, and needs {sorted(needed)}" if needed else msg)
    card, terminal = of.entities
    return Fields(
        id=of.id,
        time=of.time,
        card=card,
        terminal=terminal,
        amount=of.amount,
        label_id=label.transaction_id,
        label_value=label.value,
        label_time=label.time,
        label_source=label.source,
    )


def simulated(world: World, fields: Fields, n: int | None = None) -> Iterator[Item]:
    """The stream of a world; with ``n`` it ends before transaction number ``n``."""
    paid = 0
    for day in simulate(world):
        for item in items(day, fields):
            paid += item.kind == "transaction"
            if n is not None and paid > n:
                return
            yield item
