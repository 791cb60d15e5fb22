"""The search: judged as the backtest judges, resumed as if it had not stopped."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import orjson
import pytest
from typer.testing import CliRunner

from app.backtest import Backtest, due_after
from app.cli import cli
from app.config import load
from app.errors import Misconfigured, Refused
from app.files import read_columns, write_rows
from app.synth import DAY_MS, World, rows, simulate
from app.tune import RUNGS, Range, Search, Space, Tape, best_toml, model_toml

ITS = load(profile="card", model={"name": "logistic", "cold_start": 10})
DOCS = Path(__file__).parents[1] / "docs" / "tuning.md"

SPACE = Space.parse("""
[params.forest]
n_trees = { low = 2, high = 6 }
smoothing = { low = 0.1, high = 10.0, log = true }
[params.logistic]
[model]
cold_start = { choices = [0, 10] }
""")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Fifteen days of payments."""
    path = tmp_path_factory.mktemp("files") / "payments.parquet"
    write_rows(path, rows(simulate(World(seed=3, per_day=100.0)), n=1_500))
    return path


@pytest.fixture(scope="module")
def columns(file):
    """The same, as columns."""
    return read_columns(file, ITS)


@pytest.fixture(scope="module")
def tape(columns):
    """The same, folded; its labels are known two days later."""
    return Tape(ITS, columns, 2 * DAY_MS)


def test_trial_says_what_the_backtest_says(columns):
    """Where all labels are known in time, the same figure."""
    due_ms = due_after(columns.times_ms, 0)
    found = Backtest(ITS).run(columns, due_ms).learner.evaluation.average_precision
    assert found == Tape(ITS, columns, 0).measure(ITS.model.model_dump())


def test_labels_that_come_after_the_end_count_for_nothing(columns, tape):
    """What was not known by the last transaction nobody could have been judged by."""
    known = columns.times_ms + 2 * DAY_MS <= columns.times_ms[-1]
    assert int(known.sum()) == tape.n_labels
    ruined = columns.part(slice(None))
    ruined.labels[~known] = 1 - ruined.labels[~known]
    again = Tape(ITS, ruined, 2 * DAY_MS)
    assert tape.digest == again.digest
    assert tape.measure({"name": "logistic"}) == again.measure({"name": "logistic"})


def test_trial_is_judged_on_the_way(tape):
    """At every eighth of the labels that has seen a fraud, the last one included."""
    told: dict[int, float] = {}
    tape.measure({"name": "logistic"}, lambda rung, value: told.update({rung: value}))
    assert sorted(told) == list(told)
    assert RUNGS in told
    assert all(0.0 <= value <= 1.0 for value in told.values())


def test_file_without_a_known_fraud_is_refused(columns):
    """There is nothing to judge by."""
    with pytest.raises(Refused, match="no fraud of 1,500 transactions is known in time"):
        Tape(ITS, columns, 1_000 * DAY_MS)


WRONG = [
    ("", "nothing is declared"),
    ("[policy]\nthreshold = 1", '"policy" is no table of a space'),
    ("[model]\nparams = 1", "model.params cannot be searched"),
    ("params = 1", "params is 1; expected a table"),
    ("[params.forest]\nn_trees = { low = 3 }", "params.forest.n_trees is .*expected { low, high }"),
    ("[params.forest]\nn_trees = { low = 3, high = 2 }", "low is 3, above its high, 2"),
    ("[params.forest]\nn_trees = { low = 0, high = 2, log = true }", "low above 0"),
    ("[params.forest]\nn_trees = { low = 1, high = nan }", "expected a finite number"),
    ("[params.forest]\nn_trees = { low = 1, high = 'x' }", "expected a finite number"),
    ("[params.forest]\nn_trees = { low = 1, high = 2, step = 0 }", "above 0"),
    ("[params.forest]\nn_trees = { choices = [[1]] }", "expected a number, a text"),
    ("[params.forest]\nn_trees = { choices = [] }", "expected { low, high }"),
    ("[model]\nname = 'logistic'\n[params.forest]", "params.forest is of no model"),
]


@pytest.mark.parametrize(("text", "told"), WRONG)
def test_space_that_cannot_be_is_refused(text, told):
    """With the place, the value and what was expected."""
    with pytest.raises(Misconfigured, match=told):
        Space.parse(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[params.nothing]", "nothing"),
        ("[params.forest]\nn_treees = 3", "n_treees"),
        ("[model]\nseed = 'x'", "seed"),
    ],
)
def test_model_that_cannot_be_is_refused_before_the_first_trial(tape, text, told):
    """A misspelt parameter does not cost a night."""
    with pytest.raises(Misconfigured, match=told):
        Search(tape, Space.parse(text))


