"""Runs agents as a process: event loop, logs, and the signals that stop it.

A child that a handler forks (``multiprocessing`` with the fork method) would inherit the signal handlers of the agent
and the descriptor that wakes its event loop. A SIGTERM to the child would then stop the agent instead of the child. So
a child gets the default signal handlers, and no part of the event loop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from coord.background import cancel_and_wait
from coord.config import Settings
from coord.errors import ConfigError, CoordError
from coord.interrupts import end_on_interrupt
from coord.logs import get_logger
from coord.standard_streams import flush, open_missing

log = get_logger()


@runtime_checkable
class Runnable(Protocol):
    """The part of ``Agent`` that ``run`` needs."""

    agent_id: str
    settings: Settings
    has_abandoned: bool

    async def serve(self) -> None:
        """Start, and serve until ``stop`` is called."""

    async def stop(self, *, grace: float | None = None) -> None:
        """Shut down gracefully; a second call with ``grace`` shortens the shutdown."""


def run(*agents: Runnable, configure_logging: bool = True) -> None:
    """Serve all these agents until SIGTERM or SIGINT, then drain them for as long as their tasks take.

    A second signal gives running tasks back, and a third ends the process at once.

    They share one event loop (uvloop where it exists) and the connection for their writes. Blocks.

    Args:
        agents: each an ``Agent``.
        configure_logging: show the log on standard error, as the settings ``log_level`` and ``log_format`` say. What
            the program has configured itself stays: its configuration of structlog, and a root logger that has a
            handler. If False, nothing is configured, and a program that does not configure structlog sees only
            warnings and errors.

    Raises:
        ConfigError: it is called in an event loop or outside the main thread, or with no agent, or with one twice.
        SystemExit: in one line, why they cannot continue: Redis refuses the password (``ConfigError``), or a newer
            process took the id of one of them (``AgentSuperseded``) and the others were drained. The error is its
            cause; to handle it, serve the agents with ``Agent.serve``. If no Redis answers, they wait for one.
    """
    if not agents:
        raise ConfigError("name at least one agent to run")
    for agent in agents:
        if not isinstance(agent, Runnable):
            raise ConfigError(f"run() takes agents, not {type(agent).__name__}")
        if [other.agent_id for other in agents].count(agent.agent_id) > 1:
            raise ConfigError(f"agent '{agent.agent_id}' is named twice: one process at a time has an agent id, once")
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError("run() handles signals, so only the main thread can; elsewhere: asyncio.run(agent.serve())")
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        raise ConfigError("run() has an event loop of its own; within one: await agent.serve()")
    open_missing()  # before an event loop takes their place
    end_on_interrupt()  # until there is something to drain
    names = " ".join(agent.agent_id for agent in agents[:3]) + (" …" if len(agents) > 3 else "")
    if configure_logging:
        from coord.log_setup import configure_program  # after the imports of the program: it may use structlog

        configure_program(agents[0].settings, service=f"agent {names}")
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            runner.run(_serve(agents))
        except CoordError as error:
            raise SystemExit(f"{names}: {error}") from error
        if any(agent.has_abandoned for agent in agents):
            # A thread cannot be stopped, and the interpreter would wait for it. Its task was given back.
            log.warning("agent.leaves_handlers_behind")
            exit_at_once(1)


async def _serve(agents: tuple[Runnable, ...]) -> None:
    stopping, hurrying = asyncio.Event(), asyncio.Event()

    def on_stop(number: signal.Signals, count: int) -> None:
        if count == 1:
            log.info("agent.asked_to_stop", signal=number.name, hint="a second signal gives running tasks back")
            stopping.set()
        elif count == 2:
            log.warning("agent.asked_to_stop_now", signal=number.name, hint="a third signal ends the process at once")
            hurrying.set()
        else:
            exit_at_once(128 + number)

    with StopSignals(on_stop):
        await _serve_until(stopping, hurrying, agents)


async def _serve_until(stopping: asyncio.Event, hurrying: asyncio.Event, agents: tuple[Runnable, ...]) -> None:
    serving = [asyncio.create_task(agent.serve()) for agent in agents]
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([stop, *serving], return_when=asyncio.FIRST_COMPLETED)
        hurry = asyncio.create_task(_give_back(hurrying, agents))
        stopped = await asyncio.gather(*(agent.stop() for agent in agents), return_exceptions=True)
        await cancel_and_wait(hurry)
        for task in serving:
            if not task.done() and stopping.is_set():
                task.cancel()  # it was still waiting for Redis
        for outcome in (*await asyncio.gather(*serving, return_exceptions=True), *stopped):
            if isinstance(outcome, Exception):
                raise outcome
    finally:
        stop.cancel()


async def _give_back(hurrying: asyncio.Event, agents: tuple[Runnable, ...]) -> None:
    """Give back what still runs, once the drain is to be short."""
    await hurrying.wait()
    await asyncio.gather(*(agent.stop(grace=0) for agent in agents), return_exceptions=True)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # it does not exist for Windows
        return None
    return uvloop.new_event_loop


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
