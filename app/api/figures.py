"""The figures of a worker: how fast, how far behind, how good."""

from __future__ import annotations

import math
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from app import __version__
from app.api.answers import (
    Alarms,
    Bin,
    Broker,
    DayView,
    FeatureMean,
    IntervalView,
    Models,
    Summary,
)
from app.core.measures.rows import DAY_MS
from app.kafka import now_ms
from app.stages import EntityTask
from app.web import health

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.api.desk import Desk
    from app.core.evaluation import Evaluation
    from app.core.learner import Learner

#: Seconds between two samples, and how many are kept: ten minutes.
EVERY_S: Final = 2.0
KEPT: Final = 300
#: Samples that a rate and a latency are taken over: 10 s and a minute.
_RATE_OVER, _LATENCY_OVER = 5, 30
#: Seconds for which quality is not reckoned again: it takes 20 ms.
_FRESH_S: Final = 5.0
#: Alerts whose reasons say which features matter.
_LOOKED_AT: Final = 1_000
#: 1.96 standard errors on either side: 95 %.
_Z: Final = 1.959964


class Sampler:
    """Looks at the counters now and then, so that there are rates to tell."""

    def __init__(self, desk: Desk) -> None:
        """Nothing was sampled yet."""
        self._desk = desk
        self._samples: deque[tuple[float, dict[str, int], NDArray[np.int64]]] = deque(
            maxlen=_LATENCY_OVER + 1
        )
        self.series: deque[tuple[int, float, float, float | None, int]] = deque(maxlen=KEPT)
        self._told_s, self._quality = -math.inf, dict[str, float | None]()

    def sample(self) -> None:
        """Look once."""
        metrics = self._desk.flow.metrics
        now = (time.monotonic(), metrics.totals(), metrics.latency.counts)
        self._samples.append(now)
        rate, alerts = self.rate("n_scored"), self.rate("n_alerts")
        p95 = self.latency_ms()["p95"]
        self.series.append((now_ms(), rate, alerts, p95, now[1]["lag"]))

    def rate(self, what: str) -> float:
        """How many a second, lately."""
        if len(self._samples) < 2:  # noqa: PLR2004 - a rate needs a beginning and an end
            return 0.0
        then = self._samples[max(-_RATE_OVER - 1, -len(self._samples))]
        at_s, totals, _ = self._samples[-1]
        return (totals[what] - then[1][what]) / max(at_s - then[0], 1e-9)

    def latency_ms(self) -> dict[str, float | None]:
        """From publishing to the score, over the last minute."""
        before = self._samples[0][2] if len(self._samples) > 1 else None
        latency = self._desk.flow.metrics.latency
        shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
        told = {name: latency.quantile(share, before=before) for name, share in shares.items()}
        return {name: known(1_000.0 * seconds) for name, seconds in told.items()}

    def quality(self) -> dict[str, float | None]:
        """How good the scores were, as far as this process knows."""
        learner = self._desk.learner()
        if learner is None:
            return {}
        if time.monotonic() - self._told_s > _FRESH_S:
            self._quality = _quality(learner.evaluation, learner)
            self._told_s = time.monotonic()
        return self._quality

    def summary(self, *, with_series: bool = True) -> Summary:
        """This worker in a few numbers."""
        desk = self._desk
        totals = desk.flow.metrics.totals()
        learner = desk.learner()
        tasks = list(dict.fromkeys(desk.flow.tasks.values()))
        stores = [t for t in tasks if isinstance(t, EntityTask) and t.store is not None]
        return Summary(
            worker=desk.url,
            time_ms=now_ms(),
            started_ms=desk.started_ms,
            version=__version__,
            rate=self.rate("n_scored"),
            **totals,
            latency_ms=self.latency_ms(),
            alerts=_alarms(desk, totals),
            quality=self.quality(),
            model=desk.champion.version,
            n_learned=learner.n_learned if learner else 0,
            trust=float(desk.champion.mixture.trust),
            pending=sum(len(t.join) for t in tasks if hasattr(t, "join")),
            entities={
                kind: sum(len(t.store or ()) for t in stores if t.stage.entity == kind)
                for kind in desk.settings.transaction.entities
            },
            health=health(desk.flow),
            readiness=desk.readiness(),
            broker=Broker(**desk.boards.broker),
            series=list(self.series) if with_series else [],
        )


def known(value: float) -> float | None:
    """A number, or null where there is none.

    >>> known(float("nan")), known(0.5)
    (None, 0.5)
    """
    return float(value) if math.isfinite(value) else None


