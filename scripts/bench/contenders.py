"""What weir is measured against, and the environment that those need which it does not ship."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common import ROOT, err, free_port
from payments import PARTITIONS, RIVER_LOGISTIC, Subject, worker_environment

HERE = Path(__file__).parent
LOCK = HERE / "contenders.lock"
VENV = ROOT / ".bench-venv"
PYTHON = VENV / "bin" / "python"


@cache
def environment_problem() -> str | None:
    """Make ``.bench-venv`` from the lock file, once; why it cannot be had, or None."""
    stamp, want = VENV / "lock.stamp", hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == want:
        return None
    err.print(f"making {VENV.name} from {LOCK.name}, once")
    venv.create(VENV, with_pip=True, clear=True)
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--python", str(PYTHON)]
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install"]
    problem = ""
    for installer in (uv, pip):
        command = [*installer, "--quiet", "--require-hashes", "-r", str(LOCK)]
        try:
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        except OSError as error:
            problem = str(error)
            continue
        if done.returncode == 0:
            stamp.write_text(want)
            return None
        problem = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
    return f"{LOCK.name} could not be installed: {problem}"


@cache
def version_there(package: str) -> str | None:
    """Version of a package in ``.bench-venv``; None where it is not there."""
    if environment_problem():
        return None
    ask = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([PYTHON, "-c", ask], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


@dataclass(frozen=True)
class Contender:
    """One way to score the stream through Kafka.

    ``subject`` is weir's configuration, None for the others, which are scripts. ``share`` is
    the part of the records that a slow one is given: the first so many of the same stream.
    """

    name: str
    what: str
    subject: Subject | None = None
    script: str = ""
    share: float = 1.0
    needs: str = ""  # a package of .bench-venv
    changelogs: tuple[str, ...] = ()  # that are made for it
    processes: int = 1  # of one group

    def problem(self) -> str | None:
        """Why it cannot run here, or None."""
        if not self.needs or version_there(self.needs):
            return None
        return environment_problem() or f"{self.needs} is not in {VENV.name}"

    def command(self, profile_to: Path | None = None) -> list[str]:
        """How it is started."""
        if self.subject is not None:
            weir = ["worker", "--once", "-c", str(self.subject.file)]
            if profile_to is not None:
                runner = HERE / "speed_contenders" / "sampled.py"
                return [sys.executable, str(runner), str(profile_to), *weir]
            return [sys.executable, "-m", "app", *weir]
        script = str(HERE / "speed_contenders" / self.script)
        if self.needs:
            return [str(PYTHON), script]
        own = ["worker", "-l", "warn"] if "faust" in self.script else []
        return [sys.executable, script, *own]

    def environment(
        self, bootstrap: str, prefix: str, folder: Path, model: Path
    ) -> Mapping[str, str]:
        """What it is told."""
        if self.subject is None:
            return {
                "SPEED_BOOTSTRAP": bootstrap,
                "SPEED_PREFIX": prefix,
                "SPEED_PARTITIONS": str(PARTITIONS),
                "SPEED_DIR": str(folder),
                "SPEED_MODEL": str(model),
            }
        told = worker_environment(bootstrap, prefix, folder, "warning")
        return {**told, "WEIR_WORKER__WEB_PORT": str(free_port())}


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("weir-default", "default model, default card profile, all as shipped", Subject()),
        Contender("weir-two", "as weir-default, two workers of one group", Subject(), processes=2),
        Contender("weir-logistic", "compared features, weir's logistic", Subject("logistic")),
        Contender("weir-river", "compared features, River's pipeline", Subject(RIVER_LOGISTIC)),
        Contender(
            "weir-one-by-one",
            "as weir-river, but one record at a time",
            Subject(RIVER_LOGISTIC, batch_max=1),
            share=0.02,
        ),
        Contender(
            "faust",
            "agent, two tables, sends, River's pipeline",
            script="faust_app.py",
            share=0.2,
            # Faust makes them itself; where the broker is slow to tell of them it starts all the
            # same and never gets out of the failure.
            changelogs=("-cards-changelog", "-terminals-changelog"),
        ),
        Contender(
            "quix",
            "stateful functions, River's pipeline",
            script="quix_app.py",
            share=0.5,
            needs="quixstreams",
        ),
        Contender("aiokafka", "dictionaries for state, River's pipeline", script="aiokafka_app.py"),
    )
}
#: The same without a broker, fed from memory.
CORES = {
    "core-default": Subject(),
    "core-logistic": Subject("logistic"),
    "core-river": Subject(RIVER_LOGISTIC),
}
