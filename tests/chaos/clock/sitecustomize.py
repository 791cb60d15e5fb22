"""Shifts the wall clock of a process whose environment has CHAOS_CLOCK.

Python imports a module of this name before anything else. The offset, in seconds, stands in the
file that CHAOS_CLOCK names. What a machine's step of its clock leaves alone (the time since boot,
the monotonic clock) is left alone here, too.
"""

import os
import time
from pathlib import Path

_LOOK_S = 0.05
_time_ns, _monotonic = time.time_ns, time.monotonic


def shift(file: Path) -> None:
    """Add to the wall clock what stands in ``file``, looked at twenty times a second."""
    held = [0, -1.0]  # nanoseconds, when the file was looked at

    def shifted_ns() -> int:
        if _monotonic() - held[1] > _LOOK_S:
            held[:] = [int(float(file.read_text()) * 1e9), _monotonic()]
        return _time_ns() + int(held[0])

    time.time_ns, time.time = shifted_ns, lambda: shifted_ns() / 1e9


if "CHAOS_CLOCK" in os.environ:
    shift(Path(os.environ["CHAOS_CLOCK"]))
