"""Plots of a backtest, as SVG that takes its colours from the page around it.

Needs matplotlib (``pip install 'weir[report]'``). Every figure is drawn in placeholders of colour
that become variables of CSS, so that a page may be light or dark; text stays text. Equal input
gives equal bytes.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from app.core.measures.delays import AGES
from app.core.measures.rows import DAY_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes

    from app.core.evaluation import Evaluation
    from app.records import Drift

#: As many as one can tell apart; a ninth run begins again, with dashes.
N_SERIES: Final = 8
_DASHES: Final = ("-", "--", ":")
_SIZE_IN: Final = (6.0, 3.6)
_TICKS: Final = 6
#: Of transactions in a group whose share of frauds is shown: of fewer it is noise.
_LEAST: Final = 30


@dataclass(frozen=True)
class Palette:
    """Colours of text, of lines between, and of the runs."""

    ink: str
    rule: str
    series: tuple[str, ...]

    def of(self, run: int) -> str:
        """Colour of a run."""
        return self.series[run % len(self.series)]


#: Colours that nothing else has, each to be replaced by a variable.
_PLACEHOLDERS: Final = Palette(
    "#010203", "#010204", tuple(f"#0102{16 + i:02x}" for i in range(N_SERIES))
)

Plotted = tuple["Evaluation", "Sequence[Drift]"]


def plots(runs: Sequence[Plotted], palette: Palette = _PLACEHOLDERS) -> dict[str, Figure]:
    """Figures by name: ``precision-recall``, ``reliability``, ``card-precision`` and so on."""
    draw: Mapping[str, Callable[[Sequence[Plotted], Palette], Figure]] = {
        "precision-recall": _precision_recall,
        "reliability": _reliability,
        "card-precision": _card_precision,
        "drift": _drift,
        "maturity": _maturity,
    }
    with style.context(["default", _look(palette)]):
        return {name: function(runs, palette) for name, function in draw.items()}


def _look(palette: Palette) -> dict[str, Any]:
    """Settings of matplotlib, whatever the user's own are."""
    return {
        "text.color": palette.ink,
        "axes.labelcolor": palette.ink,
        "axes.edgecolor": palette.rule,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": palette.rule,
        "grid.linewidth": 0.5,
        "xtick.color": palette.rule,
        "ytick.color": palette.rule,
        "xtick.labelcolor": palette.ink,
        "ytick.labelcolor": palette.ink,
        "lines.linewidth": 1.6,
        "font.size": 10.0,
        "text.parse_math": False,
        "figure.constrained_layout.use": True,
    }


def svg(figure: Figure, name: str, alt: str) -> str:
    """A figure as an ``<svg>`` for a page; ``name`` keeps its ids apart from those of others.

    ``alt`` says what it shows to who does not see it.
    """
    out = io.StringIO()
    look = {**_look(_PLACEHOLDERS), "svg.fonttype": "none", "svg.hashsalt": name}
    with style.context(["default", look]):
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=unsaid)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)  # the page's own
    for place, colour in (
        (_PLACEHOLDERS.ink, "var(--ink)"),
        (_PLACEHOLDERS.rule, "var(--rule)"),
        *((colour, f"var(--s{i})") for i, colour in enumerate(_PLACEHOLDERS.series)),
    ):
        text = text.replace(place, colour)
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{alt}">{rest}'


def _axes(title_x: str, title_y: str, n: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_SIZE_IN[0], _SIZE_IN[1] * (1.0 if n == 1 else 1.3)))
    axes = list(np.atleast_1d(figure.subplots(n, 1, sharex=True)))
    axes[-1].set_xlabel(title_x)
    axes[0].set_ylabel(title_y)
    return figure, axes


