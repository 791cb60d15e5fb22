"""What the benchmarks share: data that lie beside the project, a broker, a worker, a clock."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"

err = Console(stderr=True)


def data_file(name: str) -> Path:
    """A file of the shared data; says what is missing and ends where there is none."""
    path = DATA / name
    if not path.exists():
        err.print(f"[red]missing[/]: {name} is not in {os.path.relpath(DATA)}; nothing to measure")
        sys.exit(3)
    return path


def progress() -> Progress:
    """A bar on standard error: what, how many of how many, how long still."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=err,
    )


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def kafka(directory: str) -> Iterator[str]:
    """Apache Kafka on a port of its own, wiped at the end; gives its bootstrap address."""
    port = 20_000 + free_port() % 10_000
    command = [str(ROOT / "scripts" / "kafka")]
    options = ["--port", str(port), "--dir", str(ROOT / ".kafka" / directory)]
    subprocess.run([*command, "start", *options], check=True, stdout=sys.stderr)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        subprocess.run([*command, "wipe", *options], check=True, stdout=sys.stderr)


@contextlib.contextmanager
def worker(environment: Mapping[str, str], *arguments: str) -> Iterator[str]:
    """A worker process with its topics made, ready to score; gives its web address."""
    port = free_port()
    env = {**os.environ, **environment, "WEIR_WORKER__WEB_PORT": str(port)}
    weir = [sys.executable, "-m", "app"]
    subprocess.run([*weir, "topics", "create", *arguments], env=env, check=True, cwd=ROOT)
    process = subprocess.Popen([*weir, "worker", *arguments], env=env, cwd=ROOT)
    try:
        wait_until_ready(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_until_ready(process: subprocess.Popen[bytes], port: int, deadline_s: float = 120) -> None:
    """Wait for ``/readyz``; ends the benchmark if the worker ends or is not ready in time."""
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        if process.poll() is not None:
            err.print(f"[red]the worker ended[/] with exit code {process.returncode}")
            sys.exit(1)
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2)
            return
        time.sleep(0.1)
    err.print(f"[red]the worker was not ready[/] within {deadline_s:g} s")
    sys.exit(1)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    return {"cpu": cpu, "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}
