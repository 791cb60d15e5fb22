"""Batch inference: a file's scores are those of the stream, bit for bit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, json, parquet
from typer.testing import CliRunner

from app import snapshots, tail
from app.backtest import Backtest, due_after
from app.cli import cli
from app.config import load
from app.core.features import FeaturePlan
from app.errors import Refused
from app.files import LabelColumns, RowWriter, read_batches, read_columns, write_rows
from app.records import Partition, Position, Record, Send
from app.score import After, Scoring, Told, batches_of, learner_in
from app.shelf import sealed
from app.synth import DAY_MS, World, rows, simulate
from app.testing import Driver

KEY = load(profile="card").learner.key.get_secret_value().encode()


def settings(**tables):
    """A forest that decides alone, and a threshold that it passes now and then."""
    return load(
        profile="card",
        model={"name": "forest", "params": {"n_trees": 5}, "cold_start": 400},
        policy={"threshold": 0.05, "explore": 0.02},
        learner={"in_worker": False},
        topics={"partitions": 1},  # of several the terminal would see in another order
        **tables,
    )


ITS = settings()
PLAN = FeaturePlan.of(ITS.features, ITS.transaction.entities)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Payments that a model learnt, the model, and payments that it has never seen."""
    at = tmp_path_factory.mktemp("files")
    table = rows(simulate(World(seed=5, per_day=100.0)), n=2_600)
    for name, part in (("past", slice(0, 1_600)), ("new", slice(1_600, None))):
        write_rows(at / f"{name}.parquet", {k: column[part] for k, column in table.items()})
    past = read_columns(at / "past.parquet", ITS)
    learner = Backtest(ITS).run(past, due_after(past.times_ms, 2 * DAY_MS)).learner
    assert 0.0 < learner.trust < 1.0
    snapshots.write(at / "model.weir", sealed(learner, ITS))
    return at


def streamed(columns, learner, labels):
    """What a worker on the driver says that follows this model; ``labels``: (time, row, what)."""
    driver = Driver(ITS, learners=0)
    at = Partition(driver.topics.models.name, 0)
    driver.logs[at].append(Send(*at, b"champion/0", sealed(learner, ITS)), 0)
    labels = sorted(labels)
    cuts = np.searchsorted(columns.times_ms, [time_ms for time_ms, _, _ in labels])
    bounds = np.unique([0, *cuts, len(columns)])
    told = 0
    for start, stop in pairwise(bounds.tolist()):
        while told < len(labels) and labels[told][0] <= columns.times_ms[start]:
            time_ms, row, is_fraud = labels[told]
            value = {"is_fraud": is_fraud, "event_time": int(time_ms)}
            driver.publish("labels", {"transaction_id": columns.ids[row], **value})
            driver.run()
            told += 1
        for i in range(start, stop):
            card, terminal = (column[i] for column in columns.keys)
            value = {
                "card_id": card,
                "terminal_id": terminal,
                "event_time": int(columns.times_ms[i]),
            }
            value |= {"transaction_id": columns.ids[i], "amount": float(columns.amounts[i])}
            driver.publish("transactions", value)
        driver.run()
    alerts = {alert.transaction_id: alert for alert in driver.read("alerts")}
    scores = {score.transaction_id: score for score in driver.read("scores")}
    return [(scores[i], alerts.get(i)) for i in columns.ids]


def scored(columns, learner, knowledge, rows_max=300):
    """What ``weir score`` says, some rows at a time."""
    scoring, found = Scoring(ITS, PLAN, learner, knowledge), []
    for start in range(0, len(columns), rows_max):
        for batch, decided in scoring.score(columns.part(slice(start, start + rows_max))):
            found += [
                (
                    float(decided.scores[i]),
                    bool(decided.alerts[i]),
                    decided.words.get(i),
                    decided.reasons.get(i, []),
                    [None if np.isnan(x) else x for x in batch.rows[i].tolist()],
                )
                for i in range(len(batch))
            ]
    return found


