"""The primary dies amid messages: direct ones on all lanes, a broadcast that is half delivered, requests that wait.

The copies of agents without a process stay in their inboxes. So what each of them got, and in which order, can be
counted on the server that survives.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.exceptions import RedisError

from coord.errors import RequestTimedOut
from coord.fsck import examine
from coord.models.agents import AgentType
from coord.models.facts import AgentRegistered, MessageBroadcast, MessageSent
from coord.models.messages import RecipientFilter
from coord.models.tasks import Lane
from coord.streams import Append, append
from tests.processes import Process
from tests.system.failover_cell import FailoverProcesses, Traffic, cell_at
from tests.system.failover_pair import Pair, cluster_pair, sentinel_pair, take_over
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(600)

#: Agents without a process, to which the broadcast goes.
MUTE = [f"mute-{number:03}" for number in range(600)]
#: Seconds until a request that nobody answers ends: on the clock of requests, which stands still without a server.
UNANSWERED_S = 1.0
ANSWERED_S = 60.0
#: Answers a request when the file of that name is there.
ANSWERING = """
import asyncio, os, sys
from coord import Agent
agent = Agent(sys.argv[1])

@agent.on_request
async def answer(message):
    while not os.path.exists(message.payload["until"]):
        await asyncio.sleep(0.02)
    return {"n": message.payload["n"]}

