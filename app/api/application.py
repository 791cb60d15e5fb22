"""The application: routes, problems, the page's files, behind the doors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
from litestar import Litestar, Request, Response, get
from litestar.datastructures import State
from litestar.exceptions import HTTPException, ValidationException
from litestar.response import File
from litestar.static_files import create_static_files_router

from app.api import openapi
from app.api.doors import Doors
from app.api.figures import Sampler
from app.api.problems import MEDIA_TYPE, Failed, FieldError, problem
from app.api.routes import ROUTES, has_role
from app.asyncapi import asyncapi_of
from app.errors import Undelivered
from app.letters import Repair

if TYPE_CHECKING:
    from app.api.desk import Desk

log = structlog.get_logger(__name__)

CONSOLE: Final = Path(__file__).resolve().parent.parent / "console"


def _said(status: int, detail: str, errors: list[FieldError] | None = None) -> Response[bytes]:
    body = msgspec.json.encode(problem(status, detail, errors))
    return Response(body, status_code=status, media_type=MEDIA_TYPE)


def _on_failed(_: Request[Any, Any, Any], error: Failed) -> Response[bytes]:
    body = msgspec.json.encode(error.problem)
    status, headers = error.problem.status, error.headers
    return Response(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def _on_undelivered(_: Request[Any, Any, Any], error: Undelivered) -> Response[bytes]:
    return _said(503, f"the broker did not take it: {error}")


def _on_http(_: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    errors = []
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        errors = [
            FieldError(str(one.get("key", "")), str(one.get("message", ""))) for one in error.extra
        ]
    told = _said(error.status_code, error.detail, errors)
    for name, value in (error.headers or {}).items():
        told.set_header(name, value)
    return told


def _on_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """A programmer's error: the log has it whole, whoever asked gets none of it."""
    log.error("request_failed", path=request.url.path, error=repr(error), exc_info=error)
    return _said(500, "a mistake of ours; the log of this worker has it")


def application(desk: Desk) -> Doors:
    """The ASGI application of a worker."""
    documents: dict[str, bytes] = {}

    @get("/openapi.json", opt={"role": "read"}, include_in_schema=False, sync_to_thread=False)
    def openapi_json() -> Response[bytes]:
        if "openapi" not in documents:
            told = openapi.document(ROUTES, desk.settings)
            documents["openapi"] = msgspec.json.encode(told)
        return Response(documents["openapi"], media_type="application/json")

    @get("/asyncapi.json", opt={"role": "read"}, include_in_schema=False, sync_to_thread=False)
    def asyncapi_json() -> Response[bytes]:
        told = msgspec.json.encode(asyncapi_of(desk.settings))
        return Response(told, media_type="application/json")

    @get("/", opt={"role": "open"}, include_in_schema=False, sync_to_thread=False)
    def page() -> File | Response[bytes]:
        index = CONSOLE / "index.html"
        if not index.is_file():
            return _said(404, "this installation has no page; the API is under /v1")
        return File(index, media_type="text/html", content_disposition_type="inline")

    files: list[Any] = []
    if CONSOLE.is_dir():
        told = create_static_files_router(
            "/console", [CONSOLE], opt={"role": "open"}, include_in_schema=False
        )
        files.append(told)
    sampler = Sampler(desk)
    repair = Repair(desk.settings, desk.topics, desk.plan)
    app = Litestar(
        [*ROUTES, openapi_json, asyncapi_json, page, *files],
        state=State({"desk": desk, "sampler": sampler, "repair": repair}),
        guards=[has_role],
        exception_handlers={
            Failed: _on_failed,
            Undelivered: _on_undelivered,
            HTTPException: _on_http,
            Exception: _on_error,
        },
        openapi_config=None,
        request_max_body_size=desk.settings.access.body_max,
        logging_config=None,
    )
    doors = Doors(app, desk.settings)
    doors.litestar, doors.sampler = app, sampler
    return doors
