"""Rules, runbooks and dashboards name what is there (`scripts/prometheus check` runs the rules)."""

import json
import re
import runpy
from pathlib import Path

import pytest
import yaml

from app.metrics import Metrics

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "compose" / "prometheus"
GROUPS = yaml.safe_load((FOLDER / "rules.yaml").read_text(encoding="utf-8"))["groups"]
RULES = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
RUNBOOKS = ROOT / "docs" / "runbooks"
TESTS = yaml.safe_load((FOLDER / "rules_test.yaml").read_text(encoding="utf-8"))["tests"]


def served():
    """Every series name that a process of ours serves."""
    names = set()
    for one in Metrics().declared:
        parts = ("_bucket", "_sum", "_count") if one.kind == "histogram" else ("",)
        names |= {one.name + part for part in parts}
    process = {"resident_memory_bytes", "cpu_seconds_total", "start_time_seconds"}
    return names | {f"process_{name}" for name in process}


def named(query):
    """The series that a query names."""
    return set(re.findall(r"\b(?:weir|process)_\w+", query))


@pytest.mark.parametrize("alert", RULES)
def test_rule_names_metrics_that_exist(alert):
    """Every series of a rule is one that a process serves."""
    assert named(RULES[alert]["expr"]) <= served()


@pytest.mark.parametrize("alert", RULES)
def test_rule_has_a_runbook(alert):
    """Linked by its annotation, with the rule's own expression, and what to look at and to do."""
    path = ROOT / RULES[alert]["annotations"]["runbook_url"]
    assert RUNBOOKS / f"{alert}.md" == path
    page = path.read_text(encoding="utf-8")
    told = re.search("```promql\n(.*)\n```", page)
    assert told is not None
    assert " ".join(RULES[alert]["expr"].split()) == told[1]
    for part in ("## What it means", "## What to look at", "## What to do"):
        assert part in page
    for metric in named(page):
        assert metric in served() or f"{metric}_bucket" in served(), metric
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert (RUNBOOKS / link).is_file(), link


def test_every_runbook_has_a_rule():
    """And no page is left of a rule that is gone."""
    assert set(RULES) == {path.stem for path in RUNBOOKS.glob("*.md")}


@pytest.mark.parametrize("alert", RULES)
def test_rule_is_tested_both_ways(alert):
    """Somewhere it fires, somewhere it is silent."""
    tried = [case for test in TESTS for case in test["alert_rule_test"]]
    expected = {bool(case["exp_alerts"]) for case in tried if case["alertname"] == alert}
    assert {True, False} == expected


DASHBOARDS = ROOT / "compose" / "grafana" / "dashboards"
MADE = runpy.run_path(str(ROOT / "scripts" / "dashboards.py"))["files"]()
QUERIES = {
    (name, panel["title"], target["expr"])
    for name, text in MADE.items()
    for panel in json.loads(text)["panels"]
    for target in panel["targets"]
}


def test_dashboards_are_those_of_the_script():
    """They are made: python scripts/dashboards.py."""
    assert MADE == {p.name: p.read_text(encoding="utf-8") for p in DASHBOARDS.glob("*.json")}


@pytest.mark.parametrize(("dashboard", "panel", "query"), sorted(QUERIES))
def test_query_names_metrics_that_exist(dashboard, panel, query):
    """Every series of a panel is one that a process serves."""
    assert named(query)
    assert named(query) <= served()


def test_every_metric_of_quality_is_drawn():
    """What is measured for people is shown to them."""
    drawn = {metric for _, _, query in QUERIES for metric in named(query)}
    told = {one.name for one in Metrics().declared if one.group in {"Quality", "Model and drift"}}
    assert set() == told - drawn
