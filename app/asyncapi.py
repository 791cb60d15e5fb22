"""AsyncAPI 3 of the topics, made from the same schemas as ``weir schemas``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from app import __version__
from app.schemas import schemas_of

if TYPE_CHECKING:
    from app.config import Settings

#: Topics that services write; the others are written by weir.
_RECEIVED: Final = frozenset({"transactions", "labels"})
#: Topics that are nobody's business but weir's.
_INTERNAL: Final = frozenset({"feedback"})


def asyncapi_of(settings: Settings) -> dict[str, Any]:
    """The topics that services write and read, as this configuration has them."""
    from app.topics import Topics  # noqa: PLC0415 - `weir --help` need not wait for numba

    topics = Topics.of(settings)
    schemas = {n: s for n, s in schemas_of(settings).items() if n not in _INTERNAL}
    schemas = {name: _plain(schema) for name, schema in schemas.items()}
    host = settings.kafka.bootstrap.split(",")[0]
    secure = settings.kafka.security_protocol != "PLAINTEXT"
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "weir", "version": __version__},
        "defaultContentType": "application/json",
        "servers": {"kafka": {"host": host, "protocol": "kafka-secure" if secure else "kafka"}},
        "channels": {name: _channel(name, getattr(topics, name)) for name in schemas},
        "operations": {
            f"{_verb(name)}_{name}": {
                "action": _verb(name),
                "channel": {"$ref": f"#/channels/{name}"},
            }
            for name in schemas
        },
        "components": {"messages": {n: _message(n, s) for n, s in schemas.items()}},
    }


def _verb(name: str) -> str:
    return "receive" if name in _RECEIVED else "send"


def _channel(name: str, topic: Any) -> dict[str, Any]:
    bound = {"partitions": topic.partitions, "replicas": topic.replication}
    return {
        "address": topic.name,
        "description": topic.what,
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        "bindings": {"kafka": {"topic": topic.name, **bound, "bindingVersion": "0.5.0"}},
    }


def _message(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    key = str(schema.get("$comment", "")).removeprefix("Key: ")
    bound = {"key": {"type": "string", "description": key}, "bindingVersion": "0.5.0"}
    return {"name": name, "payload": schema, "bindings": {"kafka": bound}}


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "$schema"}
