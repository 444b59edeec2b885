"""A client that is closed while others wait, or used where it was not opened."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coord import Client, TaskSpec
from coord.client import connection as caller
from coord.config import Settings
from coord.connection import wait_for_server
from coord.embedded import EmbeddedServer
from coord.errors import ConfigError, FactInvalid, ResultTimeout, TaskFailed
from tests.client.played_workers import PlayedWorkers
from tests.waiting import wait_until

CLOSED = "the client was closed while this was waited for"


async def test_whoever_waits_is_told_that_the_client_was_closed(workers: PlayedWorkers) -> None:
    """For a result, for the first of several, for a task to be taken, for an answer: no wait is endless."""
    client = workers.client
    taken, waiting = await client.submit_many([TaskSpec(task_type="echo")] * 2)
    await workers.answer(taken.entry_id)  # of both: they share an entry
    await waiting.accepted(timeout=5)
    other = await client.submit("echo")

    async def first() -> None:
        async for _ in client.as_completed([taken, waiting]):
            pass

    waits = [taken.result(), taken.result(timeout=60), first(), other.accepted(), client.cancel("t", timeout=60)]
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await wait_until(lambda: taken._watch.waiters == 3 and client.connection.watcher._awaited_answers, "all wait")
    await client.close()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert [type(one) for one in results] == [ConfigError] * 5
    assert all(CLOSED in str(one) for one in results)


async def test_what_is_known_is_known_when_the_client_is_closed(workers: PlayedWorkers) -> None:
    """A result that came can still be asked for; one that did not says what is the matter."""
    known, unknown = await workers.client.submit_many([TaskSpec(task_type="echo")] * 2)
    await workers.answer(known.entry_id)
    await workers.reply(type="task.completed", task_id=known.task_id, data=b"9")
    assert await known.result(timeout=5) == 9
    failed = await workers.client.submit("echo")
    await workers.answer(failed.entry_id)
    await workers.reply(type="task.failed", task_id=failed.task_id, data=b'{"code":"no_luck","message":"m"}')
    await wait_until(lambda: failed.done, "it has failed")
    with pytest.raises(ResultTimeout):
        await workers.client.cancel("t", timeout=0.01)
    assert not workers.client.connection.watcher._awaited_answers, "what was asked is not kept"
    await workers.client.close()
    assert await known.result() == 9
    with pytest.raises(TaskFailed, match="no_luck: m"):
        await failed.result()
    with pytest.raises(ConfigError, match="async with"):
        await unknown.result()
    await workers.client.close()


async def test_what_has_ended_is_told_by_a_closed_client_too(workers: PlayedWorkers) -> None:
    """Those that are done come; the others say what is the matter."""
    done, waiting = await workers.client.submit_many([TaskSpec(task_type="echo")] * 2)
    await workers.answer(done.entry_id)
    await workers.reply(type="task.completed", task_id=done.task_id, data=b"9")
    await wait_until(lambda: done.done, "it has ended")
    await workers.client.close()
    assert [handle async for handle in workers.client.as_completed([done])] == [done]
    with pytest.raises(ConfigError, match="async with"):
        await anext(workers.client.as_completed([waiting]))


async def test_who_asks_again_and_again_which_ended_leaves_nothing_behind(workers: PlayedWorkers) -> None:
    """A wait that is over is forgotten, by the outcome as by the answer."""
    handle = await workers.client.submit("echo")
    for _ in range(3):
        with pytest.raises(ResultTimeout):
            await anext(workers.client.as_completed([handle], timeout=0.01))
    assert not handle._watch.waiters
    assert handle._answer is not None
    for future in (handle._watch.outcome.future(), handle._answer.future()):
        assert not future._callbacks


async def test_a_client_that_is_opened_twice_at_once_is_opened_once(
    server: EmbeddedServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes second finds what the first one uses already, and takes nothing away from it."""
    go_on = asyncio.Event()

    async def wait(*given: Any, **options: Any) -> None:
        await wait_for_server(*given, **options)
        await go_on.wait()

    client = Client(server.url, settings=settings)
    with monkeypatch.context() as patch:
        patch.setattr(caller, "wait_for_server", wait)
        second = asyncio.create_task(client.open())
        await asyncio.sleep(0)  # it is on its way
    await client.open()
    redis, watcher = client.connection.redis, client.connection.watcher
    asking = asyncio.create_task(client.cancel("t", timeout=60))
    await wait_until(lambda: watcher._awaited_answers, "it is waited for")
    go_on.set()
    await second
    assert (client.connection.redis, client.connection.watcher) == (redis, watcher)
    await client.close()
    with pytest.raises(ConfigError, match=CLOSED):
        await asyncio.wait_for(asking, 5)


async def test_a_handle_goes_on_with_a_client_that_was_opened_again(workers: PlayedWorkers) -> None:
    """An outcome from the time in between is found in the record."""
    handle = await workers.client.submit("echo")
    await workers.client.close()
    await workers.client.open()
    await workers.consume(handle.entry_id)
    await workers.record(handle.task_id, "completed", result=b"[1]")
    assert await handle.result(timeout=10) == [1]


async def test_a_timeout_is_told_as_it_was_given(workers: PlayedWorkers) -> None:
    """Not what was left of it; and what is no time is refused."""
    handle = await workers.client.submit("echo")
    await workers.answer(handle.entry_id)
    with pytest.raises(ResultTimeout, match=r"was not finished within 0\.25 s; it goes on"):
        await handle.result(timeout=0.25)
    for odd in (float("nan"), float("inf"), "1", True):
        with pytest.raises(FactInvalid, match="timeout: expected a number of seconds"):
            await handle.result(timeout=odd)  # type: ignore[arg-type]


def test_a_client_belongs_to_the_loop_that_it_was_opened_in(server: EmbeddedServer, settings: Settings) -> None:
    """Elsewhere it says so; when that loop is over it may be opened again."""
    client = Client(server.url, settings=settings)

    async def use() -> None:
        await client.submit("echo")

    async def open_and_use_elsewhere() -> None:
        await client.open()
        with pytest.raises(ConfigError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, use())
        with pytest.raises(ConfigError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, client.close())
        await use()
        # It is not closed; only its connections are, which would be warned of when they are found.
        await client.connection.watcher.close()
        await client.connection.redis.aclose()

    async def open_again() -> None:
        with pytest.raises(ConfigError, match="another event loop"):
            await use()
        await client.open()
        await use()
        await client.close()

    asyncio.run(open_and_use_elsewhere())
    with pytest.raises(ConfigError, match="another event loop"):
        client.handle("t1")
    asyncio.run(open_again())


async def test_a_close_that_is_given_up_goes_on(workers: PlayedWorkers) -> None:
    """Nothing of it is left at work, and no connection."""
    client = workers.client
    await client.submit("echo")
    redis, tasks = client.connection.redis, list(client.connection.watcher._tasks)
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await wait_until(lambda: all(task.done() for task in tasks), "it reads no more")
    pool: Any = redis.connection_pool
    await wait_until(lambda: not pool._in_use_connections, "nothing is in use")
    await wait_until(lambda: not any(one.is_connected for one in pool._available_connections), "all is disconnected")
