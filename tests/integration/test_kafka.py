"""weir on Apache Kafka: the flow from end to end, and what it does when things break."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from app import codec
from app.admin import Admin
from app.config import WindowFeature
from app.core.features import FeaturePlan
from app.core.scoring import Batch
from app.errors import Fenced, Undelivered
from app.flow import Lease
from app.kafka import Sender
from app.records import Record, Send
from app.shelf import newest
from app.topics import TopicSpec
from tests.core.reference import Reference, Seen
from tests.integration.harness import Process, World, free_port, labels_of, transactions, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def ids(some: list[dict[str, Any]]) -> list[str]:
    """The ids of some transactions."""
    return [t["transaction_id"] for t in some]


def firsts(scores: list[Any]) -> dict[str, Any]:
    """The canonical score of each id: the first in its partition."""
    found: dict[str, Any] = {}
    for score in scores:
        found.setdefault(score["transaction_id"], score)
    return found


#: Statistics that labels have no part in: how far they had come when a transaction was scored
#: is not written anywhere.
UNLABELLED = {"count", "sum", "mean", "max", "std", "ratio", "zscore", "since_last", "distinct"}


def windows_of(world: World, entity: str) -> tuple[list[int], list[tuple[str, int, int, float]]]:
    """Columns and windows of an entity that labels have no part in."""
    columns: list[int] = []
    windows: list[tuple[str, int, int, float]] = []
    at = 0
    for feature in world.settings.features:
        names = FeaturePlan.of([feature], world.settings.transaction.entities).names
        start, at = at, at + len(names)
        if not isinstance(feature, WindowFeature) or feature.entity != entity:
            continue
        if feature.stat in UNLABELLED:
            columns += range(start, at)
            windows += [(feature.stat, w, feature.delay, 0.0) for w in feature.windows]
    return columns, windows


async def stage_input(world: World, stage: int) -> list[tuple[int, Batch]]:
    """What a stage could read, by partition, in the order in which it did."""
    entities = world.settings.transaction.entities
    plan = FeaturePlan.of(world.settings.features, entities)
    reader = codec.TransactionReader(world.settings.transaction, plan)
    by_partition: dict[int, list[Record]] = {}
    for r in await world.read(world.topics.stage_input(entities, stage)):
        record = Record(r.offset, r.key, r.value, r.timestamp)
        by_partition.setdefault(r.partition, []).append(record)
    if stage == 0:
        return [(p, reader.read_many(p, records).read) for p, records in by_partition.items()]
    hops = codec.HopCodec(plan, stage)
    return [(p, hops.read(records).read) for p, records in by_partition.items()]


async def check_features(world: World, scores: list[Any]) -> None:
    """Every first score stands on exactly the records before its own, in both stages."""
    expected: dict[str, dict[int, float]] = {}
    for stage, entity in enumerate(world.settings.transaction.entities):
        columns, windows = windows_of(world, entity)
        for _, read in await stage_input(world, stage):
            plain = Reference(windows, world.settings.entity.history_max)
            for i, id_ in enumerate(read.ids):
                key, other = read.keys[stage][i], read.keys[1 - stage][i]
                seen = Seen(id_, int(read.times_ms[i]), float(read.amounts[i]), other)
                row = plain.apply(key, seen, int(read.partitions[i]), int(read.offsets[i]))
                if row is not None:
                    expected.setdefault(id_, {}).update(zip(columns, row, strict=True))
    for id_, score in firsts(scores).items():
        found = {column: score["features"][column] for column in expected[id_]}
        assert pytest.approx(expected[id_], rel=1e-9, abs=1e-6) == found, id_


async def newest_snapshot(world: World) -> Any:
    """The newest snapshot that verifies."""
    plan = FeaturePlan.of(world.settings.features, world.settings.transaction.entities)
    records = [Record(r.offset, r.key, r.value, 0) for r in await world.read(world.topics.models)]
    return newest(records, world.settings, plan)


def check_letters(letters: list[Any]) -> None:
    """Each says where it lay and what was wrong with it."""
    for letter in letters:
        headers = dict(letter.headers)
        at = (headers["__connect.errors.topic"].decode(), headers["__connect.errors.partition"])
        said = headers["__connect.errors.exception.message"].decode()
        offset = headers["__connect.errors.offset"].decode()
        assert said.startswith(f"{at[0]}[{at[1].decode()}]@{offset}: ")
        assert "; expected " in said


async def check_headers(world: World) -> None:
    """CloudEvents, content type, source and trace on every score."""
    records = await world.read(world.topics.scores)
    assert len({dict(r.headers)["ce_id"] for r in records}) == len(records)
    for record in records:
        headers = dict(record.headers)
        assert (b"1.0", b"weir.score.v1") == (headers["ce_specversion"], headers["ce_type"])
        assert b"application/json" == headers["content-type"]
        assert TRACE == headers["traceparent"]
        source = json.loads(record.value)["source"]
        at = f"{source['topic']}/{source['partition']}/{source['offset']}"
        assert at.encode() == headers["weir-source"]


async def test_from_end_to_end(make_world):
    """Scores, alerts, labels, outcomes, dead letters, headers, pages, and a graceful end."""
    world = make_world(policy={"threshold": 0.0})
    await world.create_topics()
    worker = world.start()
    some = transactions(300, seed=1)
    await world.transact(some, headers=[("traceparent", TRACE)])
    bad: list[tuple[bytes | None, bytes | None]] = [
        (b"c1", b"{"),
        (None, b"{}"),
        (b"c1", b'{"amount":1e308}'),
        (b"c1", b"x" * 900_000),
    ]
    bad += [(b"c1", None), (b"c1", b"\xff"), (b"c2", json.dumps(some[0]).encode())]
    await world.publish(world.topics.transactions, bad)
    told = labels_of(some, seed=2)
    await world.label([*told, *told[:20]])
    stranger = {"transaction_id": "nobody", "is_fraud": True, "event_time": 1_000_000_000}
    await world.label([stranger])
    await worker.ready()

    scores = await world.scored(ids(some))
    assert Counter(ids(some)) == Counter(s["transaction_id"] for s in scores)
    await check_features(world, scores)

    outcomes = await world.outcomes(300 + 20 + 1)
    by_outcome = Counter(o["outcome"] for o in outcomes)
    assert {"learn": 300, "duplicate": 20, "unknown": 1} == by_outcome
    learnt = [o["transaction_id"] for o in outcomes if o["outcome"] == "learn"]
    assert Counter(ids(some)) == Counter(learnt)

    def letters_are_all(found: list[Any]) -> bool:
        return len(found) >= len(bad) + 1

    letters = await world.collect(world.topics.dead_letters, letters_are_all, "dead letters")
    assert Counter([v for _, v in bad] + [json.dumps(stranger).encode()]) == Counter(
        letter.value for letter in letters
    )
    check_letters(letters)
    await check_headers(world)
    alerts = await world.read(world.topics.alerts)
    assert set(ids(some)) == {alert.key.decode() for alert in alerts}

    assert 200 == worker.get("/healthz")[0]
    status, text = worker.get("/readyz")
    assert (200, {"status": "ok", "reasons": {}}) == (status, json.loads(text))
    assert 300 == worker.metric("weir_transactions_scored_total")
    assert 300 == worker.metric("weir_examples_learned")
    assert len(bad) == worker.metric(
        "weir_dead_letters_total", topic=world.topics.transactions.name
    )
    for closed in ("/router/", "/router", "/table/", "/table", "/graph/", "/stats/"):
        assert 404 == worker.get(closed)[0], closed

    began_s = time.monotonic()
    assert 0 == await worker.stop()
    assert time.monotonic() - began_s < 10.0
    for spec in (world.topics.transactions, world.topics.scores, world.topics.labels):
        ends: Counter[int] = Counter()
        for record in await world.read(spec):
            ends[record.partition] = record.offset + 1
        assert dict(ends) == await world.committed(spec)


def has_learnt(worker: Process, n: float) -> bool:
    """Whether a worker's model has come beyond the n-th example."""
    return worker.metric("weir_model_position") > n


