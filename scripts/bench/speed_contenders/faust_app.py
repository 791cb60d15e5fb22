"""Faust as its documentation shows: an agent, two tables, a send; the model is River's.

One agent writes both tables. Faust places a key by the partition of the record that writes it,
so the terminals' table would be right only with one worker; a second stream grouped by terminal
would be right with many and cost as much again. Tables are in memory and changelogged; JSON
goes through orjson, as Faust does by itself where it is installed.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import faust
from shared import NAMES, folded, own

PREFIX = os.environ["SPEED_PREFIX"]
MODEL = pickle.loads(Path(os.environ["SPEED_MODEL"]).read_bytes())  # noqa: S301 - written just now

app = faust.App(
    PREFIX.rstrip("."),
    broker=f"kafka://{os.environ['SPEED_BOOTSTRAP']}",
    store="memory://",
    datadir=os.environ["SPEED_DIR"],
    topic_partitions=int(os.environ["SPEED_PARTITIONS"]),
    topic_replication_factor=1,
    topic_disable_leader=True,
    consumer_auto_offset_reset="earliest",
    web_enabled=False,
)
transactions = app.topic(f"{PREFIX}transactions", value_serializer="json")
scores = app.topic(f"{PREFIX}scores", value_serializer="json")
cards = app.Table("cards")
terminals = app.Table("terminals")


@app.agent(transactions)
async def score(payments: faust.Stream[dict]) -> None:
    """Score payments one by one."""
    async for payment in payments:
        card, terminal = payment["card_id"], payment["terminal_id"]
        time_ms, amount = payment["event_time"], payment["amount"]
        row = own(time_ms, amount)
        of_card, cards[card] = folded(cards.get(card), time_ms, amount)
        of_terminal, terminals[terminal] = folded(terminals.get(terminal), time_ms, amount)
        x = dict(zip(NAMES, row + of_card + of_terminal, strict=True))
        told = {
            "transaction_id": payment["transaction_id"],
            "score": MODEL.predict_proba_one(x).get(True, 0.0),
        }
        await scores.send(key=payment["transaction_id"].encode(), value=told)


if __name__ == "__main__":
    app.main()
