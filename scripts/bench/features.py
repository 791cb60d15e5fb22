"""The book's features of a backtest beside the reference, row by row.

Equal means equal as float32, or within 1e-6 of it: a running mean of zeros is 1e-14 in the
reference. Where a card pays twice within one second the reference does not always keep the
order of the file; such rows are counted apart.
"""

from __future__ import annotations

import sys
from typing import Annotated

import numpy as np
import orjson
import pyarrow.parquet as pq
import typer
from common import data_file, machine, progress

from app.backtest import Backtest, due_after
from app.config import load
from app.files import read_columns


def main(*, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Compare the book's fifteen features with the reference, on all its rows."""
    settings = load(profile="handbook", model={"name": "logistic"})
    columns = read_columns(data_file("handbook_transactions.parquet"), settings)
    reference = pq.read_table(data_file("handbook_features_reference.parquet"))
    due_ms = due_after(columns.times_ms, 7 * 86_400_000)
    backtest = Backtest(settings, keep_features=True)
    with progress() as bar:
        shown = bar.add_task("features", total=len(columns), note="")
        found = backtest.run(columns, due_ms, lambda n: bar.advance(shown, n)).features
    assert found is not None  # noqa: S101 - asked for above
    order = {identity: i for i, identity in enumerate(columns.ids)}
    at = np.array([order[str(i)] for i in reference["TRANSACTION_ID"].to_pylist()])
    card, time = np.array(columns.keys[0])[at], columns.times_ms[at]
    pairs = np.array([f"{c} {t}" for c, t in zip(card, time, strict=True)])
    _, inverse, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    is_tied = counts[inverse] > 1
    told: dict[str, dict[str, int]] = {}
    for j, name in enumerate(backtest.plan.names):
        if name not in reference.column_names:
            continue
        ours = found[at, j].astype(np.float32)
        theirs = reference[name].to_numpy().astype(np.float32)
        differs = ~np.isclose(ours, theirs, rtol=1e-6, atol=1e-6)
        told[name] = {
            "differ": int((differs & ~is_tied).sum()),
            "differ_within_one_second": int((differs & is_tied).sum()),
        }
    if as_json:
        sys.stdout.write(
            orjson.dumps({"rows": len(at), "features": told, **machine()}).decode() + "\n"
        )
    else:
        sys.stdout.write(f"{len(at)} rows\n")
        for name, counted in told.items():
            sys.stdout.write(f"{name:40} {counted}\n")
    sys.exit(1 if any(counted["differ"] for counted in told.values()) else 0)


if __name__ == "__main__":
    typer.run(main)
