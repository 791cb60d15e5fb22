"""The backtest: one pass over a file, however many models look on."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import orjson
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from app.backtest import Backtest, due_after, report
from app.cli import cli
from app.config import load
from app.core.features import FeaturePlan
from app.errors import Refused
from app.files import UNLABELLED, read_columns, write_rows
from app.score import learner_in
from app.synth import DAY_MS, World, rows, simulate
from app.testing import Driver
from tests.core.examined import plain

MODELS = {"forest": {"n_trees": 5}, "logistic": {}}


def settings(model="logistic", **tables):
    """Whatever may say something different of each model: a budget, chance, maturity."""
    return load(
        profile="card",
        model={"name": model, "params": MODELS[model], "cold_start": 10},
        policy={"kind": "budget", "alerts_per_day": 5.0, "explore": 0.05},
        join={"maturity": "5d", "negatives": 0.5},
        topics={"partitions": 1},
        **tables,
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Twenty days of payments."""
    path = tmp_path_factory.mktemp("files") / "payments.parquet"
    write_rows(path, rows(simulate(World(seed=3, per_day=100.0)), n=2_000))
    return path


@pytest.fixture(scope="module")
def columns(file):
    """The same, some never labelled."""
    read = read_columns(file, settings())
    labels = read.labels.copy()
    labels[::7] = UNLABELLED
    return replace(read, labels=labels)


def test_lane_says_beside_others_what_it_says_alone(columns):
    """Scores, alerts, what was learnt, drift: bit for bit."""
    due_ms = due_after(columns.times_ms, 2 * DAY_MS)
    lanes = {name: settings(name) for name in MODELS}
    together = Backtest(settings(), lanes=lanes).compare(columns, due_ms)
    for name, its in lanes.items():
        alone, beside = Backtest(its).run(columns, due_ms), together[name]
        assert np.array_equal(alone.scores, beside.scores)
        assert np.array_equal(alone.alerts, beside.alerts)
        assert np.array_equal(alone.positions, beside.positions)
        assert report(alone) == report(beside)
        assert alone.drifts == beside.drifts
        one, other = alone.learner, beside.learner
        assert np.array_equal(one.scores.counts, other.scores.counts)
        assert np.array_equal(one.novelty.means, other.novelty.means)
        assert plain(one.evaluation) == plain(other.evaluation)
    assert not np.array_equal(together["forest"].scores, together["logistic"].scores)


def test_backtest_is_what_the_stages_do(columns):
    """In lockstep, the real stages give its scores and its model, bit for bit."""
    columns, its = columns.part(slice(0, 700)), settings()
    due_ms = due_after(columns.times_ms, DAY_MS)
    backtest = Backtest(its, batch_max=64)
    found = backtest.run(columns, due_ms)
    driver = Driver(its)
    for step in backtest.steps(columns, due_ms, due_ms):
        for i in step.labels.tolist():
            label = {"is_fraud": bool(columns.labels[i]), "event_time": int(due_ms[i])}
            driver.publish("labels", {"transaction_id": columns.ids[i], **label})
        driver.run()
        for i in range(step.start, step.stop):
            driver.publish("transactions", transaction(columns, i))
        driver.run()
    scores = {score.transaction_id: score for score in driver.read("scores")}
    assert found.scores.tolist() == [scores[i].score for i in columns.ids]
    assert found.alerts.tolist() == [scores[i].is_alert for i in columns.ids]
    examples = [one for one in driver.read("examples") if hasattr(one, "is_fraud")]
    assert len(examples) == found.learner.n_learned
    tasks = driver.processes["worker-0"].flow.tasks.values()
    learner = next(task.learner for task in tasks if hasattr(task, "learner"))
    assert learner.digest == found.learner.digest


def transaction(columns, i):
    """A row as a service publishes it."""
    card, terminal = (column[i] for column in columns.keys)
    return {
        "transaction_id": columns.ids[i],
        "event_time": int(columns.times_ms[i]),
        "card_id": card,
        "terminal_id": terminal,
        "amount": float(columns.amounts[i]),
    }


def test_lanes_share_one_stream():
    """What would change the stream cannot differ between models."""
    other = settings().model_copy(update={"join": load(profile="card").join})
    with pytest.raises(ValueError, match="lane other differs"):
        Backtest(settings(), lanes={"one": settings(), "other": other})


def run(*arguments):
    """Run a command; return what it printed."""
    result = CliRunner().invoke(cli, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_models_stand_side_by_side(file, tmp_path):
    """A column a model, in the table and in the file of scores."""
    out = tmp_path / "scores.parquet"
    both = ("--model", "logistic", "--model", "forest")
    told = run("backtest", file, *both, "--scores", out)
    assert ["logistic", "forest"] == told.splitlines()[0].split()
    table = parquet.read_table(out)
    assert ["transaction_id", "logistic", "forest"] == table.column_names
    alone = tmp_path / "alone.parquet"
    run("backtest", file, "--model", "forest", "--scores", alone)
    assert table["forest"].to_pylist() == parquet.read_table(alone)["score"].to_pylist()


def test_snapshot_holds_the_model_at_the_end(file, tmp_path):
    """It opens with the key of the installation and says what the backtest said."""
    out = tmp_path / "model.weir"
    told = orjson.loads(run("backtest", file, "--model", "logistic", "--snapshot", out, "--json"))
    its = load(profile="card")
    learner = learner_in(out, its, FeaturePlan.of(its.features, its.transaction.entities))
    assert told["model_digest"] == learner.digest
    assert told["learned"] == learner.n_learned


def test_snapshot_is_of_one_model(file, tmp_path):
    """Which of two to keep nobody said."""
    both = ["--model", "logistic", "--model", "forest"]
    arguments = ["backtest", str(file), *both, "--snapshot", str(tmp_path / "model.weir")]
    result = CliRunner().invoke(cli, arguments)
    assert 2 == result.exit_code
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["md", "html"])
def test_report_shows_each_model(file, tmp_path, suffix):
    """A column a model, with the figures that the terminal shows."""
    out = tmp_path / f"report.{suffix}"
    both = ("--model", "logistic", "--model", "hoeffding")
    told = run("backtest", file, *both, "--report", out)
    page = out.read_text(encoding="utf-8")
    (precision,) = [line.split()[2:] for line in told.splitlines() if "average precision  " in line]
    assert {"logistic", "hoeffding"} <= set(re.findall(r"\w+", page))
    assert all(value in page for value in precision)


def test_report_that_cannot_be_written_is_refused_before_the_pass(file, tmp_path):
    """Nobody waits for figures that have nowhere to go."""
    result = CliRunner().invoke(cli, ["backtest", str(file), "--report", str(tmp_path / "r.pdf")])
    assert isinstance(result.exception, Refused)
    assert ".html" in str(result.exception)


def test_fraud_told_at_once_is_known_to_the_next_payment(columns):
    """However short the delay, and however large the steps: never with its own payment."""
    columns, its = columns.part(slice(0, 600)), settings()
    due_ms = due_after(columns.times_ms, 0)
    runs = [
        Backtest(its, batch_max=n, keep_features=True).run(columns, due_ms) for n in (1, 7, 512)
    ]
    for run_ in runs[1:]:
        assert runs[0].features is not None
        assert run_.features is not None
        assert runs[0].features.tobytes() == run_.features.tobytes()
