"""Played routers pause anywhere, vanish and come back; messages keep their order, and nobody gets two copies."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis import Redis

from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.keys import Keys
from workers.transitions import Broadcast, Call, Delivery, Scripts
from workers.transitions import scripts as scripts_module

GROUP, STREAM, RECEIVERS = "router", "in:messages:normal", ("a0", "a1", "a2", "a3", "a4")
#: What happens in a step; some of it is done by the router of that number.
ACTIONS = ("send", "broadcast", *["read"] * 4, *["handle"] * 4, "outlast", "restart")


class PlayedRouter:
    """A router as ``workers`` makes it, of which each step is made when the test says so."""

    def __init__(self, cell: PlayedCell, number: int) -> None:
        self.cell = cell
        self.name = f"r{number}"
        self.life = 0
        self.leases: dict[str, str] = {}
        self.batch: list[str] = []  #: read, not handled

    def restart(self) -> None:
        """A new process of the same name, after kill -9."""
        self.life += 1
        self.leases, self.batch = {}, []
        self.hold("started")

    def hold(self, mode: str = "") -> None:
        """Renew the leases."""
        call = self.cell.scripts.hold_lanes(f"{self.name}#{self.life}", mode=mode)  # type: ignore[arg-type]
        share = self.cell.run(call)
        before, self.leases = self.leases, share.leases
        if before != self.leases or share.behind:
            self.recover()

    def outlast(self) -> None:
        """Call until all routers that are silent meanwhile have lost their lanes."""
        for _ in range(6):
            self.cell.tick(500)
            self.hold()

    def recover(self) -> None:
        """Take over all that is pending in the lane, if it holds the lane; forget what was read."""
        self.batch = []
        if "normal" not in self.leases:
            return
        pending = self.cell.redis.xpending_range(self.cell.key, GROUP, "-", "+", 1_000)
        if pending:
            ids = [item["message_id"] for item in pending]
            self.cell.redis.xclaim(self.cell.key, GROUP, self.name, 0, ids, justid=True)
            self.batch = [entry.decode() for entry in ids]

    def read(self) -> None:
        """Read what is new, with the leases that it believes to have."""
        if "normal" in self.leases:
            command = ("XREADGROUP", "GROUP", GROUP, self.name, "COUNT", 3, "STREAMS", self.cell.key, ">")
            for _, entries in self.cell.redis.execute_command(*command) or ():
                self.batch += [entry.decode() for entry, _ in entries]

    def handle(self) -> None:
        """Handle the next entry that was read; make one step only of a broadcast."""
        if not self.batch:
            return
        words = self.cell.handle(self.batch[0], self.name, self.leases)
        if words[-1] in {"NOT_HELD", "BEHIND"}:
            self.recover()
        elif words[-1] != "MORE":
            self.batch.pop(0)


class PlayedCell:
    """A namespace with one lane, and its routers. Time passes with each step."""

    def __init__(self, redis: Redis) -> None:
        config = Settings(namespace=f"t{uuid.uuid4().hex[:12]}")
        self.redis: Any = redis
        self.keys = Keys(config.namespace)
        self.key = self.keys.of(STREAM)
        self.scripts = Scripts(None, self.keys, config)  # type: ignore[arg-type]
        self.now = self.scripts.now = 2_000_000_000_000
        self.sent: list[tuple[str, str]] = []  #: entry, and its receiver; empty: a broadcast
        for source in self.scripts._sources.values():
            redis.script_load(source.text)
        redis.xgroup_create(self.key, GROUP, id="0", mkstream=True)
        for agent in RECEIVERS:
            redis.hset(self.keys.agent(agent), mapping={"status": "active"})
        self.routers = [PlayedRouter(self, number) for number in range(3)]

    def run(self, call: Call[Any]) -> Any:
        """What a script answers."""
        sha = self.scripts._sources[call.script].sha
        return call.parse(self.redis.evalsha(sha, 1, self.keys.prefix, *self.scripts.arguments(call)))

    def send(self, receiver: str) -> None:
        """Append a message, or a broadcast."""
        entry = f"{self.now}-{len(self.sent) + 1}"
        self.redis.xadd(self.key, {"type": "message"}, id=entry)
        self.sent.append((entry, receiver))

    def handle(self, entry: str, name: str, leases: dict[str, str]) -> list[str]:
        """One step of an entry, by a router that believes to have these leases; the words."""
        self.scripts.leases = leases
        number = next(n for n, (one, _) in enumerate(self.sent) if one == entry)
        receiver = self.sent[number][1]
        if receiver:
            message = Delivery(entry, "normal", "", f"m{number}", "d", "s", receiver, "direct", 10**9, b"{}", "", "")
            return list(self.run(self.scripts.deliver([message])))
        broadcast = Broadcast(entry, "normal", "", f"m{number}", "d", "s", "broadcast", 10**9, b"{}", "", "", "")
        words = list(self.run(self.scripts.freeze_recipients(broadcast, RECEIVERS)))
        return list(self.run(self.scripts.deliver_broadcast(broadcast, name))) if words == ["MORE"] else words

    def tick(self, ms: int) -> None:
        """Let time pass."""
        self.now += ms
        self.scripts.now = self.now

    def assert_in_order(self, *, all_of_them: bool) -> None:
        """Each inbox has what was sent to it, in that order, once; at the end all of it."""
        for agent in RECEIVERS:
            found = [fields[b"id"].decode() for _, fields in self.redis.xrange(self.keys.inbox(agent, "normal"))]
            wanted = [f"m{n}" for n, (_, receiver) in enumerate(self.sent) if receiver in {agent, ""}]
            assert found == (wanted if all_of_them else wanted[: len(found)])


@pytest.fixture(scope="module")
def client(valkey_server: EmbeddedServer) -> Iterator[Redis]:
    """A client of the server."""
    redis = Redis.from_url(valkey_server.url, protocol=2)
    yield redis
    redis.close()


steps = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 2), st.sampled_from(RECEIVERS), st.integers(1, 900)),
    min_size=80,
    max_size=160,
)


@pytest.mark.guarantee("order-over-routers")
@settings(
    max_examples=15,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a shorter example would take longer than a test may
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=steps)
def test_messages_keep_their_order_whatever_happens_to_routers(
    client: Redis, steps: list[tuple[str, int, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """⚠ Three routers act at any time, also after another one took over; in the end one of them delivers the rest."""
    monkeypatch.setattr(scripts_module, "RECIPIENTS_AT_ONCE", 2)
    cell = PlayedCell(client)
    for action, number, receiver, ms in steps:
        router = cell.routers[number]
        if action == "send":
            cell.send(receiver)
        elif action == "broadcast":
            cell.send("")
        else:
            cell.tick(ms)
            getattr(router, action)()
        if action == "handle":
            cell.assert_in_order(all_of_them=False)
    last = cell.routers[0]
    for _ in range(10 + 4 * len(cell.sent)):
        cell.tick(500)
        last.hold()
        last.read()
        for _ in range(4):
            last.handle()
    cell.assert_in_order(all_of_them=True)
    assert client.xlen(cell.key) == 0
