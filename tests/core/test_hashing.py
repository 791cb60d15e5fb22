"""The compiled hash gives what the library's gives."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.hashing import hash_id, hash_many


def by_the_book(text: str) -> int:
    """BLAKE2b of 8 bytes as Python's own library computes it."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@settings(max_examples=200, derandomize=True)
@given(st.lists(st.text(max_size=40), max_size=20))
def test_many_names_are_hashed_as_one_by_one(texts):
    """Empty ones, none, and those that are not ASCII too."""
    expected = [by_the_book(text) for text in texts]
    assert expected == hash_many(texts).tolist()
    assert expected == [hash_id(text) for text in texts]


@pytest.mark.parametrize("n_bytes", [0, 1, 7, 8, 127, 128, 129, 255, 256, 257, 1_000])
def test_names_of_every_length_are_hashed(n_bytes):
    """The edges of a block of 128 bytes, and several blocks."""
    text = ("0123456789" * 100)[:n_bytes]
    assert [by_the_book(text)] * 2 == hash_many([text, text]).tolist()
