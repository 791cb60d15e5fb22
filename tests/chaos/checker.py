"""What must hold of the topics in the end: each law a counter, each counter able to rise.

The reference folds the very records that lie in the topics, with the same core and in the order of
the logs. Statistics that labels have a part in are not compared score by score: how far the labels
had come when a transaction was scored is written nowhere. The state they lead to is compared.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np

from app import codec
from app.config import WindowFeature
from app.core.entity import EntityStore
from app.core.features import FeaturePlan
from app.core.learner import Learner
from app.core.pending import MATURITY
from app.core.scoring import Batch
from app.core.slots import SlotValue
from app.core.windows import APPLIED, DUPLICATE
from app.errors import Malformed, Refused
from app.learning import new_learner
from app.records import Example, LabelOutcome, Partition, Position, Summary
from app.shelf import CHAMPION, LEARNER, described, opened
from app.topics import Topics
from app.worker import fresh_champion
from tests.simulator.world import held_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from app.config import Settings
    from app.core.scoring import Champion
    from app.records import Record, Score
    from app.snapshots import About

Place = tuple[int, int]  # source position of a transaction: partition, offset

#: Statistics that labels have no part in.
UNLABELLED: Final = frozenset(
    (
        "count",
        "sum",
        "mean",
        "max",
        "std",
        "ratio",
        "zscore",
        "rank",
        "since_last",
        "distinct",
        "seen",
        "peak",
        "burst",
    )
)
#: Ids of what is published at the end, to let event time pass; nothing follows from them.
FLUSH: Final = "flush-"


class Sample(NamedTuple):
    """What the groups had committed, and, asked for after that, where the topics ended."""

    committed: Mapping[Partition, int]
    ends: Mapping[Partition, int]


@dataclass
class Read:
    """All topics of a world that has come to rest, and what was seen on the way."""

    settings: Settings
    logs: dict[Partition, list[Record]]
    ends: dict[Partition, int]
    committed: dict[Partition, int]
    samples: list[Sample] = field(default_factory=list)
    acknowledged: dict[Position, bytes | None] = field(default_factory=dict)
    writers: dict[Position, int] = field(default_factory=dict)  # id of the producer

    def __post_init__(self) -> None:
        """Name the topics."""
        self.topics = Topics.of(self.settings)
        self.plan = FeaturePlan.of(self.settings.features, self.settings.transaction.entities)

    def of(self, topic: str) -> Iterator[tuple[Partition, Record]]:
        """Every record of a topic, partition by partition."""
        for at in sorted(at for at in self.logs if at.topic == topic):
            for record in self.logs[at]:
                yield at, record


class _Made(NamedTuple):
    """A row of a changelog: what it is ahead by, when it was made, and by which producer."""

    offset: int
    time_ms: int
    writer: int


_NEVER: Final = _Made(-1, -1, -1)


@dataclass
class Verdict:
    """How often each law was broken, the first few cases in words, and what else was counted."""

    violations: Counter[str]
    shown: list[str]
    figures: dict[str, int]


def unlabelled_columns(settings: Settings) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which features labels have no part in, shape (features,)."""
    found: list[bool] = []
    for feature in settings.features:
        n = len(FeaturePlan.of([feature], settings.transaction.entities).names)
        is_free = not isinstance(feature, WindowFeature) or feature.stat in UNLABELLED
        found += [is_free] * n
    return np.array(found, np.bool_)


