"""What every request passes first: host, origin, who asks, how often, how long; and what it leaves.

Plain ASGI around the application, so that a page that does not exist is behind it, too. There are
no cookies: what a browser sends by itself opens nothing. Where nobody has to say who they are, on
loopback, a page from elsewhere is told by its ``Origin`` and by ``Sec-Fetch-Site``, and one
whose name was rebound to this address by its ``Host``.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from app import codec
from app.access import Seal, Tokens, Who
from app.api.problems import MEDIA_TYPE, Failed
from app.kafka import now_ms
from app.peers import PEER_HEADER, url_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from litestar import Litestar

    from app.api.figures import Sampler
    from app.config import Settings

    Scope = dict[str, Any]
    Message = dict[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    SendIt = Callable[[Message], Awaitable[None]]
    Asgi = Callable[[Any, Any, Any], Awaitable[None]]

#: Open to everybody: whether all is well, and the page's own files, which hold no data.
_OPEN: Final = ("/healthz", "/readyz", "/", "/favicon.ico")
_PAGE: Final = "/console/"
_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    b"font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_SECURE: Final = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
#: Names that are asked by somebody on this machine.
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
#: Names whose requests are counted.
_COUNTED_MAX: Final = 4_096
#: Tokens a second that were not seen before, of one name: a guess costs 50 ms.
_GUESSES: Final = 5


class Rate:
    """At most so many a second, by name; counted anew every second."""

    def __init__(self, most: int) -> None:
        """Allow ``most`` a second."""
        self._most, self._second = most, 0
        self._counts: dict[str, int] = {}

    def takes(self, name: str, now_s: float) -> bool:
        """Count one; return whether it is one too many.

        >>> rate = Rate(1)
        >>> rate.takes("a", 0.1), rate.takes("a", 0.2), rate.takes("a", 1.1)
        (True, False, True)
        """
        if int(now_s) != self._second or len(self._counts) > _COUNTED_MAX:
            self._second, self._counts = int(now_s), {}
        self._counts[name] = self._counts.get(name, 0) + 1
        return self._counts[name] <= self._most


class Doors:
    """Lets requests in, with ``state["who"]``, and answers the others."""

    litestar: Litestar
    sampler: Sampler

    def __init__(self, app: Asgi, settings: Settings) -> None:
        """Stand before an application."""
        self._app, self._of = app, settings.access
        self._tokens = Tokens(settings.access.tokens)
        self._seal = Seal(settings.learner.key.get_secret_value().encode())
        self._rate, self._guesses = Rate(settings.access.rate), Rate(_GUESSES)
        told = [settings.worker.web_host, urlsplit(url_of(settings)).hostname or ""]
        self._hosts = {*_LOOPBACK, *told, *settings.access.hosts} - {""}
        self._guessing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: SendIt) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reply = _Reply(send, is_page=_is_page(scope["path"]))
        try:
            receive = await self._open(scope, receive)
            is_stream = scope["path"] == "/v1/events"
            limit_s = None if is_stream else self._of.timeout / 1_000.0
            async with asyncio.timeout(limit_s):
                await self._app(scope, receive, reply)
        except Failed as error:
            await reply.fail(error)
        except TimeoutError:
            await reply.fail(Failed(504, "it took too long"))

    async def _open(self, scope: Scope, receive: Receive) -> Receive:
        """Let a request in, or raise Failed; returns what it is read by."""
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        self._check_host(headers)
        self._check_origin(headers)
        state = scope.setdefault("state", {})
        state["is_peer"] = False
        if PEER_HEADER in headers:
            body, receive = await _whole(receive, self._of.body_max)
            target = _target(scope)
            who = self._seal.open(headers[PEER_HEADER], scope["method"], target, body, now_ms())
            if who is None:
                raise Failed(401, "no worker of this installation signed that")
            state["is_peer"] = True
        else:
            who = await self._who(scope, headers)
        if who is None and scope["path"] not in _OPEN and not scope["path"].startswith(_PAGE):
            asks = "a token: Authorization: Bearer weir.<name>.<secret>"
            raise Failed(401, f"who asks is not known; expected {asks}", www_authenticate="Bearer")
        name = who.name if who else "nobody"
        if not state["is_peer"] and not self._rate.takes(name, time.monotonic()):
            most = f"at most {self._of.rate} requests a second"
            raise Failed(429, f"too many requests of {name}; expected {most}", retry_after="1")
        state["who"] = who
        return receive

    def _check_host(self, headers: dict[str, str]) -> None:
        """Where nobody has to say who they are, a name that was rebound must open nothing."""
        if not (self._of.is_open or self._of.hosts):
            return
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name not in self._hosts:
            told = "one of access.hosts, or the address this server is bound to"
            raise Failed(403, f'the host is "{name[:80]}"; expected {told}')

    def _check_origin(self, headers: dict[str, str]) -> None:
        site = headers.get("sec-fetch-site", "none")
        origin = headers.get("origin")
        is_own = origin is None or urlsplit(origin).netloc == headers.get("host")
        is_visit = headers.get("sec-fetch-mode") == "navigate"
        if not is_own or (site in {"cross-site", "same-site"} and not is_visit):
            raise Failed(403, "the request comes from a page of another site")

    async def _who(self, scope: Scope, headers: dict[str, str]) -> Who | None:
        of = self._of
        if of.is_open:
            return Who("local", "admin")
        client = scope.get("client") or ("", 0)
        if of.proxy_header is not None and client[0] in of.proxies:
            name = headers.get(of.proxy_header.lower(), "")
            if name:
                role = headers.get((of.proxy_role_header or "").lower(), of.proxy_role)
                return Who(name[:200], role) if role in {"read", "feedback", "admin"} else None  # type: ignore[arg-type]
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return None
        was_seen, who = self._tokens.known(token)
        return who if was_seen else await self._guess(token)

    async def _guess(self, token: str) -> Who | None:
        """Hash a token that was not seen before: one at a time, beside the loop."""
        # By name: who guesses at one token keeps nobody else's out.
        if not self._guesses.takes(self._tokens.name_of(token) or "", time.monotonic()):
            raise Failed(429, "too many tokens that were not seen before", retry_after="1")
        async with self._guessing:
            return await asyncio.to_thread(self._tokens.find, token)


def _is_page(path: str) -> bool:
    return path == "/" or path.startswith(_PAGE)


def _target(scope: Scope) -> str:
    path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{path}?{query}" if query else str(path)


async def _whole(receive: Receive, most: int) -> tuple[bytes, Receive]:
    """The body of a request, and a way to read it again."""
    parts, size, is_more = list[bytes](), 0, True
    while is_more:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        is_more = message.get("more_body", False)
        if size > 2 * most:
            raise Failed(413, f"the body has more than {most} bytes")
    body = b"".join(parts)
    again = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Message:
        return next(again, None) or await receive()

    return body, replay


class _Reply:
    """Sends an answer, with the headers that every answer has."""

    def __init__(self, send: SendIt, *, is_page: bool) -> None:
        self._send, self._is_page = send, is_page
        self._has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_begun = True
            message["headers"] = self._headers(message.get("headers", ()))
        await self._send(message)

    def _headers(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        fresh = [] if self._is_page else [(b"cache-control", b"no-store")]
        return [*headers, *_SECURE, *fresh]

    async def fail(self, error: Failed) -> None:
        """Answer with a problem document, if nothing was said yet."""
        if self._has_begun:
            return
        body = codec.encode(error.problem)
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            *((name.encode(), value.encode()) for name, value in error.headers.items()),
        ]
        status = error.problem.status
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self({"type": "http.response.body", "body": body})
