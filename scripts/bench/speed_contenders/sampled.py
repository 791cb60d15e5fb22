"""A worker with a sampling profiler: sampled.py OUT worker --once -c FILE.

SIGRTMIN begins and SIGRTMIN+1 ends; then OUT holds where the CPU was, as JSON. Every so many
milliseconds of CPU the stack of the main thread is taken. Unlike a profiler that is called at
every call, it costs next to nothing and does not make what calls much look slow. What is
compiled (numba, msgspec, numpy, Cython) has no frame of its own and counts for the line that
calls it.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

#: Of CPU time.
_EVERY_S = 0.002


class Sampler:
    """Counts of stacks: of what runs, of what it was called by, of lines."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.n = 0
        self.own: Counter[str] = Counter()
        self.within: Counter[str] = Counter()
        self.lines: Counter[str] = Counter()

    def begin(self, *_: object) -> None:
        """Take stacks from now on."""
        signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, _EVERY_S, _EVERY_S)

    def end(self, *_: object) -> None:
        """Take no more; write what was counted."""
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        counted = {"own": self.own, "within": self.within, "lines": self.lines}
        told = {name: counts.most_common(200) for name, counts in counted.items()}
        self.out.write_text(json.dumps({"samples": self.n, **told}))

    def _take(self, _: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self.n += 1
        name = _name(frame)
        self.own[name] += 1
        self.lines[f"{name}:{frame.f_lineno}"] += 1
        seen = set()
        while frame is not None:
            seen.add(_name(frame))
            frame = frame.f_back
        self.within.update(seen)


def _name(frame: FrameType) -> str:
    """The last two parts of the file, and the function."""
    code = frame.f_code
    return f"{'/'.join(code.co_filename.rsplit('/', 2)[-2:])}:{code.co_qualname}"


def main() -> None:
    """Run weir's command line under the sampler."""
    sampler = Sampler(Path(sys.argv[1]))
    signal.signal(signal.SIGRTMIN, sampler.begin)
    signal.signal(signal.SIGRTMIN + 1, sampler.end)
    sys.argv = ["weir", *sys.argv[2:]]
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from app.cli import main as weir  # noqa: PLC0415 - the path is known only now

    weir()


if __name__ == "__main__":
    main()
