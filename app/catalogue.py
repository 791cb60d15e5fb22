"""Every metric and every bound of memory in one table: ``docs/metrics.md`` is made of it."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from app.config import InvestigatorSettings, RepeatSettings, Settings
from app.core.board import HELD_MAX
from app.core.chain import REMEMBERED_MAX
from app.core.entity import EXPECTED_MAX
from app.metrics import BOUNDS
from app.topics import SNAPSHOT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic import BaseModel

    from app.metrics import Declared

_INTRO: Final = """# Metrics

Made by `weir metrics --markdown`; a test holds it against the code. `/metrics` of every worker and
learner serves them (Prometheus text). Units are seconds, bytes, records and ratios; label sets are
closed: no label holds what a publisher writes. Beside them stand the client's own `process_*`
(memory, CPU, open files). A histogram has the usual `_bucket`, `_sum` and `_count`.

What is asked of a gauge by partition holds for the process that owns the partition at the moment.
Alert rules on them: [compose/prometheus/rules.yaml](../compose/prometheus/rules.yaml), each with a
page in [runbooks](runbooks).
"""
_BOUNDS_INTRO: Final = """
## Bounds of memory

Whatever grows with the traffic has a bound: `weir_bound{bound="..."}` is it, `weir_bound_used` how
much of it is taken. A bound that is reached costs what is said here, and no memory.

| bound | default | what it is of, and what happens there |
| --- | --- | --- |
"""
#: Bounds that are no settings, and tables that are not there by default.
_CONSTANTS: Final = {
    "board.held_max": HELD_MAX,
    "entity.expected_max": EXPECTED_MAX,
    "audit.remembered_max": REMEMBERED_MAX,
    "snapshot_bytes": SNAPSHOT_BYTES,
}
_TABLES: Final[dict[str, type[BaseModel]]] = {
    "policy.repeats": RepeatSettings,
    "learner.investigators": InvestigatorSettings,
}


def default_of(bound: str) -> int:
    """The default of a bound.

    >>> default_of("join.early_max"), default_of("policy.repeats.entities_max")
    (100000, 100000)
    """
    if bound in _CONSTANTS:
        return _CONSTANTS[bound]
    table, _, name = bound.rpartition(".")
    of: Any = _TABLES.get(table) or Settings.model_fields[table].annotation
    return int(of.model_fields[name].default)


def markdown(declared: Iterable[Declared]) -> str:
    """The page: a table a group, then the bounds."""
    return "".join([_INTRO, *_groups(declared), _BOUNDS_INTRO, *_bounds()])


def _groups(declared: Iterable[Declared]) -> Iterator[str]:
    by_group = sorted(declared, key=lambda one: one.group)
    for group, metrics in groupby(by_group, key=lambda one: one.group):
        yield f"\n## {group}\n\n| metric | kind | labels | what |\n| --- | --- | --- | --- |\n"
        for one in metrics:
            labels = ", ".join(f"`{label}`" for label in one.labels)
            yield f"| `{one.name}` | {one.kind} | {labels} | {one.text} |\n"


def _bounds() -> Iterator[str]:
    for name, text in BOUNDS.items():
        yield f"| `{name}` | {default_of(name):,} | {text} |\n"


def as_object(declared: Iterable[Declared]) -> dict[str, Any]:
    """The same for programs."""
    metrics = [one._asdict() for one in declared]
    return {"metrics": metrics, "bounds": {name: default_of(name) for name in BOUNDS}}


def text(declared: Iterable[Declared]) -> str:
    """A line a metric."""
    lines = []
    for one in declared:
        labels = f"{{{','.join(one.labels)}}}" if one.labels else ""
        lines.append(f"{one.name + labels:58} {one.text}\n")
    return "".join(lines)
