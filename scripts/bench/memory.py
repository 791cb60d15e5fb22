"""What entities cost, in bytes and microseconds; and whether a worker's memory grows.

Entities: two stores with the features of the default card profile, ``entities`` cards and as
many terminals, each with so many transactions behind it (``--history``); each size in a process
of its own. ``rss_mb`` is what the process has gained, resident, from before the first entity to
after the last; ``bytes_an_entity`` is that by entity, the dictionary of keys and all included.
``us`` is the CPU that a further transaction of an entity drawn at random costs in one store:
fold, features, and the rows for the changelog; batches of 2,048. The largest size takes minutes.

Disk (``--disk ROOM``): one store of cards with room for so many entities in memory, and the rest
in RocksDB in a folder of its own; each with ``--history`` transactions behind it. ``us_uniform`` is
the CPU, RocksDB's threads included, that a further transaction of any entity costs, all equally
likely: nearly each is read from the disk, and another goes there. ``us_skewed`` is that where 1 in
1,000 entities makes half of the transactions and 1 in 10 four fifths (``_SKEW``).

Soak (``--soak MINUTES``): a worker as shipped, learner and join included, under a steady load
of simulated payments and labels through Apache Kafka. A day of event time goes by each second;
the entities are always the same. The slope is that of resident bytes over time by least squares,
with its standard error, after a warm-up in which all that is bounded by design should fill: the
join in 90 s, histories in so long as 256 payments at each of 576 terminals take at the rate, what
the learner remembers in so long as 390,000 do (``warm_seconds``).
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import err, free_port, kafka, machine, progress, wait_until_ready
from measured import check, cpu, create_topics, end_orderly, rss_bytes, running
from speed import versions

from app.config import load
from app.core.cold import Cold
from app.core.entity import EntityStore
from app.core.features import FeaturePlan
from app.core.windows import WindowPlan
from app.disk import Disk

SIZES = (10_000, 100_000, 1_000_000)
_BATCH = 2_048
_STEADY_BATCHES = 200
#: Entity u ** 10 * n for u drawn evenly: half of the draws fall on 1 in 1,000.
_SKEW = 10.0
_HOUR_MS = 3_600_000
_START_MS = 1_704_067_200_000

#: A day of event time each second.
_SPEEDUP = 86_400.0
#: Seconds of a soak, at least, that are not looked at: the join reaches its level.
_WARM_S = 180.0
#: Payments until the history of every terminal of the simulated world is full, and a quarter more.
_FILLED = 1.25 * 256 * 24**2
#: Payments until the learner remembers as many ids as it may (``learner.learnt_max``), and half as
#: many more: with the 350,000th the dictionary that finds them has made its last room.
_LEARNT = 1.5 * 262_144
#: Below this share of the rate the slope says that the load was too high, and nothing else.
_KEPT_UP = 0.97


def _store(windows: WindowPlan, n: int, cold: Cold | None = None) -> EntityStore:
    """A store bounded as a worker's, but for ``n``, how many entities there may be."""
    told = load().entity
    return EntityStore(
        windows,
        history_max=told.history_max,
        bucket_ms=told.bucket,
        buckets_max=told.buckets_max,
        entities_max=n,
        cold=cold,
    )


def grown(n: int, history: int, seed: int) -> dict[str, Any]:
    """Fill a pair of stores with ``n`` entities each; what that took."""
    settings = load()
    plan = FeaturePlan.of(settings.features, settings.transaction.entities)
    stores = [_store(windows, 2 * n) for _, windows in plan.windows.values()]
    warm = [_store(windows, 2 * n) for _, windows in plan.windows.values()]
    rng = np.random.default_rng(seed)
    for store in warm:
        _apply(store, rng.integers(0, 1_000, _BATCH), 0, rng)
    del warm
    gc.collect()
    before, offset = rss_bytes(os.getpid()), 0
    began_s = time.process_time()
    for _ in range(history):
        order = rng.permutation(n)
        for start in range(0, n, _BATCH):
            who = order[start : start + _BATCH]
            for store in stores:
                _apply(store, who, offset, rng)
            offset += len(who)
    filled_s = time.process_time() - began_s
    gc.collect()
    after = rss_bytes(os.getpid())
    used_s = 0.0
    for _ in range(_STEADY_BATCHES):
        who = rng.integers(0, n, _BATCH)
        for store in stores:
            used_s += _apply(store, who, offset, rng)
        offset += _BATCH
    return {
        "entities": n,
        "stores": len(stores),
        "history": history,
        "rss_mb": (after - before) / 1e6,
        "bytes_an_entity": (after - before) / (n * len(stores)),
        "columns_bytes_an_entity": sum(store.nbytes for store in stores) / (n * len(stores)),
        "us": used_s * 1e6 / (_STEADY_BATCHES * _BATCH * len(stores)),
        "us_while_filling": filled_s * 1e6 / (n * history * len(stores)),
    }