class Reference:
    """What a run that was never disturbed makes of the same inputs."""

    def __init__(self, read: Read) -> None:
        """Fold transactions, hops and labels once."""
        self.read, self.settings, self.topics = read, read.settings, read.topics
        self.entities = self.settings.transaction.entities
        self.rows: dict[Place, np.ndarray[Any, Any]] = {}
        self.ids: dict[Place, str] = {}  # of what is to be scored
        self.hops_due: set[Place] = set()
        self.hops: dict[Place, tuple[Partition, int]] = {}  # where each first lies
        self.n_hops = 0
        self.n_overtaken = 0
        self.refused: set[Position] = set()
        self.stores: dict[tuple[str, int], EntityStore] = {}
        self.labels: dict[Position, str] = {}
        self._first_stage()
        self._second_stage()
        self._labels()

    def store(self, entity: str, partition: int) -> EntityStore:
        """A new store of one partition of a stage."""
        bounds, n = self.settings.entity, self.settings.topics.partitions
        return EntityStore(
            self.read.plan.windows[entity][1],
            history_max=bounds.history_max,
            entities_max=bounds.entities_max,
            bucket_ms=bounds.bucket,
            buckets_max=bounds.buckets_max,
            upstreams=1 if entity == self.entities[0] else n,
        )

    def _first_stage(self) -> None:
        reader = codec.TransactionReader(self.settings.transaction, self.read.plan)
        for p in range(self.settings.topics.partitions):
            at = Partition(self.topics.transactions.name, p)
            decoded = reader.read_many(p, self.read.logs[at])
            self.refused |= {Position(*at, record.offset) for record, _ in decoded.refused}
            batch = decoded.read
            status, columns, features = self._fold(0, p, batch)
            for i, offset in enumerate(batch.offsets.tolist()):
                if status[i] != APPLIED:
                    self.refused.add(Position(*at, offset))
                    continue
                row = batch.rows[i].copy()
                row[columns] = features[i]
                self.rows[p, offset] = row
                self.hops_due.add((p, offset))

    def _second_stage(self) -> None:
        """Fold the hops where each first stands: that is the order the second entity saw."""
        reader = codec.HopCodec(self.read.plan, 1, len(self.settings.transaction.segments))
        for q in range(self.settings.topics.partitions):
            at = Partition(self.topics.hops[self.entities[1]].name, q)
            decoded = reader.read(self.read.logs[at])
            self.refused |= {Position(*at, record.offset) for record, _ in decoded.refused}
            if not len(decoded.read):
                continue
            batch, lies = decoded.read, [record.offset for record in decoded.records]
            firsts = self._firsts(at, batch, lies)
            if not firsts:
                continue
            batch = batch.take(np.array(firsts))
            status, columns, features = self._fold(1, q, batch)
            places = zip(batch.partitions.tolist(), batch.offsets.tolist(), strict=True)
            for i, place in enumerate(places):
                if status[i] == DUPLICATE:
                    self.refused.add(Position(*at, lies[firsts[i]]))
                elif status[i] == APPLIED and place in self.rows:
                    self.ids[place] = batch.ids[i]
                    self.rows[place][columns] = features[i]

    def _firsts(self, at: Partition, batch: Batch, lies: Sequence[int]) -> list[int]:
        """Which hops of a partition are the first of their transaction."""
        firsts, last = [], dict[int, int]()
        places = zip(batch.partitions.tolist(), batch.offsets.tolist(), strict=True)
        for i, place in enumerate(places):
            self.n_hops += 1
            if place in self.hops:
                continue
            self.hops[place] = (at, lies[i])
            self.n_overtaken += place[1] < last.get(place[0], -1)
            last[place[0]] = place[1]
            firsts.append(i)
        return firsts

    def _fold(self, stage: int, partition: int, batch: Batch) -> tuple[Any, Any, Any]:
        entity = self.entities[stage]
        store = self.stores[entity, partition] = self.store(entity, partition)
        features, status = store.apply(
            batch.keys[stage],
            times_ms=batch.times_ms,
            amounts=batch.amounts,
            ids=batch.ids,
            others=batch.keys[1 - stage],
            upstreams=batch.partitions if stage else np.zeros(len(batch), np.int64),
            offsets=batch.offsets,
        )
        return status, self.read.plan.windows[entity][0], features

    def _labels(self) -> None:
        reader = codec.LabelReader(self.settings.label, self.settings.transaction.ahead_max)
        for at, record in self.read.of(self.topics.labels.name):
            position = Position(*at, record.offset)
            try:
                self.labels[position] = reader.read(record).transaction_id
            except Malformed:
                self.refused.add(position)
        for entity in self.entities:
            for at, record in self.read.of(self.topics.feedback[entity].name):
                try:
                    fed = codec.read_feedback(record)
                except Malformed:
                    self.refused.add(Position(*at, record.offset))
                    continue
                key = (record.key or b"").decode()
                self.stores[entity, at.partition].mark(
                    key, fed.transaction_id, is_fraud=fed.is_fraud, time_ms=fed.time_ms
                )