def agree(stream, file):
    """Hold what a stream said against what a file says."""
    assert [score.score for score, _ in stream] == [one[0] for one in file]
    assert [score.is_alert for score, _ in stream] == [one[1] for one in file]
    assert [alert and alert.policy for _, alert in stream] == [one[2] for one in file]
    assert [score.reasons for score, _ in stream] == [one[3] for one in file]
    assert [score.features for score, _ in stream] == [one[4] for one in file]
    assert {True, False} == {one[1] for one in file}


def test_scores_are_those_of_the_stream(files):
    """Equal transactions, equal labels, one frozen model: bit for bit, and so are the reasons."""
    columns = read_columns(files / "new.parquet", ITS)
    learner = learner_in(files / "model.weir", ITS, PLAN)
    due_ms = due_after(columns.times_ms, DAY_MS)
    labels = [(int(due_ms[i]), i, True) for i in np.flatnonzero(columns.labels == 1).tolist()]
    assert labels
    agree(streamed(columns, learner, labels), scored(columns, learner, After(DAY_MS)))


def test_labels_of_a_file_are_heard_as_in_the_stream(files):
    """Each at its own time, what corrects another and what came too early among them."""
    columns = read_columns(files / "new.parquet", ITS)
    learner = learner_in(files / "model.weir", ITS, PLAN)
    random, labels = np.random.default_rng(11), []
    for i in random.choice(len(columns), 60, replace=False).tolist():
        time_ms = int(columns.times_ms[i]) + int(random.integers(0, 2 * DAY_MS))
        labels += [(time_ms, i, True), (time_ms + DAY_MS, i, bool(random.random() < 0.5))]
    told = LabelColumns(
        [columns.ids[i] for _, i, _ in sorted(labels)],
        np.array([time_ms for time_ms, _, _ in sorted(labels)]),
        np.array([is_fraud for _, _, is_fraud in sorted(labels)]),
    )
    agree(streamed(columns, learner, labels), scored(columns, learner, Told(told)))


