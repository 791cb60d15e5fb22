"""Settings are checked once, and every message names the key, the value and what was expected."""

import errno
import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from app.cli import _run_once, check_config
from app.config import PROFILES, Settings, load, parse_duration
from app.core.features import FeaturePlan
from app.core.models import make_model
from app.errors import Misconfigured, Refused
from app.learning import new_learner, terms_of
from app.topics import Topics

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    """Whoever runs the tests may have settings of their own."""
    for name in list(os.environ):
        if name.startswith("WEIR_"):
            monkeypatch.delenv(name)


def told(tmp_path: Path, text: str) -> Settings:
    """Settings from a file that says so."""
    path = tmp_path / "weir.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


FEATURE = '[[features]]\nkind = "window"\nentity = "card_id"\n'
# what the file says | words of the message
WRONG: list[tuple[str, tuple[str, ...]]] = [
    ("colour = 1", ("colour is 1", "not permitted", "expected one of: access, drift, ent")),
    ("[kafka]\nbootstrp = 'x'", ('kafka.bootstrp is "x"', "not permitted", "one of: bootstrap")),
    ("[kafka]\nsecurity_protocol = 'TLS'", ('kafka.security_protocol is "TLS"', "'SASL_SSL'")),
    ("[kafka]\nsession_timeout = '30'", ('kafka.session_timeout is "30"', "a duration such as")),
    ("[kafka]\nsession_timeout = true", ("kafka.session_timeout is true", "a duration such as")),
    ("[kafka]\nsession_timeout = -1", ("kafka.session_timeout is -1", "a duration such as")),
    ("[kafka]\nsession_timeout = inf", ("kafka.session_timeout is inf", "a duration such as")),
    ("[kafka]\nsession_timeout = nan", ("kafka.session_timeout is nan", "a duration such as")),
    (f"[join]\nmaturity = '{'9' * 400}d'", ("join.maturity is", "a duration such as")),
    ("[join]\nmaturity = '1 week'", ('join.maturity is "1 week"', '"7d"')),
    ("[join]\nnegatives = 0", ("join.negatives is 0", "greater than 0")),
    ("[join]\nnegatives = 1.5", ("join.negatives is 1.5", "less than or equal to 1")),
    ("[join]\npending_max = 1", ("join.pending_max is 1", "greater than or equal to 16")),
    ("[policy]\nthreshold = 1.5", ("policy.threshold is 1.5", "less than or equal to 1")),
    ("[policy]\nthreshold = nan", ("policy.threshold is nan", "less than or equal to 1")),
    ("[policy]\nthreshold = 'high'", ('policy.threshold is "high"', "valid number")),
    (
        "[[policy.rules]]\nname = 'web'\nsegments = {channel = ['web']}",
        ('policy.rules[0].segments names "channel"', "transaction.segments"),
    ),
    (
        "profile = 'stream'\n[policy]\nkind = 'cost'",
        ("transaction.amount", "the name of a field"),
    ),
    (
        "[[policy.rules]]\nname = 'a'\namount_min = 5\namount_max = 5",
        ("policy.rules[0].amount_max is 5", "more than amount_min"),
    ),
    ("[policy]\nalerts_per_day = inf", ("policy.alerts_per_day is inf", "finite")),
    ("[policy.repeats]\nentity = 'shop'", ('policy.repeats.entity is "shop"', "entities")),
    ("[transaction]\nsegments = ['channel']", ('segments names "channel"', "categories")),
    ("[latency]\nbudget = '50'", ('latency.budget is "50"', "a duration such as")),
    ("[latency]\nbudget = '0ms'", ("latency.budget", "longer than nothing")),
    ("[latency]\nslow_us = -1", ("latency.slow_us is -1", "greater than or equal to 0")),
    ("[latency]\nstale_after = '5s'", ("latency.stale_after is 5000", "snapshot_interval, 30000")),
    ("[[latency.rules]]\nname = 'a'", ("latency.rules.0.score", "required")),
    ("[[latency.rules]]\nname = 'a'\nscore = 2", ("latency.rules.0.score is 2", "less than or")),
    (
        "[[latency.rules]]\nname = 'a'\nscore = 1\namount_min = 5\namount_max = 5",
        ("latency.rules[0].amount_max is 5", "more than amount_min"),
    ),
    (
        "profile = 'stream'\n[[latency.rules]]\nname = 'a'\nscore = 1\namount_min = 5",
        ("transaction.amount", "the name of a field"),
    ),
    (
        "[[latency.rules]]\nname = 'a'\nscore = 1\nsegments = {channel = ['web']}",
        ('latency.rules[0].segments names "channel"', "transaction.segments"),
    ),
    ("[topics]\npartitions = 0", ("topics.partitions is 0", "greater than or equal to 1")),
    ("[topics]\nscores = 'my scores'", ('topics.scores is "my scores"', "pattern")),
    ("[topics]\nscores = 'transactions'", ('"transactions"', "topics.scores", "of its own")),
    ("[topics]\nscores = 'weir.audit'", ('topics.scores is "weir.audit"', "those are weir's")),
    ("[transaction]\nentities = ['customer id']", ('entities names "customer id"', "letters")),
    ("[kafka]\nsecurity_protocol = 'SASL_SSL'", ("security_protocol is SASL_SSL", "username")),
    ("[kafka]\ncert_file = 'a.pem'", ("cert_file and key_file belong together",)),
    (
        "[access]\nproxy_header = 'X-Forwarded-User'",
        ("learner.key is the development key", "a key of your own"),
    ),
    ("[topics]\nprefix = 'a/b'", ('topics.prefix is "a/b"', "pattern")),
    ("[worker]\nweb_port = 70000", ("worker.web_port is 70000", "65535")),
    ("[worker]\nlog_level = 'loud'", ('worker.log_level is "loud"', "'warning'")),
    ("[learner]\ncorrections = 'forget'", ('learner.corrections is "forget"', "'rebuild'")),
    ("[drift]\nfalse_alarms_per_week = 0", ("drift.false_alarms_per_week is 0", "greater than 0")),
    ("[entity]\nbucket = '0s'", ("entity.bucket", "longer than nothing")),
    ("[entity]\nbuckets_max = -1", ("entity.buckets_max is -1", "greater than or equal to 0")),
    ("[entity]\nhistory_max = 1", ("entity.history_max is 1", "greater than or equal to 8")),
    ("[transaction]\nentities = 'card_id'", ('transaction.entities is "card_id"', "tuple")),
    ("[transaction]\nid = 'amount'", ('"amount" is declared twice', "each field once")),
    ("[transaction]\nid = ''", ('transaction.id is ""', "at least 1 character")),
    ("[transaction]\noptional = ['card_id']", ('optional names "card_id"', "or categories")),
    ("[transaction]\ntime_min = 'long ago'", ('transaction.time_min is "long ago"', "ISO 8601")),
    ("[transaction]\nnumber_max = inf", ("transaction.number_max is inf", "a finite number")),
    ("[transaction]\nnumber_max = 1e200", ("transaction.number_max is 1e+200", "less than or")),
    ("[transaction]\nnumber_max = -1", ("transaction.number_max is -1", "greater than 0")),
    ("[label]\nvalue = 'transaction_id'", ('"transaction_id" is declared twice', "field once")),
    ("features = []", ("features", "at least 1 item")),
    (FEATURE + 'stat = "median"', ('features.0.window.stat is "median"', "'risk'")),
    (FEATURE + 'stat = "sum"\nwindows = ["7"]', ('windows.0 is "7"', "a duration such as")),
    (FEATURE + 'stat = "sum"\nwindows = []', ("features.0.window.windows is []", "at least 1")),
    (FEATURE + 'stat = "sum"\nwindows = ["0s"]', ('windows.0 is "0s"', "longer than nothing")),
    (FEATURE + 'stat = "risk"\nprior = -1', ("prior is -1", "greater than or equal to 0")),
    (FEATURE + 'stat = "sum"\nnames = ["a", "b"]', ("names has 2 names", "one a window")),
    (FEATURE.replace("card_id", "shop") + 'stat = "sum"',
     ('features[0].entity is "shop"', "card_id, terminal_id")),
    ('[[features]]\nkind = "number"\nfield = "tip"', ('[0].field is "tip"', "one of: amount")),
    ('[[features]]\nkind = "category"\nfield = "x"', ('features[0].field is "x"', "[transaction]")),
    ('[[features]]\nkind = "calendar"\nparts = ["noon"]', ('parts.0 is "noon"', "'weekend'")),
    ('[[features]]\nkind = "calendar"\nparts = ["night"]\nnames = ["a", "b"]',
     ("names has 2 names", "one a part")),
    ('[[features]]\nkind = "rank"', ("features.0", "'rank'", "'window'")),
]  # fmt: skip

