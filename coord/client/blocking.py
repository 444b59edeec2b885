"""Coroutines for programs without an event loop: one background loop per process, in a thread of its own.

The thread is started at the first call and ends with the process. Any number of threads may call. A forked child has
the memory of the loop and not its thread, so it starts another one: nothing of the parent's loop is touched there,
since both processes share its sockets.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import selectors
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from coord.errors import ConfigError

T = TypeVar("T")

#: Seconds that the loop has to end at the exit of the process.
EXIT_S = 5.0

#: The selector keeps its list of sockets in this process. One of the kernel's (epoll, kqueue) is shared with a forked
#: child, where the end of a connection would take it away from the parent.
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that is closed in every process but its own."""

    def __init__(self) -> None:
        super().__init__(_Selector())
        self._process = os.getpid()

    def is_closed(self) -> bool:
        return super().is_closed() or self._process != os.getpid()


class BackgroundLoop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = _Loop()
        self._thread = threading.Thread(target=self._serve, name="coord-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the loop, and wait for what it returns or raises.

        A caller that is interrupted (Ctrl-C), or waits longer than ``timeout`` seconds, cancels it.

        Raises:
            ConfigError: called on the loop itself, which would wait for itself.
        """
        if self.is_current():
            work.close()
            raise ConfigError("a SyncClient cannot be called on its own event loop; use Client there")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            if _process.is_ending and threading.current_thread().daemon:
                threading.Event().wait()  # the process ends without this thread, and without its traceback
            raise
        finally:
            del future  # an exception holds this frame

    def start(self, work: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine on the loop without waiting for it."""
        asyncio.run_coroutine_threadsafe(work, self._loop)

    def is_current(self) -> bool:
        """Return True on the loop's own thread."""
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        """Cancel what still runs, and end the thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        self._thread.join(EXIT_S)

    async def _end(self) -> None:
        running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=EXIT_S / 2)
        await self._loop.shutdown_asyncgens()
        self._loop.stop()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()


class _Process:
    """What there is once in each process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # the collector of cycles may come in while it is held
        self.generation = 0  #: how many forks lie between this process and the first one
        self.loop: BackgroundLoop | None = None
        self.at_exit: list[Callable[[BackgroundLoop], None]] = []
        self.is_ending = False
        #: Of the process that this one was forked from. Kept, because their end would close its connections politely.
        self.inherited: list[object] = []

    def forked(self) -> None:
        """Start over in a forked child."""
        self.lock = threading.RLock()  # another thread may have held it
        self.generation += 1
        self.inherited.append(self.loop)
        self.loop = None

    def end(self) -> None:
        """Close everything at the exit of the process."""
        with self.lock:
            loop, self.loop, self.is_ending = self.loop, None, True
        if loop is None:
            return
        for close in self.at_exit:
            with contextlib.suppress(Exception):  # the exit goes on
                close(loop)
        loop.stop()


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.forked)
atexit.register(_process.end)


def background_loop() -> BackgroundLoop:
    """Return the loop of this process; start it if there is none.

    Raises:
        ConfigError: the process is ending.
    """
    with _process.lock:
        if _process.is_ending:
            raise ConfigError("the process is ending: no SyncClient can be used any more")
        if _process.loop is None:
            _process.loop = BackgroundLoop()
        return _process.loop


def start_in_background(work: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Start a coroutine on the loop if that runs, without waiting for it; may be called by the collector of cycles."""
    loop = _process.loop
    if loop is not None:
        loop.start(work())


def exclusive() -> threading.RLock:
    """Return the lock of this process, for a moment's work."""
    return _process.lock


def generation() -> int:
    """Return a number that differs in a forked child from its parent's."""
    return _process.generation


def keep_inherited(value: object) -> None:
    """Keep what belongs to the parent of this process, so that nothing is closed that both share."""
    _process.inherited.append(value)


def call_at_exit(close: Callable[[BackgroundLoop], None]) -> None:
    """Call a function with the loop when the process ends."""
    _process.at_exit.append(close)