async def test_killed_worker_loses_nothing_and_learns_nothing_twice(make_world):
    """With kill -9 in mid-stream, twice: every law holds as if nothing had happened."""
    world = make_world(entity={"history_max": 1_024})  # exact, as the reference is
    await world.create_topics()
    some = transactions(6_000, seed=3)
    told = labels_of(some, seed=4)

    async def stream() -> None:
        for start in range(0, 6_000, 200):
            await world.transact(some[start : start + 200])
            await world.label(told[max(0, start - 400) : max(0, start - 200)])
            await asyncio.sleep(0.1)  # a pace, not a wait
        await world.label(told[5_600:])

    publishing = asyncio.create_task(stream())
    for share in (0.1, 0.4):
        worker = await world.start().ready()
        await until(partial(has_learnt, worker, share * 6_000), "it has not learnt so much")
        worker.kill()
    worker = world.start()
    await publishing
    scores = await world.scored(ids(some))
    outcomes = await world.outcomes(6_000)
    assert set(ids(some)) == set(firsts(scores))
    await check_features(world, scores)
    learnt = {tuple(o["origin"]) for o in outcomes if o["outcome"] == "learn"}
    assert len(learnt) == 6_000
    assert {"learn"} == {o["outcome"] for o in outcomes}
    assert 6_000 == worker.metric("weir_examples_learned")
    assert 0 == await worker.stop()
    kept, folded = await newest_snapshot(world), await world.replayed()
    assert folded.n_learned == kept.n_learned == 6_000
    assert folded.version == kept.version
    rows = np.zeros((1, len(world.settings.features) and len(folded.model.features)))
    assert folded.model.score_many(rows).tobytes() == kept.model.score_many(rows).tobytes()


