"""A process under measurement: what it costs, seen from outside, and its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from common import ROOT

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

#: Seconds between two looks at a process that may have come to rest, and how many of them in a
#: row must show less than this share of a core: chosen, five ticks of the kernel's clock a look.
_LOOK_S = 0.25
_QUIET_LOOKS = 3
_QUIET_SHARE = 0.2


class Cpu(NamedTuple):
    """CPU seconds of a process, all threads, those that have ended too."""

    user_s: float
    system_s: float

    @property
    def total_s(self) -> float:
        """Both."""
        return self.user_s + self.system_s

    def since(self, before: Cpu) -> Cpu:
        """What was used since."""
        return Cpu(self.user_s - before.user_s, self.system_s - before.system_s)


def cpu(*pids: int) -> Cpu:
    """CPU seconds of some processes so far, from /proc; resolution 10 ms."""
    user, system = 0, 0
    for pid in pids:
        # The name of a process may hold spaces; behind its bracket the fields begin with the third.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user, system = user + int(fields[11]), system + int(fields[12])
    return Cpu(user / _TICKS_A_SECOND, system / _TICKS_A_SECOND)


class Machine(NamedTuple):
    """Seconds of all cores since boot: those anybody used, and all there were."""

    busy_s: float
    all_s: float

    def share_since(self, before: Machine) -> float:
        """Which part of all cores was used since, by whomever: 1.0 where none was left."""
        return (self.busy_s - before.busy_s) / (self.all_s - before.all_s)


def whole_machine() -> Machine:
    """CPU seconds of all processes so far, from /proc/stat."""
    ticks = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    idle = ticks[3] + ticks[4]  # nothing to do, or waiting for a disk
    return Machine((sum(ticks) - idle) / _TICKS_A_SECOND, sum(ticks) / _TICKS_A_SECOND)


def rss_bytes(pid: int) -> int:
    """Resident bytes of a process now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


class Ended(Exception):
    """A measured process ended before its time."""


def end_orderly() -> None:
    """Make SIGTERM end this process as Ctrl-C does: what it started is stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def create_topics(environment: Mapping[str, str]) -> None:
    """Make the topics of a worker, as a user does."""
    command = [sys.executable, "-m", "app", "topics", "create"]
    env = {**os.environ, **environment}
    for last in (False, False, True):
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, check=last)
        if done.returncode == 0:
            return
        # A broker with much to do may not know at once of what it has just made.
        time.sleep(1.0)


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose output goes to ``log``; stopped at the end, whatever happened."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, cwd=ROOT, stdout=out, stderr=out
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def check(process: subprocess.Popen[bytes], log: Path) -> None:
    """Raise Ended, with the last it said, if a process has ended."""
    if process.poll() is not None:
        raise Ended(f"exit code {process.returncode}; {said_last(log)}")


def said_last(log: Path) -> str:
    """The last lines of what a process said."""
    last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return f"the last it said:\n{last}"


class Rest(NamedTuple):
    """When a process came to rest, and what it had used by then."""

    at_s: float  # time.monotonic()
    cpu: Cpu


async def at_rest(*pids: int, deadline_s: float = 60.0) -> Rest:
    """Wait until some processes do next to nothing; say since when."""
    until = time.monotonic() + deadline_s
    looks = [Rest(time.monotonic(), cpu(*pids))]
    n_quiet = 0
    while n_quiet < _QUIET_LOOKS and time.monotonic() < until:
        await asyncio.sleep(_LOOK_S)
        looks.append(Rest(time.monotonic(), cpu(*pids)))
        took = looks[-1].cpu.since(looks[-2].cpu).total_s
        is_quiet = took < _QUIET_SHARE * (looks[-1].at_s - looks[-2].at_s)
        n_quiet = n_quiet + 1 if is_quiet else 0
    return looks[-1 - n_quiet]
