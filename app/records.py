"""The words: what lies on the topics and what the folds hand to each other.

Each ``Struct`` is the value of one topic (JSON); their JSON Schemas are generated from here
into ``docs/schemas``. Times are epoch milliseconds, UTC, event time unless said otherwise.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

#: Version of every value that weir publishes; a breaking change raises it.
SCHEMA_VERSION = 1

LabelSource = str
#: Why a score is not simply the model's (``core.fallback``); "": it is.
Fallback = Literal["", "late", "no_model", "stale", "failed"]
Outcome = Literal["learn", "duplicate", "early", "unknown", "expired", "corrected", "rejected"]

#: Statistics of an entity's recent transactions; what each is stands in ``core.windows``.
Stat = Literal[
    "count",
    "sum",
    "mean",
    "max",
    "std",
    "ratio",
    "zscore",
    "since_last",
    "distinct",
    "seen",
    "frauds",
    "risk",
    "rank",
    "peak",
    "burst",
    "share",
    "since_fraud",
    "since_first_fraud",
    "since_legitimate",
    "last",
    "run",
]


class Partition(NamedTuple):
    """A topic's partition: one totally ordered log."""

    topic: str
    partition: int


class Position(NamedTuple):
    """Where a record lies; orders all records of one partition."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        """As error messages show it.

        >>> str(Position("transactions", 3, 1042))
        'transactions[3]@1042'
        """
        return f"{self.topic}[{self.partition}]@{self.offset}"


Headers = tuple[tuple[str, bytes], ...]


class Record(msgspec.Struct, frozen=True, gc=False):
    """One Kafka record as it was read."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int  # the broker's or the producer's clock, not event time
    headers: Headers = ()


class Send(msgspec.Struct, frozen=True, gc=False):
    """One record to be written."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class ModelVersion(msgspec.Struct, frozen=True):
    """Which model scored: a function of the examples log up to ``position``.

    ``position`` is the offset of the last example applied (-1: none); ``digest`` is a
    digest over all that was learnt, in order, so equal versions mean equal models.
    """

    name: str
    position: int
    digest: str

    def __str__(self) -> str:
        """As the audit shows it.

        >>> str(ModelVersion("champion", 17, "a0"))
        'champion@17/a0'
        """
        return f"{self.name}@{self.position}/{self.digest}"


class Source(msgspec.Struct, frozen=True):
    """Where the transaction of a record lies, and when it was published (wall clock)."""

    topic: str
    partition: int
    offset: int
    published_ms: int


class Reason(msgspec.Struct, frozen=True):
    """One feature's share in a score: ``contribution`` is additive to the model's margin."""

    feature: str
    value: float | None
    contribution: float
    text: str


class Hops(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Transactions on their way from one entity stage to the next, in columns (internal).

    MessagePack. Packed columns are little-endian, 8 bytes a number, one column after another.
    """

    schema: str  # digest of the features' names
    ids: list[str]
    keys: list[list[str]]  # by entity
    segments: list[list[str]]  # by declared segment
    traces: list[bytes | None]  # none at all: no transaction carries one
    whole: bytes  # times (ms), source partitions and offsets, times of publishing (ms)
    amounts: bytes
    rows: bytes  # features known so far, in schema order, one transaction after another


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """A scored transaction: everything that was used to decide, nothing to be recomputed later."""

    transaction_id: str
    time_ms: int
    entities: dict[str, str]
    amount: float
    score: float  # [0, 1], higher is more suspicious
    is_alert: bool
    features: list[float | None]  # as used, in schema order; null: missing
    feature_schema: str  # digest of the features' names
    model: ModelVersion
    source: Source
    reasons: list[Reason] = []
    propensity: float = 0.0  # probability that the policy shows it to a person
    raw: float = 0.0  # the model's own score: before calibration and what stands in for it
    segments: dict[str, str] = {}  # values of the declared segments; "": missing
    fallback: Fallback = ""
    schema_version: int = SCHEMA_VERSION

    def whole(self) -> Score:
        """Itself; what is kept of a score until a label asks for it is less."""
        return self


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """A score that the policy brings to a person."""

    transaction_id: str
    time_ms: int
    entities: dict[str, str]
    amount: float
    score: float
    policy: str  # what fired, in words
    reasons: list[Reason]  # most suspicious first
    model: ModelVersion
    source: Source
    links: dict[str, str] = {}  # entity: path of its recent history, on a worker's web server
    repeats: int = 0  # alerts of the same entity that were held back before this one
    segments: dict[str, str] = {}  # values of the declared segments; "": missing
    fallback: Fallback = ""
    schema_version: int = SCHEMA_VERSION


class Example(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="example"):
    """The features as they were when scored, with the label: one fact for the learner."""

    transaction_id: str
    time_ms: int
    amount: float
    entities: dict[str, str]
    score: float
    features: list[float | None]
    feature_schema: str
    is_fraud: bool
    label_time_ms: int
    label_source: LabelSource  # "maturity": no label came in time
    origin: tuple[str, int, int]  # position of the record that completed the example
    weight: float = 1.0  # 1 / the share of such examples that is kept
    is_alert: bool = False
    propensity: float = 0.0  # probability that the policy showed it to a person
    raw: float = 0.0  # the model's own score: before calibration and what stands in for it
    segments: dict[str, str] = {}  # values of the declared segments; "": missing
    fallback: Fallback = ""
    schema_version: int = SCHEMA_VERSION


