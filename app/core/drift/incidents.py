"""One change, one incident: opened, updated while it grows, closed when it is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import numpy as np

from app.core.drift import distances
from app.core.drift.grid import ASPECTS, BINS
from app.records import Bins, Concentration, Drift, Drifted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from app.core.drift.grid import Grid
    from app.core.drift.memory import Memory, Named
    from app.core.drift.watch import Channel, Watch
    from app.records import ModelVersion

Severity = Literal["info", "warning", "critical"]

#: Ten features, five ids: what fits a screen, and a record of some kilobytes.
_TOLD_MAX: Final = 10
_SAMPLES: Final = 5
#: With fewer rows a histogram says nothing.
_ROWS_MIN: Final = 20
#: A part of the traffic is named where it holds half as much again of the change as of the rows.
_CONCENTRATED: Final = 1.5
_TOGETHER_MS: Final = 86_400_000
#: Less than half of the line's height a channel may owe to noise: it is not named.
NAMED: Final = 0.5

ACTIONS: Final = {
    "level": "compare the source of {0} with what it was: unit, currency, release of a publisher",
    "spread": "look for a mixture in {0}: a new channel, a stuck value, a default in its place",
    "missing": "ask the publisher why {0} is missing more or less often than it was",
    "score": "see whether features moved too; if not, compare the model with an older snapshot",
    "performance": "look at missed frauds for a new pattern; a challenger may be due",
    "label": "ask whoever sends labels: a delay, a drought, another policy change what is learnt",
    "profile": "look at the latest frauds for a new pattern: {0} is not what it was",
    "traffic": "compare with what publishers say they sent",
}


@dataclass
class Incident:
    """What is known of a change that is not over."""

    number: int
    opened_ms: int
    since_ms: int
    model_before: ModelVersion
    lead: int  # channel
    members: NDArray[np.bool_]  # channels that take part, shape (channels,)
    level_before: NDArray[np.float64]
    peak: float  # the highest any channel rose, in lines
    severity: Severity
    told_ms: int
    calm_since_ms: int = -1
    reaction: str = ""

    @property
    def name(self) -> str:
        """Equal for all its records: when it was opened, and a number."""
        return f"drift-{self.number}-{self.opened_ms}"

    def began_with(self, since_ms: int) -> bool:
        """Whether what began at a moment is part of it: until a day after it was opened."""
        return since_ms <= self.opened_ms + _TOGETHER_MS


def severity_of(kind: str, peak: float, share: float) -> Severity:
    """How bad: by how far the line was crossed, and by what share of channels took part.

    >>> severity_of("feature", 1.2, 0.01), severity_of("feature", 2.0, 0.4)
    ('warning', 'critical')
    """
    if kind == "performance" or share >= 0.25 or peak >= 4.0:  # noqa: PLR2004 - a quarter of all
        return "critical"
    return "info" if kind == "traffic" else "warning"


@dataclass(frozen=True)
class Evidence:
    """What an incident is told from: the channels as they stand, and remembered rows."""

    channels: Sequence[Channel]
    watch: Watch
    armed: NDArray[np.bool_]
    line: float
    grid: Grid | None
    memory: Memory
    columns: dict[str, int]  # of the features that are watched
    segments: Sequence[str]
    frauds: Sequence[str]  # ids of frauds lately known, the worst ranked first
    expected: float | None  # average precision, by what the scores claim

    def named(self) -> NDArray[np.bool_]:
        """Channels that stand so high that they take part, shape (channels,)."""
        return np.asarray(self.armed & (self.watch.height >= NAMED * self.line))

    def moved(self, among: NDArray[np.bool_]) -> list[int]:
        """Channels of some that are named, those that moved most first, each subject once."""
        shift, named = np.abs(self.watch.shift), np.flatnonzero(self.named() & among)
        best: dict[str, int] = {}
        for at in named[np.argsort(-shift[named], kind="stable")].tolist():
            best.setdefault(self.channels[at].subject, at)
        return list(best.values())

    def drift(
        self,
        incident: Incident,
        event: Literal["opened", "updated", "closed"],
        now_ms: int,
        n_examples: int,
        model: ModelVersion,
    ) -> Drift:
        """Tell of an incident as it stands."""
        moved = self.moved(incident.members) or [incident.lead]
        before, after, names = self.memory.around(incident.since_ms)
        features = [self._drifted(at, moved, before, after) for at in moved[:_TOLD_MAX]]
        lead = self.channels[incident.lead]
        first = next((f for f in features if f.name == lead.subject), features[0])
        return Drift(
            detector="CUSUM",
            kind=lead.kind,  # type: ignore[arg-type]
            subject=lead.subject,
            before=_known(first.before, incident.level_before[incident.lead]),
            after=_known(first.after, self.watch.level[incident.lead]),
            since_ms=incident.since_ms,
            detected_ms=now_ms,
            n_examples=n_examples,
            model=model,
            incident=incident.name,
            event=event,
            severity=incident.severity,
            ended=self._ended(incident) if event == "closed" else "",
            features=features,
            samples=self._samples(lead, before, after, names),
            segments=self._concentrations(lead, before, after, names),
            action=ACTIONS.get(lead.aspect, ACTIONS.get(lead.kind, "")).format(lead.subject),
            reaction=incident.reaction,
            model_before=incident.model_before,
            expected_average_precision=self.expected,
        )

    def _ended(self, incident: Incident) -> Literal["returned", "adopted"]:
        """Whether the leading channel came back to where it was."""
        apart = abs(self.watch.level[incident.lead] - incident.level_before[incident.lead])
        rows = max(float(self.watch.fewest[incident.lead]), 1.0)
        size = float(np.sqrt(self.watch.size[incident.lead] / rows))
        return "returned" if apart <= size else "adopted"

    def _drifted(
        self,
        at: int,
        moved: Sequence[int],
        before: NDArray[np.float64],
        after: NDArray[np.float64],
    ) -> Drifted:
        channel, shift = self.channels[at], self.watch.shift
        told = Drifted(
            name=channel.subject,
            aspect=channel.aspect,
            contribution=round(float(shift[at] ** 2 / max((shift[moved] ** 2).sum(), 1e-9)), 4),
            change=round(float(shift[at]), 2),
            since_ms=int(self.watch.since_ms[at]),
        )
        column = self.columns.get(channel.subject)
        if column is None or channel.kind != "feature":
            return told
        return self._compared(told, column, before, after)

    def _compared(
        self,
        told: Drifted,
        column: int,
        before: NDArray[np.float64],
        after: NDArray[np.float64],
    ) -> Drifted:
        """Add how a feature's values lay before and after, where enough of both are known."""
        if self.grid is None or min(len(before), len(after)) < _ROWS_MIN:
            return told
        was, now = self.grid.histogram(before)[column], self.grid.histogram(after)[column]
        edges = self.grid.edges[column]
        n = int(np.isfinite(edges).sum())
        middles = self.grid.middles(column, np.concatenate([before, after]))
        return msgspec.structs.replace(
            told,
            before=_mean(before[:, column], told.aspect),
            after=_mean(after[:, column], told.aspect),
            psi=round(float(distances.psi(was, now)), 4),
            jensen_shannon=round(float(distances.jensen_shannon(was, now)), 4),
            kolmogorov_smirnov=round(float(distances.kolmogorov_smirnov(was, now)), 4),
            wasserstein=float(distances.wasserstein(was[:BINS], now[:BINS], middles)),
            bins=Bins(
                edges[:n].tolist(),
                was[: n + 1].astype(int).tolist(),
                now[: n + 1].astype(int).tolist(),
            ),
        )

    def _samples(
        self,
        lead: Channel,
        before: NDArray[np.float64],
        after: NDArray[np.float64],
        names: Sequence[Named],
    ) -> list[str]:
        """Ids that show it: of the bins that grew most, the newest; or of frauds badly ranked."""
        column = self.columns.get(lead.subject)
        if lead.kind == "performance":
            return list(self.frauds[:_SAMPLES])
        if self.grid is None or column is None or not len(after):
            return [name.transaction_id for name in list(names)[-_SAMPLES:]]
        was = distances.shares(self.grid.histogram(before)[column])
        now = distances.shares(self.grid.histogram(after)[column])
        grown = (now - was)[self.grid.codes(after)[:, column]]
        best = np.lexsort((-np.arange(len(after)), -grown))[:_SAMPLES]
        return [names[i].transaction_id for i in best.tolist()]

    def _concentrations(
        self,
        lead: Channel,
        before: NDArray[np.float64],
        after: NDArray[np.float64],
        names: Sequence[Named],
    ) -> list[Concentration]:
        """Values of segments that moved more than the rest."""
        column = self.columns.get(lead.subject)
        if self.grid is None or column is None or min(len(before), len(after)) < _ROWS_MIN:
            return []
        aspect = ASPECTS.index(lead.aspect)
        was = self.grid.told(before)[aspect][:, column].mean()
        moved = self.grid.told(after)[aspect][:, column] - was
        total, found = moved.sum(), []
        for place, segment in enumerate(self.segments):
            values = np.array([name.segments[place] for name in names])
            for value in np.unique(values).tolist():
                of_it = values == value
                share = float(of_it.mean())
                of_change = float(moved[of_it].sum() / total) if total else 0.0
                if of_change >= min(_CONCENTRATED * share, (1.0 + share) / 2.0):
                    told = min(round(of_change, 4), 1.0)
                    found.append(Concentration(segment, value, round(share, 4), told))
        return sorted(found, key=lambda one: one.share - one.of_change)[:_SAMPLES]


def _known(told: float | None, otherwise: float) -> float:
    return float(otherwise) if told is None else told


def _mean(values: NDArray[np.float64], aspect: str) -> float | None:
    """Mean of what is there; the share that is missing, where that is what changed."""
    missing = np.isnan(values)
    if aspect == "missing":
        return float(missing.mean())
    return None if missing.all() else float(values[~missing].mean())
