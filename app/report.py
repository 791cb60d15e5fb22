"""A backtest for people: a table of figures, Markdown, and a page with plots that stands alone.

The page needs matplotlib and jinja2 (``pip install 'weir[report]'``) and no network. Equal runs
give equal bytes.
"""

from __future__ import annotations

import html as markup
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from app.core.evaluation import mean_of
from app.core.measures.delays import AGES
from app.errors import Refused, shown

if TYPE_CHECKING:
    from pathlib import Path

    from app.core.evaluation import Evaluation
    from app.core.measures.groups import Disparity, Group
    from app.core.measures.intervals import Interval
    from app.core.measures.shown import Estimate
    from app.records import Drift

TITLE: Final = "weir: how good the scores were"
NOTHING: Final = "-"


@dataclass
class Run:
    """One model's pass: what is said of it.

    ``facts`` are shown as they are: transactions, seconds, memory, the digest of the model.
    """

    name: str
    evaluation: Evaluation
    drifts: list[Drift] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Table(NamedTuple):
    """A table of texts; the first cell of a row says what the row is."""

    caption: str
    head: list[str]
    rows: list[list[str]]


def rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The figures as (measure, its value for each run), as people read them.

    >>> from app.core.evaluation import Evaluation
    >>> rows([Run("forest", Evaluation(), facts={"transactions": 12_000})])[0]
    ('transactions', ['12,000'])
    """
    names = dict.fromkeys(name for run in runs for name in run.facts)
    facts = [(name, [_plain(run.facts.get(name)) for run in runs]) for name in names]
    told = [{**_ranking(run), **_days(run), **_alerts(run), **_labels(run)} for run in runs]
    measures = dict.fromkeys(name for one in told for name in one)
    return [*facts, *((name, [one.get(name, NOTHING) for one in told]) for name in measures)]


def _ranking(run: Run) -> dict[str, str]:
    seen, mature = run.evaluation.seen, run.evaluation.mature
    return {
        "labelled": _count(seen.decisions.n),
        "frauds": _count(seen.decisions.frauds),
        "average precision": _share(seen.ranking.average_precision),
        "ROC AUC": _share(seen.ranking.roc_auc),
        "Brier score": _share(seen.ranking.brier),
        "calibration error": _share(seen.ranking.calibration_error),
        "average precision, mature days": _share(mature.ranking.average_precision),
        "ROC AUC, mature days": _share(mature.ranking.roc_auc),
    }


def _days(run: Run) -> dict[str, str]:
    terms, days = run.evaluation.terms, run.evaluation.by_day()
    return {
        "days kept, and mature": f"{len(days)}, {sum(day.is_mature for day in days)}",
        f"card precision at {terms.top_k}": _share(mean_of(days, "card_precision")),
        f"recall at {terms.budget} a day": _share(mean_of(days, "recall_at_budget")),
    }


def _alerts(run: Run) -> dict[str, str]:
    evaluation = run.evaluation
    told, terms, shown_ = evaluation.settled.decisions, evaluation.terms, evaluation.seen.shown
    saved = told.saved(terms.review_cost, terms.recovery)
    mature = [day.decisions.alerts for day in evaluation.by_day() if day.is_mature]
    return {
        "alerts a mature day": _count(float(np.mean(mature)) if mature else math.nan),
        "alert rate": _share(told.alert_rate),
        "precision of alerts": _share(told.precision),
        "recall of alerts": _share(told.recall),
        "false alerts for each fraud caught": _number(told.false_positive_ratio),
        "value detected": _share(told.value_detected),
        "saved, in the unit of the amount": _count(saved),
        "savings, share of the loss": _share(told.savings(terms.review_cost, terms.recovery)),
        "precision by what people saw": _estimate(shown_.precision()),
        "recall by what people saw": _estimate(shown_.recall()),
    }


def _labels(run: Run) -> dict[str, str]:
    catch, delays = run.evaluation.catch(), run.evaluation.settled.delays
    known = dict(zip(AGES, delays.frauds_known(), strict=True))
    return {
        **{f"frauds known within {age} days": _share(known[age]) for age in (7, 30)},
        "cards with frauds": _count(catch.episodes),
        "caught": _share(catch.caught / catch.episodes if catch.episodes else math.nan),
        "frauds until caught, median": _number(catch.frauds_median),
        "hours until caught, median": _number(catch.hours_median),
        "hours until caught, 90 %": _number(catch.hours_p90),
        "drifts": str(sum(drift.event == "opened" for drift in run.drifts)),
    }


def figures(runs: Sequence[Run]) -> Table:
    """The figures as a table, a column a run."""
    made = [[name, *values] for name, values in rows(runs)]
    return Table("Figures of each run", ["", *(run.name for run in runs)], made)


def by_day(runs: Sequence[Run]) -> list[Table]:
    """A table a run: its latest days."""
    head = ["day", "labelled", "frauds", "alerts", "caught", "card precision", "recall at budget"]
    return [
        Table(
            f"{run.name}: latest days",
            [*head, "mean score", ""],
            [
                [
                    day.date,
                    *map(_count, (day.decisions.n, day.decisions.frauds)),
                    *map(_count, (day.decisions.alerts, day.decisions.caught)),
                    *map(_share, (day.card_precision, day.recall_at_budget)),
                    _share(day.decisions.mean_score),
                    "" if day.is_mature else "not mature",
                ]
                for day in run.evaluation.by_day()
            ],
        )
        for run in runs
    ]


def by_segment(runs: Sequence[Run]) -> list[Table]:
    """A table for each run and segment: its groups."""
    head = ["labelled", "frauds", "alerts", "caught", "average precision", "alert rate"]
    return [
        Table(
            f"{run.name}: {segment}",
            ["group", *head, "false-positive rate"],
            [_group(group) for group in groups],
        )
        for run in runs
        for segment, groups in run.evaluation.by_segment().items()
    ]


def _group(group: Group) -> list[str]:
    told = group.decisions
    counts = map(_count, (told.n, told.frauds, told.alerts, told.caught))
    shares = (group.average_precision, told.alert_rate, told.false_positive_rate)
    return [group.name, *counts, *map(_share, shares)]


def fairness(runs: Sequence[Run]) -> list[Table]:
    """A table for each run and segment of several groups: each against the rest."""
    head = ["group", "ratio of alert rates", "ratio of false-positive rates", ""]
    return [
        Table(f"{run.name}: {segment}", head, [_disparity(one) for one in told])
        for run in runs
        for segment, told in run.evaluation.disparities().items()
        if told
    ]


def _disparity(one: Disparity) -> list[str]:
    ratios = (one.alert_rate_ratio, one.false_positive_rate_ratio)
    differs = any(ratio.low > 1.0 or ratio.high < 1.0 for ratio in ratios)
    return [one.name, *map(_interval, ratios), "differs" if differs else ""]


def drifts(runs: Sequence[Run]) -> Table:
    """All drifts, run by run."""
    head = ["run", "detected", "since", "kind", "subject", "before", "after"]
    made = [
        [
            run.name, _time(d.detected_ms), _time(d.since_ms), d.kind, d.subject,
            _share(d.before), _share(d.after),
        ]
        for run in runs
        for d in run.drifts
        if d.event == "opened"
    ]  # fmt: skip
    return Table("Drifts that were announced", head, made)


def markdown(runs: Sequence[Run]) -> str:
    """The tables in Markdown."""
    parts = [f"# {TITLE}", _marked(figures(runs))]
    for title, tables in (
        ("By segment", by_segment(runs)),
        ("Between groups", fairness(runs)),
        ("Drifts", [drifts(runs)]),
        ("By day", by_day(runs)),
    ):
        told = [_marked(table) for table in tables if table.rows]
        parts += [f"## {title}", *told] if told else []
    return "\n\n".join(parts) + "\n"


def _marked(table: Table) -> str:
    lines = [table.head, ["---", *["---:"] * (len(table.head) - 1)], *table.rows]
    told = ["| " + " | ".join(map(_cell, line)) + " |" for line in lines]
    return "\n".join([_cell(table.caption), "", *told])


def _cell(text: str) -> str:
    """A text that Markdown leaves as it is."""
    escaped = markup.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{c}" if c in "\\`*_[]|" else c for c in escaped)


#: name, title, text: what a plot shows.
_PLOTS: Final = (
    (
        "precision-recall",
        "Precision and recall",
        "Of all lines that could be drawn through the scores.",
    ),
    (
        "reliability",
        "Reliability",
        "Share of frauds among 30 or more of like score: on the dotted line it is the score.",
    ),
    (
        "card-precision",
        "Card precision by day",
        "Share of frauds among the cards with the highest scores. Hollow: a day not mature yet.",
    ),
    (
        "drift",
        "Scores and alerts by day",
        "Mean score, and share of alerts among transactions. Dashed: a drift was announced.",
    ),
    (
        "maturity",
        "How late labels come",
        "Share known after so many days: of the frauds, and dotted of all that has a label.",
    ),
)


def html(runs: Sequence[Run]) -> str:
    """A page with the figures and their plots, which needs nothing else.

    Raises Refused where matplotlib or jinja2 is missing.
    """
    try:
        from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - an extra
        from markupsafe import Markup  # noqa: PLC0415 - comes with it

        from app.plots import N_SERIES, plots, svg  # noqa: PLC0415 - the same
    except ImportError as error:
        expected = "expected matplotlib and jinja2: pip install 'weir[report]'"
        raise Refused(f"a report in HTML needs {shown(error.name)}; {expected}") from None
    drawn = plots([(run.evaluation, run.drifts) for run in runs])
    named = [
        {"name": run.name, "series": i % N_SERIES, "dash": ("", "6 4", "2 3")[i // N_SERIES % 3]}
        for i, run in enumerate(runs)
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.globals["table"] = lambda table: Markup(_table(table))  # noqa: S704 - escaped there
    text = resources.files("app").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(
        title=TITLE,
        runs=named,
        figures=figures(runs),
        plots=[
            {
                "name": name,
                "title": title,
                "text": told,
                "svg": Markup(svg(drawn[name], name, f"{title}. {told}")),  # noqa: S704 - ours
            }
            for name, title, told in _PLOTS
        ],
        days=by_day(runs),
        segments=by_segment(runs),
        fairness=fairness(runs),
        drifts=drifts(runs),
    )


def _table(table: Table) -> str:
    e = markup.escape
    head = "".join(f'<th scope="col">{e(text)}</th>' for text in table.head)
    body = "\n".join(
        f'<tr><th scope="row">{e(first)}</th>'
        + "".join(f"<td>{e(text)}</td>" for text in rest)
        + "</tr>"
        for first, *rest in table.rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{e(table.caption)}"><table>'
        f"<caption>{e(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


_WRITERS: Final[Mapping[str, Callable[[Sequence[Run]], str]]] = {
    ".md": markdown,
    ".html": html,
}


def refuse_unwritable(path: Path) -> None:
    """Raise Refused, before long work, where ``write_report`` could not write.

    That is a suffix other than ``.md`` and ``.html``, or a page without the extra ``report``.
    """
    if path.suffix.lower() not in _WRITERS:
        expected = " or ".join(_WRITERS)
        raise Refused(f"report {shown(str(path))}: expected a name that ends with {expected}")
    _WRITERS[path.suffix.lower()]([])


def write_report(path: Path, runs: Sequence[Run]) -> None:
    """Write a report of some runs, as the suffix of ``path`` asks: ``.md`` or ``.html``.

    Raises Refused where ``refuse_unwritable`` does, and where nothing can be written.
    """
    refuse_unwritable(path)
    text = _WRITERS[path.suffix.lower()](runs)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}; expected a place to write a report") from None


def _share(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.4f}"


def _number(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:,.1f}"


def _count(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:,.0f}"


def _estimate(told: Estimate) -> str:
    return NOTHING if math.isnan(told.value) else f"{told.value:.4f} ± {told.error:.4f}"


def _interval(told: Interval) -> str:
    if math.isnan(told.low):
        return NOTHING
    value = NOTHING if math.isnan(told.value) else f"{told.value:.2f}"
    return f"{value} [{told.low:.2f}, {told.high:.2f}]".replace("inf", "∞")


def _time(time_ms: int) -> str:
    return str(np.datetime64(time_ms, "ms"))[:16].replace("T", " ")


def _plain(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
