"""An operator: takes agents out and back, sets what is obeyed, and sets going again what was given up on."""

from __future__ import annotations

import asyncio

import pytest

from coord import Client, Task, queries
from coord.errors import (
    AgentNotFound,
    ConfigError,
    EntryNotFound,
    EntryTruncated,
    FactInvalid,
    IdInvalid,
    MessageNotDead,
    MessageNotFound,
    ResultTimeout,
    TaskFailed,
    TaskNotDead,
    TaskNotFound,
)
from coord.models.agents import AgentStatus
from coord.models.tasks import TaskState
from tests.running import RunningCell
from tests.stories.conftest import MakeAgent
from tests.waiting import wait_until

#: Long beside what an answer takes on a busy machine.
PATIENT_S = 30.0


async def test_an_agent_is_drained_and_resumed(client: Client, make_agent: MakeAgent) -> None:
    """What it has it finishes; nothing new comes to it, whatever it beats, until it is resumed."""
    agent = make_agent("a1", capacity=2)
    may_end = asyncio.Event()

    @agent.task("wait")
    async def wait(task: Task) -> str:
        await may_end.wait()
        return "done"

    await agent.start()
    first = await client.submit("wait")
    await wait_until(lambda: _is(client, first.task_id, TaskState.RUNNING), "the first one runs")

    assert await client.admin.drain("a1", timeout=PATIENT_S) is AgentStatus.DRAINING

    second = await client.submit("wait")
    await second.accepted(PATIENT_S)
    may_end.set()
    assert await first.result(PATIENT_S) == "done"
    assert (await second.record()).state is TaskState.QUEUED
    assert (await client.agent("a1")).status is AgentStatus.DRAINING

    assert await client.admin.resume("a1", timeout=PATIENT_S) is AgentStatus.ACTIVE
    assert await second.result(PATIENT_S) == "done"


async def test_an_agent_that_died_is_removed(client: Client, make_agent: MakeAgent) -> None:
    """What it had goes to others at once, instead of when it has missed its beats; its record stays."""
    stuck, other = make_agent("stuck", heartbeat_interval=60.0), make_agent("other")
    began = asyncio.Event()

    @stuck.task("work")
    async def hang(task: Task) -> str:
        began.set()
        await asyncio.Event().wait()
        return "never"

    @other.task("work")
    async def work(task: Task) -> str:
        return "done"

    await stuck.start()
    handle = await client.submit("work")
    await asyncio.wait_for(began.wait(), PATIENT_S)
    await client.admin.remove("stuck", timeout=PATIENT_S)
    assert (await client.agent("stuck")).status is AgentStatus.INACTIVE
    await other.start()
    assert await handle.result(PATIENT_S) == "done"
    assert (await handle.record()).agent_id == "other"


async def test_a_failed_task_is_retried(client: Client, make_agent: MakeAgent) -> None:
    """When its cause is mended: the same id, fresh attempts; the new handle waits for the new outcome."""
    agent = make_agent("a1")
    is_mended = False

    @agent.task("fragile")
    async def fragile(task: Task) -> str:
        if not is_mended:
            raise RuntimeError("the disk is full")
        return f"done at attempt {task.attempt}"

    await agent.start()
    handle = await client.submit("fragile", retry={"max_attempts": 1})
    with pytest.raises(TaskFailed, match="the disk is full"):
        await handle.result(PATIENT_S)
    is_mended = True

    again = await client.admin.retry(handle.task_id, timeout=PATIENT_S)

    assert again.task_id == handle.task_id
    assert await again.result(PATIENT_S) == "done at attempt 2"
    record = await again.record()
    assert [one.message for one in record.attempts] == ["RuntimeError: the disk is full"]
    with pytest.raises(TaskNotDead, match="is completed; only a failed one"):
        await client.admin.retry(handle.task_id, timeout=PATIENT_S)
    with pytest.raises(TaskNotFound):
        await client.admin.replay("task", "ghost", timeout=PATIENT_S)


