"""Apache Kafka of the scenarios' own, and a link to it that can be slowed, held and cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Literal

ROOT: Final = Path(__file__).resolve().parents[2]
#: As scripts/kafka --proxied has it: the door, and where clients are told that it is.
_DOOR, _TOLD = 2_000, 3_000
_PART_BYTES: Final = 2_048


class Cluster:
    """Brokers on ports of their own, under a folder of their own; see scripts/kafka."""

    def __init__(self, port: int, folder: Path, nodes: int = 1) -> None:
        """Describe the cluster; ``start`` runs it."""
        self.port, self.folder, self.nodes = port, folder, nodes
        self.is_ours = False

    def _addresses(self, beyond: int) -> str:
        return ",".join(f"127.0.0.1:{self.port + beyond + i}" for i in range(self.nodes))

    @property
    def bootstrap(self) -> str:
        """Where clients find it."""
        return self._addresses(0)

    @property
    def proxied(self) -> str:
        """Where clients find it whose records pass the link."""
        return self._addresses(_TOLD)

    async def run(self, command: str, *options: str) -> None:
        """Run scripts/kafka and wait for it. Raises RuntimeError with what it says."""
        where = ("--port", str(self.port), "--dir", str(self.folder))
        process = await asyncio.create_subprocess_exec(
            str(ROOT / "scripts" / "kafka"), command, *where, *options,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, said = await process.communicate()
        if process.returncode:
            raise RuntimeError(said.decode(errors="replace").strip())

    async def start(self) -> None:
        """Start what does not run, with its data, and wait until it answers."""
        await self.run("start", "--nodes", str(self.nodes), "--proxied")

    async def stop(self) -> None:
        """Stop it as an operator does."""
        await self.run("stop")

    async def claim(self) -> None:
        """Wipe what lies there and note whose it is now, for ``sweep``.

        Raises RuntimeError where it belongs to a process that is there.
        """
        owner = self.folder / str(self.port) / "owner"
        if owner.exists() and _is_there(whose := int(owner.read_text())):
            msg = f"the cluster on port {self.port} is that of process {whose}; choose another port"
            raise RuntimeError(msg)
        await self.wipe()
        owner.parent.mkdir(parents=True)
        partial = owner.with_suffix(".partial")
        partial.write_text(str(os.getpid()))
        partial.replace(owner)
        self.is_ours = True

    async def wipe(self) -> None:
        """Stop it and delete its data."""
        await self.run("wipe", "--timeout", "10")

    def pid(self, node: int = 1) -> int:
        """The process of the n-th node, from 1."""
        return int((self.folder / str(self.port) / str(node) / "pid").read_text())

    def kill(self, node: int = 1) -> None:
        """As a power cut of one node."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid(node), signal.SIGKILL)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


async def sweep(folder: Path) -> int:
    """Wipe the clusters in a folder that whoever was killed left behind; return how many."""
    left = [at for at in folder.glob("*/owner") if not _is_there(int(at.read_text()))]
    for owner in left:
        await Cluster(int(owner.parent.name), folder).wipe()
    return len(left)


Way = Literal["up", "down"]  # to the brokers, from them
_Meet = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Link:
    """TCP between clients and the brokers' second door.

    What was on its way when the link is held arrives when it is healed; what was on its way when
    it is cut is lost, with the connections.
    """

    def __init__(self, cluster: Cluster, latency_s: float = 0.0) -> None:
        """Describe the link, each way of which takes ``latency_s``; ``open`` listens."""
        self._cluster, self._latency_s = cluster, latency_s
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing: set[asyncio.Future[Any]] = set()
        self._free = {"up": asyncio.Event(), "down": asyncio.Event()}
        self.is_cut = False
        self.delay_s = 0.0
        self.up_bytes_per_s = 0
        self.n_waiting = 0  # bytes on their way up
        self._trap: tuple[bytes, int] | None = None
        self.sprung = asyncio.Event()
        self.heal()

    async def open(self) -> None:
        """Listen where the brokers say that they are."""
        for i in range(self._cluster.nodes):
            at = self._cluster.port + i
            self._servers.append(
                await asyncio.start_server(self._meet(at + _DOOR), "127.0.0.1", at + _TOLD)
            )

    async def close(self) -> None:
        """Cut it and listen no more."""
        for server in self._servers:
            server.close()
        self.cut()
        passing = list(self._passing)
        for task in passing:
            task.cancel()
        await asyncio.gather(*passing, return_exceptions=True)

    def cut(self) -> None:
        """End every connection; take no other until ``heal``."""
        self.is_cut = True
        for writer in list(self._writers):
            writer.transport.abort()

    def hold(self, way: Way) -> None:
        """Let nothing pass one way."""
        self._free[way].clear()

    def trap(self, mark: bytes, bytes_per_s: int) -> None:
        """Let what goes up pass so slowly from the first piece on that holds ``mark``."""
        self._trap = (mark, bytes_per_s)
        self.sprung.clear()

    def heal(self) -> None:
        """Let everything pass as it did in the beginning."""
        self.is_cut, self.delay_s, self.up_bytes_per_s = False, self._latency_s, 0
        self._trap = None
        for free in self._free.values():
            free.set()

    def _meet(self, port: int) -> _Meet:
        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                if self.is_cut:
                    raise ConnectionRefusedError
                there, back = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                writer.transport.abort()
                return
            self._writers |= {writer, back}
            # Held here: nothing else does while it waits.
            task = asyncio.gather(self._pipe(reader, back, "up"), self._pipe(there, writer, "down"))
            self._passing.add(task)
            with contextlib.suppress(asyncio.CancelledError):  # the link is closed
                await task
            self._passing.discard(task)
            self._writers -= {writer, back}

        return meet

    async def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await self._free[way].wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if way == "up" and self._trap and self._trap[0] in data:
                    (_, self.up_bytes_per_s), self._trap = self._trap, None
                    self.sprung.set()
                if way == "up" and self.up_bytes_per_s:
                    await self._trickle(writer, data)
                else:
                    writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()

    async def _trickle(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Let bytes pass at the pace that is set; ``n_waiting`` says how many have not yet."""
        self.n_waiting += len(data)
        left = len(data)
        try:
            for start in range(0, len(data), _PART_BYTES):
                part = data[start : start + _PART_BYTES]
                writer.write(part)
                await writer.drain()
                left -= len(part)
                self.n_waiting -= len(part)
                if left and self.up_bytes_per_s:
                    await asyncio.sleep(len(part) / self.up_bytes_per_s)
        finally:
            self.n_waiting -= left
