"""Records a second and CPU a record: weir, Faust, Quix Streams, plain aiokafka, the pure core.

All in one run, round after round in turn, against one Apache Kafka on this machine, over the
same simulated card payments (``app.synth``, two entities, JSON encoded beforehand), the same
features and the same model. What is timed, and how, stands in ``drain.py``; each figure is the
median over the rounds, and every round's figures are given beside it.

What is the same, and what is not:

- The model of all but ``weir-default`` and ``weir-logistic`` is one River pipeline
  (StandardScaler | LogisticRegression), taught beforehand on 20,000 payments of another world;
  the others unpickle the very object that weir scores with. Nothing learns while it is measured:
  there are no labels, and no transaction grows old enough to count as legitimate.
- 19 features (``speed_contenders/shared.py``). weir's windows are exact to the millisecond;
  the others keep a count and a sum a day, which is less state and less work.
- weir, Faust and Quix keep changelogged state; aiokafka keeps dictionaries that a restart
  forgets. weir and Quix bring a payment to its terminal by a topic of its own; Faust writes both
  tables where the card's record lies, which is right only for one worker, and cheaper.
- weir's scores carry the features as used, the model's version, the source position and headers
  (790 bytes, 920 as shipped, and 130 of headers); the others write an id and a score. weir also
  runs its join, which reads every score back, and its learner; both are in its CPU.
- ``core-*`` is weir's own code fed from memory in one process, no broker: decode, fold, score,
  encode; what durability adds is listed beside it. Its ``records_per_s`` is a million over the CPU
  microseconds a record.
- Slow contenders are given the first part of the records only (``records`` says how many).
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from common import ROOT, err, kafka, machine, progress
from contenders import CONTENDERS, CORES, HERE, Contender, version_there
from drain import Where, drained
from measured import Ended, end_orderly
from payments import Payment, Subject, measured_world, payments, river_pipeline

#: Figures whose median is told.
_FIGURES = (
    "records_per_s",
    "settled_per_s",
    "cpu_us",
    "user_us",
    "system_us",
    "rss_mb",
    "with_the_rest_us",
)
#: Of the samples of a profile.
_NEARLY_ALL = 0.97

#: First over second.
_RATIOS = {
    "weir-river / faust": ("records_per_s", "weir-river", "faust"),
    "weir-river / quix": ("records_per_s", "weir-river", "quix"),
    "weir-river / aiokafka": ("records_per_s", "weir-river", "aiokafka"),
    "weir-logistic / faust": ("records_per_s", "weir-logistic", "faust"),
    "weir-logistic / quix": ("records_per_s", "weir-logistic", "quix"),
    "weir-logistic / aiokafka": ("records_per_s", "weir-logistic", "aiokafka"),
    "weir-river / weir-one-by-one": ("records_per_s", "weir-river", "weir-one-by-one"),
    "weir-two / weir-default": ("records_per_s", "weir-two", "weir-default"),
    "CPU faust / weir-river": ("cpu_us", "faust", "weir-river"),
    "CPU quix / weir-river": ("cpu_us", "quix", "weir-river"),
    "CPU aiokafka / weir-river": ("cpu_us", "aiokafka", "weir-river"),
    "CPU weir-default / core-default": ("cpu_us", "weir-default", "core-default"),
    "CPU weir-logistic / core-logistic": ("cpu_us", "weir-logistic", "core-logistic"),
    "CPU weir-river / core-river": ("cpu_us", "weir-river", "core-river"),
}


def versions() -> dict[str, str | None]:
    """Versions of all that takes part."""
    pom = (ROOT / "scripts" / "kafka.d" / "pom.xml").read_text()
    found = re.search(r"<kafka.version>(.*)</kafka.version>", pom)
    here = ("weir", "faust-streaming", "aiokafka", "river", "numba", "numpy", "msgspec", "orjson")
    return {
        "python": sys.version.split()[0],
        "kafka": found[1] if found else None,
        **{name: version(name) for name in here},
        "quixstreams": version_there("quixstreams"),
    }


def core(
    name: str, subject: Subject, stream: list[Payment], warm: int, batch: int
) -> dict[str, Any]:
    """One run of the pure core in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="weir-speed-") as folder:
        given = Path(folder) / "input"
        given.write_bytes(
            pickle.dumps(
                {
                    "settings": subject.settings(),
                    "learner": subject.learner,
                    "payments": stream,
                    "warm": warm,
                    "batch": batch,
                }
            )
        )
        script = [sys.executable, str(HERE / "speed_contenders" / "core.py")]
        done = subprocess.run(
            script,
            env={**os.environ, "SPEED_INPUT": str(given)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
        )
    told: dict[str, Any] = json.loads(done.stdout)
    told["problem"] = None if told["scores"] == told["records"] else f"{name}: scores are missing"
    return told


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds that were not void; the steps' too."""
    sound = [told for told in rounds if not told.get("problem")]
    told: dict[str, Any] = {
        name: median(r[name] for r in sound) for name in _FIGURES if sound and name in sound[0]
    }
    if sound and "us" in sound[0]:
        told["us"] = {step: median(r["us"][step] for r in sound) for step in sound[0]["us"]}
    return {"sound_rounds": len(sound), **told}


class Comparison:
    """Rounds of all contenders in turn."""

    def __init__(self, bootstrap: str, stream: list[Payment], warm: int) -> None:
        self.bootstrap, self.stream, self.warm = bootstrap, stream, warm
        self.found: dict[str, list[dict[str, Any]]] = {}

    def round(self, number: int, chosen: list[str], model: Path, batch: int) -> None:
        """Run each once; every round begins with another one."""
        for name in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
            if name in CORES:
                told = core(name, CORES[name], self.stream, self.warm, batch)
            else:
                told = self._drained(CONTENDERS[name], f"speed.{name}.{number}.", model)
            self.found.setdefault(name, []).append(told)
            shown = f"{told.get('records_per_s', 0):10,.0f}/s {told.get('cpu_us', 0):8.1f} us"
            err.print(f"{number + 1} {name:18} {shown} {told['problem'] or ''}")

    def _drained(self, contender: Contender, prefix: str, model: Path) -> dict[str, Any]:
        n = max(int((len(self.stream) - self.warm) * contender.share), 1)
        warm = max(int(self.warm * min(contender.share * 2, 1.0)), 200)
        stream = self.stream[: warm + n]
        with progress() as bar:
            shown = bar.add_task(contender.name, total=len(stream), note="")
            try:
                return asyncio.run(
                    drained(
                        contender,
                        stream,
                        warm,
                        Where(self.bootstrap, prefix, model),
                        advance=lambda n: bar.update(shown, completed=n),
                    )
                )
            except Ended as error:
                return {"problem": f"the process ended: {error}"}

    def report(self) -> dict[str, Any]:
        """All figures: medians, ratios of medians, each round's."""
        told = {name: medians(rounds) for name, rounds in self.found.items()}
        ratios = {
            name: told[over][figure] / told[under][figure]
            for name, (figure, over, under) in _RATIOS.items()
            if figure in told.get(over, {}) and figure in told.get(under, {})
        }
        return {"contenders": told, "ratios": ratios, "rounds": self.found}


def profiled(
    bootstrap: str, stream: list[Payment], warm: int, model: Path, name: str
) -> dict[str, Any]:
    """Where a worker's CPU goes while it drains."""
    out = Path(tempfile.mkdtemp(prefix="weir-speed-")) / "profile.json"
    told = asyncio.run(
        drained(
            CONTENDERS[name],
            stream,
            warm,
            Where(bootstrap, "speed.profile.", model),
            profile_to=out,
        )
    )
    return {**told, **json.loads(out.read_text())}


def _show_profile(told: dict[str, Any]) -> None:
    n = max(told["samples"], 1)
    print(
        f"{told['records_per_s']:,.0f} records/s (settled {told['settled_per_s']:,.0f}), "
        f"{told['cpu_us']:.1f} us CPU a record (system {told['system_us']:.1f}), {n} samples"
    )
    for kind, what in (
        ("own", "by function, itself"),
        ("within", "by function, with all it calls"),
        ("lines", "by line"),
    ):
        print(f"\n{what}: us a record, share")
        # What nearly everything runs under says nothing.
        rows = [row for row in told[kind] if row[1] < _NEARLY_ALL * n]
        for name, count in rows[:40]:
            print(f"{count / n * told['cpu_us']:8.2f} {count / n:6.1%}  {name}")


def _show(told: dict[str, Any]) -> None:
    print(f"{'':18} {'records/s':>10} {'settled/s':>10} {'CPU us':>8} {'system':>7} {'MB':>6}")
    for name, figures in told["contenders"].items():
        cells = [
            f"{figures.get(figure, float('nan')):>{width}{shape}}"
            for figure, width, shape in (
                ("records_per_s", 10, ",.0f"),
                ("settled_per_s", 10, ",.0f"),
                ("cpu_us", 8, ".1f"),
                ("system_us", 7, ".1f"),
                ("rss_mb", 6, ".0f"),
            )
        ]
        print(f"{name:18} {' '.join(cells)}")
        if "us" in figures:
            steps = ", ".join(f"{step} {us:.2f}" for step, us in figures["us"].items())
            print(f"{'':18} {steps}")
    for name, ratio in told["ratios"].items():
        print(f"{name:36} {ratio:6.2f}")
    for name, why in told["left_out"].items():
        print(f"{name} was left out: {why}")


def main(  # noqa: PLR0913, PLR0917 - a command's options are its arguments
    rounds: Annotated[int, typer.Option(min=1, help="Each contender runs so often.")] = 5,
    records: Annotated[int, typer.Option(min=100, help="Measured records.")] = 100_000,
    warm: Annotated[int, typer.Option(min=100, help="Records before those.")] = 10_000,
    contender: Annotated[
        list[str] | None,
        typer.Option(help=f"Only these: {', '.join([*CONTENDERS, *CORES])}."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Records in a batch of the core's.")] = 2_048,
    profile: Annotated[
        bool, typer.Option("--profile", help="Only show where a worker's CPU goes.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on the last line.")
    ] = False,
) -> None:
    """Records a second and CPU microseconds a record of weir and of others, in one run."""
    end_orderly()
    known = [*CONTENDERS, *CORES]
    chosen = contender or (["weir-default"] if profile else known)
    unknown = sorted(set(chosen) - set(known))
    if unknown or (profile and chosen[0] in CORES):
        raise typer.BadParameter(f"{chosen}; expected some of: {', '.join(known)}")
    left_out = {
        name: problem
        for name in chosen
        if name in CONTENDERS and (problem := CONTENDERS[name].problem())
    }
    for name, problem in left_out.items():
        err.print(f"[yellow]{name} is left out[/]: {problem}")
    chosen = [name for name in chosen if name not in left_out]
    world = measured_world()
    told: dict[str, Any] = {"records": records, "warm": warm, "left_out": left_out}
    with tempfile.TemporaryDirectory(prefix="weir-speed-") as folder, kafka("speed") as bootstrap:
        model, stream = river_pipeline(Path(folder)), payments(warm + records, world)
        if profile:
            told |= profiled(bootstrap, stream, warm, model, chosen[0])
        else:
            comparison = Comparison(bootstrap, stream, warm)
            for number in range(rounds):
                comparison.round(number, chosen, model, batch)
            told |= comparison.report()
    told |= {"versions": versions(), **machine()}
    if profile:
        _show_profile(told)
    else:
        _show(told)
    if as_json:
        print(json.dumps(told))


if __name__ == "__main__":
    typer.run(main)
