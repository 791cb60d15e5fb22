"""Many means side by side, each held against what it was: at that hour, on that weekday, lately.

A channel is a mean over rows. In every block of event time its mean is compared with what was to
be expected: a level that follows slowly, plus what the hour of the day and the weekday add to it.
What is left over, in units of its own usual size, goes into two sums that forget what is small
(CUSUM: Page, 1954), one for each direction: a lasting change adds up, noise does not. Where such
a sum last was zero the change began.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

T = TypeVar("T", int, "NDArray[Any]")

DAY_MS: Final = 86_400_000
#: Three hours each: an eighth of a day's rows are enough to know what the hour adds.
HOURS: Final = 8
_WEEK: Final = 7
#: 1970-01-01 was a Thursday; Monday is 0.
_EPOCH_WEEKDAY: Final = 3
#: Half a deviation a block is what adds up: Page's choice for changes of one deviation.
SLACK: Final = 0.5
#: No block speaks for more than six deviations: one strange hour is no change of the world. Of
#: time itself each hour may: eighteen of them without a transaction are one.
LOUDEST: Final = 6.0
#: The size of what is left over is known after so many blocks; then it follows as slowly.
_SIZE_BLOCKS: Final = 200.0
_FILLING_BLOCKS: Final = 30.0
#: What an hour of the day adds is a mean over about 40 of them, a weekday's over 8.
_HOUR_VISITS: Final = 40.0
_WEEKDAY_VISITS: Final = 8.0
#: A week of days at a channel's usual height, before its own days are believed.
_PRIOR_DAYS: Final = 7.0
#: What its days reach is a mean over about two months of them.
_USUAL_DAYS: Final = 60.0


class Channel(NamedTuple):
    """One mean that is watched."""

    kind: str  # "feature", "score", "performance", "label", "traffic"
    subject: str
    aspect: str
    least: float  # a row's variance is taken to be so much at least: what is rare is no wonder
    fewest: float  # rows that a block's mean is made of; with fewer it waits for the next
    span_ms: int = 0  # how far back its values look: until then they change because they fill
    is_of_time: bool = False  # its rows are blocks' worth of time: a longer block has more of them


def hour_of(times_ms: T) -> T:
    """Which eighth of the day, UTC, of one time or of each, shape (n,)."""
    return times_ms % DAY_MS * HOURS // DAY_MS


def weekday_of(time_ms: int) -> int:
    """Monday is 0.

    >>> weekday_of(0)
    3
    """
    return (time_ms // DAY_MS + _EPOCH_WEEKDAY) % _WEEK


@dataclass
class Block:
    """Sums of a run of rows, by hour of the day and channel: shape (8, channels) both.

    Blocks of several partitions add up to the block of all.
    """

    n: NDArray[np.float64]
    sums: NDArray[np.float64]

    @classmethod
    def of(cls, channels: int) -> Block:
        """No rows yet."""
        return cls(np.zeros((HOURS, channels)), np.zeros((HOURS, channels)))

    def add(self, at: int | slice, hours: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Add rows of ``values``, shape (n, channels in ``at``), at ``hours``, shape (n,)."""
        for hour in np.unique(hours).tolist():
            of_hour = values[hours == hour]
            self.n[hour, at] += len(of_hour)
            self.sums[hour, at] += of_hour.sum(axis=0)

    def add_one(self, at: int, hour: int, value: float, weight: float = 1.0) -> None:
        """Add one value to one channel."""
        self.n[hour, at] += weight
        self.sums[hour, at] += weight * value

    def merge(self, other: Block) -> None:
        """Add another block's rows."""
        self.n += other.n
        self.sums += other.sums

    def take(self, which: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Counts and sums of some channels, zero elsewhere; they begin anew."""
        n, sums = np.where(which, self.n, 0.0), np.where(which, self.sums, 0.0)
        self.n[:, which] = self.sums[:, which] = 0.0
        return n, sums


@dataclass
class Watch:
    """All channels, in arrays of shape (channels,).

    ``height`` is how far a channel's larger sum has
    risen, in units of what its own days usually reach where that is more than a steady one's.
    """

    channels: Sequence[Channel]
    blocks: NDArray[np.float64] = field(init=False)  # seen, by channel

    def __post_init__(self) -> None:
        """Start with nothing known."""
        c = len(self.channels)
        self.fewest = np.array([channel.fewest for channel in self.channels])
        self.least = np.array([channel.least for channel in self.channels])
        self.is_of_time = np.array([channel.is_of_time for channel in self.channels], np.bool_)
        self.blocks, self.level, self.size = np.zeros(c), np.zeros(c), np.zeros(c)
        self.last_ms = np.full(c, -1.0)
        self.hours, self.hour_visits = np.zeros((HOURS, c)), np.zeros((HOURS, c))
        self.weekdays, self.weekday_visits = np.zeros((_WEEK, c)), np.zeros((_WEEK, c))
        self.of_day, self.of_day_n = np.zeros(c), np.zeros(c)
        self.up, self.down = np.zeros(c), np.zeros(c)
        self.up_ms, self.down_ms = np.zeros(c), np.zeros(c)
        self.up_sum, self.down_sum = np.zeros(c), np.zeros(c)  # since then, unbounded
        self.up_n, self.down_n = np.zeros(c), np.zeros(c)  # blocks since then
        self.highest = np.zeros(c)  # of the day
        self.usual, self.usual_days = np.full(c, np.nan), np.zeros(c)

    def close(
        self,
        block: Block,
        start_ms: int,
        end_ms: int,
        half_life_ms: NDArray[np.float64],
        armed: NDArray[np.bool_],
    ) -> None:
        """Hold what a block says against what was to be expected, then learn from it.

        ``half_life_ms`` is that of each level. Channels that are not ``armed``, shape (channels,),
        are only learnt, and that soon forgotten: they change because they fill.
        """
        which = block.n.sum(axis=0) >= self.fewest
        n, sums = block.take(which)
        total, weekday = np.maximum(n.sum(axis=0), 1.0), weekday_of(start_ms)
        seasonal = self.hours + self.weekdays[weekday]
        mean = (sums - n * seasonal).sum(axis=0) / total
        fresh = which & (self.blocks == 0.0)
        self.level[fresh] = mean[fresh]
        left = np.where(which, mean - self.level, 0.0)
        loudest = LOUDEST * np.where(self.is_of_time, np.sqrt(total), 1.0)
        known = which & (self.blocks >= _WEEK)
        self._sum_up(left * np.sqrt(total), loudest, known, start_ms, armed)
        self.rest(0.0, ~armed)
        self._learn(left, which, n, sums, weekday, end_ms, half_life_ms)
        self.blocks += which

    def _sum_up(
        self,
        left: NDArray[np.float64],
        loudest: NDArray[np.float64],
        which: NDArray[np.bool_],
        start_ms: int,
        armed: NDArray[np.bool_],
    ) -> None:
        """Let both sums rise or fall by what is left over, shape (channels,)."""
        size = np.sqrt(np.maximum(self.size, self.least))
        z = np.where(which & (self.size > 0.0), left / size, 0.0)
        bounded = np.clip(z, -loudest, loudest)
        for sign, sums, since, free, blocks in (
            (1.0, self.up, self.up_ms, self.up_sum, self.up_n),
            (-1.0, self.down, self.down_ms, self.down_sum, self.down_n),
        ):
            rested = which & (sums <= 0.0)
            since[rested], free[rested], blocks[rested] = start_ms, 0.0, 0.0
            np.add(blocks, which, out=blocks)
            np.add(sums, np.where(which, sign * bounded - SLACK, 0.0), out=sums)
            np.add(free, np.where(which, sign * z, 0.0), out=free)
            np.maximum(sums, 0.0, out=sums)
        self.highest = np.maximum(self.highest, np.maximum(self.up, self.down))
        # The size of what is left over, a quiet block's: a change must not hide behind itself.
        quiet = np.minimum(left**2, np.where(self.size > 0.0, 9.0 * self.size, np.inf))
        slowest = np.where(armed, 1.0 / _SIZE_BLOCKS, 1.0 / _FILLING_BLOCKS)
        rate = np.maximum(1.0 / (self.blocks - _WEEK + 1.0).clip(1.0), slowest)
        self.size += np.where(which, rate * (quiet - self.size), 0.0)

    def _learn(
        self,
        left: NDArray[np.float64],
        which: NDArray[np.bool_],
        n: NDArray[np.float64],
        sums: NDArray[np.float64],
        weekday: int,
        end_ms: int,
        half_life_ms: NDArray[np.float64],
    ) -> None:
        """Let level and hours follow; weekdays follow when a day is over."""
        expected = self.level + self.hours + self.weekdays[weekday]
        of_hour = sums / np.maximum(n, 1.0) - expected
        visited = n > 0.0
        self.hour_visits += visited
        rate = 1.0 / np.minimum(self.hour_visits + 4.0, _HOUR_VISITS)
        self.hours += np.where(visited, rate * of_hour, 0.0)
        passed = np.where(self.last_ms < 0.0, 0.0, end_ms - self.last_ms).clip(0.0)
        follows = np.maximum(1.0 - 0.5 ** (passed / half_life_ms), 1.0 / (self.blocks + 1.0))
        self.level += np.where(which, follows * left, 0.0)
        self.last_ms[which] = end_ms
        self.of_day += np.where(which, left, 0.0)
        self.of_day_n += which

    def end_day(self, time_ms: int, armed: NDArray[np.bool_]) -> None:
        """Learn from a day that began at ``time_ms``: what its weekday adds, how high sums rose.

        Days of an incident count, up to the line (``rest``): a mean that wanders by itself would
        open one after another, and never be known for it.
        """
        weekday, seen = weekday_of(time_ms), self.of_day_n > 0.0
        self.weekday_visits[weekday] += seen
        rate = 1.0 / np.minimum(self.weekday_visits[weekday] + 2.0, _WEEKDAY_VISITS)
        mean = self.of_day / np.maximum(self.of_day_n, 1.0)
        self.weekdays[weekday] += np.where(seen, rate * mean, 0.0)
        # Squares: what matters of a channel that wanders is how far it goes when it does.
        reached = self.highest**2
        told = seen & armed
        self.usual = np.where(told & np.isnan(self.usual), reached, self.usual)
        self.usual_days += told
        rate = 1.0 / np.minimum(self.usual_days + 1.0, _USUAL_DAYS)
        self.usual += np.where(told, rate * (reached - self.usual), 0.0)
        self.of_day, self.of_day_n = np.zeros_like(self.of_day), np.zeros_like(self.of_day)
        self.highest = np.maximum(self.up, self.down)

    @property
    def height(self) -> NDArray[np.float64]:
        """How far each channel's larger sum has risen, >= 0, shape (channels,)."""
        return np.asarray(np.maximum(self.up, self.down) / self.scale)

    @property
    def scale(self) -> NDArray[np.float64]:
        """What a channel's days reach against a steady one's, >= 1.

        A mean that wanders by itself (few frauds, terminals that are robbed for a fortnight)
        reaches far every day, and must reach farther to be news.
        """
        steady = 7.0  # its square, about, on a day of ten to twenty blocks of noise
        days = self.usual_days
        own = np.where(np.isnan(self.usual), steady, self.usual)
        drawn = (days * own + _PRIOR_DAYS * steady) / (days + _PRIOR_DAYS)
        return np.asarray(np.sqrt(np.maximum(drawn / steady, 1.0)))

    @property
    def since_ms(self) -> NDArray[np.float64]:
        """When each channel's larger sum last began to rise, shape (channels,)."""
        return np.where(self.up >= self.down, self.up_ms, self.down_ms)

    @property
    def shift(self) -> NDArray[np.float64]:
        """How much each channel's blocks lie off since then, in deviations, with its sign.

        The deviation is that of the mean of these blocks, so a short loud change and a long
        quiet one compare by how unlikely they are.
        """
        rises = self.up >= self.down
        total = np.where(rises, self.up_sum, -self.down_sum)
        blocks = np.where(rises, self.up_n, self.down_n)
        return np.asarray(total / np.sqrt(np.maximum(blocks, 1.0)) / self.scale)

    def rest(self, most: float, which: NDArray[np.bool_]) -> None:
        """Let no sum of some channels stand higher than ``most``, in its scale."""
        bound = np.where(which, most * self.scale, np.inf)
        self.up, self.down = np.minimum(self.up, bound), np.minimum(self.down, bound)
        self.highest = np.minimum(self.highest, bound)