async def test_second_worker_takes_over(make_world):
    """Two workers share the partitions; of one that is killed the other takes all."""
    world = make_world(topics={"partitions": 4})
    await world.create_topics()
    workers = [await world.start().ready() for _ in range(2)]
    some = transactions(600, seed=5, n_cards=60)

    def both_hold_some() -> bool:
        return all("weir_consumer_lag_records{" in w.get("/metrics")[1] for w in workers)

    await world.transact(some[:300])
    await world.scored(ids(some[:300]))
    await until(both_hold_some, "one of them holds nothing")
    assert 300 <= sum(w.metric("weir_transactions_scored_total") for w in workers)
    workers[0].kill()
    await world.transact(some[300:])
    scores = await world.scored(ids(some))
    await check_features(world, scores)
    told = labels_of(some, seed=6)
    await world.label(told)
    outcomes = await world.outcomes(600)
    assert {"learn": 600} == Counter(o["outcome"] for o in outcomes)
    assert 0 == await workers[1].stop()


async def test_worker_that_slept_past_its_session_writes_nothing_more(make_world):
    """Stopped, succeeded and woken up, it finds its lease run out and ends."""
    world = make_world()
    await world.create_topics()
    sleeper = await world.start().ready()
    some = transactions(400, seed=12)
    await world.transact(some[:200])
    await world.scored(ids(some[:200]))
    await all_committed(world)  # a score is seen before the state that it leaves is written
    sleeper.popen.send_signal(signal.SIGSTOP)
    await world.transact(some[200:])
    heir = await world.start().ready()
    scores = await world.scored(ids(some))
    sleeper.popen.send_signal(signal.SIGCONT)
    told = labels_of(some, seed=13)
    await world.label(told)
    await world.outcomes(400)
    assert Counter(ids(some)) == Counter(s["transaction_id"] for s in scores)
    again = await world.values(world.topics.scores)
    assert len(scores) == len(again), "it wrote what was no longer its own"
    await check_features(world, again)
    assert {"learn": 400} == Counter(o["outcome"] for o in await world.outcomes(400))
    assert 0 == await heir.stop()


async def read_of(world: World, topic: TopicSpec) -> int:
    """How many records of a topic are committed."""
    return sum(max(offset, 0) for offset in (await world.committed(topic)).values())


async def all_committed(world: World) -> None:
    """Wait until nothing that was read is under way."""
    end, topics = time.monotonic() + 60, (world.topics.transactions, *world.topics.hops.values())
    for topic in topics:
        while await read_of(world, topic) < len(await world.read(topic)):
            assert time.monotonic() < end, f"{topic.name} is not committed"
            await asyncio.sleep(0.1)