class Summary(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="summary"):
    """A run of scores of one partition in a few numbers, for the monitor."""

    partition: int
    first_offset: int
    last_offset: int
    n: int
    n_alerts: int
    mean_score: float
    bins: list[int] = []  # of the log-odds of each score (``core.scoremap``)
    n_looked: int = 0  # of them the features were looked at
    feature_schema: str = ""  # of these
    feature_means: list[float | None] = []  # in schema order; null: never there
    feature_squares: list[float] = []  # sums of squared deviations from those means
    rows: bytes = b""  # those looked at, packed (``core.drift.sample``)
    row_ids: list[str] = []  # of their transactions
    row_times_ms: list[int] = []
    row_segments: dict[str, list[str]] = {}  # by declared segment
    first_time_ms: int
    last_time_ms: int
    schema_version: int = SCHEMA_VERSION


class Feedback(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A confirmed label on its way back to an entity stage (internal)."""

    transaction_id: str
    is_fraud: bool
    partition: int = 0  # source position of the transaction
    offset: int = -1
    time_ms: int | None = None  # of the transaction; null: not told, as before there were buckets


class LabelOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one label."""

    transaction_id: str
    outcome: Outcome
    is_fraud: bool
    label_source: LabelSource
    origin: tuple[str, int, int]  # position of the label
    reason: str = ""
    schema_version: int = SCHEMA_VERSION


class Verdict(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="verdict"):
    """What the join makes of a label that teaches nothing, on its way to the learner.

    Read again after a crash, scores and labels may meet in another order and the join decide
    otherwise; in the order of the examples log the first word counts.
    """

    outcome: LabelOutcome
    schema_version: int = SCHEMA_VERSION


class Undo(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="undo"):
    """What weir does about an incident is to end, and the model of before to decide again.

    Somebody's word on the examples log: the learner is a function of that.
    """

    incident: str
    actor: str
    reason: str
    schema_version: int = SCHEMA_VERSION


#: What lies on the examples log.
Fact = Example | Summary | Verdict | Undo


class Action(msgspec.Struct, frozen=True):
    """What somebody did to weir: a promotion, a rollback, other settings (internal)."""

    kind: str  # one of few: "configuration", "promotion", "rollback", "reaction", "reset"...
    subject: str  # of what: a model, a role
    identity: str  # the same whenever the same is said again
    actor: str = "weir"
    detail: dict[str, Any] = {}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the audit: a link of its partition's chain. Ids, never payloads."""

    place: int  # in the chain, from 0: its own offset
    previous: str  # SHA-256 of the value of the entry before; of the first: zeros
    kind: str  # "alert", "correction", "configuration", "promotion", "rollback", "reaction"...
    subject: str  # transaction id, model, role
    actor: str  # who did it: weir, the source of a label, a person
    time_ms: int  # when it was said (wall clock)
    at: tuple[str, int, int]  # position of the record that said it
    identity: str  # the same whenever the same is said again
    detail: dict[str, Any]
    configured: dict[str, str] = {}  # role: digest of the settings entered last, in this chain
    schema_version: int = SCHEMA_VERSION


class Bins(msgspec.Struct, frozen=True):
    """How a feature's values lay before and after; ``edges`` lie between the bins."""

    edges: list[float]
    before: list[int]  # one more than edges
    after: list[int]


class Drifted(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that moved, and how far."""

    name: str
    aspect: str  # "level", "spread", "missing" of a feature
    contribution: float  # share of all that moved, [0, 1]
    change: float  # in deviations that are usual for it, with its sign
    since_ms: int  # event time
    before: float | None = None  # mean, or share where the aspect is "missing"
    after: float | None = None
    psi: float | None = None
    jensen_shannon: float | None = None
    kolmogorov_smirnov: float | None = None
    wasserstein: float | None = None  # in the feature's unit
    bins: Bins | None = None


class Concentration(msgspec.Struct, frozen=True):
    """A part of the traffic that moved more than the rest."""

    segment: str
    value: str
    share: float  # of the rows, [0, 1]
    of_change: float  # of what moved, [0, 1]


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """The world changed: what, since when, from what to what, and what to do.

    One change is one incident: it is opened, updated while it grows, and closed.
    """

    detector: str
    kind: Literal["score", "performance", "feature", "label", "traffic"]
    subject: str  # what drifted most
    before: float
    after: float
    since_ms: int  # event time, estimated onset
    detected_ms: int  # event time of this record
    n_examples: int  # learnt by then
    model: ModelVersion
    incident: str = ""  # equal for all records of one incident
    event: Literal["opened", "updated", "closed"] = "opened"
    severity: Literal["info", "warning", "critical"] = "warning"
    ended: Literal["", "returned", "adopted"] = ""  # as it was, or the new way is the usual one
    features: list[Drifted] = []  # what moved, most first
    samples: list[str] = []  # ids of transactions that show it
    segments: list[Concentration] = []  # where it is concentrated, most first
    action: str = ""  # what a person should look at first
    reaction: str = ""  # what weir does by itself, as declared
    model_before: ModelVersion | None = None  # when it began
    expected_average_precision: float | None = None  # if scores are the probabilities they claim
    schema_version: int = SCHEMA_VERSION
