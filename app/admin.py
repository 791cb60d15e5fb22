"""Creates and verifies the topics of a configuration."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, Self

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from app.errors import Refused
from app.kafka import client_settings, reach

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from app.config import Settings
    from app.topics import Topics, TopicSpec


#: Ten seconds: what one broker made another may not know yet.
_SETTLED_S: Final = 10.0


class Admin:
    """A connection to the brokers for making and looking at topics; an async context."""

    def __init__(self, settings: Settings) -> None:
        """Describe the connection."""
        self._kafka = settings.kafka
        self._client = AIOKafkaAdminClient(**client_settings(settings.kafka))

    async def __aenter__(self) -> Self:
        """Connect, waiting for a broker that is away."""
        await reach(self._client.start, self._kafka.bootstrap)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        await self._client.close()

    async def create(self, topics: Topics) -> list[str]:
        """Make what is missing; return the names of what was made. Raises Refused."""
        held = set(await self._client.list_topics())
        missing = [spec for spec in topics if spec.name not in held]
        if not missing:
            return []
        answer = await self._client.create_topics(
            [
                NewTopic(
                    name=spec.name,
                    num_partitions=spec.partitions,
                    replication_factor=spec.replication,
                    topic_configs=spec.config,
                )
                for spec in missing
            ]
        )
        for name, code, *message in answer.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:
                text = (
                    f"{name} could not be created: {error.__name__} {message[0] if message else ''}"
                )
                raise Refused(text)
        return [spec.name for spec in missing]

    async def settled(self, topics: Topics | Sequence[TopicSpec]) -> list[str]:
        """``problems`` once the brokers had time to tell each other of topics just made."""
        until_s = time.monotonic() + _SETTLED_S
        while problems := await self.problems(topics):
            if time.monotonic() > until_s:
                break
            await asyncio.sleep(0.1)
        return problems

    async def problems(self, topics: Topics | Sequence[TopicSpec]) -> list[str]:
        """What is not as the configuration asks for, and how to mend it; empty: all is well."""
        described = await self._client.describe_topics([spec.name for spec in topics])
        found = {d["topic"]: d for d in described if not d["error_code"]}
        configs = await self._configs([spec.name for spec in topics if spec.name in found])
        told: list[str] = []
        for spec in topics:
            if spec.name not in found:
                told.append(f"{spec.name} does not exist; run `weir topics create`")
            else:
                told += _differences(spec, found[spec.name], configs.get(spec.name, {}))
        return told

    async def _configs(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """What brokers say of their topics' settings; some (the embedded one) say nothing."""
        asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
        try:
            answers = await self._client.describe_configs(asked)
        except KafkaError:
            return {}
        return {
            name: {entry[0]: entry[1] for entry in entries}
            for answer in answers
            for _, _, _, name, entries in answer.resources
        }


def _differences(spec: TopicSpec, found: dict[str, Any], config: dict[str, str]) -> Sequence[str]:
    told = []
    partitions = found["partitions"]
    if len(partitions) != spec.partitions:
        told.append(
            f"{spec.name} has {len(partitions)} partitions; expected {spec.partitions}: set "
            f"topics.partitions = {len(partitions)}, or make the topic anew"
        )
    replicas = min((len(p["replicas"]) for p in partitions), default=0)
    if replicas < spec.replication:
        told.append(
            f"{spec.name} has {replicas} replicas; expected {spec.replication}: reassign its "
            "partitions, or lower topics.replication"
        )
    policy = config.get("cleanup.policy")
    wanted = spec.config.get("cleanup.policy", "delete")
    if policy is not None and policy != wanted:
        told.append(
            f"{spec.name} has cleanup.policy={policy}; expected {wanted}: kafka-configs.sh --alter "
            f"--entity-type topics --entity-name {spec.name} --add-config cleanup.policy={wanted}"
        )
    for key in ("retention.ms", "max.message.bytes"):
        held, least = config.get(key), spec.config.get(key)
        if held is None or least is None or held == "-1":
            continue
        if least == "-1" or int(held) < int(least):
            told.append(
                f"{spec.name} has {key}={held}; expected at least {least}: kafka-configs.sh "
                f"--alter --entity-type topics --entity-name {spec.name} --add-config {key}={least}"
            )
    return told
