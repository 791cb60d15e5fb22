"""Which columns a model sees, made once from the declared features.

The schema is a list of names in a fixed order. A stage fills the columns it knows: the first
those of the transaction itself, each entity stage those of its entity. The digest of the names
is on every score and example, so that features never meet a model of another schema.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from app.core.hashing import hash_id
from app.core.windows import WindowPlan
from app.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_NO_COLUMNS: Final = np.zeros(0, np.int64)
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 86_400_000
#: 1970-01-01 was a Thursday: Monday is 0.
_EPOCH_WEEKDAY: Final = 3
_SATURDAY: Final = 5


@dataclass(frozen=True)
class FeaturePlan:
    """Names and places of all features; ``own`` are those of the transaction itself."""

    names: tuple[str, ...]
    own: tuple[tuple[int, Any], ...]  # (first column, declaration)
    windows: Mapping[str, tuple[NDArray[np.int64], WindowPlan]]  # entity: (columns, plan)

    @classmethod
    def of(cls, features: Sequence[Any], entities: Sequence[str]) -> Self:
        """Plan of the declared features, in the order of their declaration.

        Raises Misconfigured where two features have one name.
        """
        names: list[str] = []
        own: list[tuple[int, Any]] = []
        per_entity: dict[str, list[tuple[int, tuple[str, int, int, float, int]]]] = {
            entity: [] for entity in entities
        }
        for feature in features:
            at = len(names)
            names += names_of(feature)
            if feature.kind != "window":
                own.append((at, feature))
                continue
            for i, length in enumerate(feature.windows):
                extra = feature.newest if feature.stat == "last" else feature.against
                window = (feature.stat, length, feature.delay, feature.prior, extra)
                per_entity[feature.entity].append((at + i, window))
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            msg = f"two features are called {twice[0]!r}; expected a name of its own for each"
            raise Misconfigured(msg)
        windows = {
            entity: (
                np.array([column for column, _ in planned], np.int64),
                WindowPlan.of(window for _, window in planned),
            )
            for entity, planned in per_entity.items()
        }
        return cls(tuple(names), tuple(own), windows)

    def filled(self, n_entities: int) -> NDArray[np.int64]:
        """Columns that are known after the stages of the first ``n_entities`` entities."""
        later = [columns for columns, _ in list(self.windows.values())[n_entities:]]
        return np.setdiff1d(np.arange(len(self.names)), np.concatenate([*later, _NO_COLUMNS]))

    @cached_property
    def encoded(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Columns that hold the code of a category, and how many codes there are in each."""
        target = [(at, f.codes) for at, f in self.own if is_target(f)]
        return tuple(at for at, _ in target), tuple(n for _, n in target)

    @cached_property
    def schema(self) -> str:
        """Digest of the names: equal where the columns are equal."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()[:16]

    def own_columns(
        self,
        times_ms: NDArray[np.int64],
        numbers: Mapping[str, NDArray[np.float64]],
        categories: Mapping[str, Sequence[str | None]],
    ) -> NDArray[np.float64]:
        """Matrix of shape (n, features) with the columns of the transactions filled in.

        A missing number is NaN, a missing category all zeros, or NaN where it is one column, a
        code that ``encoding`` reads; columns of entities are 0.
        """
        rows = np.zeros((len(times_ms), len(self.names)))
        for at, feature in self.own:
            if feature.kind == "number":
                value = numbers[feature.field]
                log = feature.transform == "log1p"
                rows[:, at] = np.sign(value) * np.log1p(np.abs(value)) if log else value
            elif feature.kind == "calendar":
                for i, part in enumerate(feature.parts):
                    rows[:, at + i] = calendar(part, times_ms, feature.night_until_hour)
            elif is_target(feature):
                rows[:, at] = [
                    math.nan if category is None else hash_id(category) % feature.codes
                    for category in categories[feature.field]
                ]
            else:
                for i, category in enumerate(categories[feature.field]):
                    if category is not None:
                        rows[i, at + hash_id(category) % feature.buckets] = 1.0
        return rows


def spans_of(features: Sequence[Any]) -> tuple[int, ...]:
    """How far back each feature looks, milliseconds, in the order of their names.

    0: at its transaction alone; -1: it is a function of the time.

    >>> from app.config import CalendarFeature, WindowFeature
    >>> window = WindowFeature(kind="window", entity="card", stat="mean", windows=("1d",))
    >>> spans_of([CalendarFeature(kind="calendar", parts=("weekend",)), window])
    (-1, 86400000)
    """
    spans: list[int] = []
    for feature in features:
        if feature.kind == "window":
            other = feature.against if feature.stat in {"peak", "burst"} else 0
            spans += [max(window, other) + feature.delay for window in feature.windows]
        else:
            spans += [-1 if feature.kind == "calendar" else 0] * len(names_of(feature))
    return tuple(spans)


def is_target(feature: Any) -> bool:
    """Whether a feature is a category that stands for the share of frauds known of it."""
    return bool(feature.kind == "category" and feature.encoding == "target")


def names_of(feature: Any) -> list[str]:
    """Names of the columns of one declared feature.

    >>> from app.config import WindowFeature
    >>> names_of(WindowFeature(kind="window", entity="card", stat="mean", windows=("1d", "7d")))
    ['card_mean_1d', 'card_mean_7d']
    """
    if feature.kind == "number":
        log = "" if feature.transform == "identity" else f"_{feature.transform}"
        return [feature.name or f"{feature.field}{log}"]
    if feature.kind == "calendar":
        return list(feature.names or feature.parts)
    if is_target(feature):
        return [f"{feature.field}_fraud_share_{feature.codes}"]
    if feature.kind == "category":
        return [f"{feature.field}_{i}" for i in range(feature.buckets)]
    stat = f"last{feature.newest}" if feature.stat == "last" else feature.stat
    delay = f"_after_{_in_words(feature.delay)}" if feature.delay else ""
    named = [f"{feature.entity}_{stat}_{_in_words(w)}{delay}" for w in feature.windows]
    return list(feature.names or named)


def _in_words(duration_ms: int) -> str:
    for unit, size in (("d", _DAY_MS), ("h", _HOUR_MS), ("m", 60_000), ("s", 1_000)):
        if duration_ms % size == 0:
            return f"{duration_ms // size}{unit}"
    return f"{duration_ms}ms"


def calendar(part: str, times_ms: NDArray[np.int64], night_until_hour: int) -> NDArray[Any]:
    """One part of the calendar at the given times (UTC), shape (n,).

    "weekend", "night" are 0 or 1, "weekday" 0 (Monday) to 6, "hour_sin", "hour_cos" in [-1, 1].

    >>> calendar("weekend", np.array([0, 2 * 86_400_000]), 6).tolist()  # Thursday, Saturday
    [False, True]
    """
    weekday = (times_ms // _DAY_MS + _EPOCH_WEEKDAY) % 7
    if part == "weekday":
        return weekday
    if part == "weekend":
        return weekday >= _SATURDAY
    if part == "night":
        return times_ms % _DAY_MS // _HOUR_MS <= night_until_hour
    angle = times_ms % _DAY_MS * (2.0 * math.pi / _DAY_MS)
    return np.sin(angle) if part == "hour_sin" else np.cos(angle)
