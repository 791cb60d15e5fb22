"""Figures of a run, counted from the topics by whoever looks on, and how they are shown."""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app import codec, tail
from app.core.measures.ranking import Ranking
from app.publish import Published

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from app.records import Position, Record
    from app.synth import Item

#: Seconds between two lines where there is no terminal.
_LINE_S: Final = 5.0
#: Scores and labels that wait for each other, and latencies: 20 MB.
_KEPT: Final = 200_000
_LATEST: Final = 4
#: As many as hold some hundred frauds in the demonstration.
_RECENT: Final = 4_000


@dataclass
class Tally:
    """What was seen on the topics; labels meet scores here as anyone could let them meet."""

    published: Published = field(default_factory=Published)
    n: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys((*tail.KINDS, "learn", "drift_opened"), 0)
    )
    n_spoilt: int = 0
    latencies_ms: list[int] = field(default_factory=list)
    ranking: Ranking = field(default_factory=Ranking)
    recent: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=_RECENT))
    latest: list[Text] = field(default_factory=list)
    drifts: list[Text] = field(default_factory=list)  # all: they are few
    scored: dict[str, float] = field(default_factory=dict)  # that wait for their label
    labelled: dict[str, bool] = field(default_factory=dict)  # that wait for their score
    n_labelled: int = 0
    n_frauds: int = 0

    def on_published(self, batch: Iterable[Item]) -> None:
        """Note the labels of a batch that was acknowledged."""
        for item in batch:
            if item.kind == "label" and isinstance(item.value, dict):
                name, is_fraud = item.value["transaction_id"], bool(item.value["is_fraud"])
                score = self.scored.pop(name, None)
                if score is None:
                    _keep(self.labelled, name, is_fraud)
                else:
                    self._meet(score, is_fraud=is_fraud)

    def on_record(self, kind: str, at: Position, record: Record) -> None:
        """Count a record of one of weir's topics."""
        self.n[kind] += 1
        match kind:
            case "scores":
                score = codec.read_score(record)
                if len(self.latencies_ms) < _KEPT:
                    self.latencies_ms.append(record.timestamp_ms - score.source.published_ms)
                is_fraud = self.labelled.pop(score.transaction_id, None)
                if is_fraud is None:
                    _keep(self.scored, score.transaction_id, score.score)
                else:
                    self._meet(score.score, is_fraud=is_fraud)
            case "outcomes":
                outcome = codec.read_outcome(record)
                self.n["learn"] += outcome.outcome == "learn"
            case "alerts":
                self.latest = [*self.latest[1 - _LATEST :], tail.text_of(kind, at, record)]
            case "drift":
                told = codec.read_drift(record)
                self.n["drift_opened"] += told.event == "opened"
                self.drifts.append(tail.text_of(kind, at, record))
            case _:
                pass

    def _meet(self, score: float, *, is_fraud: bool) -> None:
        self.ranking.update(np.array([score]), np.array([is_fraud]))
        self.recent.append((score, is_fraud))
        self.n_labelled += 1
        self.n_frauds += is_fraud

    @property
    def behind(self) -> int:
        """Transactions published and not scored yet, but for those that cannot be."""
        return max(self.published.transactions - self.n_spoilt - self.n["scores"], 0)

    def latency_ms(self, percent: float) -> float | None:
        """A percentile of the time from publishing a transaction to its score on the topic."""
        told = self.latencies_ms
        return round(float(np.percentile(told, percent)), 1) if told else None

    def summary(self) -> dict[str, Any]:
        """The figures, by the names of ``--json``."""
        recent = Ranking()
        recent.update(
            np.array([score for score, _ in self.recent]),
            np.array([is_fraud for _, is_fraud in self.recent], np.bool_),
        )
        return {
            "transactions": self.published.transactions,
            "scored": self.n["scores"],
            "alerts": self.n["alerts"],
            "labels": self.published.labels,
            "learned": self.n["learn"],
            "drift_alerts": self.n["drift_opened"],
            "dead_letters": self.n["dead-letters"],
            "average_precision": _rounded(self.ranking.average_precision),
            "average_precision_recent": _rounded(recent.average_precision),
            "fraud_share": round(self.n_frauds / max(self.n_labelled, 1), 4),
            "latency_ms_p50": self.latency_ms(50.0),
            "latency_ms_p99": self.latency_ms(99.0),
            "records_per_s": round(self.published.rate, 1),
        }


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)


def _keep(waiting: dict[str, Any], name: str, value: Any) -> None:
    waiting[name] = value
    if len(waiting) > _KEPT:  # some labels never come
        del waiting[next(iter(waiting))]


_NAMES: Final = {
    "records_per_s": "records/s",
    "transactions": "transactions",
    "behind": "not scored yet",
    "scored": "scored",
    "alerts": "alerts",
    "labels": "labels",
    "learned": "labels learnt",
    "average_precision": "average precision so far",
    "average_precision_recent": f"of the last {_RECENT:,} labels",
    "fraud_share": "frauds among labels",
    "drift_alerts": "drift alerts",
    "dead_letters": "dead letters",
    "latency_ms_p50": "latency p50, ms",
    "latency_ms_p99": "latency p99, ms",
}


def figures(tally: Tally) -> dict[str, str]:
    """The figures as people read them."""
    told = {**tally.summary(), "behind": tally.behind}
    return {name: _shown(told[key]) for key, name in _NAMES.items()}


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:,}"


def line(tally: Tally) -> str:
    """The figures in one line."""
    return " | ".join(f"{name} {value}" for name, value in figures(tally).items())


def view(tally: Tally) -> Group:
    """The figures as a table, the latest alerts and drifts below."""
    grid = Table.grid(padding=(0, 2))
    told = list(figures(tally).items())
    half = len(told) // 2
    for left, right in zip(told[:half], told[half:], strict=True):
        grid.add_row(f"[dim]{left[0]}[/]", left[1], f"[dim]{right[0]}[/]", right[1])
    return Group(grid, *tally.drifts[-_LATEST:], *tally.latest)


@contextmanager
def table(console: Console) -> Iterator[Callable[[Tally], None]]:
    """Show a tally in place, for a terminal; gives a function that shows it anew."""
    with Live(console=console, auto_refresh=False) as live:
        yield lambda tally: live.update(view(tally), refresh=True)


@contextmanager
def lines(console: Console) -> Iterator[Callable[[Tally], None]]:
    """Show a tally line by line, every few seconds, and every drift."""
    told_s, n_drifts = time.monotonic(), 0

    def show(tally: Tally) -> None:
        nonlocal told_s, n_drifts
        if time.monotonic() - told_s < _LINE_S:
            return
        told_s = time.monotonic()
        console.print(line(tally), highlight=False, soft_wrap=True)
        for text in tally.drifts[n_drifts:]:
            console.print(text, highlight=False, soft_wrap=True)
        n_drifts = len(tally.drifts)

    yield show
