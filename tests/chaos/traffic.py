"""What is published: transactions, and labels late, early, twice, corrected, of nobody, broken.

All from a seed; the pace alone is the wall clock's. Event time goes on by half a second a
transaction, so that at a few hundred a second minutes of it pass within one of ours: transactions
mature while the world is being broken.
"""

from __future__ import annotations

import heapq
import json
import random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.topics import partition_of
from tests.chaos.checker import FLUSH

if TYPE_CHECKING:
    from app.config import Settings

STEP_MS: Final = 500
START_MS: Final = 1_767_225_600_000  # 2026-01-01
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS

#: How the world is set: an hour until maturity is half a minute of traffic; a label waits longer
#: for its transaction than any fault lasts.
TABLES: Final[dict[str, dict[str, Any]]] = {
    "join": {"maturity": "1h", "forget": "6h", "early": "12h"},
    "model": {"name": "logistic"},
    "policy": {"threshold": 0.1, "explore": 0.02},
    "learner": {"in_worker": False, "snapshot_every": 200, "snapshot_interval": "1s"},
}

#: Shares of transactions whose label ...
LABELLED: Final = 0.7
EARLY: Final = 0.08  # ... comes before them
TWICE: Final = 0.08
CORRECTED: Final = 0.05
OF_NOBODY: Final = 0.02  # labels beside them, of a transaction that never comes
BROKEN: Final = 0.01  # records beside them that cannot be read


class Input(NamedTuple):
    """One record to be published; ``role`` is "transactions" or "labels"."""

    role: str
    key: bytes | None
    value: bytes | None


class Traffic:
    """An endless stream; equal seeds give equal streams."""

    def __init__(self, seed: int, n_cards: int = 400, n_terminals: int = 80) -> None:
        """Begin with the first transaction."""
        self.rng = random.Random(seed)
        self.n_cards, self.n_terminals = n_cards, n_terminals
        self.n = 0
        self.n_flush = 0
        self._due: list[tuple[int, int, Input]] = []
        self._n_due = 0

    def take(self, n: int) -> list[Input]:
        """The next ``n`` transactions, with the labels that are due meanwhile."""
        found: list[Input] = []
        for _ in range(n):
            found += self._one()
            while self._due and self._due[0][0] <= self.n:
                found.append(heapq.heappop(self._due)[2])
        return found

    def rest(self) -> list[Input]:
        """Labels that are not yet due."""
        rest = [one for _, _, one in sorted(self._due, key=lambda due: due[:2])]
        self._due.clear()
        return rest

    def flush(self, settings: Settings) -> list[Input]:
        """A transaction of two days later for each partition of the join: its clock goes on."""
        found: dict[int, Input] = {}
        partitions = settings.topics.partitions
        while len(found) < partitions:
            name = f"{FLUSH}{self.n_flush}"
            self.n_flush += 1
            at = partition_of(name.encode(), partitions)
            time_ms = START_MS + self.n * STEP_MS + 2 * DAY_MS
            found.setdefault(at, self._transaction(name, time_ms, "c-flush", "s-flush", 1.0))
        return list(found.values())

    def broken(self) -> Input:
        """A record that cannot be read, or must not be applied."""
        rng = self.rng
        card = f"c{rng.randrange(self.n_cards)}"
        good = {
            "transaction_id": f"bad{rng.randrange(1 << 40)}",
            "event_time": START_MS,
            "card_id": card,
            "terminal_id": "s1",
            "amount": 1.0,
        }
        label = {"transaction_id": f"t{self.n}", "is_fraud": True, "event_time": START_MS}
        broken: list[tuple[str, bytes | None, bytes | None]] = [
            ("transactions", card.encode(), b"{"),
            ("transactions", card.encode(), None),
            ("transactions", card.encode(), b"\xff\xfe"),
            ("transactions", card.encode(), b"[" * 5_000),
            ("transactions", b"another", _json(good)),
            ("transactions", card.encode(), b"x" * rng.choice((100, 70_000, 900_000))),
            *(
                ("transactions", card.encode(), _json({**good, name: value}))
                for name, value in (
                    ("amount", "12,50"), ("amount", -1.0), ("amount", 1e308), ("amount", None),
                    ("event_time", "yesterday"), ("event_time", 1e18), ("transaction_id", ""),
                    ("terminal_id", ["s1"]), ("what", "is this"),
                )
            ),
            ("labels", b"t1", b"nonsense"),
            ("labels", None, _json(label)),
            ("labels", f"t{self.n}".encode(), _json({**label, "is_fraud": "perhaps"})),
            ("labels", f"t{self.n}".encode(), _json({**label, "event_time": 1e18})),
        ]  # fmt: skip
        if self.n and rng.random() < 0.2:  # a transaction once more
            return self._last
        return Input(*rng.choice(broken))

    def _one(self) -> list[Input]:
        rng, i = self.rng, self.n
        self.n += 1
        name, time_ms = f"t{i}", START_MS + i * STEP_MS
        card, terminal = rng.randrange(self.n_cards), rng.randrange(self.n_terminals)
        is_fraud = rng.random() < 0.1
        amount = round(rng.lognormvariate(4.5 if is_fraud else 3, 1), 2)
        one = self._last = self._transaction(name, time_ms, f"c{card}", f"s{terminal}", amount)
        beside: list[Input] = []
        if rng.random() < LABELLED:
            beside += self._labels(i, name, time_ms, is_fraud=is_fraud)
        if rng.random() < OF_NOBODY:
            at_ms = time_ms - rng.choice((0, 2 * DAY_MS))  # of the one its wait is over at once
            beside.append(self._label(f"nobody{i}", at_ms, is_fraud=True))
        if rng.random() < BROKEN:
            beside.append(self.broken())
        return [one, *beside]

    def _labels(self, i: int, name: str, time_ms: int, *, is_fraud: bool) -> list[Input]:
        rng, told = self.rng, []
        label = self._label(name, time_ms + rng.randrange(4 * HOUR_MS), is_fraud=is_fraud)
        if rng.random() < EARLY:
            told.append(label)  # read from another topic, by another task: often before its score
        else:
            self._later(i, label)
        if rng.random() < TWICE:
            self._later(i, label)
        if rng.random() < CORRECTED:
            self._later(i, self._label(name, time_ms + 5 * HOUR_MS, is_fraud=not is_fraud))
        return told

    def _later(self, i: int, label: Input) -> None:
        delay = 1 + int(self.rng.expovariate(1 / 1_500))
        self._n_due += 1
        heapq.heappush(self._due, (i + delay, self._n_due, label))

    @staticmethod
    def _transaction(name: str, time_ms: int, card: str, terminal: str, amount: float) -> Input:
        value = {
            "transaction_id": name,
            "event_time": time_ms,
            "card_id": card,
            "terminal_id": terminal,
            "amount": amount,
        }
        return Input("transactions", card.encode(), _json(value))

    @staticmethod
    def _label(name: str, time_ms: int, *, is_fraud: bool) -> Input:
        value = {
            "transaction_id": name,
            "is_fraud": is_fraud,
            "event_time": time_ms,
            "source": "analyst",
        }
        return Input("labels", name.encode(), _json(value))


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
