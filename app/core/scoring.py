"""From a batch of transactions to scores: the columns, the entity fold, the decision."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import numpy as np

from app.core.fallback import MODEL, STALE, STAMPS, WORDS, Given
from app.core.policy import NOTHING, reasons
from app.core.windows import APPLIED
from app.records import Alert, ModelVersion, Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from app.core.entity import EntityStore
    from app.core.fallback import FallbackChain, Moment
    from app.core.features import FeaturePlan
    from app.core.learner import Learner
    from app.core.mixture import Mixture
    from app.core.policy import Policy
    from app.core.scoremap import ScoreMap
    from app.records import Reason


@dataclass(frozen=True)
class Batch:
    """Transactions in columns, in the order of their log; n of each.

    ``keys[e]`` are the values of the e-th declared entity, ``segments[s]`` those of the s-th
    declared segment, ``rows`` the features so far, shape (n, features); ``partitions`` and
    ``offsets`` say where each transaction was first read.
    """

    ids: list[str]
    times_ms: NDArray[np.int64]
    amounts: NDArray[np.float64]
    keys: list[list[str]]
    rows: NDArray[np.float64]
    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    published_ms: NDArray[np.int64]
    traces: list[bytes | None]
    segments: list[list[str]] = field(default_factory=list)

    def __len__(self) -> int:
        """How many transactions."""
        return len(self.ids)

    def where(self, keep: NDArray[np.bool_]) -> Batch:
        """Return the transactions where ``keep``, shape (n,), holds."""
        return self if keep.all() else self.take(np.flatnonzero(keep))

    def take(self, at: NDArray[np.int64]) -> Batch:
        """Return the transactions in the places ``at``, in that order."""
        places = at.tolist()
        return Batch(
            ids=[self.ids[i] for i in places],
            times_ms=self.times_ms[at],
            amounts=self.amounts[at],
            keys=[[column[i] for i in places] for column in self.keys],
            rows=self.rows[at],
            partitions=self.partitions[at],
            offsets=self.offsets[at],
            published_ms=self.published_ms[at],
            traces=[self.traces[i] for i in places],
            segments=[[column[i] for i in places] for column in self.segments],
        )

    @classmethod
    def joined(cls, batches: Sequence[Batch]) -> Batch:
        """Return several batches as one, in their order; at least one."""
        if len(batches) == 1:
            return batches[0]
        return cls(
            ids=list(chain.from_iterable(b.ids for b in batches)),
            times_ms=np.concatenate([b.times_ms for b in batches]),
            amounts=np.concatenate([b.amounts for b in batches]),
            keys=_columns([b.keys for b in batches]),
            rows=np.concatenate([b.rows for b in batches]),
            partitions=np.concatenate([b.partitions for b in batches]),
            offsets=np.concatenate([b.offsets for b in batches]),
            published_ms=np.concatenate([b.published_ms for b in batches]),
            traces=list(chain.from_iterable(b.traces for b in batches)),
            segments=_columns([b.segments for b in batches]),
        )


def _columns(parts: Iterable[list[list[str]]]) -> list[list[str]]:
    """Columns of several batches, each joined to the next."""
    return [list(chain.from_iterable(column)) for column in zip(*parts, strict=True)]


#: As long as an id may be; what is longer has no few values.
_SEGMENT_MAX: Final = 256


def segment_of(category: str | None) -> str:
    """The value of a segment, as it travels with a transaction: empty where it is missing.

    >>> segment_of("web"), segment_of(None), len(segment_of("x" * 1_000))
    ('web', '', 256)
    """
    return (category or "")[:_SEGMENT_MAX]


def fold_entity(
    batch: Batch, entity: int, store: EntityStore, columns: NDArray[np.int64]
) -> NDArray[np.int8]:
    """Apply a batch to the store of its e-th entity; fill ``columns`` of its rows.

    Returns what became of each transaction (``windows``): only those applied go on. "Distinct"
    and "seen" look at the next entity of the transaction: a card's terminals, a terminal's cards.
    """
    other = batch.keys[(entity + 1) % len(batch.keys)]
    single = store.upstreams == 1
    features, status = store.apply(
        batch.keys[entity],
        times_ms=batch.times_ms,
        amounts=batch.amounts,
        ids=batch.ids,
        others=other,
        upstreams=np.zeros(len(batch), np.int64) if single else batch.partitions,
        offsets=batch.offsets,
    )
    batch.rows[:, columns] = features
    return status


def applied(status: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Which transactions of a batch were applied just now."""
    return np.asarray(status == APPLIED)


@dataclass
class Champion:
    """What decides, and which version it is.

    In the process of the learner this is the learner's own model, as it learns; elsewhere
    that of the newest snapshot.
    """

    mixture: Mixture
    version: ModelVersion
    scores: ScoreMap | None = None
    n_given: int = 0  # scores since it last learnt
    unlearnt_since_ms: int | None = None  # since when there is something that it has not learnt
    rebuilt: int = -1  # as ``Learner.rebuilt``

    @property
    def age(self) -> tuple[int, int]:
        """As ``Learner.age``."""
        return self.rebuilt, self.version.position

    @classmethod
    def of(cls, learner: Learner) -> Champion:
        """What a learner has learnt so far."""
        return cls(learner.mixture, learner.version, learner.scores, rebuilt=learner.rebuilt)

    def for_scoring(self) -> Champion:
        """What gives the same scores elsewhere (``Model.for_scoring``)."""
        return Champion(self.mixture.for_scoring(), self.version, self.scores, rebuilt=self.rebuilt)

    def given(self, n: int, now_ms: int, n_learnable: int) -> None:
        """Note that n scores are given; ``n_learnable`` of them always give something to learn."""
        self.n_given += n
        if self.n_given >= n_learnable and self.unlearnt_since_ms is None:
            self.unlearnt_since_ms = now_ms

    def unlearnt_ms(self, now_ms: int) -> int:
        """For how long it has not learnt what there is; 0 where there may be nothing."""
        since = self.unlearnt_since_ms
        return 0 if since is None else max(now_ms - since, 0)

    def follow(self, learner: Learner | Champion) -> bool:
        """Adopt what a learner has learnt; return whether it was newer."""
        if learner.age < self.age:
            return False
        if learner.age > self.age:
            self.n_given, self.unlearnt_since_ms = 0, None
        self.mixture, self.version = learner.mixture, learner.version
        self.scores, self.rebuilt = learner.scores, learner.rebuilt
        return True

    def line(self, policy: Policy) -> float | None:
        """The score above which the policy's budget of alerts lies; None: none, or not known."""
        if self.scores is None or policy.kind != "budget":
            return None
        return self.scores.line(policy.alerts_per_day)


