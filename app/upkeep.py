"""Commands for the upkeep of a model: hold it against its log, rebuild it corrected."""

from __future__ import annotations

import asyncio
import getpass
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.commands import ConfigOption, JsonOption, ProfileOption, err, print_json
from app.config import load
from app.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.config import Settings
    from app.records import Record
    from app.replay import Advance, Checked, Extent, Rebuilt

upkeep = typer.Typer()

#: Exit codes of `weir replay --verify`, beside 0: a model is not what the log makes; nothing could
#: be verified.
DIFFERS, UNVERIFIED = 1, 2


@upkeep.command()
def replay(
    config: ConfigOption = None,
    profile: ProfileOption = None,
    *,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hold each snapshot against what the log makes.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the model again from the examples log; with --verify, compare each snapshot with it.

    Exit code with --verify: 0, all that can be verified are equal; 1, one differs; 2, none could
    be verified.
    """
    from app import replay as work
    from app.learning import new_learner

    settings = load(config, profile)
    if verify:
        told = _verify(settings)
        _show_checked(told, as_json=as_json)
        states = {one["state"] for one in told["snapshots"]}
        if "differs" in states:
            raise typer.Exit(DIFFERS)
        if "equal" not in states:
            raise typer.Exit(UNVERIFIED)
        return
    with _bar("replaying") as (advance, total):
        log = work.Log(settings, advance)

        async def run() -> tuple[Any, Extent]:
            extent, learner = total(await log.extent()), new_learner(settings, log.plan)
            await log.read(extent.first, extent.stop, learner.apply)
            return learner, extent

        learner, extent = asyncio.run(run())
    told = {
        "log": extent._asdict(),
        "position": learner.position,
        "digest": learner.digest,
        "learned": learner.n_learned,
        "frauds": learner.n_frauds,
    }
    _show(told, as_json=as_json)


def _verify(settings: Settings) -> dict[str, Any]:
    from app import replay as work

    with _bar("replaying") as (advance, total):
        log = work.Log(settings, advance)

        async def run() -> tuple[list[Checked], Extent]:
            extent = total(await log.extent())
            checked = work.examine(await _snapshots(settings), log)
            await work.verify(checked, log, extent)
            return checked, extent

        checked, extent = asyncio.run(run())
    return {"log": extent._asdict(), "snapshots": [one.told for one in checked]}


@upkeep.command()
def rebuild(
    config: ConfigOption = None,
    profile: ProfileOption = None,
    *,
    recent: Annotated[
        int, typer.Option(min=1, help="Judge by the examples among so many last records.")
    ] = 50_000,
    tolerance: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="So much less average precision is no worse.")
    ] = 0.0,
    force: Annotated[
        str | None, typer.Option(help="Publish it all the same, for the reason in this word.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge it, publish nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a model of the corrected log, and publish it unless it is worse than the one in use.

    Labels that were corrected later count from the first. Both models are folded from the log and
    score its last examples, each before it is learnt; the measure is average precision, by the
    last label of each transaction. Workers adopt what is published; who learns ends, is started
    again by its supervisor and goes on from it.
    """
    from app import replay as work

    settings = load(config, profile)
    if force is not None and not force.strip():
        raise Refused("--force is empty; expected the reason, in a word")
    with _bar("rebuilding") as (advance, total):
        log = work.Log(settings, advance)

        async def run() -> Rebuilt:
            extent = total(await log.extent())
            checked = work.examine(await _snapshots(settings), log)
            return await work.rebuild(checked, log, extent, recent=recent, tolerance=tolerance)

        rebuilt = asyncio.run(run())
    is_published = not dry_run and (not rebuilt.objection or force is not None)
    if is_published:
        asyncio.run(work.publish(rebuilt, settings, getpass.getuser(), force or "not worse"))
    _show({**_told(rebuilt), "published": is_published, "forced": force}, as_json=as_json)
    if rebuilt.objection and force is None:
        raise Refused(f"not published: {rebuilt.objection}; --force WORD publishes it")


def _told(rebuilt: Rebuilt) -> dict[str, Any]:
    made = rebuilt.candidate
    return {
        "position": made.position,
        "digest": made.digest,
        "learned": made.n_learned,
        "corrected": rebuilt.corrected,
        "judged": rebuilt.n,
        "judged_frauds": rebuilt.frauds,
        "average_precision": _figure(rebuilt.average_precision),
        "champion_average_precision": _figure(rebuilt.champion_average_precision),
        "tolerance": rebuilt.tolerance,
        "objection": rebuilt.objection,
    }


def _figure(value: float) -> float | None:
    """A figure as JSON has it: null where there is none."""
    return None if value != value else round(value, 6)  # noqa: PLR0124 - only NaN is not itself


async def _snapshots(settings: Settings) -> list[Record]:
    from app.tail import records
    from app.topics import Topics

    held = records(settings, Topics.of(settings).models, from_beginning=True, to_end=True)
    return [record async for _, record in held if record.value is not None]


@contextmanager
def _bar(what: str) -> Iterator[tuple[Advance, Any]]:
    """Show on standard error how much of the log was read: functions that move it, and its end."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bar:
        shown = bar.add_task(what, total=None)

        def total(extent: Extent) -> Extent:
            bar.update(shown, total=extent.stop - extent.first)
            return extent

        yield lambda n: bar.advance(shown, n), total


def _show(told: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(told)
        return
    table = Table("", "", box=None, show_header=False)
    for name, value in told.items():
        table.add_row(name.replace("_", " "), escape("" if value is None else str(value)))
    Console(soft_wrap=True).print(table)


def _show_checked(told: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(told)
        return
    names = ("offset", "position", "learned", "digest", "recomputed", "state", "why")
    table = Table(*names)
    for one in told["snapshots"]:
        table.add_row(*(escape("" if one[name] is None else str(one[name])) for name in names))
    console = Console(soft_wrap=True)
    console.print(table)
    states = [one["state"] for one in told["snapshots"]]
    console.print(
        f"{len(states)} snapshots: {states.count('equal')} equal, {states.count('differs')} differ"
    )
