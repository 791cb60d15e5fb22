"""Latency at a steady rate: from when a transaction was due to when its score was received.

An open-loop producer, a process of its own, sends record i at ``start + i / rate``, whatever
the worker does. Latency counts from that time, and not from when the record was really sent: a
pause of the worker, the broker or the producer is felt by every record that fell due meanwhile
(no coordinated omission). It ends when a plain consumer of ``scores``, another process, has the
record in hand. One clock serves both (CLOCK_MONOTONIC of this machine).

Everything shares the cores of one machine: producer, worker, broker and consumer. Told beside are
when the broker had acknowledged the transactions (``producer``), which part of one core the worker
used (``cpu_share``), which producer and consumer did (``clients_share``, their start included) and
which part of all cores anybody did (``machine_share``): near 1.0 what is measured is how long they
wait for each other. At most an hour of event time goes by each second, and there are as many cards
as pay twice a day: the more, the higher the rate. Percentiles are over all records that fell due
after the warm-up; a record without a score within 30 s makes the run void.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import numpy as np
import orjson
import typer
from common import ROOT, err, kafka, machine, progress
from contenders import CONTENDERS, HERE, PYTHON, Contender, environment_problem
from drain import Where, drained, warmed
from measured import Ended, cpu, end_orderly, whole_machine
from payments import PARTITIONS, PER_DAY, measured_world, payments, river_pipeline
from speed import versions

#: To start the producer: it imports, connects, and waits for its time.
_LEAD_S = 8.0
_LATE_S = 30.0
#: An hour of event time each second, or less: what is done once an hour is not done all the time.
_SPEEDUP = 3_600.0
#: Records that warm a contender up, as fast as it goes.
_WARM = 5_000
_LONG = ("producer", "p50_ms_by_second")
_TAIL = ("p50_ms", "p95_ms", "p99_ms", "max_ms")
#: Records that measure how fast a contender is at its fastest.
_FULL = 40_000


class Load(NamedTuple):
    """So many records a second for so long, and before that for the warm-up."""

    rate: float
    seconds: float
    warm_s: float

    @property
    def n(self) -> int:
        """Records, those of the warm-up too."""
        return int(self.rate * (self.warm_s + self.seconds))


async def paced(contender: Contender, load: Load, where: Where, advance: Any) -> dict[str, Any]:
    """One run at a rate; latencies in ms. Raises Ended where the load could not be put on."""
    world = replace(measured_world(), per_day=max(PER_DAY, load.rate * 86_400.0 / _SPEEDUP))
    stream = payments(_WARM + load.n, world)
    timed = stream[_WARM:]
    async with warmed(contender, stream[:_WARM], where) as trial:
        given = {
            "bootstrap": where.bootstrap,
            "transactions": trial.topics.transactions.name,
            "scores": trial.topics.scores.name,
            "partitions": PARTITIONS,
            "payments": [tuple(payment) for payment in timed],
            "ids": [orjson.loads(p.value)["transaction_id"] for p in timed],
        }
        with tempfile.TemporaryDirectory(prefix="weir-speed-") as folder:
            start_s, before = time.monotonic() + _LEAD_S, cpu(*trial.pids)
            clients = asyncio.create_task(_clients(Path(folder), given, start_s, load, advance))
            await asyncio.sleep(start_s - time.monotonic())
            all_before = whole_machine()
            times_s, used_s = await clients
            machine_share = whole_machine().share_since(all_before)
            used = cpu(*trial.pids).since(before)
    due_s = start_s + np.arange(load.n) / load.rate
    measured = slice(int(load.rate * load.warm_s), None)
    acknowledged, received = ((times_s - due_s) * 1e3)[:, measured]
    seconds = load.n / load.rate
    return {
        "rate": load.rate,
        **_percentiles(received, load.rate),
        "cpu_share": used.total_s / seconds,
        "machine_share": machine_share,
        "clients_share": used_s / seconds,
        "producer": {n: v for n, v in _percentiles(acknowledged, load.rate).items() if n in _TAIL},
    }


async def _clients(
    folder: Path, given: dict[str, Any], start_s: float, load: Load, advance: Any
) -> tuple[np.ndarray[Any, Any], float]:
    """Publish and receive; when each was acknowledged and received, and CPU seconds of both."""
    asked, told = folder / "given", folder / "times.npy"
    asked.write_bytes(pickle.dumps(given))
    used_before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = await asyncio.create_subprocess_exec(
        PYTHON,
        str(HERE / "speed_contenders" / "paced.py"),
        env={
            **os.environ,
            "SPEED_INPUT": str(asked),
            "SPEED_OUTPUT": str(told),
            "SPEED_START": repr(start_s),
            "SPEED_RATE": repr(load.rate),
            "SPEED_UNTIL": repr(start_s + load.n / load.rate + _LATE_S),
        },
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async for line in cast("asyncio.StreamReader", process.stdout):
            advance(int(line))
        if await process.wait():
            raise Ended("whoever publishes ended before its time")
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    before_s = used_before.ru_utime + used_before.ru_stime
    return np.load(told), used.ru_utime + used.ru_stime - before_s


def _percentiles(ms: np.ndarray[Any, Any], rate: float) -> dict[str, Any]:
    """Figures of latencies in the order in which they fell due; NaN: no score came."""
    missing = int(np.isnan(ms).sum())
    second = (np.arange(len(ms)) / rate).astype(np.int64)
    p50, p95, p99 = np.nanpercentile(ms, [50, 95, 99]).tolist()
    return {
        "records": len(ms),
        "problem": f"{missing} records without a score" if missing else None,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "max_ms": float(np.nanmax(ms)),
        "min_ms": float(np.nanmin(ms)),
        # A median that grows from second to second is a rate that cannot be kept up.
        "p50_ms_by_second": [
            round(float(np.nanmedian(ms[second == s])), 1) for s in range(int(second[-1]) + 1)
        ],
    }


def main(  # noqa: PLR0913, PLR0917 - a command's options are its arguments
    rate: Annotated[
        float | None,
        typer.Option(min=1.0, help="Records a second; default: half of what it reaches."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="Measured, after the warm-up.")] = 60.0,
    warm_seconds: Annotated[float, typer.Option(min=0.0, help="At the rate, before.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="Runs at the rate.")] = 3,
    contender: Annotated[
        str, typer.Option(help=f"One of: {', '.join(CONTENDERS)}.")
    ] = "weir-default",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on the last line.")
    ] = False,
) -> None:
    """Milliseconds from when a transaction is due to when its score is received."""
    end_orderly()
    if contender not in CONTENDERS:
        raise typer.BadParameter(f"{contender}; expected one of: {', '.join(CONTENDERS)}")
    which = CONTENDERS[contender]
    if problem := which.problem() or environment_problem():
        raise typer.BadParameter(f"{contender}: {problem}")
    told: dict[str, Any] = {"contender": contender, "seconds": seconds}
    with tempfile.TemporaryDirectory(prefix="weir-speed-") as folder, kafka("latency") as bootstrap:
        model = river_pipeline(Path(folder))
        if rate is None:
            err.print("how fast it is at its fastest, first")
            full = asyncio.run(
                drained(
                    which,
                    payments(_WARM + _FULL, measured_world()),
                    _WARM,
                    Where(bootstrap, "latency.full.", model),
                )
            )
            # What it can go on with: all that follows from a score done, too.
            told["full_rate"] = full["settled_per_s"]
            rate = round(full["settled_per_s"] / 2.0)
        runs, load = [], Load(rate, seconds, warm_seconds)
        for number in range(rounds):
            with progress() as bar:
                shown = bar.add_task(f"{contender} {rate:,.0f}/s", total=load.n, note="")
                run = asyncio.run(
                    paced(
                        which,
                        load,
                        Where(bootstrap, f"latency.{number}.", model),
                        lambda n: bar.update(shown, completed=n),  # noqa: B023 - used at once
                    )
                )
            err.print({name: v for name, v in run.items() if name not in _LONG})
            runs.append(run)
    sound = [run for run in runs if not run["problem"]]
    for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms", "cpu_share", "machine_share"):
        told[name] = float(np.median([run[name] for run in sound])) if sound else None
    told |= {"rate": rate, "rounds": runs, "versions": versions(), **machine()}
    if as_json:
        print(json.dumps(told))
    else:
        names = ("rate", "p50_ms", "p95_ms", "p99_ms", "max_ms", "cpu_share", "machine_share")
        print("\n".join(f"{name:13} {told[name]:12,.2f}" for name in names))
    raise typer.Exit(0 if sound else 1)


if __name__ == "__main__":
    typer.run(main)