def told_of(search):
    """What a search has found, without the time it took."""
    return [one._replace(seconds=0.0, number=0) for one in search.tried()]


def test_search_that_was_stopped_goes_on_as_if_it_had_not(tape, tmp_path):
    """Stopped twice, once in the middle of a trial: the same trials, the same figures."""
    pytest.importorskip("optuna")
    whole = Search(tape, SPACE, seed=1)
    whole.run(6)
    path = tmp_path / "study.db"
    Search(tape, SPACE, seed=1, path=path).run(2)
    stopped = Search(tape, SPACE, seed=1, path=path)

    def interrupted(*_):
        raise KeyboardInterrupt

    measure, tape.measure = tape.measure, interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            stopped.run(6)
    finally:
        tape.measure = measure
    assert 2 <= stopped.n_ended < 6
    on = Search(tape, SPACE, seed=1, path=path)
    on.run(6)
    assert told_of(whole) == told_of(on)
    assert 6 == on.n_ended
    assert whole.configured == on.configured
    best = max(one.average_precision for one in on.tried() if one.rung == RUNGS)
    assert max(best, on.configured.average_precision) == on.best.average_precision


def test_study_of_something_else_is_refused(tape, columns, tmp_path):
    """It says of what."""
    pytest.importorskip("optuna")
    path = tmp_path / "study.db"
    Search(tape, SPACE, path=path)
    other_space = Space.parse("[params.logistic]")
    with pytest.raises(Refused, match="a study of other space; expected the same"):
        Search(tape, other_space, path=path)
    other_data = Tape(ITS, columns.part(slice(0, 1_400)), 2 * DAY_MS)
    with pytest.raises(Refused, match="other data and seed"):
        Search(other_data, SPACE, seed=2, path=path)
    path.write_text("no database, but long enough that it could be one: " * 40)
    with pytest.raises(Refused, match="expected a study"):
        Search(tape, SPACE, path=path)


def test_budget_that_is_spent_begins_no_trial(tape):
    """What has begun before is not cut."""
    pytest.importorskip("optuna")
    search = Search(tape, SPACE)
    search.run(5, budget_s=0.0)
    assert 0 == search.n_ended
    assert search.configured is search.best
    assert "none of 0 trials is better" in best_toml(search)


def test_model_as_toml_is_that_model(tmp_path):
    """Whatever its parameters are, the configuration reads them back."""
    params = {
        "a b": 1,
        "x": 0.1,
        "y": True,
        "z": 'q"ä\\',
        "n": 1e-300,
        "l": [1, "2"],
        "t": {"u": 1},
    }
    model = {"name": "river.linear_model.LogisticRegression", "seed": 7, "cold_start": 3}
    path = tmp_path / "best.toml"
    path.write_text(model_toml({**model, "params": params}, "handbook", ["found"]))
    read = load(path)
    assert {**model, "params": params}.items() <= read.model.model_dump().items()
    assert "handbook" == read.profile


def test_range_of_whole_numbers_asks_for_whole_numbers():
    """A point anywhere makes it one of numbers."""
    assert Range(1, 9).is_whole
    assert not Range(1, 9.0).is_whole
    assert not Range(1, 9, step=0.5).is_whole


def test_missing_optuna_is_told(file, tmp_path, monkeypatch):
    """With what to install."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = CliRunner().invoke(cli, ["tune", str(file), "--space", str(tmp_path / "s.toml")])
    assert "pip install 'weir[tune]'" in str(result.exception)


def test_example_of_the_documentation_runs(file, tmp_path):
    """Its space is searched; the best is a configuration that works."""
    pytest.importorskip("optuna")
    (text,) = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    # Small enough for a test.
    space, out = tmp_path / "space.toml", tmp_path / "best.toml"
    space.write_text(text.replace("low = 20, high = 200, step = 20", "low = 2, high = 6, step = 2"))
    options = ["--space", space, "--trials", "3", "--delay", "1d", "--out", out, "--json"]
    options += ["--study", tmp_path / "study.db", "--until", "2024-01-12"]
    arguments = [str(one) for one in ("tune", file, *options)]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told = orjson.loads(result.stdout)
    assert 1 <= len(told["trials"]) - 1 <= 3
    assert told["best"]["model"]["name"] == tomllib.loads(out.read_text())["model"]["name"]
    assert 0 == CliRunner().invoke(cli, ["check-config", "-c", str(out)]).exit_code


def test_until_leaves_what_follows_unseen(columns):
    """A period's end is not part of it."""
    middle = int(columns.times_ms[700])
    cut = columns.between(None, middle)
    assert columns.ids[:700] == cut.ids
    assert np.all(cut.times_ms < middle)
    assert columns.ids[700:] == columns.between(middle, None).ids
