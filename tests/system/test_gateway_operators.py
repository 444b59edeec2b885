"""What operators ask of agents over HTTP: drain, maintenance, resume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from coord.embedded import EmbeddedServer
from coord.models.agents import AgentType
from coord.models.facts import AgentRegistered
from coord.streams import Append
from tests.system.gateway_cell import Gateway, gateway_cell


@pytest.fixture(scope="module")
def gateway(server: EmbeddedServer) -> Iterator[Gateway]:
    """The cell, with the agent that is operated."""
    with gateway_cell(server.url, "operators") as running:
        fact = AgentRegistered("op-1", AgentType.WORKER, capacity=3)
        running.cell.do(running.cell.client.connection.append([Append("in:registry", fact)]))
        yield running


def record(gateway: Gateway) -> Any:
    """The record of the agent."""
    return gateway.success("GET", "/agents/op-1")["agent"]


def test_a_drain_lasts_until_it_is_resumed(gateway: Gateway) -> None:
    """Whatever the agent reports meanwhile; the later of a drain and a maintenance counts."""
    for path, message, status in (
        ("drain", "The agent drains", "draining"),
        ("drain", "The agent drains", "draining"),
        ("maintenance", "The agent is in maintenance", "maintenance"),
        ("drain", "The agent drains", "draining"),
    ):
        body = gateway.success("POST", f"/agents/op-1/{path}")
        assert body.pop("timestamp")
        assert body == {"status": "success", "message": message, "agent_id": "op-1", "new_status": status}
        assert (record(gateway)["status"], record(gateway)["drained_from"]) == (status, "active")
    gateway.success("PUT", "/agents/op-1/status", {"status": "busy"})
    assert (record(gateway)["status"], record(gateway)["drained_from"]) == ("draining", "busy")
    assert gateway.success("POST", "/agents/op-1/resume")["new_status"] == "busy"
    assert record(gateway)["drained_from"] == ""
    assert gateway.success("POST", "/agents/op-1/resume")["new_status"] == "busy"


def test_an_agent_that_does_not_exist_is_not_found(gateway: Gateway) -> None:
    """Nor one that left."""
    gateway.success("POST", "/agents/register", {"agent_id": "left-1", "agent_type": "worker"})
    gateway.success("DELETE", "/agents/left-1")
    for agent_id in ("nobody", "left-1"):
        for path in ("drain", "maintenance", "resume"):
            answer = gateway.call("POST", f"/agents/{agent_id}/{path}")
            assert (answer.status, answer.body["code"]) == (404, "agent_not_found")
            assert answer.body["message"] == f"Agent '{agent_id}' not found"


def test_a_request_that_does_not_wait_is_accepted(gateway: Gateway) -> None:
    """Its status is not known yet; Location is the path of the record."""
    for _ in range(50):  # a worker may answer before the response is made
        answer = gateway.call("POST", "/v1/agents/op-1/resume", headers={"Prefer": "respond-async"})
        assert (answer.status, answer.headers["location"]) == (202, "/v1/agents/op-1")
        assert (answer.body["status"], answer.body["new_status"]) == ("accepted", None)
