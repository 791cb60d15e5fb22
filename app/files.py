"""Files of transactions as columns, in the order of event time.

Parquet, CSV and JSON lines, by what the name ends in. A file holds one transaction a row, with
the fields that the configuration declares; its label may stand beside it. Other columns are
ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, json, parquet

from app.errors import Refused, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from app.config import Settings

#: What a label column says of a row that has none.
UNLABELLED: Final = -1
SUFFIXES: Final = (".parquet", ".csv", ".jsonl", ".ndjson", ".json")
#: As in the codec: below, a number counts seconds, from here on milliseconds.
SECONDS_MAX: Final = 1e11


@dataclass(frozen=True)
class Columns:
    """Transactions in event-time order, one a row of the file, and their labels.

    ``keys`` has a column for each entity, in the order of the declaration. A number that is
    missing is NaN, a category None, a label ``UNLABELLED``; amounts are zeros where none is
    declared.
    """

    ids: list[str]
    times_ms: NDArray[np.int64]
    amounts: NDArray[np.float64]
    keys: list[list[str]]
    numbers: dict[str, NDArray[np.float64]]  # by field, the amount among them
    categories: dict[str, list[str | None]]
    labels: NDArray[np.int8]  # 1 fraud, 0 legitimate, -1 none

    def __len__(self) -> int:
        """How many transactions."""
        return len(self.ids)

    def part(self, at: slice) -> Columns:
        """Some of the transactions, one after another."""
        return Columns(
            ids=self.ids[at],
            times_ms=self.times_ms[at],
            amounts=self.amounts[at],
            keys=[column[at] for column in self.keys],
            numbers={name: column[at] for name, column in self.numbers.items()},
            categories={name: column[at] for name, column in self.categories.items()},
            labels=self.labels[at],
        )

    def between(self, start_ms: int | None, stop_ms: int | None) -> Columns:
        """The transactions of a period; its end is not included, None is no bound."""
        start = 0 if start_ms is None else int(np.searchsorted(self.times_ms, start_ms))
        stop = len(self) if stop_ms is None else int(np.searchsorted(self.times_ms, stop_ms))
        return self.part(slice(start, stop))


def due_order(times_ms: NDArray[np.int64], due_ms: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Transactions and labels as one stream, in event-time order, shape (2 n,).

    ``times_ms`` ascends, shape (n,). ``due_ms`` says when each label is known, shape (n,), or,
    one number, how long after its transaction. In the result i < n stands for transaction i,
    n + i for its label. A label that is due goes before a transaction of the same time, but
    never before its own.

    >>> due_order(np.array([0, 10, 20]), 10).tolist()
    [0, 3, 1, 4, 2, 5]
    >>> due_order(np.array([0, 10]), 0).tolist()
    [0, 2, 1, 3]
    """
    n = len(times_ms)
    rows = np.arange(n, dtype=np.int64)
    due = times_ms + due_ms if isinstance(due_ms, int) else due_ms
    after = np.maximum(np.searchsorted(times_ms, due, side="left"), rows + 1)
    # The place of a label is before transaction number ``after``; there, the sooner due first.
    place = np.concatenate([rows, after])
    is_transaction = np.concatenate([np.ones(n, np.int8), np.zeros(n, np.int8)])
    return np.lexsort((np.concatenate([rows, due]), is_transaction, place)).astype(np.int64)


def read_columns(path: Path, settings: Settings) -> Columns:
    """The transactions of a file, sorted by event time (those of one time as in the file).

    Labels are read where the file has the declared column. Raises Refused for a file or a
    column that is not there, and for a value that cannot be read, with its row.
    """
    of = settings.transaction
    declared = {of.id, of.time, *of.entities, *_numbers(settings), *of.categories}
    wanted = declared | {settings.label.value}
    table = _read(path, wanted, {of.id, *of.entities, *of.categories})
    _refuse_missing(path, table.column_names, settings)
    column = _Table(path, table, frozenset(of.optional))
    times = column.times(of.time, of.time_unit)
    if np.any(np.diff(times) < 0):
        order = np.argsort(times, kind="stable")
        column = _Table(path, table.take(pa.array(order)), column.optional)
        times = times[order]
    return _columns(column, times, settings)


def _columns(column: _Table, times: NDArray[np.int64], settings: Settings) -> Columns:
    of, numbers = settings.transaction, _numbers(settings)
    columns = {name: column.numbers(name) for name in numbers}
    return Columns(
        ids=column.texts(of.id),
        times_ms=times,
        amounts=columns[of.amount] if of.amount else np.zeros(len(times)),
        keys=[column.texts(name) for name in of.entities],
        numbers=columns,
        categories={name: column.categories(name) for name in of.categories},
        labels=column.labels(settings.label.value),
    )


