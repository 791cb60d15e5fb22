"""What is done to a world: each scenario a round that breaks something and heals it.

A round returns when the fault is over; whoever plays it then waits for the world to recover.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from app.snapshots import seal
from tests.chaos.cluster import ROOT
from tests.chaos.world import SESSION_S, until

if TYPE_CHECKING:
    from random import Random

    from tests.chaos.world import Member, World

Round = Callable[["World", "Random"], Awaitable[None]]


def _nothing() -> str | None:
    return None


def _needs_strace() -> str | None:
    if shutil.which("strace") is None:
        return "needs strace: apt-get install strace"
    return None if os.geteuid() == 0 else "needs to be root, to attach strace to the broker"


def _needs_mount() -> str | None:
    return None if os.geteuid() == 0 else "needs to be root, to mount a small disk"


@dataclass(frozen=True)
class Scenario:
    """What is done, what must follow, and the world that it is done to."""

    name: str
    what: str
    expected: str
    round: Round
    world: dict[str, Any] = field(default_factory=dict)
    needs: Callable[[], str | None] = _nothing  # why it cannot run here
    rounds: int = 20  # of a full run


# ---- Processes that die.


async def kill_worker(world: World, rng: Random) -> None:
    """Kill one worker in mid-stream."""
    await asyncio.sleep(rng.uniform(0.0, 0.5))
    world.kill(rng.choice(world.of()))


async def kill_learner(world: World, rng: Random) -> None:
    """Kill the learner in mid-stream."""
    await asyncio.sleep(rng.uniform(0.0, 0.5))
    world.kill(world.of("learner")[0])


async def kill_both(world: World, rng: Random) -> None:
    """Kill the learner and one worker or all of them, within a moment."""
    workers = world.of()
    doomed = [*rng.sample(workers, rng.randint(1, len(workers))), *world.of("learner")]
    rng.shuffle(doomed)
    for member in doomed:
        world.kill(member)
        await asyncio.sleep(rng.choice((0.0, rng.uniform(0.0, 0.3))))


async def pause_worker(world: World, rng: Random) -> None:
    """Stop one worker for longer than its session, let others take over, and wake it."""
    member = rng.choice(world.of())
    member.signal(signal.SIGSTOP)
    await asyncio.sleep(SESSION_S * rng.uniform(1.2, 1.9))
    member.signal(signal.SIGCONT)
    world.noted["paused"] += 1
    await asyncio.sleep(1.0)  # it finds out


async def kill_in_recovery(world: World, rng: Random) -> None:
    """Kill a worker, and what comes in its place while that restores its state."""
    member = rng.choice(world.of())
    world.kill(member)
    for _ in range(3):
        before = member.n
        await until(lambda: member.n > before and member.is_running, "it is not started again")  # noqa: B023
        await until(lambda: member.has_said("[^--Restorer]: Starting"), "it does not begin")
        await asyncio.sleep(rng.uniform(0.0, 1.0))
        if not member.has_said("restored  "):
            world.noted["killed in recovery"] += 1
            world.kill(member)
            return
        world.noted["was too quick"] += 1
        world.kill(member)


async def kill_in_rebalance(world: World, rng: Random) -> None:
    """Let a worker join or leave, and kill another while the group makes up its mind."""
    extra = world.members.get("worker-extra")
    victim = rng.choice([m for m in world.of() if m is not extra])
    leaving = asyncio.create_task(world.stop(extra)) if extra else None
    if extra is None:
        world.add("worker-extra")
    admin = AIOKafkaAdminClient(bootstrap_servers=world.cluster.bootstrap)
    await admin.start()
    try:
        end_s = time.monotonic() + 15
        while await _group_state(admin) == "Stable" and time.monotonic() < end_s:
            await asyncio.sleep(0.01)
        await asyncio.sleep(rng.choice((0.0, rng.uniform(0.0, 0.4))))
        if await _group_state(admin) != "Stable":
            world.noted["killed in rebalance"] += 1
        world.kill(victim)
    finally:
        await admin.close()
    if leaving is not None:
        await leaving


async def _group_state(admin: AIOKafkaAdminClient) -> str:
    (answer,) = await admin.describe_consumer_groups(["chaos"])
    return str(answer.groups[0][2])


async def kill_in_snapshot(world: World, rng: Random) -> None:
    """Kill the learner while its snapshot is on its way to the broker, by half."""
    (learner,) = world.of("learner")
    world.link.trap(SNAPSHOT_MAGIC, bytes_per_s=20_000)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(world.link.sprung.wait(), 15)
    await asyncio.sleep(rng.uniform(0.0, 0.3))
    if world.link.n_waiting:
        world.noted["killed in snapshot"] += 1
    world.kill(learner)
    if learner.name in world.linked:
        world.link.cut()  # what the link still holds of it is gone with it
    world.link.heal()


# ---- Brokers.


async def broker_bounce(world: World, rng: Random) -> None:
    """Stop the only broker, as an operator does, and start it again."""
    await world.cluster.stop()
    await asyncio.sleep(rng.uniform(0.0, 3.0))
    await world.cluster.start()


async def broker_kill(world: World, rng: Random) -> None:
    """Kill one broker of three; when it is back, wait until it is in step."""
    world.cluster.kill(rng.randint(1, world.nodes))
    await asyncio.sleep(rng.uniform(1.0, 4.0))
    await world.cluster.start()
    admin = AIOKafkaAdminClient(bootstrap_servers=world.cluster.bootstrap)
    await admin.start()
    try:
        end_s = time.monotonic() + 40
        while not await _in_step(world, admin) and time.monotonic() < end_s:
            await asyncio.sleep(0.2)
    finally:
        await admin.close()


async def _in_step(world: World, admin: AIOKafkaAdminClient) -> bool:
    with contextlib.suppress(KafkaError):
        topics = await admin.describe_topics([spec.name for spec in world.topics])
        return all(len(p["isr"]) == world.nodes for t in topics for p in t["partitions"])
    return False


# ---- The network.


async def link_cut(world: World, rng: Random) -> None:
    """End all connections of one worker and of the learner, and let none be made for a while."""
    world.link.cut()
    await asyncio.sleep(rng.uniform(0.5, SESSION_S * 1.7))
    world.link.heal()


async def one_way(world: World, rng: Random) -> None:
    """Let nothing through to the brokers, or nothing from them; what was held arrives late."""
    world.link.hold(rng.choice(("up", "down")))
    await asyncio.sleep(rng.uniform(0.5, SESSION_S * 1.7))
    world.link.heal()


async def slow_broker(world: World, rng: Random) -> None:
    """Let every packet of every process wait."""
    world.link.delay_s = rng.uniform(0.05, 0.4)
    await asyncio.sleep(rng.uniform(3.0, 6.0))
    world.link.heal()


# ---- The brokers' disk.


async def slow_disk(world: World, rng: Random) -> None:
    """Let the broker wait for its disk: every record is synced, and every sync takes long."""
    if not world.noted["synced"]:
        await _sync_every_record(world)
        world.noted["synced"] = 1
    delay_us = int(rng.uniform(20, 150) * 1_000)
    calls = "fsync,fdatasync"
    strace = subprocess.Popen(
        ["strace", "-f", "-q", "-p", str(world.cluster.pid()), "-e", f"trace={calls}",
         "-e", f"inject={calls}:delay_exit={delay_us}", "-o", str(world.folder / "strace")],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await asyncio.sleep(rng.uniform(4.0, 7.0))
    finally:
        strace.terminate()
        await asyncio.to_thread(strace.wait, 10)
    world.noted["syncs delayed"] += (world.folder / "strace").read_text().count("DELAYED")


async def _sync_every_record(world: World) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=world.cluster.bootstrap)
    await admin.start()
    kind = ConfigResourceType.TOPIC
    await admin.alter_configs(
        [
            ConfigResource(kind, spec.name, configs={**spec.config, "flush.messages": "1"})
            for spec in world.topics
        ]
    )
    await admin.close()


def _fill(disk: Path, ballast: Path) -> None:
    """Take what room there is; somebody else writes meanwhile, so less is tried where it fails."""
    room = shutil.disk_usage(disk).free
    with ballast.open("wb") as out:
        while room >= 4_096:  # a page of tmpfs
            try:
                os.posix_fallocate(out.fileno(), out.seek(0, os.SEEK_END), room)
            except OSError:
                room //= 2


async def disk_full(world: World, rng: Random) -> None:
    """Fill the broker's disk to the last byte; it dies of that. Make room, start it again."""
    ballast = world.disk / "ballast"
    _fill(world.disk, ballast)
    await asyncio.sleep(rng.uniform(3.0, 6.0))
    if not Path(f"/proc/{world.cluster.pid()}").exists():
        world.noted["broker died of it"] += 1
    ballast.unlink()
    await world.cluster.start()


