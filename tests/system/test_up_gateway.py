"""`coord up` and its gateway: started, shown, and restarted while its port is taken."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from typing import Any

import msgspec

from tests.coord_up import START_S, Start, accepted
from tests.waiting import wait_until


def get(port: int, path: str) -> tuple[int, dict[str, Any]]:
    """The status and body of an answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=START_S) as answer:
        return answer.status, msgspec.json.decode(answer.read())


async def test_it_answers_when_coord_up_is_ready(start: Start, unused_port: int) -> None:
    """Its URL is shown, its lines are in the log, and it ends with the other processes."""
    up = start("--port", str(unused_port))
    await up.ready()
    status, body = await asyncio.to_thread(get, unused_port, "/health")
    assert (status, body["status"]) == (200, "healthy")
    (started,) = up.events("up.started")
    assert started["gateway"] == f"http://127.0.0.1:{unused_port}"
    assert started["dashboard"] == f"{started['gateway']}/ui"
    (own,) = up.events("gateway.started", "gateway")
    assert (own["url"], own["dashboard"]) == (started["gateway"], started["dashboard"])
    up.process.terminate()
    assert await up.ended() == 0
    events = [line["event"] for line in up.lines()]
    assert events.index("gateway.stopped") < events.index("worker.stopped")


async def test_a_port_in_use_is_said_and_the_gateway_comes_once_it_is_free(start: Start) -> None:
    """The rest works meanwhile; nobody has to start anything again."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        up = start("--port", str(port))
        await accepted((await up.announced()).url)
        why = f"coord: cannot listen on 127.0.0.1 port {port}: Address already in use"

        def told_why() -> bool:
            return any(why in end["message"] for end in up.events("process.ended"))

        await wait_until(told_why, "the log has the reason", START_S)
        (started,) = up.events("up.started")
        assert started["gateway"] == f"not yet: port {port} is taken; --port 0 takes a free one"
        assert {end["name"] for end in up.events("process.ended")} == {"gateway"}
        assert up.events("up.ready") == []
    await up.ready()
    status, _ = await asyncio.to_thread(get, port, "/health")
    assert status == 200


async def test_another_s_gateway_on_the_port_is_not_taken_for_its_own(start: Start) -> None:
    """It responds like ours, so the difference is not visible; ready is not logged."""
    other = start("--port", "0")
    await other.ready()
    (own,) = other.events("gateway.started", "gateway")
    port = own["url"].rpartition(":")[2]
    up = start("--port", port, folder="second", COORD_ENDPOINT_FILE=str(other.log.with_name("second.json")))
    await wait_until(lambda: len(up.events("worker.started")) >= 4, "the workers are there", START_S)
    await wait_until(lambda: len(up.events("process.ended", "coord")) >= 4, "its gateway has ended often", START_S)
    assert up.events("up.ready") == []


async def test_a_free_port_is_waited_for(start: Start) -> None:
    """The gateway responds on the port that it chose when ready is logged."""
    up = start("--port", "0")
    await up.ready()
    events = [line["event"] for line in up.lines()]
    assert events.index("gateway.started") < events.index("up.ready")