def on_disk(n: int, history: int, room: int, seed: int) -> dict[str, Any]:
    """Fill a store of ``n`` entities of which ``room`` may be in memory; what that took."""
    settings = load()
    plan = FeaturePlan.of(settings.features, settings.transaction.entities)
    windows, rng = plan.windows[settings.transaction.entities[0]][1], np.random.default_rng(seed)
    _apply(_store(windows, n), rng.integers(0, 1_000, _BATCH), 0, rng)
    before = rss_bytes(os.getpid())
    with tempfile.TemporaryDirectory(prefix="weir-disk-") as folder:
        disk = Disk(Path(folder), settings.entity.disk_cache_bytes)
        store = _store(windows, room, disk.open("cards"))
        offset, filled_s = 0, 0.0
        for _ in range(history):
            for start in range(0, n, _BATCH):
                who = np.arange(start, min(start + _BATCH, n)) * 7_919 % n  # in no order of names
                filled_s += _apply(store, who, offset, rng)
                offset += len(who)
        told: dict[str, Any] = {
            "entities": n,
            "in_memory_at_most": room,
            "history": history,
            "us_while_filling": filled_s * 1e6 / offset,
        }
        for name, power in (("skewed", _SKEW), ("uniform", 1.0)):
            used_s, began_s = 0.0, time.monotonic()
            for _ in range(_STEADY_BATCHES):
                who = (rng.random(_BATCH) ** power * n).astype(np.int64)
                used_s += _apply(store, who, offset, rng)
                offset += _BATCH
            told[f"us_{name}"] = used_s * 1e6 / (_STEADY_BATCHES * _BATCH)
            told[f"seconds_{name}"] = time.monotonic() - began_s
        files = [path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()]
        return {
            **told,
            "rss_mb": (rss_bytes(os.getpid()) - before) / 1e6,
            "columns_mb": store.nbytes / 1e6,
            "disk_mb": sum(files) / 1e6,
            "on_disk": store.n_cold,
        }


def _apply(store: EntityStore, who: Any, offset: int, rng: np.random.Generator) -> float:
    """One batch; the CPU seconds that it took, its making not included."""
    n = len(who)
    keys = [f"entity-{i:08d}" for i in who.tolist()]
    others = [f"other-{i:05d}" for i in rng.integers(0, 50_000, n).tolist()]
    ids = [f"transaction-{offset + i:010d}" for i in range(n)]
    offsets = offset + np.arange(n, dtype=np.int64)
    # A hundred thousand transactions an hour, whatever the number of entities.
    times = _START_MS + offsets * _HOUR_MS // 100_000
    amounts = rng.lognormal(3.0, 1.0, n)
    upstreams = np.zeros(n, np.int64)
    began_s = time.process_time()
    store.apply(
        keys,
        times_ms=times,
        amounts=amounts,
        ids=ids,
        others=others,
        upstreams=upstreams,
        offsets=offsets,
    )
    store.changes()
    return time.process_time() - began_s