agent.run()
"""


class Letters(Traffic):
    """Appends batches of numbered messages to two mute agents, on all lanes, without waiting for a router."""

    def __init__(self, at: FailoverProcesses) -> None:
        self._next = 0
        super().__init__(at)

    async def step(self) -> None:
        """One batch; a number that may have been appended is not used again."""
        numbers = range(self._next, self._next + 16)
        self._next = numbers.stop
        batch = [self._letter(number) for number in numbers]
        try:
            await append(self.at.redis, self.at.keys, batch)
        except (RedisError, OSError):
            return  # the server is away
        self.acknowledged += [str(number) for number in numbers]

    @staticmethod
    def _letter(number: int) -> Append:
        lane, receiver = list(Lane)[number % len(Lane)], MUTE[number // len(Lane) % 2]
        payload = msgspec.Raw(str(number).encode())
        return Append(f"in:messages:{lane}", MessageSent(f"letter-{number}", "writer", receiver, payload=payload))


@asynccontextmanager
async def sentinels(folder: Path) -> AsyncIterator[tuple[Pair, Callable[[], Any]]]:
    """A pair with a sentinel, and what lets it promote the replica."""
    async with sentinel_pair(folder) as two:

        async def promote() -> None:
            await wait_until(lambda: two.front.target == two.ports[1], "the replica is promoted", 60)

        yield two, promote


@asynccontextmanager
async def clusters(folder: Path) -> AsyncIterator[tuple[Pair, Callable[[], Any]]]:
    """A pair in cluster mode, and what promotes its replica."""
    async with cluster_pair(folder) as two:
        yield two, lambda: take_over(two)


@pytest.mark.guarantee("failover-messages")
@pytest.mark.parametrize("pairs", [clusters, pytest.param(sentinels, marks=pytest.mark.long)])
async def test_the_primary_is_killed_amid_messages(
    tmp_path: Path, pairs: Callable[[Path], AbstractAsyncContextManager[tuple[Pair, Callable[[], Any]]]]
) -> None:
    """Nothing that the replica had is lost or doubled, lanes keep their order, requests end, and the books balance.

    The broadcast and the letters of the lost second are delivered on the old primary; on the new one the routers find
    both where the replica had them, and continue there.
    """
    gate = tmp_path / "gate"
    async with pairs(tmp_path) as (two, promote), cell_at(two, two.url, tmp_path / "cell", "mail") as at:
        answering = at.start("answering", "-c", ANSWERING, "answering")
        registry, *routers = await asyncio.gather(
            at.worker("registry"), at.worker("router", "router-1"), at.worker("router", "router-2")
        )
        await _register_mute(at)
        await wait_until(lambda: at.is_active("answering"), "the answering agent is active", 60)
        letters = Letters(at)
        await letters.more(200)
        answered = asyncio.create_task(_request(at, "answering", 1, gate, ANSWERED_S))
        unanswered = asyncio.create_task(_request(at, MUTE[2], 2, gate, UNANSWERED_S))
        await wait_until(lambda: _are_open(at, 2), "both requests wait for their replies", 60)
        safe = list(letters.acknowledged)

        broadcasts = await _stop_amid_broadcast(at, routers)
        await two.cut()
        for router in routers:
            router.send(signal.SIGCONT)
        await wait_until(lambda: _has_status(at, broadcasts[-1], "delivered"), "it is delivered on the old primary", 60)
        await letters.more(100)
        two.primary.kill()
        await promote()

        resumed = await letters.more(16)  # the first batch may have been the old primary's last
        await letters.more(100)
        await letters.stop()
        gate.touch()
        assert await answered == {"n": 1}
        assert await _request(at, "answering", 3, gate, ANSWERED_S) == {"n": 3}
        with pytest.raises(RequestTimedOut):
            await unanswered
        await wait_until(lambda: _has_status(at, broadcasts[-1], "delivered"), "it is delivered on the new primary", 60)
        await at.settle_down()
        await _assert_copies(at, broadcasts, {*safe, *letters.acknowledged[resumed:]})
        assert await at.redis.zcard(at.keys.of("requests")) == 0
        report = await examine(at.redis, at.keys, trimmed=False)
        assert report.findings == []
        assert report.compared
        assert await at.redis.exists(at.keys.of("dead:in")) == 0
        assert all(process.alive for process in (answering, registry, *routers))


async def _request(at: FailoverProcesses, agent_id: str, number: int, until: Path, timeout: float) -> Any:
    """Send a request, which is answered when a file is there; return the answer."""
    return await at.client.request(agent_id, {"n": number, "until": str(until)}, timeout=timeout, priority="high")


async def _are_open(at: FailoverProcesses, count: int) -> bool:
    return bool(await at.redis.zcard(at.keys.of("requests")) == count)


async def _register_mute(at: FailoverProcesses) -> None:
    """Register the agents without a process; none of them is taken for silent in this test."""
    facts = [AgentRegistered(name, AgentType.WORKER, tags=("mute",), heartbeat_interval=600) for name in MUTE]
    await append(at.redis, at.keys, [Append("in:registry", fact) for fact in facts])
    await wait_until(lambda: _count_active(at), "the mute agents are registered", 60)


async def _count_active(at: FailoverProcesses) -> bool:
    return bool(await at.redis.scard(at.keys.of("agents:active")) >= len(MUTE))


async def _stop_amid_broadcast(at: FailoverProcesses, routers: list[Process]) -> list[str]:
    """Send broadcasts until the routers stand still in the middle of one; return the ids of all of them."""
    sent: list[str] = []
    while True:
        sent.append(f"broadcast-{len(sent)}")
        fact = MessageBroadcast(sent[-1], "writer", RecipientFilter(tags=("mute",)))
        await append(at.redis, at.keys, [Append("in:messages:low", fact)])
        while not await at.redis.exists(at.keys.of(f"outcomes:{sent[-1]}")):  # noqa: ASYNC110 -- it takes milliseconds
            await asyncio.sleep(0)
        for router in routers:
            router.send(signal.SIGSTOP)
        if await _has_status(at, sent[-1], "delivering"):
            return sent
        for router in routers:
            router.send(signal.SIGCONT)


async def _has_status(at: FailoverProcesses, message_id: str, status: str) -> bool:
    try:
        return bool(await at.redis.hget(at.keys.message(message_id), "status") == status.encode())
    except (RedisError, OSError):
        return False


async def _assert_copies(at: FailoverProcesses, broadcasts: list[str], letters: set[str]) -> None:
    """One copy of each broadcast for each agent, each letter once, and the letters of a lane in their order."""
    found: list[str] = []
    for name in MUTE:
        for lane in Lane:
            entries: Any = await at.redis.execute_command("XRANGE", at.keys.inbox(name, lane), "-", "+")
            ids = [fields[b"id"].decode() for _, fields in entries]
            numbers = [int(one.removeprefix("letter-")) for one in ids if one.startswith("letter-")]
            assert numbers == sorted(set(numbers)), f"{name}, lane {lane}"
            found += map(str, numbers)
            wanted = broadcasts if lane is Lane.LOW else []
            assert [one for one in ids if one.startswith("broadcast-")] == wanted, f"{name}, lane {lane}"
    assert len(found) == len(set(found))
    assert letters <= set(found)