# ---- Clocks, scale, versions, bad input.


async def clock_jump(world: World, rng: Random) -> None:
    """Let the wall clock of every process jump, forward or back, and stay there.

    What is from more than an hour ahead a broker refuses: until that clock is put right nobody
    writes, and whoever tried has ended.
    """
    hours = rng.choice((-12.0, -1.0, -0.01, 0.0, 0.01, 0.9, 12.0))
    world.set_clock(hours * 3_600)
    await asyncio.sleep(rng.uniform(2.0, 5.0))
    if hours > 1.0:
        world.noted["further ahead than brokers take"] += 1
        world.set_clock(0.0)


async def scale_out(world: World, rng: Random) -> None:
    """Add a worker; of four, first let two go."""
    workers = world.of()
    if len(workers) >= 4:
        for member in workers[2:]:
            await world.stop(member)
    await asyncio.sleep(rng.uniform(0.0, 1.0))
    await _added(world)


async def scale_in(world: World, rng: Random) -> None:
    """Let a worker go; of the last, first add two."""
    while len(world.of()) < 2:
        for _ in range(2):
            await _added(world)
    await asyncio.sleep(rng.uniform(0.0, 1.0))
    await world.stop(rng.choice(world.of()))


async def _added(world: World) -> Member:
    world.noted["added"] += 1
    member = world.add(f"worker-a{world.noted['added']}")
    await until(lambda: member.is_restored, f"it does not work: {member.log}")
    return member


