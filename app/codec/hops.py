"""Transactions on their way from one stage to the next, in columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from app.codec.values import Decoded, own
from app.core.scoring import Batch
from app.errors import Malformed
from app.records import Hops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.codec.values import Refusal
    from app.core.features import FeaturePlan
    from app.records import Record

_hops = msgspec.msgpack.Decoder(Hops).decode
_pack = msgspec.msgpack.Encoder().encode


class HopCodec:
    """Transactions on their way to the stage of the ``index``-th entity, in columns."""

    def __init__(self, plan: FeaturePlan, index: int, n_segments: int = 0) -> None:
        """Know which features are filled by then."""
        self._schema, self._n_features = plan.schema, len(plan.names)
        self._columns = plan.filled(index)
        self._shape = (len(plan.windows), n_segments)

    def write(self, batch: Batch) -> bytes:
        """A batch, for the next stage."""
        whole = (batch.times_ms, batch.partitions, batch.offsets, batch.published_ms)
        return _pack(
            Hops(
                self._schema,
                batch.ids,
                batch.keys,
                batch.segments,
                batch.traces if any(batch.traces) else [],
                np.concatenate(whole).astype("<i8").tobytes(),
                batch.amounts.astype("<f8").tobytes(),
                batch.rows[:, self._columns].astype("<f8").tobytes(),
            )
        )

    def read(self, records: Sequence[Record]) -> Decoded[Batch]:
        """Transactions that the stage before sent on; each with the record that it came in."""
        good: list[Batch] = []
        whose: list[Record] = []
        refused: list[Refusal] = []
        for record in records:
            try:
                good.append(self._read(record))
                whose += [record] * len(good[-1])
            except Malformed as error:
                refused.append((record, error))
        return Decoded(Batch.joined(good) if good else self._empty(), whose, refused)

    def _read(self, record: Record) -> Batch:
        hops = own(_hops, record)
        if hops.schema != self._schema:
            text = f"{self._schema}: the configuration changed on the way"
            raise Malformed("schema", hops.schema, text)
        n = len(hops.ids)
        lists = [*hops.keys, *hops.segments, hops.traces or hops.ids]
        packed = (len(hops.whole), len(hops.amounts), len(hops.rows))
        if (
            not n
            or (len(hops.keys), len(hops.segments)) != self._shape
            or any(len(column) != n for column in lists)
            or packed != (32 * n, 8 * n, 8 * n * len(self._columns))
        ):
            raise Malformed("value", f"columns of {packed} bytes", f"those of {n} transactions")
        whole = np.frombuffer(hops.whole, "<i8").astype(np.int64)
        times, partitions, offsets, published = whole.reshape(4, n)
        rows = np.zeros((n, self._n_features))
        rows[:, self._columns] = np.frombuffer(hops.rows, "<f8").reshape(n, -1)
        return Batch(
            ids=hops.ids,
            times_ms=times,
            amounts=np.frombuffer(hops.amounts, "<f8").astype(np.float64),
            keys=hops.keys,
            rows=rows,
            partitions=partitions,
            offsets=offsets,
            published_ms=published,
            traces=hops.traces or [None] * n,
            segments=hops.segments,
        )

    def _empty(self) -> Batch:
        none, (n_keys, n_segments) = np.zeros(0, np.int64), self._shape
        rows = np.zeros((0, self._n_features))
        keys: list[list[str]] = [[] for _ in range(n_keys)]
        segments: list[list[str]] = [[] for _ in range(n_segments)]
        return Batch([], none, np.zeros(0), keys, rows, none, none, none, [], segments)
