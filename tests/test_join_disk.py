"""The join on a real disk: what a process that starts believes of it, and what it does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

import app.disk
import app.join
from app.config import Settings, load
from app.core.ledger import Ledger, Place
from app.disk import Books
from app.errors import Refused
from app.join import JoinTask
from app.records import Partition
from app.testing import Driver

DAY_MS = 86_400_000
#: 2026-01-01
START_MS = 1_767_225_600_000


def settings(folder: Path | None, **join: object) -> Settings:
    """One partition, the smallest model, and a folder for the join."""
    return load(
        profile="card", model={"name": "logistic"}, topics={"partitions": 1},
        join={"disk": folder, "disk_cache_bytes": 1_048_576, **join},
    )  # fmt: skip


@pytest.fixture
def said(monkeypatch):
    """What the log is told."""
    capture = structlog.testing.LogCapture()
    for module in (app.disk, app.join):
        monkeypatch.setattr(module, "log", structlog.wrap_logger(None, [capture]))
    return capture.entries


class Machines(Driver):
    """Each process has a disk of its own."""

    def __init__(self, folder: Path) -> None:
        """Start a worker."""
        self.folder = folder
        super().__init__(settings(None))

    def settings_of(self, name: str) -> Settings:
        """A folder by the name of the process."""
        return settings(self.folder / name)


def pay(driver: Driver, first: int, n: int, day: float = 0.0) -> None:
    """Publish payments of a day, a second apart, and have them scored."""
    for i in range(first, first + n):
        driver.publish("transactions", {
            "transaction_id": f"t{i}", "event_time": START_MS + int(day * DAY_MS) + i * 1_000,
            "card_id": f"c{i % 3}", "terminal_id": "s", "amount": 5.0,
        })  # fmt: skip
    driver.run()


def label(driver: Driver, *ids: int, is_fraud: bool = True) -> None:
    """Publish labels, and have them joined."""
    for i in ids:
        told = {"transaction_id": f"t{i}", "is_fraud": is_fraud, "event_time": START_MS + DAY_MS}
        driver.publish("labels", told)
    driver.run()


def outcomes(driver: Driver) -> list[tuple[str, str]]:
    """What became of the labels; a learner that was killed says it again."""
    return sorted({(o.transaction_id, o.outcome) for o in driver.read("outcomes")})


def join_of(driver: Driver, name: str = "worker-0") -> JoinTask:
    """The join of a process."""
    tasks = driver.processes[name].flow.tasks.values()
    return next(task for task in tasks if isinstance(task, JoinTask))


def place_of(driver: Driver) -> Place:
    """Where the disk of the worker stands."""
    place = ledger_of(driver).found()
    assert place is not None
    return place


def ledger_of(driver: Driver) -> Ledger:
    """What the worker has on disk."""
    ledger = join_of(driver).ledger
    assert ledger is not None
    return ledger


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return tmp_path / "join"


def test_restart_reads_what_came_after_the_last_write(folder):
    """And nothing else: 600 wait, of which the last 88 stand in no summary yet."""
    driver = Driver(settings(folder))
    pay(driver, 0, 600)
    label(driver, 3, 700)  # the second comes before its transaction
    driver.crash()
    driver.run()
    task = join_of(driver)
    assert [("join.disk_max", 600), ("join.early_max", 1)] == [
        (b[0], b.used) for b in task.bounds()
    ]
    assert (600, 600, 600 % 256) == (len(task.join), task.join.known.n_written, task.n_read_again)
    pay(driver, 700, 1)
    label(driver, 3, 599)
    label(driver, 4, is_fraud=False)
    assert [
        ("t3", "duplicate"), ("t3", "learn"), ("t4", "learn"), ("t599", "learn"), ("t700", "learn"),
    ] == outcomes(driver)  # fmt: skip


def test_disk_makes_no_difference_to_the_topics(folder):
    """The same examples and outcomes with and without, over restarts, maturity and forgetting."""
    told = []
    for where in (None, folder):
        driver = Driver(settings(where, maturity="3d", forget="2d"))
        for day in range(7):
            pay(driver, 40 * day, 40, day)
            label(driver, *range(max(0, 40 * day - 60), 40 * day + 8, 17))
            driver.crash()
        driver.run()
        told.append([r.value for r in driver.records("examples")])
    assert told[0] == told[1]
    assert len(told[0]) > 150


def test_disk_follows_the_commit_and_is_never_ahead(folder, monkeypatch):
    """What was applied and not committed is not there; what was committed is."""
    driver = Driver(settings(folder))
    pay(driver, 0, 10)
    place = place_of(driver)
    assert (10, 10) == (place.scores_next, place.n)
    with monkeypatch.context() as away:
        away.setattr(driver, "commit", lambda process: True)  # the coordinator
        pay(driver, 10, 10)
    assert (20, place) == (len(join_of(driver).join), place_of(driver))
    driver.crash()
    driver.run()
    assert (20, 20) == (place_of(driver).n, len(join_of(driver).join))


def test_partition_that_comes_back_reads_on_from_its_old_folder(tmp_path):
    """It was another worker's meanwhile."""
    driver = _moved(tmp_path)
    task = join_of(driver)
    assert (300, 300 - 256) == (len(task.join), task.n_read_again)  # from 256, which it had
    label(driver, 0, 150, 299)
    assert [("t0", "learn"), ("t150", "learn"), ("t299", "learn")] == outcomes(driver)


