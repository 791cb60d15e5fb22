"""The command line: every command says what it does and, when it cannot, what to do."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from app import __version__
from app.config import Settings, load
from app.errors import WeirError

cli = typer.Typer(
    name="weir",
    help="Real-time fraud scoring on Kafka that learns from its own feedback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
err = Console(stderr=True)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="WEIR_CONFIG", help="TOML file with the settings."),
]
ProfileOption = Annotated[
    str | None, typer.Option("--profile", "-p", help="Shipped base: card, handbook or stream.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def print_json(value: Any) -> None:
    """Print one JSON object on a line of its own."""
    sys.stdout.write(orjson.dumps(value).decode() + "\n")


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

    plan = FeaturePlan.of(settings.features, settings.transaction.entities)
    err.print(f"[green]ok[/]: {len(plan.names)} features (schema {plan.schema}):")
    for name in plan.names:
        sys.stdout.write(f"{name}\n")


@cli.command()
def worker(config: ConfigOption = None, profile: ProfileOption = None) -> None:
    """Score transactions, join labels, learn (unless learner.in_worker is false)."""
    _run("worker", load(config, profile))


@cli.command()
def learner(config: ConfigOption = None, profile: ProfileOption = None) -> None:
    """Learn in a process of its own; workers follow its snapshots."""
    _run("learner", load(config, profile))


def _run(role: Any, settings: Settings) -> None:
    import faust

    from app import logs
    from app.admin import Admin
    from app.errors import Refused
    from app.topics import Topics
    from app.worker import make_app

    logs.configure(settings.worker)

    async def check() -> None:
        async with Admin(settings) as admin:
            problems = await admin.problems(Topics.of(settings))
            if problems:
                raise Refused("\n".join(problems))

    asyncio.run(check())
    (settings.worker.data_dir / "faust").mkdir(parents=True, exist_ok=True)
    app = make_app(settings, role)
    faust.Worker(app, quiet=True, loglevel=None, override_logging=False).execute_from_commandline()


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
            problems = await admin.problems(topics)
            if problems:
                raise Refused("\n".join(problems))
            return made

    made = asyncio.run(run())
    for spec in topics:
        state = "created" if spec.name in made else "ok"
        err.print(
            f"[green]{state:8}[/] {spec.name:28} {spec.partitions:>3} partitions  {spec.what}"
        )


def main() -> None:
    """Run the command line; errors that weir raises on purpose are told without a traceback."""
    try:
        cli()
    except WeirError as error:
        err.print(f"[red]{type(error).__name__}[/]: {error}", highlight=False, markup=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
