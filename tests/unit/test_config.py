"""Settings: what is read, what wins, and how each mistake is answered."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coord import Agent, Client, program_settings
from coord.config import Settings, live_text, load, to_environ, variable_of
from coord.errors import ConfigError
from coord.up.programs import child_environ


def test_nothing_set_gives_the_defaults() -> None:
    """An empty environment is a valid one."""
    assert load({}) == Settings()


#: Values of settings that are unset by default.
GIVEN: dict[str, Any] = {
    "push_networks": "10.0.0.0/8",
    "redis_url": "redis://example:1",
    "endpoint_file": "/run/x.json",
    "cell": "staging",
    "config_file": "/run/config.toml",
    "agent_token_file": "/run/a1.token",
    "gateway_trusted_proxies": "10.0.0.0/8",
    "gateway_cors_origins": "https://ops.example",
    "gateway_jwt_secret": "s" * 32,
    "gateway_jwt_key": "/run/jwt.pem",
    "gateway_jwt_issuer": "ops",
    "gateway_jwt_audience": "coord",
}


def test_every_setting_can_be_set_by_its_variable() -> None:
    """Each field reads back from COORD_<NAME> what it was written as."""
    fields = [name for name in Settings.__struct_fields__ if name != "agent_token"]  # this or its file
    assert load({variable_of(name): _written(name) for name in fields}) == Settings(**GIVEN)
    assert load({"COORD_AGENT_TOKEN": "t" * 16}) == Settings(agent_token="t" * 16)


def _written(name: str) -> str:
    value = getattr(Settings(), name)
    return GIVEN.get(name) or (str(value).lower() if isinstance(value, bool) else str(value))


@pytest.mark.parametrize(
    ("environ", "field", "value"),
    [
        ({"COORD_BATCH": "64"}, "batch", 64),
        ({"COORD_PRESENCE_TTL_S": "2.5"}, "presence_ttl_s", 2.5),
        ({"COORD_ALLOW_EVICTION": "true"}, "allow_eviction", True),
        ({"COORD_ALLOW_EVICTION": "0"}, "allow_eviction", False),
        ({"COORD_NAMESPACE": " cell-2 "}, "namespace", "cell-2"),
        ({"COORD_BATCH": ""}, "batch", 256),
        ({"AITBC_REDIS_URL": "redis://old:6379"}, "redis_url", "redis://old:6379"),
        ({"AITBC_LOG_LEVEL": "WARNING"}, "log_level", "warning"),
        ({"AITBC_LOG_LEVEL": "debug", "COORD_LOG_LEVEL": "error"}, "log_level", "error"),
    ],
)
def test_values_are_read_as_their_type(environ: dict[str, str], field: str, value: object) -> None:
    """Numbers, switches and words; aliases of the predecessor; COORD_ wins; an empty value is none."""
    assert getattr(load(environ), field) == value


@pytest.mark.parametrize(
    ("environ", "messages"),
    [
        ({"COORD_NAMSPACE": "x"}, ["COORD_NAMSPACE", "COORD_NAMESPACE"]),
        ({"COORD_BACKOF_MS": "1"}, ["COORD_BACKOF_MS", "COORD_BACKOFF_MS"]),
        ({"COORD_batch": "1"}, ["COORD_batch", "COORD_BATCH"]),
        ({"COORD_PORT": "80"}, ["COORD_PORT is not", "did you mean COORD_GATEWAY_PORT?"]),
        ({"COORD_BEAT_S": "1"}, ["COORD_BEAT_S is not a setting; known settings are"]),
        ({"COORD_BATCH": "many"}, ["COORD_BATCH", "'many'", "int"]),
        ({"COORD_BATCH": "0"}, ["COORD_BATCH", "'0'", ">= 1"]),
        ({"COORD_HEALTH_THRESHOLD": "1.5"}, ["COORD_HEALTH_THRESHOLD", "'1.5'", "from 0 to 1"]),
        ({"COORD_PRESENCE_TTL_S": "nan"}, ["COORD_PRESENCE_TTL_S", "'nan'"]),
        ({"COORD_PRESENCE_TTL_S": "inf"}, ["COORD_PRESENCE_TTL_S", "'inf'"]),
        ({"COORD_LOG_LEVEL": "loud"}, ["COORD_LOG_LEVEL", "'loud'", "debug, info, warning, error"]),
        ({"COORD_NAMESPACE": "{x}"}, ["COORD_NAMESPACE", "'{x}'", "1 to 64 characters"]),
        ({"COORD_NAMESPACE": "x" * 65}, ["COORD_NAMESPACE", "1 to 64 characters"]),
        ({"COORD_ALLOW_EVICTION": "perhaps"}, ["COORD_ALLOW_EVICTION", "'perhaps'", "on or off"]),
        ({"COORD_BACKOFF_MAX_MS": "10"}, ["COORD_BACKOFF_MAX_MS=10", "COORD_BACKOFF_MS", "1000"]),
        ({"COORD_BATCH_BYTES": "2048"}, ["COORD_BATCH_BYTES=2048", "COORD_MAX_ENTRY_BYTES"]),
    ],
)
def test_a_mistake_is_named(environ: dict[str, str], messages: list[str]) -> None:
    """The error names the variable, its value and what is expected; for an unknown one the nearest."""
    with pytest.raises(ConfigError) as caught:
        load(environ)
    assert [part for part in messages if part not in str(caught.value)] == []


def test_overrides_win_and_are_validated() -> None:
    """A command's option beats the environment; None means it was not given."""
    assert load({"COORD_BATCH": "8"}, batch=16, namespace=None).batch == 16
    with pytest.raises(ConfigError, match=r"^--namespace 'a b': expected 1 to 64"):
        load({}, namespace="a b")
    with pytest.raises(ConfigError, match=r"^--port 70000: "):
        load({}, gateway_port=70_000)
    with pytest.raises(ConfigError, match="COORD_BATCHES is not a setting"):
        load({}, batches=1)


