"""A producer that keeps to a schedule, whatever becomes of what it sent (open loop).

Record i is due at SPEED_START + i / SPEED_RATE, seconds of CLOCK_MONOTONIC. Each partition has
one batch under way at a time; what falls due meanwhile goes with the next, and its time runs from
when it was due. Prints when records were acknowledged, in ms after they were due, as JSON: that
part of a latency is the producer's and the broker's.

Environment: SPEED_INPUT (a pickle of settings, topic and payments), SPEED_START, SPEED_RATE.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from payments import PARTITIONS

from app.kafka import Sender
from app.records import Send

#: A lane looks no more often than this for what is due.
_WAKE_S = 0.002


class Lane:
    """One partition: its records, and when each is due."""

    def __init__(self, sends: list[Send], due_s: np.ndarray[Any, Any]) -> None:
        self.sends, self.due_s = sends, due_s
        self.acknowledged_s = np.empty(len(sends))

    async def run(self, sender: Sender) -> None:
        """Send everything as it falls due."""
        at = 0
        while at < len(self.sends):
            stop = int(np.searchsorted(self.due_s, time.monotonic(), side="right"))
            if stop == at:
                await asyncio.sleep(max(self.due_s[at] - time.monotonic(), _WAKE_S))
                continue
            await sender.deliver(self.sends[at:stop])
            self.acknowledged_s[at:stop] = time.monotonic()
            at = stop


async def main(given: dict[str, Any]) -> None:
    """Run a lane for each partition."""
    rate, start_s = float(os.environ["SPEED_RATE"]), float(os.environ["SPEED_START"])
    stream = given["payments"]
    of = np.array([p.partition for p in stream])
    due_s = start_s + np.arange(len(stream)) / rate
    lanes = [
        Lane(
            [Send(given["topic"], *p) for p in stream if p.partition == number], due_s[of == number]
        )
        for number in range(PARTITIONS)
    ]
    sender = Sender(given["settings"])
    await sender.start()
    was_ready = time.monotonic() < start_s
    await asyncio.gather(*(lane.run(sender) for lane in lanes))
    await sender.stop()
    ms = np.concatenate([(lane.acknowledged_s - lane.due_s) * 1e3 for lane in lanes])
    p50, p95, p99 = np.percentile(ms, [50, 95, 99]).tolist()
    told = {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": float(ms.max())}
    print(json.dumps({"was_ready": was_ready, **told}))


if __name__ == "__main__":
    told = Path(os.environ["SPEED_INPUT"]).read_bytes()
    asyncio.run(main(pickle.loads(told)))  # noqa: S301 - made just now
