"""The loop that every worker runs: whatever ends or fails beneath it, entries are handled and the others go on."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from redis import exceptions as redis_errors
from structlog.testing import capture_logs

from coord.models.facts import MessageSent
from coord.models.tasks import TaskState
from coord.streams import Append, Consumer, Entry, append
from tests.ledger import assert_ledger
from tests.running import RunningCell, RunningWorker
from tests.waiting import wait_until
from tests.workers.raw import (
    Caller,
    await_count,
    await_quiet,
    await_state,
    buried,
    distributor,
    fleet,
    pending,
    vanish,
    working,
)
from workers.loop import FAILURES, Loop
from workers.router import Router
from workers.service import Failure, ReceivedFact, WorkerContext


def hang(worker: RunningWorker) -> asyncio.Event:
    """From now on the worker hangs in whatever it handles; the event says that it does."""
    hangs = asyncio.Event()

    async def handle(batch: list[ReceivedFact[Any]]) -> list[Failure]:
        hangs.set()
        await asyncio.Event().wait()
        return []

    worker.loop.service.handle = handle  # type: ignore[method-assign]
    return hangs


async def test_what_a_vanished_sibling_left_is_taken_over(cell: RunningCell, caller: Caller) -> None:
    """A worker that ends while it handles a batch leaves it pending; another one takes it over, entry by entry."""
    (first,) = cell.of_kind("distributor")
    hangs = hang(first)
    told = await caller.submit(20)
    await wait_until(hangs.is_set, "the first distributor hangs")
    await vanish(first)
    assert (await pending(cell, "distributor"))["distributor-2"] > 0
    await cell.add("distributor")
    for one in told:
        assert (await caller.answer(one.entry))["ok"] == "1"
    await await_quiet(cell)
    assert set((await pending(cell, "distributor")).values()) == {0}
    assert await buried(cell) == []
    await assert_ledger(cell.redis, cell.keys)


async def test_after_a_lost_connection_what_is_ones_own_is_read_again(cell: RunningCell, caller: Caller) -> None:
    """An error in a round trip leaves its batch pending in one's own name; it is handled again without any try."""
    (worker,) = cell.of_kind("distributor")
    handle, errors = (
        worker.loop.service.handle,
        [redis_errors.ConnectionError("lost"), redis_errors.TimeoutError("late")],
    )

    async def fail_twice(batch: list[ReceivedFact[Any]]) -> list[Failure]:
        if batch and errors:
            raise errors.pop()
        return await handle(batch)

    worker.loop.service.handle = fail_twice  # type: ignore[method-assign]
    told = await caller.submit(300)
    for one in told:
        assert (await caller.answer(one.entry))["ok"] == "1"
    assert not errors
    assert not any(worker.loop.intake._tries.values()), "one that was slow was taken over, which is not a failure"
    await await_quiet(cell)
    await assert_ledger(cell.redis, cell.keys)


