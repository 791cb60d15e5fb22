"""Apache Kafka at its limits: what is gone, changed or full is told, and nothing is lost by it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewPartitions, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from app.admin import Admin
from app.errors import Refused
from app.kafka import Reader
from app.records import Partition, Record
from app.tasks import Range
from tests.integration.harness import World, labels_of, transactions, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


def ids(some: list[dict[str, Any]]) -> list[str]:
    """The ids of some transactions."""
    return [t["transaction_id"] for t in some]


def flat(text: str) -> str:
    """What was said, without where its lines end."""
    return " ".join(text.split())


class Kept:
    """Takes what is restored."""

    def __init__(self) -> None:
        self.offsets: list[int] = []

    def restore(self, partition: Partition, records: list[Record]) -> None:
        """Note it."""
        self.offsets += [record.offset for record in records]


async def transacted(world: World, name: str, values: list[bytes], *, is_kept: bool) -> None:
    """Write in a transaction, and commit or abort it: either leaves a marker in the log."""
    producer = AIOKafkaProducer(
        bootstrap_servers=world.bootstrap, transactional_id=f"{world.settings.topics.prefix}{name}"
    )
    await producer.start()
    try:
        await producer.begin_transaction()
        for value in values:
            await producer.send_and_wait(name, value, key=b"c1", partition=0)
        await (producer.commit_transaction() if is_kept else producer.abort_transaction())
    finally:
        await producer.stop()


async def test_restore_ends_where_the_log_has_no_record_left(make_world):
    """Markers of transactions, one taken back, records deleted: the end is reached all the same."""
    world = make_world()
    await world.create_topics()
    spec = world.topics.drift
    at = Partition(spec.name, 0)

    async def restored() -> list[int]:
        kept = Kept()
        async with asyncio.timeout(20):
            await Reader(world.settings).read(kept, [Range(at)])  # type: ignore[arg-type]
        return kept.offsets

    async def reaches(end: int) -> None:
        """Wait until the coordinator has written the marker."""
        consumer = Reader(world.settings).client()
        await consumer.start()
        try:
            for _ in range(200):
                if end == (await consumer.end_offsets([TopicPartition(*at)]))[TopicPartition(*at)]:
                    return
                await asyncio.sleep(0.1)
        finally:
            await consumer.stop()
        raise AssertionError(f"the log never ends at {end}")

    assert [] == await restored()
    await transacted(world, spec.name, [b"a", b"b"], is_kept=True)  # 0 1, marker 2
    await reaches(3)
    assert [0, 1] == await restored()
    await transacted(world, spec.name, [b"c"], is_kept=False)  # 3, marker 4
    await reaches(5)
    assert [0, 1] == await restored()
    async with Admin(world.settings) as admin:
        everything = {TopicPartition(*at): RecordsToDelete(before_offset=5)}
        await admin._client.delete_records(everything)
    assert [] == await restored()


async def test_transaction_that_was_taken_back_is_not_scored(make_world):
    """A publisher's aborted Kafka transaction was never said."""
    world = make_world()
    await world.create_topics()
    good, bad = transactions(2, seed=41)
    good["card_id"] = bad["card_id"] = "c1"
    name = world.topics.transactions.name
    await transacted(world, name, [json.dumps(bad).encode()], is_kept=False)
    await transacted(world, name, [json.dumps(good).encode()], is_kept=True)
    worker = await world.start().ready()
    scores = await world.scored([good["transaction_id"]])
    assert [good["transaction_id"]] == [s["transaction_id"] for s in scores]
    assert 0 == await worker.stop()


async def test_records_that_retention_took_unread_are_told(make_world):
    """It says how many of which topic, and how to go on; nothing is passed over in silence."""
    world = make_world()
    await world.create_topics()
    worker = await world.start().ready()
    some = transactions(120, seed=42)
    await world.transact(some[:40])
    await world.scored(ids(some[:40]))
    assert 0 == await worker.stop()
    before = await world.committed(world.topics.transactions)
    await world.transact(some[40:])
    spec = world.topics.transactions
    async with Admin(world.settings) as admin:
        gone = {
            TopicPartition(spec.name, p): RecordsToDelete(before_offset=n + 5)
            for p, n in before.items()
        }
        await admin._client.delete_records(gone)
    worker = world.start()
    assert 0 != await worker.ended()
    said = flat(worker.said)
    assert "retention has deleted 5 records unread" in said
    assert f"{spec.name}[0] begins at offset {before[0] + 5}" in said
    assert "kafka-consumer-groups.sh --reset-offsets" in said
    assert before == await world.committed(spec)


async def test_topic_that_was_made_anew_is_not_taken_for_the_old_one(make_world):
    """Its offsets begin again, below what the state says was applied: refused, not passed over."""
    world = make_world()
    await world.create_topics()
    worker = await world.start().ready()
    some = transactions(60, seed=43)
    await world.transact(some)
    await world.scored(ids(some))
    assert 0 == await worker.stop()
    spec = world.topics.transactions
    async with Admin(world.settings) as admin:
        await admin._client.delete_topics([spec.name])
        for _ in range(200):
            if spec.name not in await admin._client.list_topics():
                break
            await asyncio.sleep(0.1)
        await admin.create(world.topics)
        assert [] == await admin.settled(world.topics)
    worker = world.start()
    assert 0 != await worker.ended()
    assert "the topic was deleted and made anew" in flat(worker.said)
    assert "begin anew with another topics.prefix" in flat(worker.said)


async def test_topic_that_is_deleted_while_it_is_written_stops_the_worker(make_world):
    """What it held back is scored once the topic is there again: nothing was committed."""
    world = make_world(worker={"delivery_timeout": "2s"})
    await world.create_topics()
    worker = await world.start().ready()
    some = transactions(80, seed=44)
    await world.transact(some[:40])
    await world.scored(ids(some[:40]))
    spec = world.topics.dead_letters  # no task reads it: no rebalance tells the worker
    async with Admin(world.settings) as admin:
        await admin._client.delete_topics([spec.name])
    await world.publish(world.topics.labels, [(b"t1", b"no label")])
    await world.label(labels_of(some[:40], seed=45))
    assert 0 != await worker.ended()
    said = flat(worker.said)
    assert f"a batch for {spec.name} was not acknowledged" in said
    assert "weir topics" in said
    worker = world.start()
    assert 2 == await worker.ended()
    assert f"{spec.name} does not exist; run `weir topics create`" in flat(worker.said)
    await world.create_topics()
    worker = await world.start().ready()
    outcomes = await world.outcomes(40)
    assert {"learn"} == {o["outcome"] for o in outcomes}
    await until(lambda: worker.metric("weir_examples_learned") >= 40, "not all are learnt")
    assert 40 == worker.metric("weir_examples_learned")
    assert [b"no label"] == [letter.value for letter in await world.read(spec)]
    assert 0 == await worker.stop()


async def test_partitions_that_were_added_stop_the_worker(make_world):
    """Keys would move: it scores nothing more, and says what to set or make anew."""
    world = make_world()
    await world.create_topics()
    worker = await world.start().ready()
    some = transactions(20, seed=46)
    await world.transact(some)
    await world.scored(ids(some))
    spec = world.topics.transactions
    assert 0 == await worker.stop()
    async with Admin(world.settings) as admin:
        await admin._client.create_partitions({spec.name: NewPartitions(total_count=3)})
    worker = world.start()
    assert 2 == await worker.ended()
    said = flat(worker.said)
    assert f"{spec.name} has 3 partitions; expected 2: set topics.partitions = 3" in said


async def test_snapshot_that_the_topic_does_not_take_stops_the_worker(make_world):
    """It says which limit; once that is raised, nothing was lost and nothing learnt twice."""
    world = make_world()
    await world.create_topics()
    spec = world.topics.models
    worker = await world.start().ready()
    some = transactions(60, seed=47)
    await world.transact(some)
    await world.scored(ids(some))
    await _limit(world, 500)
    await world.label(labels_of(some, seed=48))
    assert 0 != await worker.ended()
    said = flat(worker.said)
    assert f"a batch for {spec.name} was not acknowledged" in said
    assert "raise max.message.bytes of the topic" in said
    await _limit(world, int(spec.config["max.message.bytes"]))
    worker = await world.start().ready()
    await world.outcomes(60)
    await until(lambda: worker.metric("weir_examples_learned") == 60, "not all are learnt")
    assert 0 == await worker.stop()


async def _limit(world: World, n_bytes: int) -> None:
    spec = world.topics.models
    told = {**spec.config, "max.message.bytes": str(n_bytes)}
    async with Admin(world.settings) as admin:
        await admin._client.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, spec.name, configs=told)]
        )


async def test_model_of_other_features_is_refused_by_name(make_world):
    """After a change of the features it says which schema the model had; it scores on."""
    world = make_world()
    await world.create_topics()
    worker = await world.start().ready()
    some = transactions(60, seed=49)
    await world.transact(some[:40])
    await world.scored(ids(some[:40]))
    await world.label(labels_of(some[:40], seed=50))
    await world.outcomes(40)
    assert 0 == await worker.stop()
    kept = [json.loads(f.model_dump_json()) for f in world.settings.features[:-1]]
    worker = await world.start(WEIR_FEATURES=json.dumps(kept)).ready()
    said = flat(worker.said)
    assert "snapshot has features of schema" in said
    assert "take the change of [[features]] back" in said
    await world.transact(some[40:])
    scores = await world.scored(ids(some))
    assert 2 == len({score["feature_schema"] for score in scores})
    assert 0 == await worker.stop()


async def test_restore_that_stands_still_is_given_up(make_world, monkeypatch):
    """A log that never reaches what it promised: the process ends and says where it stood."""
    monkeypatch.setattr("app.kafka._STALLED_S", 1.0)
    world = make_world()
    await world.create_topics()
    at = Partition(world.topics.drift.name, 0)
    await world.publish(world.topics.drift, [(None, b"x")])

    async def promise(*args: Any, **kwargs: Any) -> dict[Any, int]:
        return {TopicPartition(*at): 5}

    monkeypatch.setattr("aiokafka.AIOKafkaConsumer.end_offsets", promise)
    with pytest.raises(Refused, match=r"stood at offset 1 for 1 s; expected to reach 5"):
        await Reader(world.settings).read(Kept(), [Range(at)])  # type: ignore[arg-type]
