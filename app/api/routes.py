"""The routes: each takes a request apart, asks the desk, and says it in JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, cast
from urllib.parse import quote

import msgspec
from litestar import MediaType, Request, Response, get, post, put
from litestar.datastructures import State
from litestar.exceptions import PermissionDeniedException
from litestar.params import FromPath, HeaderParameter, JSONBody, PathParameter, QueryParameter
from litestar.response import Stream

from app import __version__, codec, logs
from app.access import Who
from app.api import answers as say
from app.api import deciding, explaining, figures, labelling, lists
from app.api.desk import Desk
from app.api.problems import Failed
from app.core.board import Place
from app.errors import Malformed, Refused
from app.learning import asked
from app.letters import settles
from app.records import Undo
from app.stages import entity_of
from app.web import health

Asked = Request[Any, Any, State]
Limit = Annotated[int, QueryParameter(ge=1, le=500, description="Items of a page.")]
Cursor = Annotated[
    str | None, QueryParameter(max_length=80, description="As the page before had it in `next`.")
]
#: Transactions of one request.
BATCH_MAX = 500


def desk_of(request: Asked) -> Desk:
    """The desk of this server."""
    return cast("Desk", request.app.state.desk)


def who_asks(request: Asked) -> Who:
    """Who asks; the doors have seen to it that somebody does."""
    return cast("Who", request.scope["state"]["who"])


async def has_role(request: Any, handler: Any) -> None:
    """Refuse whose role does not do; a route without a role is nobody's.

    A coroutine that waits for nothing: Litestar gives a plain function to a thread, 0.4 ms away.
    """
    needed = handler.opt.get("role")
    if needed == "open":
        return
    who = request.scope["state"]["who"]
    if who is None or needed is None or not who.may(needed):
        raise PermissionDeniedException(f"it takes the role {needed}")


def relayed(answer: Any) -> Response[bytes]:
    """Another worker's answer, as ours."""
    return Response(
        answer.body, status_code=answer.status, media_type=answer.content_type or "application/json"
    )


def _is_peer(request: Asked) -> bool:
    return bool(request.scope["state"]["is_peer"])


# ---- Health and who asks.


def _health(reasons: dict[str, str]) -> Response[say.Health]:
    told = say.Health("failing" if reasons else "ok", reasons)
    return Response(told, status_code=503 if reasons else 200)


@get("/healthz", opt={"role": "open"}, sync_to_thread=False)
def healthz(request: Asked) -> Response[say.Health]:
    """Whether this process makes progress; 503: it should be restarted."""
    return _health(health(desk_of(request).flow))


@get("/readyz", opt={"role": "open"}, sync_to_thread=False)
def readyz(request: Asked) -> Response[say.Health]:
    """Whether this process scores; 503: not yet."""
    return _health(desk_of(request).readiness())


