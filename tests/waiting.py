"""Waiting in tests: for a named thing to become true, never for a time."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

#: Between two looks, in seconds: short beside any wait, long beside a look.
POLL_S = 0.01


@overload
async def wait_until(predicate: Callable[[], Awaitable[T]], what: str, timeout: float = 30.0) -> T: ...
@overload
async def wait_until(predicate: Callable[[], T], what: str, timeout: float = 30.0) -> T: ...
async def wait_until(predicate: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
    """Look until ``predicate`` (sync or async) is true and return what it said.

    Args:
        predicate: called again and again.
        what: what is awaited, as a sentence's end: "the task is assigned".
        timeout: seconds.

    Raises:
        AssertionError: it did not become true in time; names ``what`` and the last answer.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        answer = predicate()
        value = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if loop.time() >= deadline:
            raise AssertionError(f"not within {timeout:g} s: {what} (last answer: {value!r})")
        await asyncio.sleep(POLL_S)