async def test_worker_follows_a_learner_of_its_own_process(make_world):
    """Snapshots are the only way between them, and they are enough."""
    world = make_world(learner={"in_worker": False, "snapshot_every": 50})
    await world.create_topics()
    worker, learner = world.start(), world.start("learner")
    some = transactions(300, seed=7)
    await world.transact(some[:200])
    await worker.ready()
    await learner.ready()
    first = firsts(await world.scored(ids(some[:200])))
    assert {-1} == {score["model"]["position"] for score in first.values()}
    await world.label(labels_of(some[:200], seed=8))
    await world.outcomes(200)
    await until(lambda: "model_adopted" in worker.said, "no model was adopted")
    kept = await until_snapshot_of(world, 200)
    await until(lambda: kept.digest in worker.said, "the newest model was not adopted")
    await world.transact(some[200:])
    later = firsts(await world.scored(ids(some)))
    versions = {later[id_]["model"]["digest"] for id_ in ids(some[200:])}
    assert {kept.digest} == versions
    assert 200 == learner.metric("weir_examples_learned")
    assert 0 == worker.metric("weir_examples_learned")
    assert [0, 0] == [await worker.stop(), await learner.stop()]


async def until_snapshot_of(world: World, n_learned: int) -> Any:
    """Wait for a snapshot that has learnt so much."""
    end = time.monotonic() + 60
    while True:
        kept = await newest_snapshot(world)
        if kept is not None and kept.n_learned >= n_learned:
            return kept
        assert time.monotonic() < end, "no such snapshot"
        await asyncio.sleep(0.2)


async def test_worker_refuses_topics_that_are_not_as_declared(make_world):
    """Wrong partitions, missing topics: it says which, and how to mend it, and ends."""
    world = make_world()
    worker = world.start()
    assert 2 == await worker.ended()
    assert "does not exist; run `weir topics create`" in worker.said
    async with Admin(world.settings) as admin:
        spec = world.topics.transactions
        wrong = NewTopic(name=spec.name, num_partitions=3, replication_factor=1)
        await admin._client.create_topics([wrong])
    with contextlib.suppress(Exception):
        await asyncio.wait_for(world.create_topics(), 5)
    worker = world.start()
    assert 2 == await worker.ended()
    said = " ".join(worker.said.split())
    assert f"{spec.name} has 3 partitions; expected 2: set topics.partitions = 3" in said
    assert "Traceback" not in said


