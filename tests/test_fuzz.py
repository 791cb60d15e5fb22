"""Every reader of bytes against what fuzzing has found, and a little more of it each time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import near
from tests.fuzz.targets import Target, targets

CORPUS = Path(__file__).parent / "corpus"
NAMES = (
    "transactions", "labels", "hops", "scores", "feedback", "examples", "snapshots", "signed",
    "changelog", "repeats", "configuration",
)  # fmt: skip


@pytest.fixture(scope="module")
def readers() -> dict[str, Target]:
    """Every reader; nothing here may change what they are."""
    return targets()


def test_every_reader_has_a_corpus(readers):
    """A reader that is added is fuzzed."""
    assert set(NAMES) == set(readers) == {path.name for path in CORPUS.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_corpus_breaks_no_reader(readers, name):
    """What was found to be read or refused in a way of its own is so again."""
    for path in sorted((CORPUS / name).iterdir()):
        readers[name].call(path.read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_read(readers, name):
    """Fuzzing begins at what is good."""
    assert readers[name].samples
    for sample in readers[name].samples:
        assert "read" == readers[name].call(sample)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, derandomize=True)
@given(data=st.data())
def test_no_bytes_break_a_reader(readers, name, data):
    """Read, or refused in words with nothing changed; `scripts/bench/fuzz` goes on for longer."""
    readers[name].call(data.draw(near(readers[name].samples)))
