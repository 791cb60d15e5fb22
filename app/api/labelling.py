"""Labels over HTTP: what somebody says goes the way of every label, and is answered at once."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from app import codec
from app.api.answers import Labelled, Place
from app.api.deciding import malformed
from app.api.problems import Failed, not_ready
from app.core.board import LabelView
from app.errors import Malformed, Undelivered
from app.records import Record, Send
from app.topics import partition_of

if TYPE_CHECKING:
    from app.access import Who
    from app.api.answers import LabelBody
    from app.api.desk import Desk
    from app.join import JoinTask
    from app.records import Outcome, Position

#: Keys of requests that were answered; the oldest are forgotten.
ANSWERED_MAX: Final = 10_000

_SAYS: Final[dict[Outcome, str]] = {
    "learn": "the model learns it as {what}",
    "duplicate": "the same is known already: it teaches nothing more",
    "expired": "it counts as legitimate since its maturity: it teaches nothing more",
    "early": "the transaction is not known: the label waits for it, then it is a dead letter",
}


async def label(desk: Desk, task: JoinTask, who: Who, body: LabelBody, key: str | None) -> Labelled:
    """Publish a label; the answer says what it will lead to. Raises Failed.

    The same ``key`` and body again get the same answer, and nothing is published twice: labels of
    one transaction reach one worker. After a restart the join knows a label that comes again.
    """
    digest = hashlib.sha256(codec.encode(body)).digest()
    key = None if key is None else f"{who.name}/{key}"
    if key is not None and key in desk.answered:
        was, before = desk.answered[key]
        if was != digest:
            raise Failed(422, "this Idempotency-Key came with another body before")
        return msgspec.json.decode(before, type=Labelled)
    answer = await _publish(desk, task, who, body)
    if key is not None:
        desk.answered[key] = digest, codec.encode(answer)
        while len(desk.answered) > ANSWERED_MAX:
            desk.answered.pop(next(iter(desk.answered)))
    return answer


async def _publish(desk: Desk, task: JoinTask, who: Who, body: LabelBody) -> Labelled:
    identity = body.transaction_id
    if body.is_fraud is None:
        if not 0 < len(identity) <= codec.ID_MAX:
            expected = f"1 to {codec.ID_MAX} characters"
            raise malformed(Malformed("transaction_id", identity, expected))
        _note(desk, who, body, "noted")
        says = "noted here until this worker ends; it teaches nothing"
        return _told(body, "noted", says, None)
    topic = desk.topics.labels
    name = identity.encode("utf-8", "replace")
    value = codec.encode(_value(desk, body))
    try:
        task.stage.reader.read(Record(0, name, value, desk.flow.now_ms()))
    except Malformed as error:
        raise malformed(error) from None
    will = task.join.expects(identity, is_fraud=body.is_fraud)
    await desk.audit("label", identity, who, is_fraud=body.is_fraud, source=body.source)
    # Before it is sent: what becomes of it may be known before the acknowledgement comes.
    sent = _note(desk, who, body, "sent")
    try:
        at = await desk.publish(Send(topic.name, partition_of(name, topic.partitions), name, value))
    except Undelivered as error:
        desk.boards.board.withdraw(identity, sent)
        raise not_ready(f"the broker did not take it: {error}") from error
    return _told(body, will, _says(desk, will, is_fraud=body.is_fraud), at)


def _value(desk: Desk, body: LabelBody) -> dict[str, object]:
    of = desk.settings.label
    time_ms = desk.flow.now_ms() if body.time_ms is None else body.time_ms
    source = {of.source: body.source} if of.source else {}
    told = {of.transaction_id: body.transaction_id, of.value: body.is_fraud, of.time: time_ms}
    return {**told, **source}


def _note(desk: Desk, who: Who, body: LabelBody, outcome: Literal["sent", "noted"]) -> LabelView:
    told = LabelView(
        is_fraud=body.is_fraud,
        source=body.source,
        outcome=outcome,
        time_ms=desk.flow.now_ms(),
        by=who.name,
    )
    board = desk.boards.board
    board.on_label(body.transaction_id, told)
    if (alert := board.alert(body.transaction_id)) is not None:
        desk.feed.tell("label", labelled(alert))
    return told


def labelled(alert: object) -> dict[str, object]:
    """An alert's new state, as the event of a label tells it."""
    names = ("transaction_id", "state", "labels")
    return {name: getattr(alert, name) for name in names}


def _says(desk: Desk, will: Outcome, *, is_fraud: bool) -> str:
    what = "fraud" if is_fraud else "legitimate"
    if will == "corrected":
        does = desk.settings.learner.corrections
        return f"it corrects what was known: {what}; learner.corrections is {does}"
    return _SAYS[will].format(what=what)


def _told(
    body: LabelBody, will: Outcome | Literal["noted"], says: str, at: Position | None
) -> Labelled:
    return Labelled(
        transaction_id=body.transaction_id,
        is_fraud=body.is_fraud,
        source=body.source,
        will=will,
        says=says,
        position=None if at is None else Place(*at),
    )
