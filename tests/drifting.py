"""An examples log of a world that changes on one day: what is normal, and what a fraud is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from app.core.drift.sample import pack
from app.core.drift.watch import DAY_MS
from app.core.learner import Learner
from app.records import Example, Summary

PER_DAY, LOOKED = 12, 32


def drifting_log(
    names: Sequence[str], schema: str, *, days: int, change: int, labelled: int = 20, seed: int = 1
) -> list[Example | Summary]:
    """Summaries, and after each some labelled examples.

    From the day ``change`` on the first feature lies two higher, and frauds, which had the second
    one high, have it low.
    """
    rng, log = np.random.default_rng(seed), list[Example | Summary]()
    for i in range(days * PER_DAY):
        start, is_new = i * DAY_MS // PER_DAY, i >= change * PER_DAY
        times = np.sort(start + rng.integers(0, DAY_MS // PER_DAY, LOOKED))
        rows = rng.normal(size=(LOOKED, len(names)))
        rows[:, 0] += 2.0 * is_new
        log.append(
            Summary(
                partition=0, first_offset=256 * i, last_offset=256 * i + 255, n=256, n_alerts=2,
                mean_score=0.1, bins=[1_000] * 256, n_looked=LOOKED, rows=pack(rows),
                row_ids=[f"t{i}-{k}" for k in range(LOOKED)], row_times_ms=times.tolist(),
                first_time_ms=int(times[0]), last_time_ms=int(times[-1]), feature_schema=schema,
                feature_means=rows.mean(axis=0).tolist(),
                feature_squares=(rows.var(axis=0) * LOOKED).tolist(),
            )
        )  # fmt: skip
        for k, row in enumerate(rng.normal(size=(labelled, len(names)))):
            row[0] += 2.0 * is_new
            log.append(
                Example(
                    transaction_id=f"e{i}-{k}", time_ms=int(times[0]) - DAY_MS, amount=5.0,
                    entities={}, score=0.2, features=row.tolist(), feature_schema=schema,
                    is_fraud=bool((row[1] < -0.8) if is_new else (row[1] > 0.8)),
                    label_time_ms=int(times[-1]), label_source="bank",
                    origin=("labels", 0, i * labelled + k),
                )
            )  # fmt: skip
    return log


def until_promotion(learner: Learner, facts: Sequence[Any]) -> int:
    """How many of some facts it takes until another model decides."""
    for position, fact in enumerate(facts):
        if any(a.kind == "promotion" for a in learner.apply([(position, fact)]).actions):
            return position + 1
    raise AssertionError("no other model decides")
