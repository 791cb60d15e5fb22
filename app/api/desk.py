"""What the routes ask: a worker's own state, the board, and whoever has the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import structlog

from app.api.problems import Failed, not_ready
from app.audit import told
from app.core.explain import ranges_of
from app.errors import Undelivered
from app.join import JoinTask
from app.peers import Away
from app.records import Action, Partition
from app.stages import EntityStage, EntityTask
from app.topics import partition_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.access import Who
    from app.api.feed import Feed
    from app.boards import Boards
    from app.config import Settings
    from app.core.explain import Ranges
    from app.core.features import FeaturePlan
    from app.core.learner import Learner
    from app.core.scoring import Champion, Scorer
    from app.flow import Flow
    from app.peers import Answer
    from app.records import Position, Record, Send
    from app.topics import Topics

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Publishing(Protocol):
    """Writes a record and says where it lies. Raises Undelivered."""

    async def __call__(self, send: Send) -> Position:
        """Write it."""


class Asking(Protocol):
    """The other workers; ``peers.Peers``."""

    async def owner(self, topic: str, partition: int) -> str:
        """Address of the worker that has a partition. Raises Away."""

    async def ask(
        self, url: str, method: str, target: str, who: Who, body: bytes = b"", **headers: str
    ) -> Answer:
        """What it answers. Raises Away."""


class Fetching(Protocol):
    """Reads a dead letter, whole. Raises Refused where there is none."""

    async def __call__(self, offset: int) -> Record:
        """Read it."""


@dataclass
class Desk:
    """Everything that a route needs, in one place."""

    settings: Settings
    topics: Topics
    plan: FeaturePlan
    flow: Flow
    champion: Champion
    scorer: Scorer
    boards: Boards
    feed: Feed
    peers: Asking
    publish: Publishing
    fetch: Fetching
    readiness: Callable[[], dict[str, str]]
    learner: Callable[[], Learner | None]  # as far as this process knows it
    url: str = ""
    started_ms: int = 0
    #: What people could change about a transaction, by the column of its feature.
    actionable: Ranges = field(init=False)
    #: Answers to POST /v1/labels by their Idempotency-Key.
    answered: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    #: Dead letters that somebody waits for, by the position of what could not be read.
    refused: dict[str, Callable[[str], None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find what the settings name."""
        self.actionable = ranges_of(self.settings.explain.actionable, self.plan.names)

    async def audit(self, what: str, subject: str, who: Who, **detail: Any) -> None:
        """Enter a change before it is made. Raises Failed if the broker does not take it."""
        log.info("changed", what=what, subject=subject, who=who.name, **detail)
        identity = f"{what}/{subject}/{who.name}/{self.flow.now_ms()}"
        try:
            await self.publish(told(self.topics, Action(what, subject, identity, who.name, detail)))
        except Undelivered as error:
            raise not_ready(f"the broker did not take it: {error}") from error

    def stages(self) -> list[EntityStage]:
        """The entity stages of this process, in the order of the flow. Raises Failed."""
        found = [stage for stage in self.flow.stages if isinstance(stage, EntityStage)]
        if not found:
            raise Failed(503, "this process learns, and decides nothing; ask a worker")
        return found

    def task(self, kind: type[T], topic: str, partition: int) -> T | None:
        """A task of this process; None: another worker has it. Raises Failed: nobody has yet."""
        if not self.flow.is_restored:
            reasons = self.readiness() or {"state": "state is being restored"}
            raise not_ready("; ".join(reasons.values()))
        task = self.flow.tasks.get(Partition(topic, partition))
        return task if isinstance(task, kind) else None

    def entity_task(self, index: int, key: str) -> tuple[EntityTask | None, str, int]:
        """The task that knows an entity of the ``index``-th kind, and where its records lie."""
        stage = self.stages()[index]
        partition = partition_of(key.encode(), stage.source.partitions)
        return self.task(EntityTask, stage.source.name, partition), stage.source.name, partition

    def join_task(self, transaction_id: str) -> tuple[JoinTask | None, str, int]:
        """The task that knows a transaction by its id, and where its score lies."""
        topic = self.topics.scores
        partition = partition_of(transaction_id.encode(), topic.partitions)
        return self.task(JoinTask, topic.name, partition), topic.name, partition

    async def elsewhere(  # noqa: PLR0913 - a request, and on whose behalf
        self, at: tuple[str, int], who: Who, method: str, target: str, body: bytes = b"",
        *, is_peer: bool = False, **headers: str,
    ) -> Answer:  # fmt: skip
        """What the worker that has a partition answers. Raises Failed if nobody does."""
        if is_peer:  # the group is moving: two workers must not ask each other for ever
            raise not_ready("the partition was given to another worker just now")
        try:
            url = await self.peers.owner(*at)
            if url == self.url:
                raise not_ready("the partition has just come, and is being restored")
            return await self.peers.ask(url, method, target, who, body, **headers)
        except Away as error:
            raise not_ready(str(error)) from error
