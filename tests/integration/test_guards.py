"""What Faust and aiokafka would do, on Apache Kafka: each law with its guard, and without it.

Every test runs twice or more. All runs but the first take a guard away and assert that the law is
then broken: so it is the guard that keeps it, and the history that tests it is fit to tell.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
import urllib.request
from collections import Counter
from typing import Any

import faust
import pytest
from aiokafka.admin import NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import TopicPartition

from app.admin import Admin
from tests.integration.harness import Process, TooLate, World, free_port, transactions, until
from tests.integration.laws import (
    all_committed,
    card_counts,
    commits,
    counts,
    flat,
    guarded_or_not,
    ids,
    right_counts,
    seen,
    told,
    unscored,
    wrong,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@guarded_or_not("errors_are_skipped")
async def test_law_1_error_in_a_batch_skips_no_transaction(make_world, without):
    """Whatever raises, the process ends before it commits; the next one scores the batch."""
    world = make_world()
    await world.create_topics()
    some = transactions(60, seed=61)
    await world.transact(some)
    worker = world.start(without=told(without, "error_in_a_batch"))
    if not without:
        assert 0 != await worker.ended()
    else:
        await worker.ready()
        await all_committed(world, world.topics.transactions)
        worker.kill()
    worker = await world.start().ready()
    missing = await unscored(world, some)
    assert bool(without) == ("t17" in missing), f"{len(missing)} unscored"
    seen(f"unscored: {len(missing)} of 60")


@guarded_or_not("lost_offsets_are_reset")
async def test_law_1_records_that_are_gone_are_not_passed_over_in_silence(make_world, without):
    """An offset that is gone is told, and nothing is committed beyond it."""
    world = make_world()
    await world.create_topics()
    worker = await world.start().ready()
    some, spec = transactions(120, seed=67), world.topics.transactions
    await world.transact(some[:40])
    await world.scored(ids(some[:40]))
    assert 0 == await worker.stop()
    before = await world.committed(spec)
    await world.transact(some[40:])
    firsts = {TopicPartition(spec.name, p): n + 5 for p, n in before.items()}
    async with Admin(world.settings) as admin:
        gone = {at: RecordsToDelete(before_offset=n) for at, n in firsts.items()}
        await admin._client.delete_records(gone)
    worker = world.start(without=told(without))
    if not without:
        assert 0 != await worker.ended()
        assert flat(worker.said).count("retention has deleted 5 records unread") >= 2
        assert before == await world.committed(spec)
        seen("it ends, and says how many are gone of which partition")
        return
    await worker.ready()
    missing = await unscored(world, some)
    await commits(world, spec, 120)
    assert "deleted" not in worker.said
    seen(f"unscored, and nothing is said of it: {len(missing)} of 120")
    assert 10 == len(missing)


@guarded_or_not("stops_are_waited_for")
async def test_law_1_stop_that_hangs_keeps_no_transaction_from_its_score(make_world, without):
    """Whoever is asked to stop and hangs is ended: its successor scores what it held."""
    world = make_world(worker={"delivery_timeout": "1s"})
    await world.create_topics()
    worker = world.start(without=told(without, "delivery_hangs", "stop_is_short"))
    some = transactions(50, seed=68)
    await world.transact(some)
    await until(lambda: "scores are held" in worker.said, "nothing is on its way")
    began_s = time.monotonic()
    if without:  # four times its limit, and longer than its session
        with pytest.raises(TooLate):
            await worker.stop(deadline_s=8.0)
        assert "Stable" == await _group_state(world), "its partitions are free for another"
        assert [] == await world.read(world.topics.scores)
        seen(f"still a member after {time.monotonic() - began_s:.1f} s; unscored: 50 of 50")
        return
    assert 1 == await worker.stop(deadline_s=30.0)
    took_s = time.monotonic() - began_s
    assert "stop_hangs" in worker.said
    worker = await world.start().ready()
    missing = await unscored(world, some)
    seen(f"ended after {took_s:.1f} s; unscored: {len(missing)} of 50")
    assert set() == missing


@guarded_or_not("rejected_batches_are_forgotten")
async def test_law_3_rejected_batch_is_not_committed(make_world, without):
    """A batch that the broker rejects leaves its offsets where they were."""
    world = make_world(worker={"delivery_timeout": "2s"})
    await _limit(world, 200)
    await world.create_topics()
    some = transactions(50, seed=62)
    await world.transact(some)
    worker = world.start(without=told(without))
    if not without:
        assert 0 != await worker.ended()
    else:
        await until(lambda: "forgotten" in worker.said, "nothing was rejected")
        await all_committed(world, world.topics.transactions)
        assert 0 == await worker.stop()
    await _limit(world, 1_048_576)
    worker = await world.start().ready()
    missing = await unscored(world, some)
    seen(f"unscored: {len(missing)} of 50")
    assert bool(without) == bool(missing)


async def _group_state(world: World) -> str:
    """What the coordinator says of the group: "Stable" while it has its members."""
    async with Admin(world.settings) as admin:
        answers = await admin._client.describe_consumer_groups([world.settings.worker.group])
        return str(answers[0].groups[0][2])


async def _limit(world: World, n_bytes: int) -> None:
    """Let the topic of scores take records of so many bytes."""
    spec = world.topics.scores
    config = {**spec.config, "max.message.bytes": str(n_bytes)}
    async with Admin(world.settings) as admin:
        client = admin._client
        if spec.name in await client.list_topics():
            kind = ConfigResourceType.TOPIC
            await client.alter_configs([ConfigResource(kind, spec.name, configs=config)])
        else:
            await client.create_topics([NewTopic(spec.name, spec.partitions, 1, None, config)])


@guarded_or_not("commit_before_delivery")
async def test_law_3_commit_does_not_pass_what_is_in_work(make_world, without):
    """Killed while scores are on their way: they are given again."""
    world = make_world()
    await world.create_topics()
    worker = await world.start(without=told(without, "delivery_hangs")).ready()
    some = transactions(50, seed=63)
    await world.transact(some)
    hop = world.topics.hops["terminal_id"]
    await world.collect(hop, bool, "nothing is on its way")
    if without:
        await commits(world, hop, 1)
    else:
        await asyncio.sleep(1.0)  # a commit would have come by now: ten times the interval
    worker.kill()
    worker = await world.start().ready()
    missing = await unscored(world, some)
    seen(f"unscored: {len(missing)} of 50")
    assert bool(without) == bool(missing)


@guarded_or_not("topics_are_not_verified")
async def test_law_3_nothing_is_committed_on_fewer_copies_than_declared(make_world, without):
    """Topics as Faust makes them have one replica: a worker that needs three does not start."""
    world = make_world(topics={"replication": 3})
    fausts = faust.App(world.settings.worker.group, broker=f"kafka://{world.bootstrap}")
    for spec in world.topics:
        await fausts.topic(spec.name, partitions=spec.partitions, config=spec.config).declare()
    await fausts.producer.stop()
    some = transactions(60, seed=69)
    await world.transact(some)
    worker = world.start(without=told(without))
    if not without:
        assert 2 == await worker.ended()
        assert flat(worker.said).count("has 1 replicas; expected 3") == len(list(world.topics))
        assert {-1} == set((await world.committed(world.topics.transactions)).values())
        seen("committed: 0 of 60")
        return
    await worker.ready()
    await world.scored(ids(some))
    await all_committed(world, world.topics.transactions)
    seen("committed, with scores on one copy of three: 60 of 60")


@guarded_or_not("offset_guard_off")
async def test_law_4_record_is_applied_once_though_it_is_read_twice(make_world, without):
    """Killed before its commit: the state is durable, the offset is not."""
    world = make_world(worker={"commit_interval": "1h"})
    await world.create_topics()
    worker = await world.start(without=told(without)).ready()
    some = transactions(300, seed=64)
    await world.transact(some[:10])
    await world.scored(ids(some[:10]))  # with its first batch a worker commits at once
    await world.transact(some[10:200])
    await world.scored(ids(some[:200]))
    worker.kill()
    worker = await world.start(without=told(without)).ready()
    await world.transact(some[200:])
    found = counts(world, await world.scored(ids(some)))
    expected = right_counts(some)
    n = wrong(found, {name: expected[name] for name in ids(some[200:])})
    letters = len(await world.read(world.topics.dead_letters))
    seen(f"wrong counts: {n} of 100; valid transactions among the dead letters: {letters}")
    assert 0 == n, "their ids tell those apart that are still in the ring"
    assert bool(without) == bool(letters)


@guarded_or_not("state_not_restored")
async def test_law_5_nothing_is_scored_before_its_state_is_restored(make_world, without):
    """After a restart every count goes on where it stood."""
    world = make_world()
    await world.create_topics()
    worker = await world.start().ready()
    some = transactions(300, seed=65)
    await world.transact(some[:200])
    await world.scored(ids(some[:200]))
    assert 0 == await worker.stop()
    worker = await world.start(without=told(without)).ready()
    await world.transact(some[200:])
    found = counts(world, await world.scored(ids(some)))
    expected = right_counts(some)
    n = wrong(found, {name: expected[name] for name in ids(some[200:])})
    seen(f"wrong counts: {n} of 100")
    assert bool(without) == bool(n)


@guarded_or_not("old_restores_go_on")
async def test_law_5_restore_that_a_rebalance_overtakes_lets_nothing_be_scored(make_world, without):
    """A second worker joins while the first restores; what is scored then has its state."""
    world = make_world()
    await world.create_topics()
    worker = await world.start().ready()
    some = transactions(300, seed=72)
    await world.transact(some[:200])
    await world.scored(ids(some[:200]))
    assert 0 == await worker.stop()
    await world.commit_begun(world.topics)  # as with what has run for long: nothing is waited for
    worker = world.start(without=told(without, "restore_ends_in_a_rebalance"))
    await until(lambda: "the restore is held" in worker.said, "it does not restore")
    world.start()
    await until(lambda: "the next one is late" in worker.said, "the group does not move")
    await world.transact(some[200:])
    found = counts(world, await world.scored(ids(some)))
    expected = right_counts(some)
    n = wrong(found, {name: expected[name] for name in ids(some[200:])})
    seen(f"wrong counts: {n} of 100")
    assert bool(without) == bool(n)


def ask(url: str, value: Any = None) -> tuple[int, Any]:
    """HTTP status and body of a page, or of a POST; (0, None) where nobody answers."""
    told = None if value is None else json.dumps(value).encode()
    asked = urllib.request.Request(url, told, {"content-type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310 - it is ours
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, None


@guarded_or_not("faust_serves_its_pages", "pages_do_not_wait")
async def test_law_5_no_page_answers_from_state_before_it_is_restored(make_world, without):
    """Not to this machine, and to others not at all."""
    world = make_world()
    await world.create_topics()
    worker = await world.start().ready()
    some = transactions(200, seed=70)
    await world.transact(some[:180])
    await world.scored(ids(some[:180]))
    assert 0 == await worker.stop()
    fausts = free_port()
    worker = world.start(without=told(without, "restore_hangs"), WEB_PORT=str(fausts))
    await until(lambda: "nothing is restored" in worker.said, "it was given no state to restore")
    await until(lambda: worker.get("/readyz")[0] == 503, "it does not say that it waits")

    # All of 127/8 is this machine; who listens at 127.0.0.2 unasked listens everywhere.
    doors = [f"http://127.0.0.2:{port}" for port in (worker.port, fausts)]
    pages = ("/table/", "/router/", "/graph/", "/stats/", "/readyz")
    found = [page for page in pages for door in doors if ask(f"{door}{page}")[0]]
    n = _misjudged(world, worker, some)
    seen(f"open to everybody: {' '.join(found) or 'nothing'}; decided on no state: {n} of 20")
    assert ("faust_serves_its_pages" == without) == bool(found)
    assert ("pages_do_not_wait" == without) == bool(n)


def _misjudged(world: World, worker: Process, some: list[dict[str, Any]]) -> int:
    """Of the last 20, how many are decided with a wrong count, when asked for over HTTP."""
    url = f"http://127.0.0.1:{worker.port}/v1/score/batch"
    status, body = ask(url, {"transactions": some[180:]})
    assert 200 == status, body
    items = json.loads(body)["items"]
    assert {503} >= {item["problem"]["status"] for item in items if item.get("problem")}
    decisions = [item["decision"] for item in items if item.get("decision")]
    _, name = card_counts(world)
    before = Counter(t["card_id"] for t in some[:180])
    card = {t["transaction_id"]: t["card_id"] for t in some}
    return sum(d["features"][name] != before[card[d["transaction_id"]]] + 1 for d in decisions)


@guarded_or_not("lease_off")
async def test_law_6_worker_that_lost_its_partitions_writes_nothing_more(make_world, without):
    """Stopped with a batch in hand for longer than its session, then woken up."""
    world = make_world()
    await world.create_topics()
    sleeper = await world.start(without=told(without, "deliveries_lag")).ready()
    some = transactions(200, seed=66)
    await world.transact(some)
    await until(lambda: sleeper.metric("weir_transactions_scored_total") > 0, "it scores nothing")
    sleeper.popen.send_signal(signal.SIGSTOP)
    heir = await world.start().ready()
    await world.scored(ids(some))
    await all_committed(world, world.topics.hops["terminal_id"])  # the heir writes no more
    before = len(await world.read(world.topics.scores))
    sleeper.popen.send_signal(signal.SIGCONT)
    if without:
        await world.collect(world.topics.scores, lambda found: len(found) > before, "none is stale")
    else:
        assert 0 != await sleeper.ended()
        assert "no heartbeat was answered" in sleeper.said
    stale = len(await world.read(world.topics.scores)) - before
    seen(f"stale writes: {stale}")
    assert bool(without) == bool(stale)
    assert 0 == await heir.stop()


@guarded_or_not("bad_input_vanishes")
async def test_law_7_what_cannot_be_read_changes_nothing_and_is_told(make_world, without):
    """Raw, each of them; and what can be read is scored as if they had not been there."""
    world = make_world()
    await world.create_topics()
    await world.start(without=told(without)).ready()
    some, spec = transactions(60, seed=71), world.topics.transactions
    bad: list[tuple[bytes | None, bytes | None]] = [
        (b"c1", b"{"),
        (None, b"{}"),
        (b"c1", b'{"amount":1e308}'),
        (b"c1", b"\xff"),
        (b"c1", None),
    ]
    await world.transact(some[:30])
    await world.publish(spec, bad)
    await world.transact(some[30:])
    found = counts(world, await world.scored(ids(some)))
    await all_committed(world, spec)
    letters = [record.value for record in await world.read(world.topics.dead_letters)]
    lost = Counter(value for _, value in bad) - Counter(letters)
    seen(f"committed, and nowhere to be found: {lost.total()} of 5")
    assert 0 == wrong(found, right_counts(some))
    assert (5 if without else 0) == lost.total()
