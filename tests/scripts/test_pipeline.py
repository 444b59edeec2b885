"""One round trip of packed commands: each answer stands where its command stood, whatever comes between them."""

from __future__ import annotations

from typing import Any

import pytest
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from coord.pipeline import pack, send_and_read

LOADING = pack(("EVAL", "return redis.error_reply('LOADING for a while')", 0))


def echoes(count: int, size: int = 10) -> list[bytes]:
    """Commands whose answers differ."""
    return [pack(("ECHO", f"{number}".zfill(size))) for number in range(count)]


@pytest.mark.parametrize("size", [10, 1_000])
async def test_answers_come_in_order(redis: Redis, size: int) -> None:
    """As many as come in one piece, and as many as come in a hundred."""
    answers = await send_and_read(redis, echoes(5_000, size))
    assert [int(one) for one in answers] == list(range(5_000))
    assert len(answers[0]) == size


async def test_an_error_stands_in_the_place_of_its_answer(redis: Redis) -> None:
    """First, in the middle, last; the others ran, and the connection is as good as before."""
    wrong = pack(("NOSUCH",))
    answers = await send_and_read(redis, [wrong, *echoes(2), wrong, *echoes(1), wrong])
    assert [isinstance(one, redis_errors.ResponseError) for one in answers] == [True, False, False, True, False, True]
    assert await send_and_read(redis, echoes(1)) == [b"0" * 10]
    with pytest.raises(redis_errors.ResponseError, match="NOSUCH"):
        await send_and_read(redis, [*echoes(2), wrong], to_raise=True)


@pytest.mark.parametrize("before", [0, 3])
async def test_a_server_that_does_not_serve_is_no_answer(redis: Redis, before: int) -> None:
    """It is as if the connection had been lost; answers that were still to come are dropped."""
    with pytest.raises(redis_errors.BusyLoadingError):
        await send_and_read(redis, [*echoes(before), LOADING, *echoes(5)])
    assert await send_and_read(redis, [pack(("ECHO", "mine"))]) == [b"mine"]


async def test_what_the_server_says_unasked_is_no_answer(redis: Redis) -> None:
    """A notice between two answers is passed over."""
    tracked = [pack(("CLIENT", "TRACKING", "ON")), pack(("GET", "seen"))]
    await send_and_read(redis, tracked)
    answers: list[Any] = await send_and_read(redis, [pack(("SET", "seen", "1", "EX", 60)), *tracked, *echoes(2)])
    assert answers[2:] == [b"1", b"0000000000", b"0000000001"]
