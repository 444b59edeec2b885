"""Shutdown of a command: the first request ends it gracefully, the second one at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from coord.agent.run import ONE_STOP_S
from coord.background import cancel_and_wait

T = TypeVar("T")


class Shutdown:
    """The state of a command's shutdown, shared by everything that the command runs."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()  #: set for a graceful shutdown
        self.forced = asyncio.Event()  #: set for a shutdown at once

    def request(self) -> None:
        """Request a shutdown; the second call forces it."""
        (self.forced if self.requested.is_set() else self.requested).set()

    def request_once(self) -> None:
        """Request a graceful shutdown; further calls do not force it."""
        self.requested.set()

    def force(self) -> None:
        """Request a shutdown at once."""
        self.requested.set()
        self.forced.set()

    async def requested_within(self, seconds: float) -> bool:
        """Wait for a request, at most ``seconds``; return True if there is one."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.requested.wait(), seconds)
        return self.requested.is_set()

    async def unless_requested(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return the result of ``work``; cancel it and return None if a shutdown is requested first."""
        return await _unless(self.requested, work)

    async def unless_forced(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return the result of ``work``; cancel it and return None if a shutdown is forced first."""
        return await _unless(self.forced, work)


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    task: asyncio.Task[Any] = asyncio.create_task(work)
    waiting: asyncio.Task[Any] = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await cancel_and_wait(task, waiting)


@contextlib.contextmanager
def shutdown_on_signals(shutdown: Shutdown) -> Iterator[None]:
    """Request a shutdown on Ctrl-C, SIGTERM and a closed terminal (unless ``nohup`` has disabled that)."""
    loop = asyncio.get_running_loop()
    last_at = float("-inf")

    def terminate() -> None:
        """Request once for several SIGTERMs of one stop: to the process group, and passed on by a parent process."""
        nonlocal last_at
        now = loop.time()
        if now - last_at >= ONE_STOP_S:
            last_at = now
            shutdown.request()

    handled = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handled.append(signal.SIGHUP)
    for number in handled:
        loop.add_signal_handler(number, terminate if number == signal.SIGTERM else shutdown.request)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


def shutdown_when_stdin_closes(shutdown: Shutdown) -> None:
    """Request a shutdown at the end of standard input: the process that started this one with a pipe is gone."""
    loop = asyncio.get_running_loop()

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(shutdown.request_once)

    # A thread, because a loop can watch a pipe or a terminal, but neither a file nor /dev/null.
    threading.Thread(target=watch, name="stdin", daemon=True).start()
