"""The search for a model and its parameters over a file, judged as a stream judges.

A trial is one prequential pass: every transaction is scored before its label is known, then
learnt from. Features and what is learnt when do not depend on the model; they are made once,
and each trial goes through them with a learner of its own (``backtest.Lane``), so its figure is
that of ``weir backtest``. Optuna proposes; what does poorly on a part of the labels is stopped
there.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from pydantic import ValidationError

from app import __version__
from app.backtest import Lane, Stream, Turn, advance, due_after, row_of
from app.config import ModelSettings
from app.core.features import FeaturePlan
from app.core.measures.ranking import Ranking
from app.core.pending import MATURITY
from app.errors import Misconfigured, Refused, shown
from app.files import UNLABELLED
from app.learning import new_learner
from app.records import Example

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.config import Settings
    from app.files import Columns

#: Eighths of the known labels. A trial may end after two and after four of them: the better half
#: goes on. Earlier nobody has learnt enough, and a simple model looks best.
RUNGS: Final = 8
_FIRST_RUNG: Final = 2
_KEEP_ONE_IN: Final = 2
#: Settings of ``[model]`` that may be searched; parameters have tables of their own.
_MODEL_KEYS: Final = ("name", "seed", "cold_start")
_EXPECTED: Final = "expected { low, high }, with log or step, or { choices = [...] }, or one value"


@dataclass(frozen=True)
class Range:
    """What a parameter may be: numbers from ``low`` to ``high``, or one of ``choices``."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()

    @classmethod
    def of(cls, where: str, told: Any) -> Range:
        """Read a range as it stands in a file; a plain value is its only choice.

        Raises Misconfigured.

        >>> Range.of("params.forest.n_trees", {"low": 20, "high": 200, "step": 20}).low
        20
        >>> Range.of("params.forest.min_leaf", 5).choices
        (5,)
        """
        if not isinstance(told, dict):
            return cls(choices=(_scalar(where, told),))
        if set(told) == {"choices"} and isinstance(told["choices"], list) and told["choices"]:
            return cls(choices=tuple(_scalar(where, value) for value in told["choices"]))
        if not {"low", "high"} <= set(told) <= {"low", "high", "log", "step"}:
            raise Misconfigured(f"{where} is {shown(told)}; {_EXPECTED}")
        found = cls(**told)
        found._check(where)
        return found

    @property
    def any(self) -> Any:
        """One value that it allows."""
        return self.choices[0] if self.choices else self.low

    @property
    def is_whole(self) -> bool:
        """Whether it is one of whole numbers: no bound has a point."""
        return all(isinstance(bound, int) for bound in (self.low, self.high, self.step or 0))

    def ask(self, trial: Any, name: str) -> Any:
        """Let a trial choose a value."""
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        if self.is_whole:
            return trial.suggest_int(name, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def _check(self, where: str) -> None:
        numbers = [self.low, self.high, *([] if self.step is None else [self.step])]
        for number in numbers:
            if type(number) not in {int, float} or not math.isfinite(number):
                raise Misconfigured(f"{where} has {shown(number)}; expected a finite number")
        if self.log not in {True, False}:
            raise Misconfigured(f"{where}.log is {shown(self.log)}; expected true or false")
        if self.low > self.high:
            raise Misconfigured(
                f"{where}.low is {self.low}, above its high, {self.high}; expected low <= high"
            )
        if self.log and (self.low <= 0 or self.step is not None):
            raise Misconfigured(f"{where} is on a log scale; expected low above 0, and no step")
        if self.step is not None and self.step <= 0:
            raise Misconfigured(f"{where}.step is {self.step}; expected a number above 0")


def _scalar(where: str, value: Any) -> Any:
    if isinstance(value, bool | int | float | str):
        return value
    raise Misconfigured(f"{where} has {shown(value)}; expected a number, a text, true or false")


def _table(where: str, told: Any) -> dict[str, Any]:
    if isinstance(told, dict):
        return told
    raise Misconfigured(f"{where} is {shown(told)}; expected a table")


@dataclass(frozen=True)
class Space:
    """What is searched: settings of ``[model]``, and the parameters of each model by its name.

    >>> space = Space.parse('''
    ... [params.forest]
    ... n_trees = { low = 20, high = 200, step = 20 }
    ... [params.logistic]
    ... ''')
    >>> space.model["name"].choices
    ('forest', 'logistic')
    """

    model: Mapping[str, Range]
    params: Mapping[str, Mapping[str, Range]]
    text: str

    @classmethod
    def read(cls, path: Path) -> Space:
        """The space that a TOML file declares. Raises Misconfigured."""
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise Misconfigured(f"{path}: {error.strerror}; expected a TOML file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Misconfigured(f"{path}: not TOML: {error}") from None
        except Misconfigured as error:
            raise Misconfigured(f"{path}: {error}") from None

    @classmethod
    def parse(cls, text: str) -> Space:
        """The space that a text declares. Raises Misconfigured, and TOMLDecodeError."""
        told = tomllib.loads(text)
        if stray := sorted(set(told) - {"model", "params"}):
            expected = "expected [model] and [params.NAME], a table a model"
            raise Misconfigured(f"{shown(stray[0])} is no table of a space; {expected}")
        model, params = told.get("model", {}), told.get("params", {})
        _table("model", model)
        for name, table in _table("params", params).items():
            _table(f"params.{name}", table)
        if stray := sorted(set(model) - set(_MODEL_KEYS)):
            expected = f"expected one of: {', '.join(_MODEL_KEYS)}; parameters lie in [params.NAME]"
            raise Misconfigured(f"model.{stray[0]} cannot be searched; {expected}")
        if not (model or params):
            raise Misconfigured("nothing is declared; expected [model] or [params.NAME]")
        ranges = {key: Range.of(f"model.{key}", value) for key, value in model.items()}
        if "name" not in ranges and params:
            ranges["name"] = Range(choices=tuple(params))
        its = {
            name: {key: Range.of(f"params.{name}.{key}", v) for key, v in table.items()}
            for name, table in params.items()
        }
        if stray := sorted(set(its) - set(ranges["name"].choices if "name" in ranges else its)):
            raise Misconfigured(f"params.{stray[0]} is of no model that model.name may be")
        return cls(ranges, its, json.dumps(told, sort_keys=True))

    def model_of(self, chosen: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
        """What ``[model]`` becomes with the values that a trial has chosen."""
        told = settings.model.model_dump(exclude={"params"})
        told |= {key: chosen[key] for key in _MODEL_KEYS if key in chosen}
        name = told["name"]
        # The configured parameters are those of the configured model.
        params = dict(settings.model.params) if name == settings.model.name else {}
        params |= {key: chosen[f"{name}.{key}"] for key in self.params.get(name, {})}
        return {**told, "params": params}

    def check(self, settings: Settings, plan: FeaturePlan) -> None:
        """Make each model once. Raises Misconfigured where one cannot be made."""
        for name in self.model["name"].choices if "name" in self.model else [settings.model.name]:
            chosen = {key: its.any for key, its in self.model.items()} | {"name": name}
            chosen |= {f"{name}.{key}": its.any for key, its in self.params.get(name, {}).items()}
            new_learner(with_model(settings, self.model_of(chosen, settings)), plan)

    def ask(self, trial: Any) -> dict[str, Any]:
        """Let a trial choose: settings by name, parameters as ``model.parameter``."""
        chosen = {key: its.ask(trial, key) for key, its in self.model.items()}
        for name in [chosen["name"]] if "name" in chosen else self.params:
            its = self.params.get(name, {})
            chosen |= {f"{name}.{key}": r.ask(trial, f"{name}.{key}") for key, r in its.items()}
        return chosen


def with_model(settings: Settings, model: Mapping[str, Any]) -> Settings:
    """The settings with another ``[model]``. Raises Misconfigured."""
    try:
        table = ModelSettings(**model)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise Misconfigured(
            f"model.{where} is {shown(problem['input'])}; {problem['msg']}"
        ) from None
    return settings.model_copy(update={"model": table})


class Tape:
    """A file's stream as it was folded once, to be gone through by one model after another.

    Only labels count that are known before the last transaction: what comes later nobody could
    have judged a model by.
    """

    def __init__(
        self,
        settings: Settings,
        columns: Columns,
        delay_ms: int,
        progress: Callable[[int], Any] = int,
    ) -> None:
        """Fold the file. Raises Refused where no label of a fraud is known in time."""
        self.settings = settings
        self.plan = FeaturePlan.of(settings.features, settings.transaction.entities)
        due_ms = due_after(columns.times_ms, delay_ms)
        end_ms = columns.times_ms[-1] if len(columns) else 0
        known = replace(columns, labels=np.where(due_ms <= end_ms, columns.labels, UNLABELLED))
        self.n_labels = int((known.labels != UNLABELLED).sum())
        if not (known.labels == 1).any():
            raise Refused(
                f"no fraud of {len(columns):,} transactions is known in time; expected labels, "
                "and a --delay shorter than the file"
            )
        self.stream = Stream(settings, self.plan, known)
        self.turns: list[Turn] = []
        for turn in self.stream.turns(due_ms, due_ms):
            self.turns.append(turn)
            progress(turn.part.stop - turn.part.start)

    @property
    def digest(self) -> str:
        """Digest of all that a model sees."""
        columns, state = self.stream.columns, hashlib.sha256()
        for array in (columns.times_ms, columns.labels, self.stream.rows):
            state.update(np.ascontiguousarray(array).tobytes())
        state.update("\n".join(columns.ids).encode())
        return state.hexdigest()[:16]

    def measure(
        self, model: Mapping[str, Any], report: Callable[[int, float], None] = lambda *_: None
    ) -> float:
        """Prequential average precision of a ``[model]``, over the known labels.

        ``report`` is told, after each eighth of them (``RUNGS``), that of the later half so far:
        the beginning says how a model begins. It may raise to end this. Raises Misconfigured
        where there is no such model.
        """
        its = with_model(self.settings, model)
        lane = Lane(its, self.plan, len(self.stream.columns))
        scores, is_fraud = np.empty(self.n_labels), np.empty(self.n_labels, np.bool_)
        rung = n = 0
        for turn in self.turns:
            advance(self.stream, turn, [lane])
            rows, known = self._judged(turn)
            part = slice(n, n + len(rows))
            scores[part], is_fraud[part] = lane.result.scores[rows], known
            n = part.stop
            if n * RUNGS // self.n_labels > rung:
                rung, later = n * RUNGS // self.n_labels, slice(n // 2, n)
                found = average_precision(scores[later], is_fraud[later])
                if not math.isnan(found):
                    report(rung, found)
        return average_precision(scores[:n], is_fraud[:n])

    def _judged(self, turn: Turn) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Rows whose label came in a turn, and what it was; maturity is nobody's label."""
        came = [
            fact
            for _, fact in (*turn.before, *turn.after)
            if isinstance(fact, Example) and fact.label_source != MATURITY
        ]
        rows = np.array([row_of(example) for example in came], np.int64)
        return rows, np.array([example.is_fraud for example in came], np.bool_)


def average_precision(scores: NDArray[np.float64], is_fraud: NDArray[np.bool_]) -> float:
    """Average precision as the learner counts it, in [0, 1]; NaN where there is no fraud."""
    ranking = Ranking()
    ranking.update(scores, is_fraud)
    return ranking.average_precision


class Tried(NamedTuple):
    """A trial that has ended: what it chose, how good that was, how far it came.

    ``average_precision`` is that of all labels where ``rung`` is the last, else of the later half
    of what it was judged by.
    """

    number: int  # -1: the model as it is configured
    model: dict[str, Any]
    average_precision: float
    rung: int
    seconds: float = 0.0


@dataclass
class Search:
    """A study of a tape: trials one after another, kept as they end.

    A study that lies in a file goes on where it stopped, as if it had not: what is proposed next
    is a function of the seed and of the trials that have ended. Raises Refused where the file
    holds another one.
    """

    tape: Tape
    space: Space
    seed: int = 42
    path: Path | None = None
    study: Any = field(init=False)
    configured: Tried = field(init=False)

    def __post_init__(self) -> None:
        """Open the study, or begin it."""
        optuna = optuna_or_refuse()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        storage = f"sqlite:///{self.path}" if self.path else None
        pruner = optuna.pruners.SuccessiveHalvingPruner(
            min_resource=_FIRST_RUNG, reduction_factor=_KEEP_ONE_IN
        )
        try:
            self.study = optuna.create_study(
                storage=storage,
                study_name="weir",
                direction="maximize",
                load_if_exists=True,
                pruner=pruner,
                sampler=optuna.samplers.RandomSampler(seed=self.seed),
            )
        except optuna.exceptions.OptunaError as error:
            raise Refused(f"{self.path}: {error}; expected a study that weir wrote") from None
        except Exception as error:  # whatever the database has to say
            if type(error).__module__.partition(".")[0] != "sqlalchemy":
                raise
            first = str(error).splitlines()[0]
            raise Refused(f"{self.path}: {first}; expected a study, or no file") from None
        self._refuse_another()
        self.space.check(self.tape.settings, self.tape.plan)
        self.configured = self._measure_configured()

    def _refuse_another(self) -> None:
        settings = self.tape.settings
        shared = settings.model_dump_json(include={"model", "transaction", "features", "entity"})
        waits = settings.join.model_dump_json()
        ours = {
            "data": self.tape.digest,
            "space": hashlib.sha256(self.space.text.encode()).hexdigest()[:16],
            "config": hashlib.sha256((shared + waits).encode()).hexdigest()[:16],
            "seed": self.seed,
            "version": __version__,
        }
        held = self.study.user_attrs.get("of")
        if held is None:
            self.study.set_user_attr("of", ours)
            return
        if others := [what for what, value in ours.items() if held.get(what) != value]:
            raise Refused(
                f"{self.path} is a study of other {' and '.join(others)}; expected the same, "
                "or another --study"
            )

    def _measure_configured(self) -> Tried:
        """The model as it is now, so that a search never ends with a worse one."""
        model, held = self.tape.settings.model.model_dump(), self.study.user_attrs.get("configured")
        if held is None:
            held = self.tape.measure(model)
            self.study.set_user_attr("configured", held)
        return Tried(-1, model, float(held), RUNGS)

    def run(
        self,
        n_trials: int,
        budget_s: float | None = None,
        on_trial: Callable[[], None] = lambda: None,
    ) -> None:
        """Go on until ``n_trials`` have ended in all; none is begun after ``budget_s``.

        ``on_trial`` is called after each. What has ended is kept, whatever interrupts this.
        """
        until = math.inf if budget_s is None else time.monotonic() + budget_s
        while self.n_ended < n_trials and time.monotonic() < until:
            self._one()
            on_trial()

    def _one(self) -> None:
        optuna = self._optuna
        # Of the seed and of what has ended, so that a study that was stopped proposes the same.
        self.study.sampler = optuna.samplers.TPESampler(seed=self.seed + self.n_ended)
        trial = self.study.ask()
        states = optuna.trial.TrialState

        def report(rung: int, value: float) -> None:
            trial.report(value, rung)
            if rung < RUNGS and trial.should_prune():
                raise optuna.TrialPruned

        try:
            model = self.space.model_of(self.space.ask(trial), self.tape.settings)
            trial.set_user_attr("model", model)
            # The same model would only say the same again.
            again = next((one for one in self.tried() if one.model == model), None)
            if again is not None and again.rung < RUNGS:
                trial.report(again.average_precision, again.rung)
                raise optuna.TrialPruned  # noqa: TRY301 - as ``report`` does
            found = self.tape.measure(model, report) if again is None else again.average_precision
            self.study.tell(trial, found)
        except optuna.TrialPruned:
            self.study.tell(trial, state=states.PRUNED)
        except BaseException:
            self.study.tell(trial, state=states.FAIL)
            raise

    @property
    def best(self) -> Tried:
        """The best of what was judged by all labels, the configured model included."""
        whole = [one for one in self.tried() if one.rung == RUNGS]
        return max([self.configured, *whole], key=lambda one: one.average_precision)

    @property
    def n_ended(self) -> int:
        """How many trials have ended, poor ones that were stopped among them."""
        return len(self._ended())

    def tried(self) -> list[Tried]:
        """The models tried, once each: those that were judged by all labels first, best first."""
        found: list[Tried] = []
        for trial in self._ended():
            model, rungs = trial.user_attrs["model"], trial.intermediate_values
            is_whole = trial.state == self._optuna.trial.TrialState.COMPLETE
            rung = RUNGS if is_whole else max(rungs)
            if all(one.model != model for one in found):
                value = trial.value if is_whole else rungs[rung]
                seconds = trial.duration.total_seconds()
                found.append(Tried(trial.number, model, value, rung, seconds))
        return sorted(found, key=lambda one: (-one.rung, -one.average_precision))

    def _ended(self) -> list[Any]:
        states = self._optuna.trial.TrialState
        return list(self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED)))


def optuna_or_refuse() -> Any:
    """Optuna, an extra. Raises Refused where it is not installed."""
    try:
        import optuna  # noqa: PLC0415 - an extra: nothing else needs it
    except ImportError:
        raise Refused("the search needs Optuna; run: pip install 'weir[tune]'") from None
    return optuna


def best_toml(search: Search) -> str:
    """The best model as a configuration that says where it comes from."""
    best, profile = search.best, search.tape.settings.profile
    found = f"average precision {best.average_precision:.6f}"
    if best is search.configured:
        note = f"weir tune: none of {search.n_ended} trials is better than this, {found}"
    else:
        before = f"as configured {search.configured.average_precision:.6f}"
        note = f"weir tune, trial {best.number} of {search.n_ended}: {found}, {before}"
    return model_toml(best.model, profile, [note])


def model_toml(model: Mapping[str, Any], profile: str, notes: Sequence[str] = ()) -> str:
    """A configuration with this ``[model]``, as ``weir check-config`` reads it.

    >>> print(model_toml({"name": "forest", "params": {"n_trees": 50}}, "card"), end="")
    profile = "card"
    <BLANKLINE>
    [model]
    name = "forest"
    <BLANKLINE>
    [model.params]
    n_trees = 50
    """
    plain = {key: value for key, value in model.items() if key != "params"}
    lines = [*(f"# {note}" for note in notes), f"profile = {_toml(profile)}", "", "[model]"]
    lines += [f"{key} = {_toml(value)}" for key, value in plain.items()]
    if model.get("params"):
        lines += ["", "[model.params]"]
        lines += [f"{_key(key)} = {_toml(value)}" for key, value in model["params"].items()]
    return "\n".join([*lines, ""])


def _key(key: str) -> str:
    is_bare = key.replace("_", "").replace("-", "").isalnum() and key.isascii()
    return key if is_bare else json.dumps(key)


def _toml(value: Any) -> str:
    """A value as TOML has it; JSON's texts, numbers and booleans are TOML's."""
    match value:
        case dict():
            inside = ", ".join(f"{_key(key)} = {_toml(v)}" for key, v in value.items())
            return f"{{ {inside} }}"
        case list() | tuple():
            return f"[{', '.join(_toml(one) for one in value)}]"
        case float() if not math.isfinite(value):
            return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
        case _:
            return json.dumps(value, ensure_ascii=False)
