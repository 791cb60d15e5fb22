"""What people look at: a bounded fold over the topics of few records, newest first.

Alerts, what became of their labels, drift, dead letters and what was done about them, versions
of the model. Records of one partition are taken in the order of their offsets, and each once: the
next offset of every partition is part of the state. Several partitions may come in any order: what
is held is ordered by when and where each record lies, so every worker shows the same list.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, Generic, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from app.records import LabelSource, ModelVersion, Outcome, Partition, Reason, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.records import Alert, Drift, LabelOutcome, Position

#: 10,000 alerts of 2 KiB are 20 MB: more than anybody looks through.
HELD_MAX: Final = 10_000
#: Transactions whose labels are remembered: those of alerts, and as many that are none.
LABELLED_MAX: Final = 2 * HELD_MAX
#: Snapshots: a day of them, at one each half a minute, is more than a page shows.
VERSIONS_MAX: Final = 200
#: Dead letters among which one is looked for that has just come.
LATELY: Final = 256
#: Labels of one transaction that are shown.
LABELS_MAX: Final = 16

State = Literal["open", "fraud", "legitimate", "unsure"]
LetterState = Literal["open", "retried", "dropped"]


class Place(NamedTuple):
    """Where a record stands among all: by when it was written, then by where it lies."""

    time_ms: int
    partition: int
    offset: int

    def __str__(self) -> str:
        """As a cursor has it.

        >>> str(Place(17, 0, 12))
        '17-0-12'
        """
        return "-".join(map(str, self))

    @classmethod
    def of(cls, text: str) -> Place:
        """Inverse of ``str``. Raises ValueError.

        >>> Place.of("17-0-12")
        Place(time_ms=17, partition=0, offset=12)
        """
        time_ms, partition, offset = map(int, text.split("-"))
        return cls(time_ms, partition, offset)


class LabelView(msgspec.Struct, frozen=True, kw_only=True):
    """A label of a transaction and what became of it; null: a person was unsure."""

    is_fraud: bool | None
    source: LabelSource
    outcome: Outcome | Literal["sent", "noted"]
    time_ms: int  # wall clock
    reason: str = ""
    by: str | None = None


class AlertView(msgspec.Struct, frozen=True, kw_only=True):
    """An alert as a person sees it: what was told of it, and what is known by now."""

    transaction_id: str
    time_ms: int
    seen_ms: int
    cursor: str
    entities: dict[str, str]
    amount: float
    score: float
    policy: str
    reasons: list[Reason]
    model: ModelVersion
    source: Source
    links: dict[str, str]
    repeats: int
    segments: dict[str, str]
    state: State = "open"
    labels: list[LabelView] = []


class DriftView(msgspec.Struct, frozen=True):
    """An incident as it was told last, and when."""

    drift: Drift
    seen_ms: int
    cursor: str


class OutcomeView(msgspec.Struct, frozen=True):
    """What became of a label, and when."""

    outcome: LabelOutcome
    seen_ms: int
    cursor: str


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter without its value."""

    offset: int  # in the topic of dead letters
    position: str  # of the record that could not be read
    topic: str
    stage: str
    reason: str
    key: str | None
    value_bytes: int
    excerpt: str
    seen_ms: int
    cursor: str
    can_retry: bool = False
    state: LetterState = "open"
    by: str | None = None


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the model as it lies on its topic."""

    offset: int
    written_ms: int
    bytes: int
    position: int | None = None
    digest: str | None = None
    verifies: bool = False
    reason: str | None = None
    in_use: bool = False


class _Placed(Protocol):
    @property
    def cursor(self) -> str:
        """Its place, as text."""


T = TypeVar("T", bound=_Placed)


@dataclass
class Shelf(Generic[T]):
    """At most ``held_max`` records, by their place; the oldest leave."""

    held_max: int = HELD_MAX
    places: list[Place] = field(default_factory=list)
    held: dict[Place, T] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many are held."""
        return len(self.places)

    def put(self, place: Place, value: T) -> T | None:
        """Add one; return what had to leave for it."""
        if place not in self.held:
            insort(self.places, place)
        self.held[place] = value
        if len(self.places) <= self.held_max:
            return None
        return self.held.pop(self.places.pop(0))

    def take(self, place: Place) -> None:
        """Let one go."""
        if self.held.pop(place, None) is not None:
            self.places.remove(place)

    def newest(self, before: Place | None = None) -> Iterator[T]:
        """All that stand before a place, newest first."""
        end = len(self.places) if before is None else bisect_left(self.places, before)
        for at in range(end - 1, -1, -1):
            yield self.held[self.places[at]]


