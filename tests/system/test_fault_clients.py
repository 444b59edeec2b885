"""What is said twice has one effect, and whoever is restarted in order costs nobody an attempt."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from coord import Client, TaskSpec, queries
from coord.keys import CONSUMES
from coord.models.agents import AgentStatus
from coord.models.api_keys import CallerRole
from coord.models.facts import (
    TYPE_OF,
    AgentDrained,
    AgentEnrolled,
    AgentLeasesListed,
    AgentMaintenanceBegun,
    AgentRemoved,
    AgentResumed,
    AgentsPruned,
    AgentTokenRevoked,
    AgentTokenRotated,
    ApiKeyCreated,
    ApiKeyRevoked,
    DeadPurged,
    EntriesPurged,
    EntryReplayed,
    LeaseLost,
    LinkAccepted,
    LinkMade,
    LinkRemoved,
    LinkRequested,
    MasterCleared,
    MasterSet,
    MessageReplayed,
    SettingSet,
    StrategySet,
    TaskCancelRequested,
    TaskCompleted,
    TaskReplayed,
    TasksChangeRequested,
    TasksCompleted,
)
from coord.models.tasks import TaskState
from coord.streams import Append, append
from tests.ledger import assert_keys_end, assert_ledger, events_of_tasks
from tests.processes import CellProcesses, Process, cell_processes
from tests.waiting import wait_until

ENDS = ("task.completed", "task.failed", "task.cancelled", "task.expired")
#: Does what its payload says.
MANY_SIDED = """
import asyncio, sys
from coord import Agent, NonRetryable, Release
agent = Agent(sys.argv[1], capacity=4)

@agent.task("many_sided")
async def many_sided(task):
    await task.progress({"at": 1})
    await asyncio.sleep(task.payload.get("s", 0.15))
    if task.payload["does"] == "fail":
        raise ValueError("as told")
    if task.payload["does"] == "release" and task.attempt == 1:
        raise Release("as told")
    return task.payload["does"]

agent.run()
"""


def by_operators(task_id: str) -> list[Append]:
    """Each fact of an operator; ``task_id`` is of a task that has completed."""
    return [
        Append("in:control:registry", AgentDrained("many")),
        Append("in:control:registry", AgentMaintenanceBegun("many")),
        Append("in:control:registry", AgentResumed("many")),
        Append("in:control:registry", AgentRemoved("leaver")),
        Append("in:control:registry", AgentsPruned(3_600.0)),
        Append("in:control:registry", AgentEnrolled("many", "a" * 64)),
        Append("in:control:registry", AgentTokenRotated("many", "b" * 64)),
        Append("in:control:registry", AgentTokenRevoked("many")),
        Append("in:control:registry", ApiKeyCreated("key1", "c" * 64, CallerRole.CLIENT)),
        Append("in:control:registry", ApiKeyRevoked("key1")),
        Append("in:control:registry", EntriesPurged(older_than=3_600.0)),
        Append("in:control:distributor", StrategySet("round_robin")),
        Append("in:control:distributor", SettingSet("health_threshold", 0.4)),
        Append("in:control:distributor", TaskCancelRequested(task_id)),
        Append("in:control:distributor", TaskReplayed(task_id)),
        Append("in:control:distributor", TasksChangeRequested("cancel", (task_id,))),
        Append("in:control:distributor", DeadPurged(task_id)),
        Append("in:control:router", MessageReplayed("hello")),
        Append("in:control:router", EntryReplayed("1-1")),
        Append("in:control:router", LinkMade("many", "leaver")),
    ]


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server, and no process of the cell yet."""
    async with cell_processes(tmp_path) as built:
        yield built


@pytest.mark.guarantee("idempotent-writes")
async def test_a_write_is_repeated_by_the_retry(at: CellProcesses) -> None:
    """The answer to an XADD is lost, so the client appends again by itself: two entries, one effect."""
    await at.worker("registry")
    await at.agent("a1")
    async with forgetful_proxy(at) as url, Client(url, settings=at.client.settings) as client:
        handle = await client.submit("echo", {"s": 0}, notify=True)
        assert await at.redis.xlen(at.keys.tasks_in("normal")) == 2
        receipt = asyncio.create_task(client.send("a1", {"n": 1}, message_id="hello"))
        await wait_until(lambda: _has_entries(at, at.keys.of("in:messages:normal"), 2), "the message was repeated")
        await asyncio.gather(at.worker("distributor"), at.worker("router"))
        assert (await handle.result(timeout=10))["by"] == "a1"
        assert (await receipt).message_id == "hello"
    await at.assert_in_order([handle.task_id])
    counted = await queries.get_counters(at.redis, at.keys)
    assert (queries.count_submitted(counted), counted["messages_delivered"]) == (1, 1)


