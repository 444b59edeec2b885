"""Dead messages and conversations over HTTP: pages, replay, purge, and what is wrong with a request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from coord.embedded import EmbeddedServer
from coord.errors import AgentNotFound
from tests.system.gateway_cell import Gateway, gateway_cell
from tests.system.live_cell import command_runner


@pytest.fixture(scope="module")
def gateway(server: EmbeddedServer) -> Iterator[Gateway]:
    """A cell with a gateway for all these tests."""
    with gateway_cell(server.url, "dead-messages") as found:
        yield found


def send(gateway: Gateway, receiver: str, message_id: str, **more: Any) -> None:
    """Send a message that may not be delivered."""
    with suppress(AgentNotFound):
        gateway.cell.do(gateway.cell.client.send(receiver, {"n": 1}, sender_id="sender", message_id=message_id, **more))


def pages(gateway: Gateway, limit: int) -> list[list[str]]:
    """The ids of all dead messages, by page."""
    found, cursor = [], ""
    while True:
        page = gateway.success("GET", f"/messages/dead?limit={limit}{cursor}")
        found.append([one["message_id"] for one in page["messages"]])
        assert page["count"] == len(found[-1])
        if page["next"] is None:
            return found
        cursor = f"&cursor={page['next']}"


def test_pages_of_dead_messages(gateway: Gateway) -> None:
    """Each once, the latest first, also if several died in the same ms and new ones come meanwhile."""
    names = [f"page-{number}" for number in range(7)]
    for name in names:
        send(gateway, "nobody", name)
    key = gateway.cell.keys.of("messages:dead")

    async def at_once() -> None:
        client = gateway.cell.client
        await client.connection.redis.zadd(key, dict.fromkeys(names, await client.server_time()))

    whole = gateway.success("GET", "/messages/dead")
    assert (whole["total"], whole["next"]) == (7, None)
    first = whole["messages"][0]
    assert (first["message_id"], first["sender_id"], first["receiver_id"]) == ("page-6", "sender", "nobody")
    assert (first["code"], first["reason"]) == ("agent_not_found", "Agent 'nobody' not found")
    assert "payload" not in first
    assert pages(gateway, 3) == [["page-6", "page-5", "page-4"], ["page-3", "page-2", "page-1"], ["page-0"]]
    gateway.cell.do(at_once())
    assert [len(page) for page in pages(gateway, 2)] == [2, 2, 2, 1]
    assert sorted(name for page in pages(gateway, 2) for name in page) == names
    page = gateway.success("GET", "/messages/dead?limit=4")
    send(gateway, "nobody", "page-later")
    rest = gateway.success("GET", f"/messages/dead?limit=4&cursor={page['next']}")
    assert [len(page["messages"]), len(rest["messages"])] == [4, 3]
    wrong = gateway.call("GET", "/messages/dead?cursor=tomorrow")
    assert (wrong.status, wrong.body["code"]) == (422, "cursor_invalid")
    assert "'tomorrow' does not come from a list of dead messages" in wrong.body["message"]
    assert gateway.call("GET", "/messages/dead?limit=0").status == 422
    assert gateway.success("POST", "/messages/dead/purge", {"older_than": 0})["purged"] == 8


def test_replay(gateway: Gateway) -> None:
    """It is delivered with a new time to live, or it stays dead with the reason."""
    send(gateway, "newcomer", "replay-1")
    refused = gateway.call("POST", "/messages/replay-1/replay")
    assert (refused.status, refused.body["code"]) == (404, "agent_not_found")
    gateway.success("POST", "/agents/register", {"agent_id": "newcomer", "agent_type": "worker"})
    wrong = gateway.call("POST", "/messages/replay-1/replay", {"ttl": -1})
    assert wrong.status == 422
    assert "ttl" in str(wrong.body["detail"])
    done = gateway.success("POST", "/messages/replay-1/replay", {"ttl": 600})
    assert (done["status"], done["message_id"]) == ("success", "replay-1")
    assert gateway.success("GET", "/messages/replay-1")["message"]["status"] == "delivered"
    again = gateway.call("POST", "/messages/replay-1/replay")
    assert (again.status, again.body["code"]) == (409, "message_not_dead")
    missing = gateway.call("POST", "/messages/nothing/replay")
    assert (missing.status, missing.body["code"]) == (404, "message_not_found")
    entry = gateway.success("GET", "/audit")["entries"]
    assert {one["outcome"] for one in entry if one["target"] == "replay-1"} >= {"delivered", "unknown", "not_dead"}
    assert all(one["by"] == "http 127.0.0.1" for one in entry if one["action"] == "messages.replay")


def test_purge(gateway: Gateway) -> None:
    """One, or all that are old enough; never both, never a message that lives."""
    send(gateway, "nobody", "purge-1")
    send(gateway, "nobody", "purge-2")
    send(gateway, "cli-agent", "lives-1")
    assert gateway.success("POST", "/messages/dead/purge", {"older_than": 3_600})["purged"] == 0
    assert gateway.success("POST", "/messages/dead/purge", {"message_id": "purge-1"})["purged"] == 1
    for body in ({}, {"message_id": "purge-2", "older_than": 0}):
        wrong = gateway.call("POST", "/messages/dead/purge", body)
        assert (wrong.status, wrong.body["code"]) == (422, "body_invalid"), wrong.body
        assert wrong.body["message"] == "give either message_id or older_than, in seconds (0 for all)"
    living = gateway.call("POST", "/messages/dead/purge", {"message_id": "lives-1"})
    assert (living.status, living.body["code"]) == (409, "message_not_dead")
    missing = gateway.call("POST", "/messages/dead/purge", {"message_id": "purge-1"})
    assert (missing.status, missing.body["code"]) == (404, "message_not_found")
    assert gateway.success("GET", "/messages/dead")["total"] == 1
    assert gateway.success("POST", "/messages/dead/purge", {"older_than": 0})["purged"] == 1


def test_a_conversation(gateway: Gateway) -> None:
    """By its id or by that of a message of it, in order, without payloads."""
    send(gateway, "cli-agent", "say-1", correlation_id="talk")
    send(gateway, "nobody", "say-2", correlation_id="talk", reply_to="say-1")
    found: dict[str, Any] = {}
    for name in ("talk", "say-1", "say-2"):
        found = gateway.success("GET", f"/messages/conversations/{name}")
        assert (found["conversation_id"], found["count"]) == ("talk", 2)
        assert [one["message_id"] for one in found["messages"]] == ["say-1", "say-2"]
    last = found["messages"][1]
    assert (last["reply_to"], last["status"], last["reason"]) == ("say-1", "dead", "Agent 'nobody' not found")
    assert "payload" not in last
    missing = gateway.call("GET", "/messages/conversations/nothing")
    assert (missing.status, missing.body["code"]) == (404, "message_not_found")
    assert missing.body["message"] == "Conversation 'nothing' not found"


def test_the_history_of_an_agent(gateway: Gateway) -> None:
    """What it sent and what it received, of as many of the newest messages as are asked for."""
    gateway.success("POST", "/agents/register", {"agent_id": "both", "agent_type": "worker"})
    send(gateway, "both", "to-1")
    gateway.cell.do(gateway.cell.client.send("cli-agent", sender_id="both", message_id="from-1"))
    send(gateway, "cli-agent", "other-1")

    def listed(query: str) -> list[str]:
        return [one["message_id"] for one in gateway.success("GET", f"/messages/history?{query}")["messages"]]

    assert listed("agent_id=both") == ["from-1", "to-1"]
    assert listed("agent_id=both&within=1") == ["from-1"]
    assert listed("within=1") == ["other-1"]
    assert listed("agent_id=both&sender_id=both") == ["from-1"]
    assert gateway.call("GET", "/messages/history?within=1001").status == 422


def test_the_reason_of_a_change(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An operator gives a reason for a strategy or a modifier, and the audit shows it."""
    path = "/load-balancer/strategy"
    assert "predictive" in gateway.success("GET", path)["strategies"]
    gateway.success("PUT", path, {"strategy": "random", "reason": "compare it"})
    gateway.success("PUT", path, {"modifiers": {"ejection": False}, "reason": "too eager"})
    entries = gateway.success("GET", "/audit?limit=2")["entries"]
    assert [(one["action"], one.get("reason")) for one in entries] == [
        ("settings.set", "too eager"),
        ("strategy.set", "compare it"),
    ]
    gateway.cell.do(gateway.cell.client.admin.set_modifier("ejection", None, reason="back"))
    assert gateway.success("GET", "/audit?limit=1")["entries"][0]["reason"] == "back"
    shown = command_runner(gateway.cell, monkeypatch, capsys)("audit", "--limit", "3").out
    assert "random (compare it)" in shown
    assert "(back)" in shown
    wrong = gateway.call("PUT", path, {"strategy": "random", "reason": "x" * 129})
    assert wrong.status == 422
    assert "reason" in str(wrong.body["detail"])
