"""A value that is set once reaches every waiter, before or after."""

from __future__ import annotations

import asyncio
import gc

import pytest

from coord.client.outcomes import LazyFuture, Watch
from coord.errors import ConfigError


async def test_it_is_there_for_those_who_ask_before_and_after() -> None:
    """All get the first value; later ones change nothing."""
    value: LazyFuture[str] = LazyFuture()
    early = [value.future(), value.future()]
    assert (value.done, value.value) == (False, None)
    value.set_result("first")
    value.set_result("second")
    assert (value.done, value.value) == (True, "first")
    assert [await one for one in (*early, value.future())] == ["first"] * 3


async def test_who_gives_up_does_not_take_it_from_those_who_ask_later() -> None:
    """A wait that was cancelled, before the value is set or without another waiter."""
    value: LazyFuture[int] = LazyFuture()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(value.future(), 0.01)
    again = value.future()
    value.set_result(7)
    assert await again == 7
    gone: LazyFuture[int] = LazyFuture()
    gone.future().cancel()
    gone.set_result(8)
    assert gone.value == await gone.future() == 8


async def test_who_waits_may_be_told_that_it_will_not_come() -> None:
    """The error reaches those who wait now; later waiters may get the value. Without a waiter there is no warning."""
    warned: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: warned.append(context))
    value: LazyFuture[int] = LazyFuture()
    value.set_exception(ConfigError("closed"))
    waiting = value.future()
    value.set_exception(ConfigError("closed"))
    again = value.future()
    value.set_result(7)
    with pytest.raises(ConfigError):
        await waiting
    assert await again == 7
    value.set_exception(ConfigError("closed"))
    assert await value.future() == 7
    unawaited: LazyFuture[int] = LazyFuture()
    unawaited.future()
    unawaited.set_exception(ConfigError("closed"))
    gc.collect()
    assert not warned


def test_what_nobody_waits_for_is_nothing_for_the_collector_of_cycles() -> None:
    """A bulk of tasks leaves one watch each: visiting them again and again was a fifth of the client's work."""
    assert not gc.is_tracked(LazyFuture())
    assert not gc.is_tracked(Watch("t1", 3.0, "0"))


def test_a_future_of_a_loop_that_is_over_is_nobodys() -> None:
    """A handle may be awaited in one event loop after the other; a wait that ended in the first gets nothing."""
    results: list[int] = []
    value: LazyFuture[int] = LazyFuture()

    async def give_up() -> None:
        value.future().add_done_callback(lambda future: results.append(future.result()))
        await asyncio.wait([value.future()], timeout=0.01)

    async def wait_for_value() -> int:
        waiting = asyncio.create_task(asyncio.wait([value.future()]))
        await asyncio.sleep(0)
        value.set_result(7)
        await asyncio.wait_for(waiting, 5)
        return await value.future()

    asyncio.run(give_up())
    assert asyncio.run(wait_for_value()) == 7
    value = LazyFuture()
    asyncio.run(give_up())
    value.set_result(8)
    assert (value.value, results) == (8, [])
