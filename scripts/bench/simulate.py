"""Random histories, each with crashes at every await, zombies, rebalances and compaction.

One seed is one history: the same on every machine. What the topics hold at its end is judged
against a run that never crashed; a violation names the law, the seed and the record. With
``--mutants`` each guard of the design is taken away in turn, until a seed notices. Ctrl-C ends
it and shows what was judged so far.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from common import err, machine, progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.simulator.mutants import MUTANTS
from tests.simulator.runs import Run, first_to_catch, hush, run
from tests.simulator.world import Figures

#: Violations are counted all and shown up to here.
SHOWN_MAX = 20


def main(
    seeds: Annotated[int, typer.Option(min=1, help="How many histories.")] = 1_000,
    first: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    mutants: Annotated[bool, typer.Option(help="Take each guard away, too.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on the last line.")
    ] = False,
) -> None:
    """Play histories, count what broke, and show whether the simulator would notice."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started_s = time.monotonic()
    chosen = range(first, first + seeds)
    with ProcessPoolExecutor(jobs, initializer=_begin) as pool, progress() as bar:
        result = _histories(pool, chosen, bar)
        if mutants and len(chosen) == result["runs"]:
            result["mutants"] = _mutants(pool, chosen, bar)
    result |= {"seconds": round(time.monotonic() - started_s, 1), **machine()}
    _show(result)
    if as_json:
        print(json.dumps(result))
    missed = [name for name, seed in result.get("mutants", {}).items() if seed is None]
    if result["violations"] or missed:
        raise typer.Exit(1)
    raise typer.Exit(0 if result["runs"] == seeds else 130)


def _begin() -> None:
    """Be quiet, and leave Ctrl-C to the process that shows the figures."""
    hush()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _histories(pool: ProcessPoolExecutor, seeds: range, bar: Any) -> dict[str, Any]:
    figures, runs, broken, shown = Counter[str](), 0, 0, []
    task = bar.add_task("histories", total=len(seeds), note="")
    try:
        for played in pool.map(_played, seeds):
            runs += 1
            figures.update(asdict(played.figures))
            broken += len(played.violations)
            shown += [f"seed {played.seed}: {text}" for text in played.violations]
            del shown[SHOWN_MAX:]
            note = (
                f"{figures['crashes']} crashes, {figures['zombies']} zombies, {broken} violations"
            )
            bar.update(task, advance=1, note=note)
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        err.print("stopped; what follows is of the histories that were judged")
    counted = {field.name: figures[field.name] for field in fields(Figures)}
    return {"runs": runs, **counted, "violations": broken, "shown": shown}


def _played(seed: int) -> Run:
    try:
        return run(seed)
    except Exception as error:  # noqa: BLE001 - the other seeds are still worth their time
        return Run(seed, [f"the program stopped: {error!r}"], Figures())


def _mutants(pool: ProcessPoolExecutor, seeds: range, bar: Any) -> dict[str, int | None]:
    task = bar.add_task("mutants", total=len(MUTANTS), note="")
    caught: dict[str, int | None] = {}
    for name, seed in zip(MUTANTS, pool.map(_caught, MUTANTS, [seeds] * len(MUTANTS)), strict=True):
        caught[name] = seed
        bar.update(task, advance=1, note=name)
    return caught


def _caught(mutant: str, seeds: range) -> int | None:
    found = first_to_catch(mutant, seeds)
    return found.seed if found else None


def _show(result: dict[str, Any]) -> None:
    table = Table("figure", "value")
    for name, value in result.items():
        if name not in ("shown", "mutants"):
            table.add_row(name, str(value))
    err.print(table)
    for text in result["shown"]:
        err.print(text, markup=False)
    if "mutants" in result:
        table = Table("mutant", "first seed that notices")
        for name, seed in result["mutants"].items():
            table.add_row(name, "none" if seed is None else str(seed))
        err.print(table)


if __name__ == "__main__":
    typer.run(main)
