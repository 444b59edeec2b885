"""Broadcasts at work: who gets them, in which order, and one copy each whatever happens to routers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import Raw

from coord import queries
from coord.models.agents import AgentStatus, AgentType
from coord.models.facts import AgentRegistered, AgentStatusChanged, MessageBroadcast, MessageSent
from coord.models.messages import RecipientFilter
from coord.streams import Append, append
from tests.ledger import assert_keys_end, assert_ledger
from tests.running import RunningCell, RunningWorker
from tests.waiting import wait_until
from tests.workers.raw import Caller, await_quiet, buried, entries, vanish
from workers.transitions import Call
from workers.transitions import scripts as scripts_module


async def register(cell: RunningCell, *agents: AgentRegistered) -> None:
    """Register agents, and wait until they are active."""
    await append(cell.redis, cell.keys, [Append("in:registry", agent) for agent in agents])
    await wait_until(lambda: _has_active(cell, len(agents)), "all agents are active")


async def _has_active(cell: RunningCell, count: int) -> bool:
    return bool(await cell.redis.scard(cell.keys.of("agents:active")) >= count)


async def fleet(cell: RunningCell, count: int) -> list[str]:
    """Register agents that are alike; their ids."""
    ids = [f"a{n:03}" for n in range(count)]
    await register(cell, *(AgentRegistered(one, AgentType.WORKER, capabilities=("echo",)) for one in ids))
    return ids


async def inbox(cell: RunningCell, agent_id: str, lane: str = "normal") -> list[str]:
    """The ids of the messages in an inbox, in their order."""
    return [fields[b"id"].decode() for _, fields in await entries(cell.redis, cell.keys.inbox(agent_id, lane))]


FLEET = (
    AgentRegistered("plain", AgentType.WORKER),
    AgentRegistered("ocr", AgentType.WORKER, capabilities=("ocr", "echo"), tags=("gpu",), labels={"zone": "a b"}),
    AgentRegistered("scan", AgentType.SPECIALIST, capabilities=("ocr",), services=("files",), labels={"zone": "b"}),
    AgentRegistered("busy", AgentType.WORKER, capabilities=("ocr",), tags=("gpu",)),
)


@pytest.mark.guarantee("broadcast-recipients")
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (RecipientFilter(), {"plain", "ocr", "scan"}),
        (RecipientFilter(agent_type=AgentType.WORKER), {"plain", "ocr"}),
        (RecipientFilter(capabilities=("ocr",)), {"ocr", "scan"}),
        (RecipientFilter(capabilities=("ocr", "echo")), {"ocr"}),
        (RecipientFilter(capabilities=("ocr",), services=("files",)), {"scan"}),
        (RecipientFilter(labels={"zone": "a b"}), {"ocr"}),
        (RecipientFilter(tags=("gpu",), statuses=(AgentStatus.ACTIVE, AgentStatus.BUSY)), {"ocr", "busy"}),
        (RecipientFilter(tags=("none",)), set()),
    ],
)
async def test_the_agents_that_match_the_filter_get_it(
    cell: RunningCell, caller: Caller, wanted: RecipientFilter, expected: set[str]
) -> None:
    """All properties count; only active agents unless other statuses are named; never the sender."""
    await register(cell, *FLEET)
    await caller.answer(await caller.tell("in:registry", AgentStatusChanged("busy", AgentStatus.BUSY)))
    entry = await caller.tell("in:messages:high", MessageBroadcast("b1", "someone", wanted, payload=Raw(b"[1]")))
    assert (await caller.answer(entry))["ok"] == "1"
    got = {agent.agent_id for agent in FLEET if await inbox(cell, agent.agent_id, "high")}
    assert got == expected
    entry = await caller.tell("in:messages:low", MessageBroadcast("b2", "ocr", wanted))
    assert (await caller.answer(entry))["ok"] == "1"
    assert {agent.agent_id for agent in FLEET if await inbox(cell, agent.agent_id, "low")} == expected - {"ocr"}


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b'{"message_id":"b1","sender_id":"s","message_type":"task_assignment"}', "message_type"),
        (b'{"message_id":"b1","sender_id":"s","message_type":"direct"}', "message_type"),
        (b'{"message_id":"b1","sender_id":"s","filter":{"statuses":["inactive"]}}', "statuses"),
        (b'{"message_id":"b1","sender_id":"s","filter":{"statuses":[]}}', "statuses"),
        (b'{"message_id":"b1","sender_id":"s","filter":{"agent_type":"robot"}}', "agent_type"),
        (b'{"message_id":"b1","sender_id":"s","filter":{"capabilities":"ocr"}}', "capabilities"),
    ],
)
async def test_an_invalid_broadcast_is_refused_by_name(
    cell: RunningCell, caller: Caller, data: bytes, field: str
) -> None:
    """The sender learns which field does not fit; nothing is lost, because the entry is kept in ``dead:in``."""
    entry = await caller.raw("in:messages:high", {"type": "message.broadcast", "data": data, "caller": caller.id})
    answer = await caller.answer(entry)
    assert (answer["code"], field in answer["message"]) == ("fact_invalid", True)
    assert len(await buried(cell)) == 1


@pytest.mark.guarantee("broadcast-once")
async def test_messages_and_broadcasts_of_a_sender_keep_their_order(cell: RunningCell, caller: Caller) -> None:
    """On one lane, in one batch and over several: nothing overtakes."""
    ids = await fleet(cell, 120)
    facts: list[Any] = []
    for n in range(6):
        facts.append(MessageSent(f"m{n}", "s", ids[-1]))
        facts.append(MessageBroadcast(f"b{n}", "s"))
    appended = await append(cell.redis, cell.keys, [Append("in:messages:normal", one, caller.id) for one in facts])
    assert (await caller.answer(appended[-1]))["ok"] == "1"
    assert await inbox(cell, ids[-1]) == [one.message_id for one in facts]
    assert await inbox(cell, ids[0]) == [f"b{n}" for n in range(6)]
    await assert_ledger(cell.redis, cell.keys)
    await assert_keys_end(cell.redis, cell.keys)


@pytest.mark.guarantee("broadcast-once")
async def test_routers_that_vanish_in_the_middle_of_a_broadcast(
    cell: RunningCell, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """⚠ More often than an entry may fail: each of them made progress, so the broadcast goes on, with one copy each."""
    monkeypatch.setattr(scripts_module, "RECIPIENTS_AT_ONCE", 5)
    ids = await fleet(cell, 60)
    (worker,) = cell.of_kind("router")
    entry = ""
    for life in range(5):
        reached = hang_after(worker, steps=2)
        entry = entry or await caller.tell("in:messages:normal", MessageBroadcast("b1", "s"))
        await wait_until(reached.is_set, f"life {life + 1} ends in the middle")
        await vanish(worker)
        worker = await cell.add("router")
    assert (await caller.answer(entry))["data"] == '{"recipients":60,"delivered":60}'
    for agent_id in ids:
        assert await inbox(cell, agent_id) == ["b1"]
    await await_quiet(cell)
    record = await queries.get_message(cell.redis, cell.keys, "b1")
    assert record is not None
    assert (record.status, record.delivered) == ("delivered", 60)
    assert await buried(cell) == []


def hang_after(worker: RunningWorker, steps: int) -> asyncio.Event:
    """Let a router hang before one more step of a broadcast; the event is set then."""
    reached, run = asyncio.Event(), worker.cell.scripts.run
    made = 0

    async def limited(*calls: Call[Any]) -> list[Any]:
        nonlocal made
        if any(call.script == "deliver_broadcast" for call in calls):
            if made == steps:
                reached.set()
                await asyncio.Event().wait()
            made += 1
        return await run(*calls)

    worker.cell.scripts.run = limited  # type: ignore[method-assign]
    return reached
