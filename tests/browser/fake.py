"""A server that says what a test has told it to, where a worker could not be brought to say it.

Ten thousand alerts at once, a server that fails, no data at all: the page must stand all of them.
Everything that a worker can show is tested against a worker.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

CONSOLE = Path(__file__).resolve().parents[2] / "app" / "console"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".html": "text/html",
    ".svg": "image/svg+xml",
}
NOW_MS = 1_767_225_600_000  # 2026-01-01
MODEL = {"name": "champion", "position": 5_011, "digest": "ab12cd34ef56ab12cd34ef56"}


@dataclass
class Fake:
    """What it answers: a path and its JSON, or (status, problem); events go to all who listen."""

    answers: dict[str, Any] = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    posted: list[tuple[str, Any]] = field(default_factory=list)
    events: list[tuple[str, Any]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        """Status and body."""
        if path == "/v1/alerts" and path not in self.answers:
            return 200, self.page(query)
        found = self.answers.get(path, (404, {"title": "Not Found", "detail": f"no {path}"}))
        return found if isinstance(found, tuple) else (200, found)

    def page(self, query: dict[str, str]) -> dict[str, Any]:
        """A page of alerts, newest first or by score."""
        found = [a for a in self.alerts if query.get("state", a["state"]) == a["state"]]
        found = [a for a in found if a["score"] >= float(query.get("min_score", 0))]
        if query.get("order") == "score":
            found = sorted(found, key=lambda a: -a["score"])
        at, n = int(query.get("cursor", 0)), int(query.get("limit", 50))
        rest = str(at + n) if at + n < len(found) else None
        held = {"held": len(self.alerts), "held_max": 10_000}
        return {"items": found[at : at + n], "next": rest, "total": len(found), **held}


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    @property
    def fake(self) -> Fake:
        return self.server.fake

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        at = urlsplit(self.path)
        path, query = unquote(at.path), {k: v[0] for k, v in parse_qs(at.query).items()}
        if path == "/v1/events":
            self._events()
        elif path.startswith("/v1/"):
            self._json(*self.fake.answer(path, query))
        else:
            self._file("index.html" if path == "/" else path.removeprefix("/console/"))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"null")
        self.fake.posted.append((self.path, body))
        self._json(*self.fake.answer(self.path, {}))

    def _json(self, status: int, told: Any) -> None:
        self._send(status, json.dumps(told).encode(), "application/json")

    def _file(self, name: str) -> None:
        file = CONSOLE / name
        if file.is_file():
            self._send(200, file.read_bytes(), TYPES[file.suffix])
        else:
            self._send(404, b"", "text/plain")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        told = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-cache"}
        for name, value in {**told, "Content-Security-Policy": POLICY}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _events(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b'event: hello\ndata: {"id": 0, "missed": false}\n\n')
        at = 0
        while not self.fake.answers.get("closed"):
            for name, data in self.fake.events[at:]:
                self.wfile.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
            at = len(self.fake.events)
            self.wfile.write(b": alive\n\n")
            time.sleep(0.05)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        super().__init__(("127.0.0.1", fake.port), _Handler)

    def handle_error(self, *_: Any) -> None:
        """A browser that leaves is no error."""


@contextmanager
def served(fake: Fake) -> Iterator[Fake]:
    """Serve it on a free port."""
    server = _Server(fake)
    fake.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield fake
    finally:
        fake.answers["closed"] = True
        server.shutdown()
        server.server_close()


def alert(number: int, rng: random.Random, **more: Any) -> dict[str, Any]:
    """One alert as the API shows it."""
    value = round(rng.lognormvariate(4, 1), 2)
    return {
        "transaction_id": f"9f31c2ab-{number:08d}",
        "time_ms": NOW_MS - number * 40_000,
        "seen_ms": int(time.time() * 1_000) - number * 500,
        "cursor": str(number),
        "entities": {
            "card_id": f"card-{rng.randrange(5_000):06d}",
            "terminal_id": f"term-{rng.randrange(144):05d}",
        },
        "amount": value,
        "score": round(1 - rng.random() ** 2 / 2, 4),
        "policy": "score of at least 0.5",
        "reasons": [
            {"feature": "card_id_ratio_30d", "value": 7.21, "contribution": 2.1, "text": ""},
            {"feature": "terminal_id_frauds_15d", "value": 3.0, "contribution": 1.4, "text": ""},
            {"feature": "card_id_seen_90d", "value": 0.0, "contribution": 0.8, "text": ""},
            {"feature": "card_id_since_last_30d", "value": 240.0, "contribution": 0.5, "text": ""},
        ],
        "model": MODEL,
        "links": {},
        "repeats": 0,
        "segments": {},
        "state": "open",
        "labels": [],
        "source": {
            "topic": "transactions",
            "partition": 1,
            "offset": number,
            "published_ms": int(time.time() * 1_000) - 4_000,
        },
        **more,
    }


def summary(**more: Any) -> dict[str, Any]:
    """Figures of a worker that is well."""
    now = int(time.time() * 1_000)
    return {
        "worker": "",
        "time_ms": now,
        "started_ms": now - 600_000,
        "version": "0.1.0",
        "rate": 612.4,
        "n_scored": 120_345,
        "n_alerts": 97,
        "n_dead_letters": 3,
        "lag": 15,
        "latency_ms": {"p50": 12.1, "p95": 30.0, "p99": 41.7},
        "alerts": {
            "kind": "budget",
            "budget_per_day": 100.0,
            "threshold": 0.5,
            "per_day": 88.4,
            "rate": 0.004,
        },
        "quality": {
            "average_precision": 0.71,
            "roc_auc": 0.93,
            "brier": 0.01,
            "calibration_error": 0.012,
            "alert_precision": 0.62,
            "alert_recall": 0.55,
            "alert_precision_estimate": None,
            "card_precision": 0.31,
            "n_labelled": 5_012,
            "n_frauds": 44,
        },
        "model": MODEL,
        "n_learned": 5_012,
        "trust": 0.4,
        "pending": 1_200,
        "entities": {"card_id": 540, "terminal_id": 144},
        "health": {},
        "readiness": {},
        "broker": {"is_connected": True, "since_ms": now},
        "series": [
            [
                now - (300 - i) * 2_000,
                600 + 40 * random.Random(i).random(),
                random.Random(i).random(),
                20 + 15 * random.Random(-i).random(),
                10,
            ]
            for i in range(300)
        ],
        **more,
    }


def full(n_alerts: int = 300) -> Fake:
    """A server with something to show in every view."""
    rng = random.Random(7)
    fake = Fake(alerts=[alert(i, rng) for i in range(n_alerts)])
    day = 86_400_000
    of_day = {"n": 12_000, "n_frauds": 80, "n_alerts": 97, "average_precision": 0.6, "roc_auc": 0.9}
    history = [
        {
            "time_ms": NOW_MS - i * 7_000_000,
            "amount": round(rng.lognormvariate(3, 1), 2),
            "is_fraud": {0: None, 3: True}.get(i, i % 9 == 4),
        }
        for i in range(60)
    ]
    for one in fake.alerts:
        for kind, name in one["entities"].items():
            fake.answers[f"/v1/entities/{kind}/{name}"] = {
                "kind": kind,
                "name": name,
                "transactions": history,
            }
        fake.answers[f"/v1/transactions/{one['transaction_id']}/explain"] = explanation(one)
    fake.answers |= {
        "/v1/me": {"name": "", "role": "admin", "version": "0.1.0", "is_open": True},
        "/v1/metrics/summary": summary(),
        "/v1/labels": (202, {"will": "learn", "says": "the model learns it as fraud"}),
        "/v1/models": {
            "champion": MODEL,
            "versions": [
                {
                    "offset": i,
                    "written_ms": int(time.time() * 1_000) - i * 60_000,
                    "bytes": 900_000,
                    "position": 5_011 - i * 200,
                    "digest": f"{i:024x}",
                    "n_learned": 5_012 - i * 200,
                    "n_frauds": 44 - i,
                    "verifies": i != 7,
                    "reason": "signature" if i == 7 else None,
                    "average_precision": 0.7 - i / 100,
                    "in_use": i == 0,
                }
                for i in range(12)
            ],
            "days": [
                {
                    "start_ms": NOW_MS - (20 - i) * day,
                    **of_day,
                    "average_precision": 0.4 + 0.3 * i / 20 + rng.random() / 20,
                    "precision": 0.4 + 0.2 * i / 20 + rng.random() / 20,
                    "recall": 0.5,
                    "is_mature": i < 15,
                }
                for i in range(20)
            ],
            "intervals": {
                "alert_precision": {"value": 0.62, "low": 0.52, "high": 0.71},
                "alert_recall": {"value": 0.55, "low": 0.4, "high": 0.7},
            },
            "reliability": [
                {
                    "low": i / 10,
                    "high": (i + 1) / 10,
                    "n": 4_000 // (i + 1) ** 2,
                    "mean_score": i / 10 + 0.05,
                    "share_fraud": min(1, i / 10 + 0.04 + rng.random() / 20),
                }
                for i in range(10)
            ],
            "features": [
                {"feature": name, "mean_contribution": 2.0 / (i + 1)}
                for i, name in enumerate(
                    (
                        "amount_log1p",
                        "terminal_id_frauds_15d",
                        "card_id_ratio_30d",
                        "card_id_seen_90d",
                    )
                )
            ],
            "settings": {},
        },
        "/v1/drift": {
            "items": [
                {
                    "detector": "CUSUM",
                    "kind": "feature",
                    "subject": "amount_log1p",
                    "before": 3.1,
                    "after": 3.6,
                    "since_ms": NOW_MS - day,
                    "detected_ms": NOW_MS - day // 2,
                    "n_examples": 4_000,
                    "model": MODEL,
                    "seen_ms": NOW_MS,
                    "cursor": "1",
                    "incident": "drift-2-1",
                    "event": "opened",
                    "severity": "critical",
                    "ended": "",
                    "features": [
                        {
                            "name": "amount_log1p",
                            "aspect": "level",
                            "contribution": 0.8,
                            "change": 9.1,
                            "since_ms": NOW_MS - day,
                            "before": 3.1,
                            "after": 3.6,
                            "psi": 0.31,
                            "jensen_shannon": 0.2,
                            "kolmogorov_smirnov": 0.3,
                            "wasserstein": 0.5,
                            "bins": {
                                "edges": list(range(9)),
                                "before": [1, 4, 9, 14, 20, 14, 8, 4, 2, 1],
                                "after": [0, 1, 4, 8, 12, 18, 16, 9, 5, 2],
                            },
                        },
                        {
                            "name": "mean score",
                            "aspect": "score",
                            "contribution": 0.2,
                            "change": 5.0,
                            "since_ms": NOW_MS - day,
                            "bins": None,
                        },
                    ],
                    "samples": ["t1", "t2"],
                    "segments": [
                        {"segment": "country", "value": "DE", "share": 0.2, "of_change": 0.9}
                    ],
                    "action": "compare the source of amount_log1p with what it was",
                    "reaction": "nothing",
                    "model_before": MODEL,
                },
                {
                    "detector": "CUSUM",
                    "kind": "performance",
                    "subject": "rank of frauds",
                    "before": 2.1,
                    "after": 1.2,
                    "since_ms": NOW_MS - 3 * day,
                    "detected_ms": NOW_MS - 2 * day,
                    "n_examples": 3_000,
                    "model": MODEL,
                    "seen_ms": NOW_MS,
                    "cursor": "2",
                    "incident": "drift-1-1",
                    "event": "closed",
                    "severity": "critical",
                    "ended": "adopted",
                    "features": [],
                    "samples": [],
                    "segments": [],
                    "action": "look at missed frauds for a new pattern",
                    "reaction": "faster: pace 4",
                    "model_before": None,
                },
            ],
            "next": None,
        },
        "/v1/dead-letters": {
            "items": [letter(i) for i in range(40)],
            "next": None,
            "by_reason": [{"reason": "amount", "n": 20}, {"reason": "not JSON", "n": 20}],
        },
        **{
            f"/v1/dead-letters/{i}": {
                "letter": letter(i),
                "value": '{"transaction_id": "t1", "amount": "12,50"}',
                "is_text": True,
                "headers": {"stage": "card_id"},
            }
            for i in range(40)
        },
    }
    return fake


def letter(number: int) -> dict[str, Any]:
    """One dead letter."""
    return {
        "offset": number,
        "position": f"transactions[0]@{77 + number}",
        "topic": "transactions",
        "stage": "card_id",
        "reason": 'amount is "12,50"; expected a finite number >= 0'
        if number % 2
        else "not JSON: unexpected end of data",
        "key": "c1",
        "value_bytes": 120,
        "excerpt": "{",
        "seen_ms": int(time.time() * 1_000) - number * 90_000,
        "state": "open",
        "by": None,
        "can_retry": True,
        "cursor": str(number),
    }


def explanation(one: dict[str, Any]) -> dict[str, Any]:
    """Why it has its score."""
    more = [
        {
            "feature": f"terminal_id_count_{i}d",
            "value": float(i),
            "contribution": (-1) ** i / i,
            "text": "",
        }
        for i in range(1, 30)
    ]
    return {
        "transaction_id": one["transaction_id"],
        "score": one["score"],
        "is_alert": True,
        "policy": one["policy"],
        "model": MODEL,
        "scored_by": {**MODEL, "digest": "other", "position": 4_000},
        "bias": -4.1,
        "features": [*one["reasons"], *more],
        "note": "Found by changing one or two features at a time.",
        "changes": [
            {
                "changes": [{"feature": "amount_log1p", "from": 6.8, "to": 4.1}],
                "score": 0.31,
                "is_alert": False,
            }
        ],
        "searched": ["amount_log1p"],
    }
