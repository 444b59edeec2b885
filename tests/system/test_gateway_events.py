"""Events over HTTP with real gateways: listeners go from one to another, and lose nothing unnoticed."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import signal
import socket
import urllib.request
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.gateway import event_hub
from coord.keys import Keys
from tests.http import HttpCaller
from tests.ports import unused_port
from tests.processes import NAMESPACE, cell_processes
from tests.repo.documents import ROOT, blocks
from tests.system.event_source import EventSource
from tests.system.gateway_processes import gateway, serving
from tests.waiting import wait_until


async def write(redis: Redis, namespace: str, *names: str, log: str = "tasks", kind: str = "task.queued") -> None:
    """Append an event about each of these tasks, in one entry."""
    await redis.execute_command("XADD", Keys(namespace).of(f"log:{log}"), "*", "type", kind, "task_id", " ".join(names))


@pytest.mark.guarantee("no-lost-events")
async def test_a_listener_goes_from_gateway_to_gateway(tmp_path: Path) -> None:
    """One is killed, one is shut down, one is started again; events come all the time. Nothing is lost or twice."""
    async with cell_processes(tmp_path) as at:
        one, two = HttpCaller(unused_port()), HttpCaller(unused_port())
        first, second = await asyncio.gather(gateway(at, one), gateway(at, two))
        source = await EventSource().connect(one.port)
        written: list[str] = []
        is_over = False

        async def writing() -> None:
            while not is_over:
                names = [f"t{len(written)}", f"t{len(written) + 1}"][: 1 + len(written) % 3 // 2]
                await write(at.redis, NAMESPACE, *names)
                written.extend(names)
                await asyncio.sleep(0.001)

        task = asyncio.create_task(writing())
        try:
            await source.hears("t20")
            first.kill()
            await source.ended()
            assert source.ends == 0
            begun = len(written)
            await source.connect(two.port)
            await source.hears(f"t{begun}")
            await gateway(at, one)
            second.send(signal.SIGTERM)
            assert await second.ended() == 0
            await source.ended()
            assert source.ends == 1  # the stream ended as it should, not with its connection
            begun = len(written)
            await source.connect(one.port)
            await source.hears(f"t{begun}")
        finally:
            is_over = True
            await task
        await source.hears(written[-1])
        await source.disconnect()
        assert source.names == written
        assert not [event for event in source.events if event["type"] == "coord.gap"]


@pytest.mark.guarantee("no-lost-events")
async def test_listeners_stay_while_redis_restarts(tmp_path: Path) -> None:
    """Connected, through SSE and WebSocket, and they go on; what was written meanwhile follows."""
    server = EmbeddedServer.start(tmp_path / "data", extra=("--appendfsync", "always"))
    try:
        redis = Redis.from_url(server.url)
        async with serving(server, Settings(namespace="restarts")) as http:
            source = await EventSource().connect(http.port)
            async with connect(f"ws://127.0.0.1:{http.port}/ws?type=task") as socket:
                await write(redis, "restarts", "before")
                await source.hears("before")
                await redis.aclose()
                server.kill()
                server.restart()
                await write(redis, "restarts", "after")
                await source.hears("after")
                frames = [json.loads(await asyncio.wait_for(socket.recv(), 60)) for _ in range(2)]
                assert [frame["data"]["task_id"] for frame in frames] == ["before", "after"]
            assert source.names == ["before", "after"]
            await source.disconnect()
        await redis.aclose()
    finally:
        server.stop(force=True)


async def test_sse_as_a_browser_reads_it(redis: Redis, server: EmbeddedServer, settings: Settings) -> None:
    """CloudEvents, ids, filters, both prefixes; what is wrong with a query is an error that names it."""
    async with serving(server, settings, gateway_listeners=2) as http:
        mine = await EventSource("/v1/events?task=t1&type=task.queued,coord.task.completed").connect(http.port)
        everything = await EventSource().connect(http.port)
        refused = await http.get("/events")
        assert (refused.status, refused.body["code"]) == (503, "overloaded")
        assert "COORD_GATEWAY_LISTENERS" in refused.body["message"]
        assert "retry-after" in refused.headers
        with pytest.raises(InvalidStatus):
            await connect(f"ws://127.0.0.1:{http.port}/ws")
        for kind in ("task.queued", "task.assigned", "task.completed"):
            await write(redis, settings.namespace, "t1", "t2", kind=kind)
        await wait_until(lambda: len(everything.events) == 6, "all events are received")
        await wait_until(lambda: len(mine.events) == 2, "its events are received")
        assert [event["type"] for event in mine.events] == ["coord.task.queued", "coord.task.completed"]
        event = everything.events[3]
        assert event.pop("time").endswith("+00:00")
        position, entry_id = event.pop("position"), event.pop("id")
        assert event == {
            "specversion": "1.0",
            "source": f"/coord/{settings.namespace}/log/tasks",
            "type": "coord.task.assigned",
            "subject": "tasks/t2",
            "datacontenttype": "application/json",
            "data": {"task_id": "t2"},
        }
        assert entry_id.endswith(".2")
        assert 1_000 <= mine.retry_ms <= 3_000
        await everything.disconnect()
        again = EventSource(f"/events?last_event_id={position}&task=t2")
        await wait_until(lambda: _joins(again, http.port), "the place of the other one is free")
        await again.hears("t2")
        assert [event["type"] for event in again.events] == ["coord.task.completed"]
        await mine.disconnect()
        await again.disconnect()
        for _ in range(5):  # takes no place
            head = await asyncio.to_thread(_head, http.port)
            assert (head.status, head.headers["Content-Type"]) == (200, "text/event-stream")
        for query, loc in (("type=tsk", "type"), ("agent=a%20b", "agent"), ("last_event_id=x", "last_event_id")):
            answer = await http.get(f"/events?{query}")
            assert answer.status == 422
            assert answer.body["detail"][0]["loc"] == ["query", loc]
        answer = await http.get("/events", **{"Last-Event-ID": "x"})
        assert answer.body["detail"][0]["loc"] == ["header", "last-event-id"]


def _head(port: int) -> HTTPResponse:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/events", method="HEAD")
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 -- this machine
        return answer  # type: ignore[no-any-return]


async def _joins(source: EventSource, port: int) -> bool:
    try:
        await source.connect(port)
    except AssertionError:
        return False
    return True


@pytest.mark.guarantee("slow-listeners")
async def test_a_caller_that_does_not_read_is_disconnected(
    redis: Redis, server: EmbeddedServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is closed and its place is free; another one gets everything, as does it when it comes back."""
    monkeypatch.setattr(event_hub, "STALL_S", 0.3)
    monkeypatch.setattr(event_hub, "LOOK_S", 0.05)
    names = [f"t{n}" for n in range(6_000)]
    async with serving(server, settings) as http:
        live = await EventSource().connect(http.port)
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(("127.0.0.1", http.port))
            stuck.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(stuck, b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"text/event-stream" in await loop.sock_recv(stuck, 4096)
            for begin in range(0, len(names), 500):
                await write(redis, settings.namespace, *names[begin : begin + 500])
            await live.hears(names[-1])
            assert live.names == names

            async def is_closed() -> bool:
                # The system knows of the end of the connection although much is unread.
                return bool(stuck.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED)

            await wait_until(is_closed, "the connection is closed", 5)
        await live.disconnect()


#: State of a TCP connection in TCP_INFO of Linux.
_ESTABLISHED = 1


async def _answers(websocket: ClientConnection, *frames: str | bytes) -> list[dict[str, Any]]:
    found = []
    for frame in frames:
        await websocket.send(frame)
        found.append(json.loads(await asyncio.wait_for(websocket.recv(), 30)))
    return found


async def test_a_websocket_subscribes_by_frames(redis: Redis, server: EmbeddedServer, settings: Settings) -> None:
    """A frame replaces the subscription, null ends it; bad frames get an error and change nothing."""
    async with serving(server, settings) as http:
        url = f"ws://127.0.0.1:{http.port}/v1/ws"
        async with connect(url) as websocket:
            bad = (
                "nonsense", "[]", b"{}", '{"id": 7}', '{"id": 7, "subscribe": {"typ": "task"}}',
                '{"id": 7, "subscribe": {"type": "tsk"}}', "[" * 10_000, '{"id": {}}',
            )  # fmt: skip
            answers = await _answers(websocket, *bad, '{"id": 7, "subscribe": {}, "last_event_id": "x"}')
            assert {answer["ok"] for answer in answers} == {False}
            assert [answer["id"] for answer in answers] == [None, None, None, 7, 7, 7, None, None, 7]
            assert {answer["error"]["code"] for answer in answers} == {"frame_invalid", "cursor_invalid"}
            (answer,) = await _answers(websocket, '{"id": "a", "subscribe": {"task": ["t1", "t3"]}}')
            assert (answer["id"], answer["ok"]) == ("a", True)
            await write(redis, settings.namespace, "t1", "t2", "t3")
            events = [json.loads(await asyncio.wait_for(websocket.recv(), 30)) for _ in range(2)]
            assert [event["data"]["task_id"] for event in events] == ["t1", "t3"]
            (answer,) = await _answers(websocket, '{"id": "b", "subscribe": null}')
            assert answer == {"id": "b", "ok": True}
            await write(redis, settings.namespace, "t1")
            again = {"id": "c", "subscribe": {"type": "task"}, "last_event_id": events[0]["position"]}
            (answer,) = await _answers(websocket, json.dumps(again))
            assert answer == {"id": "c", "ok": True, "position": events[0]["position"]}
            rest = [json.loads(await asyncio.wait_for(websocket.recv(), 30)) for _ in range(3)]
            assert [event["data"]["task_id"] for event in rest] == ["t2", "t3", "t1"]
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{url}?type=tsk")
        assert refused.value.response.status_code == 422
        assert json.loads(refused.value.response.body or b"")["code"] == "query_invalid"
        async with connect(f"{url}?other=x") as websocket:  # nothing that subscribes
            await write(redis, settings.namespace, "t9")
            (answer,) = await _answers(websocket, '{"id": 1, "subscribe": {}, "last_event_id": null}')
            assert answer["id"] == 1
        async with connect(f"{url}?last_event_id=0&task=t2", max_size=None) as websocket:
            assert json.loads(await asyncio.wait_for(websocket.recv(), 30))["data"]["task_id"] == "t2"
            await websocket.send("x" * (settings.max_entry_bytes + 1))
            with pytest.raises(ConnectionClosed) as closed:
                await asyncio.wait_for(websocket.recv(), 30)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009
        assert (await http.get("/health")).status in {200, 503}
        last = await connect(url)
    with pytest.raises(ConnectionClosed) as closed:
        await asyncio.wait_for(last.recv(), 30)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012


async def test_the_document_shows_what_curl_prints(
    redis: Redis, server: EmbeddedServer, settings: Settings, tmp_path: Path
) -> None:
    """The session of docs/http.md; only the time until a client connects again is random."""
    session = next(one.text for one in blocks(ROOT / "docs" / "http.md") if "/events" in one.text)
    command, _, shown = session.removeprefix("$ ").partition("\n")
    key = Keys("coord").of("log:tasks")
    settings = replace(settings, namespace="coord")
    await redis.delete(key)
    entries: tuple[tuple[str, ...], ...] = (
        ("1767225600000-0", "task.queued", "story-1", "normal"),
        ("1767225600123-0", "task.assigned", "story-1 story-2", "summarizer-1 summarizer-2", "1 1"),
        ("1767225602500-0", "task.completed", "story-1", "summarizer-1"),
    )
    for entry_id, kind, task_id, *more in entries:
        fields = dict(zip(("priority",) if kind == "task.queued" else ("agent_id", "attempt"), more, strict=False))
        pairs = [text for pair in fields.items() for text in pair]
        await redis.execute_command("XADD", key, entry_id, "type", kind, "task_id", task_id, *pairs)
    async with serving(server, settings) as http:
        words = [word.replace("localhost:9001", f"127.0.0.1:{http.port}") for word in shlex.split(command)]
        process = await asyncio.create_subprocess_exec(*words, cwd=tmp_path, stdout=asyncio.subprocess.PIPE)
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    await redis.delete(key)
    without_time = re.compile(r"retry: \d+")
    assert without_time.sub("", out.decode()) == without_time.sub("", shown)