def _alarms(desk: Desk, totals: dict[str, int]) -> Alarms:
    policy = desk.settings.policy
    line = desk.champion.line(desk.scorer.policy)
    is_budget = policy.kind == "budget"
    threshold = policy.threshold if line is None else line
    newest = [alert.time_ms for alert in islice(desk.boards.board.alerts.newest(), 200)]
    span = max(newest) - min(newest) if newest else 0
    return Alarms(
        kind=policy.kind,
        budget_per_day=policy.alerts_per_day if is_budget else None,
        threshold=None if policy.kind == "cost" else threshold,
        per_day=len(newest) * DAY_MS / span if span else None,
        rate=totals["n_alerts"] / totals["n_scored"] if totals["n_scored"] else None,
    )


def _quality(of: Evaluation, learner: Learner) -> dict[str, float | None]:
    seen, settled = of.seen, of.settled.decisions
    days = [day for day in of.by_day() if day.is_mature]
    precisions = [day.card_precision for day in days if not math.isnan(day.card_precision)]
    told = {
        "average_precision": seen.ranking.average_precision,
        "roc_auc": seen.ranking.roc_auc,
        "brier": seen.ranking.brier,
        "calibration_error": seen.ranking.calibration_error,
        "alert_precision": settled.precision,
        "alert_recall": settled.recall,
        "alert_precision_estimate": seen.shown.precision().value,
        "alert_recall_estimate": seen.shown.recall().value,
        "card_precision": float(np.mean(precisions)) if precisions else math.nan,
        "n_labelled": float(learner.n_learned),
        "n_frauds": float(learner.n_frauds),
    }
    return {name: known(value) for name, value in told.items()}


def models(desk: Desk) -> Models:
    """The model in use, its versions, and how good it is."""
    learner, champion = desk.learner(), desk.champion.version
    versions = [
        msgspec.structs.replace(one, in_use=one.digest == champion.digest and one.verifies)
        for one in reversed(desk.boards.board.versions.values())
    ]
    of = learner.evaluation if learner else None
    decisions = of.settled.decisions if of else None
    alike = of.seen.ranking.alike() if of else ()
    return Models(
        champion=champion,
        versions=versions,
        days=_days(of) if of else [],
        intervals={
            "alert_precision": _wilson(decisions.caught, decisions.alerts) if decisions else None,
            "alert_recall": _wilson(decisions.caught, decisions.frauds) if decisions else None,
        },
        reliability=[
            Bin(*(float(one) for one in group)) for group in zip(*alike, strict=True)
        ],
        features=_features(desk),
        settings={"model": desk.settings.model.model_dump(mode="json")},
    )  # fmt: skip


def _days(of: Evaluation) -> list[DayView]:
    told = []
    for day in of.by_day():
        counts, held = day.decisions, of.days.get(day.day)
        ranking = held.counts.ranking if held is not None and held.counts is not None else None
        told.append(
            DayView(
                start_ms=day.day * DAY_MS,
                n=float(counts.n),
                n_frauds=float(counts.frauds),
                n_alerts=float(counts.alerts),
                average_precision=known(ranking.average_precision) if ranking else None,
                roc_auc=known(ranking.roc_auc) if ranking else None,
                precision=known(counts.precision),
                recall=known(counts.recall),
                card_precision=known(day.card_precision),
                recall_at_budget=known(day.recall_at_budget),
                is_mature=day.is_mature,
            )
        )
    return told


def _wilson(hits: float, n: float) -> IntervalView | None:
    """A share with its score interval (Wilson, 1927)."""
    if n <= 0.0:
        return None
    share, z2 = hits / n, _Z * _Z
    middle = (share + z2 / (2.0 * n)) / (1.0 + z2 / n)
    half = _Z / (1.0 + z2 / n) * math.sqrt(max(share * (1 - share) / n + z2 / (4 * n * n), 0.0))
    return IntervalView(float(share), max(middle - half, 0.0), min(middle + half, 1.0))


def _features(desk: Desk) -> list[FeatureMean]:
    sums: dict[str, float] = {}
    n = 0
    for alert in desk.boards.board.alerts.newest():
        n += 1
        for reason in alert.reasons:
            sums[reason.feature] = sums.get(reason.feature, 0.0) + reason.contribution
        if n >= _LOOKED_AT:
            break
    found = [FeatureMean(name, total / n) for name, total in sums.items()]
    return sorted(found, key=lambda one: -one.mean_contribution)
