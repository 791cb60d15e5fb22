"""What lies on the topics is what the schemas say, and the schemas in docs/ are of this code."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from typer.testing import CliRunner

from app import codec, schemas
from app.cli import cli
from app.config import Settings, load
from app.core.features import FeaturePlan
from app.errors import Malformed
from app.join import JoinStage
from app.learning import LearnStage
from app.metrics import Metrics
from app.records import Drift, ModelVersion, Record, Send
from app.stages import EntityStage, scorer_of
from app.tasks import Effects, Stage
from app.topics import Topics
from app.worker import fresh_champion

DOCS = Path(__file__).resolve().parent.parent / "docs" / "schemas"
NOW_MS = 1_700_000_000_000
CARD = load(profile="card", policy={"threshold": 0.0}, topics={"partitions": 1})
SCHEMAS = schemas.schemas_of(CARD)
GOOD = {
    "transaction_id": "t1", "event_time": "2023-11-14T00:00:00Z", "card_id": "c1",
    "terminal_id": "s1", "amount": 12.5,
}  # fmt: skip


def check(name: str, value: bytes | None) -> None:
    """Raise if a value is not what its schema says."""
    assert value is not None
    Draft202012Validator(SCHEMAS[name]).validate(json.loads(value))


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_in_docs_are_of_this_code(name, tmp_path):
    """Written anew by ``weir schemas docs/schemas`` after every change of a record."""
    for path in schemas.write(load(profile="card"), tmp_path):
        kept = DOCS / path.name
        assert kept.exists(), f"{kept} is missing; run: weir schemas docs/schemas"
        assert path.read_text() == kept.read_text(), "stale; run: weir schemas docs/schemas"
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {path.name for path in DOCS.glob("*.json")}


@pytest.mark.parametrize("profile", ["card", "handbook", "stream"])
def test_every_schema_is_a_schema(profile):
    """Of the dialect that it names, with a title and the key of its records."""
    made = schemas.schemas_of(load(profile=profile))
    assert {"transactions", "labels", "scores", "alerts", "examples"} <= set(made)
    for schema in made.values():
        Draft202012Validator.check_schema(schema)
        assert {"$schema", "$id", "title", "$comment"} <= set(schema)


def flow() -> list[Send]:
    """All that the stages say of one transaction, a label for it, one again and one corrected."""
    plan = FeaturePlan.of(CARD.features, CARD.transaction.entities)
    topics, metrics, champion = Topics.of(CARD), Metrics(), fresh_champion(CARD, plan)
    scorer = scorer_of(CARD, plan, champion)
    stages: list[Stage] = [
        EntityStage(CARD, topics, plan, scorer, metrics, 0),
        EntityStage(CARD, topics, plan, scorer, metrics, 1),
        JoinStage(CARD, topics, metrics),
        LearnStage(CARD, topics, plan, champion, metrics),
    ]
    tasks = {at: task for stage in stages for task in [stage.task(0)] for at in task.inputs}
    said: list[Send] = []
    offsets: dict[str, int] = {}

    def take(topic: str, key: bytes | None, value: bytes | None) -> None:
        offset = offsets[topic] = offsets.get(topic, -1) + 1
        at = next((at for at in tasks if at.topic == topic), None)
        if at is None:
            return
        effects = Effects()
        tasks[at].apply(at, [Record(offset, key, value, NOW_MS)], NOW_MS, effects)
        for send in [*effects.first, *effects.outputs]:
            said.append(send)
            take(send.topic, send.key, send.value)

    for i in range(260):  # until a run of scores has its summary
        value = {**GOOD, "transaction_id": f"t{i}"}
        take("transactions", b"c1", json.dumps(value).encode())
    for is_fraud in (True, True, False):
        label = {"transaction_id": "t1", "is_fraud": is_fraud, "event_time": 1_700_000_000}
        take("labels", b"t1", json.dumps(label).encode())
    return said


@pytest.fixture(scope="module")
def said():
    """What the stages say."""
    return flow()


TOPIC_OF = {
    "scores": "scores", "alerts": "alerts", "examples": "examples", "outcomes": "outcomes",
    "weir.feedback.card_id": "feedback",
    "weir.feedback.terminal_id": "feedback",
}  # fmt: skip


@pytest.mark.parametrize(("topic", "name"), TOPIC_OF.items())
def test_what_the_stages_write_is_what_the_schemas_say(said, topic, name):
    """Every record of a topic, as it was encoded."""
    values = [send.value for send in said if send.topic == topic]
    assert values
    for value in values:
        check(name, value)


def test_nothing_is_written_to_a_topic_that_has_no_schema(said):
    """A new topic needs a schema, or a reason: hops are columns in MessagePack."""
    assert {*TOPIC_OF, "weir.hop.terminal_id"} == {send.topic for send in said}


def test_all_kinds_of_examples_are_covered(said):
    """Examples, summaries and verdicts lie in one log."""
    kinds = {json.loads(s.value)["kind"] for s in said if s.topic == "examples" and s.value}
    assert {"example", "summary", "verdict"} == kinds


def test_drift_is_what_its_schema_says():
    """It is rare; here is one."""
    drift = Drift(
        detector="ADWIN", kind="score", subject="mean score", before=0.1, after=0.5, since_ms=1,
        detected_ms=2, n_examples=3, model=ModelVersion("champion", 1, "ab"),
    )  # fmt: skip
    check("drift", codec.encode(drift))


@pytest.mark.parametrize("name", ["scores", "alerts", "drift", "outcomes"])
def test_value_that_lacks_a_field_is_no_value(name):
    """The schemas say what must be there, not only what may."""
    with pytest.raises(ValidationError):
        check(name, b"{}")


# ---- What others send: the schema and the reader agree.

# a change of the good transaction | whether it may be sent
SENT: list[tuple[dict[str, Any], bool]] = [
    ({}, True), ({"transaction_id": 7}, True), ({"event_time": 1_699_920_000}, True),
    ({"amount": 0}, True), ({"amount": 1e12}, True), ({"card_id": "c1"}, True),
    ({"amount": -1}, False), ({"amount": 1e308}, False), ({"amount": "1"}, False),
    ({"amount": True}, False), ({"amount": None}, False), ({"amount": ...}, False),
    ({"transaction_id": ""}, False), ({"transaction_id": "x" * 257}, False),
    ({"transaction_id": True}, False), ({"transaction_id": 1.5}, False),
    ({"transaction_id": "a\0b"}, False), ({"event_time": True}, False), ({"colour": 1}, False),
    ({"terminal_id": None}, False), ({"terminal_id": ...}, False),
]  # fmt: skip


def agree(schema: dict[str, Any], value: dict[str, Any], *, is_read: bool) -> None:
    """Compare the schema's word with the reader's."""
    assert is_read == Draft202012Validator(schema).is_valid(value), value


@pytest.mark.parametrize(("changed", "expected"), SENT)
def test_schema_of_transactions_lets_pass_what_the_reader_reads(changed, expected):
    """A publisher who keeps to the schema is read."""
    value = {k: v for k, v in {**GOOD, **changed}.items() if v is not ...}
    plan = FeaturePlan.of(CARD.features, CARD.transaction.entities)
    reader = codec.TransactionReader(CARD.transaction, plan)
    decoded = reader.read_many(0, [Record(0, b"c1", json.dumps(value).encode(), NOW_MS)])
    assert expected == (len(decoded.read) == 1)
    agree(SCHEMAS["transactions"], value, is_read=expected)


LABEL = {"transaction_id": "t1", "is_fraud": True, "event_time": 1_699_920_000}
LABELS: list[tuple[dict[str, Any], bool]] = [
    ({}, True), ({"is_fraud": 0}, True), ({"source": "chargeback"}, True), ({"source": None}, True),
    ({"is_fraud": 2}, False), ({"is_fraud": "yes"}, False), ({"is_fraud": None}, False),
    ({"why": 1}, False), ({"event_time": None}, False), ({"transaction_id": ...}, False),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "expected"), LABELS)
def test_schema_of_labels_lets_pass_what_the_reader_reads(changed, expected):
    """The same for labels."""
    value = {k: v for k, v in {**LABEL, **changed}.items() if v is not ...}
    record = Record(0, b"t1", json.dumps(value).encode(), NOW_MS)
    try:
        codec.LabelReader(CARD.label).read(record)
    except Malformed:
        assert not expected
    else:
        assert expected
    agree(SCHEMAS["labels"], value, is_read=expected)


def test_declared_schema_is_the_published_one():
    """Optional fields, open objects, negative amounts, units: as the configuration has them."""
    made = Settings.model_validate({
        "transaction": {
            "amount": "sum", "negative_amounts": True, "numbers": ["x"], "optional": ["x", "land"],
            "categories": ["land"], "unknown_fields": "ignore", "time_unit": "ms",
        },
        "features": [{"kind": "number", "field": "sum"}],
    })  # fmt: skip
    schema = schemas.schemas_of(made)["transactions"]
    value = {"transaction_id": "a", "event_time": 1, "sum": -5}
    extras: list[dict[str, Any]] = [
        {}, {"x": None, "land": None}, {"x": 1, "land": "DE"}, {"more": {}},
    ]  # fmt: skip
    for extra in extras:
        agree(schema, {**value, **extra}, is_read=True)
    for wrong in ({"event_time": "2020-01-01T00:00:00Z"}, {"x": "1"}, {"land": 1.5}):
        agree(schema, {**value, **wrong}, is_read=False)


def test_command_writes_a_file_for_every_topic(tmp_path):
    """``weir schemas DIR``."""
    result = CliRunner().invoke(cli, ["schemas", str(tmp_path / "s"), "--profile", "handbook"])
    assert 0 == result.exit_code, result.output
    written = json.loads((tmp_path / "s" / "transactions.json").read_text())
    assert "TX_AMOUNT" in written["properties"]
    assert set(SCHEMAS) == {path.stem for path in (tmp_path / "s").iterdir()}
