"""A change is told once, with its cause; what only looks like one is not."""

import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from app.core.drift import distances
from app.core.drift.budget import Budget
from app.core.drift.channels import Terms
from app.core.drift.grid import BINS, Grid
from app.core.drift.monitor import Monitor
from app.core.drift.sample import pack, unpack
from app.core.drift.watch import DAY_MS, HOURS, Block
from app.records import Drift, ModelVersion, Summary
from tests.core.examined import an_example

D, PER_DAY, LOOKED = 6, 12, 32
VERSION = ModelVersion("champion", 0, "0" * 16)
Change = Callable[[float, NDArray[np.float64]], NDArray[np.float64]]
Rows = NDArray[np.float64]


def as_it_was(day: float, rows: Rows) -> Rows:
    """Nothing changes."""
    return rows


def monitor_of(**told: Any) -> Monitor:
    """A monitor of six features and a segment."""
    given = {"names": tuple(f"f{i}" for i in range(D)), "spans_ms": (0,) * D, "segments": ("shop",)}
    return Monitor(Terms(**{**given, **told}))


def summaries(seed: int, days: int, change: Change = as_it_was) -> Iterator[Summary]:
    """Correlated features, with an hour of the day, a weekday, zeros and missing values in them."""
    rng = np.random.default_rng(seed)
    for i in range(days * PER_DAY):
        start = i * DAY_MS // PER_DAY
        times = np.sort(start + rng.integers(0, DAY_MS // PER_DAY, LOOKED))
        rows = rng.normal(size=(LOOKED, D)) + 0.7 * rng.normal(size=(LOOKED, 1))
        rows[:, 0] += np.sin(2.0 * np.pi * times / DAY_MS)
        rows[:, 1] = np.where(rows[:, 1] > 0.5, np.exp(rows[:, 1]), 0.0)
        rows[rng.random(LOOKED) < 0.1, 2] = np.nan
        rows[:, 3] += 0.5 * ((start // DAY_MS + 3) % 7 >= 5)
        rows = change(start / DAY_MS, rows)
        yield Summary(
            partition=i % 3, first_offset=256 * i, last_offset=256 * i + 255, n=256, n_alerts=2,
            mean_score=0.1, bins=[1_000] * 256, n_looked=LOOKED, rows=pack(rows),
            row_ids=[f"t{i}-{k}" for k in range(LOOKED)], row_times_ms=times.tolist(),
            row_segments={"shop": ["web" if k % 4 else "till" for k in range(LOOKED)]},
            first_time_ms=int(times[0]), last_time_ms=int(times[-1]),
        )  # fmt: skip


def heard(monitor: Monitor, stream: Iterator[Summary]) -> list[Drift]:
    """What a monitor says of a stream."""
    return [drift for summary in stream for drift in monitor.on_summary(summary, VERSION)]


def opened(drifts: list[Drift]) -> list[Drift]:
    """The first record of each incident."""
    return [drift for drift in drifts if drift.event == "opened"]


def moved(feature: int, by: float, since: float = 30.0) -> Change:
    """One feature moves by some of its deviations."""

    def change(day: float, rows: Rows) -> Rows:
        if day >= since:
            rows[:, feature] += by
        return rows

    return change


# ---- What is told.


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_change_is_told_once_with_its_cause_and_its_onset(seed):
    """Half a deviation in one of six features: within three days, named first, one incident."""
    drifts = heard(monitor_of(), summaries(seed, 40, moved(4, 0.6)))
    after = [drift for drift in opened(drifts) if drift.detected_ms >= 30 * DAY_MS]
    assert after, f"seed {seed}"
    first = after[0]
    assert not [drift for drift in after[1:] if drift.subject == "f4"], "one incident"
    assert ("feature", "f4", "f4") == (first.kind, first.subject, first.features[0].name)
    assert first.detected_ms < 33 * DAY_MS
    assert 27 * DAY_MS <= first.since_ms <= first.detected_ms
    assert first.after > first.before
    bins = first.features[0].bins
    assert bins is not None
    assert len(bins.edges) + 1 == len(bins.before) == len(bins.after)
    assert 5 == len(first.samples)
    assert "f4" in first.action


def test_incident_is_closed_when_the_new_way_is_the_usual_one():
    """Opened and closed under one name; then all is quiet again."""
    drifts = heard(monitor_of(), summaries(4, 60, moved(4, 1.5)))
    about = [d for d in drifts if d.incident == opened(drifts)[-1].incident]
    assert ("opened", "closed", "adopted") == (about[0].event, about[-1].event, about[-1].ended)


def test_change_that_goes_away_has_returned():
    """Three days of another unit: closed, as it was before."""

    def change(day: float, rows: Rows) -> Rows:
        rows[:, 5] += 2.0 * (30.0 <= day < 33.0)
        return rows

    drifts = heard(monitor_of(), summaries(5, 60, change))
    named = next(d.incident for d in drifts if d.subject == "f5")
    about = [d for d in drifts if d.incident == named]
    assert ("f5", "closed", "returned") == (about[0].subject, about[-1].event, about[-1].ended)


@pytest.mark.parametrize(
    ("name", "change", "aspect"),
    [
        ("stuck", lambda rows: np.full_like(rows, 0.3), "spread"),
        ("missing", lambda rows: np.where(np.arange(len(rows)) % 2 == 0, np.nan, rows), "missing"),
    ],
)
def test_change_is_told_by_its_aspect(name, change, aspect):
    """A stuck value and a missing one have the mean that they had."""

    def changed(day: float, rows: Rows) -> Rows:
        if day >= 30.0:
            rows[:, 4] = change(rows[:, 4])
        return rows

    after = opened(heard(monitor_of(), summaries(6, 40, changed)))[-1]
    assert ("f4", aspect) == (after.subject, after.features[0].aspect)


def test_segment_is_named_where_the_change_is():
    """Only payments at the till change; they are a quarter of all."""

    def change(day: float, rows: Rows) -> Rows:
        if day >= 30.0:
            rows[::4, 4] += 3.0
        return rows

    first = opened(heard(monitor_of(), summaries(7, 40, change)))[-1]
    assert ("shop", "till") == (first.segments[0].segment, first.segments[0].value)
    assert first.segments[0].of_change > 2.0 * first.segments[0].share


def test_hours_without_a_transaction_are_told_once_they_are_over():
    """Each of them speaks, though they are one block; a night that is always quiet says nothing."""
    monitor = monitor_of()
    by_day = [s for s in summaries(6, 44) if s.first_time_ms % DAY_MS >= DAY_MS // 3]
    before = [s for s in by_day if s.first_time_ms < 40 * DAY_MS]
    assert "traffic" not in {drift.kind for drift in opened(heard(monitor, iter(before)))}
    after = [s for s in by_day if s.first_time_ms >= 41 * DAY_MS]
    first = opened(heard(monitor, iter(after)))[0]
    assert ("traffic", "transactions an hour") == (first.kind, first.subject)
    assert first.detected_ms < 41.5 * DAY_MS


# ---- What is not told.


@pytest.mark.parametrize("seed", [11, 12])
def test_budget_of_false_alarms_is_kept(seed):
    """Half a year with hours, weekdays, zeros and gaps in it, and no change."""
    n = len(opened(heard(monitor_of(false_alarms_per_week=0.25), summaries(seed, 180))))
    assert n <= 0.25 * 180 / 7, f"seed {seed}"


def test_window_that_fills_is_no_drift():
    """A feature that looks back 60 days is not believed before; one that is a clock never."""

    def filling(day: float, rows: Rows) -> Rows:
        rows[:, 3] += min(day, 60.0) / 10.0
        rows[:, 4] = day
        return rows

    spans = (0, 0, 0, 60 * DAY_MS, -1, 0)
    drifts = opened(heard(monitor_of(spans_ms=spans), summaries(13, 60, filling)))
    assert not {"f3", "f4"} & {drift.subject for drift in drifts}


def test_smaller_budget_draws_a_higher_line():
    """Whatever the days were like."""
    rng = np.random.default_rng(1)
    days = rng.gumbel(7.0, 1.0, 100)
    lines = []
    for per_week in (0.1, 0.5, 2.0):
        budget = Budget(per_week, 100)
        for day in days:
            budget.note(float(day))
        lines.append(budget.line)
    assert sorted(lines, reverse=True) == lines


# ---- Labels.


def with_labels(change: Callable[[int, dict[str, Any]], None]) -> list[Drift]:
    """50 days with 240 labels each, a fifth frauds; ``change`` sees the day and what is told."""
    monitor, rng, told = monitor_of(spans_ms=(-1,) * D, learning_ms=0), np.random.default_rng(2), []
    for i, summary in enumerate(summaries(2, 50)):
        for k in range(20):
            is_fraud = k % 5 == 0
            score = float(np.clip(rng.normal(0.8 if is_fraud else 0.2, 0.1), 0.01, 0.99))
            given = {
                "time_ms": summary.first_time_ms - int(DAY_MS * rng.lognormal(0.0, 0.5)),
                "score": score, "is_fraud": is_fraud, "label_time_ms": summary.first_time_ms,
            }  # fmt: skip
            change(i // PER_DAY, given)
            above = float(np.clip(1.0 - given["score"], 1e-6, 1.0))
            monitor.on_example(an_example(f"e{i}-{k}", **given), above, VERSION)
        told += monitor.on_summary(summary, VERSION)
    return opened(told)


def test_frauds_that_are_no_longer_found_are_performance_drift():
    """Their scores become those of the legitimate; their ids are told."""

    def change(day: int, given: dict[str, Any]) -> None:
        if day >= 40 and given["is_fraud"]:
            given["score"] = 0.2

    first = with_labels(change)[-1]
    assert ("performance", "critical") == (first.kind, first.severity)
    assert first.detected_ms < 43 * DAY_MS
    assert all(name.startswith("e") for name in first.samples)


def test_frauds_that_look_otherwise_are_told_by_the_feature_that_shows_it():
    """A new pattern: frauds at another hour, scored as before; a fraud has gaps, too."""
    rng = np.random.default_rng(3)

    def change(day: int, given: dict[str, Any]) -> None:
        row = rng.normal(size=D)
        if day >= 40 and given["is_fraud"]:
            row[4] += 2.0
        given["features"] = [None, *row[1:].tolist()]

    first = with_labels(change)[-1]
    assert ("label", "f4 of frauds") == (first.kind, first.subject)
    assert first.features[0].aspect == "profile"
    assert 40 * DAY_MS <= first.detected_ms < 43 * DAY_MS
    assert "f4 of frauds" in first.action


def test_label_by_another_clock_does_not_say_when_the_stream_began():
    """An analyst labels today what was replayed from last year; the replay is watched at once."""
    monitor = monitor_of()
    given = {"time_ms": 0, "label_time_ms": 400 * DAY_MS, "is_fraud": True}
    monitor.on_example(an_example("early", **given), 0.1, VERSION)
    assert opened(heard(monitor, summaries(1, 40, moved(2, 1.5))))


def test_labels_that_come_later_are_label_drift():
    """Three days more, and nothing else."""

    def change(day: int, given: dict[str, Any]) -> None:
        if day >= 40:
            given["time_ms"] -= 3 * DAY_MS

    first = with_labels(change)[-1]
    assert "label" == first.kind
    assert first.subject.startswith("delay of")


# ---- A fold, mergeable and bounded.


@settings(max_examples=20, derandomize=True)
@given(seed=st.integers(0, 2**32), parts=st.integers(1, 5))
def test_blocks_of_partitions_add_up_to_that_of_all(seed, parts):
    """However rows are spread over partitions, and in whatever order those are merged."""
    rng = np.random.default_rng(seed)
    hours, values = rng.integers(0, HOURS, 100), rng.normal(size=(100, 4))
    whole = Block.of(4)
    whole.add(slice(0, 4), hours, values)
    of, merged = rng.integers(0, parts, 100), Block.of(4)
    for part in rng.permutation(parts):
        block = Block.of(4)
        block.add(slice(0, 4), hours[of == part], values[of == part])
        merged.merge(block)
    assert np.array_equal(whole.n, merged.n)
    assert np.allclose(whole.sums, merged.sums)


@settings(max_examples=20, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_histograms_of_parts_add_up(seed):
    """Missing values have a bin of their own."""
    rng = np.random.default_rng(seed)
    rows = np.where(rng.random((200, 3)) < 0.1, np.nan, rng.normal(size=(200, 3)))
    grid, cut = Grid.of(rows), int(rng.integers(0, 200))
    parts = grid.histogram(rows[:cut]) + grid.histogram(rows[cut:])
    assert np.array_equal(grid.histogram(rows), parts)
    assert np.array_equal(np.isnan(rows).sum(axis=0), parts[:, BINS])


def test_monitor_goes_on_where_it_was_restored():
    """Pickled at any point, it says what one says that never stopped, to the last bit."""
    stream = list(summaries(8, 45, moved(4, 1.0)))
    whole, cut = monitor_of(), monitor_of()
    said = heard(whole, iter(stream))
    again = heard(cut, iter(stream[:200]))
    again += heard(pickle.loads(pickle.dumps(cut)), iter(stream[200:]))
    assert said == again


def test_memory_of_the_monitor_is_bounded():
    """Four months take no more than two."""
    monitor, sizes = monitor_of(), []
    for i, summary in enumerate(summaries(9, 120)):
        monitor.on_summary(summary, VERSION)
        if i in {60 * PER_DAY, 120 * PER_DAY - 1}:
            sizes.append(len(pickle.dumps(monitor)))
    assert sizes[1] < 1.35 * sizes[0] < 500_000


@pytest.mark.timeout(20)
def test_one_time_far_away_stops_nothing():
    """A clock that jumps by two hundred thousand years costs what an hour does."""
    monitor, far_ms = monitor_of(), 9 * 10**15 // DAY_MS * DAY_MS
    for n, summary in enumerate(summaries(10, 4)):
        away = far_ms if n >= 2 * PER_DAY else 0
        monitor.on_summary(
            replace(
                summary,
                row_times_ms=[away + time_ms for time_ms in summary.row_times_ms],
                first_time_ms=away + summary.first_time_ms,
                last_time_ms=away + summary.last_time_ms,
            ),
            VERSION,
        )
    assert monitor.clock_ms > far_ms
    assert len(pickle.dumps(monitor)) < 500_000


def test_one_transaction_of_long_ago_makes_no_stream_old():
    """What is told has to be learnt first, however old the first record claims to be."""
    monitor, stream = monitor_of(), summaries(10, 40)
    long_ago = replace(next(stream), first_time_ms=-8_000 * DAY_MS)
    monitor.on_summary(long_ago, VERSION)
    heard(monitor, itertools.islice(stream, 12 * PER_DAY))
    assert not monitor.armed.any()
    heard(monitor, stream)
    assert monitor.armed.any()


@given(value=st.floats(-1e30, 1e30))
def test_packed_rows_keep_eight_bits(value):
    """Within 0.4 %, and zero is zero."""
    got = unpack(pack(np.array([[value]])), 1)[0, 0]
    assert abs(got - value) <= abs(value) / 256.0 + 1e-37


@settings(max_examples=50, derandomize=True)
@given(counts=st.lists(st.integers(0, 1_000), min_size=2, max_size=10))
def test_distances_are_zero_between_equals_and_positive_else(counts):
    """PSI, Jensen-Shannon, Kolmogorov-Smirnov, Wasserstein."""
    was = np.array(counts, np.float64)
    now, middles = was[::-1], np.arange(len(was), dtype=np.float64)
    for distance in (distances.psi, distances.jensen_shannon, distances.kolmogorov_smirnov):
        assert 0.0 == pytest.approx(float(distance(was, was)), abs=1e-6)
        assert 0.0 <= float(distance(was, now)) == pytest.approx(float(distance(now, was)))
    assert 0.0 == distances.wasserstein(was, was, middles)
    # Cumulated from the left, what moves is what moves from the right.
    assert distances.wasserstein(was, now, middles) == pytest.approx(
        distances.wasserstein(now, was, middles)
    )
