"""The last word on every transaction: what a log of examples says once it has been corrected."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from app.core.hashing import hash_id
from app.core.pending import MATURITY
from app.records import Example

if TYPE_CHECKING:
    from collections.abc import Iterable

    from app.records import Fact


class Word(NamedTuple):
    """What a label says."""

    is_fraud: bool
    source: str
    weight: float


class Words:
    """Every label of a log in its order, in 21 bytes each; from them, the last one of each id.

    That a transaction matured is a word only as long as there is no label. Whoever delivers
    examples again delivers the last of them again, too: so the last one in the log counts.

    >>> from app.records import Example
    >>> def told(is_fraud, source):
    ...     return Example(transaction_id="t1", time_ms=0, amount=1.0, entities={}, score=0.5,
    ...         features=[], feature_schema="", is_fraud=is_fraud, label_time_ms=0,
    ...         label_source=source, origin=("labels", 0, 0))
    >>> words = Words()
    >>> words.update([told(False, "analyst"), told(True, "bank"), told(False, "maturity")])
    >>> words.corrected
    1
    >>> words.of(told(False, "analyst")).is_fraud
    True
    """

    def __init__(self) -> None:
        """Nothing was said yet."""
        self._ids = array("Q")
        self._frauds = array("b")
        self._sources = array("I")
        self._weights = array("d")
        self._names: dict[str, int] = {MATURITY: 0}
        self._last: dict[int, Word] | None = None

    def update(self, facts: Iterable[Fact]) -> None:
        """Hear what stands in the log next."""
        for fact in facts:
            if isinstance(fact, Example):
                self._ids.append(hash_id(fact.transaction_id))
                self._frauds.append(fact.is_fraud)
                self._sources.append(self._names.setdefault(fact.label_source, len(self._names)))
                self._weights.append(fact.weight)
        self._last = None

    @property
    def corrected(self) -> int:
        """How many transactions were called both fraud and legitimate."""
        return len(self._words())

    def of(self, example: Example) -> Example:
        """An example with the last label of its transaction."""
        word = self._words().get(hash_id(example.transaction_id))
        if word is None:
            return example
        is_fraud, source, weight = word
        return msgspec.structs.replace(
            example, is_fraud=is_fraud, label_source=source, weight=weight
        )

    def _words(self) -> dict[int, Word]:
        """The last word on each transaction of which more than one thing was said."""
        if self._last is None:
            self._last = self._find()
        return self._last

    def _find(self) -> dict[int, Word]:
        # Copies: an array that numpy looks into can no longer grow.
        ids, frauds = np.array(self._ids, np.uint64), np.array(self._frauds, np.bool_)
        is_label = np.array(self._sources, np.uint32) > 0
        # By id, what matured before what was labelled, then in the order of the log.
        order = np.lexsort((np.arange(len(ids)), is_label, ids))
        starts = np.flatnonzero(np.diff(ids[order], prepend=ids[order][:1] + np.uint64(1)))
        ends = np.append(starts[1:], len(order))
        n_frauds = np.add.reduceat(frauds[order], starts, dtype=np.int64) if len(order) else starts
        mixed = (n_frauds > 0) & (n_frauds < ends - starts)
        names = list(self._names)
        return {
            int(ids[i]): Word(bool(frauds[i]), names[self._sources[i]], self._weights[i])
            for i in order[ends[mixed] - 1].tolist()
        }
