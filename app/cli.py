"""The command line: every command says what it does and, when it cannot, what to do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app import __version__, schemas
from app.commands import (
    ConfigOption,
    JsonOption,
    ProfileOption,
    commands,
    delay_of,
    err,
    print_json,
)
from app.config import Settings, WorkerSettings, load, make_folder
from app.errors import WeirError
from app.offline import offline
from app.tending import tending
from app.upkeep import upkeep

cli = typer.Typer(
    name="weir",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli.add_typer(commands)
cli.add_typer(offline)
cli.add_typer(tending)
cli.add_typer(upkeep)


@cli.callback()
def begin() -> None:
    """Real-time fraud scoring on Kafka that learns from its own feedback."""
    # What any command logs goes to standard error, card numbers masked; a worker knows more later.
    from app import logs

    logs.configure(WorkerSettings())


@cli.command()
def version() -> None:
    """Print the version."""
    sys.stdout.write(f"weir {__version__}\n")


@cli.command("check-config")
def check_config(
    config: ConfigOption = None, profile: ProfileOption = None, *, as_json: JsonOption = False
) -> None:
    """Check the settings; name the key, the value and what was expected."""
    settings = load(config, profile)
    if as_json:
        print_json(settings.model_dump(mode="json"))
        return
    from app.core.features import FeaturePlan
    from app.kafka import client_settings
    from app.learning import new_learner

    plan = FeaturePlan.of(settings.features, settings.transaction.entities)
    new_learner(settings, plan)  # refuses a model that there is none of
    client_settings(settings.kafka)
    for name in sorted(settings.explain.actionable.keys() - set(plan.names)):
        err.print(f"[yellow]explain.actionable names {name!r}[/]: no feature; it is passed over")
    err.print(f"[green]ok[/]: {len(plan.names)} features (schema {plan.schema}):")
    for name in plan.names:
        sys.stdout.write(f"{name}\n")


OnceOption = Annotated[
    bool, typer.Option("--once", help="Do not start again after a failure: something else does.")
]


@cli.command()
def worker(
    config: ConfigOption = None, profile: ProfileOption = None, *, once: OnceOption = False
) -> None:
    """Score transactions, join labels, learn (unless learner.in_worker is false)."""
    _run("worker", config, profile, once=once)


@cli.command()
def learner(
    config: ConfigOption = None, profile: ProfileOption = None, *, once: OnceOption = False
) -> None:
    """Learn in a process of its own; workers follow its snapshots."""
    _run("learner", config, profile, once=once)


def _run(role: Any, config: Path | None, profile: str | None, *, once: bool) -> None:
    settings = load(config, profile)
    if not once:
        from app import logs
        from app.supervisor import supervise

        logs.configure(settings.worker)
        chosen = [*(["-c", str(config)] if config else []), *(["-p", profile] if profile else [])]
        sys.exit(supervise([role, "--once", *chosen]))
    _run_once(role, settings)


def keep_kernels(data_dir: Path, code: Path = Path(__file__).parent) -> None:
    """See to it that compiled kernels are kept where weir may write; before numba is imported.

    Numba keeps them beside the code, or in the user's cache; where a container has neither, it
    would not start. Whoever sets NUMBA_CACHE_DIR has decided.
    """
    if not os.access(code, os.W_OK):
        os.environ.setdefault("NUMBA_CACHE_DIR", str(data_dir.absolute() / "numba"))


def _run_once(role: Any, settings: Settings) -> None:
    keep_kernels(settings.worker.data_dir)

    import structlog

    from app import logs
    from app.admin import Admin
    from app.errors import Refused
    from app.topics import Topics
    from app.worker import Worker, calm_collector, make_app, warm_up

    logs.configure(settings.worker)

    if settings.learner.key == type(settings.learner)().key:
        structlog.get_logger(__name__).warning(
            "development_key", mend="set learner.key (WEIR_LEARNER__KEY): it signs the model"
        )

    make_folder(settings.worker.data_dir / "faust", "worker.data_dir")

    async def check() -> None:
        async with Admin(settings) as admin:
            problems = await admin.problems(Topics.of(settings))
            if problems:
                raise Refused("\n".join(problems))

    asyncio.run(check())
    app = make_app(settings, role)
    warm_up(settings)
    calm_collector()
    Worker(app).execute_from_commandline()


@cli.command()
def backtest(
    file: Annotated[Path, typer.Argument(help="Parquet, CSV or JSON lines, with labels.")],
    config: ConfigOption = None,
    profile: ProfileOption = None,
    *,
    delay: Annotated[
        str, typer.Option(help="Labels come so long after their transaction: 7d, 12h, 0s.")
    ] = "7d",
    batch: Annotated[
        int, typer.Option(min=1, help="Transactions that one model scores, at most.")
    ] = 512,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Instead of the configured model; several are compared, in one pass."),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(help="Write transaction_id and score to this file, a column a model."),
    ] = None,
    snapshot: Annotated[
        Path | None,
        typer.Option(help="Write the model at the end to this file, signed: for `weir score`."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write a report to this file: .html or .md.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score and learn from a file: the same core as the worker, with no broker.

    Several models see the same stream in one pass, each as if it were alone:

        weir backtest payments.parquet --model forest --model logistic --report compared.html
    """
    from app.backtest import Backtest, due_after
    from app.backtest import report as figures
    from app.files import read_columns, write_rows
    from app.report import Run, refuse_unwritable, rows, write_report

    if report:
        refuse_unwritable(report)
    settings, delay_ms = load(config, profile), delay_of(delay)
    chosen = list(dict.fromkeys(model or [settings.model.name]))
    if snapshot and len(chosen) > 1:
        expected = "expected one model where its snapshot is written"
        raise typer.BadParameter(expected, param_hint="--model")
    lanes = {name: load(config, profile, model=_model(name, settings)) for name in chosen}
    columns = read_columns(file, settings)
    due_ms = due_after(columns.times_ms, delay_ms)
    with progress(", ".join(chosen), len(columns)) as advance:
        results = Backtest(settings, batch_max=batch, lanes=lanes).compare(columns, due_ms, advance)
    told = {name: figures(result) for name, result in results.items()}
    if scores:
        only = len(chosen) == 1
        said = {"score" if only else name: result.scores for name, result in results.items()}
        write_rows(scores, {"transaction_id": columns.ids, **said})
    if snapshot:
        from app import shelf, snapshots

        snapshots.write(snapshot, shelf.sealed(results[chosen[0]].learner, settings))
    runs = [
        Run(name, result.learner.evaluation, result.drifts, _facts(told[name]))
        for name, result in results.items()
    ]
    if report:
        write_report(report, runs)
    if as_json:
        print_json(told if len(chosen) > 1 else told[chosen[0]])
        return
    table = Table("", *chosen, box=None)
    for measure, values in rows(runs):
        table.add_row(measure, *map(escape, values))
    Console(soft_wrap=True).print(table)


