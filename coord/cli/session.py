"""Asking a cell: one coroutine with an open ``Client``, and errors that a person can do something about."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from coord.cli.options import settings_of
from coord.config import Settings

if TYPE_CHECKING:
    from coord import Client

T = TypeVar("T")

#: Seconds to wait for the server: a person sits there, and a script that wants longer tries again.
REACH_S = 5.0


def ask(work: Callable[[Client], Awaitable[T]], *, redis_url: str | None = None, namespace: str | None = None) -> T:
    """Run ``work`` with an open client; what it returns.

    Args:
        work: a function of the client, such as ``lambda client: client.task(task_id)``; Ctrl-C cancels it.
        redis_url: the option of that name.
        namespace: the option of that name.

    Raises:
        CoordError: a setting does not fit, Redis cannot be reached or refuses, or what ``work`` raised.
    """
    settings = settings_of(redis_url=redis_url, namespace=namespace)
    return asyncio.run(_ask(work, settings))


async def _ask(work: Callable[[Client], Awaitable[T]], settings: Settings) -> T:
    from coord.aio import cancel_and_wait

    working = asyncio.create_task(_work(work, settings))
    try:
        # Not awaited itself: Ctrl-C cancels once, and one cancel may get lost in there (see coord.aio).
        await asyncio.wait({working})
    except asyncio.CancelledError:
        await cancel_and_wait(working)
        raise
    return working.result()


async def _work(work: Callable[[Client], Awaitable[T]], settings: Settings) -> T:
    from redis.exceptions import RedisError

    from coord import Client
    from coord.connection import locate, read_failure, safe_url

    url, settings = locate(settings)
    async with Client(url, settings=settings, reach_s=REACH_S) as client:
        try:
            return await work(client)
        except RedisError as error:
            raise read_failure(error, safe_url(url)) from error