async def rolling_upgrade(world: World, rng: Random) -> None:
    """Stop and start members one after another with the other of two versions of the code."""
    code = old_code(world) if world.noted["upgrades"] % 2 == 0 else ROOT
    world.noted["upgrades"] += 1
    members = [*world.of(), *world.of("learner")]
    rng.shuffle(members)
    for member in members:
        took_s = await world.stop(member)
        if took_s > 10.0:
            world.noted["stopped late"] += 1
        again = world.add(member.name, member.role, code)
        await until(lambda: again.is_restored, "it does not work")  # noqa: B023


def old_code(world: World) -> Path:
    """The other version: that of CHAOS_UPGRADE_FROM, a commit; else a copy of this one."""
    at = world.folder / "old"
    if at.exists():
        return at
    at.mkdir()
    commit = os.environ.get("CHAOS_UPGRADE_FROM")
    if commit:
        archive = subprocess.run(
            ["git", "archive", commit, "app"], cwd=ROOT, check=True, capture_output=True
        )
        subprocess.run(["tar", "-x", "-C", str(at)], input=archive.stdout, check=True)
    else:
        shutil.copytree(ROOT / "app", at / "app")
    return at


async def poison(world: World, rng: Random) -> None:
    """Publish what nobody can read, on every topic that a process reads."""
    n = rng.randint(20, 60)
    world.burst += [world.traffic.broken() for _ in range(n)]
    topics = world.topics
    inside = [topics.models, topics.examples, *topics.hops.values(), *topics.feedback.values()]
    for spec in inside:
        garbage = bytes(rng.getrandbits(8) for _ in range(rng.choice((0, 1, 40, 4_000))))
        await world.publish_raw(spec.name, b"whoever", garbage)
    world.noted["poisoned"] += n + len(inside)
    await asyncio.sleep(rng.uniform(0.5, 1.5))


