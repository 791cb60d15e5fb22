"""No snapshot is opened before its signature holds, and then only what is on the list."""

import hashlib
import hmac
import json
import os
import pickle
import random
import subprocess
import zipfile
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from app.config import load
from app.core.features import FeaturePlan
from app.core.learner import Learner, Trail
from app.core.models import make_model
from app.core.scoring import Champion
from app.errors import Refused
from app.learning import new_learner
from app.records import Record
from app.shelf import (
    CHAMPION,
    LEARNER,
    Shelf,
    frozen,
    hints,
    newest,
    open_learner,
    opened,
    sealed,
    trail_of,
)
from app.snapshots import About, Frozen, about, freeze, seal, unseal
from tests.core.examined import evaluated, plain, stream

KEY = b"a key of this installation"
STREAM = load(profile="stream")
PLAN = FeaturePlan.of(STREAM.features, STREAM.transaction.entities)
SECRET = STREAM.learner.key.get_secret_value().encode()


class Runs:
    """A pickle that calls a function when it is loaded."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


def signed(body: bytes, key: bytes = KEY) -> bytes:
    """What ``seal`` makes of a pickle, here of any bytes."""
    return b"WEIR2" + hmac.digest(key, body, hashlib.sha256) + body


def packed(pickled: bytes, said: About | None = None, key: bytes = KEY) -> bytes:
    """A pickle, well signed."""
    return Frozen(said or About(), pickled, []).sealed(key)


STATES: list[Any] = [
    {"n": 1, "x": [1.5, None, True, "t", b"b"]},
    (np.arange(5), np.float64(0.1), np.zeros((2, 3), np.int8), np.random.default_rng(1)),
    (deque([1, 2], maxlen=3), OrderedDict(a=1), random.Random(3), frozenset({1})),
]


@pytest.mark.parametrize("state", STATES, ids=["plain", "numpy", "library"])
def test_snapshot_opens_as_it_was_sealed(state):
    """Byte for byte the same state."""
    assert pickle.dumps(state) == pickle.dumps(unseal(seal(state, KEY), [KEY]))


MODELS = [
    ("logistic", {}),
    ("forest", {"n_trees": 2}),
    ("average", {}),
    ("stack", {}),
    ("river.preprocessing.StandardScaler | river.linear_model.LogisticRegression", {}),
    ("river.tree.HoeffdingTreeClassifier", {}),
    ("river.naive_bayes.GaussianNB", {}),
    ("river.forest.ARFClassifier", {"n_models": 2}),
]


@pytest.mark.parametrize(("name", "params"), MODELS, ids=[name for name, _ in MODELS])
def test_every_model_opens_and_goes_on_identically(name, params):
    """The list lets pass all that our models and River's are made of."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(300, 2))
    is_fraud = (rows[:, 0] > 0).astype(np.int8)
    model = make_model(name, ["a", "b"], seed=1, **params)
    model.learn_many(rows[:200], is_fraud[:200])
    copy = unseal(seal(model, KEY), [KEY])
    for one in (model, copy):
        one.learn_many(rows[200:], is_fraud[200:])
    assert model.score_many(rows).tobytes() == copy.score_many(rows).tobytes()


def test_evaluation_opens_as_it_was_sealed():
    """Its parts are all of those classes that a snapshot may hold."""
    evaluation = evaluated(stream(1, 300))
    assert plain(evaluation) == plain(unseal(seal(evaluation, KEY), [KEY]))


def test_torn_snapshot_is_refused_wherever_it_was_cut():
    """Every byte of the head, and bytes sampled from the rest."""
    snapshot = seal({"x": list(range(2_000))}, KEY)
    rng = random.Random(1)
    cuts = [*range(60), *rng.sample(range(60, len(snapshot)), 200), len(snapshot) - 1]
    for cut in cuts:
        with pytest.raises(Refused, match="torn or foreign"):
            unseal(snapshot[:cut], [KEY])


