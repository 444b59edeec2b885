"""Every row of the contract against one cell at work, with the requests that the predecessor's callers send."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pytest

from coord.embedded import EmbeddedServer
from tests.http import HttpAnswer
from tests.system.gateway_cell import Gateway, gateway_cell, gateway_of

AGENT = {"agent_type": "worker", "capabilities": ["ocr"], "services": ["scan"], "tags": ["fast"]}
WEB = {"endpoints": {"http": "http://127.0.0.1:1"}, "metadata": {"delivery": "poll"}}
TASK = {"task_data": {"task_type": "nobody", "required_capabilities": ["nobody-has-it"]}}
DONE = {"task_data": {"task_type": "echo", "required_capabilities": ["echo"], "n": 1}}
#: Names of fields that are times.
MOMENT = re.compile(r"at|timestamp|deadline|\w+_at|registration_time|last_heartbeat|last_cleanup|reply_by")
#: A body that is too deep for any decoder.
DEEP = b'{"task_data": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}"


@pytest.fixture(scope="module")
def gateway(server: EmbeddedServer) -> Iterator[Gateway]:
    """The cell: agents w1 and w2 over HTTP, cli-agent of the SDK, and the tasks and messages of this file."""
    with gateway_cell(server.url, "contract") as running:
        for agent_id in ("w1", "w2", "w3"):
            running.success("POST", "/agents/register", AGENT | WEB | {"agent_id": agent_id})
            running.success("GET", f"/agents/{agent_id}/inbox")
        running.success("POST", "/agents/register", AGENT | {"agent_id": "r1"})
        running.success("POST", "/tasks/submit", TASK | {"task_data": TASK["task_data"] | {"task_id": "waits"}})
        running.success("POST", "/messages/send", message(message_id="m1"))
        yield running


def message(**more: Any) -> dict[str, Any]:
    """A message to w1."""
    return {"receiver_id": "w1", "message_type": "direct", "payload": {"text": "hello"}} | more


class Row(NamedTuple):
    """A request and its response."""

    request: str  #: method and path
    body: Any = None
    status: int = 200
    has: dict[str, Any] | None = None  #: fields of the response with these values
    keys: str = ""  #: further fields that it has
    text: str = ""  #: the message begins with it


ROWS = (
    Row("GET /", keys="service description version endpoints"),
    Row("GET /v1", keys="service description version endpoints"),
    Row("GET /health", keys="service version timestamp checks"),
    Row("GET /health/live", keys="service"),
    # Agents
    Row("POST /agents/register", AGENT | {"agent_id": "r1"}, 200, {"agent_id": "r1"}, "message registered_at"),
    Row("POST /agents/register", AGENT | {"agent_id": "r1", "unknown": {"key": 1}}, 200, {"agent_id": "r1"}),
    Row("POST /agents/register", AGENT | {"agent_id": "r2", "chain_id": 7, "island_id": "x"}, 200),
    Row("POST /agents/register",
        {"agent_id": "old", "agent_type": "provider", "capabilities": ["ocr"], "services": ["scan"],
         "endpoints": {"http": "http://127.0.0.1:1", "ws": "ws://127.0.0.1:1"}, "metadata": {"gpu": {"memory": 8}},
         "labels": {"zone": "a"}, "version": "1.2.0", "location": {"lat": 52.5, "lon": 13.4, "region": "eu"},
         "capacity": 2, "weight": 2, "heartbeat_interval": 30, "chain_id": 7, "island_id": "x"},
        200, {"agent_id": "old"}),
    Row("POST /agents/register", AGENT | {"agent_id": "i" * 128}, 200),
    Row("POST /agents/register", AGENT | {"agent_id": "i" * 129}, 422, {"code": "body_invalid"},
        text="agent_id: must be 1 to 128 characters of A-Z a-z 0-9 . _ @ -"),
    *(Row("POST /agents/register", AGENT | {"agent_id": word}, 422, {"code": "id_invalid"})
      for word in ("register", "discover", "service", "capability", "status", "queues")),
    Row("POST /agents/register", {"agent_id": "r3"}, 422, {"code": "body_invalid"}),
    Row("POST /agents/register", AGENT | {"agent_id": "discover"}, 422),
    Row("POST /agents/register", AGENT | {"agent_id": "a b"}, 422),
    Row("POST /agents/register", AGENT | {"agent_id": "r3", "agent_type": "king"}, 422),
    Row("POST /agents/register", AGENT | {"agent_id": "r3", "capabilities": "ocr"}, 422),
    Row("POST /agents/register", AGENT | {"agent_id": "r3", "capabilities": [1]}, 422),
    Row("POST /agents/register", b"[]", 422),
    Row("POST /agents/register", b"null", 422),
    Row("POST /agents/register", b'{"agent_id": "\xff"}', 422),
    Row("POST /agents/register", b"{", 422),
    Row("POST /agents/discover", {"agent_type": "worker", "tags": ["fast"]}, keys="query agents count timestamp"),
    Row("POST /agents/discover", {"query": {"capabilities": ["ocr"], "status": "active"}}, keys="agents count"),
    Row("POST /agents/discover", None, keys="agents count"),
    Row("POST /agents/discover", {"status": "unheard-of"}, 200, {"count": 0, "agents": []}),
    Row("POST /agents/discover", {"query": {"agent_type": "king"}}, 200, {"count": 0}),
    Row("POST /agents/discover",
        {"agent_type": "provider", "services": ["scan"], "labels": {"zone": "a"}, "chain_id": 7, "island_id": "x",
         "min_health_score": 0.1, "limit": 5, "unknown": 1}, 200, {"count": 1}),
    Row("POST /agents/discover", {"query": {"agent_type": "provider"}, "agent_type": "monitor"}, 200, {"count": 1}),
    Row("POST /agents/discover", {"query": None, "agent_type": None, "status": None}, keys="agents count"),
    Row("POST /agents/discover", {"query": {"unknown": 1}}, keys="agents count"),
    Row("POST /agents/discover", {"capabilities": "ocr"}, 422),
    Row("POST /agents/discover", {"query": {"capabilities": [1]}}, 422),
    Row("POST /agents/discover", {"min_health_score": 2}, 422),
    Row("POST /agents/discover", {"limit": 0}, 422),
    Row("POST /agents/discover", {"cursor": "nonsense"}, 422, {"code": "cursor_invalid"}),
    Row("GET /agents?limit=2", None, 200, {"count": 2}, "agents next timestamp"),
    Row("GET /agents?tags=fast&agent_type=worker&capabilities=ocr", keys="agents count"),
    Row("GET /agents?agent_type=provider&labels=zone=a&chain_id=7&min_health_score=0.1", None, 200, {"count": 1}),
    Row("GET /agents?status=nonsense", None, 200, {"count": 0}),
    Row("GET /agents?limit=many", None, 422, {"code": "query_invalid"}),
    Row("GET /agents/w1", keys="agent timestamp"),
    Row("GET /agents/nobody", None, 404, {"code": "agent_not_found", "message": "Agent 'nobody' not found"}),
    Row("PUT /agents/w2/status", {"status": "busy", "load_metrics": {"cpu": 0.5}}, 200, {"new_status": "busy"}),
    Row("PUT /agents/w2/status", {"status": "active"}, 200, {"agent_id": "w2"}, "message updated_at"),
    Row("PUT /agents/w2/status", {"status": "sleepy"}, 422),
    Row("PUT /agents/w2/status", {}, 422),
    Row("PUT /agents/w2/status", None, 422),
    Row("PUT /agents/w2/status", {"status": "busy", "load_metrics": {"cpu": "high"}}, 422),
    Row("PUT /agents/nobody/status", {"status": "busy"}, 404, {"code": "agent_not_found"}),
    Row("POST /agents/w1/heartbeat", None, 200, {"agent_id": "w1"}, "message heartbeat_at"),
    Row("POST /agents/w1/heartbeat", {"load_metrics": {"cpu": 1}, "running": []}, 200),
    Row("POST /agents/w1/heartbeat", {"status": "sleepy"}, 422),
    Row("POST /agents/nobody/heartbeat", None, 404),
    Row("DELETE /agents/r1", None, 200, {"agent_id": "r1"}, "message"),
    Row("GET /agents/r1", keys="agent"),
    Row("DELETE /agents/nobody", None, 404, {"code": "agent_not_found"}),
    Row("GET /agents/service/scan", None, 200, {"service": "scan"}, "agents count timestamp"),
    Row("GET /agents/service/no-such", None, 200, {"count": 0, "agents": []}),
    Row("GET /agents/capability/ocr", None, 200, {"capability": "ocr"}, "agents count timestamp"),
    Row("GET /registry/stats", keys="stats timestamp"),
    Row("DELETE /agents/old", None, 200, {"agent_id": "old"}),  # tasks would be pushed to it: no worker does that here
    Row("GET /health"),
    # Tasks
    Row("POST /tasks/submit", TASK, 200, {"priority": "normal"}, "message task_id submitted_at"),
    Row("POST /tasks/submit", TASK | {"priority": "UrGent", "payment": {}},
        200, {"priority": "urgent", "escrow_id": None}),
    Row("POST /tasks/submit", TASK | {"priority": None, "requirements": None,
        "payment": {"amount": "1.5", "currency": "X"}, "chain_id": "7"},
        200, {"priority": "normal", "escrow_id": None}),
    Row("POST /tasks/submit", TASK | {"requirements": {
        "agent_type": "worker", "capabilities": ["ocr"], "services": ["scan"], "tags": ["fast"],
        "labels": {"zone": "a"}, "agent_id": "w1", "min_health_score": 0.5, "location": {"region": "eu"}},
        "timeout": 30, "delay": 60, "deadline": "2099-01-01T00:00:00+02:00", "retry": {"max_attempts": 2}}, 200),
    Row("POST /tasks/submit", TASK | {"run_at": "2099-01-01T00:00:00Z"}, 200),
    Row("POST /tasks/submit", TASK | {"run_at": "2099-01-01T00:00:00"}, 422),
    Row("POST /tasks/submit", TASK | {"run_at": "2099-01-01T00:00:00Z", "delay": 5}, 422),
    Row("POST /tasks/submit", TASK | {"timeout": -1}, 422),
    Row("POST /tasks/submit", TASK | {"requirements": {"agent_type": "worker", "gpu": True}, "chain_id": 1}, 200),
    Row("POST /tasks/submit", TASK | {"requirements": {"location": {"lat": 91, "lon": 0}}}, 422),
    Row("POST /tasks/nothing/complete", b'{"lease": "00d1ce5f8a6b7c2e", "result": {"n": 1e999}}',
        422, {"code": "payload_invalid"}),
    Row("POST /tasks/submit", TASK | {"priority": "asap"}, 400, {"message": "Invalid priority: asap"}),
    Row("POST /tasks/submit", TASK | {"priority": 5}, 422),
    Row("POST /tasks/submit", TASK | {"requirements": {"agent_type": "king"}}, 422),
    Row("POST /tasks/submit", {}, 422),
    Row("POST /tasks/submit", {"task_data": "text"}, 422),
    Row("POST /tasks/submit", {"task_data": [1]}, 422),
    Row("POST /tasks/submit", {"task_data": {"task_id": "a b"}}, 422),
    Row("POST /tasks/submit", DEEP, 422),
    Row("POST /tasks/submit", b'{"task_data": {"x": "' + b"x" * 1024 * 1024 + b'"}}', 413, {"code": "body_too_large"}),
    Row("POST /tasks/batch", {"tasks": [TASK, {"task_data": 1}, TASK | {"priority": "x"}]},
        200, {"count": 3, "submitted": 1}),
    Row("POST /tasks/batch", {"tasks": []}, 422),
    Row("POST /tasks/batch", {}, 422),
    Row("GET /tasks?limit=5", keys="tasks count next timestamp"),
    Row("GET /tasks?state=queued,running&task_type=nobody", keys="tasks"),
    Row("GET /tasks?state=lost", None, 422),
    Row("GET /tasks?cursor=nonsense", None, 422, {"code": "cursor_invalid"}),
    Row("GET /tasks?q=type:nobody%20state:queued&limit=1", None, 200, {"count": 1}, "next"),
    Row("GET /tasks?q=stat:queued", None, 422, {"code": "query_invalid",
        "message": "query, position 1: there is no field 'stat'; did you mean state:queued?"}),
    Row("GET /query/fields?for=tasks", keys="fields"),
    Row("GET /query/fields?for=agents", None, 422, {"code": "query_invalid"}),
    Row("POST /tasks/bulk", {"action": "cancel", "q": "id:waits", "dry_run": True}, 200,
        {"matched": 1, "done": 0, "operation": None, "next": None}, "skipped query unanswered"),
    Row("POST /tasks/bulk", {"action": "prioritize", "q": "id:waits", "priority": "high"}, 200,
        {"matched": 1, "done": 1, "skipped": {}, "next": None}, "operation"),
    Row("POST /tasks/bulk", {"action": "prioritize", "q": "id:waits"}, 422, {"code": "body_invalid"}),
    Row("POST /tasks/bulk", {"action": "cancel", "q": ""}, 422, {"code": "body_invalid"}),
    Row("POST /tasks/bulk", {"action": "cancel", "q": " \t"}, 422, {"code": "query_invalid",
        "message": "the query is empty; write id:* if you mean all tasks"}),
    Row("POST /tasks/bulk", {"action": "cancel", "q": "x", "limit": 0}, 422, {"code": "body_invalid"}),
    Row("POST /tasks/bulk", {"action": "cancel", "q": "since:2026"}, 422, {"code": "query_invalid"}),
    Row("POST /tasks/bulk", {"action": "cancel", "q": "age:1h"}, 422, {"code": "query_invalid"}),
    Row("POST /tasks/bulk", {"action": "cancel", "q": "x", "cursor": "x"}, 422, {"code": "cursor_invalid"}),
    Row("POST /tasks/bulk", {"action": "retry", "q": "x", "operation": "x"}, 422, {"code": "fact_invalid"}),
    Row("GET /tasks/results?q=stat:x", None, 422, {"code": "query_invalid"}),
    Row("GET /stats", None, 200, {"rates": None},
        "totals submitted waiting queue_sizes latency agents workers strategy timestamp"),
    Row("GET /stats?window=1", keys="totals rates"),
    Row("GET /stats?window=0.5", None, 422, {"code": "query_invalid"}),
    Row("GET /stats?window=11", None, 422, {"code": "query_invalid"}),
    Row("GET /audit?limit=1", keys="entries next timestamp"),
    Row("GET /audit?cursor=x", None, 422, {"code": "cursor_invalid"}),
    Row("GET /tasks/waits", keys="task timestamp"),
    Row("GET /tasks/waits/status", keys="task"),
    Row("GET /tasks/nothing", None, 404, {"code": "task_not_found"}),
    Row("GET /tasks/waits/explain", None, 200, {"state": "queued"}, "summary waiting placed"),
    Row("GET /pools", keys="pools count unlisted"),
    Row("POST /tasks/nothing/cancel", None, 404, {"code": "task_not_found"}),
    Row("POST /tasks/waits/cancel", {"reason": 7}, 422),
    Row("POST /tasks/nothing/retry", None, 404, {"code": "task_not_found"}),
    Row("POST /tasks/waits/retry", None, 409),
    Row("GET /tasks/status", keys="stats timestamp"),
    Row("GET /tasks/queues", keys="queue_sizes timestamp"),
    Row("GET /tasks/queues/stats", keys="queue_sizes distribution_stats timestamp"),
    Row("POST /tasks/queues/asap/clear", None, 400, {"code": "invalid_priority"}, text="Invalid priority: asap"),
    Row("POST /tasks/queues/LOW/clear", None, 200, {"priority": "low"}, "cleared_count timestamp"),
    Row("GET /load-balancer/stats", keys="stats timestamp"),
    Row("GET /load-balancer/strategy", keys="strategy updated_at"),
    Row("PUT /load-balancer/strategy?strategy=ROUND_ROBIN", None, 200, {"strategy": "round_robin"}, "updated_at"),
    Row("POST /load-balancer/strategy", {"strategy": "Least_Connections"}, 200, {"strategy": "least_connections"}),
    Row("PUT /load-balancer/strategy?strategy=best", None, 400, {"code": "invalid_strategy"},
        text="Invalid strategy: best. Valid strategies: "),
    Row("PUT /load-balancer/strategy?strategy=round-robin", None, 400, {"code": "invalid_strategy"},
        text="Invalid strategy: round-robin. Did you mean 'round_robin'? Valid strategies: "),
    Row("GET /load-balancer/strategy/history", keys="changes count timestamp"),
    Row("DELETE /load-balancer/strategy", None, 200, {"strategy": "least_connections"}, "updated_at"),
    Row("PUT /load-balancer/strategy", None, 422),
    # Messages
    Row("POST /messages/send", message(),
        200, {"receiver_id": "w1", "message_status": "delivered"}, "message_id sent_at"),
    Row("POST /messages/send", message(protocol="hierarchical", sender_id="cli-agent"),
        409, {"code": "not_in_hierarchy"}),
    Row("POST /messages/send", message(protocol="hierarchical"), 200, {"protocol": "hierarchical"}),
    Row("POST /messages/send", message(message_type="peer_to_peer", sender_id="w2"), 200),
    Row("POST /messages/send", {"sender": "w2", "recipient": "w1", "message_type": "DIRECT", "content": {}}, 200),
    Row("POST /messages/send", message(priority="HIGH", protocol="Direct", ttl=60, unknown=1),
        200, {"protocol": "direct"}),
    Row("POST /messages/send", message(protocol="broadcast"), 200, {"protocol": "broadcast"}),
    Row("POST /messages/send", message(protocol="pigeon"), 400, {"code": "invalid_protocol"},
        text="Invalid protocol: pigeon. Valid protocols: "),
    Row("POST /messages/send", message(priority="urgent"), 400, {"code": "invalid_priority"}),
    Row("POST /messages/send", message(priority="asap"), 400, {"code": "invalid_priority"},
        text="Invalid priority: asap. Valid priorities: "),
    Row("POST /messages/send", message(message_type="gossip"), 400, {"code": "invalid_message_type"},
        text="Invalid message type: gossip. Valid message types: "),
    Row("POST /messages/send", message(correlation_id="c1", message_id="m2"), 200, {"message_id": "m2"}),
    Row("POST /messages/send", message(reply_to="m2", receiver_id="w2", sender_id="w1"), 200),
    Row("POST /messages/send", message(ttl=0), 422),
    Row("POST /messages/send", message(ttl="soon"), 422),
    Row("POST /messages/send", message(sender_id="a b"), 422),
    Row("POST /messages/send", message(receiver_id="nobody"), 404, {"code": "agent_not_found"}),
    Row("POST /messages/send", message(payload="text"), 422),
    Row("POST /messages/send", {"receiver_id": "w1", "message_type": "direct"}, 422),
    Row("POST /messages/send", {"message_type": "direct", "payload": {}}, 422),
    Row("POST /messages/send", {"receiver_id": "w1", "payload": {}}, 422),
    Row("POST /messages/broadcast", {"message_type": "coordination", "payload": {}, "tags": ["fast"]}, 200, None,
        "message recipients count broadcast_at"),
    Row("POST /messages/broadcast", {"message_type": "coordination", "payload": {}, "agent_type": "king"}, 400,
        {"code": "invalid_agent_type"}),
    Row("POST /messages/broadcast", {"payload": {}}, 422),
    Row("GET /messages/history?receiver_id=w1", None,
        200, {"limit": 100, "offset": 0}, "messages count total timestamp"),
    Row("GET /messages/history?sender_id=w2&limit=1&offset=1", None, 200, {"limit": 1, "offset": 1}, "next"),
    Row("GET /messages/history?correlation_id=c1", None, 200, {"count": 2}),
    Row("GET /messages/history?cursor=nonsense", None, 422, {"code": "cursor_invalid"}),
    Row("GET /messages/history?limit=0", None, 422),
    Row("GET /messages/history?sender_id=a/b", None, 422, {"code": "query_invalid"},
        text="sender_id: must be 1 to 128 characters of A-Z a-z 0-9 . _ @ -"),
    Row("GET /messages/m1", keys="message recipients"),
    Row("GET /messages/nothing", None, 404, {"code": "message_not_found"}),
    Row("POST /messages/nothing/read", None, 404, {"code": "message_not_found"}),
    Row("POST /messages/m1/read", {"agent_id": "w2"}, 404, {"code": "message_not_found"}),
    # Peers
    Row("POST /peers/add?agent_id=w1&peer_id=w2", None, 200, {"agent_id": "w1", "peer_id": "w2"}, "connected_at"),
    Row("POST /peers/add?agent_id=w1", None, 422, {"code": "query_invalid"}),
    Row("POST /peers/add?agent_id=w1&peer_id=nobody", None, 404, {"code": "agent_not_found"}),
    Row("GET /peers/w1", None, 200, {"peers": ["w2"], "count": 1}),
    Row("POST /peers/add?agent_id=w1&peer_id=w1", None, 422),
    Row("POST /peers/remove?agent_id=w1", None, 422, {"code": "query_invalid"}),
    Row("GET /peers/nobody", None, 404),
    Row("GET /peers", None, 200, None, "connections total_agents total_peers"),
    Row("POST /peers/remove?agent_id=w1&peer_id=w2", None, 200, {"agent_id": "w1"}, "removed_at"),
    Row("GET /peers/w1", None, 200, {"peers": [], "count": 0}),
    Row("POST /agents/w1/subordinates/w2", None, 200, {"subordinate_id": "w2"}),
    Row("POST /agents/w2/subordinates/w1", None, 409),
    Row("GET /agents/w1/subordinates", None, 200, {"subordinates": ["w2"], "count": 1}),
    Row("DELETE /agents/w1/subordinates/w2", None, 200, {"subordinate_id": "w2"}),
    Row("DELETE /agents/w1/subordinates/w2", None, 404),
    Row("POST /agents/w1/subordinates/nobody", None, 404),
    Row("GET /agents/nobody/subordinates", None, 404),
    # Metrics
    Row("GET /metrics/summary", None, 200, None, "performance system timestamp"),
    # Paths
    Row("GET /no/such/path", None, 404, {"code": "not_found"}),
    Row("GET /agents/a%20b", None, 404, {"code": "not_found"}),
    Row("DELETE /tasks/submit", None, 405, {"code": "method_not_allowed"}),
)  # fmt: skip


def assert_moments(found: Any) -> None:
    """Each time, at any depth, is ISO 8601 with the offset of UTC, or null."""
    if isinstance(found, list):
        for value in found:
            assert_moments(value)
    if isinstance(found, dict):
        for name, value in found.items():
            if MOMENT.fullmatch(name) and value is not None:
                assert datetime.fromisoformat(value).utcoffset() == timedelta(0), (name, value)
            elif name not in {"payload", "metadata"}:
                assert_moments(value)


def assert_answer(answer: HttpAnswer, row: Row) -> None:
    """The response is as the row has it, in the shape of the contract."""
    assert answer.status == row.status, answer.body
    body = answer.body
    if answer.status == 200:
        assert body["status"] == ("healthy" if "/health" in row.request else "success")
    else:
        assert set(body) == {"status", "code", "message", "detail", "timestamp"}
        assert body["status"] == "error"
        assert isinstance(body["detail"], list) == (answer.status == 422)
    assert_moments(body)
    assert {name: body.get(name) for name in row.has or {}} == (row.has or {})
    assert not set(row.keys.split()) - set(body), sorted(body)
    assert str(body.get("message", "")).startswith(row.text), body


@pytest.mark.guarantee("no-server-errors")
def test_every_row_of_the_contract(gateway: Gateway) -> None:
    """Each request has its response, with both prefixes where repeating it changes nothing.

    One test for all rows, in their order: some change what a later one finds.
    """
    wrong: list[str] = []
    for row in ROWS:
        method, path = row.request.split(" ")
        repeats = method == "GET" or row.status in {400, 404, 413, 422}
        for prefix in ("", "/v1") if repeats and path not in {"/", "/v1"} else ("",):
            try:
                assert_answer(gateway.call(method, prefix + path, row.body), row)
            except AssertionError as error:
                wrong.append(f"{method} {prefix}{path} {str(row.body)[:200]}: {error}")
    assert not wrong, "\n".join(wrong)


#: Call -> the field of its response that has numbers, and the names in it that the contract promises.
NUMBERS = {
    "/registry/stats": ("stats", "total_agents status_counts type_counts service_count capability_count last_cleanup"),
    "/tasks/status": (
        "stats",
        "tasks_distributed tasks_completed tasks_failed avg_distribution_time load_balancer_stats queue_sizes",
    ),
    "/load-balancer/stats": (
        "stats",
        "strategy total_assignments successful_assignments failed_assignments success_rate active_agents agent_weights",
    ),
    "/metrics/summary": ("system", "total_agents active_agents total_tasks load_balancer_strategy"),
    "/tasks/queues": ("queue_sizes", "urgent critical high normal low"),
}


@pytest.mark.parametrize("path", NUMBERS)
def test_the_numbers_have_their_names(gateway: Gateway, path: str) -> None:
    """Each name of the contract is there, with a number, a text or numbers; nothing is null but a time."""
    field, names = NUMBERS[path]
    found = gateway.success("GET", path)[field]
    assert set(names.split()) <= set(found)
    assert {name for name, value in found.items() if value is None} <= {"last_cleanup"}


def test_the_endpoints_are_those_of_the_document(gateway: Gateway) -> None:
    """``GET /`` names each path of the OpenAPI document as it is there, with its methods, and the WebSocket."""
    paths = gateway.call("GET", "/schema/openapi.json").body["paths"]
    documented = {path: {method.upper() for method in methods} for path, methods in paths.items()}
    endpoints = gateway.success("GET", "/")["endpoints"]
    assert {path: set(methods) for path, methods in endpoints.items()} == documented | {"/ws": {"WEBSOCKET"}}


def poll(gateway: Gateway, agent_id: str) -> list[dict[str, Any]]:
    """The messages in the inbox of an agent."""
    found = gateway.success("GET", f"/agents/{agent_id}/inbox?limit=100")["entries"]
    return [entry["message"] for entry in found if entry["kind"] == "message"]


def await_state(gateway: Gateway, task_id: str, state: str) -> None:
    """Wait until a task is in a state."""
    deadline = time.monotonic() + 30
    while (found := gateway.success("GET", f"/tasks/{task_id}")["task"]["state"]) != state:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def test_a_message_is_read_once(gateway: Gateway) -> None:
    """Its receiver acknowledges it: it leaves the inbox and its status says so; a copy of a broadcast as well."""
    gateway.success("POST", "/messages/send", message(message_id="read-me", receiver_id="w3"))
    assert gateway.success("GET", "/messages/read-me")["message"]["status"] == "delivered"
    for removed in (True, False):
        answer = gateway.success("POST", "/messages/read-me/read")
        assert (answer["agent_id"], answer["removed"]) == ("w3", removed)
    assert gateway.success("GET", "/messages/read-me")["message"]["status"] == "read"
    assert "read-me" not in {found["id"] for found in poll(gateway, "w3")}

    sent = {"message_type": "coordination", "payload": {}, "tags": ["fast"], "message_id": "all"}
    recipients = gateway.success("POST", "/messages/broadcast", sent)["recipients"]
    assert {"w1", "w3"} <= set(recipients)
    assert gateway.call("POST", "/messages/all/read").status == 404
    assert gateway.success("POST", "/messages/all/read", {"agent_id": "w3"})["removed"]
    statuses = {one["agent_id"]: one["status"] for one in gateway.success("GET", "/messages/all")["recipients"]}
    assert (statuses["w3"], statuses["w1"]) == ("read", "delivered")
    assert gateway.call("POST", "/messages/all/read", {"agent_id": "cli-agent-2"}).status == 404


def test_the_history_of_messages_is_filtered_and_paged(gateway: Gateway) -> None:
    """By sender, receiver and conversation; offset and limit cut a page out of all that match."""
    for number in range(3):
        more = {"sender_id": "w2", "receiver_id": "w3", "correlation_id": "talk", "message_id": f"h{number}"}
        gateway.success("POST", "/messages/send", message(**more))
    path = "/messages/history?sender_id=w2&receiver_id=w3"
    found = gateway.success("GET", path)
    assert [one["message_id"] for one in found["messages"]] == ["h2", "h1", "h0"]
    assert (found["count"], found["total"]) == (3, 3)
    found = gateway.success("GET", f"{path}&limit=1&offset=1")
    assert ([one["message_id"] for one in found["messages"]], found["total"]) == (["h1"], 3)
    assert gateway.success("GET", "/messages/history?sender_id=w3&receiver_id=w2")["count"] == 0
    assert gateway.success("GET", "/messages/history?correlation_id=talk")["count"] == 3


def test_the_numbers_are_those_of_the_tasks(gateway: Gateway) -> None:
    """A batch of tasks is distributed, completed, and counted; a queue that is cleared is empty."""
    before = gateway.success("GET", "/tasks/queues/stats")["distribution_stats"]
    answer = gateway.success("POST", "/tasks/batch", {"tasks": [DONE] * 5})
    ids = [one["task_id"] for one in answer["results"]]
    assert (answer["submitted"], {one["status"] for one in answer["results"]}) == (5, {"success"})
    for task_id in ids:
        await_state(gateway, task_id, "completed")
    assert gateway.call("POST", f"/tasks/{ids[0]}/cancel").status == 409
    deadline = time.monotonic() + 30
    while True:  # the statistics are shared for a second
        stats = gateway.success("GET", "/tasks/status")["stats"]
        if stats["tasks_completed"] == before["tasks_completed"] + 5 or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert stats["tasks_completed"] == before["tasks_completed"] + 5
    assert stats["tasks_distributed"] == before["tasks_distributed"] + 5
    balancer = gateway.success("GET", "/load-balancer/stats")["stats"]
    assert balancer == stats["load_balancer_stats"]
    assert balancer["total_assignments"] >= balancer["successful_assignments"] == stats["tasks_distributed"]
    assert set(stats["queue_sizes"]) == {"urgent", "critical", "high", "normal", "low"}

    ids = [gateway.success("POST", "/tasks/submit", TASK | {"priority": "critical"})["task_id"] for _ in range(3)]
    assert gateway.success("GET", "/tasks/queues")["queue_sizes"]["critical"] == 3
    assert gateway.success("POST", "/tasks/queues/critical/clear")["cleared_count"] == 3
    assert gateway.success("GET", "/tasks/queues")["queue_sizes"]["critical"] == 0
    assert {gateway.success("GET", f"/tasks/{task_id}")["task"]["state"] for task_id in ids} == {"cancelled"}


def test_an_error_in_a_batch_names_its_task(gateway: Gateway) -> None:
    """``loc`` begins at the body of the request, as that of every 422; other errors are those of a single task."""
    twice = TASK | {"task_data": TASK["task_data"] | {"task_id": "twice"}}
    late = TASK | {"run_at": "2099-01-01T00:00:00"}
    both = TASK | {"run_at": "2099-01-01T00:00:00Z", "delay": 5}
    bodies = [{"task_data": 1}, TASK | {"timeout": -1}, twice, twice, TASK | {"priority": "x"}, late, both]
    results = gateway.success("POST", "/tasks/batch", {"tasks": bodies})["results"]
    assert [one["status"] for one in results] == ["error", "error", "success", "error", "error", "error", "error"]
    assert results[4]["detail"] == results[4]["message"] == "Invalid priority: x"
    found = {number: results[number]["detail"][0]["loc"] for number in (0, 1, 3, 5, 6)}
    assert found == {
        0: ["body", "tasks", 0, "task_data"],
        1: ["body", "tasks", 1, "timeout"],
        3: ["body", "tasks", 3, "task_data", "task_id"],
        5: ["body", "tasks", 5, "run_at"],
        6: ["body", "tasks", 6],
    }
    assert results[0]["message"] == "task_data: Expected 'object', got 'int'"
    assert results[3]["message"] == "task_data.task_id: 'twice' is in the batch twice"


def test_a_failed_task_is_retried(gateway: Gateway) -> None:
    """With the same id; a task that waits is cancelled."""
    boom = {"task_data": {"task_type": "boom", "required_capabilities": ["boom"], "task_id": "boom"}}
    gateway.success("POST", "/tasks/submit", boom)
    for _ in range(2):
        await_state(gateway, "boom", "failed")
        gateway.success("POST", "/tasks/boom/retry")
    task = TASK | {"task_data": TASK["task_data"] | {"task_id": "cancel-me"}}
    gateway.success("POST", "/tasks/submit", task)
    assert gateway.success("POST", "/tasks/cancel-me/cancel", {"reason": "enough"})["cancel"] == "accepted"
    assert gateway.success("GET", "/tasks/cancel-me")["task"]["state"] == "cancelled"


@pytest.mark.guarantee("idempotency-keys")
def test_a_key_makes_every_post_take_effect_once(gateway: Gateway) -> None:
    """The first response comes again, also from another gateway; another body under the key is refused."""
    requests: tuple[tuple[str, Any], ...] = (
        ("/tasks/submit", TASK),
        ("/tasks/batch", {"tasks": [TASK, TASK]}),
        ("/messages/send", message()),
        ("/messages/broadcast", {"message_type": "coordination", "payload": {}, "tags": ["fast"]}),
        ("/peers/add?agent_id=w1&peer_id=w3", None),
        ("/agents/register", AGENT | {"agent_id": "keyed"}),
        ("/tasks/queues/urgent/clear", None),
    )
    sent = len(poll(gateway, "w1"))
    with gateway_of(gateway.cell) as other:
        for number, (path, body) in enumerate(requests):
            key = {"Idempotency-Key": f"key-{number}"}
            first = gateway.call("POST", path, body, key)
            assert (first.status, first.headers.get("idempotency-replayed")) == (200, None), first.body
            for caller in (gateway, other):
                again = caller.call("POST", path, body, key)
                assert (again.status, again.body) == (200, first.body), path
                assert again.headers["idempotency-replayed"] == "true"
            changed = other.call("POST", path, {**(body or {}), "changed": 1}, key)
            assert (changed.status, changed.body["code"]) == (422, "idempotency_key_reused")
    assert len(poll(gateway, "w1")) == sent + 2
    # Clearing again under the key does not cancel a task that came later.
    urgent = gateway.success("POST", "/tasks/submit", TASK | {"priority": "urgent"})["task_id"]
    gateway.call("POST", "/tasks/queues/urgent/clear", None, {"Idempotency-Key": "key-6"})
    assert gateway.success("GET", f"/tasks/{urgent}")["task"]["state"] == "queued"
    # A refused request leaves its key free.
    key = {"Idempotency-Key": "key-refused"}
    assert gateway.call("POST", "/agents/register", {"agent_id": "keyed-2"}, key).status == 422
    assert gateway.call("POST", "/agents/register", AGENT | {"agent_id": "keyed-2"}, key).status == 200


@pytest.mark.guarantee("idempotency-keys")
def test_a_key_is_claimed_while_its_request_runs(gateway: Gateway) -> None:
    """The same request gets a 409 meanwhile; all keys have a time to live."""
    gateway.call("POST", "/peers/add?agent_id=w1&peer_id=w2", None, {"Idempotency-Key": "claimed"})

    async def unfinish() -> list[int]:
        redis = gateway.cell.client.connection.redis
        names = await redis.execute_command("KEYS", gateway.cell.keys.of("idempotency:*"))
        left = [await redis.execute_command("PTTL", name) for name in names]
        for name in names:
            value = await redis.execute_command("GET", name)
            if b'"peer_id":"w2"' in value:
                await redis.execute_command("SET", name, value.partition(b" ")[0], "PX", 10_000)
        return left

    left = gateway.cell.do(unfinish())
    assert left
    assert all(0 < one <= 24 * 3600 * 1000 for one in left)
    answer = gateway.call("POST", "/peers/add?agent_id=w1&peer_id=w2", None, {"Idempotency-Key": "claimed"})
    assert (answer.status, answer.body["code"]) == (409, "idempotency_key_in_use")
    assert answer.headers["retry-after"] == "1"


WRITES = (
    ("PUT", "/agents/w2/status", {"status": "active"}, "/agents/w2"),
    ("POST", "/agents/w2/heartbeat", None, "/agents/w2"),
    ("POST", "/messages/send", message(message_id="async"), "/messages/async"),
    ("POST", "/peers/add?agent_id=w2&peer_id=w3", None, "/peers/w2"),
    ("POST", "/agents/w2/subordinates/w3", None, "/agents/w2/subordinates"),
    ("POST", "/tasks/waits/cancel", None, "/tasks/waits"),
    ("DELETE", "/agents/r2", None, "/agents/r2"),
)


def test_a_write_that_does_not_wait_is_accepted(gateway: Gateway) -> None:
    """202 with the path of its record, below the prefix of the request."""
    for method, path, body, location in WRITES:
        answer = gateway.call(method, f"/v1{path}", body, {"Prefer": "respond-async"})
        assert (answer.status, answer.body["status"]) == (202, "accepted"), (path, answer.body)
        assert answer.headers["location"] == f"/v1{location}"


def test_the_page_needs_no_other_host(gateway: Gateway) -> None:
    """Its script and its style are the gateway's own, and it has neither inline code nor foreign URLs."""
    for prefix in ("", "/v1"):
        page = gateway.call("GET", f"{prefix}/docs")
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        for path, kind in (("/docs/page.js", "text/javascript"), ("/docs/page.css", "text/css")):
            assert f'"{path}"' in page.body
            found = gateway.call("GET", path)
            assert (found.status, found.headers["content-type"].partition(";")[0]) == (200, kind)
            assert "://" not in found.body
        assert "://" not in page.body
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page.body)


