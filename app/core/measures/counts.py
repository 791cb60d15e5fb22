"""All that only adds up, in one: of a day, or of all that is mature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from app.core.measures.decisions import Decisions
from app.core.measures.delays import Delays
from app.core.measures.groups import Groups
from app.core.measures.ranking import Ranking
from app.core.measures.shown import Shown

if TYPE_CHECKING:
    from app.core.measures.rows import Rows


@dataclass
class Counts:
    """Ranking, decisions, delays of labels, what persons judged, and the groups of segments."""

    groups: list[Groups]  # one a segment
    ranking: Ranking = field(default_factory=Ranking)
    decisions: Decisions = field(default_factory=Decisions)
    delays: Delays = field(default_factory=Delays)
    shown: Shown = field(default_factory=Shown)

    @classmethod
    def of(cls, n_segments: int) -> Counts:
        """Nothing counted yet."""
        return cls([Groups() for _ in range(n_segments)])

    def update(self, rows: Rows) -> None:
        """Count labelled transactions."""
        self.ranking.update(rows.scores, rows.is_fraud, rows.weights, rows.bins)
        self.decisions.update(rows)
        self.delays.update(rows)
        self.shown.update(rows)
        for segment, groups in enumerate(self.groups):
            groups.update(rows, segment)

    def __iadd__(self, other: Counts) -> Self:
        """Add what another has counted."""
        self.ranking += other.ranking
        self.decisions += other.decisions
        self.delays += other.delays
        self.shown += other.shown
        for mine, theirs in zip(self.groups, other.groups, strict=True):
            mine += theirs  # noqa: PLW2901 - in place
        return self