def test_changed_snapshot_is_refused_whichever_byte_changed():
    """One bit is enough; so is a byte too many."""
    snapshot = seal({"x": list(range(2_000))}, KEY)
    rng = random.Random(2)
    for at in [*range(60), *rng.sample(range(60, len(snapshot)), 200)]:
        changed = bytearray(snapshot)
        changed[at] ^= 1 << rng.randrange(8)
        with pytest.raises(Refused, match="torn or foreign"):
            unseal(bytes(changed), [KEY])
    with pytest.raises(Refused, match="torn or foreign"):
        unseal(snapshot + b"\0", [KEY])


def test_snapshot_of_another_installation_is_refused():
    """One of several keys is enough: a key can be changed without losing the model."""
    snapshot = seal(1, b"theirs")
    with pytest.raises(Refused, match=r"learner\.key"):
        unseal(snapshot, [KEY])
    with pytest.raises(Refused, match=r"learner\.key"):
        unseal(snapshot, [])
    assert 1 == unseal(snapshot, [KEY, b"theirs"])


def test_pickle_of_a_stranger_is_not_loaded(tmp_path):
    """Without our signature no opcode of it runs."""
    evil = pickle.dumps(Runs(os.system, f"touch {tmp_path}/ran"))
    for snapshot in (evil, b"WEIR2" + evil, packed(evil, key=b"stranger")):
        with pytest.raises(Refused):
            unseal(snapshot, [KEY])
    assert [] == list(tmp_path.iterdir())


def global_of(module: str, name: str) -> bytes:
    """A pickle that asks for a name of a module, dots and all, and calls it with a text."""
    pushed = b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, name))
    return b"\x80\x04" + pushed + b"\x93\x8c\x01x\x85R."


