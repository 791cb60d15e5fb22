"""Traces: what a sampled transaction went through, and nothing of all others."""

from __future__ import annotations

import gzip
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.config import TraceSettings, load
from app.stages import EntityStage
from app.testing import Driver
from app.traces import Spans, is_sampled

SETTINGS = load(
    None,
    "card",
    model={"name": "logistic"},
    topics={"partitions": 2},
    policy={"threshold": 0.0},
)
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-"
SAMPLED, NOT_SAMPLED = f"{TRACE}01".encode(), f"{TRACE}00".encode()


def driven(*traces: bytes | None, spans: Spans | None = None) -> Driver:
    """A flow that has scored one transaction for each header."""
    driver = Driver(SETTINGS)
    for stage in driver.processes["worker-0"].flow.stages:
        if isinstance(stage, EntityStage):
            stage.spans = spans
    for i, trace in enumerate(traces):
        value = {"transaction_id": f"t{i}", "card_id": "c1", "terminal_id": "s1"}
        headers = () if trace is None else (("traceparent", trace),)
        told = {**value, "event_time": 1_767_225_600 + i, "amount": 5.0}
        driver.publish("transactions", told, headers=headers)
    driver.run()
    return driver


def recorded(*traces: bytes | None) -> tuple[Driver, list[ReadableSpan]]:
    """The flow, and its spans in the order in which they ended."""
    exporter = InMemorySpanExporter()
    driver = driven(*traces, spans=Spans("weir", SimpleSpanProcessor(exporter)))
    return driver, list(exporter.get_finished_spans())


def sent_on(driver: Driver, topic: str) -> dict[str, bytes | None]:
    """What each record of a topic carries on, by transaction."""
    records = driver.records(topic)
    return {(r.key or b"").decode(): dict(r.headers).get("traceparent") for r in records}


def context(span: ReadableSpan) -> str:
    """How a header names a span."""
    told = span.context
    assert told is not None
    return f"00-{told.trace_id:032x}-{told.span_id:016x}-01"


def test_sampled_transaction_has_a_span_for_each_step():
    """Each the child of the one before; what is published names the span that it is of."""
    driver, spans = recorded(None, SAMPLED)
    names = ["stage card_id", "stage terminal_id", "score", "alert"]
    assert [f"weir {name}" for name in names] == [span.name for span in spans]
    parents = [SAMPLED.decode(), *(context(span) for span in spans[:-1])]
    assert [int(one.split("-")[2], 16) for one in parents] == [
        span.parent and span.parent.span_id for span in spans
    ]
    assert {int(TRACE.split("-")[1], 16)} == {
        span.context and span.context.trace_id for span in spans
    }
    assert all((span.start_time or 0) <= (span.end_time or 0) for span in spans)
    assert 1 == dict(spans[0].attributes or {})["messaging.kafka.offset"]
    assert {"t0": None, "t1": context(spans[2]).encode()} == sent_on(driver, "scores")
    assert {"t0": None, "t1": context(spans[3]).encode()} == sent_on(driver, "alerts")


@pytest.mark.parametrize("trace", [NOT_SAMPLED, b"", b"x" * 60, b"00-0-0-01", b"\xff" * 55])
def test_what_is_not_sampled_is_carried_as_it_came(trace):
    """No span, and the same header where there was one to carry."""
    driver, spans = recorded(trace)
    assert [] == spans
    assert sent_on(driven(trace), "scores") == sent_on(driver, "scores")


def test_traces_change_no_score():
    """Only the header differs."""
    plain, (traced, _) = driven(SAMPLED, None, SAMPLED), recorded(SAMPLED, None, SAMPLED)
    for topic in ("scores", "alerts"):
        values = [[record.value for record in one.records(topic)] for one in (plain, traced)]
        assert values[0] == values[1]


def test_nothing_is_made_unless_it_is_asked_for():
    """Without an endpoint there is nothing that a record could cost."""
    assert Spans.of(TraceSettings()) is None
    assert not is_sampled(b"")


def test_spans_are_exported_to_the_endpoint():
    """OTLP over HTTP, by a real exporter, to a server that reads it; the last ones at the end."""
    bodies = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1/traces"
        spans = Spans.of(TraceSettings(endpoint=url, service="pay"))
        assert spans is not None
        driven(SAMPLED, spans=spans)
        assert spans.close(limit_s=20.0)
        server.shutdown()

    raw = [gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body for body in bodies]
    told = [ExportTraceServiceRequest.FromString(body) for body in raw]
    found = [s.name for t in told for r in t.resource_spans for c in r.scope_spans for s in c.spans]
    assert 4 == len(found)
    resource = told[0].resource_spans[0].resource.attributes
    assert "pay" in {one.value.string_value for one in resource if one.key == "service.name"}


def test_nobody_who_listens_keeps_no_process_from_ending():
    """What cannot be exported is let go."""
    spans = Spans.of(TraceSettings(endpoint=f"http://127.0.0.1:{free_port()}/v1/traces"))
    assert spans is not None
    driven(SAMPLED, spans=spans)
    assert not spans.close(limit_s=0.1)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
