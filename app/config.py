"""Settings, checked once: a TOML file over a shipped profile, environment variables over both.

``WEIR_KAFKA__BOOTSTRAP=broker:9092`` overrides ``bootstrap`` in the table ``[kafka]``. What
cannot work is refused here with the key, the value and what was expected, so that no other
module checks a setting again.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable
from datetime import datetime
from importlib import resources
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    SerializationInfo,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from app.errors import Misconfigured, shown
from app.records import Stat

PROFILES = ("card", "handbook", "stream")

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


#: 1e12 s are 30,000 years; infinity is longer.
_LONGEST_S = 1e12


def parse_duration(value: Any) -> int:
    """Milliseconds in a duration as people write it; a number counts seconds.

    Raises ValueError on anything else.

    >>> parse_duration("7d"), parse_duration("90s"), parse_duration(1.5)
    (604800000, 90000, 1500)
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LONGEST_S:
        return round(value * 1_000)
    # Up to 12 digits: a longer number is no duration that anybody means.
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)(ms|s|m|h|d)", str(value))
    if not match:
        msg = 'expected a duration such as "250ms", "30s", "15m", "12h" or "7d"'
        raise ValueError(msg)
    return round(float(match[1]) * _UNITS_MS[match[2]])


def _as_told(milliseconds: int, info: SerializationInfo) -> int | str:
    """Milliseconds; where they are to be read again, with their unit: a number counts seconds."""
    return f"{milliseconds}ms" if info.context == TO_READ else milliseconds


#: Context of a dump that is to be read again: ``table.model_dump(context=TO_READ)``.
TO_READ = "to be read again"
Duration = Annotated[int, BeforeValidator(parse_duration), PlainSerializer(_as_told)]


def _some(milliseconds: int) -> int:
    if milliseconds <= 0:
        msg = "expected a duration longer than nothing"
        raise ValueError(msg)
    return milliseconds


def _iso_time(value: str) -> str:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        msg = 'expected an ISO 8601 time such as "2000-01-01T00:00:00Z"'
        raise ValueError(msg) from None
    return value