def _numbers(settings: Settings) -> list[str]:
    of = settings.transaction
    return [*of.numbers, *([of.amount] if of.amount else [])]


def _refuse_missing(path: Path, held: Sequence[str], settings: Settings) -> set[str]:
    """The columns to read; raises Refused where one is missing that must be there."""
    of = settings.transaction
    declared = [of.id, of.time, *of.entities, *_numbers(settings), *of.categories]
    missing = [name for name in declared if name not in held]
    if gone := [name for name in missing if name not in of.optional]:
        declaration = f"expected what the configuration declares: {', '.join(declared)}"
        raise Refused(f"{path} has no column {gone[0]!r}; {declaration}")
    return {*declared, settings.label.value}


def read_batches(path: Path, settings: Settings, rows_max: int = 65_536) -> Iterator[Columns]:
    """The transactions of a file in event-time order, some at a time.

    Of a file that lies in that order only these are in memory; another is read whole and sorted,
    and so is CSV or JSON whose first megabyte does not tell the types of its columns. Raises
    Refused as ``read_columns`` does.
    """
    of = settings.transaction
    if not _ascends(path, settings, rows_max):
        whole = read_columns(path, settings)
        for start in range(0, len(whole), rows_max):
            yield whole.part(slice(start, start + rows_max))
        return
    first = 0
    for table in _parts(path, settings, None, rows_max):
        column = _Table(path, table, frozenset(of.optional), first)
        yield _columns(column, column.times(of.time, of.time_unit), settings)
        first += len(table)


def _ascends(path: Path, settings: Settings, rows_max: int) -> bool:
    """Whether the rows of a file lie in the order of their time, and can be read in parts."""
    of, last = settings.transaction, np.iinfo(np.int64).min
    try:
        for table in _parts(path, settings, of.time, rows_max):
            times = _Table(path, table, frozenset()).times(of.time, of.time_unit)
            if len(times) and (times[0] < last or np.any(np.diff(times) < 0)):
                return False
            last = times[-1] if len(times) else last
    except Refused:
        return False  # read whole it may be right; if not, what is wrong is said better there
    return True


def _parts(path: Path, settings: Settings, only: str | None, rows_max: int) -> Iterator[pa.Table]:
    """A file's columns, all that are declared or one, some rows at a time."""
    of = settings.transaction
    _refuse_unreadable(path)
    try:
        if path.suffix == ".parquet":
            with parquet.ParquetFile(path) as file:
                held = file.schema_arrow.names
                wanted = {only} if only else _refuse_missing(path, held, settings)
                _refuse_missing(path, held, settings)
                chosen = [name for name in held if name in wanted]
                for batch in file.iter_batches(rows_max, columns=chosen):
                    yield pa.Table.from_batches([batch])
            return
        if path.suffix == ".csv":
            # Types are told, not guessed from the first rows; ids keep their leading zeros.
            types = dict.fromkeys((of.id, *of.entities, *of.categories), pa.string())
            types |= dict.fromkeys(_numbers(settings), pa.float64())
            reader = csv.open_csv(path, convert_options=csv.ConvertOptions(column_types=types))
        else:
            reader = json.open_json(path)
        with reader:
            wanted = _refuse_missing(path, reader.schema.names, settings)
            chosen = [n for n in reader.schema.names if n in ({only} if only else wanted)]
            for batch in reader:
                table = pa.Table.from_batches([batch]).select(chosen)
                for start in range(0, len(table), rows_max):
                    yield table.slice(start, rows_max)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror or error}; expected a file to read") from None
    except pa.ArrowException as error:
        raise Refused(f"{path} is not what its name says: {error}") from None


