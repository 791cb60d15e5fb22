"""Runs weir with a guard taken away, or with a fault, so that one can see what the guard is for.

    python -m tests.integration.unguarded FAULT,MUTANT worker --once

Names are those of the functions here and of the simulator's mutants. Nothing of this is part of the
program: it is patched from outside, in a process of its own.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from aiokafka import AIOKafkaConsumer

from app import transport, worker
from app.admin import Admin
from app.api.desk import Desk
from app.cli import main
from app.errors import Undelivered
from app.flow import Flow, Turn
from app.kafka import Reader, Sender
from app.records import Partition
from app.stages import EntityTask
from app.transport import Consumer, Restorer
from app.worker import WeirApp
from tests.simulator.mutants import MUTANTS

Patch = AbstractContextManager[Any]

# ---- Faults.


def error_in_a_batch() -> Patch:
    """A programmer's error that shows at one record."""
    real = EntityTask.apply

    def apply(task: EntityTask, partition: Partition, records: Any, now_ms: int, out: Any) -> None:
        if any(b'"t17"' in (record.value or b"") for record in records):
            raise RuntimeError("a programmer's error")
        real(task, partition, records, now_ms, out)

    return patch.object(EntityTask, "apply", apply)


def delivery_hangs() -> Patch:
    """The broker takes no scores."""
    real = Sender.deliver

    async def deliver(sender: Sender, sends: Any) -> None:
        held = list(sends)
        if any(send.topic.endswith("scores") for send in held):
            sys.stderr.write("scores are held\n")
            await asyncio.sleep(3_600)
        await real(sender, held)

    return patch.object(Sender, "deliver", deliver)


def deliveries_lag() -> Patch:
    """Between a batch and its delivery lie seconds: time to be stopped in."""
    real = Flow.deliver

    async def deliver(flow: Flow, turn: Any) -> None:
        if turn:
            await asyncio.sleep(3.0)
        await real(flow, turn)

    return patch.object(Flow, "deliver", deliver)


def restore_hangs() -> Patch:
    """What is known of the entities never comes."""
    real = Reader.read

    async def read(reader: Reader, task: Any, ranges: Any) -> int:
        if isinstance(task, EntityTask):
            sys.stderr.write("nothing is restored\n")
            await asyncio.sleep(3_600)
        return await real(reader, task, ranges)

    return patch.object(Reader, "read", read)


@contextmanager
def restore_ends_in_a_rebalance() -> Iterator[None]:
    """The first one ends just after its partitions were let go; the next one takes seconds."""
    begin, wait_empty, read = Consumer.begin, Consumer.wait_empty, Reader.read
    let_go, is_late = asyncio.Event(), asyncio.Event()

    async def begin_late(consumer: Consumer, starts: Any) -> None:
        await begin(consumer, starts)
        if not let_go.is_set():
            sys.stderr.write("the restore is held\n")
            await let_go.wait()

    async def then_let_go(consumer: Consumer) -> None:
        await wait_empty(consumer)
        let_go.set()

    async def read_late(reader: Reader, task: Any, ranges: Any) -> int:
        if let_go.is_set() and not is_late.is_set():
            is_late.set()
            sys.stderr.write("the next one is late\n")
            await asyncio.sleep(3.0)
        return await read(reader, task, ranges)

    with (
        patch.object(Consumer, "begin", begin_late),
        patch.object(Consumer, "wait_empty", then_let_go),
        patch.object(Reader, "read", read_late),
    ):
        yield


def stop_is_short() -> Patch:
    """A stop may take a second, besides one delivery: ten are long for a test."""
    return patch.object(worker, "_STOP_S", 1.0)


# ---- Guards taken away.


def errors_are_skipped() -> Patch:
    """As Faust does: an event whose handler raises is acked and passed over."""
    real = Flow.apply

    async def apply(flow: Flow, fetched: Mapping[Partition, Any], **more: Any) -> Turn:
        try:
            return await real(flow, fetched, **more)
        except RuntimeError:
            return Turn({at: held[-1].offset + 1 for at, held in fetched.items()})

    return patch.object(Flow, "apply", apply)


