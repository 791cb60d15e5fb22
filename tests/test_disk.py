"""Entities on disk are the entities that they were: nothing tells a store with a disk apart."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.core.buckets import BucketValue
from app.core.entity import EntityStore
from app.core.slots import Row
from app.core.windows import WindowPlan
from app.disk import Disk
from tests.core.test_entity import WINDOWS, One, batches, compacted, feed, history, marks

ROOM = 16  # entities in memory, of 60
DAY = 86_400_000


@pytest.fixture(name="disk")
def _disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "entities", 1_048_576)


def store_of(disk: Disk | None, **bounds: Any) -> EntityStore:
    """A store of every statistic with small rings, with a disk or with room for all."""
    cold = None if disk is None else disk.open("cards-0")
    room = {"entities_max": 1_000 if disk is None else ROOM}
    made = {"history_max": 16, "bucket_ms": DAY, "buckets_max": 8, "upstreams": 2, **room, **bounds}
    return EntityStore(WindowPlan.of(WINDOWS), cold=cold, **made)


def known(store: EntityStore, keys: set[str]) -> dict[str, Any]:
    """What is known of entities, wherever they are."""
    return {key: (store.history(key), store.buckets(key)) for key in sorted(keys)}


def taken(store: EntityStore, ones: list[One], seed: int, log: list[Row]) -> list[bytes]:
    """Features and status of a history in batches, with labels between; rows go to ``log``."""
    results, rng = [], random.Random(seed)
    for batch in batches(ones, seed):
        columns, status = feed(store, batch)
        results += [columns.tobytes(), status.tobytes()]
        log += store.changes()
        late = rng.sample(ones, 3)  # most of these are on the disk, or not there yet
        for key, id_, is_fraud in marks(batch + late, rng.randrange(1_000)):
            one = next(o for o in ones if o.id == id_)
            source = (one.upstream, one.offset)
            store.mark(key, id_, is_fraud=is_fraud, source=source, time_ms=one.time_ms)
        log += store.changes()
    return results


@pytest.mark.parametrize("seed", range(4))
def test_store_with_a_disk_gives_the_same_to_the_bit(disk, seed):
    """Rings, buckets, labels, guards: they come back whole, however often they have left."""
    ones, log = history(seed, 600, n_keys=60, upstreams=2, twice=0.05), list[Row]()
    store, plain = store_of(disk), store_of(None)
    assert taken(plain, ones, seed, []) == taken(store, ones, seed, log)
    keys = {one.key for one in ones}
    assert known(plain, keys) == known(store, keys)
    assert len(store) <= ROOM
    assert (len(plain), 0) == (len(store) + store.n_cold, store.n_evicted)
    assert any(isinstance(value, BucketValue) for _, value in log), "no ring overflowed"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("compact", [False, True])
def test_store_with_a_disk_is_restored_with_bounded_memory(disk, seed, compact):
    """Another process fills an empty folder from the changelog and goes on as if nothing was."""
    ones, log = history(seed, 600, n_keys=60, upstreams=2), list[Row]()
    store, plain, again = store_of(disk), store_of(None), store_of(disk)
    taken(store, ones[:450], seed, log)
    rows = compacted(log) if compact else log
    plain.restore(rows)
    for row in rows:
        again.restore([row])
        assert len(again) <= ROOM
    ends = [taken(s, ones[400:], seed, []) for s in (plain, again)]  # some of them are replays
    assert ends[0] == ends[1]
    keys = {one.key for one in ones}
    assert known(plain, keys) == known(again, keys)


def test_entity_that_was_let_go_in_the_changelog_is_gone_from_the_disk(disk):
    """A changelog of before there was a disk holds tombstones."""
    store = store_of(disk)
    rows: list[Row] = []
    for i in range(3 * ROOM):
        feed(store, [One(f"k{i}", f"t{i}", 1_000 + i, 1.0, "o", 0, i)])
        rows += store.changes()
    again = store_of(disk)
    again.restore([*rows, (("k0", 0), None)])
    assert ([], 3 * ROOM - 1) == (again.history("k0"), len(again) + again.n_cold)


def test_folder_of_a_process_that_ended_is_removed_and_none_in_use(tmp_path):
    """What lies there is of no use to another process."""
    first = Disk(tmp_path, 1_048_576)
    gone, used = first.open("cards-0"), first.open("cards-1")
    gone.put_many([("a", b"1")])
    gone._database.close()  # as a process that dies leaves it: unlocked, with its files
    used.put_many([("b", b"2")])
    assert 2 == len(list(tmp_path.iterdir()))
    Disk(tmp_path, 1_048_576)
    assert [b"2"] == used.get_many(["b"])
    assert 1 == len([path for path in tmp_path.iterdir() if (path / "CURRENT").exists()])


def test_place_on_disk_goes_with_its_store(tmp_path):
    """A task that is dropped at a rebalance leaves nothing behind."""
    shelf = Disk(tmp_path, 1_048_576).open("cards-0")
    shelf.put_many([("a", np.arange(3).tobytes())])
    assert [np.arange(3).tobytes(), None] == shelf.get_many(["a", "b"])
    del shelf
    assert [] == [path for path in tmp_path.iterdir() if (path / "CURRENT").exists()]
