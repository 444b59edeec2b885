"""The log of `coord up`: one stream of all its processes, for a person on a terminal, else JSON lines."""

from __future__ import annotations

import os
import pty
import re
import threading
from pathlib import Path

from redis.asyncio import Redis

from coord.embedded import EmbeddedServer
from tests.coord_up import DISTRIBUTOR, START_S, Start
from tests.waiting import wait_until


async def test_piped_every_line_is_an_object_that_says_who_speaks(start: Start) -> None:
    """A message of `coord up` has its sentence, lines of workers keep their fields; ``process`` names the process."""
    up = start()
    await up.ready()
    workers = set(up.workers())
    up.process.terminate()
    assert await up.ended() == 0
    lines = up.lines()
    assert all({"timestamp", "level", "event", "process"} <= line.keys() for line in lines)
    (ready,) = up.events("up.ready")
    assert ready["message"].startswith("ready: ")
    (started,) = up.events("up.started")
    assert (started["data"], set(started["workers"])) == (str(up.data), workers)
    for name in workers:
        (begun,), (stopped,) = up.events("worker.started", name), up.events("worker.stopped", name)
        assert (begun["name"], stopped["kind"]) == (name, name.partition("-")[0])
    assert {line["process"] for line in lines} == {"coord", *workers}
    assert lines[-1]["event"] == "up.ended"


async def test_on_a_terminal_a_person_can_read_it(start: Start, tmp_path: Path) -> None:
    """Time, name, what: no JSON; every process in one column."""
    master, slave = pty.openpty()
    seen = tmp_path / "screen"
    seen.touch()
    reader = threading.Thread(target=_copy, args=(master, seen), daemon=True)
    reader.start()
    up = start("--routers", "0", out=slave, COLUMNS="80", TERM="xterm-256color")
    os.close(slave)

    def screen() -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", seen.read_text(errors="replace"))

    await wait_until(lambda: "ready: " in screen(), "it says that it is ready", START_S)
    workers = up.workers()
    up.process.terminate()
    assert await up.ended() == 0
    reader.join(10)
    lines = screen().splitlines()
    assert lines[0].startswith("coord ")
    width = max(map(len, workers))
    for name in workers:
        pattern = rf"\d\d:\d\d:\d\d  {name:<{width}}  worker\.started  kind={name.partition('-')[0]}"
        assert [line for line in lines if re.fullmatch(pattern, line)], f"{pattern} in {lines}"
    assert re.fullmatch(rf"\d\d:\d\d:\d\d  {'coord':<{width}}  stopped", lines[-1])
    assert not [line for line in lines if line.startswith("{")]


async def test_a_worker_that_keeps_dying_is_tried_later_and_later_and_it_is_said_why(
    start: Start, tmp_path: Path
) -> None:
    """What it says last stands in the line about its end; once the cause is mended, it is there again by itself."""
    server = EmbeddedServer.start(tmp_path / "given")
    try:
        up = start(*DISTRIBUTOR, "--redis-url", server.url)
        await up.ready()
        name, worker = await up.worker("distributor")
        async with Redis.from_url(server.url) as redis:
            await redis.config_set("maxmemory-policy", "allkeys-lru")
            worker.kill()
            why = "times in a row; its last output: coord: maxmemory-policy is allkeys-lru"

            def told_why() -> bool:
                return any(why in end["message"] for end in up.events("process.ended"))

            await wait_until(told_why, "the log has the reason", START_S)
            first, *others = up.events("process.ended")
            assert (first["code"], {end["code"] for end in others}) == (-9, {2})
            assert {end["name"] for end in (first, *others)} == {name}
            assert max(end["again_in_s"] for end in others) > first["again_in_s"]
            await redis.config_set("maxmemory-policy", "noeviction")
        await wait_until(lambda: len(up.events("worker.started", name)) == 2, "it works again", START_S)
    finally:
        server.stop(force=True)


async def test_it_ends_in_order_when_nobody_reads_on(start: Start) -> None:
    """`coord up | head -1` leaves nothing running."""
    reading, writing = os.pipe()
    up = start(*DISTRIBUTOR, out=writing)
    os.close(writing)
    await up.announced()
    os.close(reading)
    assert await up.ended() == 0
    assert EmbeddedServer.find(up.data) is None


def _copy(master: int, to: Path) -> None:
    with to.open("ab", 0) as file:
        while True:
            try:
                content = os.read(master, 65536)
            except OSError:  # Linux says so when the other end is closed
                return
            if not content:
                return
            file.write(content)
