"""Entities that are not in memory: what a store asks of a disk, and how an entity lies there.

An entity is packed whole, into 8-byte words in the machine's order, for nobody but the process that
wrote it: whether its buckets must still take in what its ring has, the number of its transactions,
the time of its latest, how many slots follow; its guard; five words a slot; then its buckets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import numba as nb
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

#: Words before the guard, and of a slot.
_HEAD: Final = 4
_SLOT: Final = 5


class Cold(Protocol):
    """Where entities lie that memory has no room for. Nothing in it outlives the process."""

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """What was put last for each key."""

    def put_many(self, items: Iterable[tuple[str, bytes]]) -> None:
        """Keep a value for each key, in the place of an earlier one."""

    def drop(self, key: str) -> None:
        """Forget a key."""


class Box:
    """A ``Cold`` in memory, for what is thrown away."""

    def __init__(self) -> None:
        """Begin empty."""
        self._held: dict[str, bytes] = {}

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """What was put last for each key."""
        return [self._held.get(key) for key in keys]

    def put_many(self, items: Iterable[tuple[str, bytes]]) -> None:
        """Keep a value for each key."""
        self._held.update(items)

    def drop(self, key: str) -> None:
        """Forget a key."""
        self._held.pop(key, None)


@nb.njit(cache=True, nogil=True)
def freeze(
    rows: NDArray[np.int64],
    is_unsettled: NDArray[np.bool_],
    counts: NDArray[np.int64],
    last_ms: NDArray[np.int64],
    guards: NDArray[np.int64],
    table: NDArray[np.int32],
    times: NDArray[np.int64],
    amounts: NDArray[np.int64],  # as bits
    ids: NDArray[np.uint64],
    others: NDArray[np.uint64],
    labels: NDArray[np.int8],
    revisions: NDArray[np.uint8],
    sequences: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pack entities one after another; return all words and where each ends."""
    upstreams, block_size = guards.shape[1], times.shape[1]
    ends, n = np.empty(rows.shape[0], np.int64), 0
    for i in range(rows.shape[0]):
        n += _HEAD + upstreams
        for block in table[rows[i]]:
            for at in range(block_size if block >= 0 else 0):
                n += _SLOT if sequences[block, at] >= 0 else 0
        ends[i] = n
    words, n = np.empty(n, np.int64), 0
    for i in range(rows.shape[0]):
        row, head = rows[i], n
        words[head], words[head + 1], words[head + 2] = is_unsettled[i], counts[row], last_ms[row]
        n += _HEAD
        for u in range(upstreams):
            words[n + u] = guards[row, u]
        n += upstreams
        for block in table[row]:
            for at in range(block_size if block >= 0 else 0):
                if sequences[block, at] < 0:
                    continue
                words[n], words[n + 1] = times[block, at], amounts[block, at]
                words[n + 2], words[n + 3] = np.int64(ids[block, at]), np.int64(others[block, at])
                revision, label = np.int64(revisions[block, at]), np.int64(labels[block, at]) + 1
                words[n + 4] = sequences[block, at] * 65_536 + revision * 256 + label
                n += _SLOT
        words[head + 3] = (n - head - _HEAD - upstreams) // _SLOT
    return words, ends


@nb.njit(cache=True, nogil=True)
def thaw(
    words: NDArray[np.int64],
    starts: NDArray[np.int64],
    rows: NDArray[np.int64],
    counts: NDArray[np.int64],
    last_ms: NDArray[np.int64],
    guards: NDArray[np.int64],
    table: NDArray[np.int32],
    times: NDArray[np.int64],
    amounts: NDArray[np.int64],
    ids: NDArray[np.uint64],
    others: NDArray[np.uint64],
    labels: NDArray[np.int8],
    revisions: NDArray[np.uint8],
    sequences: NDArray[np.int64],
    free: NDArray[np.int64],
    n_free: int,
) -> int:
    """Unpack entities into rows that are new; return how many free blocks are left."""
    upstreams, block_size = guards.shape[1], times.shape[1]
    n_slots = table.shape[1] * block_size
    for i in range(rows.shape[0]):
        row, n = rows[i], starts[i]
        counts[row], last_ms[row], held = words[n + 1], words[n + 2], words[n + 3]
        n += _HEAD
        for u in range(upstreams):
            guards[row, u] = words[n + u]
        n += upstreams
        for _ in range(held):
            sequence = words[n + 4] // 65_536
            slot = sequence % n_slots
            if table[row, slot // block_size] < 0:
                n_free -= 1
                table[row, slot // block_size] = free[n_free]
            block, at = table[row, slot // block_size], slot % block_size
            times[block, at], amounts[block, at] = words[n], words[n + 1]
            ids[block, at], others[block, at] = np.uint64(words[n + 2]), np.uint64(words[n + 3])
            labels[block, at] = words[n + 4] % 256 - 1
            revisions[block, at] = words[n + 4] // 256 % 256
            sequences[block, at] = sequence
            n += _SLOT
    return n_free


@nb.njit(cache=True, nogil=True)
def release(
    rows: NDArray[np.int64],
    counts: NDArray[np.int64],
    last_ms: NDArray[np.int64],
    guards: NDArray[np.int64],
    table: NDArray[np.int32],
    lines: NDArray[np.int32],
    unsaid: NDArray[np.int64],
    ids: NDArray[np.uint64],
    sequences: NDArray[np.int64],
    free: NDArray[np.int64],
    n_free: int,
) -> int:
    """Make rows as new, and their blocks free; return how many free blocks there are."""
    for i in range(rows.shape[0]):
        row = rows[i]
        for b in range(table.shape[1]):
            block = table[row, b]
            if block >= 0:
                sequences[block], ids[block], table[row, b] = -1, 0, -1
                free[n_free] = block
                n_free += 1
        counts[row], guards[row], lines[row], unsaid[row] = 0, -1, 0, 0
        last_ms[row] = np.iinfo(np.int64).min
    return n_free


def n_blocks(words: NDArray[np.int64], block_size: int) -> int:
    """How many blocks, at most, an entity takes when it comes back."""
    return int(words[3]) // block_size + 2


def length(words: NDArray[np.int64], upstreams: int) -> int:
    """How many words an entity has without its buckets."""
    return _HEAD + upstreams + int(words[3]) * _SLOT