@pytest.mark.guarantee("repeated-facts")
async def test_every_kind_of_fact_is_appended_twice(at: CellProcesses) -> None:
    """Each entry that a worker reads comes once more: nothing is counted twice, tried twice or told twice."""
    workers = [at.stepped_worker(kind, f"{kind}-double", "double", 0) for kind in CONSUMES]
    agent = at.start("many", "-c", MANY_SIDED, "many", COORD_HEARTBEAT_INTERVAL_S="1.05")
    await wait_until(lambda: at.redis.sismember(at.keys.of("agents:active"), "many"), "the agent is active", 20)
    leaver = await at.agent("leaver")
    leaver.send(signal.SIGTERM)
    retry = {"max_attempts": 2, "backoff": 0.05}
    work, fail, release = [
        (await at.client.submit("many_sided", {"does": does}, retry=retry)).task_id
        for does in ("work", "fail", "release")
    ]
    specs = [TaskSpec(task_type="many_sided", payload={"does": "work", "s": 0}) for _ in range(3)]
    quick = [handle.task_id for handle in await at.client.submit_many(specs)]
    slow = (await at.client.submit("many_sided", {"does": "work", "s": 60})).task_id
    await wait_until(lambda: _is(at, slow, state=TaskState.RUNNING), "the slow one runs")
    lease = (await at.client.task(slow)).lease or ""
    said = [
        Append("in:losses", LeaseLost("many", slow, lease)),
        Append("in:registry", AgentLeasesListed("many", "unknown", "1-1", {})),
        Append("in:links", LinkRequested("many", "leaver")),
        Append("in:links", LinkAccepted("leaver", "many")),
        Append("in:links", LinkRemoved("many", "leaver")),
        Append("in:links", MasterSet("many", "leaver")),
        Append("in:links", MasterCleared("many")),
    ]
    await append(at.redis, at.keys, said)
    await wait_until(lambda: _is(at, slow, state=TaskState.RUNNING, failures=1), "it was taken back and runs again")
    await at.client.send("many", {"n": 1}, message_id="hello")
    copies = (await at.client.broadcast({"n": 2}, message_id="hello-all")).delivered
    await wait_until(lambda: _is(at, work, state=TaskState.COMPLETED, failures=0, releases=0), "the work is done")
    await wait_until(lambda: _is(at, fail, state=TaskState.FAILED, failures=2, releases=0), "two attempts failed")
    await wait_until(lambda: _is(at, release, state=TaskState.COMPLETED, failures=0, releases=1), "one was given back")
    for task in quick:
        await wait_until(partial(_is, at, task, state=TaskState.COMPLETED), "what was submitted together is done")
    again = TasksCompleted(tuple([TaskCompleted(one, (await at.client.task(one)).lease or "") for one in quick]))
    await append(at.redis, at.keys, [Append("in:reports", again), *by_operators(work)])
    await wait_until(lambda: _is_consumed(at), "operators have been heard, twice")
    assert (await at.client.agent("many")).status is AgentStatus.ACTIVE
    agent.kill()
    await wait_until(lambda: _is(at, slow, state=TaskState.QUEUED, failures=2), "it is lost with its agent")
    assert await at.client.cancel(slow) == "accepted"
    assert await leaver.ended() == 0, leaver.told()
    await at.settle_down()
    told = Counter((one.fields["task_id"], one.type) for one in await events_of_tasks(at.redis, at.keys))
    ends = {(work, "task.completed"), (fail, "task.failed"), (release, "task.completed"), (slow, "task.cancelled")}
    ends |= {(task, "task.completed") for task in quick}
    assert {one: count for one, count in told.items() if one[1] in ENDS} == dict.fromkeys(ends, 1)
    assert await _is(at, slow, failures=2, attempt=2)
    assert (await queries.get_counters(at.redis, at.keys))["messages_delivered"] == 1 + copies
    doubled = {line for one in workers for line in one.log.read_text().splitlines() if line.startswith("doubled ")}
    assert doubled == {f"doubled {kind}" for kind in TYPE_OF.values()}
    assert all(one.alive for one in workers)
    await assert_ledger(at.redis, at.keys)
    await assert_keys_end(at.redis, at.keys)