# What only shows when features and model are made of it.
LATER: list[tuple[str, tuple[str, ...]]] = [
    ('[[features]]\nkind = "number"\nfield = "amount"\n' * 2, ("'amount'", "a name of its own")),
    ("[model]\nname = 'oracle'", ("unknown model 'oracle'", "logistic")),
    ("[model]\nname = 'logistic'\nparams = {lr2 = 1}", ("logistic", "lr2")),
    ("[model]\nname = 'river.tree.Oak'", ("river.tree.Oak",)),
    ("[model]\nname = 'river.drift.ADWIN'", ("ADWIN is neither a classifier",)),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[text[:40] for text, _ in WRONG])
def test_every_error_names_key_value_and_what_was_expected(tmp_path, text, words):
    """A person can mend it without reading the code."""
    with pytest.raises(Misconfigured) as caught:
        told(tmp_path, text)
    said = str(caught.value)
    assert [] == [word for word in words if word not in said], said


@pytest.mark.parametrize(("text", "words"), LATER, ids=[text[:40] for text, _ in LATER])
def test_model_and_features_that_cannot_be_made_are_refused(tmp_path, text, words):
    """``weir check-config`` makes both, so that a worker need not find out."""
    made = told(tmp_path, text)
    with pytest.raises(Misconfigured) as caught:
        new_learner(made, FeaturePlan.of(made.features, made.transaction.entities))
    said = str(caught.value)
    assert [] == [word for word in words if word not in said], said


