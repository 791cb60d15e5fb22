"""The OpenAPI document: Litestar's, and what only the configuration knows.

Transactions have the schema that their publishers declared; every route says which role it takes,
and with which problems it may answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from litestar import Litestar
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme

from app import __version__
from app.api.problems import MEDIA_TYPE, Problem
from app.schemas import transaction_schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.config import Settings

#: What any route may answer when it is not let in, asked too often, or has nobody to ask.
_ALWAYS: Final = {
    "400": "The request cannot be read.",
    "401": "Who asks is not known.",
    "403": "Who asks may not, or the request comes from elsewhere.",
    "404": "There is no such thing.",
    "413": "The body is too large.",
    "429": "Too many requests.",
    "503": "Not now: not ready yet, or the worker that has it is away.",
    "504": "It took too long.",
}
_OF_BODY: Final = {"409": "It was done before, or cannot be.", "422": "It cannot be read."}
_OPEN: Final = {"400": _ALWAYS["400"], "403": _ALWAYS["403"], "429": _ALWAYS["429"]}


def _config() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="weir",
        version=__version__,
        summary="Decisions, alerts, labels and figures of a weir worker.",
        components=Components(
            security_schemes={"token": SecurityScheme(type="http", scheme="bearer")}
        ),
        security=[{"token": []}],
        use_handler_docstrings=True,
    )


def document(routes: Sequence[Any], settings: Settings) -> dict[str, Any]:
    """OpenAPI 3.1 of some routes."""
    # Litestar serves what it describes under pages of its own; so it describes another than serves.
    app = Litestar(routes, openapi_config=_config(), logging_config=None)
    told: dict[str, Any] = app.openapi_schema.to_schema()
    schemas = told.setdefault("components", {}).setdefault("schemas", {})
    _, found = msgspec.json.schema_components([Problem], ref_template="#/components/schemas/{name}")
    schemas.update(found)
    one = {**transaction_schema(settings.transaction), "title": "A transaction, as published"}
    schemas["Transaction"] = one
    roles = _roles(app)
    for path, operations in told["paths"].items():
        for method, operation in operations.items():
            role = roles.get((path, method.upper()), "read")
            _describe(operation, role)
    _bodies(told["paths"])
    _events(told["paths"]["/v1/events"]["get"])
    return told


def _roles(app: Litestar) -> dict[tuple[str, str], str]:
    return {
        (route.path_format, method): handler.opt["role"]
        for route in app.routes
        for handler in getattr(route, "route_handlers", [])
        for method in handler.http_methods
        if "role" in handler.opt
    }


def _describe(operation: dict[str, Any], role: str) -> None:
    operation["x-weir-role"] = role
    responses = operation["responses"]
    if role == "open":
        operation["security"] = []
        if "200" in responses:
            responses["503"] = {**responses["200"], "description": "Not all is well."}
    more = _OPEN if role == "open" else {**_ALWAYS, **_OF_BODY}
    for status, words in more.items():
        responses[status] = {
            "description": words,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }


def _bodies(paths: dict[str, Any]) -> None:
    one = {"$ref": "#/components/schemas/Transaction"}
    many = {
        "type": "object",
        "required": ["transactions"],
        "additionalProperties": False,
        "properties": {
            "transactions": {"type": "array", "items": one, "minItems": 1, "maxItems": 500}
        },
    }
    for path, schema in (("/v1/score", one), ("/v1/explain", one), ("/v1/score/batch", many)):
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path]["post"]["requestBody"] = body


def _events(operation: dict[str, Any]) -> None:
    words = "hello, summary, alert, outcome, label, drift, dead-letter, model, broker, reset"
    operation["responses"]["200"] = {
        "description": f"Server-sent events: {words}.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
