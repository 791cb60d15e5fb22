"""An end for what does not end: a process that is asked to stop, and hangs."""

from __future__ import annotations

import asyncio
import io
import os
import threading

import structlog

log = structlog.get_logger(__name__)


def end_within(limit_s: float) -> None:
    """End the process, exit code 1, unless it has ended by itself in so many seconds.

    What each task of the running loop waits for is told. What was not written by then is read
    again by whoever comes next, as after a crash.
    """
    timer = threading.Timer(limit_s, _give_up, [asyncio.get_running_loop(), limit_s])
    timer.daemon = True  # what ends in time does not wait for it
    timer.start()


def _give_up(loop: asyncio.AbstractEventLoop, limit_s: float) -> None:
    told = io.StringIO()
    for task in asyncio.all_tasks(loop):
        task.print_stack(file=told)
    log.error("stop_hangs", seconds=limit_s, tasks=told.getvalue())
    os._exit(1)
