"""Spans of what a sampled transaction goes through, by OpenTelemetry (extra ``traces``).

A transaction that brings a sampled W3C ``traceparent`` gets a span in each stage, for its score
and for its alert, each the child of the one before; what is sent on carries the newest. All others
cost one look at their flags, and where nothing is configured there is nothing here to look.
Spans are exported beside the loop, from a bounded queue: what does not fit is dropped.
"""

from __future__ import annotations

import time
from dataclasses import replace
from threading import Thread
from typing import TYPE_CHECKING, Final

from app import __version__
from app.codec import TRACE
from app.errors import Misconfigured

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanKind, get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:  # pragma: no cover - without the extra
    TracerProvider = None  # type: ignore[assignment, misc]

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import SpanProcessor

    from app.config import TraceSettings
    from app.core.scoring import Batch

#: Where the flags of a ``traceparent`` stand, and the one that says that it is sampled.
_FLAGS: Final = slice(53, 55)
_SAMPLED: Final = 1
#: A stop may take ten seconds; what is left of a queue is sent within three, or not at all.
CLOSE_S: Final = 3.0


class Spans:
    """Makes spans of one process."""

    def __init__(self, service: str, processor: SpanProcessor) -> None:
        """Make spans of a service, and hand them to ``processor``."""
        resource = Resource.create({"service.name": service, "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("weir", __version__)
        self._context = TraceContextTextMapPropagator()
        self.now_ns: Callable[[], int] = time.time_ns

    @classmethod
    def of(cls, told: TraceSettings) -> Spans | None:
        """What the configuration asks for; None: nothing. Raises Misconfigured."""
        if told.endpoint is None:
            return None
        if TracerProvider is None:
            expected = "the extra `traces`: pip install 'weir[traces]'"
            raise Misconfigured(f"traces.endpoint is {told.endpoint}; expected {expected}")
        return cls(told.service, BatchSpanProcessor(OTLPSpanExporter(told.endpoint)))

    def follow(self, name: str, batch: Batch, began_ns: int) -> Batch:
        """Tell of the sampled ones of a batch; return it with what is to be sent on with each."""
        if not any(batch.traces):
            return batch
        traces = [
            trace if trace is None else self.one(name, batch, i, began_ns)
            for i, trace in enumerate(batch.traces)
        ]
        return replace(batch, traces=traces)

    def one(self, name: str, batch: Batch, i: int, began_ns: int) -> bytes | None:
        """Tell of the i-th, as the child of what its trace names; return what names the child."""
        trace = batch.traces[i]
        if trace is None or not is_sampled(trace):
            return trace
        parent = self._context.extract({TRACE: trace.decode("ascii", "replace")})
        if not get_current_span(parent).get_span_context().is_valid:
            return trace
        at: dict[str, str | int] = {
            "messaging.system": "kafka",
            "messaging.destination.partition.id": str(batch.partitions[i]),
            "messaging.kafka.offset": int(batch.offsets[i]),
            "messaging.batch.message_count": len(batch),
        }
        kind = SpanKind.CONSUMER
        span = self._tracer.start_span(f"weir {name}", parent, kind, at, start_time=began_ns)
        span.end(self.now_ns())
        told = span.get_span_context()
        return f"00-{told.trace_id:032x}-{told.span_id:016x}-{told.trace_flags:02x}".encode()

    def close(self, limit_s: float = CLOSE_S) -> bool:
        """Export what is left, for as long as there is time; return whether all is gone."""
        # A daemon: where nobody answers the library waits for half a minute, and we do not.
        last = Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(limit_s)
        return not last.is_alive()


def is_sampled(trace: bytes) -> bool:
    """Whether a trace context asks to be recorded.

    >>> is_sampled(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    True
    """
    try:
        return bool(int(trace[_FLAGS], 16) & _SAMPLED)
    except ValueError:
        return False
