"""Labels of the declared schema."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from app.codec.times import time_ms_of
from app.codec.values import ID_MAX, ValueReader, id_of
from app.core.early import Label
from app.core.pending import MATURITY
from app.errors import Malformed

if TYPE_CHECKING:
    from app.config import LabelSettings
    from app.records import Record


class LabelReader:
    """Labels of the declared schema."""

    def __init__(self, settings: LabelSettings, ahead_ms: int = 86_400_000) -> None:
        """Compile the declared schema; ``ahead_ms``: how far a label may be ahead of its record."""
        self._of, self._ahead_ms = settings, ahead_ms
        fields: dict[str, Any] = {
            settings.transaction_id: str | int,
            settings.value: bool | int,
            settings.time: datetime | int | float,
        }
        if settings.source:
            fields[settings.source] = str
        optional = [settings.source] if settings.source else []
        self._reader = ValueReader(fields, optional, refuse_unknown=True, limit=65_536)

    def read(self, record: Record) -> Label:
        """One label. Raises Malformed."""
        of = self._of
        told, value, at, *source = self._reader.read(record.value)
        transaction_id = id_of(of.transaction_id, told)
        if value not in (0, 1):
            raise Malformed(of.value, value, "true, false, 1 or 0")
        if record.key != transaction_id.encode():
            key = None if record.key is None else record.key.decode("utf-8", "replace")
            raise Malformed("key", key, f"the transaction id, {transaction_id!r}")
        named = next(filter(None, source), "unknown")
        if named == MATURITY or len(named) > ID_MAX:
            expected = f'up to {ID_MAX} characters, and not "{MATURITY}", weir\'s own word'
            raise Malformed(of.source or "source", named, expected)
        try:
            time = time_ms_of(at, "auto")
        except OverflowError:
            time = -1
        if not 0 <= time <= record.timestamp_ms + self._ahead_ms:
            shown = at.isoformat() if isinstance(at, datetime) else at
            ahead = f"{self._ahead_ms // 1000} s after it was published"
            raise Malformed(of.time, shown, f"a time from 1970 to {ahead}")
        return Label(transaction_id, bool(value), time, named, record)
