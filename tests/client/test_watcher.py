"""Of which submission an outcome is: of several under one id, before and after a retry, when replies are read again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from coord import Client
from coord.background import cancel_and_wait
from coord.client import watcher
from coord.client.handle import TaskHandle
from coord.errors import IdConflict, ResultTimeout, ServerUnavailable, TaskFailed
from coord.streams import Append
from tests.client.played_workers import PlayedWorkers
from tests.waiting import wait_until


async def lose_connections(workers: PlayedWorkers) -> None:
    """Cut all connections but the test's, so that the client reads its replies again."""
    await workers.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def read_all(workers: PlayedWorkers, client: Client) -> None:
    """Return when the client has read its replies up to now, from wherever it reads them."""
    asking = asyncio.create_task(client.connection.watcher.wait_for_answer(("in:requests", "9-9"), 20))
    await asyncio.sleep(0)  # it is expected from now on
    await workers.answer("9-9", stream="in:requests")
    assert await asking is not None


async def fail(workers: PlayedWorkers, handle: TaskHandle) -> None:
    """Let the task fail and its client know."""
    await workers.answer(handle.entry_id)
    await workers.consume(handle.entry_id)
    error = b'{"code":"no_luck","message":"m"}'
    await workers.record(handle.task_id, "failed", error=error)
    await workers.reply(type="task.failed", task_id=handle.task_id, data=error)
    with pytest.raises(TaskFailed):
        await handle.result(timeout=5)


async def retried(workers: PlayedWorkers, task_id: str) -> TaskHandle:
    """Have the client try a failed task again; the handle that it is given."""
    stream = workers.keys.of("in:control:distributor")
    asking = asyncio.create_task(workers.client.admin.retry(task_id, timeout=20))
    found: Any = await wait_until(lambda: workers.redis.xrange(stream), "the request is there")
    ((entry, _),) = found
    await workers.record(task_id, "queued")
    await workers.answer(entry.decode(), stream="in:control:distributor")
    return await asking


