"""Which topics there are, where a key lies, and what is told of a topic that is not as declared."""

from typing import Any

import pytest
from aiokafka.partitioner import DefaultPartitioner, murmur2
from hypothesis import given
from hypothesis import strategies as st

from app.admin import _differences
from app.config import load
from app.topics import Topics, TopicSpec, partition_of, partitions_of

# Keys and their 32 bits of murmur2, from the tests of Apache Kafka's own client (UtilsTest).
MURMUR2 = [
    (b"21", -973932308),
    (b"foobar", -790332482),
    (b"a-little-bit-long-string", -985981536),
    (b"a-little-bit-longer-string", -1486304829),
    (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    (b"abc", 479470107),
]


@pytest.mark.parametrize(("key", "murmur"), MURMUR2)
@pytest.mark.parametrize("partitions", [1, 3, 4, 1_024])
def test_key_lies_where_kafka_puts_it(key, murmur, partitions):
    """Java's producers and ours agree; else the stages would not meet their keys."""
    assert (murmur & 0x7FFFFFFF) % partitions == partition_of(key, partitions)


@given(st.binary(max_size=40), st.integers(1, 64))
def test_key_lies_where_aiokafka_puts_it(key, partitions):
    """The producer that publishes by key and the one that sends to a partition agree."""
    every = list(range(partitions))
    assert DefaultPartitioner()(key, every, every) == partition_of(key, partitions)


def test_names_are_distinct_and_prefixed():
    """No role shares a topic with another; the prefix is on all."""
    topics = list(Topics.of(load(profile="card", topics={"prefix": "eu."})))
    names = [spec.name for spec in topics]
    assert len(set(names)) == len(names) == 16
    assert all(name.startswith("eu.") for name in names)


def test_inputs_of_a_stage_are_co_partitioned():
    """What meets in one task has one number of partitions; what is ordered as a whole has one."""
    topics = Topics.of(load(profile="card", topics={"partitions": 7}))
    together = [
        [topics.transactions, topics.feedback["card_id"], topics.changelogs["card_id"]],
        [topics.hops["terminal_id"], topics.feedback["terminal_id"]],
        [topics.hops["terminal_id"], topics.changelogs["terminal_id"]],
        [topics.scores, topics.labels],
    ]
    for group in together:
        assert {7} == {spec.partitions for spec in group}
    for spec in (topics.examples, topics.models, topics.drift, topics.dead_letters):
        assert 1 == spec.partitions


def test_what_is_read_again_is_kept_long_enough():
    """State lives in compacted logs; the join's logs outlast maturity; examples stay for ever."""
    settings = load(profile="card", join={"maturity": "30d", "forget": "60d"})
    topics = Topics.of(settings)
    for spec in (*topics.changelogs.values(), topics.models):
        assert "compact" == spec.config["cleanup.policy"]
        assert "retention.ms" not in spec.config
    for spec in (topics.scores, topics.labels):
        assert int(spec.config["retention.ms"]) >= 90 * 86_400_000
    assert "-1" == topics.examples.config["retention.ms"]


def test_dead_letter_holds_the_largest_transaction():
    """A record of a megabyte, its headers and the reason."""
    topics = Topics.of(load(profile="card"))
    assert int(topics.dead_letters.config["max.message.bytes"]) >= 2 * 1_048_576


SPEC = TopicSpec("t", 4, 1, "what", {"cleanup.policy": "compact", "max.message.bytes": "2000"})
LOG = TopicSpec("t", 4, 1, "what", {"retention.ms": "1000"})
EVER = TopicSpec("t", 4, 1, "what", {"retention.ms": "-1"})
THREE = TopicSpec("t", 4, 3, "what", {})
COMPACT = {"cleanup.policy": "compact", "max.message.bytes": "2000"}

# declared | partitions, replicas found | settings found | what is told
FOUND: list[tuple[TopicSpec, int, int, dict[str, str], list[str]]] = [
    (SPEC, 4, 1, COMPACT, []),
    (SPEC, 4, 1, {}, []),
    (SPEC, 4, 1, {**COMPACT, "max.message.bytes": "9999"}, []),
    (SPEC, 3, 1, COMPACT, ["t has 3 partitions; expected 4: set topics.partitions = 3"]),
    (
        SPEC,
        4,
        1,
        {**COMPACT, "cleanup.policy": "delete"},
        ["cleanup.policy=delete; expected compact"],
    ),
    (SPEC, 4, 1, {**COMPACT, "max.message.bytes": "1"}, ["max.message.bytes=1; expected at least"]),
    (THREE, 4, 3, {}, []),
    (THREE, 4, 1, {}, ["t has 1 replicas; expected 3"]),
    (LOG, 4, 1, {"cleanup.policy": "delete", "retention.ms": "1000"}, []),
    (LOG, 4, 1, {"retention.ms": "-1"}, []),
    (LOG, 4, 1, {"retention.ms": "999"}, ["retention.ms=999; expected at least 1000"]),
    (LOG, 4, 1, {"cleanup.policy": "compact", "retention.ms": "1000"}, ["expected delete"]),
    (EVER, 4, 1, {"retention.ms": "-1"}, []),
    (EVER, 4, 1, {"retention.ms": "99999999"}, ["retention.ms=99999999; expected at least -1"]),
    (SPEC, 2, 1, {}, ["t has 2 partitions"]),
]


@pytest.mark.parametrize(("spec", "partitions", "replicas", "config", "expected"), FOUND)
def test_mismatch_is_told_with_what_mends_it(spec, partitions, replicas, config, expected):
    """Which topic, what it has, what was expected, what to do."""
    found: dict[str, Any] = {"partitions": [{"replicas": list(range(replicas))}] * partitions}
    problems = _differences(spec, found, config)
    assert len(expected) == len(problems), problems
    for words, told in zip(expected, problems, strict=True):
        assert words in told
    if config.get("cleanup.policy", "delete") != spec.config.get("cleanup.policy", "delete"):
        return
    if any("--add-config" in told for told in problems):
        assert "kafka-configs" in problems[0]


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(1, 1_024))
def test_keys_lie_where_the_client_puts_them(keys, partitions):
    """Many at once, or one by one, as aiokafka's own producer chooses."""
    want = [(murmur2(key) & 0x7FFFFFFF) % partitions for key in keys]
    assert want == partitions_of(keys, partitions)
    assert want == [partition_of(key, partitions) for key in keys]
