"""Detects from another thread that an event loop is blocked, and logs the handler that blocks it."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from coord.logs import get_logger

log = get_logger()

#: Seconds between two checks of an event loop.
PULSE_S = 0.25
#: Checks in a row that the event loop did not answer, after which it is blocked: one second.
BLOCKED_PULSES = 4


class WatchedAgent(Protocol):
    """An agent on the event loop."""

    agent_id: str

    def handler_of(self, task: asyncio.Task[Any] | None, /) -> str:
        """Return the name of the handler that an asyncio task runs, or "" if it is of no handler of this agent."""

    def loop_is_free(self) -> None:
        """React to the end of a block."""


class LoopWatch:
    """Posts a callback to an event loop, and checks at intervals if it has run.

    It counts checks, not only time: a process that was stopped for a while checks once before the callback runs.

    Args:
        loop: the event loop that is watched.
        thread: identifier of the thread that it runs in.
        own_loop: the event loop of the thread that watches.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: int, own_loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.agents: list[WatchedAgent] = []
        self.is_blocked = False
        self._own_loop = own_loop
        self._has_answered = True
        self._posted_at = 0.0
        self._missed = 0
        self._thread = thread

    def tick(self) -> None:
        """Check the event loop; call this every ``PULSE_S`` seconds."""
        if self.loop.is_closed() or not self.loop.is_running():
            self._missed = 0
        elif self._has_answered:
            self._has_answered, self._missed, self._posted_at = False, 0, time.monotonic()
            with suppress(RuntimeError):  # it was closed meanwhile
                self.loop.call_soon_threadsafe(self._answer)
        else:
            self._missed += 1
            if self._missed == BLOCKED_PULSES:
                self.is_blocked = True
                self._warn()

    def _answer(self) -> None:
        """Answer a check; runs in the event loop that is watched."""
        self._has_answered = True
        if self.is_blocked:
            with suppress(RuntimeError):  # the thread has ended
                self._own_loop.call_soon_threadsafe(self._freed)

    def _freed(self) -> None:
        if not self.is_blocked:
            return
        self.is_blocked = False
        agents = list(self.agents)
        seconds = round(time.monotonic() - self._posted_at, 1)
        log.warning("agent.loop_free", agent_id=agents[0].agent_id if agents else "", blocked_s=seconds)
        for agent in agents:
            agent.loop_is_free()

    def _warn(self) -> None:
        task = asyncio.current_task(self.loop)
        handler, agent_id = "", self.agents[0].agent_id if self.agents else ""
        for agent in self.agents:
            if handler := agent.handler_of(task):
                agent_id = agent.agent_id
                break
        log.warning(
            "agent.loop_blocked",
            agent_id=agent_id,
            handler=handler or "unknown",
            at=_place(sys._current_frames().get(self._thread), handler),  # noqa: SLF001 -- the only way to find the line
            hint="an async handler called a function that blocks, so the agent gets no new tasks until it returns; "
            "define the handler without async, or call the function with asyncio.to_thread",
        )


def _place(frame: FrameType | None, handler: str) -> str:
    """Return the line that the handler executes; of another function, the innermost line."""
    innermost = frame
    while frame is not None and frame.f_code.co_name != handler.rsplit(".", 1)[-1]:
        frame = frame.f_back
    found = frame or innermost
    return f"{Path(found.f_code.co_filename).name}:{found.f_lineno}" if found is not None else "unknown"