@get("/metrics", opt={"role": "read"}, media_type=MediaType.TEXT, sync_to_thread=False)
def metrics(request: Asked) -> Response[bytes]:
    """What Prometheus reads."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest  # noqa: PLC0415

    told = generate_latest(desk_of(request).flow.metrics.registry)
    return Response(told, media_type=CONTENT_TYPE_LATEST)


@get("/v1/me", opt={"role": "read"}, sync_to_thread=False)
def me(request: Asked) -> say.Me:
    """Who asks, and what they may do."""
    who = who_asks(request)
    return say.Me(who.name, who.role, __version__, desk_of(request).settings.access.is_open)


# ---- Looking on.


@get("/v1/metrics/summary", opt={"role": "read"}, sync_to_thread=False)
def summary(request: Asked) -> say.Summary:
    """This worker in a few numbers."""
    sampler: figures.Sampler = request.app.state.sampler
    return sampler.summary()


@get("/v1/alerts", opt={"role": "read"}, sync_to_thread=False)
def alerts(
    request: Asked,
    limit: Limit = 50,
    cursor: Cursor = None,
    min_score: Annotated[float, QueryParameter(ge=0.0, le=1.0)] = 0.0,
    max_score: Annotated[float, QueryParameter(ge=0.0, le=1.0)] = 1.0,
    label: Annotated[
        Literal["open", "fraud", "legitimate", "unsure", "labelled"] | None,
        QueryParameter(name="state"),
    ] = None,
    entity: Annotated[
        str | None, QueryParameter(max_length=600, description="kind:name", pattern="^[^:]+:.")
    ] = None,
    q: Annotated[
        str | None, QueryParameter(max_length=256, description="Part of an id or of a name.")
    ] = None,
    since: Annotated[int | None, QueryParameter(description="Event time, epoch ms.")] = None,
    until: Annotated[int | None, QueryParameter(description="Event time, epoch ms.")] = None,
    order: Annotated[
        Literal["newest", "score"],
        QueryParameter(description="`score`: the highest first, on one page."),
    ] = "newest",
) -> say.Alerts:
    """Alerts, newest first or the most suspicious first."""
    wanted = lists.Wanted(
        min_score=min_score, max_score=max_score, label=label,
        entity=tuple(entity.split(":", 1)) if entity else None,
        text=q or "", since_ms=since, until_ms=until,
    )  # fmt: skip
    board = desk_of(request).boards.board
    if order == "score":
        return lists.riskiest(board, wanted, limit)
    return lists.alerts(board, wanted, limit, place_of(cursor))


def place_of(cursor: str | None) -> Place | None:
    """Where a page begins. Raises Failed, 400."""
    try:
        return Place.of(cursor) if cursor else None
    except ValueError:
        raise Failed(400, "cursor is none that a page had in `next`") from None


@get("/v1/drift", opt={"role": "read"}, sync_to_thread=False)
def drift(request: Asked, limit: Limit = 50, cursor: Cursor = None) -> say.Page:
    """Incidents as they were told last, newest first."""
    held = desk_of(request).boards.board.drifts.newest(place_of(cursor))
    return lists.page(held, limit, lambda one: one.drift)


@post("/v1/drift/{incident:str}/undo", opt={"role": "admin"}, status_code=202)
async def undo(
    request: Asked,
    incident: Annotated[str, PathParameter(max_length=100)],
    data: JSONBody[say.UndoBody],
) -> say.Undone:
    """End what is done about an open incident, and let the model of before decide again."""
    desk, who = desk_of(request), who_asks(request)
    known = desk.boards.board.incident(incident)
    if known is None:
        raise Failed(404, f"incident {incident}: not held")
    if known.event == "closed":
        raise Failed(409, f"incident {incident} is closed: what was done about it has ended")
    await desk.audit("drift.undo", incident, who, reason=data.reason)
    word = Undo(incident=incident, actor=who.name, reason=data.reason)
    return say.Undone(incident, say.Place(*await desk.publish(asked(desk.topics, word))))


@get("/v1/outcomes", opt={"role": "read"}, sync_to_thread=False)
def outcomes(request: Asked, limit: Limit = 50, cursor: Cursor = None) -> say.Page:
    """What became of labels, newest first."""
    held = desk_of(request).boards.board.outcomes.newest(place_of(cursor))
    return lists.page(held, limit, lambda one: one.outcome)


@get("/v1/models", opt={"role": "read"}, sync_to_thread=False)
def models(request: Asked) -> say.Models:
    """The model in use, its versions, and how good it is."""
    return figures.models(desk_of(request))


@get("/v1/entities/{kind:str}/{name:str}", opt={"role": "read"})
async def entity(
    request: Asked, kind: FromPath[str], name: FromPath[str]
) -> Response[say.EntityHistory]:
    """What is known of an entity, newest first, whichever worker keeps it."""
    desk = desk_of(request)
    kinds = desk.settings.transaction.entities
    if kind not in kinds:
        expected = ", ".join(kinds) or "none is declared"
        raise Failed(404, f'there are no entities of kind "{kind}"; expected one of: {expected}')
    task, *at = desk.entity_task(kinds.index(kind), name)  # nothing is told before it is restored
    found = entity_of(desk.flow.tasks.values(), kind, name)
    if found is None:
        if task is not None:
            raise Failed(404, f"{kind} {name}: not known")
        target = f"/v1/entities/{quote(kind, safe='')}/{quote(name, safe='')}"
        return await _elsewhere(request, at, "GET", target)  # type: ignore[no-any-return]
    rows = [say.EntityRow(**row) for row in found["transactions"]]
    return Response(say.EntityHistory(kind, name, rows))


async def _elsewhere(
    request: Asked, at: list[Any], method: str, target: str, body: bytes = b"", **headers: str
) -> Any:
    where = cast("tuple[str, int]", tuple(at))
    answer = await desk_of(request).elsewhere(
        where, who_asks(request), method, target, body, is_peer=_is_peer(request), **headers
    )
    return relayed(answer)


@get("/v1/transactions/{transaction_id:str}", opt={"role": "read"})
async def transaction(
    request: Asked, transaction_id: FromPath[str]
) -> Response[say.KnownTransaction]:
    """A scored transaction, its features, and what is known of it by now."""
    desk = desk_of(request)
    task, *at = desk.join_task(transaction_id)
    if task is None:
        target = f"/v1/transactions/{quote(transaction_id, safe='')}"
        return await _elsewhere(request, at, "GET", target)  # type: ignore[no-any-return]
    return Response(lists.known_transaction(desk, task, transaction_id))


@get("/v1/transactions/{transaction_id:str}/explain", opt={"role": "read"})
async def explain(request: Asked, transaction_id: FromPath[str]) -> Response[say.Explanation]:
    """Why a transaction got its score, and what would have turned the decision."""
    desk = desk_of(request)
    task, *at = desk.join_task(transaction_id)
    if task is None:
        target = f"/v1/transactions/{quote(transaction_id, safe='')}/explain"
        return await _elsewhere(request, at, "GET", target)  # type: ignore[no-any-return]
    known = lists.known_transaction(desk, task, transaction_id)
    if known.score.feature_schema != desk.plan.schema:
        raise Failed(409, f"{transaction_id} was scored with other features than those of now")
    return Response(explaining.of_score(desk, known.score))


# ---- Deciding.


@post("/v1/explain", opt={"role": "read"}, status_code=200)
async def explain_one(request: Asked) -> say.Explanation:
    """Why a transaction would get its score, read-only."""
    desk = desk_of(request)
    batch = await deciding.peek_one(desk, await request.body(), who_asks(request))
    return explaining.explained(desk, batch)


Record = Annotated[bool, QueryParameter(description="Publish it, and wait for its score.")]


@post("/v1/score", opt={"role": "read"}, status_code=200)
async def score(request: Asked, record: Record = False) -> Response[say.Decision]:
    """Decide now: read-only, or recorded like any other transaction (role feedback)."""
    return await _score(request, await request.body(), is_recorded=record)


async def _score(request: Asked, value: bytes, *, is_recorded: bool) -> Response[Any]:
    desk, who = desk_of(request), who_asks(request)
    if not is_recorded:
        batch = await deciding.peek_one(desk, value, who)
        return Response(deciding.decided(desk, batch))
    if not who.may("feedback"):
        raise PermissionDeniedException("to record it takes the role feedback")
    batch, _ = deciding.read_one(desk, value)
    at = deciding.recorder(desk, batch)
    if desk.task(object, *at) is None:
        return await _elsewhere(request, list(at), "POST", "/v1/score?record=true", value)  # type: ignore[no-any-return]
    return Response(await deciding.record_one(desk, value))


class Batch(msgspec.Struct, forbid_unknown_fields=True):
    """Some transactions, each as its publisher would send it."""

    transactions: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=BATCH_MAX)]


_batch = msgspec.json.Decoder(Batch).decode


@post("/v1/score/batch", opt={"role": "read"}, status_code=200)
async def score_batch(request: Asked, record: Record = False) -> say.Decisions:
    """Decide of several, each as if it came next; what cannot be decided says why."""
    try:
        asked = _batch(await request.body())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Failed(422, f"the body is no batch: {error}") from None
    if record and not who_asks(request).may("feedback"):
        raise PermissionDeniedException("to record it takes the role feedback")
    return say.Decisions(
        [await _item(request, bytes(one), is_recorded=record) for one in asked.transactions]
    )


async def _item(request: Asked, value: bytes, *, is_recorded: bool) -> say.BatchItem:
    try:
        found = (await _score(request, value, is_recorded=is_recorded)).content
    except Failed as error:
        why = say.NotDecided(error.problem.status, error.problem.detail)
        return say.BatchItem(problem=why)
    if not isinstance(found, bytes):
        return say.BatchItem(decision=found)
    try:
        return say.BatchItem(decision=msgspec.json.decode(found, type=say.Decision))
    except msgspec.DecodeError:
        return say.BatchItem(problem=msgspec.json.decode(found, type=say.NotDecided))


@post(deciding.PEEK, opt={"role": "read"}, include_in_schema=False)
async def peek(request: Asked) -> Response[bytes]:
    """What another worker asks of the entities that this one keeps."""
    if not _is_peer(request):
        raise PermissionDeniedException("it takes a worker of this installation")
    told = deciding.peek_for_peer(desk_of(request), await request.body())
    return Response(told, media_type="application/msgpack")


# ---- Teaching.


@post("/v1/labels", opt={"role": "feedback"}, status_code=202)
async def labels(
    request: Asked,
    data: JSONBody[say.LabelBody],
    key: Annotated[
        str | None, HeaderParameter(name="Idempotency-Key", max_length=200, min_length=1)
    ] = None,
) -> Response[say.Labelled]:
    """Say what a transaction was; the answer says what this will lead to."""
    desk, who = desk_of(request), who_asks(request)
    task, *at = desk.join_task(data.transaction_id)
    if task is None:
        body, more = codec.encode(data), {"idempotency-key": key} if key else {}
        return await _elsewhere(request, at, "POST", "/v1/labels", body, **more)  # type: ignore[no-any-return]
    return Response(await labelling.label(desk, task, who, data, key), status_code=202)


# ---- Dead letters.


@get("/v1/dead-letters", opt={"role": "read"}, sync_to_thread=False)
def dead_letters(
    request: Asked,
    limit: Limit = 50,
    cursor: Cursor = None,
    which: Annotated[
        Literal["open", "retried", "dropped", "all"], QueryParameter(name="state")
    ] = "open",
    reason: Annotated[str | None, QueryParameter(max_length=200, description="Part of it.")] = None,
) -> say.Letters:
    """What could not be read, newest first."""
    board = desk_of(request).boards.board
    return lists.letters(board, which, reason or "", limit, place_of(cursor))


Offset = Annotated[int, PathParameter(ge=0, le=2**63 - 1)]


async def _letter(request: Asked, offset: int) -> Any:
    desk = desk_of(request)
    letter = desk.boards.board.letter(offset)
    if letter is None:
        raise Failed(404, f"dead letter {offset}: not held")
    try:
        return letter, await desk.fetch(offset)
    except Refused as error:
        raise Failed(404, str(error)) from None


@get("/v1/dead-letters/{offset:int}", opt={"role": "feedback"})
async def dead_letter(request: Asked, offset: Offset) -> say.WholeLetter:
    """A dead letter whole: what it says of itself, and its value."""
    letter, record = await _letter(request, offset)
    return lists.whole_letter(letter, record)


@post("/v1/dead-letters/{offset:int}/retry", opt={"role": "admin"}, status_code=202)
async def retry(request: Asked, offset: Offset, data: JSONBody[say.LetterBody]) -> say.Settled:
    """Publish a dead letter again, repaired or as it was."""
    desk, who = desk_of(request), who_asks(request)
    letter, record = await _letter(request, offset)
    _check_open(letter)
    value = None if data.value is None else data.value.encode("utf-8", "surrogatepass")
    try:
        send = request.app.state.repair.retry(letter, record, value, data.key)
    except Malformed as error:
        raise deciding.malformed(error) from None
    except Refused as error:
        raise Failed(409, str(error)) from None
    await desk.audit("dead-letter.retry", str(offset), who)
    at = await desk.publish(send)
    await desk.publish(settles(desk.topics, offset, "retried", who.name))
    return say.Settled(offset, "retried", say.Place(*at))


@post("/v1/dead-letters/{offset:int}/drop", opt={"role": "admin"}, status_code=202)
async def drop(request: Asked, offset: Offset, data: JSONBody[say.Nothing]) -> say.Settled:
    """Say that nothing will be done about a dead letter."""
    del data
    desk, who = desk_of(request), who_asks(request)
    letter = desk.boards.board.letter(offset)
    if letter is None:
        raise Failed(404, f"dead letter {offset}: not held")
    _check_open(letter)
    await desk.audit("dead-letter.drop", str(offset), who)
    await desk.publish(settles(desk.topics, offset, "dropped", who.name))
    return say.Settled(offset, "dropped")


def _check_open(letter: Any) -> None:
    if letter.state != "open":
        raise Failed(409, f"dead letter {letter.offset} was {letter.state} by {letter.by}")


# ---- Operating.


@get("/v1/config", opt={"role": "admin"}, sync_to_thread=False)
def config(request: Asked) -> say.Config:
    """The configuration, its secrets hidden."""
    desk = desk_of(request)
    told = desk.settings.model_dump(mode="json")
    for token in told["access"]["tokens"]:
        token["hash"] = "**********"
    return say.Config(told, list(desk.plan.names), desk.plan.schema)


@put("/v1/log-level", opt={"role": "admin"})
async def log_level(request: Asked, data: JSONBody[say.LevelBody]) -> say.LevelBody:
    """Log more, or less, until the process ends."""
    await desk_of(request).audit("log-level", "worker", who_asks(request), level=data.level)
    logs.set_level(data.level)
    return data


@get("/v1/events", opt={"role": "read"}, sync_to_thread=False)
def events(
    request: Asked,
    after: Annotated[str | None, QueryParameter(max_length=80)] = None,
    last: Annotated[str | None, HeaderParameter(name="Last-Event-ID", max_length=80)] = None,
) -> Stream:
    """What happens, as server-sent events."""
    desk = desk_of(request)
    if len(desk.feed) >= desk.feed.streams_max:
        most = f"at most {desk.feed.streams_max} readers"
        raise Failed(503, f"too many listen; expected {most}", retry_after="10")
    told: AsyncIterator[bytes] = desk.feed.listen({"version": __version__}, last or after or "")
    return Stream(told, media_type="text/event-stream", headers={"x-accel-buffering": "no"})


ROUTES = [
    healthz, readyz, metrics, me, summary, alerts, drift, undo, outcomes, models, entity,
    transaction, explain, explain_one, score, score_batch, peek, labels, dead_letters, dead_letter,
    retry, drop, config, log_level, events,
]  # fmt: skip
