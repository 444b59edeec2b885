"""A fleet: who is found, who is watched, who is drained, and whose record is removed."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from structlog.testing import capture_logs

from coord import Client, Message, Task
from coord.client import agents as agents_module
from coord.connection import connect
from coord.errors import AgentNotDraining, AgentNotFound, CursorInvalid, FactInvalid, ResultTimeout
from coord.models.agents import AgentChange, AgentStatus, AgentType
from coord.models.facts import AgentDeregistered, AgentHeartbeat, AgentRegistered
from coord.models.tasks import Lane
from coord.streams import Append, append
from tests.running import RunningCell
from tests.stories.conftest import MakeAgent
from tests.waiting import wait_until

PATIENT_S = 30.0


async def tell(cell: RunningCell, stream: str, *facts: object) -> None:
    """Append facts, and wait until the registry has handled them."""
    redis = connect(cell.url, cell.settings)
    try:
        await append(redis, cell.keys, [Append(stream, fact) for fact in facts])  # type: ignore[arg-type]
    finally:
        await redis.aclose()

    async def handled() -> bool:
        return await cell.redis.xlen(cell.keys.of(stream)) == 0

    await wait_until(handled, f"{stream} is handled")


def registered(agent_id: str, **options: object) -> AgentRegistered:
    """Return a registration."""
    return AgentRegistered(agent_id, AgentType.WORKER, **options)  # type: ignore[arg-type]


async def test_agents_are_found_by_any_mix_of_properties(cell: RunningCell, client: Client) -> None:
    """The healthiest first, in pages; the order does not depend on who registered first."""
    await tell(
        cell,
        "in:registry",
        registered("eu-2", capabilities=("ocr", "scan"), services=("http",), tags=("fast",), labels={"zone": "eu"}),
        registered("eu-1", capabilities=("ocr",), tags=("fast",), labels={"zone": "eu"}),
        registered("us-1", capabilities=("ocr",), labels={"zone": "us"}),
        AgentRegistered("watcher", AgentType.MONITOR),
    )
    await tell(cell, "in:beats", AgentHeartbeat("eu-1", load_metrics={"cpu": 0.9, "pending_tasks": 900.0}))

    async def found(**wanted: object) -> list[str]:
        return [agent.agent_id for agent in (await client.discover(**wanted)).agents]  # type: ignore[arg-type]

    assert await found(capabilities=["ocr"]) == ["eu-2", "us-1", "eu-1"]
    assert await found(capabilities=["ocr"], labels={"zone": "eu"}, tags=["fast"]) == ["eu-2", "eu-1"]
    assert await found(services=["http"], capabilities=["ocr", "scan"]) == ["eu-2"]
    assert await found(agent_type="worker", min_health=0.8) == ["eu-2", "us-1"]
    assert await found(status="active", agent_type=AgentType.MONITOR, placeable=True) == ["watcher"]
    assert await found(capabilities=["ocr", "nothing"]) == []
    first = await client.discover(limit=3)
    rest = await client.discover(limit=3, cursor=first.next)
    assert [agent.agent_id for agent in (*first.agents, *rest.agents)] == ["eu-2", "us-1", "watcher", "eu-1"]
    assert rest.next is None
    loaded = await client.agent("eu-1")
    assert loaded.health is not None
    assert loaded.health_score == pytest.approx(0.7)
    assert loaded.health.load_penalty == 0.3


async def test_a_search_that_does_not_fit_is_refused_by_its_field(client: Client) -> None:
    """Before anything is sent."""
    with pytest.raises(FactInvalid, match=r"agent_type 'workr' is not one of .*; did you mean 'worker'"):
        await client.discover(agent_type="workr")
    with pytest.raises(FactInvalid, match=r"capabilities: .*write \['ocr'\]"):
        await client.discover(capabilities="ocr")
    with pytest.raises(FactInvalid, match="min_health must be a number from 0 to 1, got 5"):
        await client.discover(min_health=5)
    with pytest.raises(FactInvalid, match="limit"):
        await client.discover(limit=0)
    with pytest.raises(CursorInvalid):
        await client.discover(cursor="1-1")
    with pytest.raises(CursorInvalid):
        await anext(client.watch_agents(since="yesterday"))


@pytest.mark.guarantee("discovery")
async def test_one_that_recovers_during_a_search_is_not_missed(
    cell: RunningCell, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """⚠ Its health rises past the position: ``discover_all`` yields it last; one that falls comes once."""
    monkeypatch.setattr(agents_module, "PAGE", 2)
    await tell(cell, "in:registry", *(registered(f"a{number}") for number in range(5)))
    await tell(cell, "in:beats", AgentHeartbeat("a0", load_metrics={"cpu": 0.9}))
    found: list[str] = []
    async with aclosing(client.discover_all(agent_type="worker")) as agents:
        async for agent in agents:
            found.append(agent.agent_id)
            if len(found) == 1:
                rises = AgentHeartbeat("a0", load_metrics={"cpu": 0.0})
                await tell(cell, "in:beats", rises, AgentHeartbeat("a1", load_metrics={"cpu": 0.9}))
    assert found == ["a1", "a2", "a3", "a4", "a0"]


async def read(changes: list[AgentChange], kind: str, agent_id: str = "") -> AgentChange:
    """Wait for a change and return it; forget those up to it."""

    def is_there() -> bool:
        return any((one.type, one.agent_id) == (kind, agent_id) for one in changes)

    await wait_until(is_there, f"{kind} {agent_id} comes")
    place = next(i for i, one in enumerate(changes) if (one.type, one.agent_id) == (kind, agent_id))
    found = changes[place]
    del changes[: place + 1]
    return found


async def collect(client: Client, changes: list[AgentChange], since: str | None = None) -> None:
    """Watch until cancelled."""
    async with aclosing(client.watch_agents(since=since)) as watching:
        async for change in watching:
            changes += [change]


@pytest.mark.guarantee("watch-of-agents")
async def test_a_watch_begins_with_all_agents_and_misses_no_change(cell: RunningCell, client: Client) -> None:
    """A snapshot, then what happens; from a cursor on without a snapshot; all again when the log was trimmed."""
    await tell(cell, "in:registry", registered("a1"), registered("a2"))
    await tell(cell, "in:registry", AgentDeregistered("a2"))
    changes: list[AgentChange] = []
    watching = asyncio.create_task(collect(client, changes))
    snapshot = await read(changes, "snapshot", "a1")
    assert snapshot.agent is not None
    assert snapshot.agent.status is AgentStatus.ACTIVE
    ready = await read(changes, "ready")

    await client.admin.maintain("a1", timeout=PATIENT_S)
    changed = await read(changes, "agent.changed", "a1")
    assert changed.agent is not None
    assert changed.agent.status is AgentStatus.MAINTENANCE
    await tell(cell, "in:registry", registered("a3"))
    await read(changes, "agent.registered", "a3")
    watching.cancel()

    await tell(cell, "in:registry", registered("a1", metadata={"n": 1}))
    again: list[AgentChange] = []
    watching = asyncio.create_task(collect(client, again, since=changed.cursor))
    await read(again, "agent.registered", "a3")
    last = await read(again, "agent.changed", "a1")
    assert last.agent is not None
    assert last.agent.metadata == {"n": 1}
    watching.cancel()

    await cell.redis.xtrim(cell.keys.of("log:agents"), maxlen=1, approximate=False)
    late: list[AgentChange] = []
    watching = asyncio.create_task(collect(client, late, since=ready.cursor))
    await wait_until(lambda: any(one.type == "ready" for one in late), "the snapshot comes again")
    assert [(one.type, one.agent_id) for one in late] == [
        ("resync", ""), ("snapshot", "a1"), ("snapshot", "a3"), ("ready", "")
    ]  # fmt: skip
    watching.cancel()


async def test_an_operator_waits_until_a_drained_agent_has_nothing_left(client: Client, make_agent: MakeAgent) -> None:
    """The tasks left are counted down; one that is not drained is refused, because it gets new ones."""
    agent = make_agent("a1", capacity=2)
    ends = [asyncio.Event(), asyncio.Event()]

    @agent.task("wait")
    async def wait(task: Task) -> None:
        await ends[task.payload].wait()

    await agent.start()
    handles = [await client.submit("wait", number) for number in (0, 1)]

    async def holds_both() -> bool:
        return (await client.agent("a1")).load == 2

    await wait_until(holds_both, "it holds both")
    with pytest.raises(AgentNotDraining, match="coord agents drain a1"):
        await client.admin.wait_drained("a1")
    await client.admin.drain("a1", timeout=PATIENT_S)
    with pytest.raises(ResultTimeout, match=r"2 tasks left after 0\.01 s"):
        await client.admin.wait_drained("a1", timeout=0.01)
    left: list[int] = []

    def progress(count: int) -> None:
        left.append(count)
        if count:
            ends[2 - count].set()

    await client.admin.wait_drained("a1", timeout=PATIENT_S, on_progress=progress)
    assert left == [2, 1, 0]
    for handle in handles:
        await handle.result(PATIENT_S)
    with pytest.raises(AgentNotFound):
        await client.admin.wait_drained("nobody")


async def test_the_records_of_agents_that_left_are_removed(cell: RunningCell, client: Client) -> None:
    """All in steps; those that are here stay; a watch sees it."""
    await tell(cell, "in:registry", registered("here"), registered("gone-1"), registered("gone-2"))
    await tell(cell, "in:registry", AgentDeregistered("gone-1"), AgentDeregistered("gone-2"))
    changes: list[AgentChange] = []
    watching = asyncio.create_task(collect(client, changes))
    await read(changes, "ready")
    assert await client.admin.prune_agents(3_600, timeout=PATIENT_S) == 0
    assert await client.admin.prune_agents(0, timeout=PATIENT_S) == 2
    assert [agent.agent_id for agent in await client.agents()] == ["here"]
    assert (await read(changes, "agent.forgotten", "gone-2")).agent is None
    watching.cancel()


async def test_an_agent_deletes_the_order_that_asks_whether_it_reads(
    cell: RunningCell, client: Client, make_agent: MakeAgent
) -> None:
    """Also an order that it does not know; neither reaches its handler of messages."""
    agent = make_agent("a1")
    received: list[object] = []

    @agent.on_message
    async def receive(message: Message) -> None:
        received.append(message.payload)

    await agent.start()
    lane = cell.keys.inbox("a1", "critical")

    async def is_empty() -> bool:
        return await cell.redis.xlen(lane) == 0

    with capture_logs() as logged:
        for order in ("read_inbox", "dance"):
            await cell.redis.xadd(lane, {"message_type": "coordination", "data": "{}", "order": order})
        await client.send("a1", "hello", priority="critical", timeout=PATIENT_S)
        await wait_until(is_empty, "its lane is empty")
    assert received == ["hello"]
    assert [one for one in logged if one["log_level"] in {"warning", "error"}] == []


@pytest.mark.long
async def test_a_silent_inbox_is_found_and_its_task_goes_to_another(
    cell: RunningCell, client: Client, make_agent: MakeAgent
) -> None:
    """⚠ A program that sends heartbeats and never reads gets one task, and that one goes on after some heartbeats."""
    deaf = AgentRegistered("deaf", AgentType.WORKER, capabilities=("work",), capacity=1, heartbeat_interval=1.0)
    await tell(cell, "in:registry", deaf)
    handle = await client.submit("work")

    async def is_assigned() -> bool:
        return (await client.agent("deaf")).load == 1

    await wait_until(is_assigned, "it has the task")
    other = make_agent("other")

    @other.task("work")
    async def work(task: Task) -> str:
        return "done"

    await other.start()

    async def beat() -> None:
        while True:
            await tell(cell, "in:beats", AgentHeartbeat("deaf"))
            await asyncio.sleep(1.0)

    beating = asyncio.create_task(beat())
    assert await handle.result(PATIENT_S) == "done"
    record = await handle.record()
    assert (record.agent_id, record.failures) == ("other", 0)
    assert record.attempts[0].message == "its agent sends heartbeats and does not read its inbox"
    assert (await client.agent("deaf")).deaf_reason == "unread"

    await cell.redis.delete(*[cell.keys.inbox("deaf", lane) for lane in Lane])

    async def hears() -> bool:
        return not (await client.agent("deaf")).deaf

    await wait_until(hears, "it reads again")
    beating.cancel()
