"""Callers that do not keep to HTTP, or to their word: the gateway answers what it can, and serves the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.http import HttpCaller
from tests.processes import CellProcesses, cell_processes
from tests.system.gateway_processes import gateway
from tests.waiting import wait_until

HEAD = b"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server of this test's own."""
    async with cell_processes(tmp_path) as built:
        yield built


@pytest.fixture
def http(unused_port: int) -> HttpCaller:
    """A caller of the gateway that the test starts."""
    return HttpCaller(unused_port)


async def test_a_body_that_does_not_come_is_not_waited_for(at: CellProcesses, http: HttpCaller) -> None:
    """Announced by its length or in chunks."""
    await gateway(at, http, COORD_GATEWAY_BODY_S="0.3")
    for sent in (b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"):
        assert await _said_to(http.port, HEAD + sent) == b"408"


async def test_callers_that_misbehave_harm_nobody(at: CellProcesses, http: HttpCaller) -> None:
    """Garbage, a body that is too large, a caller that is gone: the next one is served."""
    process = await gateway(at, http)
    size = 3 * 1024 * 1024
    for sent, answer in (
        (b"\x16\x03\x01\x02\x00garbage\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000, b"431"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: %d\r\n\r\n" % size + b"x" * size, b"413"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size + b"x" * size + b"\r\n0\r\n\r\n", b"413"),
    ):
        assert await _said_to(http.port, sent) == answer, sent[:200]
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    writer.write(HEAD + b"Content-Length: 19\r\n\r\n" + b'{"task_data": {')
    writer.transport.abort()
    assert await reader.read() == b""
    await wait_until(http.is_ready, "it is ready")
    assert await at.redis.keys(at.keys.of("in:tasks:*")) == []
    assert "gateway.defect" not in process.told()
    assert process.alive


async def _said_to(port: int, sent: bytes) -> bytes:
    """The status in the answer to these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        line = await asyncio.wait_for(reader.readline(), 30)
    finally:
        writer.transport.abort()
    return line.split()[1] if line else b""
