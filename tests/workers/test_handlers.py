"""What each kind of worker makes of a batch, without its loop: the same on fakeredis and on every real server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fakeredis
import msgspec
import pytest
from msgspec import Struct
from redis.asyncio import Redis

from coord import queries
from coord.config import Settings
from coord.keys import CONSUMES, Keys
from coord.models.agents import AgentStatus, AgentType
from coord.models.facts import (
    AgentDeregistered,
    AgentDrained,
    AgentHeartbeat,
    AgentRegistered,
    AgentStatusChanged,
    MessageSent,
    TaskCancelRequested,
    TaskCompleted,
    TaskFailed,
    TaskReleased,
    TaskReplayed,
    TasksChangeRequested,
)
from coord.models.tasks import Priority, Requirements, Retry, TaskError, TaskRecord, TaskState, TaskSubmitted
from coord.streams import Append, Consumer, append
from tests.ledger import assert_keys_end, assert_ledger
from workers.distributor import Distributor
from workers.intake import Intake
from workers.registry import Registry
from workers.router import Router
from workers.service import Service, WorkerContext
from workers.transitions import Call, Scripts


class DirectCell:
    """The three kinds of worker on one cell; what is told is read and handled at once, by the kind that it is for."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis: Any = redis
        self.keys = Keys(settings.namespace)
        scripts = Scripts(redis, self.keys, settings, bare=isinstance(redis, fakeredis.FakeAsyncRedis))
        self.cell = WorkerContext(redis, self.keys, settings, scripts, "")
        self.distributor = Distributor(self.cell)
        self.router = Router(self.cell)
        services: list[Service] = [Registry(self.cell), self.distributor, self.router]
        self.intakes = [Intake(one, Consumer(redis, self.keys, one.kind, "w1", CONSUMES[one.kind])) for one in services]

    async def tell(self, stream: str, *facts: Struct) -> list[str]:
        """Append facts and let them be handled; their answers: ok, or a code."""
        ids = await append(self.redis, self.keys, [Append(stream, fact, "c1") for fact in facts])
        for intake in self.intakes:
            if entries := await intake.consumer.read_new(100, None):
                await intake.handle(entries)
        return [await self.answer(stream, entry) for entry in ids]

    async def answer(self, stream: str, entry: str) -> str:
        """What was answered to a fact."""
        for _, fields in await self.redis.xrange(self.keys.replies("c1")):
            about = (fields.get(b"stream", b"").decode(), fields.get(b"fact", b"").decode().split())
            if about[0] == stream and entry in about[1]:
                return "ok" if fields[b"ok"] == b"1" else str(fields[b"code"].decode())
        return ""

    async def place(self) -> None:
        """A snapshot of the fleet, and the tasks that may go to it."""
        self.distributor.view.replace(await self.distributor.follower.resync())
        await self.distributor.read_pools()
        await self.distributor.handle([])
        while self.distributor.planner.unread:  # as its own rounds do
            await self.distributor.table.read_lengths()
            await self.distributor.handle([])

    async def task(self, task_id: str = "t1") -> TaskRecord:
        """Its record."""
        found = await queries.get_task(self.redis, self.keys, task_id)
        assert found is not None
        return found

    async def inbox(self, lane: str = "normal") -> Sequence[Any]:
        """What lies in the agent's lane."""
        return [fields for _, fields in await self.redis.xrange(self.keys.inbox("a1", lane))]


@pytest.fixture
async def direct(redis_or_fake: Redis, settings: Settings) -> Any:
    """One with an agent for one task at a time; its books balance in the end."""
    made = DirectCell(redis_or_fake, settings)
    await made.cell.scripts.load()
    for intake in made.intakes:
        await intake.consumer.make_groups()
    made.router.name = "w1"
    await made.router.resync()  # it holds all lanes
    agent = AgentRegistered("a1", AgentType.WORKER, capabilities=("echo",), capacity=1, incarnation="i1")
    assert await made.tell("in:registry", agent) == ["ok"]
    yield made
    await assert_ledger(made.redis, made.keys)
    await assert_keys_end(made.redis, made.keys)


def echo(task_id: str = "t1", **options: Any) -> TaskSubmitted:
    """A task that the agent can do."""
    return TaskSubmitted(task_id, "echo", requirements=Requirements(capabilities=("echo",)), **options)


