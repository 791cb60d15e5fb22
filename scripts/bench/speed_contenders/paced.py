"""Publishes on schedule, whatever becomes of it (open loop), and notes when each score comes.

Record i is due at SPEED_START + i / SPEED_RATE, seconds of CLOCK_MONOTONIC. Publisher and receiver
are a process each, both librdkafka (confluent-kafka) with its own defaults: as little as can be of
the machine is theirs.

Environment: SPEED_INPUT (a pickle: bootstrap, topics, partitions, payments and ids),
SPEED_START, SPEED_RATE, SPEED_UNTIL (when to give up), SPEED_OUTPUT. Prints how many scores there
are, now and then; leaves in SPEED_OUTPUT, for each record, when the broker had acknowledged it and
when its score was received: seconds of the same clock, shape (2, n), NaN where neither came.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition

#: The publisher looks no more often than this for what is due.
_WAKE_S = 0.001
_TOLD_S = 0.5


def publish(given: dict[str, Any], acknowledged_s: np.ndarray[Any, Any]) -> None:
    """Send everything as it falls due."""
    producer = Producer({"bootstrap.servers": given["bootstrap"]})
    producer.list_topics(given["transactions"], timeout=10.0)  # connected before the first is due
    start_s, rate = float(os.environ["SPEED_START"]), float(os.environ["SPEED_RATE"])
    if time.monotonic() > start_s:
        raise SystemExit("the publisher was not ready in time")

    def noting(i: int) -> Any:
        def note(error: Any, _: Any) -> None:
            if error is None:
                acknowledged_s[i] = time.monotonic()

        return note

    for i, (partition, key, value) in enumerate(given["payments"]):
        while (ahead_s := start_s + i / rate - time.monotonic()) > 0.0:
            time.sleep(max(ahead_s, _WAKE_S))  # poll itself waits for whole milliseconds
            producer.poll(0)
        producer.produce(
            given["transactions"], value, key, partition=partition, on_delivery=noting(i)
        )
    producer.flush(30.0)


def receive(given: dict[str, Any], received_s: np.ndarray[Any, Any]) -> None:
    """Take scores until every one is there, or it is too late."""
    at = {name.encode(): i for i, name in enumerate(given["ids"])}
    until_s = float(os.environ["SPEED_UNTIL"])
    consumer = Consumer(
        {
            "bootstrap.servers": given["bootstrap"],
            "group.id": "received",
            "enable.auto.commit": False,
        }
    )
    ends = [TopicPartition(given["scores"], p, OFFSET_END) for p in range(given["partitions"])]
    consumer.assign(ends)
    n, told_s = 0, 0.0
    while n < len(at) and (now_s := time.monotonic()) < until_s:
        message = consumer.poll(_TOLD_S)
        if message is not None and message.error() is None:
            i = at.get(message.key())
            if i is not None and np.isnan(received_s[i]):
                received_s[i] = time.monotonic()
                n += 1
        if now_s > told_s + _TOLD_S:
            told_s = now_s
            print(n, flush=True)
    consumer.close()


def main() -> None:
    """Publish in one process, receive in this one."""
    given = pickle.loads(Path(os.environ["SPEED_INPUT"]).read_bytes())  # noqa: S301 - made just now
    shape = 2, len(given["ids"])
    times_s = np.lib.format.open_memmap(os.environ["SPEED_OUTPUT"], "w+", np.float64, shape)
    times_s[:] = np.nan
    forked = multiprocessing.get_context("fork")  # both write to the one file, in memory
    publisher = forked.Process(target=publish, args=(given, times_s[0]))
    publisher.start()
    receive(given, times_s[1])
    publisher.join()
    times_s.flush()
    raise SystemExit(publisher.exitcode)


if __name__ == "__main__":
    main()
