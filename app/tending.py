"""Commands that look after dead letters and tokens; the command line takes them in."""

from __future__ import annotations

import asyncio
import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
import typer
from rich.console import Console

from app.commands import ConfigOption, JsonOption, ProfileOption, err, print_json
from app.config import load
from app.errors import Malformed, Misconfigured, Refused, shown

if TYPE_CHECKING:
    from app.config import Settings
    from app.core.board import Letter, LetterState
    from app.records import Record

tending = typer.Typer()

dead_letters = typer.Typer(
    help="Look at what could not be read, and do something about it.", no_args_is_help=True
)
tending.add_typer(dead_letters, name="dead-letters")

StateOption = Annotated[
    Literal["open", "retried", "dropped", "all"],
    typer.Option("--state", help="Those nothing was done about, or others."),
]
OffsetArgument = Annotated[int, typer.Argument(min=0, help="As the list shows it.")]


@dead_letters.command("list")
def dead_letters_list(
    config: ConfigOption = None,
    profile: ProfileOption = None,
    n: Annotated[int | None, typer.Option("-n", min=1, help="End after so many.")] = None,
    state: StateOption = "open",
    *,
    as_json: JsonOption = False,
) -> None:
    """List dead letters, oldest first: offset, where it lay, why it could not be read."""
    from app.letters import held  # noqa: PLC0415 - `weir --help` need not wait for numba
    from app.tail import told_time  # noqa: PLC0415

    found = asyncio.run(held(load(config, profile)))
    chosen = [one for one in found if state in {"all", one.state}][:n]
    if as_json:
        for one in chosen:
            print_json(_plain(one))
        return
    out = Console(highlight=False, soft_wrap=True, markup=False)
    for one in chosen:
        mark = "" if one.state == "open" else f"  [{one.state} by {one.by}]"
        where = f"{told_time(one.seen_ms)}  {one.offset:>6}  {one.position}  {one.reason}"
        key = one.key or "null"
        out.print(f"{where}  (key {key}, {one.value_bytes} bytes, {one.stage}){mark}")


def _plain(letter: Letter) -> dict[str, Any]:
    """A dead letter for a machine; the excerpt and the page's place are for the console."""
    told = {name: getattr(letter, name) for name in letter.__struct_fields__}
    return {n: v for n, v in told.items() if n not in {"excerpt", "cursor"}}