@dataclass(frozen=True)
class Decisions:
    """What was decided of a batch: scores, the model's own, alerts, propensities, shape (n,).

    ``reasons`` and ``words`` are those of the alerts, by their place in the batch. ``fallback``
    says whose scores they are (``fallback.STAMPS``); ``failure`` what the model raised.
    """

    scores: NDArray[np.float64]
    raw: NDArray[np.float64]
    alerts: NDArray[np.bool_]
    propensity: NDArray[np.float64]
    reasons: dict[int, list[Reason]]
    words: dict[int, str]
    model: ModelVersion
    fallback: NDArray[np.int8]
    failure: str = ""


@dataclass(frozen=True)
class Scorer:
    """The last step of the flow: what a configuration makes of a batch with all its features.

    ``entities``, ``segments`` and ``plan`` name the columns of a batch. Without a ``fallback`` a
    model that fails raises, and no score is anybody else's.
    """

    entities: tuple[str, ...]
    segments: tuple[str, ...]
    plan: FeaturePlan
    champion: Champion
    policy: Policy
    reasons_max: int
    fallback: FallbackChain | None = None

    def decide(self, batch: Batch, moment: Moment | None = None) -> Decisions:
        """Score a batch, apply the policy, explain what becomes an alert.

        ``moment``: where there is one, a fallback may stand in.
        """
        champion, policy = self.champion, self.policy
        mixture = champion.mixture
        keys = dict(zip(self.entities, batch.keys, strict=True))
        segments = dict(zip(self.segments, batch.segments, strict=True))
        scores, raw, why, failure = self._given(batch, segments, moment)
        line = champion.line(policy)
        verdicts = policy.assess(scores, batch.amounts, keys, batch.ids, line, segments)
        at = np.flatnonzero(verdicts.fired != NOTHING)
        is_told = (why == MODEL) | (why == STALE)
        told = self._reasons(batch, at[is_told[at]])
        words = {int(i): policy.words(int(verdicts.fired[i]), line) + WORDS[why[i]] for i in at}
        if mixture.trust < 1.0:
            cold = f"; {1.0 - mixture.trust:.0%} of the score is unlikeness, told without labels"
            words = {i: text + (cold if is_told[i] else "") for i, text in words.items()}
        alerts, propensity, version = verdicts.alerts, verdicts.propensity, champion.version
        return Decisions(scores, raw, alerts, propensity, told, words, version, why, failure)

    def _given(
        self, batch: Batch, segments: Mapping[str, Sequence[str]], moment: Moment | None
    ) -> Given:
        mixture, chain = self.champion.mixture, self.fallback
        if chain is None or moment is None:
            return Given(*mixture.score_many(batch.rows), np.full(len(batch), MODEL, np.int8))
        ages_ms = moment.now_ms - batch.published_ms
        why = chain.why(ages_ms, moment, self.champion.version.position)
        return chain.give(mixture, batch.rows, batch.amounts, segments, why)

    def _reasons(self, batch: Batch, at: NDArray[np.int64]) -> dict[int, list[Reason]]:
        """Why the model finds transactions suspicious, by their place in the batch."""
        if not len(at) or not self.reasons_max:
            return {}
        mixture, rows = self.champion.mixture, batch.rows[at]
        shares = zip(mixture.encoding.apply(rows), mixture.contributions(rows), strict=True)
        names, most = self.plan.names, self.reasons_max
        return {int(i): reasons(names, *told, most) for i, told in zip(at, shares, strict=True)}

    def alerts(self, batch: Batch, decided: Decisions, topic: str) -> Iterator[tuple[int, Alert]]:
        """What is brought to people, by its place in the batch; ``topic``: of the transactions."""
        for i in np.flatnonzero(decided.alerts).tolist():
            keys, segments = ([c[i] for c in columns] for columns in (batch.keys, batch.segments))
            entities = dict(zip(self.entities, keys, strict=True))
            position = (int(batch.partitions[i]), int(batch.offsets[i]))
            alert = Alert(
                transaction_id=batch.ids[i],
                time_ms=int(batch.times_ms[i]),
                entities=entities,
                amount=float(batch.amounts[i]),
                score=float(decided.scores[i]),
                policy=decided.words[i],
                reasons=decided.reasons.get(i, []),
                model=decided.model,
                source=Source(topic, *position, int(batch.published_ms[i])),
                segments=dict(zip(self.segments, segments, strict=True)),
                links={kind: _path(kind, name) for kind, name in entities.items()},
                fallback=STAMPS[decided.fallback[i]],
            )
            yield i, alert


def _path(kind: str, name: str) -> str:
    """Where a worker's web server shows the recent history of an entity."""
    return f"/v1/entities/{quote(kind, safe='')}/{quote(name, safe='')}"
