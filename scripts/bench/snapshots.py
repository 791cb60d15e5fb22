"""What a snapshot of the default model costs: bytes, CPU, and how long a loop stands still for it.

A default forest is taught until its memory of examples is full (frauds and legitimate rows drawn
with noise from simulated payments), then:

- ``learner`` and ``scores``: bytes of either snapshot, CPU ms to copy the state (on the loop), to
  compress and sign the copy (beside it), to open it (beside it where one follows);
- ``stall_ms_max``: the longest pause of an event loop that looks every millisecond while a thread
  opens snapshots of what scores, one after another; ``stall_ms_idle`` the same with nothing to do;
- ``learn_ms_max``: the longest CPU time of 256 examples learnt at once.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from common import machine
from payments import examples

from app.config import Settings, load
from app.core.features import FeaturePlan
from app.core.learner import Learner
from app.core.models import make_model
from app.core.scoring import Champion
from app.learning import new_learner
from app.records import Record
from app.shelf import frozen, opened
from app.synth import World

_CHUNK = 256
_NOISE = 0.05


def cpu_ms(work: Callable[[], Any], rounds: int) -> float:
    """Median CPU milliseconds of some calls."""
    took = []
    for _ in range(rounds):
        began_s = time.process_time()
        work()
        took.append((time.process_time() - began_s) * 1e3)
    return median(took)


def full(n: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows enough to fill a memory: one in eleven a fraud, with noise in values and labels."""
    rng = np.random.default_rng(1)
    x, y, _ = examples(load(), World(seed=42), 60_000)
    is_fraud = rng.random(n) < 1.0 / 11.0
    at = np.where(is_fraud, rng.choice(np.flatnonzero(y), n), rng.choice(np.flatnonzero(~y), n))
    rows = x[at] * (1.0 + _NOISE * rng.normal(size=(n, x.shape[1])) * (np.abs(x[at]) > 1.0))
    return rows, np.where(rng.random(n) < _NOISE, ~y[at], y[at])


def taught(settings: Settings, plan: FeaturePlan, n: int) -> tuple[Learner, list[float]]:
    """A learner with ``n`` examples behind it and its list of ids full; CPU ms of each 256."""
    learner = new_learner(settings, plan)
    rows, labels = full(n)
    make_model("forest", plan.names).learn_many(rows[:1], labels[:1])  # compiles
    learn_ms = []
    for start in range(0, n, _CHUNK):
        part = slice(start, start + _CHUNK)
        began_s = time.process_time()
        learner.model.learn_many(rows[part], labels[part])
        learn_ms.append((time.process_time() - began_s) * 1e3)
    for key in range(settings.learner.learnt_max):
        learner.learnt.put(key * 0x9E3779B97F4A7C15 % 2**64, key % 8)
    return learner, learn_ms


async def stall_ms(work: Callable[[], Any] | None, seconds: float) -> float:
    """The longest pause beyond a millisecond, milliseconds, while a thread works."""
    stop, longest_s = asyncio.Event(), 0.0

    async def busy() -> None:
        while work is not None and not stop.is_set():
            await asyncio.to_thread(work)

    task = asyncio.create_task(busy())
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        before_s = time.perf_counter()
        await asyncio.sleep(0.001)
        longest_s = max(longest_s, time.perf_counter() - before_s - 0.001)
    stop.set()
    await task
    return longest_s * 1e3


def main(
    n: Annotated[int, typer.Option("--examples", min=1_000, help="Taught.")] = 60_000,
    rounds: Annotated[int, typer.Option(min=1, help="Times each is measured.")] = 9,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on the last line.")
    ] = False,
) -> None:
    """Bytes and milliseconds of the default model's snapshots; pauses of a loop."""
    settings = load()
    plan = FeaturePlan.of(settings.features, settings.transaction.entities)
    learner, learn_ms = taught(settings, plan, n)
    champion = Champion.of(learner).for_scoring()
    result: dict[str, Any] = {}
    key = settings.learner.key.get_secret_value().encode()
    for name, state in (("learner", learner), ("scores", champion)):
        copy = frozen(state, learner)
        record = Record(0, None, copy.sealed(key), 0)
        result[name] = {
            "bytes": len(record.value or b""),
            "copy_ms": cpu_ms(partial(frozen, state, learner), rounds),
            "seal_ms": cpu_ms(partial(copy.sealed, key), rounds),
            "open_ms": cpu_ms(partial(opened, record, settings, plan), rounds),
        }
    result |= {
        "stall_ms_idle": asyncio.run(stall_ms(None, 3.0)),
        "stall_ms_max": asyncio.run(stall_ms(lambda: opened(record, settings, plan), 3.0)),
        "learn_ms_max": max(learn_ms),
        "learn_us": sum(learn_ms) * 1e3 / n,
        **machine(),
    }
    if as_json:
        print(json.dumps(result))
        return
    for name in ("learner", "scores"):
        told = {k: round(v, 1) for k, v in result[name].items()}
        print(name, told)
    print({k: round(v, 1) for k, v in result.items() if isinstance(v, float)})


if __name__ == "__main__":
    typer.run(main)
