"""The learner: a fold over the examples log, whose state carries its position.

The log is one partition, totally ordered, so the model is a function of the log: a learner
that was killed at any point and one that was not end with the same digest. The join sends an
example at least once; what comes again lies close by, so a bounded memory of the transactions
lately learnt is enough that none teaches twice.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from app.core.entity import hash_id
from app.core.evaluation import Evaluation
from app.core.monitor import Monitor
from app.core.novelty import Novelty
from app.core.pending import MATURITY
from app.core.scoremap import ScoreMap
from app.records import Drift, Example, LabelOutcome, ModelVersion, Summary, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.core.models import Model
    from app.core.monitor import Change
    from app.records import Outcome


@dataclass(slots=True)
class LearnerEffects:
    """What the world should be told."""

    outcomes: list[LabelOutcome] = field(default_factory=list)
    drifts: list[Drift] = field(default_factory=list)
    n_learned: int = 0


@dataclass
class Learner:
    """A model and everything learnt with it.

    ``apply`` takes the log in order and in batches of any size; the batches make no
    difference. What lies at or before ``position`` changes nothing.
    """

    name: str
    model: Model
    schema: str
    corrections: Literal["ignore", "relearn"] = "ignore"
    learnt_max: int = 65_536
    drift_delta: float = 0.002
    cold_start: int = 0
    position: int = -1
    n_learned: int = 0
    n_frauds: int = 0
    digest: str = "0" * 16

    def __post_init__(self) -> None:
        """Start with nothing learnt."""
        #: transaction -> the label it was learnt with, oldest first
        self.learnt: OrderedDict[int, bool] = OrderedDict()
        #: positions of the labels lately decided, oldest first
        self.decided: OrderedDict[tuple[str, int, int], None] = OrderedDict()
        self.summarised: dict[int, int] = {}  # scores partition -> highest offset summarised
        self.evaluation = Evaluation()
        self.scores = ScoreMap()
        self.novelty = Novelty.of(len(self.model.features))
        self.monitor = Monitor(delta=self.drift_delta)

    @property
    def version(self) -> ModelVersion:
        """Which model this is: a name, a position and a digest of all that was learnt."""
        return ModelVersion(self.name, self.position, self.digest)

    @property
    def trust(self) -> float:
        """Share of the model in a score, [0, 1]: the rest is told without labels (``novelty``).

        It grows with the frauds learnt, up to ``cold_start`` of them.
        """
        return min(1.0, self.n_frauds / self.cold_start) if self.cold_start else 1.0

    def apply(self, records: Sequence[tuple[int, Example | Summary | Verdict]]) -> LearnerEffects:
        """Learn from (offset, record) in the order of the log."""
        effects = LearnerEffects()
        batch: list[Example] = []
        for offset, record in records:
            if offset <= self.position:
                continue
            self.position = offset
            if isinstance(record, Summary):
                self._watch(record, effects)
            elif isinstance(record, Verdict):
                if record.outcome.origin not in self.decided:
                    self._decide(record.outcome, effects)
            elif self._teaches(record, effects):
                batch.append(record)
                self._account(record, effects)
        self._learn(batch)
        effects.n_learned = len(batch)
        return effects

    def _teaches(self, example: Example, effects: LearnerEffects) -> bool:
        """Decide the one outcome of an example, and whether the model learns it."""
        if example.origin in self.decided:
            return False  # delivered again
        if example.feature_schema != self.schema:
            reason = f"features of schema {example.feature_schema}; this model has {self.schema}"
            self._tell(example, "rejected", effects, reason)
            return False
        key = hash_id(example.transaction_id)
        before = self.learnt.get(key)
        if before is not None:
            if example.label_source == MATURITY:
                return False  # delivered again, or overtaken by a label
            if before == example.is_fraud:
                self._remember(key, example)
                self._tell(example, "duplicate", effects)
                return False
        self._remember(key, example)
        # Far apart, only the join can know that a label corrects; it says so by sending it.
        outcome: Outcome = "learn" if before is None else "corrected"
        self._tell(example, outcome, effects)
        return before is None or self.corrections == "relearn"

    def _decide(self, outcome: LabelOutcome, effects: LearnerEffects) -> None:
        """Give a label its one outcome: what comes for it again changes nothing."""
        self.decided[outcome.origin] = None
        if len(self.decided) > self.learnt_max:
            self.decided.popitem(last=False)
        effects.outcomes.append(outcome)

    def _tell(
        self, example: Example, outcome: Outcome, effects: LearnerEffects, reason: str = ""
    ) -> None:
        if example.label_source == MATURITY:
            return  # nobody's label
        told = LabelOutcome(
            transaction_id=example.transaction_id,
            outcome=outcome,
            is_fraud=example.is_fraud,
            label_source=example.label_source,
            origin=example.origin,
            reason=reason,
        )
        self._decide(told, effects)

    def _remember(self, key: int, example: Example) -> None:
        self.learnt[key] = example.is_fraud
        self.learnt.move_to_end(key)
        if len(self.learnt) > self.learnt_max:
            self.learnt.popitem(last=False)

    def _account(self, example: Example, effects: LearnerEffects) -> None:
        self.n_learned += 1
        self.n_frauds += example.is_fraud
        told = f"{self.digest}|{example.transaction_id}|{example.is_fraud}|{example.weight!r}|"
        row = np.array(example.features, np.float64).tobytes()
        self.digest = hashlib.blake2b(told.encode() + row, digest_size=8).hexdigest()
        for change in self.monitor.on_example(example):
            effects.drifts.append(self._drift(change))

    def _watch(self, summary: Summary, effects: LearnerEffects) -> None:
        if summary.last_offset <= self.summarised.get(summary.partition, -1):
            return
        self.summarised[summary.partition] = summary.last_offset
        self.scores.update(np.array(summary.bins, np.int64), summary.last_time_ms)
        if len(summary.feature_means) == len(self.novelty.means):
            means = np.array(summary.feature_means, np.float64)
            self.novelty.merge(summary.n, means, np.array(summary.feature_squares))
        effects.drifts += [self._drift(change) for change in self.monitor.on_summary(summary)]

    def _learn(self, batch: Sequence[Example]) -> None:
        if not batch:
            return
        rows = np.array([example.features for example in batch], np.float64)
        is_fraud = np.array([example.is_fraud for example in batch], np.bool_)
        weights = np.array([example.weight for example in batch], np.float64)
        self.evaluation.update(np.array([example.score for example in batch]), is_fraud)
        self.model.learn_many(rows, is_fraud, weights)

    def _drift(self, change: Change) -> Drift:
        return Drift(
            detector="ADWIN",
            kind=change.kind,
            subject=change.subject,
            before=change.before,
            after=change.after,
            since_ms=change.since_ms,
            detected_ms=change.detected_ms,
            n_examples=self.n_learned,
            model=self.version,
        )

    def __getstate__(self) -> dict[str, Any]:
        """State as plain values; the memory of ids as one tuple, small when pickled."""
        learnt, decided = list(self.learnt.items()), list(self.decided)
        return {**self.__dict__, "learnt": learnt, "decided": decided}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go on exactly where the state was taken."""
        self.__dict__.update(state)
        self.learnt = OrderedDict(state["learnt"])
        self.decided = OrderedDict.fromkeys(state["decided"])
