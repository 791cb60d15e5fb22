"""What the worker shows over HTTP: metrics, health that tells the truth, readiness."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

    from faust import App

    from app.flow import Flow

#: A loop comes round ten times a second, and a batch takes well under a second.
_STALLED_S: Final = 20.0

Reasons = dict[str, str]


def health(flow: Flow) -> Reasons:
    """Why this process should be restarted; empty: it makes progress."""
    reasons: Reasons = dict(flow.alarms)
    still_s, unseen_s = time.monotonic() - flow.progress_s, time.monotonic() - flow.looked_s
    if still_s > _STALLED_S:
        reasons["loop"] = f"the loop has not come round for {still_s:.0f} s"
    if flow.is_restored and unseen_s > _STALLED_S:
        reasons["watch"] = f"nobody has looked for {unseen_s:.0f} s whether records are consumed"
    if flow.is_assigned and flow.lease.age_s > flow.settings.kafka.session_timeout / 1_000.0:
        reasons["lease"] = f"no heartbeat was answered for {flow.lease.age_s:.0f} s"
    return reasons


def readiness(flow: Flow, is_model_loaded: Callable[[], bool]) -> Reasons:
    """Why this process does not score yet; empty: it does."""
    reasons = {**health(flow), **flow.concerns}
    if not flow.is_assigned:
        reasons["assignment"] = "the group has given no partitions yet"
    elif not flow.is_restored:
        reasons["state"] = "state is being restored"
    if not is_model_loaded():
        reasons["model"] = "the newest snapshot is not loaded yet"
    return reasons


def serve(
    app: App,
    flow: Flow,
    is_model_loaded: Callable[[], bool],
    entity: Callable[[str, str], dict[str, Any] | None],
) -> None:
    """Add the pages to the web server of a Faust app; ``entity`` finds what is known of one."""

    @app.page("/metrics")
    async def metrics(self: Any, request: Any) -> Any:  # noqa: ARG001
        return self.bytes(
            generate_latest(flow.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    @app.page("/healthz")
    async def healthz(self: Any, request: Any) -> Any:  # noqa: ARG001
        return _answer(self, health(flow))

    @app.page("/readyz")
    async def readyz(self: Any, request: Any) -> Any:  # noqa: ARG001
        return _answer(self, readiness(flow, is_model_loaded))

    @app.page("/v1/entities/{kind}/{name}")
    async def entities(self: Any, request: Any, kind: str, name: str) -> Any:  # noqa: ARG001
        found = entity(kind, name)
        if found is None:
            return _problem(
                self, 404, "no such entity here", f"{kind} {name}: not known, or another worker's"
            )
        return self.bytes(orjson.dumps(found), content_type="application/json")


def _problem(view: Any, status: int, title: str, detail: str) -> Any:
    """An error as a problem document (RFC 9457)."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return view.bytes(orjson.dumps(body), status=status, content_type="application/problem+json")


def _answer(view: Any, reasons: Reasons) -> Any:
    body = orjson.dumps({"status": "failing" if reasons else "ok", "reasons": reasons})
    return view.bytes(body, status=503 if reasons else 200, content_type="application/json")
