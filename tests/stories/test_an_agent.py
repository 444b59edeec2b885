"""An agent's life: it registers, works within its capacity, restarts, leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coord import Client, Task
from coord.config import Settings
from coord.errors import AgentSuperseded
from coord.models.agents import AgentStatus
from coord.models.tasks import TaskState
from tests.stories.conftest import MakeAgent
from tests.waiting import wait_until


@pytest.fixture
def settings(namespace: str) -> Settings:
    """Nobody's silence counts here: a busy machine is silent for longer than a few beats of these agents."""
    return Settings(namespace=namespace, missed_beats=1_000)


async def test_an_agent_is_in_the_fleet_while_it_serves(client: Client, make_agent: MakeAgent) -> None:
    """What it declared can be looked up, with its task types among the capabilities; it leaves when it stops."""
    agent = make_agent("worker-1", capabilities=["gpu"], capacity=3, tags=["fast"], labels={"zone": "a"})

    @agent.task("render")
    async def render(task: Task) -> None: ...

    async with agent:
        record = await client.agent("worker-1")
        assert (record.status, record.capacity, record.tags) == (AgentStatus.ACTIVE, 3, ("fast",))
        assert record.capabilities == ("gpu", "render")
        assert [one.agent_id for one in await client.agents()] == ["worker-1"]
    assert (await client.agent("worker-1")).status == AgentStatus.INACTIVE


async def test_an_agent_beats_by_itself(client: Client, make_agent: MakeAgent) -> None:
    """Its record tells the machine's load, and how many leases it holds."""
    agent = make_agent("lively", heartbeat_interval=0.1)
    release = asyncio.Event()

    @agent.task("hold")
    async def hold(task: Task) -> None:
        await release.wait()

    await agent.start()
    handle = await client.submit("hold")

    async def holds_one() -> bool:
        record = await client.agent("lively")
        return record.leases == 1 and 0 <= record.load_metrics.get("memory", -1) <= 1

    await wait_until(holds_one, "a beat tells of the lease")
    release.set()
    await handle.result(timeout=10)


async def test_an_agent_never_runs_more_than_its_capacity(client: Client, make_agent: MakeAgent) -> None:
    """Of fifty tasks at once it runs two at a time."""
    agent = make_agent("narrow", capacity=2)
    most = running = 0

    @agent.task("step")
    async def step(task: Task) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await agent.start()
    for handle in await client.submit_many([{"task_type": "step"}] * 50):
        await handle.result(timeout=20)
    assert most <= 2


async def test_a_task_is_running_once_it_has_run_a_while(client: Client, make_agent: MakeAgent) -> None:
    """A long handler is seen running, with its progress; the outcome follows."""
    agent = make_agent("long")
    release = asyncio.Event()

    @agent.task("long")
    async def long(task: Task) -> str:
        await task.progress({"done": 0.5})
        await release.wait()
        return "done"

    await agent.start()
    handle = await client.submit("long")

    async def is_running() -> bool:
        record = await handle.record()
        return record.state == TaskState.RUNNING and record.progress == {"done": 0.5}

    await handle.accepted(timeout=10)
    await wait_until(is_running, "the task is seen running, with its progress")
    release.set()
    assert await handle.result(timeout=10) == "done"


async def test_what_a_leaving_agent_has_not_begun_goes_to_others(client: Client, make_agent: MakeAgent) -> None:
    """It finishes what it runs; nothing is lost, and nothing of it counts as a failure."""
    leaving, staying = make_agent("leaving", capacity=4), make_agent("staying", capacity=4)
    release = asyncio.Event()
    done: dict[str, list[int]] = {"leaving": [], "staying": []}
    for agent in (leaving, staying):

        @agent.task("work")
        async def work(task: Task, name: str = agent.agent_id) -> None:
            await release.wait()
            done[name].append(task.payload)

    await leaving.start()
    handles = await client.submit_many([{"task_type": "work", "payload": n} for n in range(12)])
    await wait_until(lambda: leaving.running == 4, "the first agent is full")
    await staying.start()
    stopping = asyncio.create_task(leaving.stop())
    await wait_until(lambda: staying.running == 4, "the second agent is full")
    release.set()
    await stopping
    for handle in handles:
        await handle.result(timeout=20)
    assert sorted(done["leaving"] + done["staying"]) == list(range(12))
    assert len(done["leaving"]) == 4
    assert [(await handle.record()).failures for handle in handles] == [0] * 12


async def test_a_restarted_agent_takes_over_its_name(client: Client, make_agent: MakeAgent) -> None:
    """A newer process has the id: the older one stops for good, and what it ran is run again."""

    def make(fate: Any) -> Any:
        agent = make_agent("phoenix", heartbeat_interval=0.1)

        @agent.task("burn")
        async def burn(task: Task) -> str:
            return str(await fate(task))

        return agent

    running = asyncio.Event()

    async def hang(task: Task) -> str:
        running.set()
        await asyncio.Event().wait()
        return "never"

    async def finish(task: Task) -> str:
        return f"attempt {task.attempt}"

    older, newer = make(hang), make(finish)
    serving = asyncio.create_task(older.serve())
    handle = await client.submit("burn", retry={"backoff": 0.01})
    await running.wait()
    await newer.start()
    with pytest.raises(AgentSuperseded):
        await serving
    assert await handle.result(timeout=20) == "attempt 2"
    assert not older.is_serving
    assert newer.is_serving
