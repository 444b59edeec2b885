"""The options that compose.yaml gives Valkey: a server takes them, and is fit for coord without a warning."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from coord.config import Settings
from coord.connection import check_server, connect, wait_for_server
from coord.embedded import find_binary
from tests.unit.test_compose import SERVICES


async def test_it_keeps_what_it_acknowledged_and_refuses_what_it_cannot_hold(tmp_path: Path, unused_port: int) -> None:
    """Append-only file, synced every second; no eviction; a limit; no command that takes 512 MiB."""
    options = SERVICES["valkey"]["command"][1:]
    place = ("--port", str(unused_port), "--bind", "127.0.0.1", "--dir", str(tmp_path))
    url = f"redis://127.0.0.1:{unused_port}/0"
    process = await asyncio.create_subprocess_exec(find_binary(), *options, *place, stdout=subprocess.DEVNULL)
    try:
        async with connect(url, Settings(), retries=0) as redis:
            await wait_for_server(redis, url)
            report = await check_server(redis, Settings())
    finally:
        process.terminate()
        await process.wait()
    assert report.warnings == []
    assert report.durability == "AOF, fsync every second: the last second can be lost if the machine dies"
    assert (report.policy, report.maxmemory) == ("noeviction", 1 << 30)
