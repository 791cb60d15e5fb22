"""Quix Streams as its documentation shows: stateful functions, one for each entity, grouped by it.

State lies in RocksDB and is changelogged. To come to the terminal's state a payment goes through
a topic grouped by terminal, as it does in weir. JSON goes through orjson, which is Quix's own
default.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from quixstreams import Application, State
from shared import NAMES, folded, own

PREFIX = os.environ["SPEED_PREFIX"]
MODEL = pickle.loads(Path(os.environ["SPEED_MODEL"]).read_bytes())  # noqa: S301 - written just now


def with_card(payment: dict[str, Any], state: State) -> dict[str, Any]:
    """Add the features of the payment and of its card."""
    time_ms, amount = payment["event_time"], payment["amount"]
    of_card, known = folded(state.get("known"), time_ms, amount)
    state.set("known", known)
    payment["row"] = own(time_ms, amount) + of_card
    return payment


def scored(payment: dict[str, Any], state: State) -> dict[str, Any]:
    """Add the features of the terminal, and score."""
    of_terminal, known = folded(state.get("known"), payment["event_time"], payment["amount"])
    state.set("known", known)
    x = dict(zip(NAMES, payment["row"] + of_terminal, strict=True))
    return {
        "transaction_id": payment["transaction_id"],
        "score": MODEL.predict_proba_one(x).get(True, 0.0),
    }


def main() -> None:
    """Run until stopped."""
    app = Application(
        broker_address=os.environ["SPEED_BOOTSTRAP"],
        consumer_group=PREFIX.rstrip("."),
        auto_offset_reset="earliest",
        state_dir=os.environ["SPEED_DIR"],
        loglevel="WARNING",
    )
    transactions = app.topic(f"{PREFIX}transactions", value_deserializer="json")
    scores = app.topic(f"{PREFIX}scores", value_serializer="json", key_serializer="str")
    payments = app.dataframe(transactions)
    payments = payments.apply(with_card, stateful=True)
    payments = payments.group_by("terminal_id")
    payments = payments.apply(scored, stateful=True)
    payments.to_topic(scores, key=lambda told: told["transaction_id"])
    app.run()


if __name__ == "__main__":
    main()
