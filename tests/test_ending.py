"""A process that is asked to end does, whatever hangs in it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio
from app.ending import end_within

async def stop():
    end_within(0.5)
    await {what}

asyncio.run(stop())
"""


@pytest.mark.parametrize(("what", "code"), [("asyncio.sleep(0)", 0), ("asyncio.Event().wait()", 1)])
def test_stop_ends_by_itself_or_is_ended(what, code):
    """What hangs is told, with the place where it waits."""
    command = [sys.executable, "-c", PROGRAM.format(what=what)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert code == ended.returncode, ended.stderr
    assert ("stop_hangs" in ended.stdout) == bool(code)
    assert ("in stop" in ended.stdout) == bool(code)