async def assigned(direct: DirectCell, task_id: str = "t1", **options: Any) -> str:
    """Submit a task and have it placed; its lease."""
    assert await direct.tell("in:tasks:normal", echo(task_id, **options)) == ["ok"]
    await direct.place()
    found = await direct.task(task_id)
    assert (found.state, found.agent_id) == (TaskState.ASSIGNED, "a1")
    assert found.lease is not None
    return found.lease


async def test_the_registry_keeps_an_agents_record(direct: DirectCell) -> None:
    """Registered, alive, drained by an operator, in maintenance, gone."""
    assert await direct.tell("in:beats", AgentHeartbeat("a1", "i1", {"cpu_usage": 0.5}, 0)) == ["ok"]
    assert await direct.tell("in:registry", AgentStatusChanged("a1", AgentStatus.MAINTENANCE, "i1")) == ["ok"]
    assert await direct.tell("in:control:registry", AgentDrained("a1")) == ["ok"]
    found = await queries.get_agent(direct.redis, direct.keys, "a1")
    assert found is not None
    assert (found.status, found.drained_from, found.load_metrics) == ("draining", "maintenance", {"cpu_usage": 0.5})
    assert await direct.tell("in:registry", AgentDeregistered("a1", "i1"), AgentDeregistered("a2")) == [
        "ok", "agent_not_found",
    ]  # fmt: skip


async def test_the_distributor_sees_a_task_to_its_end(direct: DirectCell) -> None:
    """Admitted, placed within the agent's room, settled; the next one takes its place."""
    lease = await assigned(direct)
    assert await direct.tell("in:tasks:normal", echo("t2")) == ["ok"]
    await direct.place()
    assert (await direct.task("t2")).state is TaskState.QUEUED
    (entry,) = await direct.inbox()
    assert entry[b"lease"].decode() == lease
    assert await direct.tell("in:reports", TaskCompleted("t1", lease, msgspec.Raw(b"[1]"))) == ["ok"]
    assert ((await direct.task()).state, (await direct.task()).result) == (TaskState.COMPLETED, [1])
    await direct.place()
    assert (await direct.task("t2")).agent_id == "a1"
    assert await direct.tell("in:reports", TaskCompleted("t1", "0" * 16)) == ["stale_lease"]


async def test_the_distributor_tries_a_failed_task_again_and_replays_a_dead_one(direct: DirectCell) -> None:
    """An attempt that may be tried again is; one that may not is the end, until an operator says otherwise."""
    lease = await assigned(direct, retry=Retry(max_attempts=2))
    assert await direct.tell("in:reports", TaskFailed("t1", lease, "no_luck", "m")) == ["ok"]
    assert (await direct.task()).state is TaskState.SCHEDULED
    lease = await assigned(direct, "t2")
    assert await direct.tell("in:reports", TaskFailed("t2", lease, "no_luck", "m", retryable=False)) == ["ok"]
    assert (await direct.task("t2")).state is TaskState.FAILED
    assert (await direct.task("t2")).error == TaskError("no_luck", "m")
    assert await direct.tell("in:control:distributor", TaskReplayed("t2"), TaskReplayed("t3")) == [
        "ok", "task_not_found",
    ]  # fmt: skip
    assert (await direct.task("t2")).state in {TaskState.QUEUED, TaskState.ASSIGNED}


@pytest.mark.parametrize(
    ("detail", "kept"),
    [
        (b'{"page":13}', {"page": 13}),
        (b'{"page":\r\n13,\n"line": "a\\nb"}', {"page": 13, "line": "a\nb"}),
        (b'"' + b"x" * 4_096 + b'"', None),
        (b"[" * 900 + b"]" * 900, None),
        (b'{"n":1e999}', None),
        (b"null", None),
    ],
    ids=["small", "several lines", "large", "deep", "odd", "none"],
)
async def test_a_detail_that_is_large_or_that_nobody_can_decode_is_not_kept(
    direct: DirectCell, detail: bytes, kept: object
) -> None:
    """It is recorded with the attempt and with the task that failed, and read with both."""
    lease = await assigned(direct)
    failed = TaskFailed("t1", lease, "no_luck", "m", retryable=False, detail=msgspec.Raw(detail))
    assert await direct.tell("in:reports", failed) == ["ok"]
    record = await direct.task()
    assert record.error == TaskError("no_luck", "m", kept)
    assert [one.detail for one in record.attempts] == [kept]