def test_old_folder_whose_records_are_gone_is_not_believed(tmp_path):
    """Retention has taken what came after it."""
    driver = _moved(tmp_path, is_cut=True)
    task = join_of(driver)
    assert (20, 20) == (len(task.join), task.n_read_again)
    label(driver, 0, 299)
    assert [("t299", "learn")] == outcomes(driver)  # the other waits


def _moved(tmp_path: Path, *, is_cut: bool = False) -> Driver:
    """256 payments on one machine, 44 on another, and back to the first."""
    driver = Machines(tmp_path)
    pay(driver, 0, 256)
    driver.crash(restart=False)
    driver.start("worker-1")
    pay(driver, 256, 44)
    driver.crash("worker-1", restart=False)
    if is_cut:
        driver.logs[Partition(driver.topics.scores.name, 0)].first = 280
    driver.start("worker-0")
    driver.run()
    return driver


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scores_next": 11}, "it stands at offset 11 of scores; 10 is committed"),
        ({"labels_next": 1}, "it stands at offset 1 of labels; 0 is committed"),
        ({"lineage": "another"}, "what was committed does not follow from it"),
        ({"identity": "0 other"}, "it was made of 0 other; expected 1 weir"),
    ],
)
def test_folder_that_is_not_ours_is_begun_anew(folder, said, change, reason):
    """It is told, and the state is made again from the logs."""
    driver = Driver(settings(folder))
    pay(driver, 0, 10)
    task = join_of(driver)
    for name, value in change.items():
        setattr(ledger_of(driver).place, name, value)
    task.join.write()
    driver.crash()
    driver.run()
    assert (10, 10) == (join_of(driver).n_read_again, len(join_of(driver).join))
    (told,) = [one["reason"] for one in said if one["event"] == "join_disk_begun_anew"]
    assert told.startswith(reason)


def test_folder_that_is_gone_is_made_again(folder):
    """From the logs, as without a disk."""
    driver = Driver(settings(folder))
    pay(driver, 0, 300)
    driver.crash(restart=False)
    shutil.rmtree(folder)
    driver.start("worker-0")
    driver.run()
    assert (300, 300) == (join_of(driver).n_read_again, len(join_of(driver).join))


