"""compose.yaml as data: every command and every variable is taken by the program that it is for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from coord import config, embedded
from coord.connection import check_url
from coord.keys import KINDS
from tests.commands import parse

ROOT = Path(__file__).parents[2]
#: What the gate demands of a process that finishes what it has read: longer than an answer of Redis may take.
LONGEST_ANSWER_S = config.Settings().answer_timeout_s + config.Settings().read_block_ms / 1000


def interpolated(text: str) -> str:
    """What compose makes of ``${NAME:-default}`` when nothing is set."""
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text)


def project() -> dict[str, Any]:
    """The whole file."""
    found = yaml.safe_load(interpolated((ROOT / "compose.yaml").read_text()))
    assert isinstance(found, dict)
    return found


SERVICES: dict[str, dict[str, Any]] = project()["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "coord"}


def seconds(duration: str) -> float:
    """``90s``, ``5m`` in seconds."""
    number, unit = re.fullmatch(r"(\d+)([smh])", duration).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def test_the_file_has_a_service_for_each_process() -> None:
    """Each kind of worker, the gateway, the server; all of them stay up."""
    assert set(SERVICES) == {"valkey", "gateway", *KINDS}
    assert {service["restart"] for service in SERVICES.values()} == {"unless-stopped"}


def test_it_is_interpolated_from_defaults_alone() -> None:
    """It comes up with no .env file, and nothing in it waits for a variable that has no default."""
    text = (ROOT / "compose.yaml").read_text()
    assert re.findall(r"(?<!\$)\$(?!\$)", text) == re.findall(r"\$(?=\{[A-Z_]+:-)", text)


@pytest.mark.parametrize("name", OURS)
def test_its_command_is_taken(name: str) -> None:
    """By the parser of the program that it starts; a kind of worker has the service of its name."""
    command = OURS[name]["command"]
    parse(command)
    if name in KINDS:
        assert name in command


@pytest.mark.parametrize("name", OURS)
def test_its_environment_is_taken(name: str) -> None:
    """By the loader of the settings; it names the server of this file."""
    settings = config.load(OURS[name]["environment"])
    assert settings.redis_url == "redis://valkey:6379/0"
    check_url(settings.redis_url)
    assert settings.log_format == "json"


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_worker_can_be_multiplied(kind: str) -> None:
    """`--scale` starts containers of one service: no name, worker name, port or volume is theirs alone."""
    service = SERVICES[kind]
    assert not {"container_name", "hostname", "ports", "volumes"} & set(service)
    assert "--name" not in service["command"]


def test_one_image_is_built_once() -> None:
    """By one service, on which the others depend; nobody looks for it in a registry."""
    built = [name for name, service in OURS.items() if "build" in service]
    assert built == ["registry"]
    assert {service["pull_policy"] for service in OURS.values()} == {"never"}
    assert all("registry" in service["depends_on"] for name, service in OURS.items() if name != "registry")


@pytest.mark.parametrize("name", SERVICES)
def test_its_health_is_asked(name: str) -> None:
    """Of the program itself, in time; ours wait for a server that is well."""
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert seconds(check["timeout"]) <= seconds(check["interval"])
    if name in KINDS:
        assert parse(check["test"][1:]) == ["python", "-m", "workers.presence"]
        assert check["test"][-1] == name
    if name in OURS:
        assert SERVICES[name]["depends_on"]["valkey"] == {"condition": "service_healthy"}


def test_what_a_service_waits_for_is_there() -> None:
    """Every dependency is a service of the file that has a health, where that is waited for."""
    for service in SERVICES.values():
        for other, condition in service.get("depends_on", {}).items():
            assert condition["condition"] in {"service_healthy", "service_started"}
            assert "healthcheck" in SERVICES[other]


@pytest.mark.parametrize("name", OURS)
def test_it_may_do_little(name: str) -> None:
    """No root, no rights, nothing to write to; and it has the time to finish what it holds."""
    service = OURS[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "user", "cap_add", "network_mode", "pid"} & set(service)
    assert seconds(service["stop_grace_period"]) > LONGEST_ANSWER_S


def test_valkey_is_reached_from_inside_only() -> None:
    """It has no password: so no port, and no network but the one that leads nowhere."""
    assert "ports" not in SERVICES["valkey"]
    assert SERVICES["valkey"]["networks"] == ["cell"]
    assert project()["networks"]["cell"] == {"internal": True}


def test_the_gateway_alone_is_published_and_on_the_loopback() -> None:
    """It listens where its port leads, and it can be reached: an internal network publishes nothing."""
    gateway = SERVICES["gateway"]
    settings = config.load(gateway["environment"])
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "gateway": [f"127.0.0.1:9001:{settings.gateway_port}"]
    }
    assert (settings.gateway_host, settings.gateway_security) == ("0.0.0.0", True)  # noqa: S104 (in a container)
    networks = project()["networks"]
    assert [name for name in gateway["networks"] if not (networks[name] or {}).get("internal")] == ["edge"]


def test_valkey_has_the_options_of_coord_up() -> None:
    """All that the embedded server has, but where its files and its socket are; and its data outlives the container."""
    own = {"--daemonize", "--unixsocketperm"}
    wanted = dict(zip(embedded.CONFIG[::2], embedded.CONFIG[1::2], strict=True))
    program, *options = SERVICES["valkey"]["command"]
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert program == "valkey-server"
    assert given.pop("--maxmemory")
    assert given == {name: value for name, value in wanted.items() if name not in own}
    (volume,) = SERVICES["valkey"]["volumes"]
    source, _, target = volume.partition(":")
    assert (target, source in project()["volumes"]) == ("/data", True)
    assert SERVICES["valkey"]["image"].startswith("valkey/valkey:9")
