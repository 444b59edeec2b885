"""examples/kubernetes as data: commands and settings fit their programs; pods are probed, limited, end gracefully."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from coord import __version__, config, embedded
from coord.connection import check_url
from coord.gateway.router import Router
from coord.gateway.table import ROUTES
from coord.keys import KINDS
from tests.commands import parse

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "kubernetes"
OBJECTS: list[dict[str, Any]] = [
    one for file in sorted(FOLDER.glob("*.yaml")) for one in yaml.safe_load_all(file.read_text())
]
PODS: dict[str, dict[str, Any]] = {
    one["metadata"]["name"]: one["spec"]["template"] for one in OBJECTS if one["kind"] in {"Deployment", "StatefulSet"}
}
OURS = {name: pod for name, pod in PODS.items() if name != "valkey"}
#: A worker may wait for an answer of Redis when it gets SIGTERM, in seconds.
LONGEST_ANSWER_S = config.Settings().answer_timeout_s + config.Settings().read_block_ms / 1000


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    """The objects of a kind by their names."""
    return {one["metadata"]["name"]: one for one in OBJECTS if one["kind"] == kind}


def container(name: str) -> dict[str, Any]:
    """The only container of a pod."""
    (found,) = PODS[name]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def selected(labels: dict[str, str]) -> list[str]:
    """The pods that have these labels."""
    return [name for name, pod in PODS.items() if labels.items() <= pod["metadata"]["labels"].items()]


def created_url() -> str:
    """The URL in the command that the manifest gives for the secret."""
    (found,) = re.findall(r"--from-literal=url=(\S+)", (FOLDER / "settings.yaml").read_text())
    return str(found)


def environment(name: str) -> dict[str, str]:
    """The variables of a container, as Kubernetes makes them."""
    found: dict[str, str] = {}
    for source in container(name)["envFrom"]:
        found |= of_kind("ConfigMap")[source["configMapRef"]["name"]]["data"]
    for variable in container(name)["env"]:
        found[variable["name"]] = variable.get("value", created_url())
    return {key: value for key, value in found.items() if key.startswith(config.PREFIX)}


def test_each_process_has_a_manifest() -> None:
    """Every kind of worker, the gateway, a server, and an agent."""
    assert set(PODS) == {*(f"coord-{kind}" for kind in KINDS), "coord-gateway", "count-words", "valkey"}


@pytest.mark.parametrize("name", OURS)
def test_its_command_and_its_settings_are_taken(name: str) -> None:
    """By the program's own parser and the loader of the settings; the image has this version."""
    command = [word.replace("$(POD_NAME)", "pod-1") for word in container(name)["command"]]
    assert parse(command)[0] == "coord"
    settings = config.load(environment(name))
    check_url(settings.redis_url or "")
    assert settings.log_format == "json"
    assert container(name)["image"] == f"coord:{__version__}"
    assert f"--tag coord:{__version__} ." in (ROOT / "docs" / "how-to" / "kubernetes.md").read_text()


@pytest.mark.parametrize("name", OURS)
def test_the_url_of_redis_comes_from_a_secret(name: str) -> None:
    """It may hold a password; no manifest has a secret's value."""
    (url,) = [one for one in container(name)["env"] if one["name"] == "COORD_REDIS_URL"]
    assert url["valueFrom"] == {"secretKeyRef": {"name": "coord-redis", "key": "url"}}
    assert of_kind("Secret") == {}


@pytest.mark.parametrize("name", PODS)
def test_no_variables_of_services(name: str) -> None:
    """A service called coord-gateway would set COORD_GATEWAY_PORT=tcp://…; nor has a pod a token of the cluster."""
    spec = PODS[name]["spec"]
    assert (spec["enableServiceLinks"], spec["automountServiceAccountToken"]) == (False, False)