class Judge:
    """The laws, one a method; each yields (counter, what is wrong)."""

    def __init__(self, read: Read) -> None:
        """Decode what lies on the topics."""
        self.read, self.reference = read, Reference(read)
        topics = read.topics
        self.scores: list[tuple[Partition, int, Score]] = []
        self.first: dict[Place, tuple[Partition, int, Score]] = {}  # of a source
        self.canonical: dict[tuple[int, str], tuple[int, Score]] = {}  # of an id: offset, score
        for at, record in read.of(topics.scores.name):
            score = codec.read_score(record)
            self.scores.append((at, record.offset, score))
            place = (score.source.partition, score.source.offset)
            self.first.setdefault(place, self.scores[-1])
            self.canonical.setdefault((at.partition, score.transaction_id), (record.offset, score))
        self.examples: list[tuple[int, Any]] = []
        for at, record in read.of(topics.examples.name):
            try:
                self.examples.append((record.offset, codec.read_example(record)))
            except Malformed:
                self.reference.refused.add(Position(*at, record.offset))
        self.outcomes: dict[Position, set[LabelOutcome]] = defaultdict(set)
        self.told_at: dict[Position, tuple[Partition, int]] = {}
        decode = msgspec.json.Decoder(LabelOutcome).decode
        for at, record in read.of(topics.outcomes.name):
            outcome = decode(record.value or b"")
            self.outcomes[Position(*outcome.origin)].add(outcome)
            self.told_at.setdefault(Position(*outcome.origin), (at, record.offset))
        self._snapshots = list(self._described())
        self.n_taught = 0
        self.n_late = self.n_overtaken = 0

    def _described(self) -> Iterator[tuple[Record, About]]:
        """Snapshots that verify, and what each is of."""
        for _, record in self.read.of(self.read.topics.models.name):
            with suppress(Refused):  # somebody else's: processes refuse it, too
                yield record, described(record, self.read.settings, self.read.plan)

    def transactions(self) -> Iterator[tuple[str, str]]:
        """Law 1: every transaction is scored, on exactly what was before it; nothing else is."""
        due = self.reference.hops_due
        for place in due - set(self.reference.hops):
            yield "transactions_unscored", f"no hop of {place}"
        for place in set(self.reference.ids) - set(self.first):
            yield "transactions_unscored", f"no score of {place}"
        for place in set(self.first) - set(self.reference.ids):
            yield "scores_invented", f"score of {place}"
        if self.reference.n_overtaken:
            yield "features_differ", f"{self.reference.n_overtaken} hops overtaken"
        free = unlabelled_columns(self.read.settings)
        for place in self.reference.ids.keys() & self.first.keys():
            want = self.reference.rows[place]
            got = np.array(self.first[place][2].features, np.float64)
            if not np.array_equal(want[free], got[free], equal_nan=True):
                names = np.array(self.read.plan.names)[free]
                wrong = names[~np.isclose(want[free], got[free], 0, 0, equal_nan=True)].tolist()
                yield "features_differ", f"of {place}: {wrong}"

    def alerts(self) -> Iterator[tuple[str, str]]:
        """The first score of an id that is an alert has its alert."""
        sent = {
            (alert.source.partition, alert.source.offset, alert.score)
            for _, record in self.read.of(self.read.topics.alerts.name)
            for alert in [codec.read_alert(record)]
        }
        for _, score in self.canonical.values():
            at = (score.source.partition, score.source.offset, score.score)
            if score.is_alert and at not in sent:
                yield "alerts_missing", score.transaction_id

    def letters(self) -> Iterator[tuple[str, str]]:
        """Law 7: dead letters are what had to be refused and labels of nobody, and no more."""
        dead = {_position(record) for _, record in self.read.of(self.read.topics.dead_letters.name)}
        refused = self.reference.refused
        unknown = {at for at, said in self.outcomes.items() if _is_unknown(said)}
        for at in (refused | unknown) - dead:
            yield "letters_missing", str(at)
        models, labels = self.read.topics.models.name, self.read.topics.labels.name
        for at in dead - refused - unknown:
            # A label that met its transaction after a crash had been called unknown before it.
            if at.topic not in (models, labels):
                yield "letters_of_good", str(at)

    def labels(self) -> Iterator[tuple[str, str]]:
        """Law 2: one outcome each, said again only in the same words; none is lost."""
        scored = {name for _, name in self.canonical}
        for at, name in self.reference.labels.items():
            said = self.outcomes.get(at, set())
            if not said:
                yield "labels_without_outcome", f"{name} {at}"
            elif len(said) > 1:
                yield "labels_with_two_outcomes", f"{at} {sorted(o.outcome for o in said)}"
            elif _is_unknown(said) and name in scored:
                yield "labels_lost", f"{name} {at} is called unknown"
        for at in self.outcomes.keys() - self.reference.labels.keys():
            yield "outcomes_invented", str(at)

    def learner(self) -> Iterator[tuple[str, str]]:
        """Laws 2 and 8: the log is folded again; snapshots and scores must be what it gives."""
        learner = new_learner(self.read.settings, self.read.plan)
        champion = fresh_champion(self.read.settings, self.read.plan)
        given, kept = self._by_position(), self._by_described()
        taught: set[str] = set()
        for offset, record in [(-1, None), *self.examples]:
            if record is not None:
                before = learner.n_learned
                learner.apply([(offset, record)])
                if learner.n_learned > before:
                    if record.transaction_id in taught:
                        yield "labels_learnt_twice", f"{record.transaction_id}, example {offset}"
                    taught.add(record.transaction_id)
                    yield from self._is_canonical(record)
            for snapshot in kept.pop(offset, []):
                yield from self._is_of(learner, snapshot)
            if scores := given.pop(offset, None):
                champion.follow(learner)
                yield from self._follow(champion, learner, scores)
        self.n_taught = len(taught)
        yield from self._never_taught(taught)
        for position in kept:
            yield "digest_differs", f"snapshot at {position}, of which there is no example"
        for position in given:
            yield "scores_differ", f"by a model of position {position}, which there is not"
        yield from self._not_last(learner.position)

    def _by_position(self) -> dict[int, list[Score]]:
        found: dict[int, list[Score]] = defaultdict(list)
        for _, _, score in self.scores:
            found[score.model.position].append(score)
        return found

    def _by_described(self) -> dict[int, list[Record]]:
        """Snapshots by the position they are said to be of; opened one by one, when it is met."""
        found: dict[int, list[Record]] = defaultdict(list)
        for record, said in self._snapshots:
            found[said.position].append(record)
        return found

    def _not_last(self, position: int) -> Iterator[tuple[str, str]]:
        """Of each kind the last snapshot must be at the end of the log."""
        for kind in (LEARNER, CHAMPION):
            last = max((a.position for _, a in self._snapshots if a.kind == kind), default=-1)
            if last != position:
                wrong = f"the last snapshot of a {kind} is at {last}; expected {position}"
                yield "digest_differs", wrong

    def _is_of(self, learner: Learner, record: Record) -> Iterator[tuple[str, str]]:
        """Whether a snapshot holds what is learnt up to its position.

        Of what gives scores alone the version is compared: what it gives, in the scores.
        """
        try:
            state = opened(record, self.read.settings, self.read.plan)
        except Refused as error:
            yield "digest_differs", f"snapshot at {learner.position} does not open: {error}"
        else:
            yield from _same(learner, state)

    @staticmethod
    def _follow(
        champion: Any, learner: Learner, given: Sequence[Score]
    ) -> Iterator[tuple[str, str]]:
        rows = np.array([score.features for score in given], np.float64)
        for score, want in zip(given, champion.mixture.score_many(rows)[0].tolist(), strict=True):
            if score.model != learner.version or score.score != want:
                wrong = f"{score.score} by {score.model}; expected {want} by {learner.version}"
                yield "scores_differ", f"of {score.transaction_id}: {wrong}"

    def _is_canonical(self, example: Example) -> Iterator[tuple[str, str]]:
        topic = self.read.topics.scores.partitions
        held = [self.canonical.get((p, example.transaction_id)) for p in range(topic)]
        scores = [one[1] for one in held if one is not None]
        if not any(s.features == example.features and s.score == example.score for s in scores):
            yield "taught_on_another_score", example.transaction_id

    def _never_taught(self, taught: set[str]) -> Iterator[tuple[str, str]]:
        for _, name in self.canonical:
            if name not in taught and not name.startswith(FLUSH):
                yield "never_taught", name

    def state(self) -> Iterator[tuple[str, str]]:
        """Laws 4 to 6: the changelog holds each record once, and no row of a former owner."""
        for entity in self.reference.entities:
            for p in range(self.read.settings.topics.partitions):
                yield from self._store(entity, p)
        yield from self._stale_snapshots()

    def _store(self, entity: str, p: int) -> Iterator[tuple[str, str]]:
        at = Partition(self.read.topics.changelogs[entity].name, p)
        log = [r for r in self.read.logs[at] if r.key]
        rows = [codec.read_slot(r.key or b"", r.value) for r in log]
        yield from self._stale_rows(at, log, rows)
        store = self.reference.store(entity, p)
        store.restore(rows)
        ours, theirs = held_of(store), held_of(self.reference.stores[entity, p])
        for key in ours.keys() | theirs.keys():
            if ours.get(key) != theirs.get(key):
                yield "state_differs", f"{at}: {key}"

    def _stale_rows(
        self, at: Partition, log: Sequence[Record], rows: Sequence[Any]
    ) -> Iterator[tuple[str, str]]:
        """A row whose guard is behind one before it is a former owner's.

        By the time it was made one can tell what was on its way when the partition was lost, and
        only arrived late, from what was written after that. And what arrived late may be ahead of
        the next owner, who did not see it when it restored: it comes to the same row by itself.
        That one is known by having written nothing here before.
        """
        held: dict[tuple[str, int], _Made] = {}  # by entity and upstream, the highest guard
        begun: dict[int, int] = {}  # by writer, when it made its first row here
        made = [self._made(at, record) for record in log]
        for one in made:
            begun[one.writer] = min(begun.get(one.writer, one.time_ms), one.time_ms)
        for record, by, ((key, _), value) in zip(log, made, rows, strict=True):
            if not isinstance(value, SlotValue):
                continue
            guard = [(held.get((key, p), _NEVER), p, offset) for p, offset in value.guard]
            behind = [ahead for ahead, _, offset in guard if offset < ahead.offset]
            is_late = behind and by.time_ms < max(ahead.time_ms for ahead in behind)
            is_overtaken = all(
                by.writer != ahead.writer and begun[by.writer] >= ahead.time_ms for ahead in behind
            )
            if behind and is_late:
                self.n_late += 1
            elif behind and is_overtaken:
                self.n_overtaken += 1
            elif behind:
                yield "stale_writes", f"{at}@{record.offset}: {key} with {value.guard}: {behind}"
            for ahead, p, offset in guard:
                if offset > ahead.offset:
                    held[key, p] = by._replace(offset=offset)

    def _made(self, at: Partition, record: Record) -> _Made:
        writer = self.read.writers.get(Position(*at, record.offset), -1)
        return _Made(-1, record.timestamp_ms, writer)

    def _stale_snapshots(self) -> Iterator[tuple[str, str]]:
        """The same of the learner: a snapshot behind one before it, of either kind."""
        newest = dict.fromkeys((LEARNER, CHAMPION), (-1, 0))  # of a kind: position, when made
        for record, said in self._snapshots:
            last, made_ms = newest[said.kind]
            if said.position >= last:
                newest[said.kind] = (said.position, record.timestamp_ms)
            elif record.timestamp_ms < made_ms:
                self.n_late += 1
            else:
                yield "stale_writes", f"snapshot of a {said.kind} at {said.position} after {last}"

    def offsets(self) -> Iterator[tuple[str, str]]:
        """Law 3: what was committed had caused what it causes; in the end all is committed."""
        for at, end in self.read.ends.items():
            if at in self.read.committed and self.read.committed[at] != end:
                yield "offsets_left", f"{at}: {self.read.committed[at]} of {end}"
        topics = self.read.topics
        hop = topics.hops[self.reference.entities[1]].name
        caused: dict[Partition, list[tuple[int, Partition, int]]] = defaultdict(list)
        for place, (at, offset) in self.reference.hops.items():
            if place in self.reference.hops_due:
                caused[Partition(topics.transactions.name, place[0])].append((place[1], at, offset))
            if place in self.first:
                where, when, _ = self.first[place]
                caused[Partition(hop, at.partition)].append((offset, where, when))
        for offset, record in self.examples:
            origin = _origin(record)
            if origin in self.told_at:
                lies = Partition(topics.examples.name, 0)
                caused[lies].append((offset, *self.told_at[origin]))
        for at, effects in caused.items():
            yield from self._committed_early(at, effects)
        yield from self._commits_back()

    def _committed_early(
        self, at: Partition, effects: Sequence[tuple[int, Partition, int]]
    ) -> Iterator[tuple[str, str]]:
        """The first commit past a record must have been seen after its effect was in the log."""
        seen: list[int] = []
        for sample in self.read.samples:
            seen.append(max(sample.committed.get(at, -1), seen[-1] if seen else -1))
        for offset, where, lies in effects:
            i = bisect_right(seen, offset)  # the first sample whose commit is past the record
            if i < len(seen) and self.read.samples[i].ends.get(where, lies + 1) <= lies:
                yield "committed_unprocessed", f"{at}@{offset}: its effect is {where}@{lies}"

    def _commits_back(self) -> Iterator[tuple[str, str]]:
        highest: dict[Partition, int] = {}
        for sample in self.read.samples:
            for at, offset in sample.committed.items():
                # A learner goes on from its snapshot, which may be older than its commit.
                if offset < highest.get(at, -1) and at.topic != self.read.topics.examples.name:
                    yield "stale_writes", f"commit of {at} at {offset} after {highest[at]}"
                highest[at] = max(offset, highest.get(at, -1))

    def inputs(self) -> Iterator[tuple[str, str]]:
        """Kafka's own promise: what it acknowledged is there."""
        held = {
            Position(*at, record.offset): record.value
            for spec in (self.read.topics.transactions, self.read.topics.labels)
            for at, record in self.read.of(spec.name)
        }
        for position, value in self.read.acknowledged.items():
            if held.get(position, b"") != value:
                yield "inputs_lost", str(position)

    def figures(self) -> dict[str, int]:
        """What there was to be judged, and what was said more than once, as is allowed."""
        topics = self.read.topics
        n = {
            spec.name: sum(
                len(self.read.logs[Partition(spec.name, p)]) for p in range(spec.partitions)
            )
            for spec in topics
        }
        alerts = [codec.read_alert(r) for _, r in self.read.of(topics.alerts.name)]
        return {
            "transactions": n[topics.transactions.name],
            "scored": len(self.first),
            "labels": n[topics.labels.name],
            "taught": self.n_taught,
            "alerts": len({a.transaction_id for a in alerts}),
            "dead_letters": n[topics.dead_letters.name],
            "snapshots": n[topics.models.name],
            "samples": len(self.read.samples),
            "rows_late": self.n_late,
            "rows_ahead_late": self.n_overtaken,
            "scores_repeated": len(self.scores) - len(self.first),
            "hops_repeated": self.reference.n_hops - len(self.reference.hops),
            "outcomes_repeated": n[topics.outcomes.name] - len(self.outcomes),
        }


