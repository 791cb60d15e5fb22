"""Commands that need no broker: score a file with a model that was kept, search for a model."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.commands import ConfigOption, JsonOption, ProfileOption, delay_of, err, print_json
from app.config import load, parse_duration
from app.errors import Misconfigured, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.config import Settings
    from app.score import Knowledge
    from app.tune import Search

offline = typer.Typer()

#: What a shell expects of a program that Ctrl-C has ended.
_INTERRUPTED = 130
#: Rows of the table of trials: what fits on a screen.
_SHOWN = 10


@offline.command()
def score(
    file: Annotated[Path, typer.Argument(help="Parquet, CSV or JSON lines.")],
    config: ConfigOption = None,
    profile: ProfileOption = None,
    *,
    snapshot: Annotated[
        Path,
        typer.Option(help="The model: from `weir backtest --snapshot` or `weir models save`."),
    ],
    history: Annotated[
        list[Path] | None,
        typer.Option(help="Earlier transactions, so that entities are known; may be repeated."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Where the scores go: .parquet, .csv or .jsonl.")
    ] = Path("scores.parquet"),
    delay: Annotated[
        str | None,
        typer.Option(
            help="Entities hear of the frauds in the files' own label column so long after; 7d."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Instead: a file of labels, as \\[label] declares them, with times."),
    ] = None,
    reasons: Annotated[
        int | None, typer.Option(min=0, help="Reasons an alert, instead of policy.reasons_max.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a file with a model that was kept; it does not learn.

    The scores are those of a worker that has seen the same transactions and labels in the order
    of their time and follows this snapshot, bit for bit. What a card has done before counts:
    give it with --history, in the order of time.

        weir score july.parquet --snapshot model.weir --history june.parquet --out july-scores.csv
    """
    from app.core.features import FeaturePlan
    from app.files import RowWriter, count_rows
    from app.score import Scoring, batches_of, columns_of, learner_in

    settings = load(config, profile)
    plan = FeaturePlan.of(settings.features, settings.transaction.entities)
    learner = learner_in(snapshot, settings, plan)
    knowledge = _knowledge(delay, labels, settings)
    scoring = Scoring(settings, plan, learner, knowledge, reasons_max=reasons)
    paths = [*(history or []), file]
    counts = [count_rows(path) for path in paths]
    total = sum(n or 0 for n in counts) if all(n is not None for n in counts) else None
    told: dict[str, Any] = {"transactions": 0, "alerts": 0}
    with RowWriter(out) as write, _bar("scoring", total) as advance:
        for is_wanted, columns in batches_of(paths[:-1], file, settings):
            if not is_wanted:
                advance(sum(len(batch) for batch in scoring.fold(columns)))
                continue
            for scored in scoring.score(columns):
                write(columns_of(scored))
                told["transactions"] += len(scored.batch)
                told["alerts"] += int(scored.decided.alerts.sum())
                advance(len(scored.batch))
    told |= {"history": scoring.n - told["transactions"]}
    told |= {"model_position": learner.position, "model_digest": learner.digest, "out": str(out)}
    if as_json:
        print_json(told)
        return
    for name, value in told.items():
        sys.stdout.write(f"{name:20} {value}\n")


def _knowledge(delay: str | None, labels: Path | None, settings: Settings) -> Knowledge:
    from app.files import read_labels
    from app.score import After, Told

    if labels is None:
        return After(delay_of(delay or "7d"))
    if delay is not None:
        raise Misconfigured("--delay and --labels both say what is known; expected one of them")
    return Told(read_labels(labels, settings))


