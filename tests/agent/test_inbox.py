"""The inbox's own connection: which server it stays with."""

from __future__ import annotations

from pathlib import Path

import pytest

from coord import reconnect as link_module
from coord.agent.inbox import Inbox
from coord.config import Settings
from coord.connection import connect
from coord.embedded import EmbeddedServer
from coord.keys import Keys
from tests.conftest import FAST
from tests.waiting import wait_until


async def test_it_does_not_stay_with_a_server_that_is_a_replica(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That would answer reads for ever: it reconnects until its address leads to a primary, and reads on."""
    monkeypatch.setattr(link_module, "REFUSED_WAIT_S", 0.02)
    running = EmbeddedServer.start(tmp_path / "own", extra=FAST)
    redis = connect(running.url, settings)
    ups: list[int] = []
    taken: list[bytes] = []
    inbox = Inbox(
        "a",
        running.url,
        settings,
        on_entry=lambda _lane, _entry, fields: taken.append(fields[b"n"]),
        on_reply=lambda _fields: None,
        on_read=lambda: None,
        on_up=lambda: ups.append(1),
    )
    try:
        await inbox.open()
        await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
        await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await wait_until(lambda: len(ups) >= 4, "it has left the replica twice")
        await redis.execute_command("REPLICAOF", "NO", "ONE")
        await redis.xadd(Keys(settings.namespace).inbox("a", "normal"), {"n": "1"})
        await wait_until(lambda: taken == [b"1"], "it reads what is new")
    finally:
        await inbox.close()
        await redis.aclose()
        running.stop(force=True)
