"""weir at work on this machine: broker, topics, worker, simulated payments, and a look at it all.

What is shown is counted from the topics, by a consumer such as anyone may write; average
precision comes from the scores on ``scores`` and the labels as they were published.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from app import tail
from app.admin import Admin
from app.broker import HOST, Embedded, embedded, end, free_port, tethered
from app.config import load, make_folder
from app.errors import Refused
from app.publish import InEventTime, Published, publish, simulated
from app.synth import CARD_FIELDS, Item, Shares, World, spoilt
from app.tally import Tally, lines, table
from app.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.config import Settings

#: Half a day a second: labels come within seconds, and the windows of 30 days fill in a minute.
SPEEDUP: Final = 43_200.0
#: Terminals so few that each sees some payments a day.
_TERMINALS_SIDE: Final = 12
#: More frauds than in life (4 %, not 1 %): a demonstration is short.
_SHARES: Final = Shares(large=0.01, stolen=1.0, testing=0.3)
#: One transaction in so many is published as a broken service would.
_SPOILT_EVERY: Final = 4_000
#: Without --seconds: an hour, in which the simulated time passes five years.
_LONGEST_S: Final = 3_600.0
#: Without --seconds: how long payments go on before the world changes.
_STEADY_S: Final = 45.0
#: 2 GiB: the embedded broker forgets nothing.
_MEMORY_MAX: Final = 2 << 30
_READY_S: Final = 180.0
#: Before the end: what was published last is scored, and its figures arrive.
_DRAIN_S: Final = 3.0
_DRAIN_LOOK_S, _DRAIN_LOOKS = 0.1, 200
_SHOWN_SHARE: Final = 0.5
_SHOW_S: Final = 0.5

err = Console(stderr=True)


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    seconds: float | None = None
    rate: float = 600.0
    bootstrap: str | None = None
    seed: int = 42
    directory: Path = Path(".weir/demo")


def run(plan: Plan) -> dict[str, Any]:
    """Show weir at work for as long as was asked, or until Ctrl-C; the figures at the end."""
    started_s = time.monotonic()
    make_folder(plan.directory, "--directory")
    with ExitStack() as stack:
        broker = None
        if plan.bootstrap is None:
            err.print("[dim]starting the embedded broker[/] (memory only, for demonstrations)")
            broker = stack.enter_context(embedded(log=plan.directory / "broker.log"))
        settings = _settings(plan, broker)
        tally = Tally()
        demo = _Demo(plan, settings, tally, broker, started_s)
        with suppress(KeyboardInterrupt):
            asyncio.run(demo.run(stack))
    return tally.summary()


def _settings(plan: Plan, broker: Embedded | None) -> Settings:
    """The profile ``card``, beside whatever else this machine runs; the worker inherits it."""
    told = {
        "WEIR_KAFKA__SESSION_TIMEOUT": "6s",  # the embedded broker's groups wait half of it
        "WEIR_WORKER__WEB_PORT": str(free_port()),
        "WEIR_WORKER__DATA_DIR": str(plan.directory),
        "WEIR_WORKER__GROUP": f"weir-demo-{os.getpid()}",
        # The world is steady for nine days of event time, in the shortest demonstration.
        "WEIR_DRIFT__WARMUP": "5d",
        "WEIR_DRIFT__LEARNING": "3d",
    }
    if broker is not None:
        told |= {"WEIR_KAFKA__BOOTSTRAP": broker.bootstrap, "WEIR_KAFKA__IDEMPOTENT": "false"}
    else:
        told |= {
            "WEIR_KAFKA__BOOTSTRAP": str(plan.bootstrap),
            "WEIR_TOPICS__PREFIX": f"demo-{int(time.time())}.",
        }
    os.environ.update(told)
    return load(profile="card")


@dataclass
class _Demo:
    """One run: everything that goes on at once, and the order in which it begins and ends."""

    plan: Plan
    settings: Settings
    tally: Tally
    broker: Embedded | None
    started_s: float
    why_ended: str = ""

    async def run(self, stack: ExitStack) -> None:
        """All of it; returns when the time is up, after Ctrl-C or SIGTERM."""
        task = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel if task else sys.exit)
        with suppress(asyncio.CancelledError):
            async with Admin(self.settings) as admin:
                await admin.create(Topics.of(self.settings))
            worker = self._worker(stack)
            await self._ready(worker)
            self._tell()
            watch = asyncio.gather(*(self._watch(kind) for kind in tail.KINDS))
            show = asyncio.create_task(self._show(worker, watch))
            try:
                await self._publish(show)
            finally:
                show.cancel()
                watch.cancel()
                await asyncio.gather(show, watch, return_exceptions=True)
        err.print(f"[dim]{self.why_ended or 'interrupted'}; stopping[/]")

    def _worker(self, stack: ExitStack) -> subprocess.Popen[bytes]:
        log = stack.enter_context((self.plan.directory / "worker.log").open("wb"))
        arguments = [sys.executable, "-m", "app", "worker", "--once", "--profile", "card"]
        process = subprocess.Popen(  # noqa: S603 - our own command
            tethered(arguments), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,  # Ctrl-C is for us; it goes when we have finished
        )  # fmt: skip
        stack.callback(end, process, 10.0)
        return process

    async def _ready(self, worker: subprocess.Popen[bytes]) -> None:
        """Wait until the worker scores."""
        note = "waiting for the worker (on its first run it compiles its kernels)"
        with err.status(note) as status:
            until = time.monotonic() + _READY_S
            while time.monotonic() < until:
                self._refuse_dead(worker)
                port = self.settings.worker.web_port
                if await asyncio.to_thread(_answers, port, "/readyz"):
                    took_s = time.monotonic() - self.started_s
                    err.print(f"[green]ready[/] after {took_s:.1f} s")
                    return
                status.update(f"{note}: {time.monotonic() - self.started_s:.0f} s")
                await asyncio.sleep(0.2)
        raise Refused(f"the worker is not ready after {_READY_S:.0f} s; {self._log_tail()}")

    def _refuse_dead(self, worker: subprocess.Popen[bytes]) -> None:
        if worker.poll() is not None:
            raise Refused(f"the worker ended ({worker.returncode}); {self._log_tail()}")

    def _log_tail(self) -> str:
        path = self.plan.directory / "worker.log"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([f"the end of {path}:", *lines[-10:]])

    def _tell(self) -> None:
        kafka, prefix = self.settings.kafka.bootstrap, self.settings.topics.prefix
        told = f"WEIR_KAFKA__BOOTSTRAP={kafka}" + (
            f" WEIR_TOPICS__PREFIX={prefix}" if prefix else ""
        )
        page = f"http://{HOST}:{self.settings.worker.web_port}"
        err.print(f"open     [bold]{page}/[/]  the console, in a browser", highlight=False)
        err.print(f"broker   {kafka}", highlight=False)
        err.print(
            f"look at  {page}/metrics  {page}/healthz  {page}/readyz",
            highlight=False,
            soft_wrap=True,
        )
        err.print(f"logs     {self.plan.directory}/worker.log", highlight=False)
        # As it was called: a virtual environment's own is seldom on the path.
        command = os.path.relpath(sys.argv[0])
        for what in ("alerts", "drift", "dead-letters"):
            err.print(f"try      {told} {command} tail {what}", highlight=False, soft_wrap=True)

    async def _publish(self, show: asyncio.Task[None]) -> None:
        """Payments and labels, steady first, then in another world; then wait for the rest."""
        plan, pace = self.plan, InEventTime(SPEEDUP)
        left_s = _LONGEST_S
        if plan.seconds is not None:
            spent_s = time.monotonic() - self.started_s
            # A slow start takes from the end: half of what was asked for is shown in any case.
            left_s = max(plan.seconds - spent_s - _DRAIN_S, _SHOWN_SHARE * plan.seconds)
        steady_s = _STEADY_S if plan.seconds is None else left_s / 2.0
        start_ms = time.time_ns() // 1_000_000 - int(left_s * SPEEDUP * 1_000)
        world = World(
            scenario="drift",
            seed=plan.seed,
            start_ms=start_ms,
            per_day=plan.rate * 86_400.0 / SPEEDUP,
            moment_ms=start_ms + int(steady_s * SPEEDUP * 1_000),
            terminals_side=_TERMINALS_SIDE,
            shares=_SHARES,
        )
        until_ms = start_ms + int(left_s * SPEEDUP * 1_000)
        stream = self._stream(world, until_ms)
        self.tally.published = Published()
        sending = asyncio.create_task(
            publish(
                stream,
                self.settings,
                pace,
                published=self.tally.published,
                on_batch=self.tally.on_published,
            )
        )
        try:
            await asyncio.wait({sending, show}, return_when=asyncio.FIRST_COMPLETED)
            if show.done():
                show.result()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        if not sending.cancelled():
            sending.result()
        self.tally.published.end()
        for _ in range(_DRAIN_LOOKS):
            if self._is_drained():
                break
            await asyncio.sleep(_DRAIN_LOOK_S)
        self.why_ended = self.why_ended or "the time is up"

    def _is_drained(self) -> bool:
        return self.tally.behind == 0 and self.tally.n["dead-letters"] >= self.tally.n_spoilt

    def _stream(self, world: World, until_ms: int) -> Iterator[Item]:
        """The world's stream up to a moment of event time, some of it spoilt."""
        paid = 0
        for item in simulated(world, CARD_FIELDS):
            if item.time_ms >= until_ms:
                return
            yield item
            paid += item.kind == "transaction"
            if item.kind == "transaction" and paid % _SPOILT_EVERY == 0:
                self.tally.n_spoilt += 1
                yield spoilt(item, self.tally.n_spoilt)

    async def _watch(self, kind: str) -> None:
        spec = tail.topic_of(kind, self.settings)
        async for at, record in tail.records(self.settings, spec, from_beginning=True):
            self.tally.on_record(kind, at, record)

    async def _show(self, worker: subprocess.Popen[bytes], watch: asyncio.Future[Any]) -> None:
        """Show the figures until cancelled; returns or raises when something else has ended."""
        with table(err) if err.is_terminal else lines(err) as show:
            while self._has_room():
                await asyncio.sleep(_SHOW_S)
                self._refuse_dead(worker)
                if watch.done():
                    watch.result()
                show(self.tally)

    def _has_room(self) -> bool:
        if self.broker is None or self.broker.memory_bytes <= _MEMORY_MAX:
            return True
        held = f"{_MEMORY_MAX >> 30} GiB"
        self.why_ended = f"the embedded broker keeps all in memory, and holds {held} now"
        return False


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()
