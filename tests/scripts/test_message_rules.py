"""Messages, links and masters in any order: nothing arrives that is forbidden, and nothing unread disappears."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from coord.fsck import examine
from tests.scripts.cell import START, Cell

AGENTS = ["a", "b", "c", "d"]
PROTOCOLS = ["direct", "peer_to_peer", "hierarchical"]
GRACE = 2_000  #: ms after its expiry until an unread message is removed
agents = st.sampled_from(AGENTS)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), st.sampled_from(["request", "accept", "link", "remove"]), agents, agents),
        st.tuples(st.just("set_master"), agents, agents),
        st.tuples(st.sampled_from(["clear_master", "leave", "come_back", "read"]), agents),
        st.tuples(st.just("wait"), st.integers(1, 3_000)),
        st.tuples(st.just("send"), agents, agents, st.sampled_from(PROTOCOLS), st.integers(1, 5_000)),
        st.tuples(st.just("send"), agents, st.just("subordinates"), st.just("hierarchical"), st.integers(1, 5_000)),
    ),
    min_size=20,
    max_size=60,
)
_numbers = itertools.count()


class World:
    """What should be, beside what is: links, masters, who is there, and what lies in the inboxes."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.linked: set[frozenset[str]] = set()
        self.requested: set[tuple[str, str]] = set()
        self.masters: dict[str, str] = {}
        self.away: set[str] = set()
        self.unread: dict[tuple[str, str], int] = {}  #: agent and message -> expires at
        self.ended: dict[tuple[str, str], str] = {}  #: agent and message -> read or dead

    async def change(self, kind: str, agent: str, other: str) -> None:
        """Change a link."""
        if agent == other:
            return
        word = await self.cell.change_links(kind, agent, other, by_operator=kind == "link")
        pair = frozenset((agent, other))
        asked = (other, agent) in self.requested
        if kind == "remove":
            self.linked.discard(pair)
            self.requested -= {(agent, other), (other, agent)}
        elif kind == "link" or (kind in {"accept", "request"} and asked):
            self.linked.add(pair)
            self.requested -= {(agent, other), (other, agent)}
        elif kind == "request" and pair not in self.linked and other not in self.away:
            self.requested.add((agent, other))
        elif kind == "accept":
            assert word == ("SAME" if pair in self.linked else "NOT_REQUESTED")

    async def set_master(self, agent: str, master: str) -> None:
        """Set a master, unless that would be a cycle."""
        if agent == master:
            return
        above, chain = master, [master]
        while above in self.masters:
            above = self.masters[above]
            chain.append(above)
        word = await self.cell.change_links("set_master", agent, master)
        if self.masters.get(agent) == master:
            assert word == "SAME"
        elif agent in chain:
            assert word == "CYCLE"
        else:
            assert word == "OK"
            self.masters[agent] = master

    async def clear_master(self, agent: str) -> None:
        """Take an agent away from its master."""
        await self.cell.change_links("clear_master", agent)
        self.masters.pop(agent, None)

    async def leave(self, agent: str) -> None:
        """Let an agent leave."""
        await self.cell.deregister(agent, incarnation="")
        self.away.add(agent)

    async def come_back(self, agent: str) -> None:
        """Register it again."""
        await self.cell.register(agent)
        self.away.discard(agent)

    async def wait(self, ms: int) -> None:
        """Let time pass, and a router look."""
        self.cell.now += ms
        await self.cell.expire_messages()
        for place, expires_at in list(self.unread.items()):
            if self.cell.now >= expires_at + GRACE:
                del self.unread[place]
                self.ended[place] = "dead"

    async def read(self, agent: str) -> None:
        """Take the messages out of an inbox, as an agent does when they are handled."""
        key = self.cell.keys.inbox(agent, "normal")
        for entry, fields in await self.cell.redis.xrange(key):
            place = (agent, fields[b"id"].decode())
            assert place in self.unread
            await self.cell.redis.xdel(key, entry)
            del self.unread[place]
            self.ended[place] = "read"

    async def send(self, sender: str, receiver: str, protocol: str, ttl_ms: int) -> None:
        """Send a message; it arrives exactly where its protocol allows it."""
        message = f"m{next(_numbers)}"
        options: dict[str, Any] = {"sender": sender, "receiver": receiver, "protocol": protocol, "ttl_ms": ttl_ms}
        word = await self.cell.deliver(message, **options)
        if receiver == "subordinates":
            to = [agent for agent, master in self.masters.items() if master == sender]
            is_allowed = bool(to)
        else:
            to = [receiver]
            is_allowed = (
                protocol == "direct"
                or (protocol == "peer_to_peer" and frozenset((sender, receiver)) in self.linked)
                or (protocol == "hierarchical" and self._is_one_step(sender, receiver))
            )
        present = [agent for agent in to if agent not in self.away]
        assert word == ("FORBIDDEN" if not is_allowed else "DELIVERED" if present else "LEFT"), options
        if is_allowed:
            self.unread |= {(agent, message): self.cell.now + ttl_ms for agent in present}

    def _is_one_step(self, sender: str, receiver: str) -> bool:
        return self.masters.get(sender) == receiver or self.masters.get(receiver) == sender

    async def check(self) -> None:
        """Check that the inboxes hold exactly what is unread, and that the records say what became of the rest."""
        found = {
            (agent, fields[b"id"].decode())
            for agent in AGENTS
            for _, fields in await self.cell.redis.xrange(self.cell.keys.inbox(agent, "normal"))
        }
        assert found == set(self.unread)
        for (agent, message), end in self.ended.items():
            copy = await self.cell.redis.hget(self.cell.keys.copies(message), agent)
            status = copy or await self.cell.redis.hget(self.cell.keys.message(message), "status")
            assert status.startswith(b"dead" if end == "dead" else b"delivered"), (agent, message, end)
        assert (await examine(self.cell.redis, self.cell.keys, quiet=True)).findings == []


@pytest.mark.guarantee("protocols", "hierarchy")
@settings(
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
@given(steps=STEPS)
async def test_no_message_arrives_that_its_protocol_forbids(cell: Cell, steps: list[tuple[Any, ...]]) -> None:
    """⚠ Whatever agents and operators change before: and each unread one expires, and is a dead letter then."""
    for key in [key async for key in cell.redis.scan_iter(match=f"{cell.keys.prefix}*", count=1000)]:
        await cell.redis.delete(key)
    cell.now = START
    await cell.begin()
    for agent in AGENTS:
        await cell.register(agent)
    world = World(cell)
    for name, *arguments in steps:
        await getattr(world, name)(*arguments)
    await world.check()
    await world.wait(10_000)
    assert world.unread == {}
    await world.check()
