"""An Apache Kafka of a test's own, which may be stopped and started again."""

from __future__ import annotations

import os
import random
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "kafka"
TIMEOUT_S = "120"
#: Where scripts/test looks for what a run that was killed has left behind.
DIR = ROOT / ".kafka" / "test"


class Cluster:
    """One broker; its data stay while it is stopped."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.bootstrap = f"127.0.0.1:{port}"

    def run(self, command: str) -> None:
        """Have scripts/kafka do it; returns when it is done."""
        place = ["--dir", str(DIR), "--port", str(self.port)]
        subprocess.run([SCRIPT, command, *place, "--timeout", TIMEOUT_S], check=True, timeout=180)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster that runs, and is gone afterwards."""
    made = Cluster(_port())
    owner = DIR / str(made.port) / "owner"
    owner.parent.mkdir(parents=True, exist_ok=True)
    owner.write_text(f"{os.getpid()}\n")
    try:
        made.run("start")
        yield made
    finally:
        made.run("wipe")


def _port() -> int:
    """Below the ports that the system hands out; its controller listens 1,000 above."""
    for port in random.sample(range(20_000, 31_000), 100):
        if _is_free(port) and _is_free(port + 1_000):
            return port
    raise AssertionError("no port is free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
