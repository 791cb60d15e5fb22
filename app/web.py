"""Health that tells the truth, and readiness; ``api`` serves them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

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


def readiness(
    flow: Flow,
    is_model_loaded: Callable[[], bool],
    unlearnt_ms: Callable[[], int] = lambda: 0,
    contradiction: str = "",
) -> Reasons:
    """Why this process does not score yet, or by a model that is in doubt; empty: all is well.

    ``unlearnt_ms``: for how long its model has not learnt what there is.
    """
    reasons = {**health(flow), **flow.concerns}
    if contradiction:
        reasons["models"] = contradiction
    if not flow.is_assigned:
        reasons["assignment"] = "the group has given no partitions yet"
    elif not flow.is_restored:
        reasons["state"] = "state is being restored"
    if not is_model_loaded():
        reasons["model"] = "the newest snapshot is not loaded yet"
    stale_ms, since_ms = flow.settings.latency.stale_after, unlearnt_ms()
    if stale_ms is not None and since_ms > stale_ms:
        reasons["unlearnt"] = f"the model has learnt nothing for {since_ms / 1_000:.0f} s"
    return reasons
