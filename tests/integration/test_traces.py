"""Spans of a real worker, at a collector of the test's."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.integration.harness import transactions

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_spans_reach_a_collector_and_none_is_waited_for(make_world):
    """A worker tells a real one of what is sampled; where it is gone, scores come and it ends."""
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1/traces"
    world = make_world(traces={"endpoint": url})
    await world.create_topics()
    worker = await world.start().ready()
    some = transactions(6, seed=41)
    await world.transact(some[:3], headers=[("traceparent", TRACE)])
    await world.scored([t["transaction_id"] for t in some[:3]])
    assert 0 == await worker.stop()
    raw = [gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body for body in bodies]
    assert 6 <= sum(body.count(b"weir stage") for body in raw), "two stages of three transactions"
    server.shutdown()
    server.server_close()
    worker = await world.start().ready()
    await world.transact(some[3:], headers=[("traceparent", TRACE)])
    await world.scored([t["transaction_id"] for t in some[3:]])
    assert 0 == await worker.stop(deadline_s=20.0)
