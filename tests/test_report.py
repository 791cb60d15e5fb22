"""The report: a page that stands alone, that says what the evaluation says, and nothing else."""

import builtins
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from app.core.evaluation import Evaluation, mean_of
from app.core.measures.rows import DAY_MS
from app.errors import Refused
from app.records import Drift, ModelVersion
from app.report import Run, html, markdown, rows, write_report
from tests.core.examined import TERMS, evaluated, stream

HOSTILE = '<script>alert("1")</script> & $x_1$ |_`*'
VOID = {"meta", "br", "path", "use"}


class Page(HTMLParser):
    """What stands on a page; fails where a tag is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert [] == self.open

    def handle_starttag(self, tag, attrs):
        """A tag opens."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """A tag opens and closes."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        """A tag closes: the one that opened last."""
        if tag not in VOID:
            assert tag == self.open.pop()

    def handle_data(self, data):
        """Words."""
        self.text += data


def a_drift(at_day: int) -> Drift:
    """A change of scores, announced on a day."""
    return Drift(
        detector="ADWIN", kind="score", subject="mean score", before=0.1, after=0.2,
        since_ms=(at_day - 1) * DAY_MS, detected_ms=at_day * DAY_MS, n_examples=9,
        model=ModelVersion("champion", 1, "0" * 16),
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs():
    """Two runs, one of which nobody would name so."""
    facts = {"transactions": 1_500, "seconds": 1.25, "digest": "ab12", "memory": None}
    return [
        Run("forest", evaluated(stream(1)), [a_drift(17)], facts),
        Run(HOSTILE, evaluated(stream(2)), [], {"transactions": 1_500}),
    ]


@pytest.fixture(scope="module")
def page(runs):
    """The page of the two."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    return html(runs)


def test_rows_say_what_the_evaluation_says(runs):
    """Facts first, then figures, one value a run."""
    told = dict(rows(runs))
    assert ["1,500", "1,500"] == told["transactions"]
    assert ["1.25", "-"] == told["seconds"]
    assert ["-", "-"] == told["memory"]
    assert ["1", "0"] == told["drifts"]
    evaluations = [run.evaluation for run in runs]
    assert [f"{e.average_precision:.4f}" for e in evaluations] == told["average precision"]
    expected = [f"{mean_of(e.by_day(), 'card_precision'):.4f}" for e in evaluations]
    assert expected == told[f"card precision at {TERMS.top_k}"]
    assert "±" in told["recall by what people saw"][0]
    assert all(len(values) == 2 for values in told.values())


def test_run_that_saw_nothing_has_a_report():
    """Dashes, empty plots, no error."""
    empty = [Run("none", Evaluation())]
    assert ["-"] == dict(rows(empty))["average precision"]
    assert "average precision" in markdown(empty)
    pytest.importorskip("matplotlib")
    assert 5 == len(re.findall("<figure", html(empty)))


def test_page_stands_alone(page):
    """It is whole, loads nothing, and suits light and dark, narrow and wide."""
    got = Page(page)
    for tag, attributes in got.tags:
        assert tag not in {"link", "img", "iframe", "object", "script"}
        for name in ("href", "xlink:href", "src"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "prefers-color-scheme: dark" in page
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        got.tags
    )
    ids = [attributes["id"] for _, attributes in got.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_plot_is_there_and_says_what_it_shows(page):
    """Five plots, drawn with something, in the colours of the page, with words for each."""
    names = ["precision-recall", "reliability", "card-precision", "drift", "maturity"]
    assert names == re.findall(r'<figure id="([^"]+)"', page)
    for drawn in re.findall(r"<figure.*?(<svg.*?</svg>)", page, re.DOTALL):
        root = ET.fromstring(drawn)  # noqa: S314 - ours
        assert "img" == root.attrib["role"]
        assert len(root.attrib["aria-label"]) > 30
        assert "var(--s0)" in drawn
        assert "var(--s1)" in drawn
        assert not re.search(r"#[0-9a-f]{6}", re.sub(r'(href="|url\()#[^")]*', "", drawn))
        assert "width" not in root.attrib


def test_tables_can_be_read_aloud(page):
    """Every table has a caption, heads of columns and of rows."""
    tables = re.findall(r"<table>.*?</table>", page, re.DOTALL)
    assert len(tables) > 6
    for table in tables:
        assert "<caption>" in table
        assert 'scope="col"' in table
        assert 'scope="row"' in table


def test_hostile_names_are_words(page, runs):
    """A name is shown as it is, and nothing that it says is done."""
    assert HOSTILE in Page(page).text
    assert "<script" not in page
    assert "<script" not in markdown(runs)
    lines = [line for line in markdown(runs).splitlines() if line.startswith("| average prec")]
    assert 4 == len(re.findall(r"(?<!\\)\|", lines[0]))


def test_equal_runs_give_equal_reports(page, runs):
    """The same bytes, whenever they are written."""
    assert page == html(runs)
    assert markdown(runs) == markdown(runs)
    assert not re.search(r"20[12]\d-", re.sub(r"1970-|2024-", "", page))


def test_immature_days_and_drifts_are_shown(page, runs):
    """Marked in the table; hollow and dashed in the plots."""
    assert "not mature" in page
    assert "1970-01-18 00:00" in page, "the drift"
    assert "not mature" in markdown(runs)


def test_report_is_written_by_its_suffix(tmp_path, runs):
    """Markdown, or a page; else it is said what was expected."""
    write_report(tmp_path / "r.md", runs)
    assert markdown(runs) == (tmp_path / "r.md").read_text(encoding="utf-8")
    with pytest.raises(Refused, match=r"expected a name that ends with \.md or \.html"):
        write_report(tmp_path / "r.pdf", runs)
    with pytest.raises(Refused, match="expected a place to write a report"):
        write_report(tmp_path / "nowhere" / "r.md", runs)
    pytest.importorskip("matplotlib")
    write_report(tmp_path / "r.HTML", runs)
    assert (tmp_path / "r.HTML").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_missing_extra_is_refused_politely(tmp_path, runs, monkeypatch):
    """What to install is said; Markdown needs nothing."""
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "jinja2":
            raise ModuleNotFoundError(name, name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Refused, match=r"jinja2.*pip install 'weir\[report\]'"):
        write_report(tmp_path / "r.html", runs)
    assert not (tmp_path / "r.html").exists()
    write_report(tmp_path / "r.md", runs)
