"""Errors as problem documents (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus

import msgspec

MEDIA_TYPE = "application/problem+json"


class FieldError(msgspec.Struct, frozen=True):
    """What is wrong with one field of a request."""

    field: str
    message: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error: what kind, and what to do about it."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    errors: list[FieldError] = []


class Failed(Exception):
    """A request that cannot be answered; ``headers`` go with it."""

    def __init__(
        self, status: int, detail: str, errors: list[FieldError] | None = None, **headers: str
    ) -> None:
        """Say with which HTTP status and why."""
        super().__init__(detail)
        self.problem = problem(status, detail, errors)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def problem(status: int, detail: str, errors: list[FieldError] | None = None) -> Problem:
    """A problem document.

    >>> problem(404, "no such alert").title
    'Not Found'
    """
    return Problem(
        title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors or []
    )


def not_ready(why: str) -> Failed:
    """What is asked for will be there soon."""
    return Failed(503, why, retry_after="1")
