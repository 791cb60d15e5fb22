"""The snapshots on the models topic: what the learner writes, and the newest that verifies.

Each time two are written, each whole in itself: of the *learner*, from which it goes on, and of
its *champion*, which is what gives scores, a tenth of that. Whoever follows a learner opens
champions alone. Headers say which of the two a record is of, so that the other is passed over
unread; they are hints: what counts is the head that is signed. It also says what was learnt, in a
few digests, so that two learners can be held against each other without opening either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from app.core.learner import FORMAT, Learner, Trail
from app.core.scoring import Champion
from app.errors import Refused
from app.snapshots import About, Frozen, about, freeze, unseal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from app.config import Settings
    from app.core.features import FeaturePlan
    from app.records import Headers, Record

log = structlog.get_logger(__name__)

LEARNER: Final = "learner"
CHAMPION: Final = "champion"
_KINDS: Final[dict[str, type[Learner | Champion]]] = {
    LEARNER: Learner,
    CHAMPION: Champion,
}
_KIND: Final = "weir-kind"


def frozen(state: Learner | Champion, learner: Learner) -> Frozen:
    """A copy of what a learner knows now, or of what gives its scores now."""
    kind = LEARNER if isinstance(state, Learner) else CHAMPION
    version, trail = learner.version, learner.trail
    said = About(
        kind=kind,
        format=FORMAT,
        position=version.position,
        digest=version.digest,
        rebuilt=learner.rebuilt,
        schema=learner.schema,
        told=trail.told,
        milestones=trail.milestones,
    )
    return freeze(state, said)


def sealed(learner: Learner, settings: Settings) -> bytes:
    """The snapshot of a learner."""
    return frozen(learner, learner).sealed(_key(settings))


def hints(of: About) -> Headers:
    """Headers for the record of a snapshot; but for the kind they are for people."""
    return (
        (_KIND, of.kind.encode()),
        ("weir-position", str(of.position).encode()),
        ("weir-digest", of.digest.encode()),
        ("weir-rebuilt", str(of.rebuilt).encode()),
    )


def is_of(record: Record, kind: str) -> bool:
    """Whether the headers of a snapshot say that it is of a kind; a hint."""
    return dict(record.headers).get(_KIND, b"") == kind.encode()


def trail_of(said: About) -> Trail:
    """What the learner of a snapshot learnt from."""
    return Trail((said.rebuilt, said.position), said.told, said.milestones)


def described(record: Record, settings: Settings, plan: FeaturePlan) -> About:
    """What a snapshot is of, once its signature holds and it fits the configuration.

    Raises Refused.
    """
    said = about(record.value or b"", [_key(settings)])
    if said.kind not in _KINDS:
        msg = f"snapshot is of {said.kind or 'something else'}; expected one of a learner"
        raise Refused(msg)
    if said.format != FORMAT:
        msg = "snapshot was written by another version of weir: the model is learnt anew"
        raise Refused(msg)
    if said.schema != plan.schema:
        msg = (
            f"snapshot has features of schema {said.schema}; the configuration declares "
            f"{plan.schema}. A model of other features starts anew and learns what is scored from "
            "now on; to keep this one, take the change of [[features]] back"
        )
        raise Refused(msg)
    return said


def opened(record: Record, settings: Settings, plan: FeaturePlan) -> Learner | Champion:
    """The learner or the champion in a record of the models topic. Raises Refused."""
    kind = _KINDS[described(record, settings, plan).kind]
    state = unseal(record.value or b"", [_key(settings)])
    if not isinstance(state, kind):
        msg = f"snapshot holds a {type(state).__name__}; expected a {kind.__name__}"
        raise Refused(msg)
    return state


def open_learner(record: Record, settings: Settings, plan: FeaturePlan) -> Learner:
    """The learner in a record of the models topic. Raises Refused."""
    found = opened(record, settings, plan)
    if not isinstance(found, Learner):
        raise Refused("snapshot is of what gives scores alone; expected one of a learner")
    return found


def newest(snapshots: Sequence[Record], settings: Settings, plan: FeaturePlan) -> Learner | None:
    """The newest learner that verifies and fits the configuration; None where there is none."""
    shelf = Shelf(settings, plan, (LEARNER,))
    shelf.put(snapshots)
    found = shelf.open()
    return found if isinstance(found, Learner) else None


class _Found(NamedTuple):
    """A snapshot that verifies."""

    age: tuple[int, int]  # as ``Learner.age``
    turn: int  # of two of one age the later counts
    record: Record


class Shelf:
    """Snapshots that were looked at and not yet opened: the newest few that verify.

    As many as the learner keeps (``learner.snapshots_kept``) stay in memory until one opens.
    """

    def __init__(
        self,
        settings: Settings,
        plan: FeaturePlan,
        kinds: Sequence[str],
        notice: Callable[[Trail], None] | None = None,
    ) -> None:
        """Look for snapshots of these kinds, the first of which is the one wanted.

        ``notice`` is told what each of them was learnt from, old ones too.
        """
        self._settings, self._plan, self._kinds = settings, plan, kinds
        self._notice = notice
        self._found: list[_Found] = []
        self._turn = 0
        self.n_verified = 0
        self.refused = ""  # why the last one that was refused was, while none has opened since

    def put(self, records: Iterable[Record], age: tuple[int, int] | None = None) -> None:
        """Look at records; ``age``: of the model in use, than which only newer ones count."""
        for record in records:
            if self._is_passed_over(record):
                continue
            self.n_verified += 1
            try:
                said = described(record, self._settings, self._plan)
            except Refused as error:
                self._refuse(record, error)
                continue
            if said.kind in self._kinds:
                self._put(record, trail_of(said), age)
        self._found.sort(key=lambda one: one[:2], reverse=True)
        del self._found[self._settings.learner.snapshots_kept :]

    def _put(self, record: Record, trail: Trail, age: tuple[int, int] | None) -> None:
        if self._notice is not None:
            self._notice(trail)
        if age is None or trail.age > age:
            self._turn += 1
            self._found.append(_Found(trail.age, self._turn, record))

    def _is_passed_over(self, record: Record) -> bool:
        """Whether a key was let go, or the headers say that a snapshot is of another kind."""
        kind = dict(record.headers).get(_KIND, b"").decode("utf-8", "replace")
        return record.value is None or bool(kind and kind != self._kinds[0])

    def open(self) -> Learner | Champion | None:
        """The newest that opens; None where none does. The shelf is empty then."""
        found, self._found = self._found, []
        for one in found:
            try:
                state = opened(one.record, self._settings, self._plan)
            except Refused as error:
                self._refuse(one.record, error)
            else:
                self.refused = ""
                return state
        return None

    def _refuse(self, record: Record, error: Refused) -> None:
        self.refused = f"snapshot @{record.offset}: {error}"
        log.warning("snapshot_refused", offset=record.offset, reason=str(error))


def _key(settings: Settings) -> bytes:
    return settings.learner.key.get_secret_value().encode()
