"""Collectors that Prometheus' client lacks: histograms of arrays, gauges that are asked for."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray


class BatchHistogram(Collector):
    """A Prometheus histogram that takes arrays: 0.02 us a value instead of 2."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], label: str = "") -> None:
        """Buckets end at ``bounds``, ascending; with ``label``, one of each for every value."""
        self._name, self._text, self._bounds = name, text, np.array(bounds)
        self._label = label
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._sums: dict[str, float] = {}
        if not label:
            self._of("")

    def _of(self, value: str) -> NDArray[np.int64]:
        if value not in self._counts:
            self._counts[value] = np.zeros(len(self._bounds) + 1, np.int64)
            self._sums[value] = 0.0
        return self._counts[value]

    def observe(self, values: NDArray[np.float64], label: str = "") -> None:
        """Count values, shape (n,)."""
        at = np.searchsorted(self._bounds, values, side="left")
        counts = self._of(label)
        counts += np.bincount(at, minlength=len(counts))
        self._sums[label] += float(values.sum())

    def observe_one(self, value: float, label: str = "") -> None:
        """Count one value."""
        self._of(label)[bisect_left(self._bounds, value)] += 1
        self._sums[label] += value

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many values lie in each bucket, of one without a label; a copy."""
        return self._of("").copy()

    def quantile(
        self, share: float, label: str = "", before: NDArray[np.int64] | None = None
    ) -> float:
        """Value below which ``share`` of all values lie, interpolated; NaN before the first.

        With ``before``, counts as they were once, of the values since then.
        """
        counts = self._of(label) if before is None else self._of(label) - before
        total = int(counts.sum())
        if not total:
            return float("nan")
        wanted, cumulated = share * total, np.cumsum(counts)
        at = int(np.searchsorted(cumulated, wanted))
        if at >= len(self._bounds):
            return float(self._bounds[-1])
        low = float(self._bounds[at - 1]) if at else 0.0
        below = float(cumulated[at - 1]) if at else 0.0
        return low + (float(self._bounds[at]) - low) * (wanted - below) / float(counts[at])

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Give the buckets as Prometheus wants them, cumulated."""
        labels = [self._label] if self._label else []
        family = HistogramMetricFamily(self._name, self._text, labels=labels)
        edges = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        for value, counts in list(self._counts.items()):
            cumulated = map(float, np.cumsum(counts))
            buckets = list(zip(edges, cumulated, strict=True))
            family.add_metric([value] if labels else [], buckets, self._sums[value])
        yield family


class Pulled(Collector):
    """Gauges that are asked for when somebody reads them, and cost nothing before."""

    def __init__(
        self,
        declared: Mapping[str, tuple[str, tuple[str, ...]]],
        ask: Callable[[], Iterable[tuple[str, tuple[str, ...], float]]],
    ) -> None:
        """Gauges by name: (text, labels); ``ask`` gives (name, values of labels, value)."""
        self._declared, self._ask = declared, ask

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give every gauge, those without a sample, too."""
        families = {
            name: GaugeMetricFamily(name, text, labels=labels)
            for name, (text, labels) in self._declared.items()
        }
        for name, values, value in self._ask():
            families[name].add_metric(values, value)
        yield from families.values()