async def test_what_distributors_obey_is_set_while_they_run(client: Client) -> None:
    """The strategy and the health below which nobody gets a task; what does not fit is said, and changes nothing."""
    await client.admin.set_strategy("round_robin", timeout=PATIENT_S)
    await client.admin.set_setting("health_threshold", 0.8, timeout=PATIENT_S)
    assert {one.name: (one.value, one.source) for one in await client.admin.live_settings()} == {
        "avoid_failed_agent": ("on", "default"),
        "ejection": ("on", "default"),
        "full_scores": ("off", "default"),
        "health_threshold": ("0.8", "live"),
        "rare_skills_first": ("off", "default"),
        "record_plans": ("off", "default"),
        "strategy": ("round_robin", "live"),
    }
    with pytest.raises(ConfigError, match="'best' is not one of capability_based, consistent_hash"):
        await client.admin.set_strategy("best", timeout=PATIENT_S)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'A B' is not one of capability_based, consistent_hash"):
        await client.admin.set_setting("strategy", "A B", timeout=PATIENT_S)
    with pytest.raises(ConfigError, match="health_threshold=2: expected a number from 0 to 1"):
        await client.admin.set_setting("health_threshold", 2, timeout=PATIENT_S)
    with pytest.raises(ConfigError, match="only avoid_failed_agent, ejection, full_scores, health_threshold"):
        await client.admin.set_setting("patience", 2, timeout=PATIENT_S)
    await client.admin.set_setting("health_threshold", None, timeout=PATIENT_S)
    found = {one.name: one for one in await client.admin.live_settings()}
    assert (found["health_threshold"].value, found["health_threshold"].source) == ("0.5", "default")


async def test_a_message_that_found_nobody_is_replayed(client: Client, make_agent: MakeAgent) -> None:
    """When its receiver is there; once, since it is no dead letter after that."""
    with pytest.raises(AgentNotFound):
        await client.send("late", "hello", message_id="m1", timeout=PATIENT_S)
    with pytest.raises(AgentNotFound):
        await client.admin.replay("message", "m1", timeout=PATIENT_S)
    agent = make_agent("late")
    got: list[str] = []
    agent.on_message(lambda message: got.append(message.payload))
    await agent.start()
    assert await client.admin.replay("message", "m1", ttl=600.0, timeout=PATIENT_S) == "m1"
    await wait_until(lambda: got == ["hello"], "it is handled")
    with pytest.raises(MessageNotDead):
        await client.admin.replay("message", "m1", timeout=PATIENT_S)


async def test_a_buried_entry_is_replayed_by_whoever_reads_its_stream(client: Client, cell: RunningCell) -> None:
    """It is handled like any other; what was buried in part only, and what is not there, cannot be replayed."""
    await _append(cell, "in:tasks:low", "no.such", "{}")
    await _append(cell, "in:reports", "task.started", '{"x":"' + "y" * 5_000 + '"}')
    buried = await wait_until(lambda: _buried(cell, 2), "both are buried")
    first = buried["in:tasks:low"]

    entry = await client.admin.replay("entry", first, timeout=PATIENT_S)

    # Nothing has taught a distributor this word meanwhile, so it is buried again, as an entry of its own.
    again = await wait_until(lambda: _buried(cell, 2), "it is buried again")
    (fields,) = (await cell.redis.execute_command("XRANGE", cell.keys.of("dead:in"), again["in:tasks:low"], "+"))[0][1:]
    assert (fields[b"id"].decode(), again["in:tasks:low"] != first) == (entry, True)
    with pytest.raises(EntryTruncated):
        await client.admin.replay("entry", buried["in:reports"], timeout=PATIENT_S)
    with pytest.raises(EntryNotFound):
        await client.admin.replay("entry", first, timeout=PATIENT_S)


