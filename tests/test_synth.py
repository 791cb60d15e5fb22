"""The simulator: equal worlds give equal streams, and what is declared is what comes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.synth import (
    CARD_FIELDS,
    DAY_MS,
    HOUR_MS,
    PATTERNS,
    SCENARIOS,
    START_MS,
    Day,
    Delays,
    Item,
    Labels,
    Transactions,
    World,
    items,
    rows,
    simulate,
    spoilt,
)

MOMENT_MS = START_MS + 4 * DAY_MS + 7 * HOUR_MS

worlds = st.builds(
    World,
    scenario=st.sampled_from(SCENARIOS),
    seed=st.integers(0, 2**32),
    per_day=st.floats(50.0, 2_000.0),
    moment_ms=st.integers(START_MS, START_MS + 5 * DAY_MS),
    terminals_side=st.integers(1, 30),
)


def drawn(world: World, n_days: int) -> list[Day]:
    """The first days of a world."""
    return list(islice(simulate(world), n_days))


def joined(days: list[Day]) -> tuple[Transactions, Labels]:
    """Days as one."""
    paid = Transactions(*map(np.concatenate, zip(*(d.transactions for d in days), strict=True)))
    known = Labels(*map(np.concatenate, zip(*(d.labels for d in days), strict=True)))
    return paid, known


def stream(days: list[Day]) -> list[Item]:
    """The items of some days."""
    return [item for day in days for item in items(day)]


@given(worlds)
@settings(max_examples=20)
def test_equal_worlds_give_equal_streams(world: World):
    """A world drawn twice is the same, item by item."""
    assert stream(drawn(world, 3)) == stream(drawn(world, 3))


@given(worlds)
@settings(max_examples=20)
def test_a_stream_is_sorted_by_event_time(world: World):
    """No item is older than the one before it, and at one time labels go first."""
    order = [(item.time_ms, item.kind == "transaction") for item in stream(drawn(world, 4))]
    assert order == sorted(order)


@given(worlds)
@settings(max_examples=20)
def test_ids_are_unique_and_every_label_refers_to_an_earlier_transaction(world: World):
    """A label comes after its transaction, and no two transactions share an id."""
    seen: set[str] = set()
    for item in stream(drawn(world, 4)):
        assert isinstance(item.value, dict)
        name = item.value["transaction_id"]
        if item.kind == "label":
            assert name in seen
        else:
            assert name not in seen
            seen.add(name)


@given(worlds)
@settings(max_examples=20)
def test_amounts_are_cents_within_bounds(world: World):
    """Amounts are finite, positive, and have two digits."""
    paid, _ = joined(drawn(world, 3))
    assert ((paid.amounts >= 0.01) & (paid.amounts <= 10_000.0)).all()
    assert np.round(paid.amounts, 2).tolist() == paid.amounts.tolist()


def test_another_seed_gives_another_stream():
    """Worlds that differ in nothing but the seed have no id and no amount in common order."""
    one, other = (joined(drawn(World(seed=seed), 1))[0] for seed in (1, 2))
    assert one.amounts[:50].tolist() != other.amounts[:50].tolist()
    assert World(seed=1).run != World(seed=2).run


@pytest.mark.parametrize("median_ms", [HOUR_MS, DAY_MS])
def test_delays_are_as_declared(median_ms: int):
    """Of the first labels, half come within the median and 5 % after its 95th percentile."""
    world = World(seed=5, delays=Delays(median_ms, 0.5, 1, 30 * DAY_MS), duplicated=0.0)
    days = drawn(replace(world, corrected_frauds=0.0, corrected_legitimate=0.0), 12)
    paid, known = joined(days)
    delays = known.times_ms - paid.times_ms[known.ids]
    is_old = paid.times_ms[known.ids] < START_MS + 4 * DAY_MS  # whose labels have all come
    late = median_ms * np.exp(0.5 * 1.6449)
    assert np.mean(delays[is_old] <= median_ms) == pytest.approx(0.5, abs=0.01)
    assert np.mean(delays[is_old] > late) == pytest.approx(0.05, abs=0.01)


def test_delays_are_cut_at_both_ends():
    """No label comes sooner than the minimum, or later than the maximum."""
    delays = Delays(HOUR_MS, 3.0, 60_000, 2 * HOUR_MS).draw(np.random.default_rng(3), 10_000)
    assert (60_000, 2 * HOUR_MS) == (delays.min(), delays.max())


def test_labels_are_missing_duplicate_and_corrected_as_declared():
    """Shares of labels that never come, come twice, or are corrected are those of the world."""
    world = World(seed=9, delays=Delays(HOUR_MS, 0.3), duplicated=0.02, corrected_frauds=0.1)
    days = drawn(world, 12)
    paid, known = joined(days)
    old = paid.ids[paid.times_ms < START_MS + 10 * DAY_MS]
    n_labels = np.bincount(known.ids, minlength=len(paid.ids))[old]
    is_fraud = paid.is_fraud[old]
    assert np.mean(n_labels[~is_fraud] == 0) == pytest.approx(world.missing_legitimate, abs=0.01)
    assert np.mean(n_labels[is_fraud] == 0) == pytest.approx(world.missing_frauds, abs=0.02)
    assert np.mean(n_labels[~is_fraud] == 2) == pytest.approx(0.02 * 0.9, abs=0.005)
    said = Counter(zip(known.ids.tolist(), known.is_fraud.tolist(), strict=True))
    both = [i for i in old[is_fraud].tolist() if said[i, True] and said[i, False]]
    assert len(both) / is_fraud.sum() == pytest.approx(0.1 * 0.95, abs=0.03)


def test_the_last_label_tells_the_truth():
    """Whatever was said before, a correction says what happened."""
    paid, known = joined(drawn(World(seed=4, delays=Delays(HOUR_MS, 0.3), duplicated=0.0), 8))
    last = dict(zip(known.ids.tolist(), known.is_fraud.tolist(), strict=True))
    truth = paid.is_fraud
    old = paid.ids[paid.times_ms < START_MS + 6 * DAY_MS].tolist()
    assert all(last[i] == truth[i] for i in old if i in last)


def test_every_pattern_shows_what_gives_it_away():
    """Large frauds are large, tests are tiny, stolen cards pay in bursts, terminals recur."""
    paid, _ = joined(drawn(World(seed=6), 10))
    of = {name: paid.take(paid.patterns == i) for i, name in enumerate(PATTERNS)}
    assert np.median(of["large"].amounts) > 4 * np.median(of["none"].amounts)
    assert of["testing"].amounts.max() <= 2.0
    bursts = Counter(of["stolen"].cards.tolist())
    assert np.median(list(bursts.values())) >= 4
    copied = Counter(of["terminal"].terminals.tolist())
    assert len(copied) < 24 * 24 / 20
    assert 0.002 < paid.is_fraud.mean() < 0.05


def test_drift_raises_amounts_and_changes_the_frauds():
    """After the moment everyone pays more, and large frauds are rare."""
    paid, _ = joined(drawn(World("drift", seed=8, moment_ms=MOMENT_MS), 8))
    is_after = paid.times_ms >= MOMENT_MS
    usual = paid.patterns == PATTERNS.index("none")
    rise = np.median(paid.amounts[usual & is_after]) / np.median(paid.amounts[usual & ~is_after])
    assert rise == pytest.approx(1.8, rel=0.03)
    is_large = paid.patterns == PATTERNS.index("large")
    assert is_large[is_after].mean() < is_large[~is_after].mean() / 5
    is_testing = paid.patterns == PATTERNS.index("testing")
    assert is_testing[is_after].mean() > 1.5 * is_testing[~is_after].mean()


def test_an_attack_lasts_two_days():
    """Bursts are ten times as many for two days, and as before afterwards."""
    paid, _ = joined(drawn(World("attack", seed=8, moment_ms=START_MS + 3 * DAY_MS), 8))
    is_burst = paid.patterns >= PATTERNS.index("stolen")
    a_day = np.bincount((paid.times_ms[is_burst] - START_MS) // DAY_MS, minlength=8)
    assert a_day[3:5].min() > 4 * a_day[[0, 1, 2, 5, 6, 7]].max()


def test_after_an_outage_held_labels_come_at_once():
    """For eighteen hours there is nothing; then more labels in ten minutes than in any hour."""
    paid, known = joined(drawn(World("outage", seed=8, moment_ms=MOMENT_MS), 8))
    over = MOMENT_MS + 18 * HOUR_MS
    for times in (paid.times_ms, known.times_ms):
        assert not ((times >= MOMENT_MS) & (times < over)).any()
    n_burst = int(((known.times_ms >= over) & (known.times_ms < over + 600_000)).sum())
    before = known.times_ms[known.times_ms < MOMENT_MS]
    assert n_burst > 5 * np.bincount((before - START_MS) // HOUR_MS).max()


def test_steady_knows_no_moment():
    """The moment changes nothing where the scenario is steady, but for the world's name."""
    one, other = (
        joined(drawn(World("steady", seed=2, per_day=500.0, moment_ms=moment), 3))[0]
        for moment in (START_MS, MOMENT_MS)
    )
    assert [c.tolist() for c in one] == [c.tolist() for c in other]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"scenario": "calm"}, "scenario"),
        ({"per_day": 0.0}, "a day"),
        ({"n_cards": 0}, "cards"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_world_that_cannot_be_is_refused(wrong: dict[str, object], named: str):
    """The message names what cannot be."""
    with pytest.raises(ValueError, match=named):
        World(**wrong)  # type: ignore[arg-type]


def test_rows_end_where_they_are_told():
    """A table holds n transactions, or those before a moment, with the truth."""
    world = World(seed=3, per_day=300.0)
    paid, _ = joined(drawn(world, 5))
    table = rows(simulate(world), n=1_000)
    assert paid.is_fraud[:1_000].tolist() == table["is_fraud"]
    until_ms = START_MS + DAY_MS + HOUR_MS
    expected = int((paid.times_ms < until_ms).sum())
    assert expected == len(rows(simulate(world), until_ms=until_ms)["amount"])
    with pytest.raises(ValueError, match="expected one of them"):
        rows(simulate(world))


@pytest.mark.parametrize("number", range(5))
def test_a_spoilt_transaction_differs_and_has_an_id_of_its_own(number: int):
    """Whatever is broken about it, it never takes the place of a good one."""
    good = next(item for item in items(drawn(World(seed=1), 1)[0]))
    bad = spoilt(good, number)
    assert isinstance(good.value, dict)
    assert bad.value != good.value
    assert good.key == bad.key
    if isinstance(bad.value, dict):
        assert good.value[CARD_FIELDS.id] != bad.value[CARD_FIELDS.id]