async def test_what_goes_wrong_while_it_recovers_is_recovered_from(
    cell: RunningCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view that lost track while a snapshot is taken is taken anew."""
    (worker,) = cell.of_kind("router")
    resynced = 0

    async def resync() -> None:
        nonlocal resynced
        resynced += 1
        if resynced == 1:
            worker.loop.service.request_recovery()

    monkeypatch.setattr(worker.loop.service, "resync", resync)
    worker.loop.service.request_recovery()
    await wait_until(lambda: resynced >= 2, "it has recovered again")


async def test_what_was_deleted_while_it_was_pending_is_pending_no_more(cell: RunningCell, caller: Caller) -> None:
    """Nobody can handle it, and a consumer that seemed to hold it would never be swept."""
    (router,) = cell.of_kind("router")
    await router.stop()
    consumer = Consumer(cell.redis, cell.keys, "router", "w9", ["in:messages:low"])
    await consumer.make_groups()
    entry = await caller.tell("in:messages:low", MessageSent(message_id="m1", sender_id="s", receiver_id="r"))
    assert [one.id for one in await consumer.read_new(10, None)] == [entry]
    await cell.redis.xdel(cell.keys.of("in:messages:low"), entry)
    assert await consumer.read_pending(10) == []
    assert set((await pending(cell, "router")).values()) == {0}


async def test_connections_that_are_killed_all_along_lose_nothing(cell: RunningCell, caller: Caller) -> None:
    """Every connection of every worker is cut again and again while tasks run: each task ends once all the same."""
    agents = await fleet(cell, 3, capacity=4)
    async with working(agents):
        for _ in range(10):
            await caller.submit(30)
            await cell.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await await_count(cell, TaskState.COMPLETED, 300, 60)
    await await_quiet(cell)
    assert await buried(cell) == []
    await assert_ledger(cell.redis, cell.keys)


async def test_flushed_scripts_are_loaded_again(cell: RunningCell, caller: Caller) -> None:
    """SCRIPT FLUSH in the middle costs a moment and no entry."""
    agents = await fleet(cell, 2, capacity=4)
    async with working(agents):
        for _ in range(5):
            await caller.submit(20)
            await cell.redis.script_flush()
        await await_count(cell, TaskState.COMPLETED, 100)
    await await_quiet(cell)
    assert await buried(cell) == []
    await assert_ledger(cell.redis, cell.keys)


async def test_after_flushall_new_facts_work_within_seconds(cell: RunningCell, caller: Caller) -> None:
    """All is lost, groups included; they are made again at 0, and what is told from then on is handled."""
    await fleet(cell, 3)
    told = await caller.submit(10)
    await caller.answer(told[-1].entry)
    await cell.redis.flushall()
    agents = await fleet(cell, 2)
    async with working(agents):
        new = await caller.submit(10, notify=True)
        for one in new:
            await await_state(cell, one.task_id, TaskState.COMPLETED, 5.0)
    (worker,) = cell.of_kind("distributor")
    view = distributor(worker).view
    await wait_until(lambda: set(view.agents) == {"a0", "a1"}, "ghosts are gone")
    await await_quiet(cell)
    await assert_ledger(cell.redis, cell.keys)


async def test_a_full_server_drains(cell: RunningCell, caller: Caller) -> None:
    """Above maxmemory reports are settled and submissions refused, by a worker that has just begun as well.

    What has to wait waits, is not blamed, and is handled once there is room.
    """
    (agent,) = await fleet(cell, 1, capacity=3)
    told = await caller.submit(6)
    claimed = [one for one in await agent.await_inbox(3) if await agent.claim(one)]
    (distributor,) = cell.of_kind("distributor")
    await distributor.stop()
    await agent.complete(*claimed)
    refused = await caller.submit(3)
    (registry,) = cell.of_kind("registry")
    await registry.stop()
    agent.capacity = 5
    registered = await agent.register()
    try:
        await cell.redis.config_set("maxmemory", "1mb")
        await cell.add("distributor")
        await cell.add("registry")
        for done in claimed:
            await await_state(cell, done.task_id, TaskState.COMPLETED)
        for one in refused:
            assert (await caller.answer(one.entry))["code"] == "backlog_full"
        await wait_until(lambda: _waits(cell, "in:registry"), "the registration waits")
    finally:
        await cell.redis.config_set("maxmemory", "0")
    assert (await Caller(cell.redis, cell.keys, "a0").answer(registered))["ok"] == "1"
    async with working([agent]):
        for one in told:
            await await_state(cell, one.task_id, TaskState.COMPLETED)
    await await_quiet(cell)
    assert await buried(cell) == []
    await assert_ledger(cell.redis, cell.keys)


@pytest.mark.guarantee("poison-entries")
async def test_a_killer_entry_does_not_kill_one_name_for_ever(cell: RunningCell, caller: Caller) -> None:
    """A worker that is started again under its name finds what killed it, one entry at a time, each try counted."""
    (router,) = cell.of_kind("router")
    await router.stop()
    sent = [MessageSent(message_id=f"m{number}", sender_id="s", receiver_id="r") for number in range(5)]
    appended = await append(cell.redis, cell.keys, [Append("in:messages:high", one, caller.id) for one in sent])
    for life in range(5):
        loop = Loop(Router(WorkerContext.open(cell.url, cell.settings)), "same")
        handle, dies = loop.service.handle, asyncio.Event()

        async def die(
            batch: list[ReceivedFact[Any]], handle: Any = handle, dies: asyncio.Event = dies
        ) -> list[Failure]:
            if any(one.fact.message_id == "m2" for one in batch):
                dies.set()
                await asyncio.Event().wait()
            return list(await handle(batch))

        loop.service.handle = die  # type: ignore[method-assign]
        worker = RunningWorker(loop, asyncio.create_task(loop.run()), loop.cell)
        if life < 4:
            await wait_until(dies.is_set, f"life {life + 1} ends on the killer")
            await vanish(worker)
        else:
            answer = await caller.answer(appended[2])
            assert (answer["code"], dies.is_set()) == ("entry_buried", False)
            await worker.stop()
    assert [one["id"] for one in await buried(cell)] == [appended[2]]
    await await_quiet(cell)


async def _waits(cell: RunningCell, stream: str) -> bool:
    """Whether an entry has been delivered and lies there still."""
    (group,) = await cell.redis.xinfo_groups(cell.keys.of(stream))
    return bool(group["pending"])


async def test_an_entry_weighs_what_it_tells(cell: RunningCell) -> None:
    """Batches are of like size, counted in facts; so many entries are read next time as make a batch."""
    (worker,) = cell.of_kind("distributor")
    loop = worker.loop
    listed = b",".join([b'{"task_id":"t","task_type":"echo"}'] * 64)
    many = Entry("in:tasks:low", "1-1", {b"type": b"tasks.submitted", b"data": b'{"tasks":[%b]}' % listed})
    quoting = Entry("in:tasks:low", "1-2", {b"type": b"task.submitted", b"data": listed})
    broken = Entry("in:tasks:low", "1-3", {b"type": b"tasks.submitted"})
    large = Entry("in:reports", "1-4", {b"type": b"task.completed", b"data": b"x" * (cell.settings.batch_bytes // 4)})
    assert cell.settings.batch == 256

    assert [len(one) for one in loop._batches([many] * 10)] == [3, 4, 3]
    assert loop._read_limits == {"in:tasks:low": 4}
    assert [len(one) for one in loop._batches([quoting] * 400)] == [200, 200]
    assert loop._read_limits == {}
    assert [len(one) for one in loop._batches([large] * 5 + [broken, many, quoting])] == [3, 5]
    assert loop._read_limits == {"in:reports": 3, "in:tasks:low": 11}
    assert loop._batches([]) == []
    assert loop._read_limits == {}


async def test_a_backlog_of_lists_does_not_keep_others_from_being_read(cell: RunningCell) -> None:
    """Fewer entries of their stream are read at a time, not of every stream."""
    consumer = Consumer(cell.redis, cell.keys, "router", "reader", ["in:messages:low", "in:messages:high"])
    (router,) = cell.of_kind("router")
    await vanish(router)
    await consumer.make_groups()
    for stream in ("in:messages:low", "in:messages:high"):
        for _ in range(20):
            await cell.redis.xadd(cell.keys.of(stream), {"type": "any"})
    read = await consumer.read_new(16, 1, None, {"in:messages:low": 2})
    assert Counter(entry.stream for entry in read) == {"in:messages:low": 2, "in:messages:high": 16}
    read = await consumer.read_new(30, 1, None, {"in:messages:low": 3})
    assert Counter(entry.stream for entry in read) == {"in:messages:low": 3, "in:messages:high": 4}
    read = await consumer.read_new(30, 1, None, {"in:messages:low": 30})
    assert Counter(entry.stream for entry in read) == {"in:messages:low": 15}
    assert await consumer.read_new(30, 1, None, {"in:messages:low": 3}) == []


@pytest.mark.guarantee("supervised-tasks")
async def test_an_unexpected_error_of_a_round_leaves_its_entries_pending_and_they_are_read_again(
    cell: RunningCell, caller: Caller
) -> None:
    """It is logged with its traceback; no try is counted, for no entry is to blame."""
    (worker,) = cell.of_kind("distributor")
    handle, errors = worker.loop.intake.handle, [RuntimeError("a defect"), RuntimeError("another")]

    async def fail(entries: Any) -> None:
        if errors:
            raise errors.pop(0)
        await handle(entries)

    worker.loop.intake.handle = fail  # type: ignore[method-assign]
    with capture_logs() as logged:
        told = await caller.submit(30)
        for one in told:
            assert (await caller.answer(one.entry))["ok"] == "1"
    assert not errors
    assert not any(worker.loop.intake._tries.values()), "one that was slow was taken over, which is not a failure"
    assert len([one for one in logged if one["log_level"] == "error" and one.get("exc_info")]) == 2
    await await_quiet(cell)
    assert await buried(cell) == []


@pytest.mark.guarantee("supervised-tasks")
async def test_a_loop_that_keeps_failing_ends_its_process(cell: RunningCell, caller: Caller) -> None:
    """Five times in a row without a good turn; fewer are recovered from."""
    (worker,) = cell.of_kind("distributor")
    failing = 0

    async def fail(entries: Any) -> None:
        nonlocal failing
        failing += 1
        raise RuntimeError("a defect")

    worker.loop.intake.handle = fail  # type: ignore[method-assign]
    await caller.submit(1)
    await wait_until(worker.task.done, "the loop has ended")
    assert isinstance(worker.task.exception(), RuntimeError)
    assert failing >= FAILURES
    await cell.add("distributor")
    await await_quiet(cell)


async def test_a_tick_or_a_follower_that_fails_goes_on(cell: RunningCell, caller: Caller) -> None:
    """Whatever they raise: a view that nobody follows would be wrong for ever."""
    (worker,) = cell.of_kind("distributor")
    follower = distributor(worker).follower
    read, errors = follower._read, [RuntimeError("a defect"), RuntimeError("another")]

    async def fail(cursor: str) -> None:
        if errors:
            raise errors.pop()
        await read(cursor)

    follower._read = fail  # type: ignore[method-assign]
    await wait_until(lambda: not errors, "it has failed twice")
    agents = await fleet(cell, 1)
    async with working(agents):
        told = await caller.submit(3)
        for one in told:
            await await_state(cell, one.task_id, TaskState.COMPLETED)
    await await_quiet(cell)
