"""A real Prometheus asks a running worker: every panel has data, every rule can be reckoned."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.harness import ROOT, TooLate, free_port, labels_of, transactions, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

DAY_MS = 86_400_000


class Prometheus:
    """A Prometheus of our own, that asks every second."""

    def __init__(self, binary: Path, folder: Path, target: int) -> None:
        self.port = free_port()
        shutil.copy(ROOT / "compose" / "prometheus" / "rules.yaml", folder / "rules.yaml")
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [
                {"job_name": "weir", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
            ],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as out:
            self.popen = subprocess.Popen(
                [
                    binary, f"--config.file={folder / 'prometheus.yaml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def is_up(self) -> bool:
        """Whether it answers."""
        with contextlib.suppress(OSError):
            self.get("query", query="up")
            return True
        return False

    def get(self, path: str, **parameters: str) -> Any:
        """An answer of the API."""
        query = urllib.parse.urlencode(parameters)
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def answers(self, query: str) -> bool:
        """Whether a query has a finite value."""
        found = self.get("query", query=query)["result"]
        return any(math.isfinite(float(sample["value"][1])) for sample in found)

    def n_read(self) -> int:
        """How often the worker was asked so far, as far as that can be seen."""
        found = self.get("query", query="count_over_time(up[5m])")["result"]
        return int(found[0]["value"][1]) if found else 0

    def end(self) -> None:
        """End it."""
        self.popen.kill()
        self.popen.wait()


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[int], Prometheus]]:
    """Starts a Prometheus that asks a port; ended with the test."""
    folder = os.environ.get("WEIR_TEST_PROMETHEUS")
    if not folder:
        pytest.skip("no Prometheus: WEIR_TEST_PROMETHEUS is not set (scripts/prometheus resolve)")
    started: list[Prometheus] = []

    def start(target: int) -> Prometheus:
        home = tmp_path / "prometheus"
        home.mkdir()
        started.append(Prometheus(Path(folder) / "prometheus", home, target))
        return started[-1]

    yield start
    for one in started:
        one.end()


def queries() -> dict[str, str]:
    """Every query of every dashboard, by where it stands."""
    found = {}
    for path in sorted((ROOT / "compose" / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel["targets"]:
                found[f"{path.stem}: {panel['title']} ({target['refId']})"] = target["expr"]
    return found


async def test_every_panel_has_data_and_every_rule_is_reckoned(make_world, prometheus):
    """Three weeks of transactions, with labels, alerts, repeats and one that cannot be read."""
    world = make_world(
        transaction={"categories": ["channel"], "segments": ["channel"], "optional": ["channel"]},
        policy={
            "kind": "budget",
            "explore": 0.3,
            "repeats": {"entity": "card_id"},
            # Half is always flagged, of the rest some is shown all the same: there is a recall.
            "rules": [{"name": "web", "segments": {"channel": ["web"]}, "threshold": 0.0}],
        },
        join={"maturity": "2d"},
    )
    await world.create_topics()
    worker = await world.start().ready()
    asked = prometheus(worker.port)
    await until(asked.is_up, "no Prometheus")
    some = transactions(600, seed=3)
    for i, one in enumerate(some):
        one["event_time"] += i * DAY_MS // 30
        one["channel"] = "web" if i % 2 else "shop"
    for start in range(0, 600, 200):  # rates need more than one look
        part = some[start : start + 200]
        await world.transact(part)
        await world.scored([t["transaction_id"] for t in part])
        await world.label(labels_of(part, seed=start))
        await world.outcomes(start + 200)
        read = asked.n_read()
        await until(lambda: asked.n_read() >= read + 2, "it is not asked")  # noqa: B023 - awaited
    await world.publish(world.topics.transactions, [(b"c1", b"{")])
    missing = queries()
    assert len(missing) > 50

    def all_answered() -> bool:
        for name in [name for name, query in missing.items() if asked.answers(query)]:
            del missing[name]
        return not missing

    with contextlib.suppress(TooLate):
        await until(all_answered, "", 30.0)
    assert {} == missing, asked.log.read_text(encoding="utf-8")[-2_000:]
    groups = asked.get("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert len(rules) > 15
    assert {} == {name: rule for name, rule in rules.items() if rule["health"] != "ok"}
