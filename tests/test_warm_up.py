"""What a worker compiles, it has compiled before it is ready."""

import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

import app.core
from app.cli import keep_kernels
from app.config import load
from app.core.features import FeaturePlan
from app.core.scoring import Champion
from app.learning import new_learner
from app.records import Record
from app.shelf import frozen, opened
from app.testing import Driver
from app.worker import warm_up

ROOT = Path(__file__).resolve().parent.parent


def compiled():
    """The signatures of each kernel, by module and name."""
    names = [m.name for m in pkgutil.walk_packages(app.core.__path__, "app.core.")]
    modules = [import_module(name) for name in [*names, "app.topics"]]
    kernels = {id(k): k for m in modules for k in vars(m).values() if isinstance(k, Dispatcher)}
    return {
        f"{k.py_func.__module__}.{k.py_func.__qualname__}": sorted(map(str, k.signatures))
        for k in kernels.values()
    }


def publish(driver, first, n):
    """N payments with 20 cards, and what they turned out to be."""
    for i in range(first, first + n):
        driver.publish("transactions", {
            "transaction_id": f"t{i}", "event_time": f"2026-01-01T09:{i // 60:02}:{i % 60:02}Z",
            "card_id": f"card-{i % 20}", "terminal_id": "shop-1", "amount": 12.5,
        })  # fmt: skip
        label = {"transaction_id": f"t{i}", "is_fraud": i % 2 == 0, "event_time": 1_767_300_000_000}
        driver.publish("labels", label)


def open_champion(settings):
    """Score with a model out of a snapshot, as a follower has it."""
    plan = FeaturePlan.of(settings.features, settings.transaction.entities)
    learner = new_learner(settings, plan)
    kept = frozen(Champion.of(learner).for_scoring(), learner)
    value = kept.sealed(settings.learner.key.get_secret_value().encode())
    found, rows = opened(Record(0, None, value, 0), settings, plan), np.zeros((2, len(plan.names)))
    assert isinstance(found, Champion)
    found.mixture.score_many(rows)
    found.mixture.contributions(rows)


def compiled_late(model, disk):
    """What is compiled after the warm-up: rings overflow, entities leave, a worker is killed."""
    settings = load(
        profile="card",
        model={"name": model},
        topics={"partitions": 1},
        entity={"history_max": 8, "entities_max": 16, "disk": disk},
        learner={"snapshot_interval": "0s"},
    )
    warm_up(settings)
    before = compiled()
    driver = Driver(settings)
    publish(driver, 0, 100)
    driver.run()
    driver.crash()
    publish(driver, 100, 100)
    driver.run()
    assert 200 == len({o.transaction_id for o in driver.read("outcomes")})
    assert (
        len(driver.read("examples")) - 1 == driver.processes["worker-0"].champion.version.position
    )
    open_champion(settings)
    return {name: told for name, told in compiled().items() if told != before[name]}


@pytest.mark.parametrize(("model", "disk"), [("forest", "no"), ("stack", "disk")])
def test_warm_up_leaves_nothing_to_compile(model, disk):
    """In a process of its own: here another test may have compiled it already."""
    if disk == "disk":
        pytest.importorskip("rocksdict")
    call = [sys.executable, "-m", "tests.test_warm_up", model, disk]
    run = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 0 == run.returncode, run.stderr
    assert {} == json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("code", "told", "expected"),
    [(".", None, None), ("absent", None, "data/numba"), ("absent", "/cache", "/cache")],
)
def test_kernels_are_kept_where_weir_may_write(tmp_path, monkeypatch, code, told, expected):
    """Beside the code; where that cannot be written, with the data; where told, there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NUMBA_CACHE_DIR", told or "")
    if told is None:
        monkeypatch.delenv("NUMBA_CACHE_DIR")
    keep_kernels(Path("data"), tmp_path / code)
    kept = os.environ.pop("NUMBA_CACHE_DIR", None)
    assert kept == (str(tmp_path / expected) if expected else None)


if __name__ == "__main__":
    chosen, where = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        told = compiled_late(chosen, Path(folder) if where == "disk" else None)
    sys.stdout.write(json.dumps(told) + "\n")