def test_a_task_shows_its_requirements(gateway: Gateway) -> None:
    """Those of ``requirements`` and of ``task_data`` together; a list has none, like payloads."""
    body = {"requirements": {"agent_type": "worker", "tags": ["fast"], "labels": {"zone": "a"}, "gpu": True}}
    task_id = gateway.success("POST", "/tasks/submit", TASK | body)["task_id"]
    assert gateway.success("GET", f"/tasks/{task_id}")["task"]["requirements"] == {
        "agent_type": "worker", "capabilities": ["nobody-has-it"], "tags": ["fast"], "labels": {"zone": "a"},
    }  # fmt: skip
    listed = gateway.success("GET", "/tasks?state=queued")["tasks"]
    assert {task["requirements"] for task in listed} == {None}
    free = gateway.success("POST", "/tasks/submit", {"task_data": {"n": 1}})["task_id"]
    assert gateway.success("GET", f"/tasks/{free}")["task"]["requirements"] == {}


def test_a_place_in_the_requirements_is_that_of_the_task(gateway: Gateway) -> None:
    """As the predecessor's callers send it; the field of the task comes first."""
    place, other = {"region": "eu"}, {"region": "us"}
    for body, region in (
        ({"requirements": {"location": place}}, "eu"),
        ({"requirements": {"location": place}, "location": other}, "us"),
    ):
        task_id = gateway.success("POST", "/tasks/submit", TASK | body)["task_id"]
        assert gateway.success("GET", f"/tasks/{task_id}")["task"]["location"]["region"] == region
