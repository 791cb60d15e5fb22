"""The shell of repeats: candidates for alerts in, those that a person should see out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from app import codec
from app.core.repeats import Repeats
from app.errors import Malformed
from app.records import Partition, Send
from app.stages import refused, rows_of
from app.tasks import Bound, Committed, Effects, Range
from app.topics import partition_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from app.config import RepeatSettings, Settings
    from app.metrics import Metrics
    from app.records import Record
    from app.topics import RepeatTopics, Topics


@dataclass
class AlertStage:
    """All partitions of the alerts of one kind of entity."""

    settings: Settings
    topics_by_role: Topics
    told: RepeatSettings
    own: RepeatTopics
    metrics: Metrics
    name: str = "alerts"
    topics: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Find the place of this stage in the flow."""
        self.topics = (self.own.candidates.name,)

    def task(self, partition: int) -> AlertTask:
        """Return a new task for one partition, with nothing restored yet."""
        return AlertTask(self, partition)


class AlertTask:
    """One partition of alerts. Its state is what was shown last, its log the changelog."""

    def __init__(self, stage: AlertStage, partition: int) -> None:
        """Start with nothing shown."""
        self.stage, self.partition = stage, partition
        self.inputs = (Partition(stage.topics[0], partition),)
        self.changelog = stage.own.changelog.name
        self.repeats = Repeats(stage.told.window, stage.told.entities_max)

    def ranges(self, committed: Mapping[Partition, Committed]) -> list[Range]:
        """The whole changelog: what is in it has been applied, wherever the offsets stand."""
        return [Range(Partition(self.changelog, self.partition))]

    def restore(self, partition: Partition, records: Sequence[Record]) -> None:
        """Take rows of the changelog."""
        self.repeats.restore(rows_of(partition, records, codec.read_shown))

    def start(self) -> Mapping[Partition, int]:
        """The input begins at its committed offset."""
        return {}

    def reached(self) -> Mapping[Partition, int]:
        """Candidates, as far as the guards say: what a shorter log holds would not be shown."""
        return {self.inputs[0]: self.repeats.applied_high}

    def apply(
        self, partition: Partition, records: Sequence[Record], now_ms: int, effects: Effects
    ) -> None:
        """Fold candidates; send on those that are shown."""
        del now_ms  # the window is of event time
        for record in records:
            try:
                self._fold(record, effects)
            except Malformed as error:
                effects.outputs.append(refused(self.stage, partition, record, error))
        for key, told in self.repeats.changes():
            effects.state.append(
                Send(self.changelog, self.partition, *codec.write_shown(key, told))
            )
        self.stage.metrics.consumed(self.stage.name, len(records))

    def tick(self, now_ms: int, effects: Effects, *, is_last: bool) -> None:
        """Nothing is due by the clock: time is event time."""

    def note(self, partition: Partition, offset: int) -> str:
        """Nothing: the guard is in the values."""
        return ""

    def bounds(self) -> tuple[Bound]:
        """The entities whose last alert is known."""
        used, limit = len(self.repeats.shown), self.repeats.entities_max
        name = "policy.repeats.entities_max"
        return (Bound(name, self.stage.name, self.partition, used, limit),)

    def _fold(self, record: Record, effects: Effects) -> None:
        alert = codec.read_alert(record)
        kind = self.stage.told.entity
        if kind not in alert.entities:
            raise Malformed("entities", None, f"the value of {kind}")
        key = alert.entities[kind]
        repeats = self.repeats.on_alert(key, alert.transaction_id, alert.time_ms, record.offset)
        if repeats is None:
            self.stage.metrics.suppressed()
            return
        topic, identity = self.stage.topics_by_role.alerts, alert.transaction_id.encode()
        value = codec.encode(msgspec.structs.replace(alert, repeats=repeats))
        partition = partition_of(identity, topic.partitions)
        effects.outputs.append(Send(topic.name, partition, identity, value, record.headers))
