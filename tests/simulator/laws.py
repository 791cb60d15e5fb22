"""What must hold of every history, judged by a reference run that never crashes.

The reference folds the same records with the same core, one at a time and in the order of the
logs. What two interleavings may rightly see differently (how early a confirmed label reached an
entity, which model scored) is not compared with the reference but with the logs themselves.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from app import codec
from app.core.entity import EntityStore
from app.core.models.digest import digest_of
from app.core.repeats import Repeats
from app.core.windows import APPLIED, DUPLICATE
from app.learning import LearnTask, new_learner
from app.records import Example, Partition, Position, Summary
from app.shelf import newest
from app.stages import EntityTask
from app.worker import fresh_champion
from tests.simulator.world import Known, held_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from app.core.buckets import BucketValue
    from app.core.learner import Learner
    from app.core.scoring import Batch
    from app.records import Alert, LabelOutcome, Record, Score
    from tests.simulator.world import World

Place = tuple[int, int]  # source position of a transaction: partition, offset
Key = tuple[int, str]  # partition, transaction id


class Reference:
    """What a run without a crash makes of the same logs."""

    def __init__(self, world: World) -> None:
        """Fold everything once."""
        self.world = world
        self.plan, self.settings, self.topics = world.plan, world.settings, world.topics
        self.entities = self.settings.transaction.entities
        names = self.plan.names
        fed = [i for i, name in enumerate(names) if "frauds" in name or "risk" in name]
        self.fed = np.isin(np.arange(len(names)), fed)  # columns that feedback moves
        self.rows: dict[Place, np.ndarray[Any, Any]] = {}
        self.applied: dict[Place, str] = {}  # place: transaction id
        self.refused: set[Position] = set()  # must be among the dead letters
        self.stores: dict[tuple[str, int], EntityStore] = {}
        self.newest: dict[tuple[str, str, str], Place] = {}  # entity, key, id: its source
        #: Given twice so far apart that the ring had forgotten the first: whose label it is
        #: when it comes cannot be told by the id.
        self.twice: set[tuple[str, str, str]] = set()
        self.seen: dict[tuple[str, str, int, float], str] = {}
        self.n_upstream = self.settings.topics.partitions
        self._first_stage()
        self._second_stage()

    def store(self, entity: str, partition: int) -> EntityStore:
        """The store of one partition of a stage."""
        if (entity, partition) not in self.stores:
            has_disk = self.world.shape.has_disk  # this one has room for all
            self.stores[entity, partition] = EntityStore(
                self.plan.windows[entity][1],
                history_max=self.settings.entity.history_max,
                entities_max=1_000 if has_disk else self.settings.entity.entities_max,
                bucket_ms=self.settings.entity.bucket,
                buckets_max=self.settings.entity.buckets_max,
                upstreams=1 if entity == self.entities[0] else self.n_upstream,
            )
        return self.stores[entity, partition]

    def _first_stage(self) -> None:
        reader = codec.TransactionReader(self.settings.transaction, self.plan)
        entity, name = self.entities[0], self.topics.transactions.name
        columns = self.plan.windows[entity][0]
        self.hops_due: set[Place] = set()
        for p in range(self.n_upstream):
            for record in self.world.logs[Partition(name, p)].records:
                at = Position(name, p, record.offset)
                if not self.world.inputs[at].is_valid:
                    self.refused.add(at)
                    continue
                batch = reader.read_many(p, [record]).read
                features, status = self._fold(entity, p, batch.keys[0], batch, batch.keys[1], 0)
                if status != APPLIED:
                    self.refused.add(at)
                    continue
                self.hops_due.add((p, record.offset))
                row = batch.rows[0].copy()
                row[columns] = features
                self.rows[p, record.offset] = row

    def _second_stage(self) -> None:
        """Fold the hops where each first stands: that is the order the terminal saw."""
        entity = self.entities[1]
        columns = self.plan.windows[entity][0]
        reader = codec.HopCodec(self.plan, 1)
        self.hops: dict[Place, str] = {}
        self.bad: list[str] = []
        topic = self.topics.hops[entity].name
        for q in range(self.n_upstream):
            last: dict[int, int] = {}
            for record in self.world.logs[Partition(topic, q)].records:
                read = reader.read([record]).read
                for i in range(len(read)):
                    batch = read.take(np.array([i]))
                    self._second(entity, columns, Position(topic, q, record.offset), batch, last)

    def _second(
        self, entity: str, columns: Any, at: Position, batch: Batch, last: dict[int, int]
    ) -> None:
        place = (int(batch.partitions[0]), int(batch.offsets[0]))
        if place in self.hops:
            return
        self.hops[place] = batch.ids[0]
        if place[1] < last.get(place[0], -1):
            self.bad.append(f"order: hop {place} overtaken")
        last[place[0]] = place[1]
        features, status = self._fold(
            entity, at.partition, batch.keys[1], batch, batch.keys[0], place[0]
        )
        if status == DUPLICATE:
            self.refused.add(at)
        elif status == APPLIED and place in self.rows:
            self.applied[place] = batch.ids[0]
            self.rows[place][columns] = features

    def _fold(
        self,
        entity: str,
        partition: int,
        keys: list[str],
        batch: Any,
        others: list[str],
        upstream: int,
    ) -> tuple[Any, int]:
        features, status = self.store(entity, partition).apply(
            keys,
            times_ms=batch.times_ms,
            amounts=batch.amounts,
            ids=batch.ids,
            others=others,
            upstreams=np.array([upstream], np.int64),
            offsets=batch.offsets,
        )
        if status[0] == APPLIED:
            place = (int(batch.partitions[0]), int(batch.offsets[0]))
            if self.newest.setdefault((entity, keys[0], batch.ids[0]), place) != place:
                self.twice.add((entity, keys[0], batch.ids[0]))
            self.seen[entity, keys[0], int(batch.times_ms[0]), float(batch.amounts[0])] = batch.ids[
                0
            ]
        return features[0], int(status[0])


def violations(world: World) -> list[str]:
    """Every law that a finished history breaks, in words; empty where all hold."""
    reference = Reference(world)
    judge = Judge(world, reference)
    laws: list[Callable[[], Iterator[str]]] = [
        judge.every_transaction_is_scored,
        judge.scores_stand_on_what_was_before,
        judge.bad_input_changes_nothing,
        judge.state_is_applied_once,
        judge.labels_have_one_outcome,
        judge.examples_teach_once,
        judge.learners_agree,
        judge.scores_follow_from_their_model,
        judge.canonical_alerts_are_sent,
        judge.repeats_alone_are_held_back,
        judge.summaries_count_once,
        judge.offsets_are_all_committed,
    ]
    return [*world.broken, *reference.bad, *(broken for law in laws for broken in law())]


class Judge:
    """The laws, one a method; each yields what is wrong."""

    def __init__(self, world: World, reference: Reference) -> None:
        """Read what lies on the topics."""
        self.world, self.reference = world, reference
        self.scores: dict[Place, Score] = {}  # first score of each source
        self.canonical: dict[Key, Score] = {}  # first score of each id
        self.all_scores: list[tuple[Partition, Record, Score]] = []
        name = world.topics.scores.name
        for p in range(world.settings.topics.partitions):
            for record in world.logs[Partition(name, p)].records:
                score = codec.read_score(record)
                self.all_scores.append((Partition(name, p), record, score))
                self.scores.setdefault((score.source.partition, score.source.offset), score)
                self.canonical.setdefault((p, score.transaction_id), score)
        log = world.logs[Partition(world.topics.examples.name, 0)]
        self.log = [(r.offset, codec.read_example(r)) for r in log.records]
        self.dead = self._dead_letters()
        self.outcomes: dict[Position, set[LabelOutcome]] = defaultdict(set)
        for outcome in world.read("outcomes"):
            self.outcomes[Position(*outcome.origin)].add(outcome)
        self.taught: dict[str, Example] = {}

    def _dead_letters(self) -> set[Position]:
        found = set()
        for record in self.world.records("dead_letters"):
            headers = dict(record.headers)
            topic, partition, offset = (
                headers[f"__connect.errors.{part}"].decode()
                for part in ("topic", "partition", "offset")
            )
            found.add(Position(topic, int(partition), int(offset)))
        return found

    def every_transaction_is_scored(self) -> Iterator[str]:
        """Law 1: at least once; law 3: what was committed has its effects in the logs."""
        if self.world.shape.is_crowded:
            ids = {score.transaction_id for score in self.scores.values()}
            for made in self.world.inputs.values():
                if made.topic == "transactions" and made.is_valid and made.id not in ids:
                    yield f"unscored: {made.id}"
            return
        for place in self.reference.hops_due - set(self.reference.hops):
            yield f"unscored: no hop of {place}"
        for place in set(self.reference.applied) - set(self.scores):
            yield f"unscored: {place}"
        for place in set(self.scores) - set(self.reference.applied):
            yield f"invented: a score of {place}"

    def scores_stand_on_what_was_before(self) -> Iterator[str]:
        """Law 1: the first score of a source saw exactly the records before it."""
        if self.world.shape.is_crowded:
            return
        free = ~self.reference.fed
        for place, score in self.scores.items():
            want = self.reference.rows.get(place)
            got = np.array(score.features, np.float64)
            if want is not None and not np.array_equal(want[free], got[free], equal_nan=True):
                yield f"features: {place} has {got[free].tolist()}, not {want[free].tolist()}"

    def bad_input_changes_nothing(self) -> Iterator[str]:
        """Law 7: dead letters are what had to be refused, and nothing else."""
        if self.world.shape.is_crowded:
            return  # an entity that was let go does not know its ids
        inputs, labels = self.world.inputs.items(), self.world.topics.labels.name
        bad_labels = {at for at, made in inputs if made.topic == "labels" and not made.is_valid}
        refused = self.reference.refused | bad_labels
        unknown = {at for at, said in self.outcomes.items() if _is_any_unknown(said)}
        yield from (f"dead letter missing: {at}" for at in refused - self.dead)
        yield from (f"dead letter of unknown label missing: {at}" for at in unknown - self.dead)
        hops = self.world.topics.hops[self.world.settings.transaction.entities[1]].name
        for at in self.dead - refused:
            if at.topic == labels or (at.topic == hops and self._is_refused_hop(at)):
                continue
            yield f"dead letter of good input: {at}"

    def _is_refused_hop(self, at: Position) -> bool:
        """Whether a hop repeats one that was refused where it first stood."""
        record = self.world.logs[Partition(at.topic, at.partition)].records[at.offset]
        batch = codec.HopCodec(self.world.plan, 1).read([record]).read
        places = zip(batch.partitions.tolist(), batch.offsets.tolist(), strict=True)
        return any(place not in self.reference.applied for place in places)

    def state_is_applied_once(self) -> Iterator[str]:
        """Laws 4 and 5: what is restored is what is held, and is each record once."""
        for process in self.world.processes.values():
            for task in dict.fromkeys(process.flow.tasks.values()):
                if isinstance(task, EntityTask) and task.store is not None:
                    yield from self._store_is_right(task, task.store)

    def _store_is_right(self, task: EntityTask, store: EntityStore) -> Iterator[str]:
        entity = str(task.stage.entity)
        if self.world.shape.is_crowded:
            return
        want = self.reference.store(entity, task.partition)
        self._mark_all(entity, task.partition, want)
        ours, theirs = self._told(entity, store), self._told(entity, want)
        if ours != theirs:
            for key in ours.keys() | theirs.keys():
                if ours.get(key) != theirs.get(key):
                    held, due = ours.get(key, Known([], [])), theirs.get(key, Known([], []))
                    yield (
                        f"state: {entity}[{task.partition}] {key}: {_beyond(held, due)}, "
                        f"not {_beyond(due, held)}"
                    )

    def _mark_all(self, entity: str, partition: int, store: EntityStore) -> None:
        log = self.world.logs[Partition(self.world.topics.feedback[entity].name, partition)]
        for record in log.records:
            fed = codec.read_feedback(record)
            key = (record.key or b"").decode()
            store.mark(key, fed.transaction_id, is_fraud=fed.is_fraud, time_ms=fed.time_ms)

    def _told(self, entity: str, store: EntityStore) -> dict[str, Known]:
        """What a store holds, without labels that could be another transaction's."""
        twice, seen = self.reference.twice, self.reference.seen
        unclear = {key for kind, key, _ in twice if kind == entity}
        return {
            key: Known(
                [
                    (t, a, 0 if (entity, key, seen.get((entity, key, t, a), "")) in twice else x)
                    for t, a, x in held.ring
                ],
                [_unlabelled(b) if key in unclear else b for b in held.buckets],
            )
            for key, held in held_of(store).items()
        }

    def labels_have_one_outcome(self) -> Iterator[str]:
        """Law 2: one outcome each, said again only in the same words."""
        for at, made in self.world.inputs.items():
            if made.topic != "labels" or not made.is_valid:
                continue
            said = self.outcomes.get(at, set())
            if not said:
                yield f"label without outcome: {made.id} {at}"
            elif len(said) > 1:
                words = sorted(outcome.outcome for outcome in said)
                yield f"label with {len(said)} outcomes: {made.id} {at} {words}"
        for at in self.outcomes.keys() - set(self.world.inputs):
            yield f"outcome of no label: {at}"

    def examples_teach_once(self) -> Iterator[str]:
        """Law 2: every canonical score teaches once, with the features it was scored on."""
        learner = _fresh(self.world)
        last: dict[str, Example] = {}
        for offset, record in self.log:
            before = learner.n_learned
            learner.apply([(offset, record)])
            if not isinstance(record, Example) or learner.n_learned == before:
                continue
            known = last.get(record.transaction_id)
            last[record.transaction_id] = record
            if known is None:
                self.taught[record.transaction_id] = record
            elif self.world.settings.learner.corrections == "ignore":
                yield f"taught twice: {record.transaction_id}"
            elif known.is_fraud == record.is_fraud:
                yield f"taught the same twice: {record.transaction_id}"
        undecided = {
            next(iter(said)).transaction_id
            for said in self.outcomes.values()
            if _is_any_unknown(said)
        }
        for (_, name), score in self.canonical.items():
            example = self.taught.get(name)
            if example is None:
                if not name.startswith("flush-1") and name not in undecided:
                    yield f"never taught: {name}"
            elif name not in undecided and not _is_of(example, score):
                yield f"taught on another score than the first: {name}"

    def learners_agree(self) -> Iterator[str]:
        """Law 2: whatever befell a learner, it is what one is that never stopped."""
        want = _fresh(self.world)
        for record in self.log:
            want.apply([record])
        n = 0
        for process in self.world.processes.values():
            for task in process.flow.tasks.values():
                if isinstance(task, LearnTask):
                    n += 1
                    yield from self._is_same(want, task.learner, process.name)
            if process.flow.tasks and process.champion.version != want.version:
                held = process.champion.version
                yield f"scorer {process.name} follows {held}, not {want.version}"
        if not n:
            yield "learner: nobody learns"
        kept = newest(self.world.records("models"), self.world.settings, self.world.plan)
        if kept is None:
            yield "learner: no snapshot"
        else:
            yield from self._is_same(want, kept, "snapshot")

    @staticmethod
    def _is_same(want: Learner, got: Learner, whose: str) -> Iterator[str]:
        if got.version != want.version:
            yield f"learner {whose}: {got.version}, not {want.version}"
        if got.model.state_digest() != want.model.state_digest():
            yield f"learner {whose}: another model"
        if digest_of(got.investigators) != digest_of(want.investigators):
            yield f"learner {whose}: other investigators"
        if got.n_taught != want.n_taught:
            yield f"learner {whose}: taught {got.n_taught}, not {want.n_taught}"
        if got.trust != want.trust or not np.array_equal(got.novelty.means, want.novelty.means):
            yield f"learner {whose}: another novelty"
        if not np.array_equal(got.monitor.block.sums, want.monitor.block.sums):
            yield f"learner {whose}: another monitor"
        if (got.evaluation.n, got.n_frauds) != (want.evaluation.n, want.n_frauds):
            yield f"learner {whose}: another count"

    def scores_follow_from_their_model(self) -> Iterator[str]:
        """Law 8: a score is what the model of its version makes of its features, bit for bit."""
        by_version: dict[int, list[Score]] = defaultdict(list)
        for _, _, score in self.all_scores:
            by_version[score.model.position].append(score)
        learner, champion = _fresh(self.world), fresh_champion(self.world.settings, self.world.plan)
        for offset, record in [(-1, None), *self.log]:
            if record is not None:
                learner.apply([(offset, record)])
            given = by_version.pop(offset, [])
            if not given:
                continue
            rows = np.array([score.features for score in given], np.float64)
            champion.follow(learner)
            for score, want in zip(given, champion.mixture.score_many(rows)[0], strict=True):
                if score.model != learner.version or score.score != want:
                    yield (
                        f"score of {score.transaction_id}: {score.score} by {score.model}, "
                        f"not {want} by {learner.version}"
                    )
        for position in by_version:
            yield f"score by a model of position {position}, which the log does not have"

    def canonical_alerts_are_sent(self) -> Iterator[str]:
        """The first score of an id that is an alert has its alert."""
        candidates = self._candidates()
        sent = {
            (alert.source.partition, alert.source.offset, alert.score) for _, _, alert in candidates
        }
        for score in self.canonical.values():
            at = (score.source.partition, score.source.offset, score.score)
            if score.is_alert and at not in sent:
                yield f"alert missing: {score.transaction_id}"

    def repeats_alone_are_held_back(self) -> Iterator[str]:
        """What is shown is what a fold over the candidates shows that was never stopped."""
        told = self.world.settings.policy.repeats
        if told is None:
            return
        folds: dict[int, Repeats] = defaultdict(lambda: Repeats(told.window))
        want: dict[tuple[str, str], int] = {}
        for partition, offset, alert in self._candidates():
            key, name = alert.entities[told.entity], alert.transaction_id
            repeats = folds[partition].on_alert(key, name, alert.time_ms, offset)
            if repeats is not None:
                want[key, name] = repeats
        alerts = self.world.read("alerts")
        got = {(a.entities[told.entity], a.transaction_id): a.repeats for a in alerts}
        for one in want.keys() ^ got.keys():
            yield f"alert {one[1]} of {one[0]} was {'held back' if one in want else 'shown'}"
        for one in want.keys() & got.keys():
            if want[one] != got[one]:
                yield f"alert {one[1]} of {one[0]} after {got[one]} repeats, not {want[one]}"

    def _candidates(self) -> list[tuple[int, int, Alert]]:
        """Alerts as they were raised, with partition and offset."""
        own = self.world.topics.repeats
        name = own.candidates.name if own else self.world.topics.alerts.name
        return [
            (p, record.offset, codec.read_alert(record))
            for p in range(self.world.settings.topics.partitions)
            for record in self.world.logs[Partition(name, p)].records
        ]

    def summaries_count_once(self) -> Iterator[str]:
        """The monitor sees each score once, in runs that do not overlap."""
        last: dict[int, int] = {}
        scores = {(at.partition, record.offset): score for at, record, score in self.all_scores}
        for _, record in self.log:
            if not isinstance(record, Summary):
                continue
            before = last.get(record.partition, -1)
            if record.last_offset <= before:
                continue
            if record.first_offset != before + 1:
                yield f"summary of {record.partition}: from {record.first_offset} after {before}"
            last[record.partition] = record.last_offset
            run = [
                scores[record.partition, o].score
                for o in range(record.first_offset, record.last_offset + 1)
            ]
            if len(run) != record.n or sum(run) / len(run) != record.mean_score:
                yield f"summary of {record.partition} to {record.last_offset} does not add up"

    def offsets_are_all_committed(self) -> Iterator[str]:
        """After the drain nothing is left to read, and no commit is past its log."""
        for name, group in self.world.groups.items():
            for at, was in group.committed.items():
                if was.offset != self.world.logs[at].end:
                    yield f"offset of {at} in {name}: {was.offset} of {self.world.logs[at].end}"


def _beyond(held: Known, other: Known) -> Known:
    """What is known of an entity here and not there."""
    return Known(
        [one for one in held.ring if one not in other.ring],
        [one for one in held.buckets if one not in other.buckets],
    )


def _unlabelled(bucket: BucketValue) -> BucketValue:
    return bucket._replace(frauds=0, legitimate=0, first_fraud_ms=0, last_fraud_ms=0, marks=())


def _fresh(world: World) -> Learner:
    return new_learner(world.settings, world.plan)


def _is_of(example: Example, score: Score) -> bool:
    return (example.features, example.score) == (score.features, score.score)


def _is_any_unknown(said: set[LabelOutcome]) -> bool:
    return any(outcome.outcome == "unknown" for outcome in said)