def run(*arguments, code=0):
    """Run a command; return its result."""
    result = CliRunner().invoke(cli, [str(one) for one in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_history_is_known_and_not_scored(files, tmp_path):
    """The later part of a file scores as it does within the whole."""
    whole = tmp_path / "whole.parquet"
    parts = [parquet.read_table(files / f"{name}.parquet") for name in ("past", "new")]
    write_rows(whole, pa.concat_tables(parts).to_pydict())
    model = ("--snapshot", files / "model.weir")
    run("score", whole, *model, "--out", tmp_path / "a.parquet")
    history = ("--history", files / "past.parquet")
    run("score", files / "new.parquet", *model, *history, "--out", tmp_path / "b.parquet")
    all_of_it, later = (parquet.read_table(tmp_path / f"{name}.parquet") for name in "ab")
    assert all_of_it.slice(1_600).equals(later)
    assert 1_000 == len(later)


def test_history_that_overlaps_is_refused(files, tmp_path):
    """Out of order the entities would not be what they were."""
    model = ("--snapshot", files / "model.weir", "--out", tmp_path / "out.csv")
    result = run(
        "score", files / "past.parquet", *model, "--history", files / "new.parquet", code=1
    )
    assert "begins before" in str(result.exception)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("order", [1, -1])
def test_formats_and_orders_score_alike(files, tmp_path, suffix, order):
    """Whatever the file's format, and in whatever order it lies."""
    table = parquet.read_table(files / "new.parquet").slice(0, 300)
    file, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    write_rows(file, {name: table[name].to_pylist()[::order] for name in table.schema.names})
    write_rows(tmp_path / "plain.parquet", table.to_pydict())
    model = ("--snapshot", files / "model.weir", "--delay", "1d")
    run("score", file, *model, "--out", out)
    run("score", tmp_path / "plain.parquet", *model, "--out", tmp_path / "expected.parquet")
    readers = {".csv": csv.read_csv, ".jsonl": json.read_json, ".parquet": parquet.read_table}
    expected = parquet.read_table(tmp_path / "expected.parquet")
    assert expected["score"].to_pylist() == readers[suffix](out)["score"].to_pylist()
    assert expected.schema.names == readers[suffix](out).schema.names


@pytest.mark.parametrize("rows_max", [1, 7, 10_000])
def test_parts_of_a_file_are_the_file(files, rows_max):
    """Read some at a time or whole: the same columns."""
    few = parquet.read_table(files / "new.parquet").slice(0, 20)
    write_rows(files / "few.csv", few.to_pydict())
    whole = read_columns(files / "few.csv", ITS)
    parts = list(read_batches(files / "few.csv", ITS, rows_max))
    assert whole.ids == [identity for part in parts for identity in part.ids]
    assert whole.times_ms.tolist() == [t for part in parts for t in part.times_ms.tolist()]
    assert whole.labels.tolist() == [x for part in parts for x in part.labels.tolist()]
    assert whole.keys == [[k for part in parts for k in part.keys[e]] for e in (0, 1)]
    assert max(map(len, parts)) <= rows_max


TORN = [
    (lambda held: held[:-1], "not signed with learner.key"),
    (lambda held: held[:20], "torn or foreign"),
    (lambda _: b"", "torn or foreign"),
    (lambda _: snapshots.seal({"n": 1}, KEY), "is of something else; expected one of a learner"),
    (lambda held: held[:5] + held[6:38] + held[5:6] + held[38:], "not signed with"),
]


@pytest.mark.parametrize(("torn", "told"), TORN)
def test_snapshot_that_does_not_verify_is_refused(files, tmp_path, torn, told):
    """With its name and why."""
    path = tmp_path / "model.weir"
    path.write_bytes(torn((files / "model.weir").read_bytes()))
    with pytest.raises(Refused, match=told) as caught:
        learner_in(path, ITS, PLAN)
    assert str(path) in str(caught.value)


def test_snapshot_of_other_features_is_refused(files):
    """A model never meets features that it has not learnt."""
    other = load(profile="stream")
    plan = FeaturePlan.of(other.features, other.transaction.entities)
    with pytest.raises(Refused, match="features of schema"):
        learner_in(files / "model.weir", other, plan)
    with pytest.raises(Refused, match="expected a snapshot"):
        learner_in(files / "nothing.weir", ITS, PLAN)


def test_what_fails_leaves_nothing_under_its_name(tmp_path):
    """A file of scores is whole, or not there."""
    writer = RowWriter(tmp_path / "out.csv")
    writer.__enter__()({"a": [1]})
    writer.__exit__(RuntimeError, RuntimeError(), None)
    assert not list(tmp_path.iterdir())


def test_files_of_no_rows_are_no_trouble(files):
    """Nothing comes of nothing."""
    none = parquet.read_table(files / "new.parquet").slice(0, 0)
    write_rows(files / "none.parquet", none.to_pydict())
    assert [] == list(batches_of([], files / "none.parquet", ITS))


def kept(monkeypatch, *values):
    """A models topic with these snapshots."""

    async def records(*_, **__):
        for offset, value in enumerate(values):
            yield Position("models", 0, offset), Record(offset, b"champion/0", value, 1_000)

    monkeypatch.setattr(tail, "records", records)


def test_newest_snapshot_that_verifies_is_saved(files, tmp_path, monkeypatch):
    """Byte for byte as it was signed; the list says which do not verify, and why."""
    held = (files / "model.weir").read_bytes()
    kept(monkeypatch, b"torn", held, b"torn too")
    out = tmp_path / "saved.weir"
    run("models", "save", out)
    assert held == out.read_bytes()
    listed = run("models", "list", "--json").stdout
    assert 1 == listed.count('"verifies":"yes"')
    assert 2 == listed.count("torn or foreign")
    assert "champion" not in run("models", "list").stdout


def test_nothing_is_saved_where_nothing_verifies(tmp_path, monkeypatch):
    """It says why not."""
    kept(monkeypatch, b"torn")
    result = run("models", "save", tmp_path / "saved.weir", code=1)
    assert "none verifies; the last one: no: snapshot of 4 bytes" in str(result.exception)
    assert not list(tmp_path.iterdir())
