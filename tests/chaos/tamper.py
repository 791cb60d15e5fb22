"""Shows that every counter of the checker can rise: topics of a sound world, each forged once."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from app import codec
from app.config import load
from app.core.scoring import Champion
from app.learning import new_learner
from app.records import Example, LabelOutcome, Partition, Position, Record
from app.shelf import LEARNER, described, frozen, opened
from app.testing import Driver
from tests.chaos.checker import Read, Reference, Sample, Verdict, check
from tests.chaos.traffic import TABLES, Traffic

if TYPE_CHECKING:
    from collections.abc import Callable


class _Sampled(Driver):
    """A driver that crashes now and then and keeps what its groups had committed."""

    def read_all(self) -> Read:
        """Topics and offsets as they stand."""
        return Read(
            self.settings,
            {at: list(log.records) for at, log in self.logs.items()},
            {at: log.end for at, log in self.logs.items()},
            self.offsets(),
            acknowledged={},
        )

    def offsets(self) -> dict[Partition, int]:
        """What all groups have committed."""
        return {at: c.offset for group in self.groups.values() for at, c in group.committed.items()}

    def sample(self) -> Sample:
        """What is committed, and then where the logs end."""
        return Sample(self.offsets(), {at: log.end for at, log in self.logs.items()})


@functools.lru_cache(maxsize=4)
def sound(seed: int = 1, n: int = 400) -> Read:
    """The topics of a world in which processes were killed and no law was broken."""
    tables = {**TABLES, "topics": {"partitions": 2}}
    driver = _Sampled(load(None, "card", **tables), workers=2)
    traffic, samples = Traffic(seed, n_cards=20, n_terminals=8), []
    acknowledged: dict[Position, bytes | None] = {}

    def publish(inputs: Any) -> None:
        for one in inputs:
            at = driver.publish(one.role, one.value, key=one.key)
            acknowledged[at] = one.value

    for i in range(0, n, 20):
        publish(traffic.take(20))
        driver.advance(500)
        for _ in range(2):
            for process in list(driver.processes.values()):
                driver.step(process)
        if i % 100 == 60:
            driver.crash("learner-0" if i % 200 == 60 else "worker-1")
            driver.run()
        samples.append(driver.sample())
    publish(traffic.rest())
    driver.run()
    publish(traffic.flush(driver.settings))
    driver.run()
    for group in driver.groups:
        driver.rebalance(group)  # a graceful stop: the last snapshot is kept
    driver.run()
    read = driver.read_all()
    read.samples, read.acknowledged = [*samples, driver.sample()], acknowledged
    return read


# ---- What is forged, by the counter that must rise.


def _drop(read: Read, role: str, which: Callable[[Record], bool] = lambda _: True) -> None:
    """Take the first record of a topic that is such."""
    name = getattr(read.topics, role).name
    at, record = next((at, r) for at, r in read.of(name) if which(r))
    read.logs[at].remove(record)


def _change(read: Read, role: str, decode: Any, changed: Callable[[Any], Any]) -> None:
    """Change the value of the first record for which ``changed`` gives another."""
    for at, record in read.of(getattr(read.topics, role).name):
        value = decode(record)
        new = changed(value)
        if new is not value:
            i = read.logs[at].index(record)
            read.logs[at][i] = _replace(record, value=codec.encode(new))
            return
    raise AssertionError(f"nothing to forge in {role}")


def _append(read: Read, at: Partition, record: Record) -> None:
    read.logs[at].append(_replace(record, offset=read.ends[at]))
    read.ends[at] += 1
    if at in read.committed:
        read.committed[at] = read.ends[at]


_read_outcome = msgspec.json.Decoder(LabelOutcome).decode
_replace = msgspec.structs.replace


def _alert_missing(read: Read) -> None:
    _drop(read, "alerts")


def _unscored(read: Read) -> None:
    _drop(read, "scores")


def _other_feature(read: Read) -> None:
    at = read.plan.names.index("card_id_count_1d")

    def other(score: Any) -> Any:
        features = list(score.features)
        features[at] += 1.0
        return _replace(score, features=features)

    _change(read, "scores", codec.read_score, other)


def _other_score(read: Read) -> None:
    _change(read, "scores", codec.read_score, lambda s: _replace(s, score=s.score / 2))


def _invented(read: Read) -> None:
    def moved(score: Any) -> Any:
        return _replace(score, source=_replace(score.source, offset=10**6))

    _change(read, "scores", codec.read_score, moved)


def _letter_of_good(read: Read) -> None:
    at = Partition(read.topics.dead_letters.name, 0)
    letter = read.logs[at][0]
    good = next(iter(Reference(read).ids))
    headers = dict(letter.headers)
    headers |= {
        "__connect.errors.topic": read.topics.transactions.name.encode(),
        "__connect.errors.partition": str(good[0]).encode(),
        "__connect.errors.offset": str(good[1]).encode(),
    }
    _append(read, at, _replace(letter, headers=tuple(headers.items())))


def _changed_outcome(read: Read, **changes: Any) -> None:
    """Change a label's outcome to unknown, or say another beside it."""
    found = read.of(read.topics.outcomes.name)
    decoded = ((at, record, _read_outcome(record.value or b"")) for at, record in found)
    at, record, said = next(one for one in decoded if one[2].outcome == "learn")
    value = codec.encode(_replace(said, **changes))
    if changes.get("outcome") == "unknown":
        read.logs[at][read.logs[at].index(record)] = _replace(record, value=value)
    else:
        _append(read, at, _replace(record, value=value))


