"""Workers of these tests look up often and wait briefly, so that what takes seconds in earnest takes moments here."""

from __future__ import annotations

import pytest

from coord.config import Settings
from coord.embedded import EmbeddedServer
from tests.running import RunningCell
from tests.workers.raw import Caller


@pytest.fixture(params=["valkey", "redis7"])
def server(request: pytest.FixtureRequest) -> EmbeddedServer:
    """Each test on the embedded Valkey and on ``redis-server`` from PATH, the oldest that coord accepts."""
    name = "valkey_server" if request.param == "valkey" else "debian_server"
    found: EmbeddedServer = request.getfixturevalue(name)
    return found


@pytest.fixture
def settings(namespace: str) -> Settings:
    """Short waits, in this test's namespace."""
    return Settings(namespace=namespace, read_block_ms=100, reclaim_idle_ms=400, backoff_ms=50, answer_timeout_s=5.0)


@pytest.fixture
def caller(cell: RunningCell) -> Caller:
    """Someone who submits tasks."""
    return Caller(cell.redis, cell.keys)
