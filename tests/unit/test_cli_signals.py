"""The signals that stop a command."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from coord.cli import signals
from coord.cli.signals import stop_on_signals
from coord.up.shutdown import Stop
from tests.waiting import wait_until


async def test_several_sigterms_of_one_stop_count_once() -> None:
    """The process group gets one, and a parent process passes its own on; Ctrl-C after that is urgent."""
    stop = Stop()
    with stop_on_signals(stop):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            await wait_until(stop.asked.is_set, "it is asked to stop")
            await asyncio.sleep(0)
        assert not stop.urgent.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await wait_until(stop.urgent.is_set, "it is urgent")


async def test_a_later_sigterm_is_urgent(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a second it is another stop."""
    stop = Stop()
    monkeypatch.setattr(signals, "ONE_STOP_S", 0.0)
    with stop_on_signals(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        await wait_until(stop.asked.is_set, "it is asked to stop")
        os.kill(os.getpid(), signal.SIGTERM)
        await wait_until(stop.urgent.is_set, "it is urgent")