def test_settings_survive_the_way_to_a_child_process() -> None:
    """``to_environ`` gives what makes another process load the same."""
    settings = load({}, namespace="cell", allow_eviction=True, presence_ttl_s=0.5)
    environ = to_environ(settings)
    assert environ == {
        "COORD_NAMESPACE": "cell",
        "COORD_ALLOW_EVICTION": "true",
        "COORD_PRESENCE_TTL_S": "0.5",
    }
    assert load(environ) == settings


def test_the_endpoint_file_is_found_without_being_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As set; else in the user's runtime folder; else in the state folder."""
    assert Settings(endpoint_file="/x/y.json").endpoint_path == Path("/x/y.json")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert Settings().endpoint_path == Path("/run/user/7/coord/endpoint.json")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("HOME", "/home/ann")
    assert Settings().endpoint_path == Path("/home/ann/.local/state/coord/endpoint.json")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("strategy", "random", "random"),
        ("health_threshold", 0.25, "0.25"),
        ("health_threshold", 1, "1.0"),
        ("health_threshold", "0.5", "0.5"),
    ],
)
def test_what_may_be_set_live(name: str, value: object, text: str) -> None:
    """As it is kept; read back, it is the same."""
    assert live_text(name, value) == text
    assert live_text(name, text) == text


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("batch", 1, "'batch' cannot be set live, only avoid_failed_agent, ejection, full_scores"),
        ("health_threshold", -0.1, "health_threshold=-0.1: expected a number from 0 to 1"),
        ("health_threshold", float("nan"), "health_threshold=nan: expected"),
        ("strategy", "No Such", "strategy='No Such': expected"),
    ],
)
def test_what_may_not_be_set_live(name: str, value: object, words: str) -> None:
    """The message names the setting, the value and what is expected."""
    with pytest.raises(ConfigError, match=re.escape(words)):
        live_text(name, value)


#: What Kubernetes sets in every container for services called coord, coord-gateway and coord-redis.
SERVICES = {
    "COORD_SERVICE_HOST": "10.96.0.7",
    "COORD_SERVICE_PORT": "9001",
    "COORD_SERVICE_PORT_HTTP": "9001",
    "COORD_PORT": "tcp://10.96.0.7:9001",
    "COORD_PORT_9001_TCP": "tcp://10.96.0.7:9001",
    "COORD_PORT_9001_TCP_PROTO": "tcp",
    "COORD_PORT_9001_TCP_PORT": "9001",
    "COORD_PORT_9001_TCP_ADDR": "10.96.0.7",
    "COORD_GATEWAY_SERVICE_HOST": "10.96.0.8",
    "COORD_GATEWAY_SERVICE_PORT": "9001",
    "COORD_GATEWAY_PORT": "tcp://10.96.0.8:9001",
    "COORD_GATEWAY_PORT_9001_TCP": "tcp://10.96.0.8:9001",
    "COORD_REDIS_PORT": "udp://10.96.0.9:6379",
    "COORD_REDIS_PORT_6379_UDP_ADDR": "10.96.0.9",
    "AITBC_COORDINATOR_PORT": "tcp://10.96.0.8:9001",
}


def test_variables_of_kubernetes_services_are_no_settings() -> None:
    """They are in every container of a namespace that has a service with such a name, and mean nothing to coord."""
    assert load(SERVICES) == Settings()
    assert load(SERVICES | {"COORD_BATCH": "64"}).batch == 64


def test_variables_of_services_reach_the_processes_that_coord_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent may look for a service by them; settings come from what this process was asked for alone."""
    for name, value in (SERVICES | {"COORD_BATCH": "64", "AITBC_LOG_LEVEL": "debug"}).items():
        monkeypatch.setenv(name, value)
    environ = child_environ(Settings())
    assert {name: value for name, value in environ.items() if name.startswith(("COORD_", "AITBC_"))} == SERVICES


@pytest.mark.parametrize(
    ("variable", "value"),
    [("COORD_PORT", "9001"), ("COORD_SERVICE", "x"), ("COORD_SERVICE_HOSTS", "x"), ("COORD_PORT_TCP", "x")],
)
def test_what_only_looks_like_a_service_is_refused(variable: str, value: str) -> None:
    """A slip of a person is still found."""
    with pytest.raises(ConfigError, match=f"{variable} is not a setting"):
        load({variable: value})


@pytest.mark.parametrize("make", [Client, lambda: Agent("a")])
def test_an_unknown_variable_is_a_warning_in_a_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make: Callable[[], Client | Agent]
) -> None:
    """A program of a user runs on; it is warned once for each name. A wrong value is still an error."""
    monkeypatch.setattr(program_settings, "_warned", set())
    monkeypatch.setenv("COORD_NAMSPACE", "x")
    monkeypatch.setenv("COORD_BATCH", "64")
    assert make().settings == Settings(batch=64)
    err = capsys.readouterr().err
    assert "COORD_NAMSPACE is not a setting; did you mean COORD_NAMESPACE?" in err
    assert make().settings == Settings(batch=64)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("COORD_BATCH", "many")
    with pytest.raises(ConfigError, match="COORD_BATCH='many'"):
        make()
