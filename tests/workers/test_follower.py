"""The distributor's view follows the fleet: every change at once, a new snapshot when the log does not reach back."""

from __future__ import annotations

import pytest

from coord.models.agents import AgentStatus
from coord.models.facts import AgentDeregistered, AgentHeartbeat, AgentStatusChanged
from coord.models.tasks import Requirements, TaskState
from tests.running import RunningCell
from tests.waiting import wait_until
from tests.workers.raw import Caller, RawAgent, await_state, distributor, fleet
from workers.view import View


def view_of(cell: RunningCell) -> View:
    """The view of the only distributor."""
    (worker,) = cell.of_kind("distributor")
    return distributor(worker).view


async def test_the_view_follows_every_change(cell: RunningCell) -> None:
    """Registration, other capabilities, a status, a departure: each is seen within moments."""
    view = view_of(cell)
    agent = RawAgent(cell.redis, cell.keys, "a0", 1)
    caller = Caller(cell.redis, cell.keys)
    await agent.register()
    await wait_until(lambda: "a0" in view.agents, "it is seen")
    agent.capacity, agent.options = 7, {"capabilities": ("echo",)}
    await agent.register()
    await wait_until(lambda: view.agents["a0"].agent.capacity == 7, "its capacity is seen")
    assert view.agents["a0"].agent.capabilities == {"echo"}
    await caller.tell("in:registry", AgentStatusChanged(agent_id="a0", status=AgentStatus.BUSY))
    await wait_until(lambda: not view.agents["a0"].agent.active, "it is seen busy")
    await caller.tell("in:registry", AgentStatusChanged(agent_id="a0", status=AgentStatus.ACTIVE))
    await wait_until(lambda: view.agents["a0"].agent.active, "it is seen back")
    await caller.tell("in:registry", AgentDeregistered(agent_id="a0"))
    await wait_until(lambda: not view.agents["a0"].agent.active, "it is seen gone")


async def test_the_view_follows_the_load_that_agents_report(cell: RunningCell, caller: Caller) -> None:
    """Within a second or two, and without reading their records."""
    await fleet(cell, 2)
    view = view_of(cell)
    await wait_until(lambda: len(view.agents) == 2, "the fleet is seen")
    metrics = {"cpu": 0.5, "memory": 0.25, "active_connections": 3.0, "pending_tasks": 4.0}
    await caller.tell("in:beats", AgentHeartbeat(agent_id="a1", load_metrics=metrics))
    await wait_until(lambda: view.agents["a1"].agent.outside_load == 7, "the load is seen")
    assert view.agents["a0"].agent.outside_load == 0
    assert view.agents["a1"].agent.rev == 1
    assert (view.agents["a1"].agent.cpu, view.agents["a1"].agent.memory) == (0.5, 0.25)
    await caller.tell("in:beats", AgentHeartbeat(agent_id="a1", load_metrics={"cpu": 7.0}))
    await wait_until(lambda: view.agents["a1"].agent.cpu == 1.0, "no share is above 1")


async def test_what_a_newcomer_can_is_used_at_once(cell: RunningCell, caller: Caller) -> None:
    """A task that nobody could take goes to the first agent that comes and can."""
    await fleet(cell, 2)
    (told,) = await caller.submit(requirements=Requirements(capabilities=("rare",)))
    await await_state(cell, told.task_id, TaskState.QUEUED)
    agent = RawAgent(cell.redis, cell.keys, "rare-1", 1, options={"capabilities": ("rare",)})
    await agent.register()
    await agent.await_inbox()


async def test_a_log_flushed_under_the_cursor_is_noticed(cell: RunningCell) -> None:
    """A change that was told in entries which nobody will ever read is found, though newer ones follow them."""
    await fleet(cell, 3)
    view = view_of(cell)
    await wait_until(lambda: len(view.agents) == 3, "the fleet is seen")
    await _miss_a_change(cell, view, by="del")
    await wait_until(lambda: view.agents["a1"].agent.capacity == 42, "the change that went unread is seen")


async def test_a_log_trimmed_beyond_the_cursor_is_noticed(cell: RunningCell) -> None:
    """The same for entries that were trimmed away before they were read."""
    await fleet(cell, 3)
    view = view_of(cell)
    await wait_until(lambda: len(view.agents) == 3, "the fleet is seen")
    await _miss_a_change(cell, view, by="trim")
    await wait_until(lambda: view.agents["a1"].agent.capacity == 42, "the change that went unread is seen")


@pytest.mark.guarantee("rewound-log")
async def test_a_log_rewound_under_the_cursor_is_noticed(cell: RunningCell) -> None:
    """The log is what it was a while ago, as after a fail-over, and so are the records: the view becomes that too."""
    await fleet(cell, 3)
    view = view_of(cell)
    await wait_until(lambda: len(view.agents) == 3, "the fleet is seen")
    log = cell.keys.of("log:agents")
    earlier = await cell.redis.dump(log)
    assert earlier is not None
    agent = RawAgent(cell.redis, cell.keys, "a1", 42)
    await agent.register()
    await wait_until(lambda: view.agents["a1"].agent.capacity == 42, "the change is seen")
    pipe = cell.redis.pipeline(transaction=True)
    pipe.hset(cell.keys.agent("a1"), "capacity", 1)
    pipe.restore(log, 0, earlier, replace=True)
    await pipe.execute()
    await wait_until(lambda: view.agents["a1"].agent.capacity == 1, "the change is not seen any more")


async def test_a_row_that_cannot_be_read_does_not_end_the_following(cell: RunningCell) -> None:
    """Whatever a record says, the view goes on following the others once it can be read again."""
    await fleet(cell, 1)
    view = view_of(cell)
    await wait_until(lambda: "a0" in view.agents, "it is seen")
    (worker,) = cell.of_kind("distributor")
    follower = distributor(worker).follower
    changed, raised = follower._changed, 0

    async def fail_once(names: set[str]) -> None:
        nonlocal raised
        raised += 1
        if raised == 1:
            raise ValueError("a row that cannot be read")
        await changed(names)

    follower._changed = fail_once
    await RawAgent(cell.redis, cell.keys, "a1").register()
    await wait_until(lambda: "a1" in view.agents, "the next one is seen")
    await RawAgent(cell.redis, cell.keys, "a2").register()
    await wait_until(lambda: "a2" in view.agents, "and the one after it")
    assert raised == 2


async def _miss_a_change(cell: RunningCell, view: View, *, by: str) -> None:
    """A record changes, and the entry that tells of it is gone before it is read; others follow it."""
    log = cell.keys.of("log:agents")
    pipe = cell.redis.pipeline(transaction=True)
    pipe.hset(cell.keys.agent("a1"), "capacity", 42)
    told = {"type": "agent.changed", "agent_id": "a1"}
    pipe.xadd(log, told)  # type: ignore[arg-type]
    if by == "del":
        pipe.delete(log)
    else:
        pipe.xtrim(log, maxlen=0, approximate=False)
    pipe.xadd(log, {"type": "agent.changed", "agent_id": "a2"})
    await pipe.execute()
    assert view.agents["a1"].agent.capacity == 1
