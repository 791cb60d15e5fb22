"""Mutants: the design with one guard taken away. The simulator must notice each.

A mutant is a context manager that patches the program while a history is played; the laws are
judged afterwards, with the program as it is.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from app import stages
from app.alerting import AlertTask
from app.core import learner as learners
from app.core.buckets import ABSORBED, BucketPool
from app.core.early import Waited
from app.core.entity import EntityStore
from app.core.learner import Learner
from app.core.ledger import Ledger, Place
from app.core.pending import Join
from app.core.repeats import Repeats
from app.core.slots import SlotValue
from app.disk import Book
from app.flow import Flow, Lease
from app.join import JoinTask
from app.learning import LearnTask
from app.stages import EntityTask
from app.tasks import Effects
from tests.simulator.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from app.records import Partition, Record, Send
    from app.testing import Process


def _around(owner: Any, name: str, mutated: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Put ``mutated(real, *args)`` in the place of ``owner.name``."""
    real = getattr(owner, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        return mutated(real, *args, **kwargs)

    return patch.object(owner, name, patched)


# Law 4: a record applied once is not applied again.


def offset_guard_off() -> AbstractContextManager[Any]:
    """Entities forget which source offsets they have applied."""

    def mutated(real: Any, batch: Any, entity: int, store: EntityStore, columns: Any) -> Any:
        store._guards[:] = -1
        return real(batch, entity, store, columns)

    return _around(stages, "fold_entity", mutated)


def disk_forgets_guards() -> AbstractContextManager[Any]:
    """An entity comes back from the disk without its guard."""

    def mutated(real: Any, store: EntityStore, keys: Any) -> None:
        real(store, keys)
        if store.n_cold:
            store._guards[[store.rows[key] for key in keys]] = -1

    return _around(EntityStore, "_fetch", mutated)


def guard_of_the_whole_batch() -> AbstractContextManager[Any]:
    """Each row of a batch claims that all of the batch was applied."""

    def mutated(real: Any, store: EntityStore, told: Any) -> Any:
        return real(store, told._replace(guards=store._guards[told.rows]))

    return _around(EntityStore, "_read", mutated)


def learner_forgets_ids() -> AbstractContextManager[Any]:
    """The learner does not remember which transactions taught it."""

    def mutated(real: Any, learner: Learner, example: Any, lessons: Any, effects: Any) -> Any:
        learner.learnt.clear()
        return real(learner, example, lessons, effects)

    return _around(Learner, "_meet", mutated)


def summaries_count_again() -> AbstractContextManager[Any]:
    """The monitor takes a summary that is delivered again for a new one."""

    def mutated(real: Any, learner: Learner, summary: Any) -> Any:
        learner.summarised.clear()
        return real(learner, summary)

    return _around(Learner, "_watch", mutated)


def repeats_guard_off() -> AbstractContextManager[Any]:
    """What was shown or held back forgets which offsets it has applied."""

    def mutated(real: Any, repeats: Repeats, key: str, *alert: Any) -> Any:
        if key in repeats.shown:
            repeats.shown[key] = repeats.shown[key]._replace(guard=-1)
        return real(repeats, key, *alert)

    return _around(Repeats, "on_alert", mutated)


def repeats_not_restored() -> AbstractContextManager[Any]:
    """After a restart no alert is remembered."""
    return patch.object(AlertTask, "restore", lambda task, partition, records: None)


# Law 3: outputs, state, offsets, in this order.


@contextmanager
def commit_before_delivery() -> Iterator[None]:
    """Offsets are committed as soon as the records were fetched."""

    def take(
        real: Any,
        world: World,
        process: Process,
        fetched: Mapping[Partition, list[Record]],
        *,
        is_last: bool = False,
    ) -> None:
        flow = process.flow
        flow.positions.update({at: records[-1].offset + 1 for at, records in fetched.items()})
        world.commit(process)
        real(world, process, fetched, is_last=is_last)

    with _around(World, "take", take):
        yield


def _run(order: Callable[[Effects], list[list[Send]]]) -> AbstractContextManager[Any]:
    """What a batch caused, delivered in another order."""
    return patch.object(Effects, "parts", property(order))


def state_before_outputs() -> AbstractContextManager[Any]:
    """The changelog says that a record was applied before its outputs are there."""
    return _run(lambda effects: [effects.state, effects.first, effects.outputs])


def committed_under_way() -> AbstractContextManager[Any]:
    """Offsets are committed, with notes of the batch that is being delivered."""
    return patch.object(Flow, "is_whole", property(lambda flow: True))


def alerts_beside_scores() -> AbstractContextManager[Any]:
    """Alerts and scores are delivered together, in any order."""
    return _run(lambda effects: [effects.outputs + effects.first, effects.state])


# Law 5: nothing is scored on half-restored state; the highest applied offset wins.


def state_not_restored() -> AbstractContextManager[Any]:
    """Entity stages start empty."""
    return _around(EntityTask, "ranges", lambda real, task, committed: real(task, committed)[1:])


def scored_before_restored() -> AbstractContextManager[Any]:
    """Records flow before the last piece of the changelog was read."""

    def mutated(real: Any, world: World, records: list[Record]) -> Any:
        return list(real(world, records))[:-1]

    return _around(World, "chunks", mutated)


def last_write_wins() -> AbstractContextManager[Any]:
    """Of several rows of one slot the one that stands last is restored, whoever wrote it."""

    def mutated(real: Any, store: EntityStore, rows: Any) -> None:
        for (key, slot), value in rows:
            row = store.rows.get(key)
            if row is not None and isinstance(value, SlotValue):
                place = value.sequence % store._n_slots
                store._guards[row] = -1
                store._counts[row] = min(store._counts[row], value.sequence)
                block = store._table[row, place // 16]
                if block >= 0:
                    store._sequences[block, place % 16] = -1
            real(store, [((key, slot), value)])

    return _around(EntityStore, "restore", mutated)


def buckets_absorb_again() -> AbstractContextManager[Any]:
    """A restored bucket does not know which transactions of the ring it holds already."""

    def mutated(real: Any, store: EntityStore) -> None:
        store._buckets._longs[:, ABSORBED] = -1
        real(store)

    return _around(EntityStore, "_settle", mutated)


def buckets_absorb_nothing() -> AbstractContextManager[Any]:
    """What a bucket in the changelog lacks is not looked for in the ring."""
    return patch.object(EntityStore, "_settle", lambda store: store._restored.clear())


def settled_buckets_not_written() -> AbstractContextManager[Any]:
    """What a restored bucket took from the ring is durable only when it is touched again."""

    def mutated(real: Any, store: EntityStore) -> None:
        if store._restored:
            real(store)
            store._captured = []

    return _around(EntityStore, "_settle", mutated)


def bucket_forgets_whom_it_labelled() -> AbstractContextManager[Any]:
    """A label that is said again counts again, where its transaction has left the ring."""

    def mutated(real: Any, pool: BucketPool, *label: Any) -> Any:
        pool._marks.clear()
        return real(pool, *label)

    return _around(BucketPool, "mark", mutated)


def evicted_rows_stay() -> AbstractContextManager[Any]:
    """The changelog is not told which entities were let go."""

    def mutated(real: Any, store: EntityStore) -> Any:
        before, slots, buckets = real(store)
        return [row for row in before if row[1] is not None], slots, buckets

    return _around(EntityStore, "written", mutated)


def join_starts_at_the_commit() -> AbstractContextManager[Any]:
    """The join reads nothing again that it has committed."""
    return patch.object(JoinTask, "ranges", lambda task, committed: [])


def learner_starts_at_the_commit() -> AbstractContextManager[Any]:
    """A snapshot has no position; the learner goes on at the group's offset."""

    def mutated(real: Any, task: LearnTask) -> dict[Partition, int]:
        real(task)
        return {}

    return _around(LearnTask, "start", mutated)


def waiting_labels_not_noted() -> AbstractContextManager[Any]:
    """After a restart the join guesses which labels still wait."""
    return patch.object(Waited, "of", lambda note: None)


# The join's disk: never ahead of the commit, one with its position.


@contextmanager
def disk_ahead_of_the_commit_is_believed() -> Iterator[None]:
    """The disk has a batch as soon as it is applied, and is gone on from."""

    def mutated(real: Any, task: JoinTask, *batch: Any) -> None:
        real(task, *batch)
        if task.ledger is not None:
            task._write(task.ledger)

    def believed(real: Any, task: JoinTask, place: Any, committed: Any) -> str:
        why: str = real(task, place, committed)
        return "" if why.startswith("it stands at") else why

    with _around(JoinTask, "apply", mutated), _around(JoinTask, "_unusable", believed):
        yield


def disk_written_apart_from_its_position() -> AbstractContextManager[Any]:
    """The position follows with the next write; a crash comes between."""

    def mutated(real: Any, book: Book, puts: Any, drops: Any) -> None:
        place = next(put for put in puts if put[:2] == ("rest", b"place"))
        before = getattr(book, "before", place)
        book.before = place  # type: ignore[attr-defined]
        real(book, [before if put is place else put for put in puts], drops)

    return _around(Book, "write", mutated)


def disk_has_no_early_labels() -> AbstractContextManager[Any]:
    """A label that waits for its transaction is not taken over from the disk."""

    def mutated(real: Any, ledger: Ledger, place: Any) -> list[Any]:
        real(ledger, place)
        return []

    return _around(Ledger, "open", mutated)


def disk_has_the_run_of_scores() -> AbstractContextManager[Any]:
    """Scores that no summary tells of yet are not read again."""
    return patch.object(Place, "scores_begin", property(lambda place: place.scores_next))


def feedback_does_not_wait() -> AbstractContextManager[Any]:
    """A confirmed label that is ahead of its transaction is dropped."""
    return patch.object(EntityStore, "_has_passed", lambda store, key, upstream, offset: True)


def feedback_not_read_again() -> AbstractContextManager[Any]:
    """A confirmed label that waits in memory is lost with it."""
    return patch.object(EntityTask, "note", lambda task, partition, offset: "")


# Laws 1, 2, 6, 7.


def newest_score_counts() -> AbstractContextManager[Any]:
    """A score that is repeated takes the place of the first."""

    def mutated(real: Any, join: Join, score: Any, at: Any, effects: Any) -> None:
        if (waiting := join.known.get(score.transaction_id)) is not None:
            waiting.kept = score
        real(join, score, at, effects)

    return _around(Join, "on_score", mutated)


def verdicts_count_again() -> AbstractContextManager[Any]:
    """A label that was decided is decided again when it is read again."""

    def mutated(real: Any, learner: Learner, records: Any) -> Any:
        effects = learners.LearnerEffects()
        for record in records:
            learner.decided.clear()
            told = real(learner, [record])
            effects.outcomes += told.outcomes
            effects.drifts += told.drifts
        return effects

    return _around(Learner, "apply", mutated)


def lease_off() -> AbstractContextManager[Any]:
    """A worker that slept through its session goes on writing."""
    return patch.object(Lease, "check", lambda lease: None)


def duplicates_are_scored() -> AbstractContextManager[Any]:
    """An id that was used before is taken for a new transaction."""

    def mutated(
        real: Any, store: EntityStore, keys: Any, *, ids: Any, offsets: Any, **rest: Any
    ) -> Any:
        fresh = [f"{name}@{offset}" for name, offset in zip(ids, offsets, strict=True)]
        return real(store, keys, ids=fresh, offsets=offsets, **rest)

    return _around(EntityStore, "apply", mutated)


def bad_input_vanishes() -> AbstractContextManager[Any]:
    """What cannot be read is dropped in silence."""

    def mutated(real: Any, task: EntityTask, records: Any, now_ms: int, effects: Effects) -> None:
        real(task, records, now_ms, effects)
        letters = task.stage.topics_by_role.dead_letters.name
        effects.outputs[:] = [send for send in effects.outputs if send.topic != letters]

    return _around(EntityTask, "_on_transactions", mutated)


MUTANTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    made.__name__: made
    for made in (
        offset_guard_off,
        disk_forgets_guards,
        guard_of_the_whole_batch,
        repeats_guard_off,
        repeats_not_restored,
        learner_forgets_ids,
        summaries_count_again,
        commit_before_delivery,
        state_before_outputs,
        alerts_beside_scores,
        committed_under_way,
        state_not_restored,
        scored_before_restored,
        last_write_wins,
        buckets_absorb_again,
        buckets_absorb_nothing,
        settled_buckets_not_written,
        bucket_forgets_whom_it_labelled,
        evicted_rows_stay,
        join_starts_at_the_commit,
        learner_starts_at_the_commit,
        waiting_labels_not_noted,
        disk_ahead_of_the_commit_is_believed,
        disk_written_apart_from_its_position,
        disk_has_no_early_labels,
        disk_has_the_run_of_scores,
        feedback_does_not_wait,
        feedback_not_read_again,
        newest_score_counts,
        verdicts_count_again,
        lease_off,
        duplicates_are_scored,
        bad_input_vanishes,
    )
}
