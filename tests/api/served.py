"""The real web application of the workers of a driver: everything but the wire and the clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import httpx
import msgspec
import uvicorn

from app.access import Seal, Who
from app.api.application import application
from app.api.desk import Desk
from app.api.feed import Feed
from app.api.service import teller
from app.boards import Boards
from app.config import Settings, load
from app.core.board import Letter
from app.errors import Refused
from app.kafka import now_ms
from app.learning import LearnTask
from app.peers import PEER_HEADER, Answer, Away
from app.records import Action, Partition, Position, Record, Send
from app.stages import scorer_of
from app.testing import Driver, Process
from app.web import readiness

MINUTE_MS = 60_000
START = "2026-05-31T09:00:00Z"


def transaction(name: str, **fields: Any) -> dict[str, Any]:
    """A transaction of the profile "card"."""
    told = {"transaction_id": name, "event_time": START, "card_id": "card-1"}
    return {**told, "terminal_id": "shop-1", "amount": 12.5, **fields}


class Peers:
    """The other workers of the driver, asked in memory."""

    def __init__(self, served: Served, name: str) -> None:
        self._served, self._name = served, name
        self._seal = Seal(served.driver.settings.learner.key.get_secret_value().encode())
        self.n_asked = 0

    async def owner(self, topic: str, partition: int) -> str:
        """Address of the worker that has a partition."""
        for name, process in self._served.driver.processes.items():
            if Partition(topic, partition) in process.flow.tasks:
                return f"http://{name}"
        raise Away(f"{topic}[{partition}]")

    async def ask(
        self, url: str, method: str, target: str, who: Who, body: bytes = b"", **headers: str
    ) -> Answer:
        """What it answers."""
        self.n_asked += 1
        signed = {PEER_HEADER: self._seal.sign(who, method, target, body, now_ms()), **headers}
        name = url.removeprefix("http://")
        async with self._served.client(name) as client:
            told = {"content-type": "application/json", **signed}
            answer = await client.request(method, target, content=body, headers=told)
        return Answer(answer.status_code, answer.content, answer.headers.get("content-type", ""))


class Served:
    """A driver, and the web application of each of its workers."""

    def __init__(self, workers: int = 1, **tables: Any) -> None:
        told = {"model": {"name": "logistic"}, "topics": {"partitions": 4}, **tables}
        settings: Settings = load(None, "card", **told)
        self.driver = Driver(settings, workers=workers)
        self.desks = {name: self._desk(p) for name, p in self.driver.processes.items()}
        self.apps = {name: application(desk) for name, desk in self.desks.items()}
        self._seen: dict[tuple[str, Partition], int] = {}
        self.run()

    def _desk(self, process: Process) -> Desk:
        driver, settings, feed = (
            self.driver,
            self.driver.settings,
            Feed("test", self.driver.settings.access.streams_max),
        )
        tell = teller(feed)

        def on_news(kind: str, told: Any) -> None:
            if isinstance(told, Letter) and told.position in desk.refused:
                desk.refused[told.position](told.reason)
            tell(kind, told)

        boards = Boards(settings, driver.topics, on_news)
        boards.caught_up.set()
        if process.follower is not None:
            process.follower.seen = boards.on_snapshot

        async def fetch(offset: int) -> Record:
            log = driver.logs[Partition(driver.topics.dead_letters.name, 0)]
            if offset >= log.end:
                raise Refused(f"no dead letter {offset}")
            return log.records[offset]

        def learner() -> Any:
            tasks = process.flow.tasks.values()
            return next((t.learner for t in tasks if isinstance(t, LearnTask)), None)

        desk = Desk(
            settings=settings,
            topics=driver.topics,
            plan=driver.plan,
            flow=process.flow,
            champion=process.champion,
            scorer=scorer_of(settings, driver.plan, process.champion),
            boards=boards,
            feed=feed,
            peers=Peers(self, process.name),
            publish=self._publish,
            fetch=fetch,
            readiness=lambda: readiness(process.flow, lambda: True),
            learner=learner,
            url=f"http://{process.name}",
        )
        return desk

    async def _publish(self, send: Send) -> Position:
        at = Position(send.topic, send.partition, self.driver._append(send))
        self.run()
        return at

    @property
    def audited(self) -> list[tuple[str, str]]:
        """Kind and actor of every action that was said."""
        values = [record.value or b"" for record in self.driver.records("actions")]
        said = [msgspec.json.decode(value, type=Action) for value in values]
        return [(action.kind, action.actor) for action in said]

    def run(self) -> None:
        """Let the flow come to rest, and every board see what came of it."""
        self.driver.run()
        topics = self.driver.topics
        shown = {s.name for s in (topics.alerts, topics.outcomes, topics.drift)}
        shown.add(topics.dead_letters.name)
        for name, desk in self.desks.items():
            for at, log in self.driver.logs.items():
                if at.topic in shown:
                    for record in log.between(self._seen.get((name, at), 0)):
                        desk.boards.take_one(Position(*at, record.offset), record)
                    self._seen[name, at] = log.end

    def publish(self, *transactions: dict[str, Any]) -> None:
        """Publish transactions as a service does, and wait until they are scored."""
        for one in transactions:
            self.driver.now_ms += 1
            self.driver.publish("transactions", one)
        self.run()

    @property
    def desk(self) -> Desk:
        """The desk of the first worker."""
        return self.desks["worker-0"]

    def client(self, name: str = "worker-0", **headers: str) -> httpx.AsyncClient:
        """Somebody who asks a worker."""
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app=cast("Any", self.apps[name])),
            base_url="http://127.0.0.1",
            headers=headers,
        )


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """An application behind a port of this machine, in a thread; gives its address."""
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 10.0
    while not server.started:
        assert time.monotonic() < until, "the server does not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10.0)
