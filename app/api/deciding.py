"""Decisions over HTTP: read-only, or by way of the topic like any other transaction.

Read-only means that the features are gathered stage by stage from the workers that keep the
entities, each peeking at its own as if the transaction came next; then the policy and the model of
this worker decide. Recorded means that the transaction is published, and that whoever asks waits
until its score is on the topic of scores: the worker of the last stage publishes, as it is the
first to know.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import numpy as np

from app import codec
from app.api.answers import Decision
from app.api.problems import Failed, FieldError, not_ready
from app.errors import Malformed, Undelivered
from app.records import Record, Send
from app.topics import partition_of

if TYPE_CHECKING:
    from app.access import Who
    from app.api.desk import Desk
    from app.core.scoring import Batch
    from app.records import Score
    from app.stages import EntityStage

#: Of the time a request may take, what is left for its way back.
_SHARE: Final = 0.8

PEEK: Final = "/internal/peek"


class Peek(msgspec.Struct, frozen=True, array_like=True):
    """What one worker asks another: its features of transactions, at one stage."""

    stage: int
    hops: bytes


class Peeked(msgspec.Struct, frozen=True, array_like=True):
    """The same transactions, further on their way; and those whose id was used before."""

    hops: bytes
    used: list[int]


_pack = msgspec.msgpack.Encoder().encode
_peek = msgspec.msgpack.Decoder(Peek).decode
_peeked = msgspec.msgpack.Decoder(Peeked).decode


def read_one(desk: Desk, value: bytes) -> tuple[Batch, Record]:
    """A transaction as its publisher would send it. Raises Failed, 422."""
    first = desk.stages()[0]
    record = codec.record_of(value, desk.settings.transaction, desk.flow.now_ms())
    decoded = first.reader.read_many(0, [record])
    for _, error in decoded.refused:
        raise malformed(error)
    return decoded.read, record


def malformed(error: Malformed) -> Failed:
    """What cannot be read, as a problem."""
    return Failed(422, str(error), [FieldError(error.field, str(error))])


async def peek_one(desk: Desk, value: bytes, who: Who) -> Batch:
    """A transaction with all its features, as if it came next. Raises Failed."""
    batch, _ = read_one(desk, value)
    for stage in desk.stages():
        if stage.entity is not None:
            batch, is_used = await _at_stage(desk, stage, batch, who)
            if is_used:
                used = f"{desk.settings.transaction.id} {batch.ids[0]} was scored before"
                raise Failed(409, f"{used}: GET /v1/transactions/{{id}} tells how")
    return batch


async def _at_stage(desk: Desk, stage: EntityStage, batch: Batch, who: Who) -> tuple[Batch, bool]:
    task, *at = desk.entity_task(stage.index, batch.keys[stage.index][0])
    if task is not None:
        return batch, bool(task.peek(batch))
    asked = _pack(Peek(stage.index, stage.came.write(batch)))
    where = cast("tuple[str, int]", tuple(at))
    answer = await desk.elsewhere(where, who, "POST", PEEK, asked)
    if answer.status != 201:  # noqa: PLR2004
        raise not_ready(f"the worker of {at[0]}[{at[1]}] answered {answer.status}")
    told = _peeked(answer.body)
    further = stage.goes.read([Record(0, None, told.hops, 0)])
    return further.read, bool(told.used)


def peek_for_peer(desk: Desk, body: bytes) -> bytes:
    """Answer another worker. Raises Failed."""
    try:
        asked = _peek(body)
        stage = desk.stages()[asked.stage]
    except (msgspec.DecodeError, IndexError) as error:
        raise Failed(422, f"no question of a worker: {error}") from None
    decoded = stage.came.read([Record(0, None, asked.hops, 0)])
    for _, refusal in decoded.refused:
        raise malformed(refusal)
    task, *_ = desk.entity_task(stage.index, decoded.read.keys[stage.index][0])
    if task is None:
        raise not_ready("the partition was given to another worker just now")
    used = task.peek(decoded.read)
    return _pack(Peeked(stage.goes.write(decoded.read), used))


def decided(desk: Desk, batch: Batch) -> Decision:
    """What policy and model make of a transaction with all its features."""
    told = desk.scorer.decide(batch)
    return Decision(
        transaction_id=batch.ids[0],
        score=float(told.scores[0]),
        raw=float(told.raw[0]),
        is_alert=bool(told.alerts[0]),
        policy=told.words.get(0),
        propensity=float(told.propensity[0]),
        reasons=told.reasons.get(0, []),
        features=named(desk, batch.rows[0].tolist()),
        model=told.model,
        recorded=False,
    )


def named(desk: Desk, row: list[float]) -> dict[str, float | None]:
    """Features by their names; what is missing is null."""
    pairs = zip(desk.plan.names, row, strict=True)
    return {name: None if np.isnan(value) else value for name, value in pairs}


def recorder(desk: Desk, batch: Batch) -> tuple[str, int]:
    """The topic and the partition of the last stage, in which it will score a transaction."""
    stage = desk.stages()[-1]
    key = batch.keys[-1][0] if batch.keys else batch.ids[0]
    return stage.source.name, partition_of(key.encode(), stage.source.partitions)


async def record_one(desk: Desk, value: bytes) -> Decision:
    """Publish a transaction and wait for its score; this worker is the one that gives it.

    Raises Failed: 409 where the id was used before, 504 where no score came in time.
    """
    batch, record = read_one(desk, value)
    stage = desk.stages()[-1]
    identity = batch.ids[0]
    if identity in stage.awaited:
        raise Failed(409, f"{identity} is being scored")
    scored: asyncio.Future[tuple[bytes, str | None]] = asyncio.get_running_loop().create_future()
    stage.awaited[identity] = lambda value, words: _settle(scored, (value, words))
    where, topic = "", desk.topics.transactions
    key = record.key or identity.encode()
    try:
        send = Send(topic.name, partition_of(key, topic.partitions), record.key, value)
        at = await desk.publish(send)
        where = str(at)
        desk.refused[where] = lambda why: _refuse(scored, Failed(409, f"{where}: {why}"))
        if (letter := desk.boards.board.letter_about(where)) is not None:
            desk.refused[where](letter.reason)
        async with asyncio.timeout(_SHARE * desk.settings.access.timeout / 1_000.0):
            told, words = await scored
    except TimeoutError:
        raise Failed(504, f"published as {where}; it was not scored in time") from None
    except Undelivered as error:
        raise not_ready(f"the broker did not take it: {error}") from error
    finally:
        stage.awaited.pop(identity, None)
        desk.refused.pop(where, None)
    return _told(desk, codec.read_score(Record(0, None, told, 0)), words)


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _refuse(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _told(desk: Desk, score: Score, words: str | None) -> Decision:
    return Decision(
        transaction_id=score.transaction_id,
        score=score.score,
        raw=score.raw,
        is_alert=score.is_alert,
        policy=words,
        propensity=score.propensity,
        reasons=score.reasons,
        features=named(desk, [math.nan if v is None else v for v in score.features]),
        model=score.model,
        recorded=True,
        source=score.source,
    )
