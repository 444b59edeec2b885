"""Facts that coroutines of one client append at the same time travel together; each gets its own entry ids."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from coord.client import outbox
from coord.client.outbox import Outbox
from coord.connection import connect_worker
from coord.errors import ServerUnavailable
from coord.keys import Keys
from coord.models.facts import TaskCancelRequested
from coord.streams import Append, append_each
from tests.waiting import wait_until


def cancels(*task_ids: str, stream: str = "in:requests") -> list[Append]:
    """Facts to append."""
    return [Append(stream, TaskCancelRequested(task_id)) for task_id in task_ids]


class Post:
    """Stands between an outbox and Redis: counts round trips, and can hold them up."""

    def __init__(self) -> None:
        self.trips: list[int] = []  #: facts in each
        self.may_go = asyncio.Event()

    async def __call__(self, redis: Redis, packed: Sequence[bytes]) -> Any:
        """``append_each``, later."""
        self.trips.append(len(packed))
        await self.may_go.wait()
        return await append_each(redis, packed)


@pytest.fixture
def post(monkeypatch: pytest.MonkeyPatch) -> Post:
    """The way that facts go."""
    found = Post()
    monkeypatch.setattr(outbox, "append_each", found)
    return found


@pytest.fixture
def keys(namespace: str) -> Keys:
    """This test's own."""
    return Keys(namespace)


async def begin(box: Outbox, count: int, post: Post) -> list[asyncio.Task[list[str]]]:
    """So many calls: the first is under way, the others wait."""
    first = asyncio.create_task(box.append(cancels("t0")))
    await wait_until(lambda: post.trips, "the first is under way")
    return [first, *(await wait(box, *(cancels(f"t{number}") for number in range(1, count))))]


async def wait(box: Outbox, *batches: list[Append]) -> list[asyncio.Task[list[str]]]:
    """Calls that wait for the one that is under way."""
    before = len(box._waiting)
    calls = [asyncio.create_task(box.append(batch)) for batch in batches]
    await wait_until(lambda: len(box._waiting) == before + len(calls), "they wait")
    return calls


async def stored(redis: Redis, keys: Keys) -> list[tuple[str, str]]:
    """Entry id and data of what was appended."""
    entries: Any = await redis.xrange(keys.of("in:requests"))
    return [(entry.decode(), fields[b"data"].decode()) for entry, fields in entries]


async def test_what_comes_meanwhile_goes_in_the_next_round_trip(redis: Redis, keys: Keys, post: Post) -> None:
    """A hundred calls need two: in their order, and each hears its own ids."""
    box = Outbox(redis, keys)
    calls = await begin(box, 100, post)
    post.may_go.set()
    appended = await asyncio.gather(*calls)
    assert post.trips == [1, 99]
    expected = [(entry, f'{{"task_id":"t{number}"}}') for number, (entry,) in enumerate(appended)]
    assert expected == await stored(redis, keys)
    assert len(await box.append(cancels("a", "b", "c"))) == 3
    await box.close()


@pytest.mark.parametrize("limit", [("FACTS", 10), ("FACT_BYTES", 1_000)])
async def test_a_round_trip_is_bounded(
    redis: Redis, keys: Keys, post: Post, monkeypatch: pytest.MonkeyPatch, limit: tuple[str, int]
) -> None:
    """In facts and in bytes; what is too large for one by itself goes alone."""
    monkeypatch.setattr(outbox, *limit)
    box = Outbox(redis, keys)
    calls = await begin(box, 60, post)
    (large,) = await wait(box, [Append("in:requests", TaskCancelRequested("x", "y" * 2_000))] * 12)
    post.may_go.set()
    assert len(await large) == 12
    await asyncio.gather(*calls)
    assert len(post.trips) > 5
    assert (sum(post.trips), post.trips[-1], max(post.trips)) == (72, 12, 12)
    await box.close()


async def test_a_caller_that_gives_up_takes_back_what_was_not_sent(redis: Redis, keys: Keys, post: Post) -> None:
    """Facts of a cancelled call are not appended afterwards, unless they were in flight."""
    box = Outbox(redis, keys)
    calls = await begin(box, 4, post)
    for call in (calls[0], calls[2]):
        call.cancel()
    post.may_go.set()
    await asyncio.gather(*calls, return_exceptions=True)
    await box.append(cancels("last"))
    names = [data for _, data in await stored(redis, keys)]
    assert names == [f'{{"task_id":"{name}"}}' for name in ("t0", "t1", "t3", "last")]
    await box.close()


async def test_one_that_redis_refuses_fails_alone(redis: Redis, keys: Keys, post: Post) -> None:
    """Its companions are appended."""
    await redis.set(keys.of("in:control:router"), "no stream", ex=60)
    box = Outbox(redis, keys)
    calls = await begin(box, 3, post)
    wrong, more = await wait(box, cancels("w", stream="in:control:router"), cancels("m"))
    post.may_go.set()
    with pytest.raises(Exception, match="WRONGTYPE"):
        await wrong
    await asyncio.gather(*calls, more)
    assert len(await stored(redis, keys)) == 4
    await box.close()


async def test_a_lost_connection_is_told_to_all_and_the_next_are_tried(
    keys: Keys, settings: Any, unused_port: int, post: Post
) -> None:
    """Nobody waits for ever, and every call gets an error of its own."""
    redis = connect_worker(f"redis://127.0.0.1:{unused_port}", settings)
    box = Outbox(redis, keys)
    calls = await begin(box, 5, post)
    post.may_go.set()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(one) for one in errors} == {ServerUnavailable}
    with pytest.raises(ServerUnavailable, match="is safe"):
        await box.append(cancels("again"))
    assert post.trips == [1, 4, 1]
    await box.close()
    await redis.aclose()


async def test_closing_tells_who_waits(redis: Redis, keys: Keys, post: Post) -> None:
    """Those under way and those behind them."""
    box = Outbox(redis, keys)
    calls = await begin(box, 3, post)
    await box.close()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(one) for one in errors} == {ServerUnavailable}
    assert "closed" in str(errors[0])
