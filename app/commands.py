"""Commands that publish, look on and demonstrate; the command line takes them in."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.config import load, parse_duration
from app.errors import Misconfigured, Refused, shown

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator

    from app.config import Settings
    from app.publish import Pace
    from app.records import Position, Record
    from app.synth import Item, Scenario

commands = typer.Typer()
err = Console(stderr=True)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="WEIR_CONFIG", help="TOML file with the settings."),
]
ProfileOption = Annotated[
    str | None, typer.Option("--profile", "-p", help="Shipped base: card, handbook or stream.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
RateOption = Annotated[
    float | None, typer.Option(min=1e-3, help="Records a second; as fast as it goes without.")
]
BeginningOption = Annotated[
    bool, typer.Option("--from-beginning", help="Begin with the oldest record, not with now.")
]
#: What a shell expects of a program that Ctrl-C has ended.
_INTERRUPTED = 130


def delay_of(told: str) -> int:
    """Milliseconds that ``--delay`` asks for. Raises Misconfigured."""
    try:
        return parse_duration(told)
    except ValueError as error:
        raise Misconfigured(f"--delay is {shown(told)}; {error}") from None


def print_json(value: Any) -> None:
    """Print one JSON object on a line of its own."""
    sys.stdout.write(orjson.dumps(value).decode() + "\n")


def _line(value: bytes) -> None:
    sys.stdout.buffer.write(value + b"\n")
    sys.stdout.buffer.flush()


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end; Ctrl-C ends it with exit code 130."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None


@commands.command()
def broker(
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port on 127.0.0.1.")] = 9_092,
) -> None:
    """Run the embedded broker: all in memory, gone when it ends. For demonstrations only."""
    from app.broker import embedded

    with embedded(port) as running:
        err.print(f"the embedded broker listens on {running.bootstrap}; Ctrl-C ends it")
        err.print("[yellow]memory only[/]: for demonstrations, nothing survives its end")
        err.print("clients: WEIR_KAFKA__IDEMPOTENT=false (it gives no producer ids)")
        try:
            code = running.process.wait()
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None
        raise Refused(f"the embedded broker ended by itself, exit code {code}")


@commands.command()
def publish(
    file: Annotated[Path, typer.Argument(help="Parquet, CSV or JSON lines.")],
    config: ConfigOption = None,
    profile: ProfileOption = None,
    *,
    delay: Annotated[
        str, typer.Option(help="Labels follow so long after their transaction (event time).")
    ] = "7d",
    rate: RateOption = None,
    speedup: Annotated[
        float | None, typer.Option(min=1e-3, help="In event time, so many times faster.")
    ] = None,
    tail: Annotated[
        bool, typer.Option(help="Send labels that are due after the last transaction, too.")
    ] = True,
) -> None:
    """Publish a file's transactions in event-time order, each label when it is due."""
    from app.files import read_columns
    from app.publish import items_of, n_items

    settings, delay_ms = load(config, profile), delay_of(delay)
    with err.status(f"reading {file}"):
        columns = read_columns(file, settings)
    stream = items_of(columns, settings, delay_ms, with_tail=tail)
    _publish(stream, settings, _pace(rate, speedup), n_items(columns))