@offline.command()
def tune(
    file: Annotated[Path, typer.Argument(help="Parquet, CSV or JSON lines, with labels.")],
    config: ConfigOption = None,
    profile: ProfileOption = None,
    *,
    space: Annotated[Path, typer.Option(help="TOML file that says what is searched; see below.")],
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of before too.")] = 30,
    delay: Annotated[
        str, typer.Option(help="Labels come so long after their transaction: 7d, 12h, 0s.")
    ] = "7d",
    until: Annotated[
        str | None,
        typer.Option(help="Use what lies before this date only: what follows stays unseen."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the best \\[model] to this TOML.")] = None,
    study: Annotated[
        Path | None, typer.Option(help="Keep the study here; a second call goes on with it.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Begin no trial after so long: 30m, 2h.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds propose alike.")] = 42,
    as_json: JsonOption = False,
) -> None:
    r"""Search for a model and its parameters; each trial is one prequential pass.

    A trial is judged by its average precision over the labels that were known by the end, each
    score given before its label came. After a quarter and after half of them the poorer half ends.
    Needs Optuna: pip install 'weir\[tune]'.

    What is searched stands in a TOML file, a table a model. Numbers without a point are whole:

        \[params.forest]
        n_trees = { low = 20, high = 200, step = 20 }
        smoothing = { low = 0.1, high = 10.0, log = true }
        max_depth = { choices = [8, 12, 16] }

        \[params.logistic]

        \[model]
        cold_start = { choices = [0, 50] }

    Ctrl-C ends it; what has ended is kept, and --study lets the same command go on.
    """
    from app.files import read_columns
    from app.tune import Search, Space, Tape, optuna_or_refuse

    optuna_or_refuse()
    settings, delay_ms, searched = load(config, profile), delay_of(delay), Space.read(space)
    budget_s = None if budget is None else _duration_ms("--budget", budget) / 1_000.0
    columns = read_columns(file, settings).between(None, _time_ms("--until", until))
    with _bar("features", len(columns)) as advance:
        tape = Tape(settings, columns, delay_ms, advance)
    try:
        with err.status("the model as configured"):
            search = Search(tape, searched, seed=seed, path=study)
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    interrupted = False
    with _bar("trials", trials) as advance:
        advance(search.n_ended, _best(search))
        try:
            search.run(trials, budget_s, lambda: advance(1, _best(search)))
        except KeyboardInterrupt:
            interrupted = True
    _tell(search, out, as_json=as_json)
    if interrupted or search.n_ended < trials:
        how = "the same command goes on" if study else "nothing is kept; --study keeps it"
        err.print(f"stopped after {search.n_ended} of {trials} trials: {how}", highlight=False)
    if interrupted:
        raise typer.Exit(_INTERRUPTED)


def _best(search: Search) -> str:
    best, configured = search.best.average_precision, search.configured.average_precision
    return f"best {best:.4f}, as configured {configured:.4f}"


def _tell(search: Search, out: Path | None, *, as_json: bool) -> None:
    from app.tune import RUNGS, best_toml

    if out is not None:
        try:
            out.write_text(best_toml(search), encoding="utf-8")
        except OSError as error:
            expected = "expected a file to write"
            raise Misconfigured(f"--out {out}: {error.strerror}; {expected}") from None
    tried = [search.configured, *search.tried()]
    if as_json:
        print_json({"best": search.best._asdict(), "trials": [one._asdict() for one in tried]})
        return
    table = Table("trial", "average precision", "labels", "seconds", "model", box=None)
    table.add_column("parameters", overflow="fold")
    for one in tried[: _SHOWN + 1]:
        is_whole = one.rung == RUNGS
        judged = "all" if is_whole else f"{one.rung}/{RUNGS}"
        number = "configured" if one is search.configured else str(one.number)
        cells = [number, f"{one.average_precision:.6f}", judged, f"{one.seconds:.1f}"]
        table.add_row(*cells, one.model["name"], escape(_in_words(one.model)))
    # Piped, there is no screen to fit.
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if out is not None:
        if search.best is search.configured:
            err.print("[yellow]none is better[/] than the model as it is configured")
        err.print(f"wrote {out}; check it: weir check-config -c {out}", highlight=False)


def _in_words(model: dict[str, Any]) -> str:
    told = {**model["params"], "cold_start": model["cold_start"], "seed": model["seed"]}
    return ", ".join(f"{key}={_short(value)}" for key, value in told.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration_ms(option: str, told: str) -> int:
    try:
        return parse_duration(told)
    except ValueError as error:
        raise Misconfigured(f"{option} is {shown(told)}; {error}") from None


def _time_ms(option: str, told: str | None) -> int | None:
    if told is None:
        return None
    try:
        time = datetime.fromisoformat(told)
    except ValueError:
        raise Misconfigured(f"{option} is {shown(told)}; expected an ISO 8601 date") from None
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1_000)


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Any]:
    """Show a bar on standard error; gives a function that moves it and may leave a note."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    note = TextColumn("{task.fields[note]}")
    with Progress(*columns, TimeElapsedColumn(), note, console=err) as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda n, note="": bar.update(task, advance=n, note=note)