@pytest.mark.guarantee("outcome-of-this-submission")
async def test_the_failure_before_a_retry_is_not_its_outcome(
    workers: PlayedWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is still among the replies, which a client reads again, in steps, when its connection was lost."""
    monkeypatch.setattr(watcher, "COUNT", 1)
    await fail(workers, await workers.client.submit("echo", task_id="t-1"))
    again = await retried(workers, "t-1")
    await lose_connections(workers)
    await read_all(workers, workers.client)
    with pytest.raises(ResultTimeout):
        await again.result(timeout=0.2)
    await workers.reply(type="task.completed", task_id="t-1", data=b"1")
    assert await again.result(timeout=5) == 1


async def test_the_outcome_of_a_task_that_was_forgotten_is_not_of_its_next_submission(workers: PlayedWorkers) -> None:
    """The same client uses the id again, and the replies are read again."""
    await fail(workers, await workers.client.submit("echo", task_id="t-1"))
    await workers.redis.delete(workers.keys.task("t-1"))
    again = await workers.client.submit("echo", task_id="t-1")
    await workers.answer(again.entry_id)
    await workers.consume(again.entry_id)
    await workers.record("t-1", "queued")
    await lose_connections(workers)
    await read_all(workers, workers.client)
    assert not again.done
    await workers.reply(type="task.completed", task_id="t-1", data=b"1")
    assert await again.result(timeout=5) == 1


async def test_an_outcome_that_was_lost_with_the_replies_is_found_though_time_went_back(
    workers: PlayedWorkers,
) -> None:
    """A fail-over left replies with earlier ids than were read: they are no hint any more, the record is."""
    client = workers.client
    await workers.redis.xadd(workers.keys.replies(client.caller), {"type": "x"}, id="9999999999999-0")
    handle = await client.submit("echo")
    await read_all(workers, client)
    await workers.redis.delete(workers.keys.replies(client.caller))
    await lose_connections(workers)
    later = await client.submit("echo")
    for one in (handle, later):
        await workers.consume(one.entry_id)
        await workers.record(one.task_id, "completed", result=b"1")
        assert await one.result(timeout=5) == 1


@pytest.mark.guarantee("outcome-of-this-submission")
async def test_a_record_of_another_submission_is_not_taken_for_this_ones(workers: PlayedWorkers) -> None:
    """Another client used the id first: while no distributor has read this submission, nothing is known of it."""
    await workers.record("same", "completed", result=b"1")
    handle = await workers.client.submit("echo", 2, task_id="same")
    with pytest.raises(ResultTimeout, match="not accepted within"):
        await handle.result(timeout=0.3)
    await workers.answer(handle.entry_id, "id_conflict")
    await workers.consume(handle.entry_id)
    with pytest.raises(IdConflict):
        await handle.result(timeout=5)


async def answered_unread(workers: PlayedWorkers, code: str = "") -> TaskHandle:
    """A submission under an id of someone else's, consumed and answered, by a client that reads no replies any more."""
    handle = await workers.client.submit("echo", 2, task_id="same")
    await read_all(workers, workers.client)
    await cancel_and_wait(workers.client.connection.watcher._tasks[0])
    await workers.record("same", "completed", result=b"1")
    await workers.answer(handle.entry_id, code)
    await workers.consume(handle.entry_id)
    with pytest.raises(ResultTimeout):
        await handle.result(timeout=0.3)
    return handle


@pytest.mark.guarantee("outcome-of-this-submission")
async def test_a_conflict_that_was_told_is_read_before_the_record_counts(workers: PlayedWorkers) -> None:
    """The submission was consumed, and its answer lies among the replies that are still to be read."""
    handle = await answered_unread(workers, "id_conflict")
    watching = workers.client.connection.watcher
    watching._tasks[0] = asyncio.create_task(watching._read_replies())
    with pytest.raises(IdConflict):
        await handle.result(timeout=5)


async def test_answers_that_were_lost_are_not_waited_for(workers: PlayedWorkers) -> None:
    """What was replied last is gone with a fail-over, before it was read: the record counts then."""
    handle = await answered_unread(workers)
    await workers.redis.delete(workers.keys.replies(workers.client.caller))
    assert await handle.result(timeout=5) == 1


async def test_a_submission_waits_for_its_own_answer_where_its_task_is_known(workers: PlayedWorkers) -> None:
    """The id was looked up before and is at work: that says nothing of what is submitted under it now."""
    client = workers.client
    await workers.record("same", "running")
    known = client.handle("same")
    with pytest.raises(ResultTimeout):
        await known.result(timeout=0.2)
    handle = await client.submit("echo", 2, task_id="same")
    with pytest.raises(ResultTimeout, match="not accepted within"):
        await handle.accepted(timeout=0.2)
    await workers.answer(handle.entry_id, "id_conflict")
    with pytest.raises(IdConflict):
        await handle.result(timeout=5)
    await workers.record("same", "completed", result=b"1")
    assert await known.result(timeout=5) == 1


async def test_all_submissions_of_a_client_under_one_id_hear_of_its_end(workers: PlayedWorkers) -> None:
    """The replies tell of the task once; none of them has to find it in the record."""
    handles = [await workers.client.submit("echo", task_id="same") for _ in range(3)]
    for handle in handles:
        await workers.answer(handle.entry_id)
    await workers.reply(type="task.completed", task_id="same", data=b"1")
    assert [await handle.result(timeout=5) for handle in handles] == [1, 1, 1]


async def test_a_submission_that_failed_leaves_those_who_look_the_task_up(
    workers: PlayedWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be in its stream or not: a handle by id returns what is recorded."""
    client = workers.client
    appending = asyncio.Event()

    async def stall(_batch: object) -> list[str]:
        appending.set()
        await asyncio.sleep(0.2)
        raise ServerUnavailable("away")

    monkeypatch.setattr(client.connection, "append", stall)
    submitting = asyncio.create_task(client.submit("echo", task_id="same"))
    await appending.wait()
    await workers.record("same", "completed", result=b"1")
    looking = asyncio.create_task(client.handle("same").result(timeout=5))
    with pytest.raises(ServerUnavailable):
        await submitting
    assert await looking == 1


async def test_while_a_submission_is_being_appended_a_record_is_not_of_it(
    workers: PlayedWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others who wait for the task have its record looked at; that says nothing of what is under way."""
    client = workers.client
    append = client.connection.append
    go_on = asyncio.Event()

    async def stall(batch: Sequence[Append]) -> list[str]:
        await go_on.wait()
        return await append(batch)

    monkeypatch.setattr(client.connection, "append", stall)
    submitting = asyncio.create_task(client.submit("echo", 2, task_id="same"))
    await asyncio.sleep(0)  # it is watched from now on
    await workers.record("same", "completed", result=b"1")
    with pytest.raises(ResultTimeout):
        await client.handle("same").result(timeout=0.3)
    go_on.set()
    handle = await submitting
    with pytest.raises(ResultTimeout):
        await handle.result(timeout=0.3)
    await workers.answer(handle.entry_id, "id_conflict")
    with pytest.raises(IdConflict):
        await handle.result(timeout=5)


async def test_a_reply_that_cannot_be_read_is_no_hindrance(workers: PlayedWorkers) -> None:
    """Older workers may write one: it is logged, and the next replies are read."""
    handle = await workers.client.submit("echo")
    await workers.reply(type="fact.answered", fact=handle.entry_id, ok="1")
    await workers.answer(handle.entry_id)
    await workers.reply(type="task.completed", task_id=handle.task_id, data=b"1")
    assert await handle.result(timeout=5) == 1


async def test_what_was_replied_before_a_client_was_closed_is_not_read_when_it_is_open_again(
    workers: PlayedWorkers,
) -> None:
    """Another client may have retried the task meanwhile."""
    client = workers.client
    await fail(workers, await client.submit("echo", task_id="t-1"))
    await client.close()
    await workers.record("t-1", "running")
    await client.open()
    again = client.handle("t-1")
    await read_all(workers, client)
    with pytest.raises(ResultTimeout):
        await again.result(timeout=0.2)
    await workers.record("t-1", "completed", result=b"1")
    assert await again.result(timeout=5) == 1


async def test_of_two_submissions_none_shows_the_others_outcome(workers: PlayedWorkers) -> None:
    """Neither as it is looked at, nor as they end one after the other."""
    client = workers.client
    first = await client.submit("echo", 1, task_id="same")
    await workers.answer(first.entry_id)
    second = await client.submit("echo", 2, task_id="same")
    ending = client.as_completed([second, first], timeout=5)
    await workers.reply(type="task.completed", task_id="same", data=b"1")
    assert await anext(ending) is first
    assert (second.done, second.outcome) == (False, None)
    await workers.answer(second.entry_id, "id_conflict")
    assert await anext(ending) is second
    assert second.outcome is not None
    assert second.outcome.state == "refused"


async def test_what_is_found_in_the_record_is_told_as_it_ends(workers: PlayedWorkers) -> None:
    """The answer was lost, and the outcome arrived before: the read that finds the submission consumed counts."""
    handle = await workers.client.submit("echo")
    await workers.reply(type="task.completed", task_id=handle.task_id, data=b"1")
    await workers.record(handle.task_id, "completed", result=b"1")
    await workers.consume(handle.entry_id)
    assert [one async for one in workers.client.as_completed([handle], timeout=5)] == [handle]
