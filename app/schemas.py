"""JSON Schemas of what lies on the topics, made from the code and the configuration.

The values that weir writes are described by their types in ``records``; what it reads, by the
configuration: transactions and labels have the schema that their publishers declared.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import orjson
import typer

from app.config import Settings, load, make_folder
from app.records import (
    SCHEMA_VERSION,
    Alert,
    Drift,
    Fact,
    Feedback,
    LabelOutcome,
    Score,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from app.config import LabelSettings, TransactionSettings
    from app.topics import TopicSpec

Schema = dict[str, Any]

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_ISO: Final[Schema] = {"type": "string", "format": "date-time"}
_TIMES: Final[dict[str, Schema]] = {
    "iso": _ISO,
    "s": {"type": "number", "description": "Seconds since 1970-01-01, UTC."},
    "ms": {"type": "number", "description": "Milliseconds since 1970-01-01, UTC."},
    "auto": {
        "anyOf": [_ISO, {"type": "number"}],
        "description": "ISO 8601 (UTC where no zone stands), or seconds below 1e11, "
        "milliseconds from there on.",
    },
}


def _name() -> Schema:
    from app.codec import ID_MAX  # noqa: PLC0415 - `weir --help` need not wait for numba

    kinds, no_nul = ["string", "integer"], "^[^\\u0000]*$"
    return {"type": kinds, "minLength": 1, "maxLength": ID_MAX, "pattern": no_nul}


def transaction_schema(of: TransactionSettings) -> Schema:
    """What a publisher of transactions must send.

    A number of seconds or milliseconds in ISO text, or a time out of bounds, is refused by
    ``codec`` all the same: JSON Schema cannot say when a record was published.
    """
    properties: dict[str, Schema] = {of.id: _name(), of.time: _TIMES[of.time_unit]}
    properties |= dict.fromkeys(of.entities, _name())
    low = -of.number_max
    properties |= {n: _number(low, of.number_max) for n in of.numbers}
    if of.amount:
        properties[of.amount] = _number(low if of.negative_amounts else 0.0, of.number_max)
    properties |= {key: {"type": ["string", "integer", "boolean"]} for key in of.categories}
    for name in of.optional:
        kinds = properties[name]["type"]
        listed = kinds if isinstance(kinds, list) else [kinds]
        properties[name] = {**properties[name], "type": [*listed, "null"]}
    return _object(properties, of.optional, is_open=of.unknown_fields == "ignore")


def label_schema(of: LabelSettings) -> Schema:
    """What a publisher of labels must send."""
    properties: dict[str, Schema] = {
        of.transaction_id: _name(),
        of.value: {"enum": [True, False, 1, 0], "description": "Fraud: true or 1."},
        of.time: _TIMES["auto"],
    }
    if of.source:
        properties[of.source] = {"type": ["string", "null"]}
    return _object(properties, [of.source] if of.source else [], is_open=False)


def _number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _object(properties: dict[str, Schema], optional: Iterable[str], *, is_open: bool) -> Schema:
    absent = set(optional)
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in absent],
        "additionalProperties": is_open,
    }


def schemas_of(settings: Settings) -> dict[str, Schema]:
    """Schemas by file name, one for each kind of topic whose values are JSON."""
    from app.topics import Topics  # noqa: PLC0415 - as above

    topics = Topics.of(settings)
    of, label = settings.transaction, settings.label
    described: list[tuple[str, TopicSpec, Schema, str]] = [
        ("transactions", topics.transactions, transaction_schema(of), _first(of)),
        ("labels", topics.labels, label_schema(label), label.transaction_id),
        ("scores", topics.scores, _schema(Score), "transaction_id"),
        ("alerts", topics.alerts, _schema(Alert), "transaction_id"),
        ("outcomes", topics.outcomes, _schema(LabelOutcome), "transaction_id"),
        ("drift", topics.drift, _schema(Drift), "incident"),
        (
            "examples",
            topics.examples,
            _schema(Fact),
            "transaction_id, or none",
        ),
    ]
    # Alike for every entity; what travels between its stages is not JSON.
    back = [("feedback", spec, _schema(Feedback), e) for e, spec in topics.feedback.items()]
    described += back[:1]
    return {
        name: {
            "$schema": _DIALECT,
            "$id": f"urn:weir:{name}:v{SCHEMA_VERSION}",
            **schema,
            "title": f"{name}: {spec.what}",
            "$comment": f"Key: {key}",
        }
        for name, spec, schema, key in described
    }


def _first(of: TransactionSettings) -> str:
    return of.entities[0] if of.entities else "any, or none"


def _schema(kind: Any) -> Schema:
    schema: Schema = msgspec.json.schema(kind)
    if set(schema) == {"$ref", "$defs"}:  # the type itself at the top, its parts below
        name = schema["$ref"].rpartition("/")[2]
        rest = {n: d for n, d in schema["$defs"].items() if n != name}
        return {**schema["$defs"][name], **({"$defs": rest} if rest else {})}
    return schema


def write(settings: Settings, folder: Path) -> list[Path]:
    """Write all schemas into a folder; return the files. Raises Misconfigured if it is none."""
    make_folder(folder, "the folder of the schemas")
    made = []
    for name, schema in schemas_of(settings).items():
        path = folder / f"{name}.json"
        path.write_bytes(orjson.dumps(schema, option=orjson.OPT_INDENT_2) + b"\n")
        made.append(path)
    return made


def register(cli: typer.Typer) -> None:
    """Add ``weir schemas`` to the command line."""

    @cli.command()
    def schemas(
        folder: Annotated[Path, typer.Argument(help="Where to write them, one file a topic.")],
        config: Annotated[
            Path | None, typer.Option("--config", "-c", envvar="WEIR_CONFIG", help="TOML file.")
        ] = None,
        profile: Annotated[str | None, typer.Option("--profile", "-p")] = None,
    ) -> None:
        """Write JSON Schemas of every topic, as this configuration has them."""
        for path in write(load(config, profile), folder):
            typer.echo(path)