#: Every counter of violations there is.
COUNTERS: Final = (
    "transactions_unscored", "scores_invented", "features_differ", "scores_differ",
    "alerts_missing", "letters_missing", "letters_of_good", "labels_without_outcome",
    "labels_with_two_outcomes", "labels_lost", "outcomes_invented", "labels_learnt_twice",
    "taught_on_another_score", "never_taught", "digest_differs", "state_differs", "stale_writes",
    "committed_unprocessed", "offsets_left", "inputs_lost",
)  # fmt: skip
SHOWN_MAX: Final = 40


def check(read: Read) -> Verdict:
    """Judge what lies on the topics of a world that has come to rest."""
    judge = Judge(read)
    laws: list[Callable[[], Iterator[tuple[str, str]]]] = [
        judge.transactions, judge.alerts, judge.letters, judge.labels, judge.learner,
        judge.state, judge.offsets, judge.inputs,
    ]  # fmt: skip
    violations, shown = Counter(dict.fromkeys(COUNTERS, 0)), []
    for law in laws:
        for counter, text in law():
            violations[counter] += 1
            if violations[counter] <= 5:
                shown.append(f"{counter}: {text}")
    return Verdict(violations, shown[:SHOWN_MAX], judge.figures())


def _same(want: Learner, got: Learner | Champion) -> Iterator[tuple[str, str]]:
    if got.version != want.version:
        yield "digest_differs", f"snapshot {got.version}; expected {want.version}"
    elif isinstance(got, Learner) and got.model.state_digest() != want.model.state_digest():
        yield "digest_differs", f"snapshot {got.version} holds another model"


def _origin(record: Any) -> Position | None:
    """The label that an example, or a verdict, is about; None: nobody's."""
    if isinstance(record, Summary):
        return None
    if isinstance(record, Example):
        return None if record.label_source == MATURITY else Position(*record.origin)
    return Position(*record.outcome.origin)


def _is_unknown(said: set[LabelOutcome]) -> bool:
    return any(outcome.outcome == "unknown" for outcome in said)


def _position(letter: Record) -> Position:
    headers = dict(letter.headers)
    topic, partition, offset = (
        headers[f"__connect.errors.{part}"].decode() for part in ("topic", "partition", "offset")
    )
    return Position(topic, int(partition), int(offset))
