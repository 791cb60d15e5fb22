"""Entities on disk, by RocksDB: a second tier for what memory has no room for.

The changelog is the state, here as without a disk. What lies on the disk is a part of a process's
memory that it has put elsewhere: nothing is read that another process wrote. A process that starts
begins with an empty folder and fills it while it restores; so nothing on the disk can be older or
newer than the log says, whatever the last process died of.

Memory is bounded by ``cache_bytes`` for blocks, indexes and filters, and half as much again for
writes under way, for all partitions of a stage.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import weakref
from typing import TYPE_CHECKING, Any, Final

from app.errors import Misconfigured

try:
    import rocksdict
except ImportError:  # the extra "disk" is not installed
    rocksdict = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

#: 10 bits a key: one in a hundred of what is not there is looked for in vain.
_BLOOM_BITS: Final = 10
#: 4 KiB: a few entities; a lookup reads one.
_BLOCK_BYTES: Final = 4_096

_numbers = itertools.count()


class Disk:
    """A folder for the stores of one stage, and the memory that they share."""

    def __init__(self, folder: Path, cache_bytes: int) -> None:
        """Make the folder; remove what processes that ended have left in it.

        Raises Misconfigured where the extra is missing.
        """
        if rocksdict is None:
            msg = "entity.disk needs the extra `disk`; expected: pip install 'weir[disk]'"
            raise Misconfigured(msg)
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            # One that is in use is locked, and stays.
            with contextlib.suppress(Exception):
                rocksdict.Rdict.destroy(str(left), rocksdict.Options(raw_mode=True))
        self._cache = rocksdict.Cache(cache_bytes)
        self._writes = rocksdict.WriteBufferManager(cache_bytes // 2, False)

    def open(self, name: str) -> Shelf:
        """Return an empty place of its own, gone with the object."""
        number = next(_numbers)
        return Shelf(self._folder / f"{name}.{os.getpid()}.{number}", self._options())

    def _options(self) -> Any:
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_block_cache(self._cache)
        blocks.set_block_size(_BLOCK_BYTES)
        blocks.set_bloom_filter(_BLOOM_BITS, False)
        blocks.set_cache_index_and_filter_blocks(True)
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_block_based_table_factory(blocks)
        options.set_write_buffer_manager(self._writes)
        options.set_compression_type(rocksdict.DBCompressionType.lz4())
        options.set_max_open_files(256)
        options.set_keep_log_file_num(1)
        return options


class Shelf:
    """The entities of one store that are not in its memory (``core.cold.Cold``)."""

    def __init__(self, path: Path, options: Any) -> None:
        """Make an empty database, which goes when this object goes."""
        self._database = rocksdict.Rdict(str(path), options)
        unlogged: Any = rocksdict.WriteOptions()
        unlogged.disable_wal = True  # what a crash takes, the changelog has
        self._database.set_write_options(unlogged)
        self.close = weakref.finalize(self, _gone, self._database, str(path))

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """What was put last for each key."""
        found: Any = self._database.get([key.encode() for key in keys])
        return list(found)

    def put_many(self, items: Iterable[tuple[str, bytes]]) -> None:
        """Keep a value for each key, in the place of an earlier one."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in items:
            batch.put(key.encode(), value)
        self._database.write(batch)

    def drop(self, key: str) -> None:
        """Forget a key."""
        self._database.delete(key.encode())


def _gone(database: Any, path: str) -> None:
    with contextlib.suppress(Exception):  # what is left is removed by the next process
        database.close()
        rocksdict.Rdict.destroy(path, rocksdict.Options(raw_mode=True))
