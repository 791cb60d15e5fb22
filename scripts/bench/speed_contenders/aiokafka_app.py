"""Plain aiokafka: batches in, River, dictionaries for state, sends out; nothing is durable.

What somebody writes who needs speed more than safety: a restart forgets every card and
terminal, and a second worker would know other terminals than the first.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from shared import NAMES, State, folded, own

PREFIX = os.environ["SPEED_PREFIX"]
MODEL = pickle.loads(Path(os.environ["SPEED_MODEL"]).read_bytes())  # noqa: S301 - written just now
#: As many as a worker of weir takes.
BATCH_MAX = 2_048


def scored(payment: dict[str, Any], cards: dict[str, State], terminals: dict[str, State]) -> float:
    """Fold a payment into both states; score it."""
    card, terminal = payment["card_id"], payment["terminal_id"]
    time_ms, amount = payment["event_time"], payment["amount"]
    of_card, cards[card] = folded(cards.get(card), time_ms, amount)
    of_terminal, terminals[terminal] = folded(terminals.get(terminal), time_ms, amount)
    x = dict(zip(NAMES, own(time_ms, amount) + of_card + of_terminal, strict=True))
    return float(MODEL.predict_proba_one(x).get(True, 0.0))


async def main() -> None:
    """Run until stopped: take a batch, score it, see every send acknowledged, commit."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    bootstrap = os.environ["SPEED_BOOTSTRAP"]
    consumer = AIOKafkaConsumer(
        f"{PREFIX}transactions",
        bootstrap_servers=bootstrap,
        group_id=PREFIX.rstrip("."),
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, linger_ms=5
    )
    await consumer.start()
    await producer.start()
    cards: dict[str, State] = {}
    terminals: dict[str, State] = {}
    try:
        while not stopped.is_set():
            sent = []
            for records in (await consumer.getmany(timeout_ms=200, max_records=BATCH_MAX)).values():
                for record in records:
                    payment = orjson.loads(record.value)
                    name = payment["transaction_id"]
                    told = {"transaction_id": name, "score": scored(payment, cards, terminals)}
                    value, key = orjson.dumps(told), name.encode()
                    sent.append(await producer.send(f"{PREFIX}scores", value, key=key))
            if sent:
                await asyncio.gather(*sent)
                await consumer.commit()
    finally:
        await producer.stop()
        await consumer.stop()


if __name__ == "__main__":
    asyncio.run(main())
