"""The signals that stop a process with agents, and what its forked children do not inherit of them.

A child that a handler forks (``multiprocessing`` with the fork method) would inherit the signal handlers of the agent
and the descriptor that wakes its event loop. A SIGTERM to the child would then stop the agent instead of the child.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from coord.standard_streams import flush

#: The signals that stop the agents.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Seconds within which several signals count as one stop: a service manager sends one to each process, and a parent
#: process passes its own on.
ONE_STOP_S = 1.0

_before_fork = threading.local()
_is_handling = False


class StopSignals:
    """Handles the stop signals in the running event loop, as a context manager.

    Args:
        on_stop: called with the signal and the number of stops so far, 1 for the first.
    """

    def __init__(self, on_stop: Callable[[signal.Signals, int], None]) -> None:
        self._on_stop = on_stop
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self._last_at = float("-inf")

    def __enter__(self) -> Self:
        global _is_handling  # noqa: PLW0603 -- signal handlers belong to the process
        _is_handling = True
        for number in STOP_SIGNALS:
            self._loop.add_signal_handler(number, self._receive, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _is_handling  # noqa: PLW0603 -- same
        for number in STOP_SIGNALS:
            self._loop.remove_signal_handler(number)
        _is_handling = False

    def _receive(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if now - self._last_at < ONE_STOP_S:
            return
        self._last_at = now
        self._count += 1
        self._on_stop(number, self._count)


def exit_at_once(code: int) -> None:
    """End this process and the processes that its handlers started with ``multiprocessing``, without a cleanup."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None:
        for child in multiprocessing.active_children():
            child.kill()
    flush()
    os._exit(code)


def _block_signals() -> None:
    """Block the stop signals in the thread that forks, so that the child gets none before its handlers are replaced."""
    _before_fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS) if _is_handling else None


def _unblock_signals() -> None:
    mask = getattr(_before_fork, "mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _reset_signals() -> None:
    """Give a forked child the default signal handlers, and no part of the event loop of its parent."""
    global _is_handling  # noqa: PLW0603 -- same
    if _is_handling:
        _is_handling = False
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _unblock_signals()


if sys.platform != "win32":
    os.register_at_fork(before=_block_signals, after_in_parent=_unblock_signals, after_in_child=_reset_signals)