def _in_child(measured: Callable[..., dict[str, Any]], *given: int) -> dict[str, Any]:
    """The same in a process that ends after it: memory is given back to nobody else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, given)


def soak(minutes: float, rate: float) -> dict[str, Any]:
    """A worker under steady load; how its resident bytes go."""
    warm_s = max(_WARM_S, _FILLED / rate, _LEARNT / rate)
    seconds = warm_s + minutes * 60.0
    with kafka("soak") as bootstrap, tempfile.TemporaryDirectory(prefix="weir-soak-") as told:
        folder, port = Path(told), free_port()
        environment = {
            "WEIR_KAFKA__BOOTSTRAP": bootstrap,
            "WEIR_TOPICS__RETENTION": "1m",
            "WEIR_WORKER__WEB_PORT": str(port),
            "WEIR_WORKER__DATA_DIR": str(folder / "state"),
            "WEIR_WORKER__LOG_LEVEL": "warning",
        }
        weir = [sys.executable, "-m", "app"]
        create_topics(environment)
        load_of = [
            *(*weir, "simulate", "--rate", str(rate), "--speedup", str(_SPEEDUP)),
            *("--seconds", str(seconds + 30.0)),
        ]
        log = folder / "worker.log"
        with running([*weir, "worker", "--once"], environment, log) as worker:
            wait_until_ready(worker, port)
            with running(load_of, environment, folder / "load.log") as load:
                samples = _watched(worker, load, port, seconds, log, folder / "load.log")
    at, rss = (np.array([s[name] for s in samples]) for name in ("s", "rss"))
    kept = at >= warm_s
    slope, error = _slope(at[kept] / 60.0, rss[kept])
    first, last = samples[int(np.argmax(kept))], samples[-1]
    scored_per_s = (last["scored"] - first["scored"]) / (last["s"] - first["s"])
    behind = f"{scored_per_s:.0f} of {rate:g}/s were scored: it did not keep up, and held more"
    return {
        "minutes": minutes,
        "warm_seconds": warm_s,
        "rate": rate,
        "problem": behind if scored_per_s < _KEPT_UP * rate else None,
        "scored_per_s": scored_per_s,
        "transactions_scored": last["scored"] - first["scored"],
        "examples_learned": last["learned"] - first["learned"],
        "rss_mb_at_first": first["rss"] / 1e6,
        "rss_mb_at_last": last["rss"] / 1e6,
        "rss_mb_highest": float(rss[kept].max()) / 1e6,
        "slope_kb_a_minute": slope / 1e3,
        "slope_kb_a_minute_error": error / 1e3,
        "cpu_share": (last["cpu"] - first["cpu"]) / (last["s"] - first["s"]),
        "samples": [[round(s["s"]), round(s["rss"] / 1e6, 2), s["scored"]] for s in samples],
    }


def _watched(  # noqa: PLR0913, PLR0917 - two processes and what they say
    worker: Any, load: Any, port: int, seconds: float, log: Path, load_log: Path
) -> list[dict[str, float]]:
    began_s, samples = time.monotonic(), []
    with progress() as bar:
        shown = bar.add_task("soak, seconds", total=int(seconds), note="")
        while (at_s := time.monotonic() - began_s) < seconds:
            check(worker, log)
            check(load, load_log)
            rss = rss_bytes(worker.pid)
            told = _metrics(port)
            samples.append(
                {
                    "s": at_s,
                    "rss": rss,
                    "cpu": cpu(worker.pid).total_s,
                    "scored": told.get("weir_transactions_scored_total", 0.0),
                    "learned": told.get("weir_examples_learned", 0.0),
                }
            )
            bar.update(shown, completed=int(at_s), note=f"{rss / 1e6:.0f} MB")
            time.sleep(2.0)
    return samples


def _metrics(port: int) -> dict[str, float]:
    """The worker's figures without labels, by name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    pairs = (line.split(" ") for line in lines if not line.startswith("#") and "{" not in line)
    return {name: float(value) for name, value in pairs}


def _slope(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Slope of y over x by least squares, and its standard error."""
    slope, level = np.polyfit(x, y, 1)
    left = y - (slope * x + level)
    spread = float(((x - x.mean()) ** 2).sum())
    variance = float((left**2).sum()) / max(len(x) - 2, 1) / spread
    return float(slope), float(np.sqrt(variance))


def main(  # noqa: PLR0913, PLR0917 - a command's options are its arguments
    sizes: Annotated[
        str, typer.Option(help="Entities in each of the two stores, one run each.")
    ] = ",".join(map(str, SIZES)),
    history: Annotated[int, typer.Option(min=1, help="Transactions an entity.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each size.")] = 1,
    disk: Annotated[
        int | None,
        typer.Option(min=4_096, help="Instead: so many entities in memory, the rest on disk."),
    ] = None,
    soak_minutes: Annotated[
        float | None,
        typer.Option("--soak", min=0.5, help="Instead: a worker under load for so many minutes."),
    ] = None,
    rate: Annotated[
        float, typer.Option(min=1.0, help="Transactions a second of the soak, as many labels.")
    ] = 1_000.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on the last line.")
    ] = False,
) -> None:
    """Bytes an entity and microseconds a record by number of entities; growth under load."""
    end_orderly()
    told: dict[str, Any] = {}
    if soak_minutes is not None:
        told["soak"] = soak(soak_minutes, rate)
    else:
        wanted = [int(size) for size in sizes.split(",")]
        runs: list[dict[str, Any]] = []
        with progress() as bar:
            shown = bar.add_task("sizes", total=rounds * len(wanted), note="")
            for number in range(rounds):
                for n in wanted:
                    given = (n, history, number) if disk is None else (n, history, disk, number)
                    runs.append(_in_child(grown if disk is None else on_disk, *given))
                    err.print(runs[-1])
                    bar.advance(shown)
        told["sizes"] = [
            {
                name: float(np.median([run[name] for run in runs if run["entities"] == n]))
                for name in runs[0]
            }
            for n in wanted
        ]
        told["rounds"] = runs
    if not as_json:
        for rows in (told.get("sizes", []), [told["soak"]] if "soak" in told else []):
            for row in rows:
                print({name: value for name, value in row.items() if name != "samples"})
    told |= {"versions": versions(), **machine()}
    if as_json:
        print(json.dumps(told))


if __name__ == "__main__":
    typer.run(main)
