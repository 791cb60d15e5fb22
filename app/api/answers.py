"""What the routes answer; the OpenAPI document is made from these."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from app.config import Role
from app.core.board import AlertView, LabelView, Letter, Version
from app.records import ModelVersion, Outcome, Reason, Score, Source


class Health(msgspec.Struct, frozen=True):
    """Whether all is well, and what is not."""

    status: Literal["ok", "failing"]
    reasons: dict[str, str]


class Me(msgspec.Struct, frozen=True):
    """Who asks, as this server knows them."""

    name: str
    role: Role
    version: str
    is_open: bool  # nobody had to say who they are


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Part of a list; ``next`` is the cursor of the rest."""

    items: list[dict[str, Any]]
    next: str | None = None


class Alerts(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts, newest first."""

    items: list[AlertView]
    next: str | None
    total: int  # that match, of those held
    held: int
    held_max: int


class ReasonCount(msgspec.Struct, frozen=True):
    """How many dead letters have a reason in common."""

    reason: str
    n: int


class Letters(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters, newest first."""

    items: list[Letter]
    next: str | None
    by_reason: list[ReasonCount]


class WholeLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter with its value: text, or base64 where it is none."""

    letter: Letter
    value: str | None
    is_text: bool
    headers: dict[str, str]


class Place(msgspec.Struct, frozen=True):
    """Where a record lies."""

    topic: str
    partition: int
    offset: int


class Settled(msgspec.Struct, frozen=True):
    """What was done about a dead letter."""

    offset: int
    state: Literal["retried", "dropped"]
    position: Place | None = None


class Undone(msgspec.Struct, frozen=True):
    """What the learner is told of an incident; what comes of it is told on `drift`."""

    incident: str
    position: Place


class KnownTransaction(msgspec.Struct, frozen=True, kw_only=True):
    """A scored transaction and what is known of it."""

    transaction_id: str
    score: Score
    features: dict[str, float | None]
    state: Literal["waiting", "matured", "labelled"]
    is_fraud: bool | None
    matures_ms: int
    alert: AlertView | None
    labels: list[LabelView]


class EntityRow(msgspec.Struct, frozen=True):
    """One transaction of an entity."""

    time_ms: int
    amount: float
    is_fraud: bool | None


class EntityHistory(msgspec.Struct, frozen=True):
    """What is known of an entity, newest first."""

    kind: str
    name: str
    transactions: list[EntityRow]


class LabelBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody says of a transaction; null: unsure, which teaches nothing."""

    transaction_id: str
    is_fraud: bool | None
    source: str = "analyst"
    time_ms: int | None = None  # default: now


class Labelled(msgspec.Struct, frozen=True, kw_only=True):
    """What a label will lead to, by what this worker knows; the learner has the last word."""

    transaction_id: str
    is_fraud: bool | None
    source: str
    will: Outcome | Literal["noted"]
    says: str
    position: Place | None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What is decided of a transaction."""

    transaction_id: str
    score: float
    raw: float
    is_alert: bool
    policy: str | None
    propensity: float
    reasons: list[Reason]
    features: dict[str, float | None]
    model: ModelVersion
    recorded: bool
    source: Source | None = None


class NotDecided(msgspec.Struct, frozen=True):
    """Why one transaction of a batch was not decided."""

    status: int
    detail: str


class BatchItem(msgspec.Struct, frozen=True, kw_only=True):
    """One transaction of a batch: its decision, or why there is none."""

    decision: Decision | None = None
    problem: NotDecided | None = None


class Decisions(msgspec.Struct, frozen=True):
    """A batch, in the order in which it was sent."""

    items: list[BatchItem]


class FeatureShare(msgspec.Struct, frozen=True):
    """What a feature adds to the margin of a score."""

    feature: str
    value: float | None
    contribution: float
    text: str


class FeatureChange(msgspec.Struct, frozen=True, rename={"before": "from", "after": "to"}):
    """A feature as it is and as it would have to be."""

    feature: str
    before: float | None
    after: float


class WouldTurn(msgspec.Struct, frozen=True):
    """What would have turned the decision."""

    changes: list[FeatureChange]
    score: float
    is_alert: bool


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a score is what it is."""

    transaction_id: str
    score: float
    is_alert: bool
    policy: str | None
    model: ModelVersion  # that explains
    scored_by: ModelVersion
    bias: float
    features: list[FeatureShare]
    changes: list[WouldTurn]
    searched: list[str]
    note: str


class Alarms(msgspec.Struct, frozen=True, kw_only=True):
    """How many alerts there are, and how many there should be."""

    kind: str
    budget_per_day: float | None
    threshold: float | None
    per_day: float | None
    rate: float | None


class Broker(msgspec.Struct, frozen=True):
    """Whether the broker answers, and since when that is so."""

    is_connected: bool
    since_ms: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """This worker in a few numbers."""

    worker: str
    time_ms: int
    started_ms: int
    version: str
    rate: float
    n_scored: int
    n_alerts: int
    n_dead_letters: int
    latency_ms: dict[str, float | None]
    lag: int
    alerts: Alarms
    quality: dict[str, float | None]
    model: ModelVersion
    n_learned: int
    trust: float
    pending: int
    entities: dict[str, int]
    health: dict[str, str]
    readiness: dict[str, str]
    broker: Broker
    series: list[tuple[int, float, float, float | None, int]] = []


class DayView(msgspec.Struct, frozen=True, kw_only=True):
    """Quality of one day."""

    start_ms: int
    n: float
    n_frauds: float
    n_alerts: float
    average_precision: float | None
    roc_auc: float | None
    precision: float | None
    recall: float | None
    card_precision: float | None
    recall_at_budget: float | None
    is_mature: bool


class IntervalView(msgspec.Struct, frozen=True):
    """A figure, and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float


class Bin(msgspec.Struct, frozen=True):
    """Scores of about the same height: their mean, the share of frauds among them, how many."""

    mean_score: float
    share_fraud: float
    n: float


class FeatureMean(msgspec.Struct, frozen=True):
    """How much a feature raises scores, on average over the alerts held."""

    feature: str
    mean_contribution: float


class Models(msgspec.Struct, frozen=True, kw_only=True):
    """The model in use, its versions, and how good it is."""

    champion: ModelVersion
    versions: list[Version]
    days: list[DayView]
    intervals: dict[str, IntervalView | None]
    reliability: list[Bin]
    features: list[FeatureMean]
    settings: dict[str, Any]


class Config(msgspec.Struct, frozen=True):
    """The configuration, without its secrets."""

    settings: dict[str, Any]
    features: list[str]
    schema: str


class LetterBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A dead letter as it should have been; null: as it was."""

    value: str | None = None
    key: str | None = None


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An empty object."""


class UndoBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why what was done about an incident is undone."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class LevelBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much is logged."""

    level: Literal["debug", "info", "warning", "error"]