def _learnt_twice(read: Read) -> None:
    """The same lesson under a name that the learner's memory cannot know."""
    at = Partition(read.topics.examples.name, 0)
    twice = next(r for r in read.logs[at] if isinstance(codec.read_example(r), Example))
    read.settings = read.settings.model_copy(
        update={"learner": read.settings.learner.model_copy(update={"learnt_max": 16})}
    )
    example = codec.read_example(twice)
    _append(read, at, _replace(twice, value=codec.encode(_replace(example, origin=("x", 0, 1)))))


def _other_lesson(read: Read) -> None:
    _change(
        read, "examples", codec.read_example,
        lambda e: _replace(e, score=e.score / 2) if isinstance(e, Example) else e,
    )  # fmt: skip


def _example_missing(read: Read) -> None:
    """One that no correction follows: that would teach in its stead."""
    names = Counter(record.key for _, record in read.of(read.topics.examples.name))

    def is_alone(record: Record) -> bool:
        return isinstance(codec.read_example(record), Example) and names[record.key] == 1

    _drop(read, "examples", is_alone)


def forge_snapshot(read: Read, kind: str = LEARNER) -> None:
    """Let the last snapshot of a kind say that something else was learnt."""
    at = Partition(read.topics.models.name, 0)
    i = max(i for i, r in enumerate(read.logs[at]) if _kind(read, r) == kind)
    state = opened(read.logs[at][i], read.settings, read.plan)
    learner = new_learner(read.settings, read.plan) if isinstance(state, Champion) else state
    learner.digest = "f" * 16
    if isinstance(state, Champion):
        learner.position = state.version.position
        state.version = learner.version
    value = frozen(state, learner).sealed(read.settings.learner.key.get_secret_value().encode())
    read.logs[at][i] = _replace(read.logs[at][i], value=value)


def stale_snapshot(read: Read, kind: str) -> None:
    """The first snapshot of a kind, written again at the end."""
    at = Partition(read.topics.models.name, 0)
    first = next(r for r in read.logs[at] if _kind(read, r) == kind)
    _append(read, at, _replace(first, timestamp_ms=read.logs[at][-1].timestamp_ms + 1))


def _kind(read: Read, record: Record) -> str:
    return described(record, read.settings, read.plan).kind


def _row_missing(read: Read) -> None:
    name = read.topics.changelogs["card_id"].name
    at = next(at for at, _ in read.of(name))
    read.logs[at].pop()


def _stale_row(read: Read) -> None:
    """The first row of an entity that has more of them, written again at the end."""
    for at, record in read.of(read.topics.changelogs["card_id"].name):
        (key, slot), _ = codec.read_slot(record.key or b"", record.value)
        later = [r for r in read.logs[at] if r.offset > record.offset]
        if slot == 0 and any(codec.read_slot(r.key or b"", r.value)[0] == (key, 1) for r in later):
            made_ms = read.logs[at][-1].timestamp_ms + 1
            _append(read, at, _replace(record, timestamp_ms=made_ms))
            return


def _committed_early(read: Read) -> None:
    """As if a commit had been seen before what it stands for was in the logs."""
    last = read.samples[-1]
    read.samples = [Sample(last.committed, dict.fromkeys(last.ends, 0))]


def _left(read: Read) -> None:
    at = Partition(read.topics.transactions.name, 0)
    read.committed[at] -= 1


def _input_lost(read: Read) -> None:
    read.acknowledged[Position(read.topics.labels.name, 0, 10**6)] = b"{}"


FORGED: Final[dict[str, Callable[[Read], None]]] = {
    "transactions_unscored": _unscored,
    "scores_invented": _invented,
    "features_differ": _other_feature,
    "scores_differ": _other_score,
    "alerts_missing": _alert_missing,
    "letters_missing": lambda read: _drop(read, "dead_letters"),
    "letters_of_good": _letter_of_good,
    "labels_without_outcome": lambda read: _drop(read, "outcomes"),
    "labels_with_two_outcomes": lambda read: _changed_outcome(read, outcome="duplicate"),
    "labels_lost": lambda read: _changed_outcome(read, outcome="unknown"),
    "outcomes_invented": lambda read: _changed_outcome(read, origin=("labels", 0, 10**6)),
    "labels_learnt_twice": _learnt_twice,
    "taught_on_another_score": _other_lesson,
    "never_taught": _example_missing,
    "digest_differs": forge_snapshot,
    "state_differs": _row_missing,
    "stale_writes": _stale_row,
    "committed_unprocessed": _committed_early,
    "offsets_left": _left,
    "inputs_lost": _input_lost,
}


def judged(forge: Callable[[Read], None]) -> Verdict:
    """The verdict on the topics of a sound world after they were forged."""
    read = copy.copy(sound())
    read.logs = {at: list(records) for at, records in read.logs.items()}
    read.ends, read.committed = dict(read.ends), dict(read.committed)
    read.samples, read.acknowledged = list(read.samples), dict(read.acknowledged)
    forge(read)
    return check(read)


def forged(counter: str) -> int:
    """How far a counter rises when the topics of a sound world are forged so that it must."""
    return judged(FORGED[counter]).violations[counter]
