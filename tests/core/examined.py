"""Labelled transactions, and what the evaluation must say of them: slow, and plain to see."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from app.core.evaluation import Evaluation, Terms, was_fraud
from app.core.hashing import hash_id
from app.core.measures.rows import DAY_MS, Rows
from app.core.pending import MATURITY
from app.core.scoremap import bins_of
from app.records import Example

HOUR_MS = 3_600_000
#: Few of everything, so that every bound is met.
TERMS = Terms(
    top_k=10, budget=15, days_max=12, maturity_ms=5 * DAY_MS, compromised_days=30,
    segments=("channel",), values_max=3,
)  # fmt: skip


def an_example(id_: str, **told: Any) -> Example:
    """One labelled transaction, of which a test says what matters to it."""
    time_ms = told.get("time_ms", 1_000)
    given = {
        "time_ms": time_ms, "amount": 10.0, "entities": {"card": "c1", "terminal": "t1"},
        "score": 0.5, "features": [], "feature_schema": "s1", "is_fraud": False,
        "label_time_ms": time_ms + HOUR_MS, "label_source": "bank", "origin": ("labels", 0, 0),
    }  # fmt: skip
    return Example(transaction_id=id_, **{**given, **told})


def stream(seed: int, n: int = 1_500, n_days: int = 20, weight: float = 1.0) -> list[Example]:
    """Labelled transactions in the order of their labels, which come after hours or days."""
    rng = np.random.default_rng(seed)
    told = []
    for i in range(n):
        time_ms = int(rng.integers(n_days * DAY_MS))
        is_fraud = bool(rng.random() < 0.08)
        score = float(1 / (1 + np.exp(-(rng.normal() * 1.5 + 2.0 * is_fraud - 2))))
        matured = not is_fraud and rng.random() < 0.5
        delay = 5 * DAY_MS if matured else int(rng.exponential(30 * HOUR_MS))
        is_alert = bool(score > 0.4 or rng.random() < 0.1)
        told.append(
            an_example(
                f"t{i}", time_ms=time_ms, is_fraud=is_fraud, score=score,
                amount=float(rng.gamma(2.0, 30.0)),
                entities={"card": f"c{rng.integers(150)}", "terminal": "t"},
                label_time_ms=time_ms + delay,
                label_source=MATURITY if matured else str(rng.choice(["analyst", "bank"])),
                weight=weight if matured else 1.0,
                is_alert=is_alert, propensity=1.0 if score > 0.4 else 0.1,
                segments={"channel": str(rng.choice(["web", "shop", "phone", "post", ""]))},
                origin=("labels", 0, i),
            )
        )  # fmt: skip
    return sorted(told, key=lambda one: one.label_time_ms)


def corrected(seed: int, log: Sequence[Example], share: float = 0.1) -> list[Example]:
    """The same log, in which some labels are corrected later, and some of those back again."""
    rng = np.random.default_rng(seed)
    more = []
    for one in log:
        again = one
        while rng.random() < share:
            again = msgspec.structs.replace(
                again, is_fraud=not again.is_fraud, label_source=str(rng.choice(["analyst", "x"])),
                label_time_ms=again.label_time_ms + int(rng.integers(3 * DAY_MS)), weight=1.0,
            )  # fmt: skip
            more.append(again)
    return sorted([*log, *more], key=lambda one: one.label_time_ms)


class Feeder:
    """Hands examples to an evaluation as a learner does: with the code that each had before."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.learnt: dict[str, int] = {}

    def feed(self, log: Iterable[Example]) -> Evaluation:
        """Hand over a batch."""
        told = []
        for one in log:
            before = self.learnt.get(one.transaction_id)
            if before is None or was_fraud(before) != one.is_fraud:
                told.append((one, before))
                self.learnt[one.transaction_id] = self.evaluation.code(one, before)
        self.evaluation.update(told)
        return self.evaluation


def evaluated(log: Iterable[Example], terms: Terms = TERMS) -> Evaluation:
    """An evaluation of a log, in one batch."""
    return Feeder(Evaluation(terms)).feed(log)


