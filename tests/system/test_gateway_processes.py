"""Several gateway processes: restarts under load, one port for all of them, and how operators see them."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.http import HttpCaller
from tests.ports import unused_port
from tests.processes import CellProcesses, cell_processes
from tests.system.gateway_processes import PATIENT, gateway, lone_gateway
from tests.waiting import wait_until


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server of this test's own."""
    async with cell_processes(tmp_path) as built:
        yield built


class KeepAliveCaller:
    """Sends one request after the other on one connection, as long as the gateway keeps it open.

    Args:
        ports: of the gateways; the next one is tried when a connection ends.
    """

    def __init__(self, ports: list[int]) -> None:
        self._ports = itertools.cycle(ports)
        self._link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.answered: list[str] = []  #: ids of the tasks
        self.refused: list[Any] = []  #: what was no acknowledgement
        self.connections = 0

    async def run(self, name: str, stopped: asyncio.Event) -> None:
        """Submit tasks until ``stopped``."""
        for number in itertools.count():
            if stopped.is_set():
                break
            body = json.dumps({"task_data": {"task_id": f"{name}-{number}", "task_type": "echo"}}).encode()
            status, answer = await self._post(body, "Prefer: respond-async\r\n" if number % 2 else "")
            if status in {200, 202}:
                self.answered.append(answer["task_id"])
            else:
                self.refused.append((status, answer))
        if self._link is not None:
            self._link[1].close()

    async def _post(self, body: bytes, header: str) -> tuple[int, Any]:
        reader, writer = self._link or await self._connect()
        head = (
            "POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n{header}\r\n"
        )
        try:
            writer.write(head.encode() + body)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self._link = None
            return 0, f"a request without a response: {error!r}"
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        answer = json.loads(await reader.readexactly(int(headers["content-length"])))
        if headers.get("connection") == "close":
            writer.close()
            self._link = None
        return int(lines[0].split()[1]), answer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            try:
                self._link = await asyncio.open_connection("127.0.0.1", next(self._ports))
            except ConnectionError:  # nothing was sent
                await asyncio.sleep(0.02)
            else:
                self.connections += 1
                return self._link


def _has_answers(callers: list[KeepAliveCaller], goal: int) -> bool:
    return sum(len(caller.answered) for caller in callers) >= goal


@pytest.mark.guarantee("gateway-restart")
async def test_a_rolling_restart_drops_no_request(at: CellProcesses) -> None:
    """Two gateways are restarted one after the other under load: every request is answered, and every task is there."""
    https = [HttpCaller(unused_port()) for _ in range(2)]
    await at.worker("distributor")
    running = [await gateway(at, http, **PATIENT) for http in https]
    stopped = asyncio.Event()
    callers = [KeepAliveCaller([one.port for one in (https if n % 2 else https[::-1])]) for n in range(8)]
    load = [asyncio.create_task(caller.run(f"c{n}", stopped)) for n, caller in enumerate(callers)]
    for http, process in zip(https, running, strict=True):
        goal = sum(len(caller.answered) for caller in callers) + 100
        await wait_until(partial(_has_answers, callers, goal), "load", 30)
        process.send(signal.SIGTERM)
        assert await process.ended(30) == 0
        await gateway(at, http, **PATIENT)
    stopped.set()
    await asyncio.gather(*load)
    assert [refused for caller in callers for refused in caller.refused] == []
    assert all(caller.connections > 1 for caller in callers), "each gateway ended its connections"
    ids = [task_id for caller in callers for task_id in caller.answered]

    async def all_admitted() -> bool:
        found = await at.redis.exists(*(at.keys.task(task_id) for task_id in ids))
        return bool(found == len(ids))

    await wait_until(all_admitted, "every task has its record", 30)


@pytest.mark.guarantee("gateway-crash")
async def test_processes_share_a_port(at: CellProcesses) -> None:
    """A killed one restarts while the others serve; ``coord ps`` lists each; all end with the first."""
    http = HttpCaller(unused_port())
    parent = await lone_gateway(at, http, "--workers", "2", **PATIENT)

    async def present() -> set[int]:
        return {one.pid for one in (await at.client.workers()).workers if one.kind == "gateway"}

    async def both_present() -> set[int] | None:
        pids = await present()
        return pids if len(pids) == 2 else None

    before = await wait_until(both_present, "both are present", 30)
    assert before is not None
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    for _ in range(20):
        assert await http.is_up()

    async def replaced() -> bool:
        return len((await present()) - {victim}) == 2

    await wait_until(replaced, "another one has taken its place", 30)
    parent.send(signal.SIGTERM)
    assert await parent.ended(30) == 0
    assert not await http.is_up()
    assert await present() <= {victim}, "those that left are not listed"


async def test_processes_that_cannot_start_end_their_parent(at: CellProcesses) -> None:
    """The address is checked before any of them starts; exit code 2 and one line."""
    environ = {"COORD_GATEWAY_HOST": "no such host"}
    process = at.start("gateway", "-m", "coord.cli", "gateway", "--workers", "2", "--port", "0", **environ)
    assert await process.ended(30) == 2
    assert "COORD_GATEWAY_HOST" in process.told()
    assert "Traceback" not in process.told()
