"""Logs as a person or a machine reads them; ids and positions, never payloads."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import orjson
import structlog

if TYPE_CHECKING:
    from app.config import WorkerSettings


def _json(event: dict[str, Any], **kwargs: Any) -> str:
    return orjson.dumps(event, default=kwargs.get("default"), option=orjson.OPT_SORT_KEYS).decode()


def configure(settings: WorkerSettings) -> None:
    """Send our logs and those of the libraries to standard error, in one format."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    is_json = settings.log_format == "json"
    renderer: Any = (
        structlog.processors.JSONRenderer(serializer=_json)
        if is_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    # What these say at "info" is of use to their authors only.
    for name in ("faust", "mode", "aiokafka", "asyncio", "aiohttp"):
        logging.getLogger(name).setLevel(
            logging.DEBUG if settings.log_level == "debug" else logging.WARNING
        )
