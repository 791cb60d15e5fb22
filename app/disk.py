"""Entities and the join on disk, by RocksDB.

**Entities** (``Disk``): a second tier for what memory has no room for. The changelog is the state,
here as without a disk. What lies on the disk is a part of a process's memory that it has put
elsewhere: nothing is read that another process wrote. A process that starts begins with an empty
folder and fills it while it restores; so nothing on the disk can be older or newer than the log
says, whatever the last process died of.

**The join** (``Books``): scored transactions that wait, with the position up to which the disk has
them, which outlive the process. What a crash of the machine tears off is the end: RocksDB's own log
brings back what was whole, in order.

Memory is bounded by ``cache_bytes`` for blocks, indexes and filters, and half as much again for
writes under way, for all partitions of a stage.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import weakref
from typing import TYPE_CHECKING, Any, Final

import structlog

from app.config import make_folder
from app.core.order import TABLES
from app.errors import Misconfigured, Refused

try:
    import rocksdict
except ImportError:  # the extra "disk" is not installed
    rocksdict = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from app.core.order import Drop, Put

#: 10 bits a key: one in a hundred of what is not there is looked for in vain.
_BLOOM_BITS: Final = 10
#: 4 KiB: a few entities; a lookup reads one.
_BLOCK_BYTES: Final = 4_096

#: 16 KiB: a dozen scores, which are read in the order in which they came, compress best together.
_SCORES_BYTES: Final = 16_384
#: 64 MiB are read again, at most, when a folder is opened.
_LOG_BYTES: Final = 67_108_864
#: A folder for each process of a machine that has the same partition, one after another.
_FOLDERS: Final = 64
#: What an error is about, by its words: the machine, of which the folder is not to blame.
_MACHINE: Final = (
    "No space",
    "ermission denied",
    "Input/output",
    "Too many open",
    "Read-only file",
)
#: A folder of which something could not be read has this file.
_SPOILED: Final = "SPOILED"

log = structlog.get_logger(__name__)
_numbers = itertools.count()


class Disk:
    """A folder for the stores of one stage, and the memory that they share."""

    def __init__(self, folder: Path, cache_bytes: int) -> None:
        """Make the folder; remove what processes that ended have left in it.

        Raises Misconfigured where it cannot be made, or the extra is missing.
        """
        _make("entity.disk", folder)
        self._folder = folder
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
        compression = rocksdict.DBCompressionType.lz4()
        return _options(self._cache, self._writes, _BLOCK_BYTES, compression)


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


class Books:
    """A folder for the joins of one stage, and the memory that they share."""

    def __init__(self, folder: Path, cache_bytes: int) -> None:
        """Make the folder. Raises Misconfigured where it or the extra is missing."""
        _make("join.disk", folder)
        self._folder = folder
        self._cache = rocksdict.Cache(cache_bytes)
        self._writes = rocksdict.WriteBufferManager(cache_bytes // 2, False)

    def open(self, name: str) -> Book:
        """The first place of a name that nobody uses. Raises Refused where the machine fails.

        Another process of this machine may still have the partition, if only in its sleep: then
        the next place serves, which may be older.
        """
        for number in range(_FOLDERS):
            with contextlib.suppress(_InUse):
                return Book(self._folder / f"{name}.{number}", self._all_options())
        msg = f"join.disk: {_FOLDERS} places of {name} in {self._folder} are in use; expected fewer"
        raise Refused(msg)

    def _all_options(self) -> dict[str, Any]:
        lz4, zstd = rocksdict.DBCompressionType.lz4(), rocksdict.DBCompressionType.zstd()
        return {
            table: _options(
                self._cache,
                self._writes,
                _SCORES_BYTES if table == "scores" else _BLOCK_BYTES,
                zstd if table == "scores" else lz4,
                has_filter=table == "known",
            )
            for table in (*TABLES, "default")
        }


class _InUse(Exception):
    """Another process has a folder."""


class Book:
    """What the join of one partition has on disk (``core.order.Tables``)."""

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        """Open a folder, or make it; what cannot be read is told and removed."""
        self.path, self._options = path, options
        self._tables: dict[str, Any] = {}
        spoiled = path / _SPOILED
        if spoiled.exists():
            self._begin_anew(spoiled.read_text(encoding="utf-8"))
            return
        try:
            self._open()
        except Exception as error:
            if any(words in str(error) for words in _MACHINE):
                raise Refused(self._told(error)) from error
            if "LOCK" in str(error):
                raise _InUse from None
            self._begin_anew(str(error))

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key."""
        with self._trouble():
            found: Any = self._tables[table].get(list(keys))
        return list(found)

    def scan(self, table: str, start: bytes, n: int) -> list[bytes]:
        """The first ``n`` keys from ``start`` on."""
        with self._trouble():
            found: Any = itertools.islice(self._tables[table].keys(from_key=start), n)
            return list(found)

    def write(self, puts: Iterable[Put], drops: Iterable[Drop]) -> None:
        """Do all of it or nothing."""
        batch, at = rocksdict.WriteBatch(raw_mode=True), self._handles
        for table, key in drops:
            batch.delete(key, at[table])
        for table, key, value in puts:
            batch.put(key, value, at[table])
        with self._trouble():
            self._database.write(batch)

    def clear(self) -> None:
        """Drop everything."""
        self.close()
        self._begin_anew("")

    def close(self) -> None:
        """Let another have the folder."""
        self._handles.clear()
        for table in self._tables.values():
            table.close()
        self._tables.clear()
        self._database.close()

    def _open(self) -> None:
        options = dict(self._options)
        self._database = rocksdict.Rdict(str(self.path), options.pop("default"), options)
        self._tables = {name: self._database.get_column_family(name) for name in TABLES}
        self._handles = {name: self._database.get_column_family_handle(name) for name in TABLES}

    def _begin_anew(self, reason: str) -> None:
        if reason:
            log.warning("join_disk_removed", folder=str(self.path), reason=reason)
        shutil.rmtree(self.path, ignore_errors=True)
        with self._trouble():
            self._open()

    @contextlib.contextmanager
    def _trouble(self) -> Iterator[None]:
        """Say what failed. A folder that is to blame is marked, and removed by the next process."""
        try:
            yield
        except Exception as error:
            is_closed = not self._tables  # the partition is another's by now
            if not is_closed and not any(words in str(error) for words in _MACHINE):
                with contextlib.suppress(OSError):
                    (self.path / _SPOILED).write_text(str(error), encoding="utf-8")
            raise Refused(self._told(error)) from error

    def _told(self, error: Exception) -> str:
        return f"join.disk: {self.path}: {error}; expected a folder that can be read and written"


def _make(setting: str, folder: Path) -> None:
    """Make a folder. Raises Misconfigured where that, or the extra, is not to be had."""
    if rocksdict is None:
        msg = f"{setting} needs the extra `disk`; expected: pip install 'weir[disk]'"
        raise Misconfigured(msg)
    make_folder(folder, setting)


def _options(
    cache: Any, writes: Any, block_bytes: int, compression: Any, *, has_filter: bool = True
) -> Any:
    blocks = rocksdict.BlockBasedOptions()
    blocks.set_block_cache(cache)
    blocks.set_block_size(block_bytes)
    if has_filter:
        blocks.set_bloom_filter(_BLOOM_BITS, False)
    blocks.set_cache_index_and_filter_blocks(True)
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_manager(writes)
    options.set_compression_type(compression)
    options.set_max_open_files(256)
    options.set_max_total_wal_size(_LOG_BYTES)
    options.set_keep_log_file_num(1)
    return options


def _gone(database: Any, path: str) -> None:
    with contextlib.suppress(Exception):  # what is left is removed by the next process
        database.close()
        rocksdict.Rdict.destroy(path, rocksdict.Options(raw_mode=True))
