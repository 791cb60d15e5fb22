"""weir as ``python -m app`` runs it, but for one thing that breaks once a file is there.

SABOTAGE names the thing, SABOTAGE_FILE the file. The broker, the group and the rest of the process
are real; what is broken is broken as it was seen to break:

    freeze   the consumer passes over one partition (aiokafka#1176)
    commit   the coordinator takes no commit any more (faust#316)
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import RebalanceInProgressError

from app.cli import main
from app.transport import Consumer


def freeze(consumer: Consumer) -> None:
    """Fetch nothing more of the first partition of the first input."""
    consumer.client.pause(TopicPartition(consumer.flow.topics[0], 0))


def commit(consumer: Consumer) -> None:
    """Have every commit refused as the group's rebalances refuse it."""

    async def refused(*args: Any, **kwargs: Any) -> None:
        raise RebalanceInProgressError

    consumer.client.commit = refused


async def wait_and_break(consumer: Consumer) -> None:
    """Do the harm once the file is there."""
    while not Path(os.environ["SABOTAGE_FILE"]).exists():  # noqa: ASYNC110, ASYNC240 - a test's
        await asyncio.sleep(0.05)
    {"freeze": freeze, "commit": commit}[os.environ["SABOTAGE"]](consumer)


start = Consumer.on_start
tasks: list[asyncio.Task[None]] = []


async def start_and_wait(self: Consumer) -> None:
    """Start as always, and wait for the file."""
    await start(self)
    tasks.append(asyncio.create_task(wait_and_break(self)))


if __name__ == "__main__":
    Consumer.on_start = start_and_wait  # type: ignore[method-assign]
    main()