@contextlib.asynccontextmanager
async def proxy(port: int, bootstrap: str) -> AsyncIterator[None]:
    """A port that leads to the broker while it is open."""
    host, _, to = bootstrap.partition(":")

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(host, int(to))
        await asyncio.gather(pipe(reader, there_writer), pipe(there_reader, writer))

    server = await asyncio.start_server(connect, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()


async def test_broker_that_is_away_is_waited_for(make_world, bootstrap):
    """At the start: it says that it waits, for whom, and goes on when the broker is there."""
    world = make_world()
    await world.create_topics()
    port = free_port()
    worker = world.start(WEIR_KAFKA__BOOTSTRAP=f"127.0.0.1:{port}")
    await until(lambda: "waiting_for_broker" in worker.said, "it does not say that it waits")
    assert str(port) in worker.said
    assert worker.popen.poll() is None
    async with proxy(port, bootstrap):
        await worker.ready()
        some = transactions(20, seed=9)
        await world.transact(some)
        await world.scored(ids(some))
        assert 0 == await worker.stop()


async def limit(world: World, spec: TopicSpec, n_bytes: int) -> None:
    """Let a topic take records of so many bytes, and make it where it is not there."""
    told = {**spec.config, "max.message.bytes": str(n_bytes)}
    async with Admin(world.settings) as admin:
        client = admin._client
        if spec.name in await client.list_topics():
            kind = ConfigResourceType.TOPIC
            await client.alter_configs([ConfigResource(kind, spec.name, configs=told)])
        else:
            await client.create_topics([NewTopic(spec.name, spec.partitions, 1, None, told)])


async def test_batch_that_the_broker_rejects_is_not_committed(make_world):
    """The worker ends with what it had not delivered uncommitted; the next one delivers it."""
    world = make_world()
    await limit(world, world.topics.scores, 200)
    await world.create_topics()
    some = transactions(50, seed=10)
    await world.transact(some)
    worker = world.start()
    assert 0 != await worker.ended()
    assert "was not acknowledged" in worker.said
    hop = world.topics.hops["terminal_id"]
    assert {-1, 0} >= set((await world.committed(hop)).values())
    assert [] == await world.read(world.topics.scores)
    await limit(world, world.topics.scores, 1_048_576)
    worker = await world.start().ready()
    scores = await world.scored(ids(some))
    assert Counter(ids(some)) == Counter(s["transaction_id"] for s in scores)
    await check_features(world, scores)
    assert 0 == await worker.stop()


async def test_sender_tells_of_every_record_that_did_not_arrive(make_world):
    """Too large for its topic; of a topic that is not there."""
    world = make_world(worker={"delivery_timeout": "2s"})
    await limit(world, world.topics.drift, 1_000)
    await world.create_topics()
    drift = world.topics.drift.name
    sender = Sender(world.settings)
    await sender.start()
    try:
        for send in (Send(drift, 0, None, b"x" * 5_000), Send("nowhere", 0, None, b"x")):
            with pytest.raises(Undelivered, match=f"a batch for {send.topic} was not acknowledged"):
                await sender.deliver([send])
        await sender.deliver([Send(drift, 0, b"k", b"{}")])
    finally:
        await sender.stop()
    assert [b"{}"] == [record.value for record in await world.read(world.topics.drift)]


async def test_law_6_nothing_is_written_after_the_last_moment(make_world):
    """Whoever was stopped between the look at the lease and the write wakes up, and writes not."""
    world = make_world()
    await world.create_topics()
    drift, session_s = world.topics.drift.name, 0.5
    lease = Lease(session_ms=round(1_000 * session_s))
    async with Sender(world.settings, lease.check) as sender:
        lease.renew(Lease.clock_s())
        await sender.deliver([Send(drift, 0, b"k", b"1")])
        lease.check()
        under_way = asyncio.create_task(sender.deliver([Send(drift, 0, b"k", b"2")]))
        await asyncio.sleep(0)  # it has begun
        time.sleep(2 * session_s)  # noqa: ASYNC251 - as a process that is stopped
        with pytest.raises(Fenced, match="no heartbeat was answered"):
            await under_way
    assert [b"1"] == [record.value for record in await world.read(world.topics.drift)]


async def test_foreign_snapshot_does_not_stop_a_worker(make_world):
    """What somebody else wrote to the models topic is refused, aloud, and passed over."""
    world = make_world()
    await world.create_topics()
    await world.publish(world.topics.models, [(b"whoever", b"WEIR1" + b"x" * 100), (b"", b"")])
    worker = await world.start().ready()
    assert "snapshot_refused" in worker.said
    some = transactions(20, seed=11)
    await world.transact(some)
    await world.scored(ids(some))
    assert 0 == await worker.stop()


async def test_repeats_are_held_back_and_links_lead_to_history(make_world):
    """One alert a card, though the worker is killed between; each links to what is known."""
    world = make_world(policy={"threshold": 0.0, "repeats": {"entity": "card_id", "window": "1d"}})
    await world.create_topics()
    worker = world.start()
    some = transactions(120, seed=5, n_cards=6)
    await world.transact(some[:60])
    await worker.ready()
    await world.scored(ids(some[:60]))
    worker.kill()
    await world.transact(some[60:])
    worker = await world.start().ready()
    await world.scored(ids(some))
    cards = {t["card_id"] for t in some}

    def has_all(found: list[Any]) -> bool:
        return cards == {json.loads(record.value)["entities"]["card_id"] for record in found}

    found = await world.collect(world.topics.alerts, has_all, "an alert a card")
    alerts = [json.loads(record.value) for record in found]
    assert len({alert["transaction_id"] for alert in alerts}) == len(cards)
    for alert in alerts:
        for kind, link in alert["links"].items():
            status, text = worker.get(link)
            assert status == 200, text
            known = [t["amount"] for t in some if t[kind] == alert["entities"][kind]]
            told = [row["amount"] for row in json.loads(text)["transactions"]]
            assert sorted(told) == sorted(known)
    status, text = worker.get("/v1/entities/card_id/nobody")
    assert (404, 404) == (status, json.loads(text)["status"])
