"""GET /system of a live cell: processes, streams, server, and what is wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from coord.embedded import EmbeddedServer
from coord.keys import CONSUMES
from tests.system.gateway_cell import Gateway, gateway_cell

#: A machine with much else to do is slow.
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def gateway(server: EmbeddedServer) -> Iterator[Gateway]:
    """A cell with a gateway for all these tests."""
    with gateway_cell(server.url, "system-route") as found:
        yield found


def until(gateway: Gateway, wanted: Any, path: str = "/system") -> Any:
    """Ask until an answer is as wanted: an answer is shared for a second."""
    deadline = time.monotonic() + LIMIT_S
    while not wanted(found := gateway.success("GET", path)):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def test_the_processes(gateway: Gateway) -> None:
    """Workers and gateways, with their last sign of life."""
    kinds = {"registry", "distributor", "router", "gateway"}
    found = until(gateway, lambda answer: kinds <= {one["kind"] for one in answer["processes"]})
    for process in found["processes"]:
        assert process["heartbeat_at"] >= process["progress_at"] > 0
        assert process["started_at"] > 0
        assert {"name", "pid", "host", "version", "handled", "per_s", "lag_ms"} <= set(process)


def test_the_streams_and_the_server(gateway: Gateway) -> None:
    """Each stream with its group; the server as it describes itself."""
    found = gateway.success("GET", "/system")
    assert [(one["stream"], one["group"]) for one in found["streams"]] == [
        (stream, kind) for kind, streams in CONSUMES.items() for stream in streams
    ]
    for stream in found["streams"]:
        assert set(stream) == {"stream", "group", "length", "lag", "pending", "oldest_ms"}
        assert stream["length"] == stream["lag"] + stream["pending"]
    server = found["server"]
    assert (server["product"], server["role"], server["persistence"]) == ("valkey", "master", "none")
    assert server["used_memory"] > 0
    assert 0 < server["clients"] < server["maxclients"]
    assert found["timestamp"].endswith("+00:00")


def test_the_findings(gateway: Gateway) -> None:
    """As `coord doctor`: the server of the tests writes nothing to its disk, and a dead letter is one."""
    found = until(gateway, lambda answer: any(one["code"] == "workers" for one in answer["findings"]))
    by_code = {one["code"]: one for one in found["findings"]}
    assert set(by_code["workers"]) == {"level", "code", "message", "advice"}
    assert by_code["server.durability"]["level"] == "warning"
    assert "CONFIG SET appendonly yes" in by_code["server.durability"]["advice"]
    assert "ledger" not in by_code
    task = gateway.success("POST", "/tasks/submit", {"task_data": {"task_type": "boom"}})
    assert task["task_id"]
    until(gateway, lambda answer: any(one["code"] == "dead_letters" and one["advice"] for one in answer["findings"]))


def test_the_ledger(gateway: Gateway) -> None:
    """Only where it is asked for."""
    found = gateway.success("GET", "/system?ledger=1")
    assert {one["level"] for one in found["findings"] if one["code"] == "ledger"} == {"ok"}
    wrong = gateway.call("GET", "/system?ledger=maybe")
    assert wrong.status == 422


def test_requests_within_a_second_share_one_read(gateway: Gateway) -> None:
    """Many dashboards cost as much as one."""
    answers = [gateway.success("GET", "/system")["timestamp"] for _ in range(5)]
    assert len(set(answers)) <= 2
