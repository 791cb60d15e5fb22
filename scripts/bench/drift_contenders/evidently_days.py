"""Evidently's default drift preset, a day at a time; run in ``.bench-venv``.

Standard input: the path of an ``.npz`` with ``days`` (one number a row), ``rows`` and ``names``,
and ``reference`` (a flag a row). Standard output: for each day how far columns drifted, as JSON.
"""

import json
import re
import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd
from evidently import Dataset, Report
from evidently.presets import DataDriftPreset

warnings.filterwarnings("ignore")


def main() -> None:
    """Compare each day with the reference."""
    held = np.load(sys.argv[1])
    rows, days, names = held["rows"], held["days"], [str(name) for name in held["names"]]
    table = pd.DataFrame(rows, columns=names)
    reference = Dataset.from_pandas(table[held["reference"]])
    told = []
    for day in np.unique(days[~held["reference"]]).tolist():
        current = Dataset.from_pandas(table[(days == day) & ~held["reference"]])
        snapshot = Report([DataDriftPreset()]).run(current, reference).dict()
        told.append({"day": day, **_values(snapshot["metrics"])})
    sys.stdout.write(json.dumps(told) + "\n")


def _values(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The share of columns that drifted, and how far each passed its threshold (1: just so).

    Where the method is a test its p-value is small when a column drifted; else a distance is large.
    """
    told: dict[str, Any] = {"drifted_share": 0.0, "columns": {}}
    for metric in metrics:
        name, value = metric["metric_name"], metric["value"]
        if name.startswith("DriftedColumnsCount"):
            told["drifted_share"] = float(value["share"])
            continue
        parts = dict(re.findall(r"(column|method|threshold)=([^,)]+(?: \([^)]*\))?)", name))
        threshold, is_test = float(parts["threshold"]), "p_value" in parts["method"]
        value = max(float(value), 1e-12)
        told["columns"][parts["column"]] = threshold / value if is_test else value / threshold
    return told


if __name__ == "__main__":
    main()
