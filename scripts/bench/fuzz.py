"""Mutated bytes for every reader: transactions, labels, snapshots, configuration and the rest.

What is read or refused in words is well; anything else, a hang, or a state that bad input has
changed is a failure, told with the smallest input that shows it. With ``--keep`` what was refused
in a new way goes into ``tests/corpus``, which an ordinary test replays.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from common import err, machine, progress
from hypothesis import HealthCheck, Phase, given, seed, settings
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fuzz.mutations import near
from tests.fuzz.targets import Target, targets

CORPUS = Path(__file__).parents[2] / "tests" / "corpus"
#: A reader takes microseconds, a gigabyte that a signed length promises a second.
HANG_S = 20
#: A reader's turn: so long, or so many inputs.
TURN_S, TURN_MAX = 0.25, 300
#: Files a reader, and their size: small enough to be kept.
KEPT_MAX, KEPT_BYTES = 24, 4_096


class Hang(Exception):
    """A reader did not come to an end."""


def main(
    seconds: Annotated[float, typer.Option(min=1.0, help="How long, all readers together.")] = 60.0,
    first: Annotated[int, typer.Option("--seed", min=0, help="The first seed.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="These readers alone.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Add what is new to the corpus.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on the last line.")
    ] = False,
) -> None:
    """Fuzz every reader in turn; exit code 1 where one broke."""
    signal.signal(signal.SIGALRM, _on_alarm)
    chosen = [t for name, t in targets().items() if not only or name in only]
    counts, failures = Counter[str](), list[str]()
    met: dict[str, dict[str, bytes]] = {target.name: {} for target in chosen}
    started_s, number = time.monotonic(), first
    with progress() as bar:
        task = bar.add_task("seconds", total=round(seconds), note="")
        for n in itertools.count():
            target, number = chosen[n % len(chosen)], first + n // len(chosen)
            failures += _round(target, number, counts, met[target.name])
            spent_s = time.monotonic() - started_s
            note = f"{counts.total():,} executions, {len(failures)} failures"
            bar.update(task, completed=round(spent_s), note=note)
            if spent_s >= seconds:
                break
    if keep:
        for target in chosen:
            _keep(target, met[target.name])
    result = {
        "executions": counts.total(),
        "by_reader": dict(counts),
        "ways": {name: len(found) for name, found in met.items()},
        "failures": failures,
        "seeds": [first, number],
        "seconds": round(time.monotonic() - started_s, 1),
        **machine(),
    }
    _show(result)
    if as_json:
        print(json.dumps(result))
    raise typer.Exit(1 if failures else 0)


def _round(target: Target, number: int, counts: Counter[str], met: dict[str, bytes]) -> list[str]:
    """Some hundred inputs of one seed; what broke."""
    last, turn = b"", _turn(target)

    @seed(number)
    @settings(
        max_examples=turn, deadline=None, database=None, print_blob=False,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(near(target.samples))
    def play(value: bytes) -> None:
        nonlocal last
        last = value
        counts[target.name] += 1
        signal.alarm(HANG_S)
        try:
            way = target.call(value)
        finally:
            signal.alarm(0)
        met.setdefault(_shape(way), value)

    try:
        play()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was looked for
        met[f"failure {error!r}"[:80]] = last
        return [f"{target.name}, seed {number}: {last!r}: {error!r}"]
    return []


def _turn(target: Target) -> int:
    """How many inputs a reader takes in a turn."""
    target.call(target.samples[0])  # what is compiled is compiled once
    started_s = time.perf_counter()
    target.call(target.samples[0])
    spent_s = time.perf_counter() - started_s
    return max(20, min(TURN_MAX, int(TURN_S / max(spent_s, 1e-9))))


def _on_alarm(*_: object) -> None:
    raise Hang(f"not done after {HANG_S} s")


def _shape(way: str) -> str:
    """A refusal without the values in it."""
    return re.sub(r"[\d.]+|\"[^\"]*\"|'[^']*'", "", way)[:60]


def _keep(target: Target, met: dict[str, bytes]) -> None:
    folder = CORPUS / target.name
    folder.mkdir(parents=True, exist_ok=True)
    held = {path.read_bytes() for path in folder.iterdir()}
    known = {_shape(target.call(value)) for value in held}
    for shape, value in met.items():
        if shape not in known and len(value) <= KEPT_BYTES and len(held) < KEPT_MAX:
            held.add(value)
            name = hashlib.blake2b(value, digest_size=6).hexdigest()
            (folder / name).write_bytes(value)


def _show(result: dict[str, Any]) -> None:
    table = Table("reader", "executions", "ways")
    for name, n in result["by_reader"].items():
        table.add_row(name, f"{n:,}", str(result["ways"][name]))
    err.print(table)
    for text in result["failures"]:
        err.print(text, markup=False)


if __name__ == "__main__":
    typer.run(main)
