"""A gateway as a process of its own."""

from __future__ import annotations

from tests.http import HttpCaller
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
