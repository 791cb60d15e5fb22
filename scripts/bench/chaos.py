"""Workers, a learner and Apache Kafka, broken in every way that one machine allows.

Each scenario breaks a running world again and again, traffic going on; then the world comes to
rest, all topics are read, and every law is judged against a reference run of the core over the
very same records. A world has some rounds; then the next is made. What a world gave is kept in
--out as soon as it is judged: a run that was stopped shows what it has, and goes on where it was
when it is called again in the same words. What must be installed for a scenario is said, and a
scenario that could not run is never counted as passed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from common import err, machine, progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.chaos.checker import COUNTERS
from tests.chaos.runs import Played, play
from tests.chaos.scenarios import SCENARIOS, Scenario
from tests.chaos.tamper import forged
from tests.simulator.runs import hush

SHOWN_MAX = 30


def main(  # noqa: PLR0913, PLR0917 - a command's options are its arguments
    scenario: Annotated[list[str], typer.Option(help="One of --list, or all.")] = ["all"],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=0, help="Of each; 0: as --list says.")] = 0,
    seed: Annotated[int, typer.Option(help="What is drawn, and when.")] = 1,
    per_world: Annotated[int, typer.Option(min=1, help="Rounds until a new world.")] = 10,
    port: Annotated[int, typer.Option(help="Of the first broker; see scripts/kafka.")] = 9231,
    rate: Annotated[float, typer.Option(min=0, help="Transactions a second, if not its own.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Keep each world's figures here, as it ends.")
    ] = None,
    upgrade_from: Annotated[
        str, typer.Option(help="A commit, the other version in rolling-upgrade.")
    ] = "",
    show: Annotated[bool, typer.Option("--list", help="Only say what there is.")] = False,
    self_test: Annotated[
        bool, typer.Option(help="Forge the topics of a sound world: does each counter rise?")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on the last line.")
    ] = False,
) -> None:
    """Break, judge, and say what came of it."""
    hush()
    logging.disable(logging.CRITICAL)  # aiokafka's: of brokers that are away on purpose
    if show:
        _list()
    elif self_test:
        raise typer.Exit(_self_test(as_json=as_json))
    else:
        os.environ["CHAOS_UPGRADE_FROM"] = upgrade_from
        run = _Run(seed, rounds, per_world, port, {"rate": rate} if rate else {}, out)
        raise typer.Exit(run.go(_chosen(scenario), as_json=as_json))


def _chosen(names: list[str]) -> list[Scenario]:
    if "all" in names:
        return list(SCENARIOS.values())
    stray = sorted(set(names) - set(SCENARIOS))
    if stray:
        err.print(f"--scenario is {stray[0]!r}; expected all or one of: {', '.join(SCENARIOS)}")
        raise typer.Exit(2)
    return [SCENARIOS[name] for name in names]


def _list() -> None:
    table = Table("scenario", "what is done", "what is expected", "rounds", "here")
    for one in SCENARIOS.values():
        table.add_row(one.name, one.what, one.expected, str(one.rounds), one.needs() or "runs")
    err.print(table)


def _self_test(*, as_json: bool) -> int:
    risen = {counter: forged(counter) for counter in COUNTERS}
    table = Table("counter", "rises to, when what it counts is forged")
    for counter, n in risen.items():
        table.add_row(counter, str(n) if n else "[red]does not rise[/]")
    err.print(table)
    if as_json:
        print(json.dumps({"counters": risen}))
    return 0 if all(risen.values()) else 1


@dataclass
class _Run:
    """Worlds one after another, and what came of each."""

    seed: int
    rounds: int  # of a scenario; 0: its own
    per_world: int
    port: int
    more: dict[str, Any]  # of every world
    out: Path | None
    played: list[Played] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take what was kept before."""
        if self.out and self.out.exists():
            self.played = [Played(**json.loads(line)) for line in self.out.read_text().splitlines()]

    def go(self, chosen: list[Scenario], *, as_json: bool) -> int:
        """Play what was chosen and show it; return the exit code."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        is_whole = True
        try:
            with progress() as bar:
                for one in chosen:
                    self._scenario(one, bar)
        except KeyboardInterrupt:
            is_whole = False
            err.print("stopped; what follows is of the worlds that were judged")
        names = [one.name for one in chosen]
        result = {
            "seed": self.seed,
            "whole": is_whole,
            "scenarios": {name: found for name in names if (found := self._of(name))},
            "not_run": self.not_run,
            **machine(),
        }
        _show(result)
        if as_json:
            print(json.dumps(result))
        broken = sum(one["violations_total"] for one in result["scenarios"].values())
        return 1 if broken else 0 if is_whole else 130

    def _scenario(self, one: Scenario, bar: Any) -> None:
        why = one.needs()
        if why:
            self.not_run[one.name] = why
            return
        total = self.rounds or one.rounds
        task = bar.add_task(one.name, total=total, note="")
        for first in range(0, total, self.per_world):
            n = min(self.per_world, total - first)
            name = f"{self.seed}/{one.name}/{first}"
            if not any(p.seed == name and p.rounds == n for p in self.played):
                self._keep(self._play(one, n, name, bar, task))
            bar.update(task, completed=first + n)

    def _play(self, one: Scenario, n: int, name: str, bar: Any, task: Any) -> Played:
        first = int(name.rpartition("/")[2])

        def tell(done: int, world: Any) -> None:
            note = f"{world.kills} kills, back in {world.recoveries_s[-1]:.1f} s"
            bar.update(task, completed=first + done, note=note)

        began_s = time.monotonic()
        try:
            world_of = {**one.world, **self.more}
            return asyncio.run(play(one.name, [one.round] * n, name, self.port, tell, **world_of))
        except Exception as error:  # noqa: BLE001 - the other worlds are still worth their time
            shown = [f"the world ended: {error!r}"]
            took_s = round(time.monotonic() - began_s, 1)
            return Played(
                one.name, name, 0, 0, {"not_judged": 1}, {}, {}, {}, [], [], took_s, shown
            )

    def _keep(self, played: Played) -> None:
        self.played.append(played)
        if self.out:
            with self.out.open("a") as out:
                out.write(json.dumps(asdict(played)) + "\n")

    def _of(self, name: str) -> dict[str, Any] | None:
        mine = [p for p in self.played if p.scenario == name and p.seed.startswith(f"{self.seed}/")]
        if not mine:
            return None
        summed: dict[str, Counter[str]] = {
            what: sum((Counter(getattr(p, what)) for p in mine), Counter())
            for what in ("violations", "figures", "noted", "ended")
        }
        back = sorted(s for p in mine for s in p.recoveries_s)
        return {
            "rounds": sum(p.rounds for p in mine),
            "worlds": len(mine),
            "seeds": [p.seed for p in mine],
            "kills": sum(p.kills for p in mine),
            "violations_total": sum(summed["violations"].values()),
            "violations": {counter: summed["violations"][counter] for counter in COUNTERS}
            | dict(summed["violations"]),
            **{what: dict(summed[what]) for what in ("figures", "noted", "ended")},
            "recovery_s_p50": back[len(back) // 2] if back else None,
            "recovery_s_max": back[-1] if back else None,
            "stop_s_max": max((s for p in mine for s in p.stops_s), default=None),
            "seconds": round(sum(p.seconds for p in mine), 1),
            "shown": [f"{p.seed}: {text}" for p in mine for text in p.shown][:SHOWN_MAX],
        }


def _show(result: dict[str, Any]) -> None:
    table = Table(
        "scenario", "rounds", "SIGKILLs", "transactions", "violations", "back, p50", "max", "took"
    )
    for name, one in result["scenarios"].items():
        table.add_row(
            name, str(one["rounds"]), str(one["kills"]), str(one["figures"].get("transactions", 0)),
            str(one["violations_total"]), f"{one['recovery_s_p50']} s",
            f"{one['recovery_s_max']} s", f"{one['seconds']} s",
        )  # fmt: skip
    for name, why in result["not_run"].items():
        table.add_row(name, "not run", why)
    err.print(table)
    for one in result["scenarios"].values():
        for text in one["shown"]:
            err.print(text, markup=False)


if __name__ == "__main__":
    typer.run(main)
