"""A worker that is struck at one step of its loop: ``python stepped_worker.py STEP SIGNAL NTH KIND --name NAME``.

Steps: ``before_read`` (it is about to read, having read NTH batches), ``after_read`` (it holds the NTH batch),
``sent`` (the NTH round trip of scripts is on its way, its answer was not read), ``answered`` (its answer was read, and
nobody was told). ``double`` strikes never: each fact that is read is appended once more, as a repeated XADD would.
"""

from __future__ import annotations

import os
import signal
import sys
from contextvars import ContextVar
from typing import Any
from unittest.mock import patch

from coord.pipeline import _PackingMixin
from coord.streams import Consumer, Entry
from workers.__main__ import main
from workers.transitions import Call, Scripts

STEPS = ("before_read", "after_read", "sent", "answered")
#: What is run by the clock and consumes nothing.
BY_CLOCK = {"worker_heartbeat", "tick_liveness", "run_alarms", "relieve", "hold_lanes"}

_read_new = Consumer.read_new
_run = Scripts.run
_send = _PackingMixin.send_packed_command
_is_last: ContextVar[bool] = ContextVar("is_last", default=False)


class Trap:
    """Strikes this process the NTH time."""

    def __init__(self, step: str, number: signal.Signals, nth: int) -> None:
        self.step, self.number, self.nth = step, number, nth
        self.batches = 0
        self.runs = 0
        self.seen: set[tuple[object, ...]] = set()

    def strike(self) -> None:
        """Now."""
        os.kill(os.getpid(), self.number)

    async def read_new(self, consumer: Consumer, *given: Any) -> list[Entry]:
        """``Consumer.read_new``."""
        if self.step == "before_read" and self.batches == self.nth:
            self.batches += 1
            self.strike()
        entries = await _read_new(consumer, *given)
        if entries:
            self.batches += 1
            if self.step == "after_read" and self.batches == self.nth:
                self.strike()
            if self.step == "double":
                await self.double(consumer, entries)
        return entries

    async def double(self, consumer: Consumer, entries: list[Entry]) -> None:
        """Append each entry again, unless it is such a second one."""
        for entry in entries:
            content = (entry.stream, *sorted(entry.fields.items()))
            if content in self.seen:
                continue
            self.seen.add(content)
            flat = [part for field in entry.fields.items() for part in field]
            await consumer.redis.execute_command("XADD", consumer.keys.of(entry.stream), "*", *flat)
            sys.stdout.write(f"doubled {entry.fields[b'type'].decode()}\n")

    async def run(self, scripts: Scripts, *calls: Call[Any]) -> list[Any]:
        """``Scripts.run``."""
        is_last = False
        if not {call.script for call in calls} <= BY_CLOCK:
            self.runs += 1
            is_last = self.runs == self.nth
        token = _is_last.set(is_last and self.step == "sent")
        try:
            answers = await _run(scripts, *calls)
        finally:
            _is_last.reset(token)
        if is_last and self.step == "answered":
            self.strike()
        return answers

    async def send(self, connection: _PackingMixin, command: Any, *args: Any, **options: Any) -> None:
        """``send_packed_command`` of coord's connections."""
        await _send(connection, command, *args, **options)
        if _is_last.get() and b"EVALSHA" in (command if isinstance(command, bytes) else b"".join(command)):
            _is_last.set(False)
            self.strike()


if __name__ == "__main__":
    trap = Trap(sys.argv[1], signal.Signals[sys.argv[2]], int(sys.argv[3]))
    del sys.argv[1:4]

    async def read_new(consumer: Consumer, *given: Any) -> list[Entry]:
        """In place of the method."""
        return await trap.read_new(consumer, *given)

    async def run(scripts: Scripts, *calls: Call[Any]) -> list[Any]:
        """In place of the method."""
        return await trap.run(scripts, *calls)

    async def send(connection: _PackingMixin, command: Any, *args: Any, **options: Any) -> None:
        """In place of the method."""
        await trap.send(connection, command, *args, **options)

    with (
        patch.object(Consumer, "read_new", read_new),
        patch.object(Scripts, "run", run),
        patch.object(_PackingMixin, "send_packed_command", send),
    ):
        sys.exit(main())