def rejected_batches_are_forgotten() -> Patch:
    """As aiokafka's flush and Faust's producer do: what was not acknowledged is only logged."""
    real = Sender.deliver

    async def deliver(sender: Sender, sends: Any) -> None:
        try:
            await real(sender, sends)
        except Undelivered as error:
            sys.stderr.write(f"forgotten: {error}\n")

    return patch.object(Sender, "deliver", deliver)


def commit_before_delivery() -> Patch:
    """As Faust may: the commit passes records that are still in work."""
    real = Consumer._take

    async def take(consumer: Consumer, fetched: Any) -> None:
        flow = consumer.flow
        held = {Partition(*tp): records for tp, records in fetched.items() if records}
        await consumer._delivered()
        flow.positions.update({at: records[-1].offset + 1 for at, records in held.items()})
        await consumer._commit_due()
        await real(consumer, fetched)

    return patch.object(Consumer, "_take", take)


def topics_are_not_verified() -> Patch:
    """As Faust does: it takes its topics as they are."""

    async def problems(admin: Admin, topics: Any) -> list[str]:
        return []

    return patch.object(Admin, "problems", problems)


@contextmanager
def lost_offsets_are_reset() -> Iterator[None]:
    """As Faust has aiokafka do: an offset that is gone is replaced by the earliest.

    Two guards stand one behind the other: ours looks before it reads, aiokafka's own raises.
    """

    def consumer(**told: Any) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(**{**told, "auto_offset_reset": "earliest"})

    with (
        patch.object(transport, "out_of_reach", lambda *at, **ends: ""),
        patch.object(transport, "AIOKafkaConsumer", consumer),
    ):
        yield


@contextmanager
def old_restores_go_on() -> Iterator[None]:
    """A restore that a rebalance overtook lets records flow, and says that all is restored."""
    real = Flow.own

    def own(flow: Flow, assigned: Any) -> Any:
        was = flow.is_restored
        made = real(flow, assigned)
        flow.is_restored = was
        return made

    with (
        patch.object(Restorer, "on_partitions_revoked", lambda restorer, revoked: None),
        patch.object(Flow, "own", own),
    ):
        yield


def faust_serves_its_pages() -> Patch:
    """Faust's own web server runs, as it does where nobody says otherwise."""
    real = WeirApp.__init__

    def init(app: WeirApp, *args: Any, **told: Any) -> None:
        real(app, *args, **{**told, "web_enabled": True})

    return patch.object(WeirApp, "__init__", init)


def pages_do_not_wait() -> Patch:
    """As Faust's: a page looks into the state whether that is restored or not."""

    def task(desk: Desk, kind: Any, topic: str, partition: int) -> Any:
        return desk.flow.tasks.get(Partition(topic, partition))

    return patch.object(Desk, "task", task)


def stops_are_waited_for() -> Patch:
    """As Faust does: a stop takes as long as it takes."""
    return patch.object(worker, "end_within", lambda limit_s: None)


OURS: dict[str, Callable[[], Patch]] = {
    made.__name__: made
    for made in (
        error_in_a_batch,
        delivery_hangs,
        deliveries_lag,
        restore_hangs,
        restore_ends_in_a_rebalance,
        stop_is_short,
        errors_are_skipped,
        rejected_batches_are_forgotten,
        commit_before_delivery,
        topics_are_not_verified,
        lost_offsets_are_reset,
        old_restores_go_on,
        faust_serves_its_pages,
        pages_do_not_wait,
        stops_are_waited_for,
    )
}

if __name__ == "__main__":
    with ExitStack() as taken:
        for name in filter(None, sys.argv.pop(1).split(",")):
            taken.enter_context({**MUTANTS, **OURS}[name]())
        main()
