"""Starts a worker again when it has ended unasked.

A worker that meets anything it does not understand ends at once, before it commits, and comes
back from what is durable: that is its one way to recover. Whoever has a supervisor already
(systemd, Kubernetes, a container's restart policy) says ``--once``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

log = structlog.get_logger(__name__)

#: Exit codes that another start would only repeat: done, and refused.
FINAL: Final = (0, 2)
_BACKOFF_MAX_S: Final = 30.0
#: A process that ran for so long was well; the next failure starts counting anew.
_WELL_S: Final = 60.0
_PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> None:
    """In a child, before it starts: be killed when the parent dies, however it dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def supervise(arguments: Sequence[str]) -> int:
    """Run ``weir ARGUMENTS`` and again until it ends well; return its exit code.

    SIGTERM and SIGINT are passed on and end it for good.
    """
    child: subprocess.Popen[bytes] | None = None
    stopping = False

    def stop(number: int, _frame: FrameType | None) -> Any:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    backoff_s = 1.0
    while True:
        began_s = time.monotonic()
        child = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", "app", *arguments],
            env=os.environ,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - no thread runs here yet
            start_new_session=True,  # a terminal's Ctrl-C reaches the child through us, once
        )
        code = child.wait()
        if stopping or code in FINAL:
            return 0 if stopping else code
        if time.monotonic() - began_s > _WELL_S:
            backoff_s = 1.0
        log.warning("starting_again", exit_code=code, in_seconds=backoff_s)
        time.sleep(backoff_s)
        backoff_s = min(backoff_s * 2.0, _BACKOFF_MAX_S)
