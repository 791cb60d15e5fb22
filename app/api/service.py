"""The web server's life: uvicorn in the worker's own loop, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import structlog
import uvicorn
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from mode import Service

from app.api.application import application
from app.api.desk import Desk
from app.api.feed import Feed
from app.api.figures import EVERY_S
from app.api.labelling import labelled
from app.api.lists import flat
from app.boards import Boards
from app.core.board import AlertView, DriftView, Letter, OutcomeView
from app.errors import Refused, Undelivered
from app.kafka import client_settings, now_ms
from app.learning import LearnTask
from app.letters import fetch
from app.peers import Peers, url_of
from app.records import Position
from app.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from app.api.doors import Doors
    from app.config import Settings
    from app.core.learner import Learner
    from app.core.scoring import Scorer
    from app.flow import Flow
    from app.learning import Follower
    from app.records import Record, Send

log = structlog.get_logger(__name__)


#: Seconds that answers under way get, and then all of it.
_GRACE_S, _CLOSE_S = 2, 5.0


class _Server(uvicorn.Server):
    """A server that leaves the process's signals alone: they are Faust's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


def teller(feed: Feed) -> Any:
    """What the boards calls: hands on to the feed what came, as the lists show it."""

    def tell(kind: str, told: Any) -> None:
        match told:
            case AlertView() if kind == "label":
                feed.tell("label", labelled(told))
            case DriftView():
                feed.tell(kind, flat(told, told.drift))
            case OutcomeView():
                feed.tell(kind, flat(told, told.outcome))
            case _:
                feed.tell(kind, told)

    return tell


class Publisher:
    """Writes single records, each with its own acknowledgement; connects at the first."""

    def __init__(self, settings: Settings) -> None:
        """Connect to nobody yet."""
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()

    async def __call__(self, send: Send) -> Position:
        """Write one record. Raises Undelivered."""
        try:
            async with asyncio.timeout(self._settings.delivery_ms / 1_000.0):
                producer = await self._connected()
                at = await producer.send_and_wait(
                    send.topic, send.value, key=send.key, partition=send.partition,
                    headers=list(send.headers),
                )  # fmt: skip
        except (KafkaError, TimeoutError, OSError) as error:
            raise Undelivered(f"{send.topic}[{send.partition}]: {error!r}") from error
        return Position(at.topic, at.partition, at.offset)

    async def _connected(self) -> AIOKafkaProducer:
        async with self._connecting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    **client_settings(self._settings.kafka),
                    acks="all",
                    enable_idempotence=self._settings.kafka.idempotent,
                )
                await producer.start()
                self._producer = producer
        return self._producer

    async def close(self) -> None:
        """Disconnect."""
        if self._producer is not None:
            await self._producer.stop()


class WebServer(Service):
    """Serves a desk; refuses to start where the port is taken."""

    def __init__(self, desk: Desk, **kwargs: Any) -> None:
        """Describe the server; nothing is bound yet."""
        super().__init__(**kwargs)
        self.desk = desk
        self.doors: Doors = application(desk)
        self._server: _Server | None = None

    async def on_start(self) -> None:
        """Bind, and say where."""
        desk, worker, access = self.desk, self.desk.settings.worker, self.desk.settings.access
        try:
            family = socket.AF_INET6 if ":" in worker.web_host else socket.AF_INET
            bound = socket.create_server((worker.web_host, worker.web_port), family=family)
        except OSError as error:
            raise Refused(f"{worker.web_host}:{worker.web_port}: {error.strerror}") from error
        config = uvicorn.Config(
            self.doors,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_GRACE_S,
            h11_max_incomplete_event_size=65_536,
            ssl_certfile=access.cert_file,
            ssl_keyfile=access.key_file,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[bound]))
        self.add_future(self._sample())
        log.info("listening", url=desk.url, is_open=access.is_open)

    async def on_stop(self) -> None:
        """Let every reader go, finish what was asked, close."""
        self.desk.feed.close()
        if self._server is not None:
            self._server.should_exit = True
            await asyncio.wait([self._serving], timeout=_CLOSE_S)
        for part in (self.desk.publish, self.desk.peers):
            if (close := getattr(part, "close", None)) is not None:
                await close()

    async def _sample(self) -> None:
        while not self.should_stop:
            if self._serving.done():
                raise Refused("the web server has ended by itself")
            self.doors.sampler.sample()
            if len(self.desk.feed):
                told = self.doors.sampler.summary(with_series=False)
                self.desk.feed.tell("summary", told, is_kept=False)
            await self.sleep(EVERY_S)


def web_of(
    settings: Settings,
    flow: Flow,
    scorer: Scorer,
    follower: Follower,
    readiness: Callable[[], dict[str, str]],
) -> list[Service]:
    """The web server of a process, and what follows the topics for it."""
    topics, feed = Topics.of(settings), Feed(f"{now_ms():x}", settings.access.streams_max)
    tell = teller(feed)

    def learner() -> Learner | None:
        tasks = (task for task in flow.tasks.values() if isinstance(task, LearnTask))
        return next((task.learner for task in tasks), None)

    def on_news(kind: str, told: Any) -> None:
        if isinstance(told, Letter) and (refuse := desk.refused.get(told.position)) is not None:
            refuse(told.reason)
        tell(kind, told)

    async def fetch_letter(offset: int) -> Record:
        return await fetch(settings, topics, offset)

    boards = Boards(settings, topics, on_news)
    follower.seen = boards.on_snapshot
    tasks_of = flow.metrics.bounded
    flow.metrics.bounded = lambda: [*tasks_of(), feed, boards]
    desk = Desk(
        settings=settings,
        topics=topics,
        plan=scorer.plan,
        flow=flow,
        champion=scorer.champion,
        scorer=scorer,
        boards=boards,
        feed=feed,
        peers=Peers(settings),
        publish=Publisher(settings),
        fetch=fetch_letter,
        readiness=readiness,
        learner=learner,
        url=url_of(settings),
        started_ms=now_ms(),
    )
    return [boards, WebServer(desk)]