@pytest.mark.parametrize("name", PODS)
def test_a_pod_may_do_little(name: str) -> None:
    """No root, no rights, nothing to write to but what is mounted; and it has a limit of memory."""
    assert PODS[name]["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container(name)["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_found_by_its_selector(name: str) -> None:
    """The selector of its workload and of every service, policy and budget matches labels that a pod has."""
    labels = PODS[name]["metadata"]["labels"]
    (workload,) = [one for one in OBJECTS if one["metadata"]["name"] == name and "template" in one["spec"]]
    assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert name in OURS or "app.kubernetes.io/part-of" not in labels
    if name in OURS:
        (policy,) = of_kind("NetworkPolicy").values()
        assert policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"].items() <= labels.items()


def test_services_and_budgets_select_a_pod() -> None:
    """And a service leads to a port that its pod has."""
    for service in of_kind("Service").values():
        (pod,) = selected(service["spec"]["selector"])
        ports = {port["name"]: port["containerPort"] for port in container(pod)["ports"]}
        for port in service["spec"]["ports"]:
            assert port["port"] == ports[port["name"]]
    for budget in of_kind("PodDisruptionBudget").values():
        assert selected(budget["spec"]["selector"]["matchLabels"]) == ["coord-gateway"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_is_ready_while_it_is_present(kind: str) -> None:
    """Its probe is coord's own check; no liveness probe restarts it because Redis is away."""
    spec = container(f"coord-{kind}")
    assert spec["command"] == ["coord", "worker", kind]
    assert parse(spec["readinessProbe"]["exec"]["command"]) == ["python", "-m", "workers.presence"]
    assert spec["readinessProbe"]["exec"]["command"][-1] == kind
    assert "livenessProbe" not in spec
    assert PODS[f"coord-{kind}"]["spec"]["terminationGracePeriodSeconds"] > LONGEST_ANSWER_S


def test_the_gateway_is_probed_and_ends_gracefully() -> None:
    """Its probes are routes that need no key; it listens where its port is; it has time to answer."""
    spec = container("coord-gateway")
    router = Router(ROUTES)
    for probe in ("livenessProbe", "readinessProbe"):
        route, _ = router.find("GET", spec[probe]["httpGet"]["path"])
        assert route is not None
        assert (route.role, spec[probe]["httpGet"]["port"]) == (None, "http")
    assert spec["livenessProbe"]["httpGet"]["path"] != spec["readinessProbe"]["httpGet"]["path"]
    settings = config.load(environment("coord-gateway"))
    assert (settings.gateway_host, settings.gateway_security) == ("0.0.0.0", True)  # noqa: S104 (in a container)
    assert spec["ports"] == [{"name": "http", "containerPort": settings.gateway_port}]
    pause = int(spec["lifecycle"]["preStop"]["exec"]["command"][1])
    assert PODS["coord-gateway"]["spec"]["terminationGracePeriodSeconds"] > pause + 10


def test_an_agent_ends_before_it_is_killed() -> None:
    """Its drain timeout is shorter than the grace of its pod."""
    command = container("count-words")["command"]
    minutes = command[command.index("--drain-timeout") + 1]
    assert minutes.endswith("m")
    assert PODS["count-words"]["spec"]["terminationGracePeriodSeconds"] > 60 * int(minutes[:-1])


def test_valkey_has_the_options_of_coord_up() -> None:
    """All that the embedded server has, but where its files and its socket are; half of its memory is its limit."""
    program, *options = container("valkey")["args"]
    given = dict(zip(options[::2], options[1::2], strict=True))
    wanted = dict(zip(embedded.CONFIG[::2], embedded.CONFIG[1::2], strict=True))
    own = {"--daemonize", "--unixsocketperm"}
    assert (program, given.pop("--maxmemory")) == ("valkey-server", "1gb")
    assert container("valkey")["resources"]["limits"]["memory"] == "2Gi"
    assert given == {name: value for name, value in wanted.items() if name not in own}
    assert {mount["name"] for mount in container("valkey")["volumeMounts"]} == {
        claim["metadata"]["name"] for claim in of_kind("StatefulSet")["valkey"]["spec"]["volumeClaimTemplates"]
    }