@pytest.mark.guarantee("rolling-restart")
async def test_everybody_is_restarted_under_load(at: CellProcesses) -> None:
    """SIGTERM and a new start, one after the other: no task fails, and no attempt counts as failed."""
    names = [*((kind, f"{kind}-1") for kind in CONSUMES), ("distributor", "distributor-2")]
    agents = ["a1", "a2"]
    workers = await asyncio.gather(*(at.worker(*one) for one in names))
    started = [*workers, *await asyncio.gather(*(at.agent(name, capacity=4) for name in agents))]
    people: dict[str, Process] = {one.name: one for one in started}
    ids: list[str] = []
    is_over = asyncio.Event()
    load = asyncio.create_task(_keep_submitting(at, ids, is_over))
    for kind, name in [*names, *(("agent", name) for name in agents)]:
        people[name].send(signal.SIGTERM)
        assert await people[name].ended(20) == 0, people[name].told()
        people[name] = await (at.agent(name, capacity=4) if kind == "agent" else at.worker(kind, name))
    is_over.set()
    await load
    await at.all_end(len(ids))
    await at.assert_in_order(ids)
    assert len(ids) > 50
    records = [one for one in await queries.get_tasks(at.redis, at.keys, ids) if one]
    assert {one.failures for one in records} == {0}
    assert {attempt.how for one in records for attempt in one.attempts} <= {"released", "recalled"}
    assert (await queries.get_counters(at.redis, at.keys)).get("retried", 0) == 0


@asynccontextmanager
async def forgetful_proxy(at: CellProcesses) -> AsyncIterator[str]:
    """The URL of a way to the server that cuts the connection before the first answer to each kind of fact."""
    left = {b"task.submitted", b"message.sent"}

    async def serve(here: asyncio.StreamReader, to_here: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_unix_connection(at.server.socket_path)
        is_cut = asyncio.Event()

        async def ask() -> None:
            while data := await here.read(65_536):
                for kind in [one for one in left if one in data]:
                    left.discard(kind)
                    is_cut.set()
                to_there.write(data)
            to_there.close()

        async def answer() -> None:
            while (data := await there.read(65_536)) and not is_cut.is_set():
                to_here.write(data)
            to_here.close()
            to_there.close()

        await asyncio.gather(ask(), answer(), return_exceptions=True)

    path = at.folder / "proxy.sock"
    server = await asyncio.start_unix_server(serve, path)
    try:
        yield f"unix://{path}"
    finally:
        server.close()
    assert not left, "no answer was lost"


async def _keep_submitting(at: CellProcesses, ids: list[str], is_over: asyncio.Event) -> None:
    """Keep about thirty tasks waiting or at work."""
    while not is_over.is_set():
        ids += await at.submit(10, seconds=0.05)
        await wait_until(partial(_are_done, at, len(ids) - 30), "the work goes on", 30)


async def _are_done(at: CellProcesses, count: int) -> bool:
    return await at.count(TaskState.COMPLETED) >= count


async def _has_entries(at: CellProcesses, key: str, count: int) -> bool:
    return bool(await at.redis.xlen(key) == count)


async def _is(at: CellProcesses, task_id: str, **expected: object) -> bool:
    """Whether a task's record says so."""
    record = await queries.get_task(at.redis, at.keys, task_id)
    return record is not None and all(getattr(record, name) == value for name, value in expected.items())


async def _is_consumed(at: CellProcesses) -> bool:
    """Whether each control stream has had every fact twice, and nothing of it is left."""
    wanted = Counter(one.stream for one in by_operators(""))
    for stream, count in wanted.items():
        window = await queries.get_log_window(at.redis, at.keys.of(stream))
        if (window.added, window.length) != (2 * count, 0):
            return False
    return True