def _style(run: int, palette: Palette) -> dict[str, Any]:
    dash = _DASHES[run // N_SERIES % len(_DASHES)]
    return {"color": palette.of(run), "linestyle": dash, "clip_on": False}


def _precision_recall(runs: Sequence[Plotted], palette: Palette) -> Figure:
    figure, (axes,) = _axes("recall", "precision")
    for i, (evaluation, _) in enumerate(runs):
        recall, precision = evaluation.settled.ranking.precision_recall()
        if len(recall):
            x, y = np.append(0.0, recall), np.append(precision[0], precision)
            axes.plot(x, y, drawstyle="steps-pre", **_style(i, palette))
    axes.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0))
    return figure


def _reliability(runs: Sequence[Plotted], palette: Palette) -> Figure:
    figure, (axes,) = _axes("score", "share of frauds")
    axes.plot([0.0, 1.0], [0.0, 1.0], color=palette.ink, linewidth=0.8, linestyle=":")
    for i, (evaluation, _) in enumerate(runs):
        told, share = evaluation.settled.ranking.reliability(_LEAST)
        axes.plot(told, share, marker="o", markersize=3.0, **_style(i, palette))
    axes.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0))
    return figure


def _card_precision(runs: Sequence[Plotted], palette: Palette) -> Figure:
    figure, (axes,) = _axes("day", "card precision")
    for i, (evaluation, _) in enumerate(runs):
        days = evaluation.by_day()
        x = np.array([day.day for day in days])
        y = np.array([day.card_precision for day in days])
        ripe = np.array([day.is_mature for day in days], np.bool_)
        line = _style(i, palette)
        axes.plot(x, y, linewidth=0.8, alpha=0.6, **line)
        points: dict[str, Any] = {"color": line["color"], "linestyle": "", "clip_on": False}
        axes.plot(x[ripe], y[ripe], marker="o", markersize=4.0, **points)
        axes.plot(x[~ripe], y[~ripe], marker="o", markersize=4.0, markerfacecolor="none", **points)
    axes.set_ylim(bottom=0.0)
    _dates(axes, runs)
    return figure


def _drift(runs: Sequence[Plotted], palette: Palette) -> Figure:
    figure, (above, below) = _axes("day", "mean score", 2)
    below.set_ylabel("alerts, share")
    for i, (evaluation, drifts) in enumerate(runs):
        days = [day for day in evaluation.by_day() if day.decisions.n > 0.0]
        x = [day.day + 0.5 for day in days]
        above.plot(x, [day.decisions.mean_score for day in days], **_style(i, palette))
        below.plot(x, [day.decisions.alert_rate for day in days], **_style(i, palette))
        first = min((day.day for day in days), default=0)
        for drift in drifts:
            at = drift.detected_ms / DAY_MS
            if at >= first and drift.event == "opened":
                for axes in (above, below):
                    axes.axvline(at, color=palette.of(i), linewidth=1.0, linestyle=(0, (2, 3)))
    above.set_ylim(bottom=0.0)
    below.set_ylim(bottom=0.0)
    _dates(below, runs)
    return figure


def _maturity(runs: Sequence[Plotted], palette: Palette) -> Figure:
    figure, (axes,) = _axes("days after the transaction", "labels known")
    for i, (evaluation, _) in enumerate(runs):
        delays = evaluation.settled.delays
        line = _style(i, palette)
        axes.plot(AGES, delays.frauds_known(), marker="o", markersize=3.5, **line)
        axes.plot(AGES, delays.labels_known(), **{**line, "linestyle": (0, (1, 1.5))})
    axes.set_xscale("log")
    axes.set_xticks(AGES, [str(age) for age in AGES])
    axes.minorticks_off()
    axes.set_ylim(0.0, 1.0)
    return figure


def _dates(axes: Axes, runs: Sequence[Plotted]) -> None:
    """Dates below an axis of days: few enough to be read."""
    known = sorted({number for evaluation, _ in runs for number in evaluation.days})
    if not known:
        axes.set_xticks([])
        return
    step = max(1, -(-(known[-1] - known[0] + 1) // _TICKS))
    at = np.arange(known[0], known[-1] + 1, step)
    axes.set_xticks(at, [str(np.datetime64(int(day), "D")) for day in at])
    axes.tick_params(axis="x", labelsize=8.5)