NOT_LISTED = [
    ("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "exec"),
    ("builtins", "getattr"), ("builtins", "open"), ("subprocess", "Popen"), ("pathlib", "Path"),
    ("importlib", "import_module"), ("app.snapshots", "unseal"), ("app.config", "load"),
    ("app.corex", "y"), ("app.recordsx", "y"), ("app", "core"), ("river", "datasets"),
    # What our packages and River's merely import.
    ("app.core.entity", "hashlib.sha256"), ("app.core.learner", "np.load"),
    ("app.core.models.registry", "Any"), ("app.core.entity", "np.memmap"),
    ("river.datasets.base", "zipfile.ZipFile"), ("river.datasets.base", "pathlib.Path"),
    ("river.datasets.base", "os.system"), ("river.datasets.base", "shutil.rmtree"),
    ("river.datasets.base", "tarfile.TarFile"), ("app.core.entity", "np.testing.IgnoreException"),
    ("app.core.models.digest", "np.f2py.subprocess.Popen"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), NOT_LISTED)
def test_signed_pickle_finds_only_what_is_listed(module, name):
    """A key that was lost opens no shell: neither by its name nor through who imports it."""
    with pytest.raises(Refused, match=r"expected only models|another version of weir"):
        unseal(packed(global_of(module, name)), [KEY])


def test_signed_pickle_runs_nothing(tmp_path):
    """Functions and classes of others are refused, though their pickle is well signed."""
    target = tmp_path / "ran"
    for evil in (
        Runs(os.system, f"touch {target}"),
        Runs(subprocess.Popen, ["touch", str(target)]),
        Runs(zipfile.ZipFile, str(target), "w"),
        Runs(Path.touch, target),
    ):
        with pytest.raises(Refused):
            unseal(seal(evil, KEY), [KEY])
    assert not target.exists()


def test_broken_pickle_under_our_signature_is_refused():
    """An older weir may have written what this one cannot read: that is no crash."""
    for pickled in (b"", b"\x80\x05", b"garbage", pickle.dumps(1)[:-1]):
        with pytest.raises(Refused):
            unseal(packed(pickled), [KEY])
    sound = packed(pickle.dumps(1))[37:]
    for body in (b"", b"garbage", sound[:-3], sound[:20], b"\xff" * 4 + sound[4:]):
        with pytest.raises(Refused):
            unseal(signed(body), [KEY])


@pytest.mark.parametrize(
    "arrays", [[(-1, 1)], [(8, 0)], [(7, 8)], [(1 << 40, 8)], [(8, 8), (8, 8)]]
)
def test_head_that_lies_of_its_arrays_is_refused(arrays):
    """Neither memory that is not there nor an array cut amiss follows from what it says."""
    sound = freeze(np.arange(4), About())
    body = sound.sealed(KEY)[37:]
    n = int.from_bytes(body[:4], "little")
    head = json.loads(body[4 : 4 + n]) | {"arrays": arrays}
    told = json.dumps(head).encode()
    with pytest.raises(Refused):
        unseal(signed(len(told).to_bytes(4, "little") + told + body[4 + n :]), [KEY])


def test_class_that_is_gone_is_refused():
    """A snapshot of a model that this version has no longer."""
    with pytest.raises(Refused, match="another version of weir"):
        unseal(packed(global_of("app.core.models.forest", "Gone")), [KEY])
    with pytest.raises(Refused, match="another version of weir"):
        unseal(packed(global_of("app.core.gone", "Gone")), [KEY])


# ---- Of several snapshots, the newest that verifies.


def record(offset: int, value: bytes | None, key: bytes = b"champion/0") -> Record:
    """A record of the models topic."""
    return Record(offset, key, value, 0)


def at(position: int, key: bytes = SECRET) -> bytes:
    """A snapshot of a learner at a position."""
    learner = new_learner(STREAM, PLAN)
    learner.position = position
    return frozen(learner, learner).sealed(key)


def tells(kind: str = LEARNER, position: int = 99) -> About:
    """The head of a snapshot that fits, whatever it holds."""
    sound = about(at(position), [SECRET])
    return msgspec.structs.replace(sound, kind=kind)


def test_newest_snapshot_that_verifies_is_taken():
    """Torn, foreign, empty and older ones are passed over, in whatever order they lie."""
    good = [record(0, at(5)), record(1, at(9)), record(2, at(7))]
    bad = [
        record(3, at(99)[:-1]), record(4, at(99, b"theirs")), record(5, None), record(6, b""),
        record(7, seal({"position": 99}, SECRET)), record(8, seal(Runs(os.getcwd), SECRET)),
        record(9, seal({"position": 99}, SECRET, tells())),
        record(10, seal(Runs(os.getcwd), SECRET, tells())),
    ]  # fmt: skip
    for order in ([*good, *bad], [*bad, *good], [bad[0], *good, *bad[1:]]):
        found = newest(order, STREAM, PLAN)
        assert found is not None
        assert 9 == found.position
    assert newest(bad, STREAM, PLAN) is None


def test_snapshot_of_other_features_is_refused():
    """A model of another schema starts anew, and says why."""
    card = load(profile="card")
    other = FeaturePlan.of(card.features, card.transaction.entities)
    with pytest.raises(Refused, match=f"features of schema {PLAN.schema}"):
        open_learner(record(0, at(5)), STREAM, other)


def test_snapshot_of_something_else_is_refused():
    """Signed, listed, and yet no learner."""
    with pytest.raises(Refused, match="holds a dict; expected a Learner"):
        open_learner(record(0, seal({}, SECRET, tells())), STREAM, PLAN)


def test_snapshot_of_an_older_program_is_refused(monkeypatch):
    """What it lacks would be missed later: the model is learnt anew from the log."""
    monkeypatch.setattr("app.shelf.FORMAT", 1)
    old = at(5)
    monkeypatch.undo()
    with pytest.raises(Refused, match="another version of weir"):
        open_learner(record(0, old), STREAM, PLAN)


# ---- What gives scores alone, and what is passed over unread.


def taught(position: int = 3_000) -> Learner:
    """A learner with a small forest that has learnt something."""
    small = {"name": "forest", "params": {"n_trees": 4, "n_frauds": 100}}
    settings = load(profile="stream", model=small)
    learner = new_learner(settings, PLAN)
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(3_000, len(PLAN.names)))
    learner.model.learn_many(rows, (rows[:, 0] > 1.0).astype(np.int8))
    learner.position, learner.digest = position, f"{position:016x}"
    return learner


