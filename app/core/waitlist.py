"""Scored transactions that wait for what is later known of them, in memory."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from app.core.hashing import hash_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from app.core.early import Unknown
    from app.records import Score


class Scored(Protocol):
    """A score, of which the join knows little until a label asks for all of it."""

    @property
    def transaction_id(self) -> str:
        """Whose score it is."""

    @property
    def time_ms(self) -> int:
        """Event time of the transaction."""

    @property
    def score(self) -> float:
        """In [0, 1]."""

    @property
    def is_alert(self) -> bool:
        """Whether the policy brings it to a person."""

    @property
    def feature_schema(self) -> str:
        """Which features it was given for."""

    def whole(self) -> Score:
        """Everything that was used to decide."""


class Waiting(msgspec.Struct, gc=False):
    """A scored transaction and what is known of it."""

    kept: Any  # Scored, or where one lies
    offset: int  # of the score
    due_ms: int  # when it matures; once matured, when it may be forgotten
    is_fraud: bool | None = None
    is_matured: bool = False
    until_ms: int = -1  # its labels could be taken for early ones until then
    label_offset: int = -1  # of the first of its labels; -1: none came

    @property
    def score(self) -> Score:
        """The score as it came."""
        whole: Score = self.kept.whole()
        return whole


class Known(Protocol):
    """The transactions that a join knows. Whoever changes one of them says ``changed``."""

    #: Whether they outlive the process.
    is_durable: bool
    #: How many do.
    n_written: int

    def __len__(self) -> int:
        """How many there are."""

    @property
    def is_full(self) -> bool:
        """Whether so much has changed that it should be written where it may be."""

    def expect(self, ids: Sequence[str], until_ms: int, *, labelled: bool) -> None:
        """Prepare for a batch: scores of these ids up to this time, or labels."""

    def get(self, transaction_id: str) -> Waiting | None:
        """What is known of a transaction, to be changed."""

    def peek(self, transaction_id: str) -> Waiting | None:
        """What is known of a transaction, to be looked at."""

    def add(self, waiting: Waiting) -> None:
        """Take in one that is not known."""

    def changed(self, waiting: Waiting) -> None:
        """Note that something of it is another than it was."""

    def schedule(self, waiting: Waiting, due_ms: int) -> None:
        """Give it another time."""

    def label(self, waiting: Waiting, offset: int) -> None:
        """Note where the first of its labels lies."""

    def let_go(self, waiting: Waiting) -> None:
        """Forget one."""

    def next_due(self, clock_ms: int) -> Waiting | None:
        """The next that is due by now, by time and name; each is given once a schedule."""

    def oldest(self) -> Waiting | None:
        """The one whose score came first."""

    def low_score(self) -> int | None:
        """Where that score lies."""

    def low_label(self) -> int | None:
        """The smallest offset of a label that is the first of one that is known."""

    def write(self, clock_ms: int, run_first: int, early: Mapping[int, Unknown | None]) -> None:
        """Make all that has changed durable, with the position, at once."""


class Waitlist:
    """All of them in memory (``Known``), in the order in which their scores came."""

    is_durable = False
    is_full = False
    n_written = 0

    def __init__(self) -> None:
        """Begin with none."""
        self._known: OrderedDict[str, Waiting] = OrderedDict()
        self._due: list[tuple[int, str]] = []  # heap of (when, transaction): mature or forget
        self._labelled: list[tuple[int, str]] = []  # heap of (offset of the label, transaction)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._known)

    def expect(self, ids: Sequence[str], until_ms: int, *, labelled: bool) -> None:
        """Nothing: everything is here."""

    def get(self, transaction_id: str) -> Waiting | None:
        """What is known of a transaction."""
        return self._known.get(transaction_id)

    peek = get

    def add(self, waiting: Waiting) -> None:
        """Take in one that is not known."""
        self._known[waiting.kept.transaction_id] = waiting
        self.schedule(waiting, waiting.due_ms)
        self._due = pruned(self._due, len(self._known), self._is_due)

    def changed(self, waiting: Waiting) -> None:
        """Nothing: it is in its place."""

    def schedule(self, waiting: Waiting, due_ms: int) -> None:
        """Give it another time."""
        waiting.due_ms = due_ms
        heapq.heappush(self._due, (due_ms, waiting.kept.transaction_id))

    def label(self, waiting: Waiting, offset: int) -> None:
        """Note where the first of its labels lies."""
        waiting.label_offset = offset
        heapq.heappush(self._labelled, (offset, waiting.kept.transaction_id))
        self._labelled = pruned(self._labelled, len(self._known), self._is_labelled)

    def let_go(self, waiting: Waiting) -> None:
        """Forget one."""
        del self._known[waiting.kept.transaction_id]

    def next_due(self, clock_ms: int) -> Waiting | None:
        """The next that is due by now."""
        while self._due and self._due[0][0] <= clock_ms:
            due_ms, transaction_id = heapq.heappop(self._due)
            if self._is_due(due_ms, transaction_id):  # else it was let go, and perhaps came again
                return self._known[transaction_id]
        return None

    def oldest(self) -> Waiting | None:
        """The one whose score came first."""
        return next(iter(self._known.values()), None)

    def low_score(self) -> int | None:
        """Where that score lies."""
        oldest = self.oldest()
        return None if oldest is None else oldest.offset

    def low_label(self) -> int | None:
        """The smallest offset of a label that is the first of one that is known."""
        while self._labelled and not self._is_labelled(*self._labelled[0]):
            heapq.heappop(self._labelled)
        return self._labelled[0][0] if self._labelled else None

    def write(self, clock_ms: int, run_first: int, early: Mapping[int, Unknown | None]) -> None:
        """Nothing: it ends with the process."""

    def _is_due(self, due_ms: int, transaction_id: str) -> bool:
        waiting = self._known.get(transaction_id)
        return waiting is not None and waiting.due_ms == due_ms

    def _is_labelled(self, offset: int, transaction_id: str) -> bool:
        waiting = self._known.get(transaction_id)
        return waiting is not None and waiting.label_offset == offset


def is_sampled(transaction_id: str, share: float) -> bool:
    """Whether one that matures is among the share that is learnt.

    Decided by the id, so that a restart decides alike.
    """
    return hash_id(transaction_id) / 2.0**64 < share


#: 64: below, a heap is not worth its pruning.
_ROOM = 64


def room(n: int) -> int:
    """How many entries may stand for n that are alive."""
    return 2 * n + _ROOM


def pruned(
    heap: list[tuple[int, str]], n: int, is_alive: Callable[[int, str], bool]
) -> list[tuple[int, str]]:
    """The heap, without what is no longer alive once that is more than half of it."""
    if len(heap) <= room(n):
        return heap
    return sorted({one for one in heap if is_alive(*one)})  # a sorted list is a heap
