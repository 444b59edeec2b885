"""Agents that work over a WebSocket, with real gateways and workers: inbox and reports over one connection."""

from __future__ import annotations

import asyncio
import json
import socket as sockets
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from coord.config import Settings
from coord.gateway import agent_socket
from coord.keys import CONSUMES
from coord.models.tasks import Lane
from tests.http import HttpCaller
from tests.ports import unused_ports
from tests.processes import NAMESPACE, CellProcesses, cell_processes
from tests.system.gateway_processes import PATIENT, gateway, serving
from tests.waiting import wait_until

#: Seconds for a frame, on a busy machine.
FRAME_S = 30.0


class Socket:
    """One WebSocket of an agent: what it is answered, and what comes from its inbox."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.entries: list[dict[str, Any]] = []
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, http: HttpCaller, **headers: str) -> Socket:
        """Connect to a gateway; underscores in the names of headers are hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(await connect(f"ws://127.0.0.1:{http.port}/v1/ws", additional_headers=named))

    async def ask(self, frame: Any) -> dict[str, Any]:
        """Send a frame; its answer."""
        if isinstance(frame, dict):
            frame = json.dumps({"id": 7} | frame)
        await self.connection.send(frame)
        return await asyncio.wait_for(self._answers.get(), FRAME_S)

    async def done(self, **asked: Any) -> Any:
        """Ask for something that succeeds; what the request would have returned."""
        answer = await self.ask(asked)
        assert (answer["id"], answer["ok"]) == (7, True), answer
        return answer.get("answer")

    async def refused(self, frame: Any) -> tuple[str, str]:
        """Send a frame that fails; the code and the message."""
        answer = await self.ask(frame)
        assert answer["ok"] is False
        assert answer["error"]["detail"]
        return answer["error"]["code"], answer["error"]["message"]

    async def register(self, agent_id: str = "a1", **more: Any) -> None:
        """Register an agent that can do the work named like it."""
        body = {"agent_id": agent_id, "agent_type": "worker", "capabilities": [agent_id], "capacity": 30}
        assert (await self.done(register=body | {"heartbeat_interval": 60} | more))["agent_id"] == agent_id

    async def gets(self, count: int) -> list[dict[str, Any]]:
        """So many entries of the inbox, and no more yet."""
        await wait_until(lambda: len(self.entries) >= count, f"{count} entries have come", FRAME_S)
        assert len(self.entries) == count
        return self.entries

    async def closed(self) -> tuple[int, str]:
        """The close code and the reason, once the gateway has closed it."""
        await asyncio.wait_for(self._reading, FRAME_S)
        return self.connection.close_code or 0, self.connection.close_reason or ""

    async def close(self) -> None:
        """Disconnect."""
        await self.connection.close()
        await self._reading

    async def _read(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                frame = json.loads(await self.connection.recv())
                if "inbox" in frame:
                    self.entries.append(frame["inbox"] or frame)
                else:
                    await self._answers.put(frame)


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A cell with one worker of each kind that consumes facts."""
    async with cell_processes(tmp_path) as built:
        await asyncio.gather(*(built.worker(kind) for kind in CONSUMES))
        yield built


async def submit(http: HttpCaller, *task_ids: str, agent_id: str = "a1") -> None:
    """Submit tasks for an agent."""
    for task_id in task_ids:
        data = {"task_id": task_id, "task_type": "work", "required_capabilities": [agent_id]}
        assert (await http.post("/tasks/submit", {"task_data": data})).status == 200


@pytest.mark.guarantee("one-socket")
async def test_the_life_of_an_agent_over_sockets(at: CellProcesses) -> None:
    """⚠ It registers, receives, acknowledges and completes; a second socket in another gateway replaces the first.

    The second gets what was not acknowledged. Its gateway is killed and started again: the same comes a third time, and
    a socket in that gateway replaces one there. Frames that are wrong get an error, and change nothing.
    """
    one, two = map(HttpCaller, unused_ports(2))
    _, process = await asyncio.gather(gateway(at, one, **PATIENT), gateway(at, two, **PATIENT))
    first = await Socket.open(one)
    await first.register()
    await submit(one, "t1")
    await first.done(heartbeat={"agent_id": "a1", "load_metrics": {"cpu": 0.5}})
    record = (await one.get("/agents/a1")).body["agent"]
    assert (record["deaf_reason"], record["load_metrics"]) == ("unpolled", {"cpu": 0.5})

    assert await first.done(inbox={"agent_id": "a1", "limit": 2}) is None
    (entry,) = await first.gets(1)
    assert (entry["kind"], entry["task"]["task_id"]) == ("task", "t1")
    found = await first.done(ack=[entry["ack"], "low/1-1"])
    assert (found["acknowledged"], found["gone"]) == ([entry["ack"]], ["low/1-1"])
    lease = {"task_id": "t1", "lease": entry["task"]["lease"]}
    await first.done(start=lease)
    await first.done(progress=lease | {"progress": 40})
    assert await first.refused({"complete": lease | {"lease": "0" * 16}}) == (
        "stale_lease", "the lease of this task is not known; nothing changed",
    )  # fmt: skip
    assert (await first.done(complete=lease | {"result": {"pages": 7}}))["message"] == "Task completed"
    assert (await one.get("/tasks/t1")).body["task"]["result"] == {"pages": 7}

    await submit(one, "t2", "t3", "t4")
    assert [one["task"]["task_id"] for one in (await first.gets(3))[1:]] == ["t2", "t3"]  # two are not acknowledged
    await assert_bad_frames_change_nothing(first, lease)
    await first.done(ack=[first.entries[1]["ack"]])
    assert (await first.gets(4))[3]["task"]["task_id"] == "t4"

    second = await Socket.open(two)
    await second.done(inbox={"agent_id": "a1"})
    code, reason = await first.closed()
    assert (code, reason.partition(":")[0]) == (4001, "replaced")
    assert [one["task"]["task_id"] for one in await second.gets(2)] == ["t3", "t4"]
    assert 0 < await at.redis.ttl(at.keys.socket("a1")) <= 3_600

    process.kill()
    await second.closed()
    await gateway(at, two, **PATIENT)
    third, fourth = await Socket.open(two), await Socket.open(two)
    await third.done(inbox={"agent_id": "a1"})
    await third.gets(2)
    await at.redis.delete(at.keys.socket("a1"))  # as after an hour: it sets the key again

    async def is_set() -> bool:
        return bool(await at.redis.exists(at.keys.socket("a1")))

    await wait_until(is_set, "the socket has claimed its inbox again")
    await fourth.done(inbox={"agent_id": "a1"})
    assert (await third.closed())[0] == 4001
    for one_entry in await fourth.gets(2):
        task = one_entry["task"]
        await fourth.done(complete={"task_id": task["task_id"], "lease": task["lease"]})
    await fourth.done(complete={"task_id": "t2", "lease": first.entries[1]["task"]["lease"]})
    await at.assert_in_order(["t1", "t2", "t3", "t4"])
    sent = await fourth.done(
        send={"sender_id": "a1", "receiver_id": "a1", "message_type": "direct", "payload": {"n": 1}}
    )
    assert sent["message_status"] == "delivered"
    assert (await fourth.gets(3))[2]["message"]["payload"] == {"n": 1}
    await fourth.done(inbox=None)
    assert (await fourth.refused({"ack": [entry["ack"]]}))[0] == "frame_invalid"
    await fourth.close()


async def assert_bad_frames_change_nothing(socket: Socket, lease: dict[str, str]) -> None:
    """Each is refused with an error that names what is wrong, and the socket goes on."""
    for frame, code, named in (
        ("{", "frame_invalid", "JSON"),
        (b"{}", "frame_invalid", "text frames"),
        ({"registr": {}}, "frame_invalid", "registr"),
        ({"ack": [], "start": lease}, "frame_invalid", "ack and start"),
        ({"register": {"agent_id": "a1"}}, "body_invalid", "register.agent_type"),
        ({"register": None}, "body_invalid", "register"),
        ({"heartbeat": {}}, "body_invalid", "heartbeat.agent_id"),
        ({"heartbeat": {"agent_id": "nobody"}}, "agent_not_found", "nobody"),
        ({"ack": ["x"]}, "body_invalid", "entries.0"),
        ({"complete": {"lease": lease["lease"]}}, "body_invalid", "complete.task_id"),
        ({"send": {"receiver_id": "a1", "payload": {}}}, "body_invalid", "send.message_type"),
        ({"start": lease | {"task_id": "t0"}}, "task_not_found", "t0"),
        ({"inbox": {"agent_id": "a1", "limit": 0}}, "frame_invalid", "inbox.limit"),
        ('{"id": 7, "complete": {"task_id": "t1", "lease": "00", "result": %s}}' % ("[" * 20_000), "frame_invalid", ""),
    ):
        found, message = await socket.refused(frame)
        assert (found, named in message) == (code, True), (frame, found, message)


@pytest.mark.guarantee("socket-credentials")
async def test_a_socket_is_bound_to_its_credential(at: CellProcesses) -> None:
    """⚠ With security, the key of an agent serves for this agent only, and a lesser role for none.

    An agent is given work only while its socket is open. A revoked key ends what its socket may do.
    """
    http = HttpCaller(unused_ports(1)[0])
    await gateway(at, http, **PATIENT, COORD_GATEWAY_SECURITY="on")
    key, record = await at.client.admin.create_key("agent", agent_id="a1")
    reader, _ = await at.client.admin.create_key("readonly")
    socket = await Socket.open(http, X_API_Key=key)
    assert (await socket.refused({"register": {"agent_id": "a2", "agent_type": "worker"}}))[0] == "agent_forbidden"
    await socket.register(heartbeat_interval=0.3)
    await at.agent("sdk")
    letter = {"receiver_id": "a1", "message_type": "direct", "payload": {}}
    for frame in (
        {"inbox": {"agent_id": "sdk"}},
        {"heartbeat": {"agent_id": "sdk"}},
        {"send": letter | {"sender_id": "sdk"}},
        {"send": letter | {"sender": "sdk"}},
        {"send": letter},
    ):
        assert (await socket.refused(frame))[0] == "agent_forbidden"
    lesser = await Socket.open(http, X_API_Key=reader)
    assert (await lesser.refused({"inbox": {"agent_id": "a1"}}))[0] == "role_insufficient"
    assert (await lesser.refused({"start": {"task_id": "t1", "lease": "0" * 16}}))[0] == "role_insufficient"
    await lesser.close()

    async def is_placeable() -> bool:
        return bool(await at.redis.sismember(at.keys.of("agents:active"), "a1"))

    async def is_deaf() -> bool:
        return not await is_placeable()

    await socket.done(inbox={"agent_id": "a1"})
    await wait_until(is_placeable, "it may get work")
    await socket.close()
    await wait_until(is_deaf, "it gets no work any more", FRAME_S)

    socket = await Socket.open(http, X_API_Key=key)
    await at.client.admin.revoke_key(record.key_id)

    async def is_refused() -> bool:
        answer = await socket.ask({"heartbeat": {"agent_id": "a1"}})
        return not answer["ok"] and answer["error"]["code"] == "credential_invalid"

    await wait_until(is_refused, "the key is not valid any more", FRAME_S)
    await socket.close()


async def test_one_that_does_not_read_is_disconnected(at: CellProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection ends although much is unread, and nothing is lost: the next one gets everything.

    That one is told when the gateway shuts down.
    """
    monkeypatch.setattr(agent_socket, "STALL_S", 0.3)
    async with serving(at.server, Settings(namespace=NAMESPACE), gateway_wait_s=30, gateway_redis_s=30) as http:
        stuck = sockets.socket()
        stuck.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", http.port))
        async with connect(f"ws://127.0.0.1:{http.port}/ws", sock=stuck, max_queue=1) as silent:
            body = {"agent_id": "a1", "agent_type": "worker", "heartbeat_interval": 60}
            for frame in ({"register": body}, {"inbox": {"agent_id": "a1"}}):
                await silent.send(json.dumps({"id": 1} | frame))
                assert json.loads(await asyncio.wait_for(silent.recv(), FRAME_S))["ok"]
            inbox = at.keys.inbox("a1", Lane.LOW)
            for _ in range(10):
                await at.redis.xadd(inbox, {"order": "link_changed", "text": "x" * 300_000})

            def is_closed() -> bool:
                return bool(stuck.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, 1)[0] != 1)  # 1: established

            await wait_until(is_closed, "the connection is closed", FRAME_S)
        other = await Socket.open(http)
        await other.done(inbox={"agent_id": "a1"})
        await other.gets(10)
    assert (await other.closed())[0] == 1012  # the gateway has shut down
