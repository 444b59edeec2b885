"""The check from another thread that an event loop is not blocked, one check after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from coord.agent.loop_watch import PULSE_S, LoopWatch


class BusyLoop:
    """A loop that runs and calls nothing until ``answer``."""

    def __init__(self) -> None:
        self.posted: list[Callable[..., object]] = []

    def is_closed(self) -> bool:
        """Return False."""
        return False

    def is_running(self) -> bool:
        """Return True."""
        return True

    def call_soon_threadsafe(self, callback: Callable[..., object], *_args: object, **_options: object) -> Any:
        """Keep the callback."""
        self.posted.append(callback)

    def answer(self) -> None:
        """Call what was posted."""
        for callback in self.posted:
            callback()
        self.posted.clear()


def test_a_loop_is_blocked_after_a_second_and_not_before(capfd: pytest.CaptureFixture[str]) -> None:
    """A handler that computes for less than that is no reason for a warning; there is one warning for each block."""
    loop = BusyLoop()
    watch = LoopWatch(cast("asyncio.AbstractEventLoop", loop), 0, cast("asyncio.AbstractEventLoop", loop))
    for _ in range(3):
        for _ in range(round(1 / PULSE_S)):  # the first check only asks
            watch.tick()
        assert not watch.is_blocked
        loop.answer()
    assert "agent.loop_blocked" not in "".join(capfd.readouterr())
    for _ in range(round(1 / PULSE_S) + 1):
        watch.tick()
    assert watch.is_blocked
    watch.tick()
    assert "".join(capfd.readouterr()).count("agent.loop_blocked") == 1
