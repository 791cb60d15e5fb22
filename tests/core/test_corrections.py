"""A log in which labels were corrected, as if they had been right from the first."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.corrections import Words
from app.core.learner import Learner
from app.core.models import make_model
from app.core.pending import MATURITY
from app.records import Example, Verdict

NAMES = ["a", "b", "c"]
FRAUD, LEGIT = (True, "bank"), (False, "analyst")
MATURED = (False, MATURITY)


def example(id_: str, offset: int, is_fraud: bool, source: str, features: Any = None) -> Example:
    """One example."""
    weight = 4.0 if source == MATURITY else 1.0
    return Example(
        transaction_id=id_, time_ms=0, amount=9.5, entities={"card": "c"}, score=0.5,
        features=features or [0.5, None, 1.0], feature_schema="s", is_fraud=is_fraud,
        label_time_ms=1, label_source=source, origin=("labels", 0, offset), weight=weight,
    )  # fmt: skip


def words_of(facts: list[Example]) -> Words:
    """The last words of some examples."""
    words = Words()
    words.update(facts)
    return words


# what the log says of one transaction, in order | what it says in the end | is it corrected
LAST = [
    ([FRAUD], FRAUD, 0),
    ([FRAUD, FRAUD], FRAUD, 0),
    ([LEGIT, FRAUD], FRAUD, 1),
    ([FRAUD, LEGIT], LEGIT, 1),
    ([FRAUD, LEGIT, FRAUD], FRAUD, 1),
    ([MATURED, FRAUD], FRAUD, 1),
    ([FRAUD, MATURED], FRAUD, 1),  # delivered again, in another order
    ([MATURED], MATURED, 0),
    ([MATURED, LEGIT], MATURED, 0),  # nothing was corrected: it stays as it was learnt
    ([LEGIT, FRAUD, LEGIT, FRAUD], FRAUD, 1),
]


@pytest.mark.parametrize(("said", "last", "n"), LAST)
def test_last_label_counts_from_the_first(said, last, n):
    """Every example of a transaction says what the last label said; maturity is no label."""
    facts = [example("t1", i, *word) for i, word in enumerate(said)]
    words = words_of([example("t0", 90, *FRAUD), *facts, example("t2", 91, *LEGIT)])
    assert n == words.corrected
    told = words.of(facts[0])
    assert last == (told.is_fraud, told.label_source)
    assert (4.0 if last == MATURED else 1.0) == told.weight
    assert facts[0].origin == told.origin


def test_log_of_nothing_says_nothing():
    """Not even how to sort it."""
    words = words_of([])
    assert 0 == words.corrected
    assert FRAUD == ((one := words.of(example("t1", 0, *FRAUD))).is_fraud, one.label_source)


@pytest.mark.parametrize("corrections", ["ignore", "relearn", "rebuild"])
@settings(max_examples=20, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_corrected_labels_replace_what_was_taught(corrections, seed):
    """The model is the one of a log whose labels were right at once, to the last bit."""
    rng = random.Random(seed)
    wrong: list[Example] = []
    right: list[Example] = []
    for i in range(120):
        features, is_fraud = [rng.gauss(0, 1) for _ in NAMES], rng.random() < 0.3
        right.append(example(f"t{i}", i, is_fraud, "bank", features))
        is_corrected = rng.random() < 0.3
        wrong.append(example(f"t{i}", i, is_fraud is not is_corrected, "bank", features))
        if is_corrected:
            wrong.insert(
                rng.randint(len(wrong), len(wrong)),
                example(f"t{i}", 1_000 + i, is_fraud, "bank", features),
            )
    words = words_of(wrong)
    made, wanted = (
        Learner("champion", make_model("logistic", NAMES, seed=1), "s", corrections=corrections)
        for _ in range(2)
    )
    made.apply([(i, words.of(fact)) for i, fact in enumerate(wrong)])
    wanted.apply(list(enumerate(right)))
    assert wanted.digest == made.digest
    assert wanted.n_learned == made.n_learned == 120
    assert wanted.model.state_digest() == made.model.state_digest()


def test_redelivered_correction_teaches_nothing_after_a_rebuild():
    """The model knows the positions of all labels it was made of, the corrected ones' too."""
    facts = [example("t1", 0, *LEGIT), example("t1", 1, *FRAUD)]
    words = words_of(facts)
    learner = Learner("champion", make_model("logistic", NAMES, seed=1), "s", corrections="rebuild")
    learner.apply([(i, words.of(fact)) for i, fact in enumerate(facts)])
    before = learner.model.state_digest(), learner.digest
    effects = learner.apply([(2, facts[0]), (3, facts[1])])
    assert ([], before) == (effects.outcomes, (learner.model.state_digest(), learner.digest))


def test_words_leave_alone_what_is_no_example():
    """Verdicts and summaries have no label to correct."""
    words = Words()
    words.update([Verdict(outcome=None)])  # type: ignore[arg-type]  # nobody looks into it
    assert 0 == words.corrected
