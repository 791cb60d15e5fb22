"""Batch inference: a file's scores by a model that no longer learns.

Entities are folded in event-time order and hear of frauds when the stream would have told
them; a signed snapshot scores, the policy decides. So the scores are, bit for bit, those of a
worker that has read the same transactions and labels in that order and follows the same
snapshot. (Of several partitions a later entity may see transactions in another order.)
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from app import snapshots
from app.backtest import Entities
from app.core.buckets import FRAUD
from app.core.features import FeaturePlan
from app.core.scoring import Champion
from app.errors import Refused
from app.files import LabelColumns, read_batches
from app.records import Record
from app.shelf import open_learner
from app.stages import scorer_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from app.config import Settings
    from app.core.learner import Learner
    from app.core.scoring import Batch, Decisions
    from app.files import Columns

#: As many as a worker takes at once, by default.
BATCH_MAX: Final = 2_048


def learner_in(path: Path, settings: Settings, plan: FeaturePlan) -> Learner:
    """The learner in a snapshot file.

    Raises Refused where it is torn, not signed with ``learner.key``, or of other features.
    """
    try:
        return open_learner(Record(0, None, snapshots.read(path), 0), settings, plan)
    except Refused as error:
        told = str(error)
        raise Refused(told if str(path) in told else f"{path}: {told}") from None


class Known(NamedTuple):
    """What the entities of a transaction hear, and when; in the order in which they do."""

    time_ms: int
    offset: int  # of the transaction
    paid_ms: int  # its time
    is_fraud: bool
    identity: str
    keys: tuple[str, ...]


class Knowledge(Protocol):
    """What becomes known of transactions later."""

    def of(self, columns: Columns, first: int) -> Iterator[Known]:
        """What there is to hear of some transactions; ``first`` is the offset of the first."""


@dataclass(frozen=True)
class After:
    """The frauds in a file's own label column, each so long after its transaction."""

    delay_ms: int

    def of(self, columns: Columns, first: int) -> Iterator[Known]:
        """Frauds; what is legitimate nobody needs to hear."""
        for i in np.flatnonzero(columns.labels == FRAUD).tolist():
            paid_ms = int(columns.times_ms[i])
            # Never with its own transaction: that is not known yet.
            told = (paid_ms + max(self.delay_ms, 1), first + i, paid_ms)
            yield Known(*told, True, columns.ids[i], _keys(columns, i))


@dataclass
class Told:
    """The labels of another file, each at its own time, corrections among them."""

    labels: LabelColumns
    by_id: dict[str, list[tuple[int, bool]]] = field(init=False)

    def __post_init__(self) -> None:
        """Find what is news: a fraud, and that a fraud was none."""
        self.by_id = {}
        said: dict[str, bool] = {}
        labels = zip(self.labels.ids, self.labels.times_ms, self.labels.is_fraud, strict=True)
        for identity, time_ms, is_fraud in labels:
            if said.get(identity, False) is not bool(is_fraud):
                self.by_id.setdefault(identity, []).append((int(time_ms), bool(is_fraud)))
            said[identity] = bool(is_fraud)

    def of(self, columns: Columns, first: int) -> Iterator[Known]:
        """Look each transaction up."""
        for i, identity in enumerate(columns.ids):
            at = paid_ms = int(columns.times_ms[i])
            for time_ms, is_fraud in self.by_id.get(identity, ()):
                # A label ahead of its transaction waits for it; one after another stays so.
                at = max(time_ms, at + 1)
                yield Known(at, first + i, paid_ms, is_fraud, identity, _keys(columns, i))


def _keys(columns: Columns, i: int) -> tuple[str, ...]:
    return tuple(column[i] for column in columns.keys)


class Scored(NamedTuple):
    """Transactions, one batch, and what was decided of them."""

    batch: Batch
    decided: Decisions


class Scoring:
    """A fold over transactions in event-time order; the model stands still.

    In memory are the entities, within their bounds, and the frauds that are not told yet.
    """

    def __init__(
        self,
        settings: Settings,
        plan: FeaturePlan,
        learner: Learner,
        knowledge: Knowledge,
        *,
        reasons_max: int | None = None,
    ) -> None:
        """Put a scorer together as a worker does that follows this learner."""
        self.plan, self.knowledge = plan, knowledge
        champion = Champion.of(learner)
        most = settings.policy.reasons_max if reasons_max is None else reasons_max
        self.scorer = replace(scorer_of(settings, plan, champion), reasons_max=most)
        self.entities = Entities(settings, plan)
        self.n = 0
        self._waiting: list[Known] = []  # a heap

    def fold(self, columns: Columns) -> Iterator[Batch]:
        """Fold the transactions that come next; each batch has its features once it is given."""
        for known in self.knowledge.of(columns, self.n):
            heapq.heappush(self._waiting, known)
        rows = self.plan.own_columns(columns.times_ms, columns.numbers, columns.categories)
        start, first = 0, self.n
        while start < len(columns):
            self._hear(int(columns.times_ms[start]))
            stop = self._until(columns.times_ms, start)
            batch = self.entities.batch(columns, rows, slice(start, stop), first)
            self.entities.fold(batch)
            self.n, start = first + stop, stop
            yield batch

    def score(self, columns: Columns) -> Iterator[Scored]:
        """Fold and score the transactions that come next."""
        for batch in self.fold(columns):
            yield Scored(batch, self.scorer.decide(batch))

    def _hear(self, now_ms: int) -> None:
        while self._waiting and self._waiting[0].time_ms <= now_ms:
            known = heapq.heappop(self._waiting)
            self.entities.mark(
                known.keys,
                known.identity,
                is_fraud=known.is_fraud,
                offset=known.offset,
                time_ms=known.paid_ms,
            )

    def _until(self, times_ms: NDArray[np.int64], start: int) -> int:
        """Where a batch ends that begins here: nothing becomes known within it."""
        stop = min(start + BATCH_MAX, len(times_ms))
        if self._waiting:
            stop = min(stop, int(np.searchsorted(times_ms, self._waiting[0].time_ms)))
        return stop


def batches_of(
    history: Sequence[Path], file: Path, settings: Settings
) -> Iterator[tuple[bool, Columns]]:
    """Files one after another, some rows at a time, and whether they are to be scored.

    Raises Refused where one begins before the one before it has ended.
    """
    before: tuple[Path, int] | None = None
    paths = (*history, file)
    for place, path in enumerate(paths, start=1):
        last_ms = None
        for columns in read_batches(path, settings):
            if not len(columns):
                continue
            if last_ms is None and before is not None and columns.times_ms[0] < before[1]:
                expected = "expected files in the order of their time, which do not overlap"
                raise Refused(f"{path} begins before {before[0]} ends; {expected}")
            last_ms = int(columns.times_ms[-1])
            yield place == len(paths), columns
        before = before if last_ms is None else (path, last_ms)


def columns_of(scored: Scored) -> Mapping[str, pa.Array]:
    """What is written of a batch, a row a transaction."""
    batch, decided = scored
    n, version = len(batch), decided.model
    reasons = ["; ".join(r.text for r in decided.reasons.get(i, ())) for i in range(n)]
    return {
        "transaction_id": pa.array(batch.ids, pa.string()),
        "score": pa.array(decided.scores, pa.float64()),
        "is_alert": pa.array(decided.alerts, pa.bool_()),
        "policy": pa.array([decided.words.get(i, "") for i in range(n)], pa.string()),
        "reasons": pa.array(reasons, pa.string()),
        "model_position": pa.array([version.position] * n, pa.int64()),
        "model_digest": pa.array([version.digest] * n, pa.string()),
    }