def test_torn_folder_is_told_and_made_again(folder, said):
    """Whichever of its files is torn."""
    driver = Driver(settings(folder))
    pay(driver, 0, 10)
    driver.crash(restart=False)
    (place,) = folder.iterdir()
    (place / "CURRENT").write_bytes(b"\0")
    driver.start("worker-0")
    driver.run()
    assert 10 == len(join_of(driver).join)
    assert "join_disk_removed" in {one["event"] for one in said}


def test_folder_that_fails_while_it_is_read_is_made_again_by_the_next(folder):
    """The process ends, for nothing that it would say could be believed."""
    books = Books(folder, 1_048_576)
    book = books.open("join-0")
    book.write([("known", b"a", b"1")], [])
    with pytest.raises(Refused, match=r"join\.disk: .*join-0\.0: "):
        book.get_many("known", ["not bytes"])  # type: ignore[list-item]
    book.close()
    assert [None] == books.open("join-0").get_many("known", [b"a"])


def test_machine_that_fails_is_not_the_folders_fault(folder, monkeypatch):
    """A full disk is told; what lies there stays, and serves when there is room."""
    books = Books(folder, 1_048_576)
    book = books.open("join-0")
    book.write([("known", b"a", b"1")], [])

    class Full:
        """A database without room."""

        def write(self, batch: object) -> None:
            """No."""
            raise OSError("IO error: No space left on device: While appending to file")

    with monkeypatch.context() as full:
        full.setattr(book, "_database", Full())
        with pytest.raises(Refused, match="No space left on device"):
            book.write([("known", b"b", b"2")], [])
    book.close()
    assert [b"1", None] == books.open("join-0").get_many("known", [b"a", b"b"])


def test_closed_folder_is_not_the_folders_fault(folder):
    """Whoever asks a task that has let its partition go spoils nothing."""
    books = Books(folder, 1_048_576)
    book = books.open("join-0")
    book.write([("known", b"a", b"1")], [])
    book.close()
    with pytest.raises(Refused, match=r"join\.disk"):
        book.get_many("known", [b"a"])
    assert [b"1"] == books.open("join-0").get_many("known", [b"a"])


def test_folder_in_use_is_left_alone(folder):
    """A worker that sleeps holds it; whoever has the partition now takes another."""
    books = Books(folder, 1_048_576)
    first, second = books.open("join-0"), books.open("join-0")
    first.write([("rest", b"x", b"1")], [])
    assert (["join-0.0", "join-0.1"], [None]) == (
        [first.path.name, second.path.name], second.get_many("rest", [b"x"]),
    )  # fmt: skip


WRITER = """
import os, sys
from pathlib import Path
from app.disk import Books
book = Books(Path(sys.argv[1]), 1_048_576).open("join-0")
for i in range(10**9):
    puts = [(t, b"k%d" % (i * 7 + j), b"%d" % i * 50) for j, t in enumerate(("scores", "known"))]
    book.write([*puts, ("rest", b"place", b"%d" % i)], [])
    if i == int(sys.argv[2]):
        print("there", flush=True)
"""


def test_writes_are_whole_though_the_process_is_killed(folder):
    """SIGKILL in the middle of writing: what lies there is what one position says."""
    command = [sys.executable, "-c", WRITER, str(folder), "300"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        process.kill()
    book = Books(folder, 1_048_576).open("join-0")
    (raw,) = book.get_many("rest", [b"place"])
    last = int(raw or b"-1")
    assert last >= 300
    held = [len(book.scan(table, b"", 10**7)) for table in ("scores", "known")]
    assert [last + 1, last + 1] == held


def test_order_of_keys_is_that_of_bytes(tmp_path):
    """As the ledger takes for granted."""
    book = Books(tmp_path, 1_048_576).open("join-0")
    keys = [b"\x7f\xff", b"\x80", b"\x80\0", b"\xff"]
    book.write([("due", key, b"") for key in reversed(keys)], [])
    assert (keys, keys[1:3]) == (book.scan("due", b"", 9), book.scan("due", b"\x7f\xff\0", 2))
    book.write([], [("due", keys[0])])
    assert [] == book.scan("labels", b"", 9)
