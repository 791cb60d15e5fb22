"""What should move and does not is told, and nothing else."""

from typing import Any

import pytest

from app.records import Partition
from app.watch import STILL_S, Seen, Watch

AT = Partition("transactions", 1)
WELL = Seen(
    ends={AT: 10}, fetched={AT: 10}, is_committed=True, committed_s=1.0, examples_end=5, learned=5,
    model=5, snapshots_end=3, snapshots_taken=3,
)  # fmt: skip
LATE_S = STILL_S + 1.0


def looked(*moments: tuple[float, dict[str, Any]]) -> tuple[set[str], set[str]]:
    """The reasons after the last of some looks: (seconds, what is not well then)."""
    watch = Watch()
    alarms: dict[str, str] = {}
    concerns: dict[str, str] = {}
    for now_s, change in moments:
        alarms, concerns = watch.look(WELL._replace(**change), now_s)
    return set(alarms), set(concerns)


#: What is seen | reasons that a restart mends | reasons that it does not.
STILL = [
    ({}, set(), set()),
    ({"fetched": {AT: 9}}, {"frozen"}, set()),
    ({"fetched": {}}, set(), set()),  # no position is known yet
    ({"fetched": {AT: 11}}, set(), set()),  # a broker whose ends are stale
    ({"is_committed": False}, {"commit"}, set()),
    ({"learned": 4}, set(), {"learner"}),
    ({"model": 4}, set(), set()),  # the next snapshot is not due yet
    ({"model": 4, "snapshots_taken": 2}, set(), {"stale"}),
    ({"model": 4, "snapshot_refused": "of another key"}, set(), {"stale"}),
    ({"snapshot_refused": "somebody else wrote it"}, set(), set()),  # nothing is missing
]


@pytest.mark.parametrize(("seen", "alarms", "concerns"), STILL)
def test_what_stands_still_is_told(seen, alarms, concerns):
    """After 20 s, not before."""
    assert (set(), set()) == looked((0.0, seen), (STILL_S - 1.0, seen))
    assert (alarms, concerns) == looked((0.0, seen), (10.0, seen), (LATE_S, seen))


MOVING = [
    ({"ends": {AT: 99}, "fetched": {AT: 9}}, {"ends": {AT: 99}, "fetched": {AT: 10}}),
    ({"is_committed": False}, {"is_committed": False, "committed_s": 2.0}),
    ({"learned": 1}, {"learned": 2}),
    ({"model": 1, "snapshots_taken": 1}, {"model": 2, "snapshots_taken": 2}),
]


@pytest.mark.parametrize(("before", "after"), MOVING)
def test_what_is_behind_and_moves_is_well(before, after):
    """A backlog is no standstill."""
    assert (set(), set()) == looked((0.0, before), (LATE_S, after))


def test_idle_is_well():
    """What has nothing to do may stand still, and has its time once something comes."""
    waits = {"ends": {AT: 11}}
    assert (set(), set()) == looked((0.0, {}), (1_000.0, {}), (1_001.0, waits))
    assert {"frozen"} == looked((0.0, {}), (1_000.0, waits), (1_000.0 + LATE_S, waits))[0]


def test_refused_snapshots_do_not_restart_the_clock():
    """A learner of another key goes on writing: that moves nothing here."""
    refused = {"model": 4, "snapshot_refused": "of another key"}
    moments = [(at, {**refused, "snapshots_taken": n}) for n, at in enumerate((0.0, 9.0, LATE_S))]
    assert {"stale"} == looked(*moments)[1]


def test_seldom_commits_have_their_time():
    """Where offsets are committed every minute, a minute is no standstill."""
    watch, seen = Watch(commit_s=60.0), WELL._replace(is_committed=False)
    watch.look(seen, 0.0)
    assert {} == watch.look(seen, 60.0 + STILL_S)[0]
    assert {"commit"} == set(watch.look(seen, 61.0 + STILL_S)[0])
