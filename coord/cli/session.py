"""The session of a command: its settings, and an open ``Client`` whose errors say what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from coord.config import Settings, load, option_of

if TYPE_CHECKING:
    from coord import Client

T = TypeVar("T")

#: Seconds to wait for the server: a person is waiting, and a script can retry.
REACH_S = 5.0


def settings_of(*, redis_url: str | None, namespace: str | None, **others: Any) -> Settings:
    """Return the settings of a command: its options take precedence over the environment; None means not given.

    Raises:
        ConfigError: an option or a variable is invalid; names it.
    """
    if redis_url:
        from coord.connection import check_url  # imports the Redis client, which every command with a URL needs

        check_url(redis_url, option_of("redis_url"))
    return load(redis_url=redis_url, namespace=namespace, **others)


def ask(work: Callable[[Client], Awaitable[T]], *, redis_url: str | None = None, namespace: str | None = None) -> T:
    """Run ``work`` with an open client and return its result.

    Args:
        work: a function of the client, such as ``lambda client: client.task(task_id)``; Ctrl-C cancels it.
        redis_url: the option of that name.
        namespace: the option of that name.

    Raises:
        CoordError: a setting is invalid, Redis is unavailable or refuses a command, or ``work`` raised it.
    """
    settings = settings_of(redis_url=redis_url, namespace=namespace)
    return asyncio.run(_ask(work, settings))


async def _ask(work: Callable[[Client], Awaitable[T]], settings: Settings) -> T:
    from coord.aio import cancel_and_wait

    working = asyncio.create_task(_work(work, settings))
    try:
        # Not awaited directly: Ctrl-C cancels once, and one cancel may get lost in there (see coord.aio).
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
