"""What a caller learns of a write that may have had its effect, or has none: how to repeat it safely."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.errors import ServerUnavailable
from coord.gateway.backend import Backend
from tests.http import HttpAnswer
from tests.running import running_cell
from tests.system.faulty_proxy import faulty_proxy
from tests.system.gateway_processes import serving

SAFE = "it is safe to repeat the request"
#: What is posted while Redis answers nothing -> what the error says.
LOST: dict[str, tuple[Any, str]] = {
    "/tasks/batch": (
        {"tasks": [{"task_data": {}}, {"task_data": {}}]},
        "with these as task_data.task_id, in this order: ",
    ),
    "/tasks/batch?given": (
        {"tasks": [{"task_data": {"task_id": "t1"}}, {"task_data": {"task_id": "t2"}}]},
        SAFE,
    ),
    "/tasks/submit": ({"task_data": {"task_id": "t3"}}, "safe to retry with task_data.task_id 't3'"),
    "/tasks/queues/low/clear": (None, f"some tasks may be cancelled; {SAFE}, which cancels the others"),
    "/tasks/t4/retry": (None, "409 task_not_dead means that the task is queued again"),
    "/peers/add?agent_id=a1&peer_id=a2": (None, SAFE),
    "/peers/remove?agent_id=a1&peer_id=a2": (None, SAFE),
    "/agents/a1/subordinates/a2": (None, SAFE),
    "/agents/register": ({"agent_id": "a1", "agent_type": "worker"}, SAFE),
    "/agents/a1/heartbeat": ({"status": "busy"}, SAFE),
    "/load-balancer/strategy": ({"strategy": "random", "modifiers": {"ejection": True}}, SAFE),
    "/messages/send": (
        {"receiver_id": "a1", "message_type": "direct", "payload": {}, "message_id": "m1"},
        f"{SAFE} with message_id 'm1'",
    ),
}


async def test_a_write_that_redis_does_not_answer_says_how_to_repeat_it(
    server: EmbeddedServer, settings: Settings
) -> None:
    """The connection is half-open: what was written before it broke is not known."""
    async with faulty_proxy(server) as proxy:
        changed = {"redis_url": proxy.url, "gateway_redis_s": 0.5, "gateway_wait_s": 0.1}
        async with serving(server, settings, **changed) as http:
            assert (await http.post("/tasks/submit", {"task_data": {}}, Prefer="respond-async")).status == 202
            proxy.silences_later = True
            assert proxy.silence_all()
            answers = await asyncio.gather(*(http.post(path, body) for path, (body, _) in LOST.items()))
            assert [answer.status for answer in answers] == [503] * len(LOST), answers
            details: dict[str, str] = {path: answer.body["detail"] for path, answer in zip(LOST, answers, strict=True)}
    for path, (_, says) in LOST.items():
        assert details[path].startswith("Redis"), details[path]
        assert says in details[path], details[path]
        assert details[path].count("safe to") <= 1, details[path]
    generated = details["/tasks/batch"].rpartition("order: ")[2].split(", ")
    assert [len(task_id) for task_id in generated] == [36, 36]
    assert details["/tasks/batch?given"].endswith(SAFE)


async def test_a_batch_with_a_key_is_repeated_with_it(
    server: EmbeddedServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key determines the ids, so it alone is enough."""

    async def submit_many(*_: Any) -> Any:
        raise ServerUnavailable("Redis did not answer")

    monkeypatch.setattr(Backend, "submit_many", submit_many)
    async with serving(server, settings) as http:
        answer = await http.post("/tasks/batch", LOST["/tasks/batch"][0], Idempotency_Key="k1")
    assert answer.body["detail"] == f"Redis did not answer; {SAFE} with the same Idempotency-Key"


async def test_a_full_inbox_is_a_passing_condition(server: EmbeddedServer, settings: Settings) -> None:
    """503 with a time to come back; the message is a dead letter, also for a repetition with its id."""
    async with (
        running_cell(server.url, replace(settings, inbox_entries=1)) as cell,
        serving(server, cell.settings, gateway_wait_s=30, gateway_redis_s=30) as http,
    ):
        for agent_id in ("a1", "a2"):
            assert (await http.post("/agents/register", {"agent_id": agent_id, "agent_type": "worker"})).status == 200
        message = {"receiver_id": "a1", "message_type": "direct", "payload": {}}
        assert (await http.post("/messages/send", message)).status == 200
        for _ in range(2):
            answer: HttpAnswer = await http.post("/messages/send", message | {"message_id": "m2"})
            assert (answer.status, answer.body["code"]) == (503, "message_undeliverable")
            assert "under another message_id or Idempotency-Key" in answer.body["detail"]
            assert int(answer.headers["retry-after"]) > 0
        linked = message | {"sender_id": "a1", "receiver_id": "a2", "protocol": "peer_to_peer"}
        answer = await http.post("/messages/send", linked)
        assert (answer.status, answer.body["code"]) == (409, "not_linked")
