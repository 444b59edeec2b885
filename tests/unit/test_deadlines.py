"""Limits of time with one timer for all of them."""

from __future__ import annotations

import asyncio

import pytest

from coord.gateway.deadlines import Deadlines


async def test_a_block_ends_at_its_limit() -> None:
    """Each at its own, the later one first or last; nothing is left of them."""
    deadlines = Deadlines()
    ended: list[float] = []

    async def wait(seconds: float) -> None:
        with pytest.raises(TimeoutError), deadlines.limit(seconds):
            await asyncio.Event().wait()
        ended.append(seconds)
        await asyncio.sleep(0)  # no cancel is left

    await asyncio.gather(*(wait(seconds) for seconds in (0.3, 0.001, 0.15)))
    assert ended == [0.001, 0.15, 0.3]
    assert not deadlines._limits


async def test_a_block_that_ends_before_its_limit_is_not_interrupted() -> None:
    """Nor is what follows it; its own errors pass."""
    deadlines = Deadlines()
    with deadlines.limit(0.05):
        await asyncio.sleep(0)
    with pytest.raises(KeyError), deadlines.limit(0.05):
        raise KeyError
    await asyncio.sleep(0.15)
    assert not deadlines._limits


async def test_a_cancel_from_elsewhere_stays_a_cancel() -> None:
    """Also if the limit is over at the same moment."""
    deadlines = Deadlines()

    async def wait() -> None:
        with deadlines.limit(60):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    (limit,) = deadlines._limits
    task.cancel()
    limit.expire()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_limits_may_be_nested() -> None:
    """The inner one ends the inner block, and the outer one goes on."""
    deadlines = Deadlines()
    ended: list[str] = []

    async def wait() -> None:
        try:
            with deadlines.limit(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            ended.append("inner")
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError), deadlines.limit(0.3):
        await wait()
    assert ended == ["inner"]