async def test_dead_letters_are_purged(client: Client, make_agent: MakeAgent, cell: RunningCell) -> None:
    """One, or all of a kind that are old enough; what was purged is forgotten."""
    agent = make_agent("a1")

    @agent.task("fail")
    async def fail(task: Task) -> None:
        raise RuntimeError("no")

    await agent.start()
    handles = await client.submit_many({"task_type": "fail", "retry": {"max_attempts": 1}} for _ in range(3))
    for handle in handles:
        with pytest.raises(TaskFailed):
            await handle.result(PATIENT_S)
    with pytest.raises(AgentNotFound):
        await client.send("nobody", "hello", message_id="m1", timeout=PATIENT_S)
    await _append(cell, "in:reports", "no.such", "{}")
    buried = await wait_until(lambda: _buried(cell, 1), "an entry is buried")

    assert await client.admin.purge("task", handles[0].task_id, timeout=PATIENT_S) == 1
    assert await client.admin.purge("task", older_than=3_600, timeout=PATIENT_S) == 0
    assert await client.admin.purge("task", older_than=0, timeout=PATIENT_S) == 2
    assert await client.admin.purge("message", "m1", timeout=PATIENT_S) == 1
    assert await client.admin.purge("entry", buried["in:reports"], timeout=PATIENT_S) == 1
    assert await client.admin.purge("entry", older_than=0, timeout=PATIENT_S) == 0
    with pytest.raises(TaskNotFound):
        await client.admin.purge("task", handles[1].task_id, timeout=PATIENT_S)
    with pytest.raises(MessageNotFound):
        await client.admin.purge("message", "m1", timeout=PATIENT_S)
    with pytest.raises(EntryNotFound):
        await client.admin.purge("entry", buried["in:reports"], timeout=PATIENT_S)


async def test_many_dead_letters_are_purged_by_one_call(client: Client, cell: RunningCell) -> None:
    """Redis is asked for a thousand at a time, and the caller for nothing more; it is told the sum."""
    pipe = cell.redis.pipeline(transaction=False)
    for _ in range(1_500):
        pipe.xadd(cell.keys.of("in:requests"), {"type": "no.such", "data": "{}"})
    await pipe.execute()
    await wait_until(lambda: _buried(cell, 1_500), "all are buried", PATIENT_S)
    assert await client.admin.purge("entry", older_than=0, timeout=PATIENT_S) == 1_500
    steps = (await queries.get_log_window(cell.redis, cell.keys.of("in:control:registry"))).added
    assert steps == 2


async def test_what_does_not_fit_is_said_before_anything_is_appended(client: Client, cell: RunningCell) -> None:
    """A slip of an operator does not end among the dead letters."""
    with pytest.raises(IdInvalid, match="agent_id"):
        await client.admin.drain("a b")
    with pytest.raises(FactInvalid, match="entry_id"):
        await client.admin.replay("entry", "last")
    with pytest.raises(FactInvalid, match="entry_id"):
        await client.admin.purge("entry", "last")
    with pytest.raises(FactInvalid, match="kind: expected one of task, message, entry, not 'letter'"):
        await client.admin.replay("letter", "x")  # type: ignore[arg-type]
    with pytest.raises(FactInvalid, match="kind: expected one of task, message, entry, not 'letter'"):
        await client.admin.purge("letter", "x")  # type: ignore[arg-type]
    with pytest.raises(FactInvalid, match="either dead_id or older_than"):
        await client.admin.purge("task")
    with pytest.raises(FactInvalid, match="older_than"):
        await client.admin.purge("task", older_than=-1)
    with pytest.raises(FactInvalid, match="ttl"):
        await client.admin.replay("message", "m1", ttl=0)
    for kind in ("registry", "distributor", "router"):
        assert (await queries.get_log_window(cell.redis, cell.keys.of(f"in:control:{kind}"))).added == 0


async def test_without_a_worker_the_request_waits(client: Client, cell: RunningCell, make_agent: MakeAgent) -> None:
    """The operator is told so, and it is done when one is there."""
    await make_agent("a1").start()
    (registry,) = cell.of_kind("registry")
    await registry.stop()
    with pytest.raises(ResultTimeout, match="no registry answered"):
        await client.admin.drain("a1", timeout=0.05)
    await cell.add("registry")
    await wait_until(lambda: _drains(client), "it drains")


async def _drains(client: Client) -> bool:
    return (await client.agent("a1")).status is AgentStatus.DRAINING


async def _is(client: Client, task_id: str, state: TaskState) -> bool:
    try:
        return (await client.task(task_id)).state is state
    except TaskNotFound:
        return False


async def _append(cell: RunningCell, stream: str, kind: str, data: str) -> None:
    await cell.redis.xadd(cell.keys.of(stream), {"type": kind, "data": data})


async def _buried(cell: RunningCell, count: int) -> dict[str, str]:
    found = await cell.redis.execute_command("XRANGE", cell.keys.of("dead:in"), "-", "+")
    return {fields[b"stream"].decode(): one.decode() for one, fields in found} if len(found) == count else {}