def test_check_config_finds_files_that_are_not_there(tmp_path):
    """What else would only show when a broker is to be reached."""
    (tmp_path / "weir.toml").write_text("[kafka]\nsecurity_protocol='SSL'\nca_file='/no/ca.pem'")
    with pytest.raises(Misconfigured, match=r"ca_file.*/no/ca\.pem"):
        check_config(tmp_path / "weir.toml")


def test_check_config_tells_of_names_that_are_those_of_no_feature(tmp_path, capsys):
    """A worker passes them over; those of a profile go with the features that they name."""
    (tmp_path / "weir.toml").write_text("[explain.actionable]\nammount = [1, 9]")
    check_config(tmp_path / "weir.toml")
    assert "names 'ammount'" in capsys.readouterr().err
    of_its_own = '[[features]]\nkind = "number"\nfield = "amount"\nname = "how_much"'
    (tmp_path / "weir.toml").write_text(of_its_own)
    check_config(tmp_path / "weir.toml")
    assert "explain" not in capsys.readouterr().err


def test_configuration_of_readme_is_one(tmp_path):
    """What a newcomer copies passes `weir check-config`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "weir.toml").write_text(textwrap.dedent(shown))
    check_config(tmp_path / "weir.toml")


def test_all_problems_are_told_at_once(tmp_path):
    """Nobody mends a file one line a run."""
    with pytest.raises(Misconfigured) as caught:
        told(tmp_path, "[policy]\nthreshold = 2\n[topics]\npartitions = 0\n[worker]\nx = 1")
    said = str(caught.value)
    assert "3 problem(s)" in said
    assert 4 == len(said.splitlines())
    assert str(tmp_path / "weir.toml") in said


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"[kafka", "not TOML"), (b"\xff\xfe", "not TOML"), (None, "expected a TOML file")],
)
def test_file_that_cannot_be_read_is_named(tmp_path, content, words):
    """Where, and what is wrong with it."""
    path = tmp_path / "weir.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Misconfigured, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_makes_a_whole(profile):
    """Features, model and topics can be made of every shipped profile, and of what it dumps."""
    told_ = load(profile=profile)
    assert profile == told_.profile
    plan = FeaturePlan.of(told_.features, told_.transaction.entities)
    model = make_model(told_.model.name, plan.names, told_.model.seed, **told_.model.params)
    assert plan.names == tuple(model.features)
    names = [spec.name for spec in Topics.of(told_)]
    assert len(names) == len(set(names))
    json.dumps(told_.model_dump(mode="json"))


def test_unknown_profile_is_refused(monkeypatch):
    """By argument, by environment, in the file."""
    with pytest.raises(Misconfigured, match='profile is "cards"; expected one of: card, handbook'):
        load(profile="cards")
    monkeypatch.setenv("WEIR_PROFILE", "cards")
    with pytest.raises(Misconfigured, match='profile is "cards"'):
        load()


def test_default_profile_is_card_payments():
    """What one gets for nothing."""
    assert ("card", ("card_id", "terminal_id")) == (
        load().profile,
        load().transaction.entities,
    )


def test_file_goes_over_its_profile(tmp_path):
    """What the file does not say, the profile says."""
    made = told(tmp_path, 'profile = "handbook"\n[policy]\nthreshold = 0.9')
    assert (0.9, "TX_AMOUNT") == (made.policy.threshold, made.transaction.amount)


# variable | value | table, key | what it becomes
ENVIRONMENT = [
    ("WEIR_KAFKA__BOOTSTRAP", "broker:9092", "kafka", "bootstrap", "broker:9092"),
    ("WEIR_TOPICS__PARTITIONS", "12", "topics", "partitions", 12),
    ("WEIR_JOIN__MATURITY", "14d", "join", "maturity", 14 * 86_400_000),
    ("WEIR_LEARNER__IN_WORKER", "false", "learner", "in_worker", False),
    ("WEIR_TRANSACTION__ENTITIES", '["card_id", "terminal_id"]', "transaction", "entities",
     ("card_id", "terminal_id")),
    ("WEIR_WORKER__DATA_DIR", "/var/lib/weir", "worker", "data_dir", Path("/var/lib/weir")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "table", "key", "expected"), ENVIRONMENT)
def test_environment_goes_over_the_file(tmp_path, monkeypatch, name, value, table, key, expected):
    """WEIR_TABLE__KEY wins; the rest of its table stays as the file has it."""
    monkeypatch.setenv(name, value)
    made = told(tmp_path, "[topics]\npartitions = 3\nprefix = 'p.'\n[join]\nmaturity = '1d'")
    assert expected == getattr(getattr(made, table), key)
    assert "p." == made.topics.prefix


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("WEIR_TOPICS__PARTITIONS", "many", ('topics.partitions is "many"', "valid integer")),
        ("WEIR_KAFKA__BOOTSTRP", "x", ("kafka.bootstrp", "not permitted")),
        ("WEIR_JOIN__MATURITY", "14", ('join.maturity is "14"', "a duration such as")),
        ("WEIR_JOIN__NEGATIVES", "nan", ("join.negatives is", "less than or equal to 1")),
        ("WEIR_TRANSACTION__ENTITIES", "card_id", ("transaction", "expected JSON")),
    ],
)
def test_wrong_environment_is_refused_as_a_file_is(monkeypatch, name, value, words):
    """No traceback for a typing error."""
    monkeypatch.setenv(name, value)
    with pytest.raises(Misconfigured) as caught:
        load()
    assert [] == [word for word in words if word not in str(caught.value)], str(caught.value)


def test_secrets_are_not_shown():
    """Neither in what is printed nor in what is dumped."""
    made = load(kafka={"password": "hunter2"}, learner={"key": "hunter3"})
    shown = f"{made!r} {made.model_dump(mode='json')}"
    assert "hunter" not in shown


def test_overrides_win_and_are_checked():
    """What code asks for is a setting like any other."""
    assert 1 == load(topics={"partitions": 1}).topics.partitions
    with pytest.raises(Misconfigured):
        load(topics={"partitions": 0})


def test_overrides_leave_the_rest_of_their_table_as_it_was():
    """Durations too, in tables within: a number that is read again would count seconds."""
    plain, other = load(), load(learner={"snapshot_every": 7}, worker={"batch_max": 9})
    assert plain.learner == other.learner.model_copy(update={"snapshot_every": 50_000})
    assert plain.worker == other.worker.model_copy(update={"batch_max": 2_048})


def test_figures_are_about_what_the_settings_say():
    """A budget is the policy's unless it is told; a bounded one; days stay until they mature."""
    terms = terms_of(load())
    assert (100, 100, 64) == (terms.top_k, terms.budget, terms.days_kept)
    terms = terms_of(
        load(
            policy={"alerts_per_day": 0.2, "review_cost": 3.0},
            evaluation={"top_k": 7, "compromised": "36h"},
            join={"maturity": "90d"},
        )
    )
    assert (7, 1, 92, 3.0) == (terms.top_k, terms.budget, terms.days_kept, terms.review_cost)
    assert 2 == terms.compromised_days
    assert 10_000 == terms_of(load(policy={"alerts_per_day": 1e9})).budget
    assert 5 == terms_of(load(evaluation={"budget": 5})).budget