#: Some names; told in one order, whatever order they are kept in.
Names = Annotated[frozenset[str], PlainSerializer(sorted)]
SomeTime = Annotated[Duration, AfterValidator(_some)]
IsoTime = Annotated[str, AfterValidator(_iso_time)]
FieldName = Annotated[str, Field(min_length=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._-]+$")]

#: What Kafka takes in the name of a topic, and as much of it as ours leave room for.
_IN_TOPIC_NAMES = re.compile(r"[A-Za-z0-9._-]{1,180}")
#: How the names of weir's own topics begin.
_OWN_TOPICS = "weir."


def make_folder(folder: Path, what: str) -> None:
    """Make a folder to write into. Raises Misconfigured, which names ``what`` asked for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{what} is {folder}: {error.strerror}; expected a folder to write"
        raise Misconfigured(msg) from None


class Table(BaseModel):
    """A table of the configuration: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _both_or_none(cert_file: Path | None, key_file: Path | None) -> None:
    if (cert_file is None) != (key_file is None):
        msg = "cert_file and key_file belong together; expected both or none"
        raise ValueError(msg)


class KafkaSettings(Table):
    """How to reach the brokers."""

    bootstrap: str = "127.0.0.1:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    username: str | None = None
    password: SecretStr | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    session_timeout: Duration = 30_000
    request_timeout: Duration = 40_000
    #: Off only for brokers without producer ids (the embedded one): a retry may then write twice.
    idempotent: bool = True

    @model_validator(mode="after")
    def _says_who_it_is(self) -> Self:
        if self.security_protocol.startswith("SASL") and not (self.username and self.password):
            msg = f"security_protocol is {self.security_protocol}; expected username and password"
            raise ValueError(msg)
        _both_or_none(self.cert_file, self.key_file)
        return self


def _each_once(fields: Iterable[str | None]) -> None:
    declared = [field for field in fields if field is not None]
    twice = sorted({field for field in declared if declared.count(field) > 1})
    if twice:
        msg = f"the field {shown(twice[0])} is declared twice; expected each field once"
        raise ValueError(msg)


class TransactionSettings(Table):
    """The schema of a transaction, as the services that publish it know it."""

    id: FieldName = "transaction_id"
    time: FieldName = "event_time"
    time_unit: Literal["auto", "iso", "s", "ms"] = "auto"
    entities: tuple[FieldName, ...] = ()
    amount: FieldName | None = None
    numbers: tuple[FieldName, ...] = ()
    categories: tuple[FieldName, ...] = ()
    segments: tuple[FieldName, ...] = ()  # categories of few values: rules and quality by each
    optional: tuple[str, ...] = ()
    unknown_fields: Literal["refuse", "ignore"] = "refuse"
    negative_amounts: bool = False
    #: 1e12: above any amount in any currency, and its square is far from overflow.
    number_max: Finite = Field(default=1e12, gt=0.0, le=1e100)
    record_bytes_max: int = Field(default=65_536, ge=256)
    ahead_max: Duration = 86_400_000  # event time may be this far after the broker's time stamp
    time_min: IsoTime = "2000-01-01T00:00:00Z"

    @model_validator(mode="after")
    def _fields_are_distinct(self) -> Self:
        entities, numbers = self.entities, self.numbers
        _each_once([self.id, self.time, *entities, *numbers, *self.categories, self.amount])
        stray = sorted(set(self.optional) - set(self.numbers) - set(self.categories))
        if stray:
            msg = f"optional names {shown(stray[0])}; expected one of numbers or categories"
            raise ValueError(msg)
        if stray := sorted(set(self.segments) - set(self.categories)):
            msg = f"segments names {shown(stray[0])}; expected one of categories"
            raise ValueError(msg)
        for entity in entities:
            if not _IN_TOPIC_NAMES.fullmatch(entity):
                expected = "expected letters, digits, dots, _ and -: topics are called by it"
                raise ValueError(f"entities names {shown(entity)}; {expected}")
        return self


class LabelSettings(Table):
    """The schema of a label."""

    transaction_id: FieldName = "transaction_id"
    value: FieldName = "is_fraud"
    time: FieldName = "event_time"
    source: FieldName | None = "source"

    @model_validator(mode="after")
    def _fields_are_distinct(self) -> Self:
        _each_once([self.transaction_id, self.value, self.time, self.source])
        return self


class NumberFeature(Table):
    """A number of the transaction."""

    kind: Literal["number"]
    field: str
    transform: Literal["identity", "log1p"] = "identity"
    name: str | None = None


class CalendarFeature(Table):
    """The event time as a person reads a calendar (UTC)."""

    kind: Literal["calendar"]
    parts: tuple[Literal["weekend", "night", "hour_sin", "hour_cos", "weekday"], ...]
    night_until_hour: int = Field(default=6, ge=0, le=23)
    names: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_name_a_part(self) -> Self:
        if self.names and len(self.names) != len(self.parts):
            msg = f"names has {len(self.names)} names; expected one a part"
            raise ValueError(msg)
        return self


class CategoryFeature(Table):
    """A category: hashed into a few one-hot columns, or as the share of frauds known of it."""

    kind: Literal["category"]
    field: str
    encoding: Literal["hashed", "target"] = "hashed"
    buckets: int = Field(default=8, ge=2, le=1_024)  # "hashed": columns
    codes: int = Field(default=1_024, ge=2, le=65_536)  # "target": values told apart


class WindowFeature(Table):
    """A statistic of an entity's recent transactions, over one or several windows."""

    kind: Literal["window"]
    entity: str
    stat: Stat
    windows: tuple[SomeTime, ...] = Field(default=(86_400_000,), min_length=1)
    delay: Duration = 0
    prior: float = Field(default=0.0, ge=0.0)  # pseudo-transactions without fraud, for "risk"
    against: Duration = 90 * 86_400_000  # the longer window of "peak" and "burst"
    newest: int = Field(default=3, ge=1)  # how many "last" looks at
    names: tuple[str, ...] = ()


Feature = Annotated[
    NumberFeature | CalendarFeature | CategoryFeature | WindowFeature,
    Field(discriminator="kind"),
]


class EntitySettings(Table):
    """Bounds of the state that is kept per entity."""

    history_max: int = Field(default=256, ge=8, le=4_096)  # transactions an entity, exact
    bucket: SomeTime = 86_400_000  # event time in which what is older is summed up
    buckets_max: int = Field(default=128, ge=0, le=4_096)  # an entity; 0: what is older is lost
    entities_max: int = Field(default=1_000_000, ge=1)  # entities a partition; oldest leave
    disk: Path | None = None  # a folder where they go then; None: they are forgotten
    disk_cache_bytes: int = Field(default=67_108_864, ge=1_048_576)  # in memory, for each stage


class TopicSettings(Table):
    """Names and shapes of the topics."""

    prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$")
    transactions: Name = "transactions"
    labels: Name = "labels"
    scores: Name = "scores"
    alerts: Name = "alerts"
    drift: Name = "drift"
    dead_letters: Name = "dead-letters"
    outcomes: Name = "outcomes"
    examples: Name = "examples"
    models: Name = "models"
    partitions: int = Field(default=4, ge=1, le=1_024)
    replication: int = Field(default=1, ge=1, le=9)
    retention: Duration = 7 * 86_400_000  # of what people read: scores, alerts, outcomes...

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        roles = [name for name, field in type(self).model_fields.items() if field.annotation is str]
        taken: dict[str, str] = {}
        for role in roles[1:]:
            name = getattr(self, role)
            if name in taken:
                both = f"topics.{taken[name]} and topics.{role} are both {shown(name)}"
                msg = f"{both}; expected a topic of its own for each"
                raise ValueError(msg)
            if name.startswith(_OWN_TOPICS):
                expected = f"expected another: {_OWN_TOPICS}* are taken, those are weir's"
                raise ValueError(f"topics.{role} is {shown(name)}; {expected}")
            taken[name] = role
        return self


class ModelSettings(Table):
    """The model: a name that weir ships or a River estimator by its dotted path."""

    name: str = "forest"
    seed: int = 42
    cold_start: int = Field(default=50, ge=0)  # frauds until the model decides alone; 0: at once
    calibrate: bool = False  # scores become probabilities, by what scores turned out to be
    target_prior: float = Field(default=100.0, ge=0.0)  # examples that draw a category to all
    params: dict[str, Any] = Field(default_factory=dict)


class PartSettings(Table):
    """A part of the traffic; see ``core.policy.Rule``."""

    name: Name
    segments: dict[str, Names] = Field(default_factory=dict)  # segment: some values
    amount_min: float | None = None
    amount_max: float | None = None  # not included


class RuleSettings(PartSettings):
    """What is asked of a part of the traffic."""

    threshold: float | None = Field(default=None, ge=0.0, le=1.0)  # 0: always; not told: never


class RepeatSettings(Table):
    """Alerts that a person need not see again: of one entity, soon after another."""

    entity: FieldName
    window: SomeTime = 86_400_000  # event time
    entities_max: int = Field(default=100_000, ge=16)  # remembered, a partition


class PolicySettings(Table):
    """When a score becomes an alert."""

    kind: Literal["threshold", "cost", "budget"] = "threshold"
    threshold: float = Field(default=0.5, ge=0.0, le=1.0)  # and what a budget begins with
    alerts_per_day: Finite = Field(default=100.0, gt=0.0)  # "budget": of event time
    review_cost: float = Field(default=5.0, ge=0.0)  # "cost": in the unit of the amount
    recovery: float = Field(default=1.0, gt=0.0, le=1.0)  # "cost": share an alert in time saves
    explore: float = Field(default=0.0, ge=0.0, lt=1.0)  # share of all else shown at random
    rules: tuple[RuleSettings, ...] = ()  # of several that cover a transaction the first decides
    repeats: RepeatSettings | None = None  # not told: every alert is shown
    allow: dict[str, Names] = Field(default_factory=dict)  # entity: those never alerted
    block: dict[str, Names] = Field(default_factory=dict)  # entity: those always alerted
    reasons_max: int = Field(default=5, ge=0, le=50)


class FallbackSettings(PartSettings):
    """The score of a part of the traffic where the model gives none."""

    score: float = Field(ge=0.0, le=1.0)


class LatencySettings(Table):
    """What is promised of scores, and what stands in; off until something of it is set."""

    budget: SomeTime | None = None  # from publishing to deciding; older ones need a quick model
    slow_us: Finite = Field(default=100.0, ge=0.0)  # CPU a record: from here on it is not quick
    stale_after: SomeTime | None = None  # that a model has not learnt what there is
    rules: tuple[FallbackSettings, ...] = ()  # of several that cover a transaction the first

    @property
    def is_set(self) -> bool:
        """Whether a fallback is declared."""
        return self.budget is not None or self.stale_after is not None or bool(self.rules)


class JoinSettings(Table):
    """How long scored transactions and labels wait for each other (event time)."""

    maturity: Duration = 30 * 86_400_000  # unlabelled for so long: counts as legitimate
    negatives: float = Field(default=1.0, gt=0.0, le=1.0)  # share of those that is learnt
    forget: Duration = 60 * 86_400_000  # after maturity: a label this late is "expired"
    early: Duration = 7 * 86_400_000  # a label may wait so long for its transaction
    pending_max: int = Field(default=1_000_000, ge=16)  # a partition, in memory: without a disk
    disk: Path | None = None  # a folder where they wait instead, and stay; None: in memory
    disk_max: int = Field(default=100_000_000, ge=16)  # a partition, on that disk
    disk_cache_bytes: int = Field(default=67_108_864, ge=1_048_576)  # in memory, for all of them
    early_max: int = Field(default=100_000, ge=16)  # a partition


class InvestigatorSettings(Table):
    """Labels of people who look at alerts: few, early, of what the model chose to show."""

    sources: Names = frozenset()  # of labels that are theirs; none: one model learns all
    share: float = Field(default=0.3, ge=0.0, le=1.0)  # of their model in a score
    wait: Duration = 7 * 86_400_000  # until the model of everything learns them, too
    waiting_max: int = Field(default=65_536, ge=16)
    name: str | None = None  # of their model; default: model.name
    params: dict[str, Any] = Field(default_factory=dict)


class LearnerSettings(Table):
    """The learner: a fold over the examples log."""

    in_worker: bool = True
    #: A label that contradicts one already learnt: counted only; learnt as well; or learnt in the
    #: other's place, once `weir rebuild` is run.
    corrections: Literal["ignore", "relearn", "rebuild"] = "ignore"
    learnt_max: int = Field(default=262_144, ge=16)  # ids remembered, so none teaches twice
    snapshot_every: int = Field(default=50_000, ge=1)  # examples
    snapshot_interval: Duration = 30_000
    snapshots_kept: int = Field(default=5, ge=1, le=100)
    key: SecretStr = SecretStr("weir-development-key")
    investigators: InvestigatorSettings = InvestigatorSettings()


Reaction = Literal["nothing", "faster", "background", "rollback", "page"]
DriftKind = Literal["feature", "score", "performance", "label", "traffic"]


class DriftSettings(Table):
    """When it is said that the world changed."""

    false_alarms_per_week: Finite = Field(default=0.5, gt=0.0, le=7.0)  # when nothing changes
    block: SomeTime = 3_600_000  # event time over which means are taken, at least
    warmup: SomeTime = 14 * 86_400_000  # to learn what is usual; longer where windows still fill
    learning: Duration = 14 * 86_400_000  # so much longer for what a young model says
    reaction: Reaction = "nothing"  # what weir does by itself: docs/drift.md
    reactions: dict[DriftKind, Reaction] = Field(default_factory=dict)  # by kind, where another


class EvaluationSettings(Table):
    """What the figures of quality are about; see ``core.evaluation.Terms``."""

    top_k: int = Field(default=100, ge=1, le=10_000)  # cards a day: card precision
    budget: int | None = Field(default=None, ge=1, le=10_000)  # default: policy.alerts_per_day
    days_max: int = Field(default=64, ge=1, le=1_024)  # figures by day; more if maturity asks it
    compromised: SomeTime = 7 * 86_400_000  # so long a card with a known fraud is left out
    values_max: int = Field(default=64, ge=1, le=1_024)  # of a segment; the rest is "(other)"
    cards_max: int = Field(default=4_096, ge=16, le=1_048_576)  # cards with frauds
    sources: Names = frozenset({"analyst"})  # of labels of what the policy showed


class WorkerSettings(Table):
    """The worker process."""

    group: Name = "weir"
    batch_max: int = Field(default=2_048, ge=1, le=65_536)  # records taken at once
    commit_interval: Duration = 250
    delivery_timeout: Duration | None = None  # for a write to land; default: half of the session
    web_host: str = "127.0.0.1"
    web_port: int = Field(default=6_066, ge=0, le=65_535)
    data_dir: Path = Path(".weir")
    web_url: str | None = None  # where other workers reach this one; default: host and port
    log_format: Literal["human", "json"] = "human"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class TraceSettings(Table):
    """Spans of sampled transactions, exported by OpenTelemetry (extra ``traces``)."""

    endpoint: str | None = Field(default=None, pattern=r"^https?://")  # OTLP: .../v1/traces
    service: str = "weir"


Role = Literal["read", "feedback", "admin"]


class TokenSettings(Table):
    """Who may do what with a token, of which only a hash is kept: `weir token new`."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_-]+$")]
    role: Role
    hash: str = Field(pattern=r"^scrypt\$\d+\$\d+\$\d+\$[A-Za-z0-9_-]+\$[A-Za-z0-9_-]+$")


class AccessSettings(Table):
    """Who may use the web server; beyond this machine nobody, without tokens or a proxy."""

    tokens: tuple[TokenSettings, ...] = ()
    proxy_header: str | None = None  # where a reverse proxy says who somebody is
    proxy_role_header: str | None = None  # and what they may do; without: proxy_role
    proxy_role: Role = "read"
    proxies: tuple[str, ...] = ("127.0.0.1", "::1")  # addresses that are believed
    hosts: tuple[str, ...] = ()  # names this server is called by, beside its own
    cert_file: Path | None = None  # TLS
    key_file: Path | None = None
    body_max: int = Field(default=1_048_576, ge=1_024)  # bytes of a request
    rate: int = Field(default=2_000, ge=1)  # requests a second, of one name
    timeout: SomeTime = 30_000  # of a request
    streams_max: int = Field(default=200, ge=1)  # readers of /v1/events

    @model_validator(mode="after")
    def _has_both_files_and_distinct_names(self) -> Self:
        _both_or_none(self.cert_file, self.key_file)
        names = [token.name for token in self.tokens]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            msg = f"two tokens are called {shown(twice[0])}; expected a name of its own for each"
            raise ValueError(msg)
        return self

    @property
    def is_open(self) -> bool:
        """Whether nobody has to say who they are."""
        return not self.tokens and self.proxy_header is None


class ExplainSettings(Table):
    """What people could change about a transaction: feature -> lowest and highest value."""

    actionable: dict[str, tuple[Finite, Finite]] = Field(default_factory=dict)


class Settings(BaseSettings):
    """Everything weir can be told."""

    model_config = SettingsConfigDict(
        env_prefix="WEIR_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    profile: Literal["card", "handbook", "stream"] = "card"
    kafka: KafkaSettings = KafkaSettings()
    transaction: TransactionSettings = TransactionSettings()
    label: LabelSettings = LabelSettings()
    features: tuple[Feature, ...] = Field(default=(), min_length=1)
    entity: EntitySettings = EntitySettings()
    topics: TopicSettings = TopicSettings()
    model: ModelSettings = ModelSettings()
    policy: PolicySettings = PolicySettings()
    latency: LatencySettings = LatencySettings()
    join: JoinSettings = JoinSettings()
    learner: LearnerSettings = LearnerSettings()
    drift: DriftSettings = DriftSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    worker: WorkerSettings = WorkerSettings()
    traces: TraceSettings = TraceSettings()
    access: AccessSettings = AccessSettings()
    explain: ExplainSettings = ExplainSettings()

    @property
    def delivery_ms(self) -> int:
        """How long a write may take to be acknowledged, milliseconds."""
        told = self.worker.delivery_timeout
        return self.kafka.session_timeout // 2 if told is None else told

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then what the files say."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _features_name_what_is_declared(self) -> Self:
        if self.delivery_ms >= self.kafka.session_timeout:
            msg = (
                f"worker.delivery_timeout is {self.delivery_ms} ms; expected less than "
                f"kafka.session_timeout, {self.kafka.session_timeout} ms: a write must land first"
            )
            raise ValueError(msg)
        transaction = self.transaction
        numbers = {
            *transaction.numbers,
            *([transaction.amount] if transaction.amount else []),
        }
        for at, feature in enumerate(self.features):
            if isinstance(feature, NumberFeature) and feature.field not in numbers:
                _unknown(at, "field", feature.field, numbers)
            if isinstance(feature, CategoryFeature) and feature.field not in transaction.categories:
                _unknown(at, "field", feature.field, transaction.categories)
            if isinstance(feature, WindowFeature):
                if feature.entity not in transaction.entities:
                    _unknown(at, "entity", feature.entity, transaction.entities)
                if feature.names and len(feature.names) != len(feature.windows):
                    n = len(feature.names)
                    msg = f"features[{at}].names has {n} names; expected one a window"
                    raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _beyond_this_machine_nothing_is_open(self) -> Self:
        host = self.worker.web_host
        if not self.worker.web_port:
            return self
        if self.access.is_open and not is_loopback(host):
            msg = (
                f"worker.web_host is {shown(host)}, and nobody would have to say who they are; "
                "expected access.tokens (weir token new), access.proxy_header, or 127.0.0.1"
            )
            raise ValueError(msg)
        # A proxy on this machine brings requests from beyond it.
        if not self.access.is_open and self.learner.key == LearnerSettings().key:
            msg = (
                "learner.key is the development key, and [access] says who may ask; expected a "
                "key of your own: by it workers know each other, and let each other in"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _snapshots_come_before_stale(self) -> Self:
        stale, interval = self.latency.stale_after, self.learner.snapshot_interval
        if stale is not None and stale <= interval:
            expected = f"expected more than learner.snapshot_interval, {interval} ms"
            raise ValueError(f"latency.stale_after is {stale} ms; {expected}")
        return self

    @model_validator(mode="after")
    def _policy_names_what_is_declared(self) -> Self:
        transaction = self.transaction
        for table, lists in (("allow", self.policy.allow), ("block", self.policy.block)):
            for entity in sorted(set(lists) - set(transaction.entities)):
                msg = f"policy.{table} names {shown(entity)}; expected one of transaction.entities"
                raise ValueError(msg)
        parts = [*self.policy.rules, *self.latency.rules]
        asks_amount = any((part.amount_min, part.amount_max) != (None, None) for part in parts)
        if (self.policy.kind == "cost" or asks_amount) and not transaction.amount:
            what = 'policy.kind "cost" and rules with amounts need'
            msg = f"{what} transaction.amount; expected the name of a field"
            raise ValueError(msg)
        for table, rules in (("policy", self.policy.rules), ("latency", self.latency.rules)):
            for at, rule in enumerate(rules):
                _part(f"{table}.rules[{at}]", rule, transaction.segments)
        repeats = self.policy.repeats
        if repeats is not None and repeats.entity not in transaction.entities:
            expected = "expected one of transaction.entities"
            msg = f"policy.repeats.entity is {shown(repeats.entity)}; {expected}"
            raise ValueError(msg)
        return self


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _part(where: str, part: PartSettings, segments: tuple[str, ...]) -> None:
    low, high = part.amount_min, part.amount_max
    if low is not None and high is not None and low >= high:
        msg = f"{where}.amount_max is {high:g}; expected more than amount_min"
        raise ValueError(msg)
    for segment in sorted(set(part.segments) - set(segments)):
        msg = f"{where}.segments names {shown(segment)}; expected one of transaction.segments"
        raise ValueError(msg)


def _unknown(at: int, key: str, value: str, known: Any) -> None:
    expected = ", ".join(sorted(known)) or "a field that [transaction] declares"
    msg = f"features[{at}].{key} is {shown(value)}; expected one of: {expected}"
    raise ValueError(msg)


def load(path: Path | None = None, profile: str | None = None, **overrides: Any) -> Settings:
    """Settings from a TOML file, over its profile, under the environment and ``overrides``.

    ``overrides`` are tables by name, ``load(topics={"partitions": 1})``, and win over
    everything. Raises Misconfigured with every key that cannot work.

    >>> load(profile="handbook").transaction.entities
    ('CUSTOMER_ID', 'TERMINAL_ID')
    """
    told = _read(path) if path else {}
    chosen = str(profile or os.environ.get("WEIR_PROFILE") or told.get("profile", "card"))
    if chosen not in PROFILES:
        msg = f"profile is {shown(chosen)}; expected one of: {', '.join(PROFILES)}"
        raise Misconfigured(msg)
    base = tomllib.loads(resources.files("app.profiles").joinpath(f"{chosen}.toml").read_text())
    if "features" in told:  # the profile tells what people could change of its own
        base.pop("explain", None)
    merged = _merge(_merge(base, told), {"profile": chosen})
    try:
        settings = Settings(**merged)
        if overrides:
            settings = Settings.model_construct(
                **{
                    **{name: getattr(settings, name) for name in Settings.model_fields},
                    **{
                        name: _overridden(getattr(settings, name), value)
                        for name, value in overrides.items()
                    },
                }
            )
    except ValidationError as error:
        raise Misconfigured(_explain(error, path)) from None
    except SettingsError as error:
        cause = f": {error.__cause__}" if error.__cause__ else ""
        raise Misconfigured(f"environment: {error}{cause}; expected JSON") from None
    return settings


def _overridden(table: Any, value: Any) -> Any:
    if isinstance(table, BaseModel) and isinstance(value, dict):
        return type(table)(**{**table.model_dump(context=TO_READ), **value})
    return value


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{path}: {error.strerror}; expected a TOML file"
        raise Misconfigured(msg) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{path}: not TOML: {error}"
        raise Misconfigured(msg) from None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _explain(error: ValidationError, path: Path | None) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "settings"
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            text += _instead(problem["loc"])
        given = problem.get("input")
        value = "" if isinstance(given, dict | BaseModel) else f" is {shown(given)}"
        lines.append(f"{where}{value}: {text}")
    return "\n".join([f"{path or 'settings'}: {len(lines)} problem(s)", *lines])


def _instead(where: tuple[int | str, ...]) -> str:
    """The settings that a table has, as an error names them; nothing where it is not a table."""
    table: Any = Settings
    for part in where[:-1]:
        found = table.model_fields.get(part)
        if found is None or not (isinstance(found.annotation, type)):
            return ""
        table = found.annotation
        if not issubclass(table, BaseModel):
            return ""
    return f"; expected one of: {', '.join(sorted(table.model_fields))}"