@dataclass
class Board:
    """What was told, as far as it is held. What comes again changes nothing."""

    held_max: int = HELD_MAX
    labelled_max: int = LABELLED_MAX
    positions: dict[Partition, int] = field(default_factory=dict)  # the next offset of each

    def __post_init__(self) -> None:
        """Begin with nothing told."""
        self.alerts: Shelf[AlertView] = Shelf(self.held_max)
        self.drifts: Shelf[DriftView] = Shelf(self.held_max)
        self.outcomes: Shelf[OutcomeView] = Shelf(self.held_max)
        self.letters: Shelf[Letter] = Shelf(self.held_max)
        self.versions: OrderedDict[int, Version] = OrderedDict()
        self._alert_at: dict[str, Place] = {}
        self._letter_at: dict[int, Place] = {}
        self._incident_at: dict[str, Place] = {}
        self._labels: OrderedDict[str, list[LabelView]] = OrderedDict()

    def is_news(self, at: Position) -> bool:
        """Whether a record was not taken yet; from now on it was."""
        whose = Partition(at.topic, at.partition)
        if at.offset < self.positions.get(whose, 0):
            return False
        self.positions[whose] = at.offset + 1
        return True

    def on_alert(self, at: Position, seen_ms: int, alert: Alert) -> AlertView | None:
        """Take an alert; None: it was told before."""
        if not self.is_news(at) or alert.transaction_id in self._alert_at:
            return None
        place = Place(seen_ms, at.partition, at.offset)
        told = {name: getattr(alert, name) for name in _OF_ALERT}
        labels = self.labels_of(alert.transaction_id)
        view = AlertView(
            **told, seen_ms=seen_ms, cursor=str(place), state=state_of(labels), labels=labels
        )
        self._alert_at[alert.transaction_id] = place
        gone = self.alerts.put(place, view)
        if gone is not None:
            self._alert_at.pop(gone.transaction_id, None)
        return view

    def on_outcome(self, at: Position, seen_ms: int, outcome: LabelOutcome) -> OutcomeView | None:
        """Take what became of a label; None: it was told before."""
        if not self.is_news(at):
            return None
        place = Place(seen_ms, at.partition, at.offset)
        view = OutcomeView(outcome, seen_ms, str(place))
        self.outcomes.put(place, view)
        label = LabelView(
            is_fraud=outcome.is_fraud,
            source=outcome.label_source,
            outcome=outcome.outcome,
            time_ms=seen_ms,
            reason=outcome.reason,
        )
        self.on_label(outcome.transaction_id, label)
        return view

    def on_label(self, transaction_id: str, label: LabelView) -> None:
        """Note a label; what became of it takes the place of its having been sent."""
        labels = list(self.labels_of(transaction_id))
        sent = next((i for i, was in enumerate(labels) if _is_answer(was, label)), None)
        if sent is not None:
            label = msgspec.structs.replace(label, by=labels.pop(sent).by)
        self._set_labels(transaction_id, [*labels, label][-LABELS_MAX:])

    def _set_labels(self, transaction_id: str, labels: list[LabelView]) -> None:
        self._labels.pop(transaction_id, None)
        self._labels[transaction_id] = labels
        while len(self._labels) > self.labelled_max:
            self._labels.popitem(last=False)
        place = self._alert_at.get(transaction_id)
        if place is not None:
            self.alerts.held[place] = msgspec.structs.replace(
                self.alerts.held[place], labels=labels, state=state_of(labels)
            )

    def withdraw(self, transaction_id: str, label: LabelView) -> None:
        """Forget a label that was noted, but never sent."""
        held = self._labels.get(transaction_id, [])
        if label in held:
            self._set_labels(transaction_id, [one for one in held if one is not label])

    def on_drift(self, at: Position, seen_ms: int, drift: Drift) -> DriftView | None:
        """Take a drift; None: it was told before."""
        if not self.is_news(at):
            return None
        place = Place(seen_ms, at.partition, at.offset)
        view = DriftView(drift, seen_ms, str(place))
        # One incident, one entry: as it was told last.
        before = self._incident_at.pop(drift.incident, None)
        if before is not None:
            self.drifts.take(before)
        if drift.incident:
            self._incident_at[drift.incident] = place
        gone = self.drifts.put(place, view)
        if gone is not None:
            self._incident_at.pop(gone.drift.incident, None)
        return view

    def incident(self, name: str) -> Drift | None:
        """An incident as it was told last; None: it is not held."""
        place = self._incident_at.get(name)
        return None if place is None else self.drifts.held[place].drift

    def on_letter(self, at: Position, letter: Letter) -> Letter | None:
        """Take a dead letter; None: it was told before."""
        if not self.is_news(at):
            return None
        place = Place(letter.seen_ms, at.partition, at.offset)
        letter = msgspec.structs.replace(letter, cursor=str(place))
        self._letter_at[at.offset] = place
        gone = self.letters.put(place, letter)
        if gone is not None:
            self._letter_at.pop(gone.offset, None)
        return letter

    def on_settled(
        self, at: Position, offset: int, state: LetterState, by: str | None
    ) -> Letter | None:
        """Take what was done about a dead letter; None: told before, or it is not held."""
        if not self.is_news(at):
            return None
        place = self._letter_at.get(offset)
        if place is None:
            return None
        letter = msgspec.structs.replace(self.letters.held[place], state=state, by=by)
        self.letters.held[place] = letter
        return letter

    def on_version(self, version: Version) -> Version:
        """Take a snapshot, whether it verifies or not."""
        self.versions[version.offset] = version
        while len(self.versions) > VERSIONS_MAX:
            self.versions.popitem(last=False)
        return version

    def alert(self, transaction_id: str) -> AlertView | None:
        """The alert of a transaction, if there is one and it is held."""
        place = self._alert_at.get(transaction_id)
        return None if place is None else self.alerts.held[place]

    def letter(self, offset: int) -> Letter | None:
        """A dead letter by its offset, if it is held."""
        place = self._letter_at.get(offset)
        return None if place is None else self.letters.held[place]

    def letter_about(self, position: str) -> Letter | None:
        """The newest dead letter of a record, by where the record lies; looks at the last few."""
        some = islice(self.letters.newest(), LATELY)
        return next((one for one in some if one.position == position), None)

    def labels_of(self, transaction_id: str) -> list[LabelView]:
        """Labels of a transaction, oldest first."""
        return self._labels.get(transaction_id, [])


#: Fields that an alert and its view have in common.
_OF_ALERT: Final = tuple(
    name
    for name in AlertView.__struct_fields__
    if name not in ("seen_ms", "cursor", "state", "labels")
)
#: Outcomes after which a label stands for nothing.
_VOID: Final = frozenset({"unknown", "rejected", "expired"})


def state_of(labels: list[LabelView]) -> State:
    """What is known of a transaction by its labels, oldest first: the last that stands.

    >>> state_of([])
    'open'
    """
    for label in reversed(labels):
        if label.outcome in _VOID:
            continue
        if label.is_fraud is None:
            return "unsure"
        return "fraud" if label.is_fraud else "legitimate"
    return "open"


def _is_answer(sent: LabelView, label: LabelView) -> bool:
    """Whether a label is what became of one that was sent; "early" is told before the rest."""
    is_same = sent.is_fraud is label.is_fraud and sent.source == label.source
    return is_same and sent.outcome in {"sent", "early"} and label.outcome != "sent"
