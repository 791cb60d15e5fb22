"""Has the world changed? A fold over what the learner sees, in its order.

Summaries of scores bring samples of features, without labels; examples bring labels. Both fill
blocks of event time; at the end of each the channels are held against what was to be expected
(``watch``), and the highest of them against the line that the operator's budget of false alarms
draws (``budget``). What crosses it opens an incident (``incidents``), and what began to move about
when that did belongs to it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from app.core.drift import channels as at
from app.core.drift.budget import Budget
from app.core.drift.channels import HOUR_MS, Terms, channels_of
from app.core.drift.estimate import Estimate
from app.core.drift.grid import ASPECTS, Grid
from app.core.drift.incidents import Evidence, Incident, severity_of
from app.core.drift.memory import PER_BLOCK, Memory, Named
from app.core.drift.sample import unpack
from app.core.drift.watch import DAY_MS, HOURS, Block, Watch, hour_of
from app.core.scoremap import BINS, REACH

if TYPE_CHECKING:
    from app.records import Drift, Example, ModelVersion, Summary

#: A grid from fewer rows has bins of noise.
_GRID_ROWS: Final = 128
#: Rows are folded when so many have come: a block of any length takes little memory.
_FOLDED_AT: Final = 512
#: Levels follow in a week; in two days while a window fills; in one while an incident is open,
#: for by then they have been heard and the question is what is usual now.
_LEVEL_MS: Final = 7.0 * DAY_MS
_FILLING_MS: Final = 2.0 * DAY_MS
_OPEN_MS: Final = 1.0 * DAY_MS
#: An incident is over when what led it has stood below half the line for two days.
_CALM_MS: Final = 2 * DAY_MS
_CALM: Final = 0.5
#: Open at one time: what crosses the line beyond that joins the last.
_OPEN_MAX: Final = 4
#: Bins are not placed anew while something may be rising.
_CALM_GRID: Final = 0.8
#: Versions of the model, one a day, that an incident may have begun under.
_VERSIONS_MAX: Final = 64
_FRAUDS_MAX: Final = 32


@dataclass
class Monitor:
    """Everything that tells whether the world changed; bounded, and a function of the log."""

    terms: Terms = field(default_factory=Terms)
    clock_ms: int = -1
    age_ms: int = 0  # event time that was lived through: a jump counts as a day at most
    n_examples: int = 0
    n_incidents: int = 0

    def __post_init__(self) -> None:
        """Start with nothing seen."""
        self.channels, self.columns = channels_of(self.terms)
        self.n_own = len(ASPECTS) * len(self.columns)
        self.watch = Watch(self.channels)
        self.block = Block.of(len(self.channels))
        self.budget = Budget(self.terms.false_alarms_per_week, len(self.channels))
        self.memory = Memory(len(self.columns))
        self.estimate = Estimate()
        self.grid: Grid | None = None
        self.grid_at_ms = 0  # age at which the next is made
        self.incidents: list[Incident] = []  # open, oldest first
        self.block_ms = self.day_ms = -1  # when they began
        self.rows: list[np.ndarray[Any, Any]] = []  # not folded yet
        self.hours: list[np.ndarray[Any, Any]] = []
        self.n_waiting = self.n_rows = 0  # in ``rows``; of this block
        self.n_scores = self.n_labels = self.n_frauds = 0  # of this block
        self.versions: deque[tuple[int, ModelVersion]] = deque(maxlen=_VERSIONS_MAX)
        #: frauds lately known: how they ranked (low: badly), id
        self.frauds: deque[tuple[float, str]] = deque(maxlen=_FRAUDS_MAX)
        self._spans = np.array([channel.span_ms for channel in self.channels], np.float64)

    @property
    def armed(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Channels old enough to be believed, shape (channels,)."""
        return np.asarray(self.age_ms >= self._spans + self.terms.warmup_ms)

    @property
    def members(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Channels that take part in an open incident, shape (channels,)."""
        none = np.zeros(len(self.channels), np.bool_)
        return np.logical_or.reduce([none, *(one.members for one in self.incidents)])

    @property
    def highest(self) -> float:
        """How high the highest channel stands, in lines: at 1 an incident is opened."""
        armed = self.armed
        return float((self.watch.height * armed).max() / self.budget.line) if armed.any() else 0.0

    def heights(self) -> dict[tuple[str, str], float]:
        """How high each kind and subject stands, its highest aspect, in lines: 1 is an incident."""
        told: dict[tuple[str, str], float] = {}
        height = (self.watch.height / self.budget.line).tolist()
        for channel, one in zip(self.channels, height, strict=True):
            whose = (channel.kind, channel.subject)
            told[whose] = max(told.get(whose, 0.0), one)
        return told

    def on_summary(self, summary: Summary, model: ModelVersion) -> list[Drift]:
        """Look at a run of scores whose labels are not known yet."""
        # Of a first run that holds one transaction of long ago, no more than a day.
        self._begin(max(summary.first_time_ms, summary.last_time_ms - DAY_MS), model)
        passed_ms = max(summary.last_time_ms - self.clock_ms, 0)
        self.clock_ms += passed_ms
        self.age_ms += min(passed_ms, DAY_MS)
        self.n_scores += summary.n
        bins = np.array(summary.bins, np.int64)
        self.estimate.update(bins, 0.5 ** (summary.n / max(self._a_day(), 1.0)))
        hour = hour_of(summary.last_time_ms)
        if len(bins):
            odds = float(bins.mean() + 0.5) * (2.0 * REACH / BINS) - REACH
            self._add(at.SCORE, hour, odds, summary.n)
            self._add(at.ALERTS, hour, summary.n_alerts / summary.n, summary.n)
        self._take(summary)
        return self._turn(model)

    def on_example(self, example: Example, above: float, model: ModelVersion) -> list[Drift]:
        """Compare a score with the label that came for it.

        ``above`` is the share of scores lately seen that are higher, [0, 1].
        """
        self.n_examples += 1
        is_label = example.label_source != "maturity"
        self._begin(example.time_ms, model)
        hour = hour_of(example.label_time_ms)
        self._add(at.CALIBRATION, hour, float(example.is_fraud) - example.score)
        if example.is_fraud:
            rank = -float(np.log10(max(above, 1e-6)))
            self._add(at.RANK, hour, rank)
            self._add_profile(example, hour)
            self.frauds.append((rank, example.transaction_id))
        else:
            odds = np.log(max(example.score, 1e-6) / max(1.0 - example.score, 1e-6))
            self._add(at.LEGITIMATE, hour, float(odds))
        if is_label:
            self._on_label(example, hour)
        return []

    def on_undone(self, incident: str, why: str, model: ModelVersion) -> list[Drift]:
        """Tell of an incident about which nothing is done any more, because somebody said so."""
        told, now_ms = [], self.clock_ms
        for one in self.incidents:
            if one.name == incident:
                one.reaction, one.told_ms = f"{one.reaction}, {why}", now_ms
                evidence = self._evidence()
                told.append(evidence.drift(one, "updated", now_ms, self.n_examples, model))
        return told

    def _on_label(self, example: Example, hour: int) -> None:
        """Count a label that somebody sent, and how long it took."""
        self.n_labels += 1
        self.n_frauds += example.is_fraud
        self._add(at.FRAUD_SHARE, hour, float(example.is_fraud))
        took_ms = max(example.label_time_ms - example.time_ms, 60_000)
        which = at.FRAUD_DELAY if example.is_fraud else at.LEGITIMATE_DELAY
        self._add(which, hour, float(np.log10(took_ms / HOUR_MS)))
        if example.is_alert:
            self._add(at.PRECISION, hour, float(example.is_fraud))

    def _add(self, which: int, hour: int, value: float, weight: float = 1.0) -> None:
        self.block.add_one(self.n_own + which, hour, value, weight)

    def _add_profile(self, example: Example, hour: int) -> None:
        """Add what a fraud looks like, in a scale that draws outliers in."""
        others = self.n_own + at.OTHERS
        if len(example.features) != len(self.channels) - others:
            return
        values = np.arcsinh(np.array(example.features, np.float64))
        there = np.isfinite(values)
        self.block.n[hour, others:] += there
        self.block.sums[hour, others:] += np.where(there, values, 0.0)

    def _begin(self, time_ms: int, model: ModelVersion) -> None:
        if self.block_ms < 0:
            self.block_ms = self.clock_ms = time_ms
            self.day_ms = time_ms // DAY_MS * DAY_MS
            self.versions.append((time_ms, model))

    def _a_day(self) -> float:
        """About how many scores a day has, by this block so far."""
        hours = max(self.clock_ms - self.block_ms, HOUR_MS) / HOUR_MS
        return max(self.n_scores / hours * 24.0, 1.0)

    def _take(self, summary: Summary) -> None:
        """Keep the rows of a summary until they are folded."""
        d = len(self.terms.names)
        if not self.columns or not 0 < len(summary.rows) == 2 * d * len(summary.row_ids):
            return
        rows = unpack(summary.rows, d)[:, list(self.columns)]
        segments = [
            summary.row_segments.get(name, [""] * len(rows)) for name in self.terms.segments
        ]
        told = zip(summary.row_ids, summary.row_times_ms, strict=True)
        names = [
            Named(name, time_ms, tuple(column[i] for column in segments))
            for i, (name, time_ms) in enumerate(told)
        ]
        self.memory.add(rows, names)
        self.rows.append(rows)
        self.hours.append(hour_of(np.array(summary.row_times_ms, np.int64)))
        self.n_waiting += len(rows)
        self.n_rows += len(rows)
        if self.n_waiting >= _FOLDED_AT:
            self._fold()

    def _fold(self) -> None:
        """Let rows become sums."""
        if not self.rows:
            return
        rows, hours = np.concatenate(self.rows), np.concatenate(self.hours)
        self.rows, self.hours, self.n_waiting = [], [], 0
        if self.grid is None:
            self.grid = Grid.of(rows)
            self.grid_at_ms = DAY_MS
        values = np.concatenate(list(self.grid.told(rows)), axis=1)
        self.block.add(slice(0, self.n_own), hours, values)

    def _turn(self, model: ModelVersion) -> list[Drift]:
        """End the block if it is long enough, and the day if it is over."""
        lasted = self.clock_ms - self.block_ms
        fewest = _GRID_ROWS if self.grid is None else at.ROWS
        needs_rows = bool(self.columns) and self.n_rows < fewest and lasted < DAY_MS
        if lasted < self.terms.block_ms or needs_rows:
            return []
        self._fold()
        self._count(lasted)
        half_life = np.where(self.armed, _LEVEL_MS, _FILLING_MS)
        half_life = np.where(self.members, _OPEN_MS, half_life)
        self.watch.close(self.block, self.block_ms, self.clock_ms, half_life, self.armed)
        heard = self._hear(model)
        self.block_ms, self.n_rows, self.memory.left = self.clock_ms, 0, PER_BLOCK
        if self.clock_ms // DAY_MS * DAY_MS > self.day_ms:
            self._end_day(model)
        return heard

    def _count(self, lasted_ms: int) -> None:
        """Add how many came an hour: of the block's time, by how long it lay in each eighth."""
        days, rest_ms = divmod(lasted_ms, DAY_MS)  # a clock may jump by years
        end_ms = self.block_ms + rest_ms
        starts = np.arange(self.block_ms, end_ms, self.terms.block_ms)
        lasted = np.diff(np.append(starts, end_ms)) / self.terms.block_ms
        whole = days * DAY_MS / HOURS / self.terms.block_ms
        eighths = whole + np.bincount(hour_of(starts), lasted, HOURS)
        counts = (
            (at.TRAFFIC, self.n_scores),
            (at.LABELS, self.n_labels),
            (at.FRAUDS, self.n_frauds),
        )
        for which, n in counts:
            rate = float(np.log1p(n * HOUR_MS / lasted_ms))
            for hour in np.flatnonzero(eighths).tolist():
                self._add(which, hour, rate, float(eighths[hour]))
        self.n_scores = self.n_labels = self.n_frauds = 0

    def _end_day(self, model: ModelVersion) -> None:
        """Learn what this day was like, and look further once in a while."""
        noise = self.armed & ~self.members
        if noise.any():
            self.budget.note(float((self.watch.highest / self.watch.scale)[noise].max()))
        self.watch.end_day(self.day_ms, self.armed)
        self.day_ms = self.clock_ms // DAY_MS * DAY_MS
        self.versions.append((self.clock_ms, model))
        if not self.incidents and self.highest < _CALM_GRID and self.age_ms >= self.grid_at_ms:
            self._new_grid()

    def _new_grid(self) -> None:
        """Place the bins by what is usual now; levels stay where they are, in other bins."""
        self.grid_at_ms = 2 * self.age_ms
        rows, _ = self.memory.reference()
        if len(rows) < _GRID_ROWS:
            return
        before, self.grid = self.grid, Grid.of(rows)
        if before is not None:
            # By the same rows in both: how they happen to lie moves no level.
            moved = self.grid.told(rows).mean(axis=1) - before.told(rows).mean(axis=1)
            self.watch.level[: self.n_own] += moved.ravel()

    def _hear(self, model: ModelVersion) -> list[Drift]:
        """Open, update or close incidents by how high the channels stand."""
        told = [
            self._close(incident, model)
            for incident in list(self.incidents)
            if self._over(incident)
        ]
        evidence, members = self._evidence(), self.members
        heights = np.where(self.armed & ~members, self.watch.height, 0.0)
        if heights.max(initial=0.0) > self.budget.line:
            told.append(self._open(heights, evidence, model))
        told += [drift for one in self.incidents for drift in self._grow(one, evidence, model)]
        if self.incidents:
            self.watch.rest(self.budget.line, self.members)
        return told

    def _over(self, incident: Incident) -> bool:
        """Whether what led an incident has been calm for long enough."""
        if self.watch.height[incident.lead] > _CALM * self.budget.line:
            incident.calm_since_ms = -1
        elif incident.calm_since_ms < 0:
            incident.calm_since_ms = self.clock_ms
        return incident.calm_since_ms >= 0 and self.clock_ms - incident.calm_since_ms >= _CALM_MS

    def _evidence(self) -> Evidence:
        expected = self.estimate.average_precision
        return Evidence(
            channels=self.channels,
            watch=self.watch,
            armed=self.armed,
            line=self.budget.line,
            grid=self.grid,
            memory=self.memory,
            columns={self.terms.names[j]: place for place, j in enumerate(self.columns)},
            segments=self.terms.segments,
            # High numbers rank high: those that the model missed come first.
            frauds=[name for _, name in sorted(self.frauds)],
            expected=None if np.isnan(expected) else round(expected, 4),
        )

    def _open(
        self, heights: np.ndarray[Any, Any], evidence: Evidence, model: ModelVersion
    ) -> Drift:
        """Open an incident of what crossed the line and is part of none, or let it join one."""
        named = evidence.named() & ~self.members
        moved = evidence.moved(named)
        lead, since = moved[0], int(self.watch.since_ms[moved[0]])
        peak = float(heights.max() / self.budget.line)
        joined = next((one for one in reversed(self.incidents) if one.began_with(since)), None)
        if joined is None and len(self.incidents) >= _OPEN_MAX:
            joined = self.incidents[-1]
        if joined is not None:
            joined.members = joined.members | named
            joined.told_ms = self.clock_ms
            return evidence.drift(joined, "updated", self.clock_ms, self.n_examples, model)
        self.n_incidents += 1
        reaction = self.terms.reactions.get(self.channels[lead].kind, "nothing")
        severity = self._severity(lead, peak, len(moved))
        before = next((v for t, v in reversed(self.versions) if t <= since), self.versions[0][1])
        incident = Incident(
            number=self.n_incidents,
            opened_ms=self.clock_ms,
            since_ms=since,
            model_before=before,
            lead=lead,
            members=named,
            level_before=self.watch.level.copy(),
            peak=peak,
            severity="critical" if reaction == "page" else severity,
            told_ms=self.clock_ms,
            reaction=reaction,
        )
        self.incidents.append(incident)
        # The day's height is noted here: from now on the members' heights are no noise.
        self.budget.note(float(heights.max()))
        return evidence.drift(incident, "opened", self.clock_ms, self.n_examples, model)

    def _severity(self, lead: int, peak: float, n_moved: int) -> Any:
        subjects = max(len(self.columns), 1)
        return severity_of(self.channels[lead].kind, peak, n_moved / subjects)

    def _grow(self, incident: Incident, evidence: Evidence, model: ModelVersion) -> list[Drift]:
        """Say that an incident became worse: at once if it is critical now, else once a day."""
        peak = float((self.watch.height * incident.members).max() / self.budget.line)
        incident.peak = max(incident.peak, peak)
        severity = self._severity(
            incident.lead, incident.peak, len(evidence.moved(incident.members))
        )
        is_worse = severity == "critical" != incident.severity
        if not is_worse and (peak < 1.0 or self.clock_ms - incident.told_ms < DAY_MS):
            return []
        incident.told_ms = self.clock_ms
        incident.severity = "critical" if is_worse else incident.severity
        return [evidence.drift(incident, "updated", self.clock_ms, self.n_examples, model)]

    def _close(self, incident: Incident, model: ModelVersion) -> Drift:
        told = self._evidence().drift(incident, "closed", self.clock_ms, self.n_examples, model)
        self.incidents.remove(incident)
        if told.ended == "adopted":
            self.memory.forget(incident.since_ms)
            self._new_grid()
        return told
