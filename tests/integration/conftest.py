"""A broker, and a world on it that ends with its test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.harness import World

MakeWorld = Callable[..., World]


@pytest.fixture
def bootstrap() -> str:
    """The Apache Kafka that the tests may use."""
    found = os.environ.get("WEIR_TEST_BOOTSTRAP")
    if not found:
        pytest.skip("no Apache Kafka: WEIR_TEST_BOOTSTRAP is not set")
    return found


@pytest.fixture
def make_world(bootstrap: str, tmp_path: Path) -> Iterator[MakeWorld]:
    """Makes worlds on the Apache Kafka; what runs in them is ended with the test."""
    made: list[World] = []

    def make(**overrides: dict[str, object]) -> World:
        made.append(World(overrides.pop("bootstrap", bootstrap), tmp_path, **overrides))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for world in made:
        world.close()