def count_rows(path: Path) -> int | None:
    """How many transactions a file holds, where it says so: Parquet does. Raises Refused."""
    _refuse_unreadable(path)
    if path.suffix != ".parquet":
        return None
    try:
        return int(parquet.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise Refused(f"{path} is not what its name says: {error}") from None


@dataclass(frozen=True)
class LabelColumns:
    """Labels in the order of their time: what was known of which transaction, and when."""

    ids: list[str]
    times_ms: NDArray[np.int64]
    is_fraud: NDArray[np.bool_]


def read_labels(path: Path, settings: Settings) -> LabelColumns:
    """A file of labels as ``[label]`` declares them: transaction, value, time. Raises Refused."""
    of = settings.label
    declared = [of.transaction_id, of.value, of.time]
    table = _read(path, set(declared), {of.transaction_id})
    if gone := [name for name in declared if name not in table.column_names]:
        expected = f"expected what [label] declares: {', '.join(declared)}"
        raise Refused(f"{path} has no column {gone[0]!r}; {expected}")
    column = _Table(path, table, frozenset())
    times, values = column.times(of.time, "auto"), column.labels(of.value)
    if np.any(values == UNLABELLED):
        at = int(np.argmax(values == UNLABELLED))
        raise Refused(f"{path}: row {at}: {of.value} is null; expected 0, 1, true or false")
    order = np.argsort(times, kind="stable")
    ids = column.texts(of.transaction_id)
    return LabelColumns([ids[i] for i in order], times[order], values[order] == 1)


class RowWriter:
    """Writes columns to a file, some rows at a time, in the format its name ends in.

    What is written stands under its name only once all of it does: ``with RowWriter(path) as
    write: write({"id": ["a"]})``. Raises Refused where nothing can be written.
    """

    def __init__(self, path: Path) -> None:
        """Say where; nothing is written yet."""
        _refuse_suffix(path)
        self.path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._open: Any = None

    def __enter__(self) -> Callable[[Mapping[str, pa.Array]], None]:
        """Give the function that writes."""
        return self._write

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Close the file, and give it its name if all went well."""
        try:
            if self._open is not None:
                self._open.close()
            if kind is None and self._open is not None:
                self._partial.replace(self.path)
        except OSError as error:
            raise self._refused(error) from None
        finally:
            self._partial.unlink(missing_ok=True)

    def _write(self, columns: Mapping[str, pa.Array]) -> None:
        table = pa.table(dict(columns))
        try:
            if self._open is None:
                self._open = self._begin(table.schema)
            if self.path.suffix in {".parquet", ".csv"}:
                self._open.write_table(table)
            else:
                for row in table.to_pylist():
                    self._open.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            raise self._refused(error) from None

    def _begin(self, schema: pa.Schema) -> Any:
        match self.path.suffix:
            case ".parquet":
                return parquet.ParquetWriter(self._partial, schema)
            case ".csv":
                return csv.CSVWriter(self._partial, schema)
            case _:
                return self._partial.open("wb")

    def _refused(self, error: OSError) -> Refused:
        return Refused(f"{self.path}: {error.strerror or error}; expected a file to write")


def write_rows(path: Path, columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> None:
    """Write columns of equal length to a file, in the format its name ends in. Raises Refused."""
    _refuse_suffix(path)
    table = pa.table({name: pa.array(column) for name, column in columns.items()})
    try:
        match path.suffix:
            case ".parquet":
                parquet.write_table(table, path)
            case ".csv":
                csv.write_csv(table, path)
            case _:
                rows = (
                    orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in table.to_pylist()
                )
                path.write_bytes(b"".join(rows))
    except OSError as error:
        raise Refused(f"{path}: {error.strerror or error}; expected a file to write") from None


def _refuse_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        expected = ", ".join(SUFFIXES)
        raise Refused(f"{path} ends in {path.suffix!r}; expected one of: {expected}")


def _refuse_unreadable(path: Path) -> None:
    _refuse_suffix(path)
    if not path.is_file():
        raise Refused(f"{path} is not there; expected a file to read")


def _read(path: Path, wanted: set[str], texts: set[str]) -> pa.Table:
    _refuse_unreadable(path)
    try:
        match path.suffix:
            case ".parquet":
                held = parquet.read_schema(path).names
                return parquet.read_table(path, columns=[n for n in held if n in wanted] or None)
            case ".csv":
                # Read as text, so that an id keeps its leading zeros.
                types = dict.fromkeys(texts, pa.string())
                return csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=types))
            case _:
                return json.read_json(path)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror or error}; expected a file to read") from None
    except pa.ArrowException as error:
        raise Refused(f"{path} is not what its name says: {error}") from None


@dataclass(frozen=True)
class _Table:
    """Columns of one file by the name of their field, with errors that name the row."""

    path: Path
    table: pa.Table
    optional: frozenset[str]
    first: int = 0  # row of the file that the table begins with

    def _column(self, name: str) -> pa.Array:
        chunked = self.table[name]
        if pa.types.is_dictionary(chunked.type):
            chunked = chunked.cast(chunked.type.value_type)
        return chunked.combine_chunks()

    def _fail(self, name: str, at: int, value: Any, expected: str) -> Refused:
        where = f"{self.path}: row {self.first + at}: {name}"
        return Refused(f"{where} is {shown(value)}; expected {expected}")

    def _first_unlike(self, name: str, column: pa.Array, expected: str) -> Refused:
        for at, value in enumerate(column.to_pylist()):
            try:
                float(0 if value is None else value)
            except (TypeError, ValueError):
                return self._fail(name, at, value, expected)
        return self._fail(name, 0, f"of type {column.type}", expected)

    def _whole(self, name: str) -> pa.Array:
        column = self._column(name)
        if column.null_count:
            at = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            raise self._fail(name, at, None, "a value")
        return column

    def texts(self, name: str) -> list[str]:
        """A column of ids; equal ones are one string in memory."""
        column = self._whole(name)
        if pa.types.is_floating(column.type):
            column = _unfloated(column)
        encoded = column.cast(pa.string()).dictionary_encode()
        values = encoded.dictionary.to_pylist()
        return [values[code] for code in encoded.indices.to_pylist()]

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column of numbers, NaN where one is missing. It may be missing if it is optional."""
        if name not in self.table.column_names:
            return np.full(len(self.table), np.nan)
        column = self._column(name)
        try:
            cast = column.cast(pa.float64(), safe=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise self._first_unlike(name, column, "a number") from None
        values: NDArray[np.float64] = np.array(cast.to_numpy(zero_copy_only=False), np.float64)
        bad = np.isinf(values) if name in self.optional else ~np.isfinite(values)
        if bad.any():
            at = int(np.argmax(bad))
            raise self._fail(name, at, column[at].as_py(), "a finite number")
        return values

    def categories(self, name: str) -> list[str | None]:
        """A column of categories, None where one is missing."""
        if name not in self.table.column_names:
            return [None] * len(self.table)
        column = self._column(name) if name in self.optional else self._whole(name)
        if pa.types.is_floating(column.type):
            column = _unfloated(column)
        # str of a bool is "True", as the codec has it; Arrow would write "true".
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        values = column.to_pylist()
        return values if is_text else [None if v is None else str(v) for v in values]

    def labels(self, name: str) -> NDArray[np.int8]:
        """A column of labels; all unlabelled where the file has none."""
        if name not in self.table.column_names:
            return np.full(len(self.table), UNLABELLED, np.int8)
        column = self._column(name)
        try:
            cast = column.cast(pa.float64() if pa.types.is_floating(column.type) else pa.int64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise self._first_unlike(name, column, "0, 1, true or false") from None
        values = np.array(cast.to_numpy(zero_copy_only=False), np.float64)
        bad = ~(np.isnan(values) | (values == 0.0) | (values == 1.0))
        if bad.any():
            at = int(np.argmax(bad))
            raise self._fail(name, at, column[at].as_py(), "0, 1, true or false")
        labels: NDArray[np.int8] = np.where(np.isnan(values), UNLABELLED, values).astype(np.int8)
        return labels

    def times(self, name: str, unit: str) -> NDArray[np.int64]:
        """A column of times as epoch milliseconds; a time without a zone is UTC."""
        column = self._whole(name)
        kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return self._parsed(name, column)
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            exact = column.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False)
            us = exact.cast(pa.int64()).to_numpy(zero_copy_only=False)
            # Floor division: also right before 1970.
            return np.asarray((us + 500) // 1_000, np.int64)
        values = self.numbers(name)
        seconds = np.abs(values) < SECONDS_MAX if unit == "auto" else unit == "s"
        return np.rint(np.where(seconds, values * 1_000.0, values)).astype(np.int64)

    def _parsed(self, name: str, column: pa.Array) -> NDArray[np.int64]:
        for zone in (None, "UTC"):
            try:
                us = column.cast(pa.timestamp("us", zone)).cast(pa.int64())
            except pa.ArrowInvalid:
                continue
            return np.asarray((us.to_numpy(zero_copy_only=False) + 500) // 1_000, np.int64)
        times = np.empty(len(column), np.int64)
        for at, text in enumerate(column.to_pylist()):
            try:
                time = datetime.fromisoformat(text)
            except ValueError:
                raise self._fail(name, at, text, "an ISO 8601 time") from None
            aware = time if time.tzinfo else time.replace(tzinfo=UTC)
            times[at] = round(aware.timestamp() * 1_000)
        return times


def _unfloated(column: pa.Array) -> pa.Array:
    """Whole numbers that a missing value made floats, as whole numbers again."""
    whole = pc.all(pc.equal(column, pc.round(column))).as_py()
    return column.cast(pa.int64()) if whole else column