def plain(state: Any) -> Any:
    """Everything an object holds, as values that compare bit for bit."""
    match state:
        case np.ndarray():
            made: Any = (state.dtype.str, state.shape, state.tobytes())
        case float():
            made = state.hex()
        case set() | frozenset():
            made = sorted(state)
        case dict():
            made = [(plain(key), plain(value)) for key, value in state.items()]
        case list() | tuple():
            made = [plain(one) for one in state]
        case _ if hasattr(state, "__dict__"):
            made = (type(state).__name__, plain(state.__getstate__()))
        case _:
            made = state
    return made


def rows_of(scores: np.ndarray, is_fraud: np.ndarray, **told: Any) -> Rows:
    """Rows for one part of the evaluation."""
    n = len(scores)
    given: dict[str, Any] = {
        "is_alert": scores >= 0.5, "amounts": np.ones(n), "weights": np.ones(n),
        "days": np.zeros(n, np.int64), "delays_ms": np.zeros(n, np.int64),
        "is_flagged": scores >= 0.5, "shares": np.zeros(n), "groups": np.zeros((n, 0), np.int64),
    }  # fmt: skip
    return Rows(scores=scores, bins=bins_of(scores), is_fraud=is_fraud, **{**given, **told})


# ---- What must come out.


def last_words(log: Iterable[Example]) -> list[Example]:
    """Each transaction once, as its last label has it."""
    return list({one.transaction_id: one for one in log}.values())


def card_precision(log: Sequence[Example], terms: Terms = TERMS) -> dict[int, float]:
    """By day: of the cards with the highest scores, those unknown, the share with a fraud."""
    known: dict[str, set[int]] = defaultdict(set)
    by_day: dict[int, list[Example]] = defaultdict(list)
    for one in log:
        card = next(iter(one.entities.values()))
        if one.is_fraud:
            since = -(-one.label_time_ms // DAY_MS)
            known[card] |= {since + i for i in range(terms.compromised_days)}
    for one in last_words(log):
        by_day[one.time_ms // DAY_MS].append(one)
    found: dict[str, int] = {}
    shares = {}
    for day in sorted(by_day):
        best: dict[str, float] = {}
        frauds = set()
        for one in by_day[day]:
            card = next(iter(one.entities.values()))
            best[card] = max(best.get(card, 0.0), one.score)
            if one.is_fraud:
                frauds.add(card)
        left = [
            card
            for card in best
            if day not in known[card]
            and not 0 < day - found.get(card, day) < terms.compromised_days
        ]
        top = sorted(left, key=lambda card: (best[card], hash_id(card)), reverse=True)
        hits = [card for card in top[: terms.top_k] if card in frauds]
        found.update(dict.fromkeys(hits, day))
        shares[day] = len(hits) / terms.top_k
    return shares


def recall_at(log: Sequence[Example], budget: int) -> dict[int, float]:
    """By day: share of its frauds among its highest scores."""
    by_day = defaultdict(list)
    for one in last_words(log):
        by_day[one.time_ms // DAY_MS].append(one)
    recalls = {}
    for day, some in by_day.items():
        top = sorted(some, key=lambda one: one.score, reverse=True)[:budget]
        n = sum(one.is_fraud for one in some)
        recalls[day] = sum(one.is_fraud for one in top) / n if n else float("nan")
    return recalls


def catches(log: Sequence[Example]) -> tuple[int, list[int], list[float]]:
    """Cards with frauds, frauds up to the first alert of each caught one, and hours."""
    by_card = defaultdict(list)
    for one in log:
        if one.is_fraud:
            by_card[one.entities["card"]].append((one.time_ms, not one.is_alert))
    frauds, hours = [], []
    for told in by_card.values():
        told.sort()
        if not all(is_missed for _, is_missed in told):
            at = next(i for i, (_, is_missed) in enumerate(told) if not is_missed)
            frauds.append(at + 1)
            hours.append((told[at][0] - told[0][0]) / HOUR_MS)
    return len(by_card), frauds, hours
