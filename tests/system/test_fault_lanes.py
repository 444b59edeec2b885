"""Real routers are killed and stopped in the middle of messages and broadcasts: order is kept, and each copy is one."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis.exceptions import RedisError

from coord.models.agents import AgentType
from coord.models.facts import AgentRegistered, MessageBroadcast, MessageSent
from coord.models.tasks import Lane
from coord.streams import Append, append
from tests.processes import CellProcesses, cell_processes
from tests.waiting import wait_until

AGENTS = 300


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server, with a fleet of agents that never read, and no process of the cell."""
    async with cell_processes(tmp_path) as built:
        registry = await built.worker("registry")
        facts = [AgentRegistered(f"a{n:03}", AgentType.WORKER) for n in range(AGENTS)]
        await append(built.redis, built.keys, [Append("in:registry", fact) for fact in facts])
        await built.settle_down()
        registry.send(signal.SIGTERM)
        await registry.ended()
        yield built


async def send(at: CellProcesses, *facts: Any) -> None:
    """Append facts to one lane."""
    await append(at.redis, at.keys, [Append("in:messages:normal", fact) for fact in facts])


async def inbox(at: CellProcesses, agent: int) -> list[str]:
    """The ids of the messages of an agent, in their order."""
    found = await at.redis.execute_command("XRANGE", at.keys.inbox(f"a{agent:03}", "normal"), "-", "+")
    return [fields[b"id"].decode() for _, fields in found]


@pytest.mark.guarantee("broadcast-once")
async def test_routers_are_struck_in_the_middle_of_a_broadcast(at: CellProcesses) -> None:
    """⚠ One is killed, one is stopped until another has delivered the rest: one copy each, in order with messages."""
    facts: list[Any] = []
    for n in range(4):
        facts += [MessageSent(f"m{n}", "s", "a000"), MessageBroadcast(f"b{n}", "s")]
    await send(at, *facts)
    # Rounds: deliver, freeze and the first part, then one part each; five parts in all.
    killed = at.stepped_worker("router", "killed", "sent", 4)
    await wait_until(lambda: not killed.alive, "a router is killed", 30)
    stopped = at.stepped_worker("router", "stopped", "answered", 3, "SIGSTOP")
    await wait_until(lambda: _is_stopped(stopped.popen.pid), "a router stands still", 30)
    third = await at.worker("router", "third")
    await at.settle_down()
    stopped.send(signal.SIGCONT)
    await send(at, MessageSent("m4", "s", "a000"), MessageBroadcast("b4", "s"))
    await at.settle_down()
    broadcasts = [f"b{n}" for n in range(5)]
    assert await inbox(at, 0) == [f"{kind}{n}" for n in range(5) for kind in "mb"]
    for agent in range(1, AGENTS):
        assert await inbox(at, agent) == broadcasts
    assert stopped.alive, stopped.told()
    assert third.alive, third.told()


@pytest.mark.guarantee("order-of-pending-messages")
async def test_lanes_survive_a_restart_of_the_server(at: CellProcesses) -> None:
    """Killed and started again under load: routers hold lanes again, and nothing is lost, doubled or out of order."""
    for name in ("one", "two"):
        await at.worker("router", name)
    await wait_until(lambda: _are_shared(at), "two routers share the lanes")
    await send(at, *(MessageSent(f"m{n}", "s", "a000") for n in range(200)))
    at.server.kill()
    at.server.restart()
    await wait_until(lambda: _answers(at), "the server is back")
    await send(at, *(MessageSent(f"m{n}", "s", "a000") for n in range(200, 300)), MessageBroadcast("b", "s"))
    await at.settle_down()
    assert await inbox(at, 0) == [*(f"m{n}" for n in range(300)), "b"]
    assert await inbox(at, 1) == ["b"]


async def _answers(at: CellProcesses) -> bool:
    try:
        return bool(await at.redis.ping())
    except (RedisError, OSError):
        return False


async def _are_shared(at: CellProcesses) -> bool:
    leases: list[Any] = await at.redis.hmget(at.keys.of("lanes"), *Lane)
    return len({lease.split(b"/")[1] for lease in leases if lease}) == 2


def _is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED
