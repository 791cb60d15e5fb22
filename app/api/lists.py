"""Lists of what the board holds, a page at a time, and single things of it."""

from __future__ import annotations

import base64
import heapq
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar, cast

import msgspec

from app.api.answers import (
    Alerts,
    KnownTransaction,
    Letters,
    Page,
    ReasonCount,
    WholeLetter,
)
from app.api.deciding import named
from app.api.problems import Failed
from app.core.board import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from app.api.desk import Desk
    from app.core.board import AlertView, Board, DriftView, Letter, OutcomeView
    from app.join import JoinTask
    from app.records import Record

    Shown = TypeVar("Shown", DriftView, OutcomeView)

#: Reasons that are counted, the most frequent.
_REASONS_MAX: Final = 20


class Wanted(NamedTuple):
    """Which alerts somebody wants to see."""

    min_score: float = 0.0
    max_score: float = 1.0
    label: Literal["open", "fraud", "legitimate", "unsure", "labelled"] | None = None
    entity: tuple[str, ...] | None = None  # kind and name
    text: str = ""
    since_ms: int | None = None
    until_ms: int | None = None

    def has(self, alert: AlertView) -> bool:
        """Whether this is one of them."""
        return (
            self.min_score <= alert.score <= self.max_score
            and self._has_label(alert)
            and (self.since_ms is None or alert.time_ms >= self.since_ms)
            and (self.until_ms is None or alert.time_ms <= self.until_ms)
            and (self.entity is None or alert.entities.get(self.entity[0]) == self.entity[1])
            and self._has_text(alert)
        )

    def _has_label(self, alert: AlertView) -> bool:
        if self.label == "labelled":
            return alert.state != "open"
        return self.label is None or alert.state == self.label

    def _has_text(self, alert: AlertView) -> bool:
        if not self.text:
            return True
        text = self.text.casefold()
        names = (alert.transaction_id, *alert.entities.values())
        return any(text in name.casefold() for name in names)


def alerts(board: Board, wanted: Wanted, limit: int, before: Place | None) -> Alerts:
    """Alerts, newest first. Cost: 1 us for each that is held."""
    found = [alert for alert in board.alerts.newest() if wanted.has(alert)]
    rest = found if before is None else [a for a in found if Place.of(a.cursor) < before]
    return Alerts(
        items=rest[:limit],
        next=rest[limit - 1].cursor if len(rest) > limit else None,
        total=len(found),
        held=len(board.alerts),
        held_max=board.held_max,
    )


def riskiest(board: Board, wanted: Wanted, limit: int) -> Alerts:
    """Alerts with the highest scores, of equal ones the newest first; there is no next page."""
    found = [alert for alert in board.alerts.newest() if wanted.has(alert)]
    return Alerts(
        items=heapq.nlargest(limit, found, key=lambda alert: alert.score),
        next=None,
        total=len(found),
        held=len(board.alerts),
        held_max=board.held_max,
    )


def page(held: Iterable[Shown], limit: int, inner: Callable[[Shown], Any]) -> Page:
    """Records as they were told, each with when and where; newest first."""
    items: list[dict[str, Any]] = []
    for one in held:
        if len(items) == limit:
            return Page(items=items, next=items[-1]["cursor"])
        items.append(flat(one, inner(one)))
    return Page(items=items)


def flat(view: DriftView | OutcomeView, inner: Any) -> dict[str, Any]:
    """A record and its view in one object."""
    told = cast("dict[str, Any]", msgspec.to_builtins(inner))
    return {**told, "seen_ms": view.seen_ms, "cursor": view.cursor}


def letters(board: Board, which: str, reason: str, limit: int, before: Place | None) -> Letters:
    """Dead letters, newest first, and what is wrong with most of those."""
    wanted = reason.casefold()

    def has(letter: Letter) -> bool:
        return which in {"all", letter.state} and wanted in letter.reason.casefold()

    counts = Counter(_kind(letter) for letter in board.letters.newest() if has(letter))
    found: list[Letter] = []
    for letter in board.letters.newest(before):
        if has(letter):
            found.append(letter)
            if len(found) > limit:
                break
    told = [ReasonCount(kind, n) for kind, n in counts.most_common(_REASONS_MAX)]
    rest = found[limit - 1].cursor if len(found) > limit else None
    return Letters(items=found[:limit], next=rest, by_reason=told)


def _kind(letter: Letter) -> str:
    """The field that could not be read, and what was expected of it, without the value."""
    field, _, rest = letter.reason.partition(" is ")
    return f"{field}: {rest.rpartition('; expected ')[2]}" if rest else field


def whole_letter(letter: Letter, record: Record) -> WholeLetter:
    """A dead letter with its value: text where it is, else base64."""
    value, is_text = None, True
    if record.value is not None:
        try:
            value = record.value.decode()
        except UnicodeDecodeError:
            value, is_text = base64.b64encode(record.value).decode(), False
    headers = {name: told.decode("utf-8", "backslashreplace") for name, told in record.headers}
    return WholeLetter(letter=letter, value=value, is_text=is_text, headers=headers)


def known_transaction(desk: Desk, task: JoinTask, transaction_id: str) -> KnownTransaction:
    """What the join and the board know of a transaction. Raises Failed, 404."""
    waiting = task.join.find(transaction_id)
    if waiting is None:
        raise Failed(404, f"transaction {transaction_id}: not scored, or long forgotten")
    score, board = waiting.score, desk.boards.board
    is_current = score.feature_schema == desk.plan.schema
    is_labelled = waiting.is_fraud is not None
    row = [math.nan if value is None else value for value in score.features]
    return KnownTransaction(
        transaction_id=transaction_id,
        score=score,
        features=named(desk, row) if is_current else {},
        state="labelled" if is_labelled else "matured" if waiting.is_matured else "waiting",
        is_fraud=waiting.is_fraud,
        matures_ms=score.time_ms + task.join.maturity_ms,
        alert=board.alert(transaction_id),
        labels=board.labels_of(transaction_id),
    )
