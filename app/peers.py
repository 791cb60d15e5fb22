"""Which worker of the group has which partition, and asking it.

Every worker tells its address when it joins the group, in the member's user data; the group's
coordinator knows it beside the assignment. So nothing of this has to be kept, and nothing of it can
be out of date for longer than ``_FRESH_S``.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import aiohttp
import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)
from aiokafka.errors import KafkaError
from yarl import URL

from app.access import Seal
from app.kafka import client_settings, now_ms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from app.access import Who
    from app.config import Settings

log = structlog.get_logger(__name__)

#: Seconds for which an answer of the coordinator is believed.
_FRESH_S: Final = 2.0

#: Places in an answer of DescribeGroups: a group's members; of each what it told, and has.
_MEMBERS, _TOLD, _ASSIGNED = 5, 3, 4

PEER_HEADER: Final = "x-weir-peer"


def url_of(settings: Settings) -> str:
    """Where other workers reach this one; empty: it has no web server."""
    worker, access = settings.worker, settings.access
    if not worker.web_port:
        return ""
    scheme = "https" if access.cert_file else "http"
    everywhere = worker.web_host in {"0.0.0.0", "::", ""}  # noqa: S104 - compared, not bound
    told = socket.gethostname() if everywhere else worker.web_host
    host = f"[{told}]" if ":" in told else told
    return worker.web_url or f"{scheme}://{host}:{worker.web_port}"


def assignor(url: str) -> type[RangePartitionAssignor]:
    """Kafka's range assignor, whose members tell where they are reached."""

    class Telling(RangePartitionAssignor):
        @classmethod
        def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
            return ConsumerProtocolMemberMetadata(0, list(topics), url.encode())

    return Telling


class Answer(NamedTuple):
    """What another worker said."""

    status: int
    body: bytes
    content_type: str


class Away(Exception):
    """The worker that has a partition is not known, or does not answer."""


class Peers:
    """The other workers of the group."""

    def __init__(self, settings: Settings) -> None:
        """Connect to nobody yet."""
        self._settings = settings
        self._seal = Seal(settings.learner.key.get_secret_value().encode())
        self._urls: dict[tuple[str, int], str] = {}
        self._asked_s = float("-inf")
        self._admin: AIOKafkaAdminClient | None = None
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Disconnect."""
        if self._admin is not None:
            await self._admin.close()
        if self._http is not None:
            await self._http.close()

    async def owner(self, topic: str, partition: int) -> str:
        """Address of the worker that has a partition. Raises Away."""
        if time.monotonic() - self._asked_s > _FRESH_S:
            try:
                self._urls = await self._ask()
            except (KafkaError, OSError) as error:
                raise Away(f"the group's coordinator does not answer: {error!r}") from error
            self._asked_s = time.monotonic()
        url = self._urls.get((topic, partition))
        if not url:
            raise Away(f"{topic}[{partition}] lies with no worker that has an address")
        return url

    async def _ask(self) -> dict[tuple[str, int], str]:
        if self._admin is None:
            admin = AIOKafkaAdminClient(**client_settings(self._settings.kafka))
            await admin.start()
            self._admin = admin
        urls = {}
        for answer in await self._admin.describe_consumer_groups([self._settings.worker.group]):
            for group in cast("Any", answer).groups:
                for member in group[_MEMBERS]:
                    told, assigned = member[_TOLD], member[_ASSIGNED]
                    if not told or not assigned:
                        continue  # the group has not settled
                    url = ConsumerProtocolMemberMetadata.decode(told).user_data.decode()
                    for tp in ConsumerProtocolMemberAssignment.decode(assigned).partitions():
                        urls[tp.topic, tp.partition] = url
        return urls

    async def ask(
        self, url: str, method: str, target: str, who: Who, body: bytes = b"", **headers: str
    ) -> Answer:
        """What another worker answers somebody; ``target`` is path and query. Raises Away."""
        if self._http is None:
            trusted = self._settings.access.cert_file
            context = ssl.create_default_context(cafile=trusted) if trusted else None
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context or True),
                timeout=aiohttp.ClientTimeout(total=self._settings.access.timeout / 1_000.0),
                auto_decompress=False,
            )
        signed = {
            PEER_HEADER: self._seal.sign(who, method, target, body, now_ms()),
            "content-type": "application/json",
            **headers,
        }
        try:
            async with self._http.request(
                method,
                URL(f"{url}{target}", encoded=True),
                data=body or None,
                headers=signed,
                allow_redirects=False,
            ) as answer:
                return Answer(answer.status, await answer.read(), answer.content_type)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Away(f"{url} does not answer: {error!r}") from error
