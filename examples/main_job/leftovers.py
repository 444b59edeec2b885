"""What an earlier run of the job left unfinished: it was ended in the middle, and nobody waits for it any more."""

from __future__ import annotations

import asyncio
import contextlib

from redis import exceptions as redis_errors

from coord import Client, queries
from coord.errors import CoordError
from coord.models.tasks import TERMINAL, TaskState

#: How the id of every task of the job begins.
PREFIX = "main-job-"
#: Requests under way at a time.
AT_ONCE = 500
#: How long the distributor, which has just been started, may take to answer one.
ANSWER_S = 10.0

UNFINISHED = tuple(state for state in TaskState if state not in {*TERMINAL, TaskState.REFUSED})


async def cancel_leftovers(client: Client) -> int:
    """Cancel every unfinished task of earlier runs; how many there were.

    To be called before this run submits anything, and in a cell that no other run shares.
    """
    left: list[str] = []
    place: str | None = None
    while True:
        page = await queries.task_page(client.redis, client.keys, states=UNFINISHED, limit=AT_ONCE, cursor=place)
        left += [one.task_id for one in page.tasks if one.task_id.startswith(PREFIX)]
        place = page.next
        if place is None:
            break
    for begin in range(0, len(left), AT_ONCE):
        await asyncio.gather(*(_cancel(client, task_id) for task_id in left[begin : begin + AT_ONCE]))
    return len(left)


async def _cancel(client: Client, task_id: str) -> None:
    # It may have ended meanwhile; or Redis is away, and it is done beside this run's tasks.
    with contextlib.suppress(CoordError, redis_errors.RedisError, OSError):
        await client.cancel(task_id, "its run was ended in the middle", wait=ANSWER_S)
