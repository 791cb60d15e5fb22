"""Runs weir with a guard taken away, or with a fault, so that one can see what the guard is for.

    python -m tests.integration.unguarded FAULT,MUTANT worker --once

Names are those of the functions here and of the simulator's mutants. Nothing of this is part of the
program: it is patched from outside, in a process of its own.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from app.cli import main
from app.errors import Undelivered
from app.flow import Flow, Turn
from app.kafka import Sender
from app.records import Partition
from app.stages import EntityTask
from app.transport import Consumer
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


OURS: dict[str, Callable[[], Patch]] = {
    made.__name__: made
    for made in (
        error_in_a_batch,
        delivery_hangs,
        deliveries_lag,
        errors_are_skipped,
        rejected_batches_are_forgotten,
        commit_before_delivery,
    )
}

if __name__ == "__main__":
    for name in filter(None, sys.argv.pop(1).split(",")):
        {**MUTANTS, **OURS}[name]().__enter__()
    main()
