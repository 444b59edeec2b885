"""A gateway as a process of its own, or in the process of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from msgspec.structs import replace

from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.gateway.server import serve
from tests.http import HttpCaller
from tests.ports import unused_port
from tests.processes import CellProcesses, Process
from tests.waiting import wait_until

#: On a busy machine a worker may take longer than a caller would wait.
PATIENT = {"COORD_GATEWAY_WAIT_S": "30", "COORD_GATEWAY_REDIS_S": "30"}


async def lone_gateway(at: CellProcesses, http: HttpCaller, *options: str, **environ: str) -> Process:
    """A gateway, once it answers, whether Redis is there or not."""
    process = at.start("gateway", "-m", "coord.cli", "gateway", "--port", str(http.port), *options, **environ)

    async def up() -> bool:
        assert process.alive, process.told()
        return await http.is_up()

    await wait_until(up, "the gateway answers", 30)
    return process


async def gateway(at: CellProcesses, http: HttpCaller, **environ: str) -> Process:
    """A gateway, once it has found Redis."""
    process = await lone_gateway(at, http, **environ)
    await wait_until(http.is_ready, "the gateway has found Redis", 30)
    return process


@asynccontextmanager
async def serving(server: EmbeddedServer, settings: Settings, **changed: Any) -> AsyncIterator[HttpCaller]:
    """A gateway in this process, so that a test can shorten its times; it shuts down with the block."""
    http = HttpCaller(unused_port())
    settings = replace(settings, **{"redis_url": server.url, "gateway_port": http.port} | changed)
    requested, forced = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(serve(settings, requested, forced))
    try:
        await wait_until(http.is_ready, "the gateway has found Redis")
        yield http
    finally:
        requested.set()
        await asyncio.wait_for(running, 30)
