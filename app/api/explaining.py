"""Why a score is what it is, and what would have turned the decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from app.api.answers import Explanation, FeatureChange, FeatureShare, WouldTurn
from app.api.deciding import decided
from app.core.explain import TOGETHER_MAX, changes
from app.core.scoring import Batch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.api.desk import Desk
    from app.records import ModelVersion, Score


def of_score(desk: Desk, score: Score) -> Explanation:
    """Explain a score that was given, by the model of now."""
    entities, segments = desk.settings.transaction.entities, desk.settings.transaction.segments
    one = np.zeros(1, np.int64)
    batch = Batch(
        ids=[score.transaction_id],
        times_ms=np.array([score.time_ms]),
        amounts=np.array([score.amount]),
        keys=[[score.entities.get(kind, "")] for kind in entities],
        rows=np.array([score.features], np.float64),
        partitions=one,
        offsets=one,
        published_ms=one,
        traces=[None],
        segments=[[score.segments.get(name, "")] for name in segments],
    )
    return explained(desk, batch, score.model)


def explained(desk: Desk, batch: Batch, scored_by: ModelVersion | None = None) -> Explanation:
    """Explain the decision on a transaction with all its features."""
    found, champion = decided(desk, batch), desk.champion
    told = champion.mixture.contributions(batch.rows)[0]
    row = champion.mixture.encoding.apply(batch.rows)[0]
    order = np.argsort(-np.abs(told[:-1]), kind="stable").tolist()
    return Explanation(
        transaction_id=batch.ids[0],
        score=found.score,
        is_alert=found.is_alert,
        policy=found.policy,
        model=found.model,
        scored_by=scored_by or found.model,
        bias=float(told[-1]),
        features=[_share(desk.plan.names[at], row[at], told[at]) for at in order],
        changes=_changes(desk, batch),
        searched=[desk.plan.names[at] for at in desk.actionable],
        note=_note(found.model, scored_by, is_searched=bool(desk.actionable)),
    )


def _share(name: str, value: float, contribution: float) -> FeatureShare:
    known = None if np.isnan(value) else float(value)
    shown = "missing" if known is None else f"{known:.6g}"
    does = "raises" if contribution > 0.0 else "lowers" if contribution < 0.0 else "leaves"
    words = f"{name} = {shown} {does} suspicion"
    return FeatureShare(name, known, float(contribution), words)


def _changes(desk: Desk, batch: Batch) -> list[WouldTurn]:
    if not desk.actionable:
        return []

    def decide(rows: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        champion, policy = desk.champion, desk.scorer.policy
        scores, _ = champion.mixture.score_many(rows)
        n = len(rows)
        keys = {
            kind: column * n for kind, column in zip(desk.scorer.entities, batch.keys, strict=True)
        }
        segments = {
            name: column * n
            for name, column in zip(desk.scorer.segments, batch.segments, strict=True)
        }
        amounts = np.repeat(batch.amounts, n)
        line = champion.line(policy)
        verdicts = policy.assess(scores, amounts, keys, batch.ids * n, line, segments)
        return verdicts.alerts, scores

    names, row = desk.plan.names, batch.rows[0]
    return [
        WouldTurn(
            [
                FeatureChange(names[c], None if np.isnan(row[c]) else float(row[c]), value)
                for c, value in zip(found.columns, found.values, strict=True)
            ],
            found.score,
            found.is_alert,
        )
        for found in changes(row, desk.actionable, decide)
    ]


def _note(model: ModelVersion, scored_by: ModelVersion | None, *, is_searched: bool) -> str:
    words = "Shares are in the log-odds of the score; what is positive raises suspicion."
    if scored_by is not None and scored_by != model:
        words += f" They are told by the model of now ({model.position}), not by that which scored."
    if not is_searched:
        return f"{words} Nothing was searched: no feature is declared under [explain.actionable]."
    return (
        f"{words} Changes were searched one feature at a time, and up to {TOGETHER_MAX} together "
        "where none alone does it; all others stay as they were."
    )