@dead_letters.command("show")
def dead_letters_show(
    offset: OffsetArgument,
    config: ConfigOption = None,
    profile: ProfileOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Print one dead letter whole: headers and raw value, what does not print escaped."""
    from app.letters import escaped, fetch  # noqa: PLC0415
    from app.topics import Topics  # noqa: PLC0415

    settings = load(config, profile)
    topics = Topics.of(settings)
    record = asyncio.run(fetch(settings, topics, offset))
    told = {
        "position": f"{topics.dead_letters.name}[0]@{offset}",
        "headers": {name: escaped(value) for name, value in record.headers},
        "key": None if record.key is None else escaped(record.key),
        "value": None if record.value is None else escaped(record.value),
    }
    if as_json:
        print_json(told)
        return
    out = Console(highlight=False, soft_wrap=True, markup=False)
    for name, value in told["headers"].items():  # type: ignore[union-attr]
        out.print(f"{name}: {value}")
    out.print(f"key: {told['key']}", f"value: {told['value']}", sep="\n")


@dead_letters.command("retry")
def dead_letters_retry(
    offset: OffsetArgument,
    config: ConfigOption = None,
    profile: ProfileOption = None,
    value: Annotated[
        Path | None, typer.Option("--value", help="A file with the value as it should have been.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="The key as it should have been.")
    ] = None,
) -> None:
    """Publish a transaction or a label again, repaired or as it was, and note that this was done.

    What still cannot be read is not published. A record that is published twice is recognised by
    its id, as ever.
    """
    repaired = None if value is None else _read(value)
    _settle(load(config, profile), offset, "retried", repaired, key)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().removesuffix(b"\n")
    except OSError as error:
        raise Misconfigured(f"--value is {path}: {error.strerror}; expected a file") from None


@dead_letters.command("drop")
def dead_letters_drop(
    offset: OffsetArgument, config: ConfigOption = None, profile: ProfileOption = None
) -> None:
    """Note that nothing will be done about a dead letter; the list does not show it any more."""
    _settle(load(config, profile), offset, "dropped")


def _settle(
    settings: Settings,
    offset: int,
    state: LetterState,
    value: bytes | None = None,
    key: str | None = None,
) -> None:
    try:
        told = asyncio.run(_settled(settings, offset, state, value, key))
    except Malformed as error:
        raise Refused(f"dead letter {offset} still cannot be read: {error}") from None
    err.print(told, highlight=False, soft_wrap=True)


async def _settled(
    settings: Settings, offset: int, state: LetterState, value: bytes | None, key: str | None
) -> str:
    from app.audit import told  # noqa: PLC0415
    from app.core.features import FeaturePlan  # noqa: PLC0415
    from app.kafka import Sender, now_ms  # noqa: PLC0415
    from app.letters import Repair, fetch, held, settles  # noqa: PLC0415
    from app.records import Action  # noqa: PLC0415
    from app.topics import Topics  # noqa: PLC0415

    topics = Topics.of(settings)
    letter = next((one for one in await held(settings) if one.offset == offset), None)
    if letter is None:
        name = topics.dead_letters.name
        raise Refused(f"{name} holds no offset {offset}; expected one that the list shows")
    if letter.state != "open":
        raise Refused(f"dead letter {offset} was {letter.state} by {letter.by}; nothing to do")
    sends, where = [], ""
    if state == "retried":
        record: Record = await fetch(settings, topics, offset)
        plan = FeaturePlan.of(settings.features, settings.transaction.entities)
        again = Repair(settings, topics, plan).retry(letter, record, value, key)
        sends, where = [again], f", published to {again.topic}[{again.partition}]"
    who = getpass.getuser()
    action = f"dead-letter.{'retry' if state == 'retried' else 'drop'}"
    entered = Action(action, str(offset), f"{offset}/{who}/{now_ms()}", who)
    async with Sender(settings) as sender:
        await sender.deliver([told(topics, entered)])
        await sender.deliver(sends)
        await sender.deliver([settles(topics, offset, state, who)])
    return f"dead letter {offset}: {state}{where}"


drift = typer.Typer(help="What weir does when the world changes.", no_args_is_help=True)
tending.add_typer(drift, name="drift")


@drift.command("undo")
def drift_undo(
    incident: Annotated[str, typer.Argument(help="As `weir tail drift` shows it.")],
    because: Annotated[str, typer.Option(help="The reason; it stands in the audit.")],
    config: ConfigOption = None,
    profile: ProfileOption = None,
) -> None:
    """End what is done about an open incident, and let the model of before decide again.

    The word goes into the examples log, so the model remains a function of that; what comes of it
    is told on `drift` and in the audit.
    """
    if not because.strip():
        raise Refused("--because is empty; expected the reason")
    asyncio.run(_undo(load(config, profile), incident, because))
    err.print(f"{incident}: the learner is told", highlight=False, soft_wrap=True)


async def _undo(settings: Settings, incident: str, because: str) -> None:
    from app import codec  # noqa: PLC0415 - as above
    from app.audit import told  # noqa: PLC0415
    from app.kafka import Sender, now_ms  # noqa: PLC0415
    from app.learning import asked  # noqa: PLC0415
    from app.records import Action, Undo  # noqa: PLC0415
    from app.tail import records  # noqa: PLC0415
    from app.topics import Topics  # noqa: PLC0415

    topics, who, known = Topics.of(settings), getpass.getuser(), None
    async for _, record in records(settings, topics.drift, from_beginning=True, to_end=True):
        if record.key == incident.encode():
            known = codec.read_drift(record).event
    if known in {None, "closed"}:
        state = f"is {known}" if known else f"does not lie on {topics.drift.name}"
        raise Refused(f"incident {incident} {state}; expected one that is open")
    detail = {"reason": because}
    action = Action("drift.undo", incident, f"{incident}/{who}/{now_ms()}", who, detail)
    async with Sender(settings) as sender:
        await sender.deliver([told(topics, action)])
        word = Undo(incident=incident, actor=who, reason=because)
        await sender.deliver([asked(topics, word)])


token = typer.Typer(help="Who may use the web server.", no_args_is_help=True)
tending.add_typer(token, name="token")


@token.command("new")
def token_new(
    name: Annotated[str, typer.Argument(help="Whose it is: a person or a service.")],
    role: Annotated[
        Literal["read", "feedback", "admin"], typer.Option(help="Each may what those before may.")
    ] = "read",
    *,
    as_json: JsonOption = False,
) -> None:
    """Make a token. It is printed once, here; the configuration keeps only its hash."""
    from app.access import new_token  # noqa: PLC0415
    from app.config import TokenSettings  # noqa: PLC0415

    try:
        made, hashed = new_token(name)
        setting = TokenSettings(name=name, role=role, hash=hashed).model_dump()
    except ValueError:
        expected = "letters, digits, _ and -"
        raise Misconfigured(f"the name is {shown(name)}; expected {expected}") from None
    if as_json:
        print_json({"token": made, "setting": setting})
        return
    out = Console(highlight=False, soft_wrap=True, markup=False)
    err.print("the token, shown once: Authorization: Bearer ...", highlight=False)
    out.print(made)
    err.print("for the configuration (or WEIR_ACCESS__TOKENS, a JSON list):", highlight=False)
    lines = [f"{key} = {orjson.dumps(value).decode()}" for key, value in setting.items()]
    out.print("\n".join(["[[access.tokens]]", *lines]))
