"""What is watched: one mean each, by kind and subject."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from app.core.drift.grid import ASPECTS
from app.core.drift.watch import DAY_MS, Channel

HOUR_MS: Final = 3_600_000
#: Rows of features that a mean of a block is made of: one summary at least.
ROWS: Final = 32
#: Variance of a row: of a feature that differs from its usual value, or is missing, in one row of
#: a hundred, by aspect; and next to nothing for what is no share.
_LEAST: Final = (0.0025, 0.0003, 0.01)
_LITTLE: Final = 1e-4
#: A block's worth of time, rounding aside.
_BLOCK: Final = 0.99
#: A mixture of labels is known after so many.
_FEW, _SOME, _MANY = 20.0, 50.0, 200.0
#: Frauds are what is rarest, and a mean of eight is about normal once outliers are drawn in.
_PROFILE: Final = 8.0
#: Scores are all looked at.
_SCORES: Final = 256.0


@dataclass(frozen=True)
class Terms:
    """What the monitor is about; see ``[drift]``.

    ``spans_ms`` say how far back each feature looks: until a stream is so old, and ``warmup_ms``
    more, its values change because its windows fill. A feature of span -1 is a function of the
    time alone and is not watched.
    """

    names: tuple[str, ...] = ()
    spans_ms: tuple[int, ...] = ()
    segments: tuple[str, ...] = ()
    false_alarms_per_week: float = 0.5
    block_ms: int = HOUR_MS
    warmup_ms: int = 14 * DAY_MS
    learning_ms: int = 14 * DAY_MS  # so much longer scores move because a model begins to learn
    reactions: dict[str, str] = field(default_factory=dict)  # kind of drift: what follows


def channels_of(terms: Terms) -> tuple[tuple[Channel, ...], tuple[int, ...]]:
    """All that is watched, features by aspect first; and the columns of those features."""
    watched = tuple(j for j, span in enumerate(terms.spans_ms) if span >= 0)
    learns = terms.learning_ms
    told = [
        Channel("feature", terms.names[j], aspect, least, ROWS, terms.spans_ms[j])
        for aspect, least in zip(ASPECTS, _LEAST, strict=True)
        for j in watched
    ]
    told += [
        Channel("score", "mean score", "score", _LITTLE, _SCORES, learns),
        Channel("score", "share of alerts", "score", _LITTLE, _SCORES, learns),
        Channel("traffic", "transactions an hour", "traffic", _LITTLE, _BLOCK, is_of_time=True),
        Channel("label", "labels an hour", "label", _LITTLE, _BLOCK, learns, is_of_time=True),
        Channel(
            "label", "labels of frauds an hour", "label", _LITTLE, _BLOCK, learns, is_of_time=True
        ),
        Channel("label", "share of frauds", "label", _LITTLE, _MANY, learns),
        Channel("label", "delay of frauds", "label", _LITTLE, _FEW, learns),
        Channel("label", "delay of the legitimate", "label", _LITTLE, _SOME, learns),
        Channel("performance", "rank of frauds", "performance", _LITTLE, _FEW, learns),
        Channel("performance", "precision of alerts", "performance", _LITTLE, _FEW, learns),
        Channel("performance", "calibration", "performance", _LITTLE, _MANY, learns),
        Channel("performance", "scores of the legitimate", "performance", _LITTLE, _MANY, learns),
    ]
    # What frauds look like, by every feature, the clock's too: a new pattern shows here first.
    told += [
        Channel("label", f"{name} of frauds", "profile", _LITTLE, _PROFILE, max(span, learns))
        for name, span in zip(terms.names, terms.spans_ms, strict=True)
    ]
    return tuple(told), watched


(
    SCORE,
    ALERTS,
    TRAFFIC,
    LABELS,
    FRAUDS,
    FRAUD_SHARE,
    FRAUD_DELAY,
    LEGITIMATE_DELAY,
    RANK,
    PRECISION,
    CALIBRATION,
    LEGITIMATE,
) = range(12)
OTHERS: Final = 12
