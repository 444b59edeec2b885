"""Claims and reports at a desk without a server: what they send is noted, and the test answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from coord.agent.claims import Claims
from coord.agent.reports import Reports
from coord.agent.task import Attempt
from coord.keys import Keys
from coord.reconnect import ReconnectingConnection
from tests.client.packed_commands import read_command

KEYS = Keys("t")


class FakeLink(ReconnectingConnection):
    """Notes what is sent; the test answers."""

    def __init__(self) -> None:
        self.up = True
        self.sent: list[tuple[list[bytes], Callable[[Any, Any], None], Any]] = []

    @property
    def is_up(self) -> bool:
        """As the test says."""
        return self.up

    def send(self, packed: bytes, callback: Callable[[Any, Any], None], context: Any = None) -> None:
        """Note it."""
        self.sent.append((read_command(packed), callback, context))

    send_until_answered = send

    def commands(self, name: bytes) -> list[list[bytes]]:
        """What was sent so far under that name."""
        return [command[1:] for command, _callback, _context in self.sent if command[0] == name]

    def answer(self, answer: Any, index: int = -1) -> None:
        """Answer a command."""
        _command, callback, context = self.sent.pop(index)
        callback(context, answer)


class Desk:
    """Claims on a fake link."""

    def __init__(self, capacity: int) -> None:
        self.link = FakeLink()
        self.started: list[str] = []
        self.missed = 0
        self.reports = Reports(self.link, KEYS, 1_000_000, self._answered)
        self.claims = Claims(
            "a", "me", capacity, link=self.link, keys=KEYS, reports=self.reports, start=self._start, reread=self._reread
        )

    def _start(self, attempt: Attempt) -> None:
        self.started.append(attempt.lease)

    def _answered(self, attempt: Attempt) -> None:
        self.claims.forget(attempt)

    def _reread(self) -> None:
        self.missed += 1

    async def completed(self, attempt: Attempt, result: Any) -> None:
        """Complete an attempt; its report goes out with the others of the same turn of the loop."""
        self.reports.completed(attempt, result)
        await asyncio.sleep(0)

    def offer(self, *leases: str, lane: int = 2, incarnation: str = "me") -> None:
        """Assignments as they are read."""
        for lease in leases:
            fields = {b"task_id": b"t-" + lease.encode(), b"lease": lease.encode(), b"attempt": b"1", b"data": b"{}"}
            fields[b"incarnation"] = incarnation.encode()
            self.claims.offer(lane, f"{len(lease)}-{lease}".encode(), fields)