def _facts(told: dict[str, Any]) -> dict[str, Any]:
    """What is said of a backtest beside its quality."""
    names = ("transactions", "alerts", "labels", "learned", "model", "model_digest")
    return {name: told[name] for name in names}


def _model(name: str, settings: Settings) -> dict[str, Any]:
    """The table ``[model]`` of a lane: the configured parameters are the configured model's."""
    params = settings.model.params if name == settings.model.name else {}
    return {"name": name, "params": params}


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error; gives a function that moves it."""
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as bar:
        shown = bar.add_task(what, total=total)
        yield lambda n: bar.advance(shown, n)


topics_cli = typer.Typer(help="Create and verify the topics.", no_args_is_help=True)
cli.add_typer(topics_cli, name="topics")


@topics_cli.command("create")
def topics_create(config: ConfigOption = None, profile: ProfileOption = None) -> None:
    """Create the topics that are missing, then verify all."""
    _topics(load(config, profile), create=True)


@topics_cli.command("check")
def topics_check(config: ConfigOption = None, profile: ProfileOption = None) -> None:
    """Verify partitions, replication and cleanup of every topic."""
    _topics(load(config, profile), create=False)


def _topics(settings: Settings, *, create: bool) -> None:
    from app.admin import Admin
    from app.errors import Refused
    from app.topics import Topics

    topics = Topics.of(settings)

    async def run() -> list[str]:
        async with Admin(settings) as admin:
            made = await admin.create(topics) if create else []
            problems = await (admin.settled(topics) if made else admin.problems(topics))
            if problems:
                raise Refused("\n".join(problems))
            return made

    made = asyncio.run(run())
    for spec in topics:
        state = "created" if spec.name in made else "ok"
        err.print(
            f"[green]{state:8}[/] {spec.name:28} {spec.partitions:>3} partitions  {spec.what}"
        )


schemas.register(cli)


@cli.command()
def metrics(
    *,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="As docs/metrics.md has it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List every metric that a worker or a learner serves, and every bound of memory."""
    from app.catalogue import as_object, markdown, text
    from app.metrics import Metrics

    declared = Metrics().declared
    if as_json:
        print_json(as_object(declared))
    else:
        sys.stdout.write(markdown(declared) if as_markdown else text(declared))


def main() -> None:
    """Run the command line; errors that weir raises on purpose are told without a traceback."""
    try:
        cli()
    except WeirError as error:
        # Escaped: a message may hold [brackets], which rich takes for its own.
        err.print(f"[red]{type(error).__name__}[/]: {escape(str(error))}", highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
