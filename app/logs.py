"""Logs as a person or a machine reads them; ids and positions, never payloads.

Should a payload come into one all the same, in an id or an error's text, what looks like a card
number is masked before it is written.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog

from app.errors import Misconfigured, shown

if TYPE_CHECKING:
    from app.config import WorkerSettings


LEVELS: Final = ("debug", "info", "warning", "error")
#: What these say at "info" is of use to their authors only.
_LIBRARIES: Final = ("faust", "mode", "aiokafka", "asyncio", "aiohttp")

#: 13 to 19 digits (ISO/IEC 7812), in groups with single spaces or hyphens between, or none.
_DIGITS: Final = re.compile(r"(?<![0-9])[0-9](?:[ -]?[0-9]){12,18}(?![0-9])")
MASK: Final = "[card number]"


def is_luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it (Luhn, ISO/IEC 7812-1).

    >>> is_luhn("4111111111111111"), is_luhn("4111111111111112")
    (True, False)
    """
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(map(int, digits[::-2]))) % 10 == 0


def masked(text: str) -> str:
    """The text without what looks like a card number.

    One of ten other numbers as long passes Luhn's check, too: epoch milliseconds (13 digits, from
    2001 to 2286 they begin with 1) are left alone, as no card number begins so.

    >>> masked("card 4111 1111 1111 1111 refused at 1767225600000")
    'card [card number] refused at 1767225600000'
    """
    return _DIGITS.sub(_mask, text)


def _mask(found: re.Match[str]) -> str:
    digits = re.sub(r"[ -]", "", found[0])
    is_time = len(digits) == 13 and digits[0] == "1"  # noqa: PLR2004 - epoch milliseconds
    return found[0] if is_time or not is_luhn(digits) else MASK


def redacted(value: Any) -> Any:
    """A value of a log line, whatever lies within it, without card numbers."""
    if isinstance(value, dict):
        return {redacted(name): redacted(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redacted(one) for one in value]
    if isinstance(value, bool | float) or value is None:
        return value
    if isinstance(value, bytes):
        return masked(value.decode("utf-8", "replace"))
    text = masked(str(value))
    return value if isinstance(value, int) and MASK not in text else text


def redact(_logger: Any, _method: str, event: Any) -> Any:
    """Redact a whole line, as structlog's processors do: its record of logging's stays aside."""
    return {
        name: value if name in {"_record", "_from_structlog"} else redacted(value)
        for name, value in event.items()
    }


def set_level(name: str) -> None:
    """Log from this level on, now: "debug", "info", "warning" or "error". Raises Misconfigured.

    At "debug" the libraries beneath speak, too.
    """
    if name not in LEVELS:
        raise Misconfigured(f"level is {shown(name)}; expected one of: {', '.join(LEVELS)}")
    logging.getLogger().setLevel(name.upper())
    for library in _LIBRARIES:
        logging.getLogger(library).setLevel(logging.DEBUG if name == "debug" else logging.WARNING)


def level() -> str:
    """The level from which on is logged."""
    return logging.getLevelName(logging.getLogger().level).lower()


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
        structlog.stdlib.PositionalArgumentsFormatter(),
        redact,  # after whatever makes text of an exception
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
    set_level(settings.log_level)
