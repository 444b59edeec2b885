"""Workers of these tests look up often and wait briefly, so that what takes seconds in earnest takes moments here."""

from __future__ import annotations

import pytest

from coord.config import Settings
from tests.running import RunningCell
from tests.workers.raw import Caller


@pytest.fixture
def settings(namespace: str) -> Settings:
    """Short waits, in this test's namespace."""
    return Settings(namespace=namespace, read_block_ms=100, reclaim_idle_ms=400, backoff_ms=50, answer_timeout_s=5.0)


@pytest.fixture
def caller(cell: RunningCell) -> Caller:
    """Someone who submits tasks."""
    return Caller(cell.redis, cell.keys)
