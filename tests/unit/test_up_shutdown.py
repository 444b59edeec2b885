"""The signals that shut a command down."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from coord.up import shutdown as shutdown_module
from coord.up.shutdown import Shutdown, shutdown_on_signals
from tests.waiting import wait_until


async def test_several_sigterms_of_one_stop_count_once() -> None:
    """The process group gets one, and a parent process passes its own on; Ctrl-C after that forces the shutdown."""
    shutdown, handled = Shutdown(), asyncio.Event()
    loop = asyncio.get_running_loop()
    with shutdown_on_signals(shutdown):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            await wait_until(shutdown.requested.is_set, "it is requested")
        loop.add_signal_handler(signal.SIGUSR1, handled.set)
        os.kill(os.getpid(), signal.SIGUSR1)  # signals are handled in their order
        await wait_until(handled.is_set, "the second one is handled")
        loop.remove_signal_handler(signal.SIGUSR1)
        assert not shutdown.forced.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await wait_until(shutdown.forced.is_set, "it is forced")


async def test_a_later_sigterm_forces_the_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGTERM after the interval of one stop is another stop."""
    shutdown = Shutdown()
    monkeypatch.setattr(shutdown_module, "ONE_STOP_S", 0.0)
    with shutdown_on_signals(shutdown):
        os.kill(os.getpid(), signal.SIGTERM)
        await wait_until(shutdown.requested.is_set, "it is requested")
        os.kill(os.getpid(), signal.SIGTERM)
        await wait_until(shutdown.forced.is_set, "it is forced")