def test_settings_do_not_change():
    """Checked once, and true from then on."""
    with pytest.raises(Exception, match="frozen"):
        load().topics.partitions = 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [("250ms", 250), ("1.5s", 1_500), ("15m", 900_000), ("12h", 43_200_000), (0, 0), (2, 2_000)],
)
def test_duration_is_read_as_people_write_it(value, expected):
    """A unit, or seconds."""
    assert expected == parse_duration(value)


def test_check_config_tells_it_without_a_traceback(tmp_path):
    """Exit status 2 and the message; 0 and the features."""
    path = tmp_path / "weir.toml"
    path.write_text("[policy]\nthreshold = 7\n")
    call = [sys.executable, "-m", "app", "check-config", "--config", str(path)]
    run = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 2 == run.returncode
    assert "policy.threshold is 7" in run.stderr
    assert "Traceback" not in run.stderr
    path.write_text("[policy]\nthreshold = 0.7\n")
    run = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 0 == run.returncode
    assert "card_id_count_1d" in run.stdout


def test_shipped_profiles_are_plain_toml():
    """Readable without weir."""
    for profile in PROFILES:
        tomllib.loads((ROOT / "app" / "profiles" / f"{profile}.toml").read_text(encoding="utf-8"))


def test_policy_page_shows_what_works(tmp_path):
    """The example of the page on policies is a configuration, with every table it explains."""
    page = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
    settings = told(tmp_path, page.split("```toml\n")[1].split("```")[0])
    assert ["abroad-online", "small-change"] == [rule.name for rule in settings.policy.rules]
    assert settings.policy.repeats is not None
    assert frozenset({"analyst"}) == settings.learner.investigators.sources
    latency = told(tmp_path, page.split("```toml\n")[2].split("```")[0]).latency
    assert (50, 600_000, 0.9) == (latency.budget, latency.stale_after, latency.rules[0].score)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_folder_without_room_is_refused_before_anything_is_read(monkeypatch, error):
    """A full disk is told with the setting, the path and the reason."""

    def mkdir(path: Path, **how: object) -> None:
        raise OSError(error, os.strerror(error), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(Refused, match=rf"worker\.data_dir is .*: {os.strerror(error)}; expected a"):
        _run_once("worker", load())
