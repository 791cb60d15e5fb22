"""How soon a change is told, how often none is told as one, and whether its cause comes first.

Streams whose change is known (``drift_streams``): the Handbook's with one thing spliced in, the
simulator's scenarios, River's ConceptDriftStream; and a year in which nothing changes. On the same
streams: River's ADWIN for each feature, the score and the loss, on every record; Evidently's
default drift preset, a day at a time. Both are made equal in false alarms after the fact, on these
very streams: ADWIN by its delta, Evidently by how far a column must pass its threshold. That is
more than an operator could do. Alarms within two days of the last one belong to it, for all.

weir was developed on other seeds than those it is reported on (7, 101).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import orjson
import typer
from common import err, machine
from contenders import PYTHON, environment_problem
from drift_streams import (
    DAY_MS,
    WEEK_MS,
    Case,
    handbook_cases,
    recovering,
    river_cases,
    simulator_cases,
    year,
)
from numpy.typing import NDArray
from river.drift import ADWIN

from app.backtest import Backtest, Result
from app.core.measures.ranking import Ranking

#: A change that is not told within two weeks is missed.
TOLD_WITHIN_MS: Final = 14 * DAY_MS
#: Alarms so close together are one.
ONE_MS: Final = 2 * DAY_MS
DELTAS: Final = (0.5, 0.1, 0.02, 2e-3, 1e-5, 1e-9, 1e-17, 1e-35, 1e-70)
#: River's own.
DELTA: Final = 2e-3
#: How far Evidently's column must pass its own threshold; 0 stands for its default rule.
EXCESSES: Final = (0.0, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0)
#: Evidently's own: half of the columns.
DRIFTED: Final = 0.5
HERE: Final = Path(__file__).parent


@dataclass(frozen=True)
class Alarm:
    """Somebody says that the world changed."""

    time_ms: int
    cause: str


@dataclass
class Heard:
    """What one contender said of one stream, by how it was set."""

    case: Case
    alarms: dict[float, list[Alarm]] = field(default_factory=dict)

    def false(self, setting: float) -> tuple[int, float]:
        """Alarms while nothing had changed, and the weeks of that."""
        end = self.case.moment_ms or int(self.case.columns.times_ms[-1])
        n = sum(self.case.watched_ms <= alarm.time_ms < end for alarm in self.alarms[setting])
        return n, (end - self.case.watched_ms) / WEEK_MS

    def first(self, setting: float) -> Alarm | None:
        """The first alarm after the change, if it was told in time."""
        moment = self.case.moment_ms or 0
        within = (a for a in self.alarms[setting] if moment <= a.time_ms < moment + TOLD_WITHIN_MS)
        return next(within, None)


def merged(alarms: Iterable[Alarm]) -> list[Alarm]:
    """Alarms of which those that come soon after another are left out."""
    kept: list[Alarm] = []
    last_ms = -ONE_MS
    for alarm in sorted(alarms, key=lambda one: one.time_ms):
        if alarm.time_ms - last_ms >= ONE_MS:
            kept.append(alarm)
        last_ms = alarm.time_ms
    return kept


def by_weir(case: Case, result: Result) -> Heard:
    """The incidents that were opened."""
    opened = [d for d in result.drifts if d.event == "opened"]
    return Heard(case, {0.0: [Alarm(d.detected_ms, d.subject) for d in opened]})


def series(case: Case, result: Result, names: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    """What ADWIN looks at: each feature and the score as they come, the loss as labels come."""
    rows, times = result.features, case.columns.times_ms
    assert rows is not None  # noqa: S101 - asked for
    for j, name in enumerate(names):
        # In [0, 1] by the rank among the first fortnight: ADWIN's bound is about such values.
        early = np.sort(rows[times < case.begun_ms + 14 * DAY_MS, j])
        yield name, times, np.searchsorted(early, np.nan_to_num(rows[:, j])) / max(len(early), 1)
    yield "score", times, result.scores
    order = np.argsort(case.due_ms, kind="stable")
    loss = np.abs(case.columns.labels - result.scores)
    yield "loss", case.due_ms[order], loss[order]


def by_adwin(case: Case, result: Result, names: Sequence[str]) -> Heard:
    """An alarm wherever one of the detectors finds a change."""
    heard = Heard(case, {delta: [] for delta in DELTAS})
    for name, times, values in series(case, result, names):
        told = list(zip(times.tolist(), values.tolist(), strict=True))
        for delta in DELTAS:
            detector = ADWIN(delta=delta)
            for time_ms, value in told:
                detector.update(value)
                if detector.drift_detected:
                    heard.alarms[delta].append(Alarm(time_ms, name))
    heard.alarms = {delta: merged(alarms) for delta, alarms in heard.alarms.items()}
    return heard


def by_evidently(case: Case, result: Result, names: Sequence[str]) -> Heard:
    """Each day from ``watched_ms`` on, held against the fortnight before that."""
    times, rows = case.columns.times_ms, result.features
    assert rows is not None  # noqa: S101 - asked for
    is_seen = times >= case.watched_ms - 14 * DAY_MS
    days = (times - case.watched_ms) // DAY_MS
    table = np.column_stack([rows, result.scores])[is_seen]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npz"
        np.savez(
            path,
            names=np.array([*names, "score"]),
            rows=np.nan_to_num(table),
            days=days[is_seen],
            reference=days[is_seen] < 0,
        )
        script = HERE / "drift_contenders" / "evidently_days.py"
        done = subprocess.run([PYTHON, script, path], capture_output=True, check=True)
    heard = Heard(case, {excess: [] for excess in EXCESSES})
    for day in orjson.loads(done.stdout):
        told_ms = case.watched_ms + (day["day"] + 1) * DAY_MS
        cause, worst = max(day["columns"].items(), key=lambda one: float(one[1]))
        for excess in EXCESSES:
            if (day["drifted_share"] >= DRIFTED) if excess == 0.0 else worst > excess:
                heard.alarms[excess].append(Alarm(told_ms, cause))
    heard.alarms = {excess: merged(alarms) for excess, alarms in heard.alarms.items()}
    return heard


def rate(heard: Sequence[Heard], setting: float) -> float:
    """False alarms a week, over all streams."""
    told = [one.false(setting) for one in heard]
    return sum(n for n, _ in told) / max(sum(weeks for _, weeks in told), 1e-9)


def equal(heard: Sequence[Heard], settings: Sequence[float], allowed: float) -> float:
    """The liveliest setting that tells no more false alarms; ``settings`` begin with it."""
    return next((s for s in settings if rate(heard, s) <= allowed), settings[-1])


def told(heard: Sequence[Heard], setting: float) -> dict[str, Any]:
    """Figures of one contender at one setting."""
    changed = [one for one in heard if one.case.moment_ms is not None]
    firsts = [(one.case, one.first(setting)) for one in changed]
    found = [(case, first) for case, first in firsts if first is not None]
    right = sum(first.cause in case.causes for case, first in found)
    delays: dict[str, list[float | None]] = defaultdict(list)  # of each seed, by stream
    causes: dict[str, list[str | None]] = defaultdict(list)
    for case, first in firsts:
        late_ms = None if first is None else first.time_ms - (case.moment_ms or 0)
        delays[case.name].append(None if late_ms is None else round(late_ms / DAY_MS, 2))
        causes[case.name].append(first.cause if first else None)
    # A missed change counts with the longest delay there is.
    days = [TOLD_WITHIN_MS / DAY_MS if d is None else d for told in delays.values() for d in told]
    return {
        "setting": setting,
        "false_alarms_per_week": round(rate(heard, setting), 3),
        "changes": len(changed),
        "missed": len(changed) - len(found),
        "delay_days_mean": round(float(np.mean(days)), 2) if days else None,
        "delay_days_median": round(float(np.median(days)), 2) if days else None,
        "right_cause_first": round(right / max(len(found), 1), 3),
        "delays_days": delays,
        "causes": causes,
    }


def run(case: Case) -> tuple[Result, Sequence[str]]:
    """The stream through weir."""
    backtest = Backtest(case.settings, keep_features=True)
    started = time.monotonic()
    result = backtest.run(case.columns, case.due_ms)
    took = time.monotonic() - started
    opened = [d for d in result.drifts if d.event == "opened"]
    err.print(f"{case.name}: {len(case.columns):,} rows, {took:.0f} s, {len(opened)} incidents")
    return result, backtest.plan.names


def compared(cases: Iterable[Case], *, alone: bool) -> dict[str, Any]:
    """All contenders on all streams."""
    heard: dict[str, list[Heard]] = {"weir": [], "adwin": [], "evidently": []}
    problem = None if alone else environment_problem()
    for case in cases:
        result, names = run(case)
        heard["weir"].append(by_weir(case, result))
        if alone:
            continue
        heard["adwin"].append(by_adwin(case, result, names))
        if problem is None:
            heard["evidently"].append(by_evidently(case, result, names))
    allowed = max(
        rate(heard["weir"], 0.0), heard["weir"][0].case.settings.drift.false_alarms_per_week
    )
    found: dict[str, Any] = {"weir": told(heard["weir"], 0.0), "false_alarms_allowed": allowed}
    for name, settings, default in (("adwin", DELTAS, DELTA), ("evidently", EXCESSES, 0.0)):
        if heard[name]:
            lively = [s for s in settings if s != 0.0]
            found[name] = told(heard[name], equal(heard[name], lively, allowed))
            found[f"{name}_default"] = told(heard[name], default)
        elif problem:
            found[name] = {"problem": problem}
    return found


def undrifted(case: Case) -> dict[str, Any]:
    """False alarms over a year in which nothing changes."""
    result, _ = run(case)
    heard = by_weir(case, result)
    n, weeks = heard.false(0.0)
    return {
        "transactions": len(case.columns),
        "incidents": n,
        "weeks": round(weeks, 1),
        "false_alarms_per_week": round(n / weeks, 3),
        "budget_per_week": case.settings.drift.false_alarms_per_week,
        "within_budget": n / weeks <= case.settings.drift.false_alarms_per_week,
        "told": [[d.subject, d.ended] for d in result.drifts if d.event == "closed"],
    }


FAMILIES: Final = "handbook,simulator,river"
REACTIONS: Final = ("nothing", "faster", "background", "rollback")


def recovery(case: Case, model: str) -> dict[str, Any]:
    """Days until average precision is back within 5 % of its level, by what weir may do."""
    moment = case.moment_ms or 0
    base = case.settings
    lanes = {
        reaction: base.model_copy(
            update={
                "drift": base.drift.model_copy(update={"reaction": reaction}),
                "model": base.model.model_copy(update={"name": model}),
            }
        )
        for reaction in REACTIONS
    }
    results = Backtest(lanes["nothing"], lanes=lanes).compare(case.columns, case.due_ms)
    level = {n: precision(case, r, moment - 14 * DAY_MS, moment) for n, r in results.items()}
    found: dict[str, Any] = {}
    for name, result in results.items():
        curve = [
            precision(case, result, moment + d * DAY_MS, moment + (d + 3) * DAY_MS)
            for d in range((int(case.columns.times_ms[-1]) - moment) // DAY_MS - 3)
        ]
        back = next((d + 3 for d, ap in enumerate(curve) if ap >= 0.95 * level[name]), None)
        found[name] = {
            "level": round(level[name], 3),
            "days_until_back": back,
            "three_day_ap": [round(ap, 3) for ap in curve],
            "told": [d.reaction for d in result.drifts if d.event != "updated"][-4:],
        }
    return found


def precision(case: Case, result: Result, start_ms: int, stop_ms: int) -> float:
    """Average precision of the scores of a period, by what is true of them."""
    part = slice(*np.searchsorted(case.columns.times_ms, [start_ms, stop_ms]).tolist())
    ranking = Ranking()
    labels: NDArray[np.bool_] = case.columns.labels[part] == 1
    ranking.update(result.scores[part], labels)
    return ranking.average_precision


def main(  # noqa: PLR0913 - a command's options are its arguments
    *,
    seeds: Annotated[str, typer.Option(help="Streams are drawn from these.")] = "11",
    share: Annotated[int, typer.Option(help="One of so many of the Handbook's customers.")] = 8,
    per_day: Annotated[int, typer.Option(help="Simulated transactions a day.")] = 1_200,
    year_days: Annotated[int, typer.Option(help="Days in which nothing changes; 0: none.")] = 365,
    only: Annotated[str, typer.Option(help="Families of streams, or none.")] = FAMILIES,
    alone: Annotated[bool, typer.Option(help="weir without the others.")] = False,
    model: Annotated[str, typer.Option(help="For the recovery; empty: none.")] = "forest",
    recovery_share: Annotated[int, typer.Option(help="As --share, for the recovery.")] = 2,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure detection delay, misses, false alarms, causes, and recovery."""
    drawn = [int(seed) for seed in seeds.split(",")]
    families: dict[str, Callable[[int], Iterator[Case]]] = {
        "handbook": lambda seed: handbook_cases(seed, share),
        "simulator": lambda seed: simulator_cases(seed, per_day),
        "river": lambda seed: river_cases(seed, per_day),
    }
    wanted = [families[name] for name in only.split(",")] if only != "none" else []
    cases = chain.from_iterable(family(seed) for family in wanted for seed in drawn)
    found: dict[str, Any] = {"seeds": drawn, "share": share, "per_day": per_day}
    if wanted:
        found |= compared(cases, alone=alone)
    if year_days:
        found["year"] = undrifted(year(drawn[0] + 1_000, year_days, per_day))
    if model:
        found["recovery"] = recovery(recovering(drawn[0], recovery_share), model)
    found |= machine()
    text = orjson.dumps(found, option=0 if as_json else orjson.OPT_INDENT_2).decode()
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    typer.run(main)
