"""Work for each kind of worker, in facts that may be handled again and again but must have one effect."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter

import msgspec

from coord import queries
from coord.models.agents import AgentStatus, AgentType
from coord.models.facts import AgentRegistered, AgentStatusChanged, MessageSent
from coord.streams import Append, append
from tests.processes import CellProcesses


class Work(ABC):
    """Facts for one kind of worker, and what must have come of them."""

    def __init__(self, at: CellProcesses) -> None:
        self.at = at
        self.names: list[str] = []

    def draw(self, count: int) -> list[str]:
        """Names of the next ``count`` pieces of work."""
        drawn = [f"piece-{len(self.names) + number}" for number in range(count)]
        self.names += drawn
        return drawn

    async def prepare(self) -> None:  # noqa: B027 (most need nothing)
        """Before the first."""

    @abstractmethod
    async def add(self, count: int) -> None:
        """Append so much more."""

    @abstractmethod
    async def check(self) -> None:
        """All of it is done, and was done once."""


class Registrations(Work):
    """For a registry: each agent registers and says that it is busy."""

    async def add(self, count: int) -> None:
        """A registration and a status each."""
        for name in self.draw(count):
            said = (AgentRegistered(name, AgentType.WORKER, "one"), AgentStatusChanged(name, AgentStatus.BUSY, "one"))
            await append(self.at.redis, self.at.keys, [Append("in:registry", fact) for fact in said])

    async def check(self) -> None:
        """Each was logged as registered once, has its first term and its status."""
        await self.at.settle_down()
        await self._say_again()
        records = await queries.get_agents(self.at.redis, self.at.keys, self.names)
        assert Counter((one.status, one.term) if one else None for one in records) == {
            (AgentStatus.BUSY, 1): len(self.names)
        }
        log = await self.at.redis.execute_command("XRANGE", self.at.keys.of("log:agents"), "-", "+")
        told = Counter(fields[b"agent_id"].decode() for _, fields in log if fields[b"type"] == b"agent.registered")
        assert [told[name] for name in self.names] == [1] * len(self.names)

    async def _say_again(self) -> None:
        """As agents do: of two registries one may take a status before the other has registered its agent."""
        for name in self.names:
            for _, fields in await self.at.redis.execute_command("XRANGE", self.at.keys.replies(name), "-", "+"):
                assert fields[b"code"] == b"unknown_agent"
                said = AgentStatusChanged(name, AgentStatus.BUSY, "one")
                await append(self.at.redis, self.at.keys, [Append("in:registry", said)])
        await self.at.settle_down()


class Tasks(Work):
    """For a distributor: echoes."""

    async def prepare(self) -> None:
        """An agent that does them."""
        await self.at.agent("hands")

    async def add(self, count: int) -> None:
        """Tasks of no duration."""
        self.names += await self.at.submit(count)

    async def check(self) -> None:
        """Each is completed, and no attempt of any was lost."""
        await self.at.all_end(len(self.names))
        await self.at.assert_in_order(self.names)
        records = await queries.get_tasks(self.at.redis, self.at.keys, self.names)
        assert Counter(one.failures for one in records if one) == {0: len(self.names)}


class Messages(Work):
    """For a router: messages to an agent that never reads."""

    async def prepare(self) -> None:
        """The agent."""
        await append(
            self.at.redis, self.at.keys, [Append("in:registry", AgentRegistered("reader", AgentType.WORKER, "one"))]
        )
        await self.at.settle_down()

    async def add(self, count: int) -> None:
        """Messages that live for longer than the test."""
        facts = [MessageSent(name, "writer", "reader", payload=msgspec.Raw(b'"hello"')) for name in self.draw(count)]
        await append(self.at.redis, self.at.keys, [Append("in:messages:normal", fact) for fact in facts])

    async def check(self) -> None:
        """Each lies in the inbox once and was counted once."""
        await self.at.settle_down()
        inbox = await self.at.redis.execute_command("XRANGE", self.at.keys.inbox("reader", "normal"), "-", "+")
        assert Counter(fields[b"id"].decode() for _, fields in inbox) == dict.fromkeys(self.names, 1)
        counted = await queries.get_counters(self.at.redis, self.at.keys)
        assert counted["messages_delivered"] == len(self.names)


WORK: dict[str, type[Work]] = {"registry": Registrations, "distributor": Tasks, "router": Messages}