def test_champion_gives_the_same_scores_and_does_not_learn():
    """Bit for bit, reasons too; it is a part of the learner's bytes, and says that it is."""
    learner = taught()
    champion = Champion.of(learner)
    kept = frozen(champion.for_scoring(), learner).sealed(SECRET)
    found = opened(record(0, kept), STREAM, PLAN)
    assert isinstance(found, Champion)
    assert learner.version == found.version
    rows = np.random.default_rng(2).normal(size=(500, len(PLAN.names)))
    for mine, theirs in zip(
        (*champion.mixture.score_many(rows), champion.mixture.contributions(rows)),
        (*found.mixture.score_many(rows), found.mixture.contributions(rows)),
        strict=True,
    ):
        assert mine.tobytes() == theirs.tobytes()
    assert len(kept) < len(sealed(learner, STREAM))
    with pytest.raises(RuntimeError, match="gives scores only"):
        found.mixture.model.learn_many(rows[:1], [0])
    with pytest.raises(Refused, match="scores alone"):
        open_learner(record(0, kept), STREAM, PLAN)


def told(offset: int, position: int, kind: str = LEARNER, value: bytes | None = None) -> Record:
    """A snapshot as the learner writes it."""
    said = tells(kind, position)
    return Record(offset, b"champion/0", at(position) if value is None else value, 0, hints(said))


def test_headers_let_snapshots_of_another_kind_be_passed_over_unread():
    """Whoever follows opens nothing of a learner, though as much of it lies there."""
    shelf = Shelf(STREAM, PLAN, (LEARNER, CHAMPION))
    shelf.put([told(0, 99, CHAMPION), record(1, None)])
    assert 0 == shelf.n_verified
    shelf.put([told(2, 8)])
    assert 1 == shelf.n_verified
    found = shelf.open()
    assert isinstance(found, Learner)
    assert 8 == found.position


def test_only_what_is_newer_than_the_model_in_use_is_opened():
    """What the others were learnt from is told all the same."""
    trails: list[Trail] = []
    shelf = Shelf(STREAM, PLAN, (LEARNER,), trails.append)
    shelf.put([told(0, 3), told(1, 7), told(2, 99, CHAMPION)], (-1, 7))
    assert shelf.open() is None
    assert [(-1, 3), (-1, 7)] == [trail.age for trail in trails]


def test_rebuilt_model_goes_before_all_of_before_it():
    """Though those have seen more of the log; in the signed head, of either kind."""
    old, rebuilt = taught(900), taught(400)
    rebuilt.rebuilt = 400
    champion = Champion.of(rebuilt)
    for state, kind in ((rebuilt, LEARNER), (champion.for_scoring(), CHAMPION)):
        other = old if kind == LEARNER else Champion.of(old).for_scoring()
        values = [frozen(one, of).sealed(SECRET) for one, of in ((state, rebuilt), (other, old))]
        shelf = Shelf(STREAM, PLAN, (kind,))
        shelf.put([record(i, value) for i, value in enumerate(values)])
        found = shelf.open()
        assert found is not None
        assert ((400, 400), rebuilt.digest) == (found.age, found.version.digest)
        assert rebuilt.trail == trail_of(about(values[0], [SECRET]))


def test_headers_are_hints_only():
    """What they promise beyond what is signed does not count."""
    shelf = Shelf(STREAM, PLAN, (LEARNER,))
    shelf.put([told(0, 5), told(1, 99, value=at(2)), told(2, 999, value=b"torn")])
    found = shelf.open()
    assert isinstance(found, Learner)
    assert 5 == found.position
    assert shelf.open() is None


def test_no_more_snapshots_are_kept_in_memory_than_the_learner_keeps():
    """However many lie on the topic, the newest few."""
    shelf = Shelf(STREAM, PLAN, (LEARNER,))
    for n in range(20):
        shelf.put([record(n, at(n))])
    assert STREAM.learner.snapshots_kept == len(shelf._found)
    found = shelf.open()
    assert isinstance(found, Learner)
    assert 19 == found.position
