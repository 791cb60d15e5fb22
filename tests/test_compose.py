"""The compose file and its image say what weir, Kafka and this repository say."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml

from app.cli import cli
from app.config import load

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "compose" / "compose.yaml"
COMPOSE = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
OTHERS = {"kafka", "prometheus", "grafana"}
OURS = sorted(set(SERVICES) - OTHERS)

# As much of the compose specification as this file uses; a key that is not here is a slip.
SERVICE = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {
        "image": {"type": "string", "pattern": r"^[a-z/]+:v?[0-9.]+$"},
        "build": {
            "type": "object",
            "required": ["context", "dockerfile"],
            "additionalProperties": False,
            "properties": {"context": {"type": "string"}, "dockerfile": {"type": "string"}},
        },
        "command": {"type": "array", "items": {"type": "string"}},
        "environment": {
            "type": "object",
            "additionalProperties": {"type": ["string", "number"]},
        },
        "ports": {"type": "array", "items": {"type": "string"}},
        "expose": {"type": "array", "items": {"type": "string"}},
        "volumes": {"type": "array", "items": {"type": "string"}},
        "secrets": {"type": "array", "items": {"type": "string"}},
        "tmpfs": {"type": "array", "items": {"type": "string"}},
        "cap_drop": {"type": "array", "items": {"type": "string"}},
        "security_opt": {"type": "array", "items": {"type": "string"}},
        "init": {"type": "boolean"},
        "read_only": {"type": "boolean"},
        "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]},
        "stop_grace_period": {"type": "string", "pattern": r"^\d+s$"},
        "healthcheck": {
            "type": "object",
            "required": ["test"],
            "additionalProperties": False,
            "properties": {
                "test": {"type": "array", "items": {"type": "string"}},
                "interval": {"type": "string"},
                "timeout": {"type": "string"},
                "start_period": {"type": "string"},
                "retries": {"type": "integer"},
            },
        },
        "depends_on": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["condition"],
                "additionalProperties": False,
                "properties": {
                    "condition": {"enum": ["service_healthy", "service_completed_successfully"]}
                },
            },
        },
    },
}
SCHEMA = {
    "type": "object",
    "required": ["name", "services"],
    "additionalProperties": False,
    "patternProperties": {"^x-": {}},
    "properties": {
        "name": {"type": "string"},
        "services": {"type": "object", "additionalProperties": SERVICE},
        "volumes": {"type": "object", "additionalProperties": {"type": ["object", "null"]}},
        "secrets": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["environment"],
                "additionalProperties": False,
                "properties": {"environment": {"type": "string"}},
            },
        },
    },
}


def has_docker_compose():
    """Whether `docker compose` is there; it needs no engine to read a file."""
    docker = shutil.which("docker")
    return (
        docker is not None
        and not subprocess.run(
            [docker, "compose", "version"], check=False, capture_output=True
        ).returncode
    )


def settings_of(service):
    """What a service of ours is told in its environment."""
    return SERVICES[service]["environment"]


def test_the_file_keeps_to_the_specification():
    """Every key is one that compose knows, with a value of its kind."""
    jsonschema.validate(COMPOSE, SCHEMA)


@pytest.mark.skipif(not has_docker_compose(), reason="no docker compose on this machine")
def test_docker_compose_reads_the_file():
    """Compose itself resolves the file to the same services."""
    told = subprocess.run(
        ["docker", "compose", "--file", str(FILE), "config", "--format", "json"],
        check=True,
        capture_output=True,
        env={**os.environ, "WEIR_LEARNER__KEY": "a key"},
    )
    assert set(SERVICES) == set(json.loads(told.stdout)["services"])


def test_services_are_kafka_and_the_parts_of_weir():
    """And those that watch them; nothing else runs."""
    assert {"topics", "worker", "learner"} == set(OURS)


def test_services_wait_only_for_services_that_are_there():
    """What depends on health waits for a service that reports it."""
    for service in SERVICES.values():
        for name, how in service.get("depends_on", {}).items():
            assert name in SERVICES
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[name]


def test_kafka_is_the_version_that_the_tests_run_against():
    """The image's tag is the version of scripts/kafka."""
    pom = (ROOT / "scripts" / "kafka.d" / "pom.xml").read_text(encoding="utf-8")
    version = re.search("<kafka.version>(.+)</kafka.version>", pom)
    assert version is not None
    assert f"apache/kafka:{version[1]}" == SERVICES["kafka"]["image"]


@pytest.mark.parametrize("service", OURS)
def test_commands_are_commands_of_weir(service):
    """Each word of a service's command is a command, or one below it."""
    command = typer.main.get_command(cli)
    for word in SERVICES[service]["command"]:
        below = getattr(command, "commands", {})
        assert word in below
        command = below[word]


#: What is asked of whoever starts it, where any text will not do.
OUR_OWN = {"WEIR_ACCESS__TOKENS": '[{"name":"me","role":"read","hash":"scrypt$2$8$1$a$b"}]'}


@pytest.mark.parametrize("service", OURS)
def test_environment_names_settings_that_exist(service, monkeypatch):
    """Each variable is read: the settings that come of it hold its value."""
    for name, value in settings_of(service).items():
        default = re.fullmatch(r"\$\{\w+(?::-(.*)|:\?.*)\}", value)
        told = value if default is None else default[1] or OUR_OWN.get(name, "a key of our own")
        monkeypatch.setenv(name, told)
    settings = load().model_dump()
    for name in settings_of(service):
        *tables, key = name.removeprefix("WEIR_").lower().split("__")
        table = settings
        for at in tables:
            table = table[at]
        assert key in table
    assert "kafka:19092" == settings["kafka"]["bootstrap"]
    assert "a key of our own" == settings["learner"]["key"].get_secret_value()


def test_environment_holds_no_secret():
    """The signing key comes from outside, and nothing starts without it."""
    for service in OURS:
        assert settings_of(service)["WEIR_LEARNER__KEY"].startswith("${WEIR_LEARNER__KEY:?")


def test_ports_are_published_to_this_machine_only():
    """No service listens to the network around it."""
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_image_is_built_of_files_that_are_there():
    """What the Dockerfile copies exists, and its ignore file lets it through."""
    for service in OURS:
        build = SERVICES[service]["build"]
        assert ROOT == (FILE.parent / build["context"]).resolve()
        dockerfile = ROOT / build["dockerfile"]
        let_through = Path(f"{dockerfile}.dockerignore").read_text(encoding="utf-8").split()
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile.read_text(), re.MULTILINE):
            for source in line.split():
                assert (ROOT / source).exists()
                assert f"!{source}" in let_through
