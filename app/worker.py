"""Puts a process together: settings in, a Faust app with its flow out."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Literal

import faust
import numpy as np
from faust.app.base import BootStrategy
from mode import Service
from yarl import URL

from app.alerting import AlertStage
from app.api.service import web_of
from app.audit import AuditStage, configured
from app.core.entity import warm_up_store
from app.core.features import FeaturePlan
from app.core.scoring import Champion
from app.ending import end_within
from app.flow import Flow
from app.join import JoinStage
from app.learning import Follower, LearnStage, new_learner
from app.metrics import Metrics
from app.stages import EntityStage, scorer_of
from app.topics import Topics, partitions_of
from app.traces import Spans
from app.transport import Restorer, consumer_of
from app.watch import Watcher
from app.web import readiness

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mode import ServiceT

    from app.config import Settings
    from app.tasks import Stage

Role = Literal["worker", "learner"]

#: 50,000 containers: those of some batches, all of which go by themselves.
_LOOK_AFTER: Final = 50_000
#: A stop takes a second or two, and may wait for one delivery.
_STOP_S: Final = 10.0


class _Boot(BootStrategy):
    enable_kafka_producer = False  # the flow has a producer of its own, whose every ack is seen


class WeirApp(faust.App):
    """A Faust app that runs a flow."""

    BootStrategy = _Boot
    flow: Flow

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Begin with nothing beside the flow."""
        self.beside: list[ServiceT] = []
        super().__init__(*args, **kwargs)

    def on_init_dependencies(self) -> Iterable[ServiceT]:
        """Start what runs beside the flow first: the flow waits for it."""
        return [*self.beside, *super().on_init_dependencies()]


class Exporter(Service):
    """Sends the last spans when a process ends."""

    def __init__(self, spans: Spans, **kwargs: Any) -> None:
        """Describe it."""
        super().__init__(**kwargs)
        self._spans = spans

    async def on_stop(self) -> None:
        """Beside the loop: whoever takes them may not answer."""
        await asyncio.to_thread(self._spans.close)


class Worker(faust.Worker):
    """Runs an app until a signal. A stop that hangs ends the process."""

    def __init__(self, app: WeirApp) -> None:
        """Say nothing but what the app says."""
        super().__init__(app, quiet=True, loglevel=None, override_logging=False)
        self.limit_s = _STOP_S + app.flow.settings.delivery_ms / 1_000.0

    async def stop(self) -> None:
        """Stop the app, which may wait for one delivery."""
        end_within(self.limit_s)
        await super().stop()


def stages_of(
    settings: Settings, role: Role, metrics: Metrics, champion: Champion, plan: FeaturePlan
) -> Sequence[Stage]:
    """The stages that a process of this role runs."""
    topics = Topics.of(settings)
    learner: list[Stage] = [LearnStage(settings, topics, plan, champion, metrics)]
    if role == "learner":
        return learner
    scorer = scorer_of(settings, plan, champion)
    scoring: list[Stage] = [
        EntityStage(settings, topics, plan, scorer, metrics, index)
        for index in range(max(len(settings.transaction.entities), 1))
    ]
    told, own = settings.policy.repeats, topics.repeats
    alerts: list[Stage] = []
    if told is not None and own is not None:
        alerts.append(AlertStage(settings, topics, told, own, metrics))
    join = JoinStage(settings, topics, metrics)
    audit = AuditStage(settings, topics, metrics)
    return [*scoring, *alerts, join, audit, *(learner if settings.learner.in_worker else [])]


def fresh_champion(settings: Settings, plan: FeaturePlan) -> Champion:
    """The model before anything was learnt."""
    return Champion.of(new_learner(settings, plan))


def warm_up(settings: Settings) -> None:
    """Compile every kernel that this configuration uses, on models and stores thrown away.

    Ten seconds the first time, a moment once they are cached; inside the group it would cost the
    first batch as much, and perhaps the lease.
    """
    plan = FeaturePlan.of(settings.features, settings.transaction.entities)
    for _, windows in plan.windows.values():
        warm_up_store(windows, has_disk=settings.entity.disk is not None)
    partitions_of([b"a"], 1)
    learner, row = new_learner(settings, plan), np.zeros((1, len(plan.names)))
    told = learner.investigators
    for model in [learner.model, *([told.model] if told else [])]:
        model.learn_many(row, np.zeros(1, np.bool_), np.ones(1))
        model.score_many(row)
        model.contributions(row)


def calm_collector() -> None:
    """Let Python look for cycles less often: hardly any are made, and a look costs a batch's time.

    What was restored is not looked at again at all (``transport.Restorer``).
    """
    gc.set_threshold(_LOOK_AFTER, 20, 100)


def traced(settings: Settings, stages: Sequence[Stage]) -> list[ServiceT]:
    """Let stages make the spans that are asked for; return what sends the last of them."""
    spans = Spans.of(settings.traces)
    for stage in stages:
        if isinstance(stage, EntityStage):
            stage.spans = spans
    return [] if spans is None else [Exporter(spans)]


def make_app(settings: Settings, role: Role = "worker") -> WeirApp:
    """A Faust app, ready to be run by a Faust worker.

    A worker that runs the learner too adopts its model after every batch learnt; every other
    worker follows the snapshots.
    """
    plan = FeaturePlan.of(settings.features, settings.transaction.entities)
    champion, metrics = fresh_champion(settings, plan), Metrics()
    metrics.in_use = lambda: [champion.version.position]
    if settings.policy.kind == "budget":
        metrics.budget(settings.policy.alerts_per_day)
    stages = stages_of(settings, role, metrics, champion, plan)
    for stage in stages:
        if isinstance(stage, LearnStage):
            stage.beside = ThreadPoolExecutor(1, "snapshots")
    flow = Flow(settings, stages, metrics)
    worker = settings.worker
    app = WeirApp(
        worker.group if role == "worker" else f"{worker.group}-learner",
        broker=[URL(f"weir://{b.strip()}") for b in settings.kafka.bootstrap.split(",")],
        TableManager=Restorer,
        store="memory://",
        datadir=worker.data_dir / "faust",
        broker_session_timeout=settings.kafka.session_timeout / 1_000.0,
        broker_request_timeout=settings.kafka.request_timeout / 1_000.0,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,  # ours is another: app.api
        worker_redirect_stdouts=False,
    )
    app.flow = flow
    for name in flow.topics:
        app.topics.add(app.topic(name, acks=False))
    flow.greetings.append(configured(settings, Topics.of(settings), role, flow.now_ms()))
    follower = Follower(settings, Topics.of(settings), plan, champion, metrics)
    app.beside += [follower, *traced(settings, stages)]
    if role == "worker":
        flow.gates.append(follower.caught_up)

    def is_model_loaded() -> bool:
        return role == "learner" or follower.caught_up.is_set()

    followed = follower if role == "worker" else None
    app.beside.append(
        Watcher(flow, Topics.of(settings), champion, followed, lambda: consumer_of(app).fetched())
    )

    def unlearnt_ms() -> int:
        return champion.unlearnt_ms(flow.now_ms())

    metrics.reasons = lambda: readiness(flow, is_model_loaded, unlearnt_ms, follower.contradiction)
    if worker.web_port:
        scorer = scorer_of(settings, plan, champion)
        app.beside += web_of(settings, flow, scorer, follower, metrics.reasons)
    return app
