"""How long a worker takes from its start to ``/readyz``, as a user starts it.

Three starts, each from the call of the command to the first answer 200, looked at every 20 ms:

- ``cold``: numba has compiled nothing yet (a cache of its own, empty), and no state;
- ``warm``: everything is compiled, no state;
- ``restart``: everything is compiled, and ``--entities`` cards, a tenth as many terminals, lie in
  the changelogs, each with ``--history`` transactions behind it, to be restored first.

Python's own compiled files are there in all three. Topics are made beforehand. ``imports_s`` is
what ``weir --help`` takes, ``cpu_s`` the CPU up to ready.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from common import ROOT, err, free_port, kafka, machine, progress
from measured import Ended, check, cpu, create_topics, end_orderly, rss_bytes, running
from payments import PARTITIONS, worker_environment
from speed import versions

from app import codec
from app.config import Settings, load
from app.core.entity import EntityStore
from app.core.features import FeaturePlan
from app.kafka import Sender
from app.records import Send
from app.topics import Topics, partition_of

_START_S = 300.0
_LOOK_S = 0.02
_CHUNK = 50_000
_START_MS = 1_704_067_200_000
_WEIR = [sys.executable, "-m", "app"]


def environment(bootstrap: str, prefix: str, folder: Path, numba: Path) -> dict[str, str]:
    """What a worker is told, and where its compiled kernels lie."""
    told = worker_environment(bootstrap, prefix, folder, "info")
    return {**told, "NUMBA_CACHE_DIR": str(numba)}


def started(told: dict[str, str], folder: Path) -> dict[str, Any]:
    """Start a worker, wait until it is ready, stop it."""
    port, log = free_port(), folder / "worker.log"
    began_s = time.monotonic()
    environment = {**told, "WEIR_WORKER__WEB_PORT": str(port)}
    with running([*_WEIR, "worker", "--once"], environment, log) as process:
        while not _is_ready(port):
            check(process, log)
            if time.monotonic() > began_s + _START_S:
                raise Ended(f"not ready within {_START_S:g} s")
            time.sleep(_LOOK_S)
        took_s = time.monotonic() - began_s
        used_s, rss = cpu(process.pid).total_s, rss_bytes(process.pid)
    log.unlink()
    return {"ready_s": took_s, "cpu_s": used_s, "rss_mb": rss / 1e6}


def _is_ready(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2).close()
    except (urllib.error.URLError, OSError):
        return False
    return True


def changelog(settings: Settings, entities: int, history: int) -> Iterator[list[Send]]:
    """The rows that a worker would have written for so many entities, some at a time."""
    plan, topics = (
        FeaturePlan.of(settings.features, settings.transaction.entities),
        Topics.of(settings),
    )
    rng = np.random.default_rng(42)
    for index, (entity, (_, windows)) in enumerate(plan.windows.items()):
        # In a worker each partition has a store; what the rows say is the same.
        store = EntityStore(windows, upstreams=1 if index == 0 else PARTITIONS)
        n, topic = max(entities // (1, 10)[index > 0], 1), topics.changelogs[entity].name
        for turn in range(history):
            for start in range(0, n, _CHUNK):
                keys = [f"{entity}-{i:08d}" for i in range(start, min(start + _CHUNK, n))]
                m = len(keys)
                numbers = np.arange(m, dtype=np.int64) + turn * n + start
                store.apply(
                    keys,
                    times_ms=_START_MS + numbers * 1_000,
                    amounts=rng.lognormal(3.0, 1.0, m),
                    ids=[f"transaction-{number:010d}" for number in numbers.tolist()],
                    others=[f"other-{i:05d}" for i in rng.integers(0, 50_000, m).tolist()],
                    upstreams=np.zeros(m, np.int64),
                    offsets=np.full(m, turn),
                )
                yield [
                    Send(
                        topic,
                        partition_of(slot[0].encode(), PARTITIONS),
                        *codec.write_slot(slot, v),
                    )
                    for slot, v in store.changes()
                ]


def transactions(settings: Settings, entities: int, history: int) -> Iterator[Send]:
    """As long a log as the rows say was applied: a shorter one is another, and refused.

    What lies in it was applied, so that nothing follows from it.
    """
    of, (entity, *_) = settings.transaction, settings.transaction.entities
    cards = (f"{entity}-{i:08d}" for i in range(entities))
    by_partition = {partition_of(card.encode(), PARTITIONS): card for card in cards}
    for partition, card in by_partition.items():
        for turn in range(history):
            value = {of.id: f"kept-{turn}", of.time: "2024-01-01T00:00:00Z", of.amount: 1.0}
            value |= dict.fromkeys(of.entities, card)
            name = Topics.of(settings).transactions.name
            yield Send(name, partition, card.encode(), orjson.dumps(value))


async def write(settings: Settings, entities: int, history: int) -> int:
    """Write those changelogs, and that log; how many rows there were."""
    sender, n = Sender(settings), 0
    await sender.start()
    try:
        with progress() as bar:
            total = (entities + entities // 10) * history
            shown = bar.add_task("changelog", total=total, note="")
            for sends in changelog(settings, entities, history):
                await sender.deliver(sends)
                n += len(sends)
                bar.update(shown, completed=n)
        await sender.deliver(transactions(settings, entities, history))
    finally:
        await sender.stop()
    return n


def imports_s() -> float:
    """Seconds that the command takes to say what it is for."""
    began_s = time.monotonic()
    subprocess.run([*_WEIR, "--help"], stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
    return time.monotonic() - began_s


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Starts of each kind.")] = 5,
    entities: Annotated[int, typer.Option(min=10, help="Cards in the changelog.")] = 10_000,
    history: Annotated[int, typer.Option(min=1, help="Transactions an entity.")] = 8,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on the last line.")
    ] = False,
) -> None:
    """Seconds from start to ready: nothing compiled, all compiled, state to restore."""
    end_orderly()
    runs: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": [], "restart": []}
    with kafka("start") as bootstrap, tempfile.TemporaryDirectory(prefix="weir-start-") as told:
        folder, numba = Path(told), Path(told) / "numba"
        kept = environment(bootstrap, "start.kept.", folder / "kept", numba / "warm")
        create_topics(kept)
        settings = load(
            kafka={"bootstrap": bootstrap},
            topics={"prefix": "start.kept.", "partitions": PARTITIONS},
        )
        rows = asyncio.run(write(settings, entities, history))
        with progress() as bar:
            shown = bar.add_task("starts", total=3 * rounds + 1, note="")
            for number in range(rounds + 1):
                empty = environment(
                    bootstrap, f"start.{number}.", folder / str(number), numba / f"cold-{number}"
                )
                create_topics(empty)
                if number == 0:
                    # Fills the cache that the warm starts find.
                    started({**empty, "NUMBA_CACHE_DIR": str(numba / "warm")}, folder)
                    bar.advance(shown)
                    continue
                for kind, environ in (
                    ("cold", empty),
                    ("warm", {**empty, "NUMBA_CACHE_DIR": str(numba / "warm")}),
                    ("restart", kept),
                ):
                    runs[kind].append(started(environ, folder))
                    err.print(f"{number} {kind:8} {runs[kind][-1]['ready_s']:7.2f} s")
                    bar.advance(shown)
    result: dict[str, Any] = {
        kind: {name: median(run[name] for run in found) for name in found[0]}
        for kind, found in runs.items()
    }
    result |= {
        "imports_s": median(imports_s() for _ in range(rounds)),
        "entities": entities,
        "history": history,
        "changelog_rows": rows,
        "rounds": runs,
        "versions": versions(),
        **machine(),
    }
    if as_json:
        print(json.dumps(result))
    else:
        for kind in runs:
            print(f"{kind:8} {result[kind]['ready_s']:7.2f} s, {result[kind]['rss_mb']:.0f} MB")


if __name__ == "__main__":
    typer.run(main)
