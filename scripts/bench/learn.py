"""Examples learnt a second, and how well what was learnt tells frauds: weir and others.

One stream for all: simulated card payments (``app.synth``) with the features of the default card
profile, as a backtest computes them when labels are known a day later, and the true labels.
Each learner scores 64 examples, then learns them, to the end; ``average_precision`` is that of the
scores so given (prequential). Rates are wall clock in one process with nothing else to do; each
learner has a process of its own, each round another order. Which learners, and what is timed,
stands in ``speed_contenders/learners.py``.

River's forest is given a part of the stream only (``--slow-examples``), and its average precision
is that of this part; ``examples`` says so, and ``average_precision_of_part`` is what each of the
others had reached by there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from common import ROOT, err, machine, progress
from contenders import HERE, PYTHON, environment_problem, version_there
from measured import end_orderly
from payments import examples
from speed import versions

from app.config import load
from app.synth import World

#: Name: package of .bench-venv that it needs.
LEARNERS = {
    "weir-default": "",
    "weir-logistic": "",
    "river-arf": "",
    "river-logistic": "",
    "moa-arf": "capymoa",
    "vw": "vowpalwabbit",
}
_SLOW = ("river-arf",)


def learnt(name: str, stream: Path, n: int) -> dict[str, Any]:
    """One run of a learner in a process of its own."""
    python = str(PYTHON) if LEARNERS[name] else sys.executable
    command = [python, str(HERE / "speed_contenders" / "learners.py"), name, str(stream)]
    # One core for all of them: the others' helpers would otherwise take the second.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    last: list[str] = []
    with (
        subprocess.Popen(
            command, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process,
        progress() as bar,
    ):
        shown = bar.add_task(name, total=n, note="")
        try:
            for line in process.stderr or ():
                if line.strip().isdigit():
                    bar.update(shown, completed=int(line))
                else:
                    last = [*last[-9:], line]
            said = process.stdout.read() if process.stdout else ""
        finally:
            process.terminate()
    if process.returncode not in (0, -15) or not said:
        return {"problem": "".join(last)}
    told: dict[str, Any] = json.loads(said.splitlines()[-1])
    return {"problem": None, **told}


def _left_out(name: str) -> str | None:
    """Why a learner cannot run here, or None."""
    needed = LEARNERS[name]
    if not needed or version_there(needed):
        return None
    return environment_problem() or f"{needed} is not installed"


def _rounds(
    chosen: list[str], rounds: int, streams: dict[int, Path], n: int, slow: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, float]]:
    """Each round's figures of each learner, and what each of the quick had reached on the part."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for number in range(rounds):
        for name in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
            size = slow if name in _SLOW else n
            told = learnt(name, streams[size], size)
            found[name].append(told)
            rate = told.get("learnt_per_s", 0.0)
            err.print(f"{number + 1} {name:15} {rate:10,.0f}/s {told['problem'] or ''}")
    parts: dict[str, float] = {}
    if set(chosen) & set(_SLOW):
        for name in sorted(set(chosen) - set(_SLOW)):
            told = learnt(name, streams[slow], slow)
            parts[name] = told.get("average_precision", float("nan"))
    return found, parts


def main(  # noqa: PLR0913, PLR0917 - a command's options are its arguments
    n: Annotated[int, typer.Option("--examples", min=1_000, help="Of the stream.")] = 60_000,
    slow: Annotated[
        int, typer.Option("--slow-examples", min=500, help="Of those, River's forest is given.")
    ] = 10_000,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 3,
    learner: Annotated[
        list[str] | None, typer.Option(help=f"Only these: {', '.join(LEARNERS)}.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulated world.")] = 42,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on the last line.")
    ] = False,
) -> None:
    """Examples learnt a second, with the prequential average precision beside it."""
    end_orderly()
    chosen = learner or list(LEARNERS)
    if unknown := sorted(set(chosen) - set(LEARNERS)):
        raise typer.BadParameter(f"{unknown[0]}; expected some of: {', '.join(LEARNERS)}")
    left_out = {name: why for name in chosen if (why := _left_out(name))}
    for name, why in left_out.items():
        err.print(f"[yellow]{name} is left out[/]: {why}")
    chosen = [name for name in chosen if name not in left_out]
    x, y, names = examples(load(), World(seed=seed), n)
    with tempfile.TemporaryDirectory(prefix="weir-learn-") as folder:
        streams = {n: Path(folder) / "whole.npz", slow: Path(folder) / "part.npz"}
        for size, path in streams.items():
            np.savez(path, x=x[:size], y=y[:size], names=np.array(names))
        found, parts = _rounds(chosen, rounds, streams, n, slow)
    result: dict[str, Any] = {
        "examples": n,
        "slow_examples": slow,
        "frauds": int(y.sum()),
        "features": len(names),
        "left_out": left_out,
        "learners": {name: _medians(runs) for name, runs in found.items()},
        "average_precision_of_part": parts,
        "rounds": found,
        "versions": {
            **versions(),
            "capymoa": version_there("capymoa"),
            "vowpalwabbit": version_there("vowpalwabbit"),
        },
        **machine(),
    }
    if as_json:
        print(json.dumps(result))
        return
    for name, told in result["learners"].items():
        if told:
            ap = told["average_precision"]
            print(
                f"{name:15} {told['learnt_per_s']:10,.0f} learnt/s, {told['score_us']:7.2f} us "
                f"a score, AP {ap:.4f} of {told['examples']:,.0f}, {parts.get(name, ap):.4f} of "
                f"{slow:,}"
            )


def _medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    sound = [run for run in runs if not run["problem"]]
    if not sound:
        return {}
    return {name: median(run[name] for run in sound) for name in sound[0] if name != "problem"}


if __name__ == "__main__":
    typer.run(main)