@commands.command()
def simulate(
    config: ConfigOption = None,
    profile: ProfileOption = None,
    *,
    scenario: Annotated[str, typer.Option(help="steady, drift, attack or outage.")] = "steady",
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal streams.")] = 42,
    rate: Annotated[float, typer.Option(min=1e-3, help="Mean transactions a second.")] = 500.0,
    speedup: Annotated[
        float, typer.Option(min=1e-3, help="Event time runs so many times faster than the clock.")
    ] = 3_600.0,
    moment: Annotated[
        str, typer.Option(help="When the scenario sets in, in event time from the start.")
    ] = "14d",
    count: Annotated[
        int | None, typer.Option(min=1, help="End after so many transactions.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.0, help="End after so long.")] = None,
    start: Annotated[
        str | None,
        typer.Option(help="Event time of the beginning, ISO 8601; without, so that it ends now."),
    ] = None,
    to_file: Annotated[
        Path | None,
        typer.Option(
            help="Write transactions and the truth to this file instead: for publish, backtest."
        ),
    ] = None,
) -> None:
    """Publish simulated card payments, frauds among them, and labels that come later.

    Event time passes faster than the clock, so that labels that are days late come within
    seconds. Equal options, --start among them, give an equal stream.
    """
    from app.publish import InEventTime, fields_of, simulated
    from app.synth import SCENARIOS, World

    if scenario not in SCENARIOS:
        expected = ", ".join(SCENARIOS)
        raise Misconfigured(f"--scenario is {shown(scenario)}; expected one of: {expected}")
    settings = load(config, profile)
    try:
        moment_ms = parse_duration(moment)
    except ValueError as error:
        raise Misconfigured(f"--moment is {shown(moment)}; {error}") from None
    start_ms = _start_ms(start, speedup, seconds, None if count is None else count / rate)
    world = World(
        scenario=cast("Scenario", scenario),
        seed=seed,
        start_ms=start_ms,
        per_day=rate * 86_400.0 / speedup,
        moment_ms=start_ms + moment_ms,
    )
    if to_file is not None:
        _write(to_file, world, count, seconds, speedup)
        return
    stream: Iterable[Item] = simulated(world, fields_of(settings), count)
    if seconds is not None:
        until_ms = start_ms + seconds * speedup * 1_000.0
        stream = takewhile(lambda item: item.time_ms < until_ms, stream)
    _publish(stream, settings, InEventTime(speedup, start_ms), None)


def _start_ms(
    start: str | None, speedup: float, seconds: float | None, expected_s: float | None
) -> int:
    """Where event time begins: as told, or so that it does not overtake the clock."""
    from datetime import UTC, datetime

    if start is not None:
        try:
            told = datetime.fromisoformat(start)
        except ValueError:
            raise Misconfigured(f"--start is {shown(start)}; expected an ISO 8601 time") from None
        return round((told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp() * 1_000)
    # Without an end: an hour, and not before 2000, where workers refuse what is older.
    lasts_s = min(s for s in (seconds, expected_s, 3_600.0) if s is not None)
    return max(round((time.time() - lasts_s * speedup) * 1_000), 946_684_800_000)


def _pace(rate: float | None, speedup: float | None) -> Pace:
    from app.publish import AtRate, Free, InEventTime

    if rate is not None and speedup is not None:
        raise Misconfigured("--rate and --speedup both set the pace; expected one of them")
    return AtRate(rate) if rate else InEventTime(speedup) if speedup else Free()


def _publish(stream: Iterable[Item], settings: Settings, pace: Pace, total: int | None) -> None:
    from app.publish import Published
    from app.publish import publish as send

    published = Published()
    try:
        with _bar("publishing", total) as advance:
            asyncio.run(
                send(
                    stream, settings, pace, published=published, on_batch=lambda b: advance(len(b))
                )
            )
    except KeyboardInterrupt:
        err.print("interrupted")
        raise typer.Exit(_INTERRUPTED) from None
    finally:
        published.end()
        told = f"{published.transactions:,} transactions, {published.labels:,} labels"
        err.print(f"published {told} ({published.rate:,.0f} records/s)", highlight=False)


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Any]:
    """Show a bar on standard error; gives a function that moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from app.kafka import now_ms

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    started_ms, n = now_ms(), 0
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("{task.fields[rate]}"), console=err
    ) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance(more: int) -> None:
            nonlocal n
            n += more
            rate = n * 1_000.0 / max(now_ms() - started_ms, 1)
            bar.update(task, advance=more, rate=f"{rate:,.0f}/s")

        yield advance


def _write(
    path: Path, world: Any, count: int | None, seconds: float | None, speedup: float
) -> None:
    """Write the world's transactions, each with the truth."""
    from app.files import write_rows
    from app.synth import rows, simulate

    if count is None and seconds is None:
        raise Misconfigured("--to-file needs an end; expected --count or --seconds")
    until_ms = None if seconds is None else world.start_ms + round(seconds * speedup * 1_000.0)
    with err.status(f"writing {path}"):
        table = rows(simulate(world), n=count, until_ms=until_ms)
        write_rows(path, table)
    err.print(f"wrote {len(table['transaction_id']):,} transactions to {path}", highlight=False)


@commands.command()
def tail(
    kind: Annotated[
        str, typer.Argument(help="scores, alerts, drift, outcomes or dead-letters.")
    ] = "alerts",
    config: ConfigOption = None,
    profile: ProfileOption = None,
    n: Annotated[int | None, typer.Option("-n", min=1, help="End after so many records.")] = None,
    *,
    from_beginning: BeginningOption = False,
    as_json: JsonOption = False,
) -> None:
    """Print records of a topic as people read them, as they come."""
    from app.tail import KINDS

    if kind not in KINDS:
        expected = ", ".join(KINDS)
        raise Misconfigured(f"{shown(kind)} cannot be looked at; expected one of: {expected}")
    settings = load(config, profile)
    _run(_print(kind, settings, n, from_beginning=from_beginning, as_json=as_json))


async def _print(
    kind: str,
    settings: Settings,
    n: int | None,
    *,
    from_beginning: bool,
    as_json: bool,
) -> None:
    from app.tail import json_of, records, text_of, topic_of

    out, printed = Console(highlight=False, soft_wrap=True), 0
    spec = topic_of(kind, settings)
    async for at, record in records(settings, spec, from_beginning=from_beginning):
        if as_json:
            _line(json_of(kind, at, record))
        else:
            out.print(text_of(kind, at, record))
        printed += 1
        if n is not None and printed >= n:
            return


audit = typer.Typer(help="Look at the audit, and check that it is whole.", no_args_is_help=True)
commands.add_typer(audit, name="audit")


@audit.command("verify")
def audit_verify(
    config: ConfigOption = None,
    profile: ProfileOption = None,
    *,
    against: Annotated[
        Path | None, typer.Option(help="What an earlier check printed with --json.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every link and seal of every chain; exit code 1 if something is wrong.

    Told of, and not wrong: what a worker that had lost its partition wrote late, beside the chain.

    What --json prints names the end of each chain. Kept elsewhere and given back by --against, it
    shows a chain that was cut off or written anew.
    """
    from app.auditing import heads_of, verify

    known = {}
    if against is not None:
        try:
            known = heads_of(orjson.loads(against.read_bytes()))
        except (OSError, ValueError) as error:
            raise Misconfigured(f"{against}: {error}; expected a file of --json") from None
    verdict = _run(verify(load(config, profile), known))
    if as_json:
        print_json(verdict.as_object())
    else:
        for text in (*verdict.beside, *verdict.problems):
            err.print(text, markup=False, highlight=False)
        n = sum(n for n, _ in verdict.heads.values())
        told = "all is whole" if not verdict.problems else f"{len(verdict.problems)} problem(s)"
        err.print(f"{n:,} entries in {len(verdict.heads)} chains: {told}", highlight=False)
    if verdict.problems:
        raise typer.Exit(1)


@audit.command("show")
def audit_show(
    config: ConfigOption = None,
    profile: ProfileOption = None,
    kind: Annotated[str | None, typer.Option(help="alert, correction, configuration...")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Print the entries, oldest first within each chain."""
    _run(_show_audit(load(config, profile), kind, as_json=as_json))


async def _show_audit(settings: Settings, kind: str | None, *, as_json: bool) -> None:
    from datetime import UTC, datetime

    from app import codec
    from app.auditing import entries

    out = Console(highlight=False, soft_wrap=True, markup=False)
    async for at, entry in entries(settings, kind):
        if as_json:
            _line(codec.encode(entry))
            continue
        when = datetime.fromtimestamp(entry.time_ms / 1_000.0, UTC).isoformat(timespec="seconds")
        told = {name: value for name, value in entry.detail.items() if name != "settings"}
        out.print(f"{at} {when} {entry.kind} {entry.subject} by {entry.actor}: {told}")


models = typer.Typer(help="Look at the snapshots of the model, and keep one.", no_args_is_help=True)
commands.add_typer(models, name="models")


@models.command("list")
def models_list(
    config: ConfigOption = None, profile: ProfileOption = None, *, as_json: JsonOption = False
) -> None:
    """List the snapshots on the models topic, oldest first, and which of them verify."""
    settings = load(config, profile)
    found = [_kept(at, record, settings) for at, record in _snapshots(settings)]
    if as_json:
        print_json(found)
        return
    names = ("offset", "written", "bytes", "of", "position", "digest", "learned", "verifies")
    table = Table(*names)
    for one in found:
        table.add_row(*(escape(_cell(one[name])) for name in names))
    Console(soft_wrap=True).print(table)


@models.command("save")
def models_save(
    file: Annotated[Path, typer.Argument(help="Where to, for `weir score --snapshot`.")],
    config: ConfigOption = None,
    profile: ProfileOption = None,
) -> None:
    """Write the newest snapshot that verifies to a file, as it was signed."""
    from app import snapshots

    settings = load(config, profile)
    held = [(record, _kept(at, record, settings)) for at, record in _snapshots(settings)]
    fit = [(record, one) for record, one in held if one["of"] == "learner"]
    if not fit:
        why = f"; the last one: {held[-1][1]['verifies']}" if held else ""
        raise Refused(f"{len(held)} snapshots, of which none verifies{why}")
    record, newest = max(fit, key=lambda pair: (pair[1]["position"], pair[1]["offset"]))
    snapshots.write(file, record.value or b"")
    told = f"position {newest['position']:,}, digest {newest['digest']}, {newest['bytes']:,} bytes"
    err.print(f"wrote {file}: {told}", highlight=False)


def _snapshots(settings: Settings) -> list[tuple[Position, Record]]:
    from app.tail import records
    from app.topics import Topics

    async def read() -> list[tuple[Position, Record]]:
        held = records(settings, Topics.of(settings).models, from_beginning=True, to_end=True)
        return [(at, record) async for at, record in held if record.value is not None]

    return cast("list[tuple[Position, Record]]", _run(read()))


def _kept(at: Position, record: Record, settings: Settings) -> dict[str, Any]:
    """What a snapshot says of itself; what does not verify says nothing but why."""
    from app.core.features import FeaturePlan
    from app.core.learner import Learner
    from app.shelf import opened
    from app.tail import told_time

    plan = FeaturePlan.of(settings.features, settings.transaction.entities)
    told = {"offset": at.offset, "written": told_time(record.timestamp_ms)}
    told |= {"bytes": len(record.value or b"")}
    try:
        found = opened(record, settings, plan)
    except Refused as error:
        nothing = dict.fromkeys(("of", "position", "digest", "learned"))
        return {**told, **nothing, "verifies": f"no: {error}"}
    version = {"position": found.version.position, "digest": found.version.digest}
    of, learned = ("learner", found.n_learned) if isinstance(found, Learner) else ("scores", None)
    return {**told, "of": of, **version, "learned": learned, "verifies": "yes"}


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


@commands.command()
def demo(
    seconds: Annotated[float | None, typer.Option(min=15.0, help="End after so long.")] = None,
    rate: Annotated[float, typer.Option(min=1.0, help="Mean transactions a second.")] = 600.0,
    broker: Annotated[
        str | None, typer.Option(help="Use this broker (host:port), not the embedded one.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal payments.")] = 42,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show weir at work: broker, topics, worker, simulated payments, labels, a drift."""
    from app.demo import Plan, run

    told = run(Plan(seconds=seconds, rate=rate, bootstrap=broker, seed=seed))
    if as_json:
        _line(orjson.dumps(told))
        return
    for name, value in told.items():
        sys.stdout.write(f"{name:20} {value}\n")