@pytest.mark.guarantee("no-idle-slot")
@pytest.mark.parametrize("read", ["changes", "snapshot"])
async def test_an_agent_that_is_suspended_for_a_moment_gets_tasks_again(direct: DirectCell, read: str) -> None:
    """⚠ The suspension begins and ends between two looks, and a row that was read in between says that it is out."""
    distributor = direct.distributor
    lease = await assigned(direct)
    assert await direct.tell("in:reports", TaskReleased("t1", lease, code="no_slot")) == ["ok"]
    if read == "changes":
        await distributor._on_agents_changed({"a1"})
    else:
        await distributor.resync()
    assert not distributor.view.agents["a1"].agent.active
    await direct.tell("in:beats", AgentHeartbeat("a1", "i1"))
    await distributor.read_suspended()
    assert await direct.tell("in:tasks:normal", echo("t2")) == ["ok"]
    assert (await direct.task("t2")).agent_id == "a1"


async def test_the_distributor_cancels(direct: DirectCell) -> None:
    """What no agent has claimed ends at once; what is not known is remembered."""
    await assigned(direct)
    assert await direct.tell("in:requests", TaskCancelRequested("t1")) == ["ok"]
    assert (await direct.task()).state is TaskState.CANCELLED
    assert await direct.inbox() == []
    assert await direct.tell("in:requests", TaskCancelRequested("t1")) == ["ok"]


async def test_many_changes_of_many_tasks_are_several_calls(
    direct: DirectCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """⚠ One call for a whole batch kept the server busy for half a second; in their order, and other facts go first."""
    await direct.tell("in:tasks:low", *(echo(f"t{n}") for n in range(3)))
    run = direct.cell.scripts.run
    sizes: list[tuple[Any, int]] = []

    async def counted(*calls: Call[Any]) -> list[Any]:
        """Note the requests and the tasks of each call that changes tasks."""
        changing = [call.args for call in calls if call.script == "change_tasks"]
        sizes.extend((args[0], sum(str(one).count("ghost-") for one in args)) for args in changing)
        return await run(*calls)

    monkeypatch.setattr(direct.cell.scripts, "run", counted)
    ghosts = tuple(f"ghost-{n}" for n in range(199))
    changes = [TasksChangeRequested("prioritize", (*ghosts, f"t{n % 2}"), Priority.HIGH) for n in range(4)]
    changes.append(TasksChangeRequested("prioritize", ("t0",), Priority.URGENT))
    changes.append(TasksChangeRequested("prioritize", (*ghosts, "t1"), Priority.NORMAL))
    changes.append(TasksChangeRequested("cancel", ("t1",)))
    answers = await direct.tell("in:control:distributor", *changes, TaskReplayed("t2"))
    assert answers == [*["ok"] * 7, "task_not_dead"]
    assert sizes == [(2, 398), (3, 398), (2, 199)]
    assert [(await direct.task(one)).priority for one in ("t0", "t1")] == [Priority.URGENT, Priority.NORMAL]
    assert (await direct.task("t1")).state is TaskState.CANCELLED


async def test_what_a_lost_agent_had_goes_on(direct: DirectCell) -> None:
    """The registry appends the loss, the distributor takes the task back."""
    await assigned(direct)
    assert await direct.tell("in:registry", AgentDeregistered("a1", "i1")) == ["ok"]
    await direct.tell("in:tasks:low", echo("t2"))
    assert (await direct.task()).state in {TaskState.SCHEDULED, TaskState.QUEUED}


async def test_the_router_delivers(direct: DirectCell) -> None:
    """Into the lane of the message's priority; to nobody it is a dead letter."""
    message = MessageSent("m1", "s", "a1", payload=msgspec.Raw(b"{}"))
    other = MessageSent("m2", "s", "nobody")
    assert await direct.tell("in:messages:high", message, other, message) == ["ok", "agent_not_found", "ok"]
    (entry,) = await direct.inbox("high")
    assert entry[b"id"] == b"m1"


@pytest.mark.parametrize("kind", list(CONSUMES))
async def test_an_entry_that_cannot_be_read_is_buried(direct: DirectCell, kind: str) -> None:
    """Whichever kind reads it; what lies beside it is handled."""
    stream = CONSUMES[kind][-1]
    await direct.redis.xadd(direct.keys.of(stream), {"type": "x", "data": "{", "caller": "c1"})
    beside = {"registry": AgentHeartbeat("a1", "i1"), "distributor": echo(), "router": MessageSent("m1", "s", "a1")}
    assert await direct.tell(stream, beside[kind]) == ["ok"]
    ((_, grave),) = await direct.redis.xrange(direct.keys.of("dead:in"))
    assert (grave[b"stream"].decode(), grave[b"code"]) == (stream, b"fact_invalid")
