"""compose.yaml without containers: its server and its services are started as it says, and their health is asked."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from coord.config import Settings
from coord.connection import connect, wait_for_server
from coord.embedded import find_binary
from coord.server_check import check_server
from tests.ports import unused_ports
from tests.repo.test_compose import OURS, SERVICES, seconds
from tests.waiting import wait_until

#: Processes start slowly on a machine with much to do.
START_S = 60.0


@asynccontextmanager
async def running(command: list[str], environ: dict[str, str], folder: Path) -> AsyncIterator[Process]:
    """A process, killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *command, env=environ, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def valkey(folder: Path, port: int) -> AsyncIterator[str]:
    """A server with the options of the file; its URL."""
    place = ("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder))
    command = [str(find_binary()), *SERVICES["valkey"]["command"][1:], *place]
    async with running(command, dict(os.environ), folder):
        url = f"redis://127.0.0.1:{port}/0"
        async with connect(url, Settings(), retries=0) as redis:
            await wait_for_server(redis, url)
        yield url


async def test_valkey_keeps_what_it_acknowledged_and_refuses_what_it_cannot_hold(
    tmp_path: Path, unused_port: int
) -> None:
    """Append-only file, synced every second; no eviction; a limit; no command takes 512 MiB: nothing to warn of."""
    async with valkey(tmp_path, unused_port) as url, connect(url, Settings(), retries=0) as redis:
        report = await check_server(redis, Settings())
    assert report.warnings == []
    assert report.durability == "AOF, fsync every second: the last second can be lost if the machine dies"
    assert (report.policy, report.maxmemory) == ("noeviction", 1 << 30)


async def test_every_service_becomes_healthy_and_ends_in_its_time(tmp_path: Path) -> None:
    """Each is started by its command in its environment, asked by its health check, and ended by SIGTERM with 0."""
    server_port, gateway_port = unused_ports(2)

    def here(words: list[str]) -> list[str]:
        """The program is that of the environment in which the tests run; the port is one that is free."""
        program, *rest = words
        return [str(Path(sys.executable).parent / program), *(word.replace("9001", str(gateway_port)) for word in rest)]

    async with valkey(tmp_path, server_port) as url, AsyncExitStack() as stack:
        # Servers of tests are on the loopback only.
        own = {"COORD_REDIS_URL": url, "COORD_GATEWAY_HOST": "127.0.0.1", "COORD_GATEWAY_PORT": str(gateway_port)}
        environs = {name: dict(os.environ) | service["environment"] | own for name, service in OURS.items()}

        async def is_healthy(name: str) -> bool:
            """What the health check says."""
            check = here(SERVICES[name]["healthcheck"]["test"][1:])
            async with running(check, environs[name], tmp_path) as asked:
                return await asked.wait() == 0

        processes: dict[str, Process] = {}
        for name, service in OURS.items():
            assert not await is_healthy(name)
            started = running(here(service["command"]), environs[name], tmp_path)
            processes[name] = await stack.enter_async_context(started)
        for name in OURS:
            await wait_until(partial(is_healthy, name), f"{name} is healthy", START_S)
        for process in processes.values():
            process.terminate()
        for name, process in processes.items():
            async with asyncio.timeout(seconds(OURS[name]["stop_grace_period"])):
                assert await process.wait() == 0, name
