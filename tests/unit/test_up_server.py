"""The embedded server of a `coord up` that is to end at once while the server still starts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest

from coord import embedded
from coord.errors import ServerUnavailable
from coord.up.server import ManagedServer
from tests.waiting import wait_until


async def test_a_server_that_still_loads_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second Ctrl-C kills it, because it has written nothing yet. A service manager may hide ``/proc/stat``."""
    binary = tmp_path / "valkey-server"
    binary.write_text("#!/bin/sh\nexec sleep 600\n")
    binary.chmod(0o700)
    monkeypatch.setattr(embedded, "find_binary", lambda: binary)
    monkeypatch.setattr(psutil.Process, "create_time", _fail)
    server = ManagedServer(tmp_path / "data")
    server.abandon()  # nothing was started
    starting = asyncio.create_task(server.start())
    await wait_until(lambda: server._starting is not None, "it loads")
    server.abandon()
    with pytest.raises(ServerUnavailable, match="ended at start"):
        await starting


def _fail(*_args: Any, **_options: Any) -> Any:
    raise FileNotFoundError("/proc/stat")