#: With which a signed snapshot of whatever format begins.
SNAPSHOT_MAGIC: Final = seal(None, b"any")[:5]

_LINKED: Final = frozenset({"worker-0", "learner-0"})
_ALL: Final = frozenset({"worker-0", "worker-1", "learner-0"})
#: Brokers 5 ms away: a process spends more of its time between one acknowledgement and the next,
#: which is where a kill tells.
_AWAY: Final[dict[str, Any]] = {"linked": _ALL, "latency_s": 0.005}
_SAME: Final = "every law holds; its successor goes on where the logs stand"

SCENARIOS: Final[dict[str, Scenario]] = {
    s.name: s
    for s in (
        Scenario("kill-worker", "SIGKILL of one of two workers", _SAME, kill_worker, _AWAY,
                 rounds=40),
        Scenario("kill-learner", "SIGKILL of the learner", _SAME, kill_learner, _AWAY, rounds=30),
        Scenario("kill-both", "SIGKILL of the learner and of one worker or both", _SAME,
                 kill_both, _AWAY, rounds=30),
        Scenario("kill-in-recovery", "SIGKILL of a worker, and of its successor while it restores",
                 _SAME, kill_in_recovery),
        Scenario("kill-in-rebalance", "a worker joins or leaves; SIGKILL of another meanwhile",
                 _SAME, kill_in_rebalance),
        Scenario("kill-in-snapshot", "SIGKILL of the learner while half a snapshot is sent", _SAME,
                 kill_in_snapshot,
                 {"linked": frozenset({"learner-0"}),
                  "tables": {"learner": {"snapshot_every": 50, "snapshot_interval": "300ms"}}}),
        Scenario("pause-worker", "SIGSTOP past the session, then SIGCONT",
                 "the sleeper writes nothing that it makes then, and ends", pause_worker),
        Scenario("broker-bounce", "the only broker stopped and started",
                 "processes wait, or end before they commit", broker_bounce),
        Scenario("broker-kill", "SIGKILL of one broker of three, replication 3, 2 in sync",
                 "the others serve", broker_kill, {"nodes": 3}),
        Scenario("link-cut", "connections of one worker and the learner cut, up to 1.7 sessions",
                 "nothing is written without a lease", link_cut, {"linked": _LINKED}),
        Scenario("one-way", "their packets held in one direction; they arrive late",
                 "late writes do no harm", one_way, {"linked": _LINKED}),
        Scenario("slow-broker", "50 to 400 ms more for every packet, 3 to 6 s",
                 "slower, or ended and started again", slow_broker, {"linked": _ALL}),
        Scenario("slow-disk", "every record synced, 20 to 150 ms more a sync, 4 to 7 s",
                 "slower, or ended and started again", slow_disk, {"rate": 100.0},
                 needs=_needs_strace),
        Scenario("disk-full", "the broker's disk filled to the last byte; it dies; room again",
                 "nothing acknowledged is lost", disk_full, {"disk_mb": 1_500, "rate": 100.0},
                 needs=_needs_mount),
        Scenario("clock-jump", "the wall clock of all processes jumps by up to 12 h",
                 "leases and event time do not look at it", clock_jump, {"has_clock": True}),
        Scenario("scale-out", "workers added, 2 to 4", "partitions move with their state",
                 scale_out),
        Scenario("scale-in", "workers stopped gracefully", "nothing is done twice", scale_in),
        Scenario("rolling-upgrade", "each process stopped and started with other code",
                 "each ends within 10 s, its successor goes on", rolling_upgrade,
                 {"is_supervised": True}),
        Scenario("poison", "records that nobody can read, on every topic",
                 "dead letters, and nothing else", poison),
    )
}  # fmt: skip
