"""Bytes near those that are read: samples with a few places changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st

#: What readers stumble over.
WORDS = (
    b"NaN", b"1e999", b"-1e308", b"-0", b"null", b"true", b"{}", b"[]", b'""', b"[" * 40, b"\0",
    b"\xff", b"\xed\xa0\x80", b'"', b"\\", b"\\ud800", b"9" * 400, b"1e-400", b",", b":",
    b"}", b"]", b"\x80\x04", b"\xdb\xff\xff\xff\xff", b"\xc6\x7f\xff\xff\xff", b"\n", b"[[",
    b"=", b"'''",
)  # fmt: skip


class Change(NamedTuple):
    """What is done at a place, counted round the sample's length."""

    place: int
    n_removed: int
    put: bytes


def changed(sample: bytes, changes: Sequence[Change]) -> bytes:
    """The sample with the changes made, one after another.

    >>> changed(b"abc", [Change(1, 1, b"xy")])
    b'axyc'
    """
    made = sample
    for place, n_removed, put in changes:
        at = place % (len(made) + 1)
        made = made[:at] + put + made[at + n_removed :]
    return made


def near(samples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Samples changed in up to six places, and bytes of no kin."""
    change = st.builds(
        Change,
        st.integers(0, 4_095),
        st.sampled_from((0, 0, 1, 1, 2, 8, 64)),
        st.one_of(st.just(b""), st.sampled_from(WORDS), st.binary(max_size=8)),
    )
    mutated = st.builds(changed, st.sampled_from(list(samples)), st.lists(change, max_size=6))
    return st.one_of(mutated, mutated, mutated, st.binary(max_size=200))
