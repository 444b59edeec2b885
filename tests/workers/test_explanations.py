"""Why a task waits, on a cell at work: each reason of the list, and what the explanation says besides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
import pytest

from coord import Client, queries
from coord.errors import TaskNotFound
from coord.models.agents import AgentStatus
from coord.models.explanations import WaitingExplanation, WaitingReason
from coord.models.facts import AgentDeregistered, AgentHeartbeat, AgentStatusChanged, TaskFailed
from coord.models.tasks import Priority, Requirements, TaskState
from coord.queries import explanations
from coord.streams import Append, append
from tests.running import RunningCell
from tests.waiting import wait_until
from tests.workers.raw import Caller, RawAgent, await_state, fleet, state, working

R = WaitingReason


@pytest.fixture
async def client(cell: RunningCell) -> AsyncIterator[Client]:
    """A client of the cell."""
    async with Client(cell.url, settings=cell.settings) as client:
        yield client


class Asking:
    """Submits tasks that wait, and asks why."""

    def __init__(self, cell: RunningCell, caller: Caller, client: Client) -> None:
        self.cell = cell
        self.caller = caller
        self.client = client

    async def submit(self, count: int = 1, priority: Priority = Priority.NORMAL, **requirements: Any) -> list[str]:
        """Submit tasks with these requirements, and wait until they are in the queue; their ids."""
        wanted = msgspec.convert(requirements, Requirements)
        ids = [told.task_id for told in await self.caller.submit(count, priority, requirements=wanted)]
        for task_id in ids:
            await wait_until(partial(state, self.cell, task_id), f"{task_id} is admitted")
        return ids

    async def fill(self, count: int) -> None:
        """Submit tasks that every agent may do, and wait until agents have them all."""
        for task_id in await self.submit(count):
            await await_state(self.cell, task_id, TaskState.ASSIGNED)

    async def why(self, task_id: str) -> WaitingExplanation:
        """The explanation of a task that waits."""
        found = await self.client.explain(task_id)
        assert found.is_waiting
        assert found.placed is None
        assert found.waiting is not None
        assert found.summary == f"the task waits: {found.waiting.text}"
        return found.waiting

    async def reason(self, wanted: WaitingReason, **requirements: Any) -> WaitingExplanation:
        """Submit a task; its explanation, once it waits for this reason. The pool has the same reason."""
        (task_id,) = await self.submit(**requirements)

        async def has_reason() -> WaitingExplanation | None:
            found = await self.why(task_id)
            return found if found.reason is wanted else None

        found = await wait_until(has_reason, f"{task_id} waits because of {wanted}")
        assert found is not None
        assert sum(found.rejected.values()) == found.agents - found.eligible
        pools = {pool.pool: pool for pool in (await self.client.backlog()).pools}
        assert pools[found.pool].reason is wanted
        return found

    async def tell(self, stream: str, fact: msgspec.Struct) -> None:
        """Append a fact of an agent."""
        await append(self.cell.redis, self.cell.keys, [Append(stream, fact, "a0")])

    async def set_status(self, agent_id: str, status: AgentStatus) -> None:
        """Have an agent report a status, and wait until the registry has it."""
        await self.tell("in:registry", AgentStatusChanged(agent_id, status))
        await self.await_status(agent_id, status)

    async def await_status(self, agent_id: str, status: AgentStatus) -> None:
        """Wait until an agent has a status."""

        async def has_status() -> bool:
            agent = await queries.get_agent(self.cell.redis, self.cell.keys, agent_id)
            return agent is not None and agent.status is status

        await wait_until(has_status, f"{agent_id} is {status}")


@pytest.fixture
async def asking(cell: RunningCell, caller: Caller, client: Client) -> Asking:
    """Asks why tasks wait. The distributor, which is no process of its own here, counts as present."""
    await cell.redis.zadd(cell.keys.of("workers:distributor"), {"distributor-2": await client.server_time()})
    return Asking(cell, caller, client)


async def test_scheduled(asking: Asking, cell: RunningCell, caller: Caller) -> None:
    """Its run time is not reached: no agent is read for that, and the time is in the answer."""
    ((task_id, _),) = await caller.submit(delay=3_600)
    record = await await_state(cell, task_id, TaskState.SCHEDULED)
    found = await asking.why(task_id)
    assert (found.reason, found.run_at, found.agents, found.position) == (R.SCHEDULED, record.run_at, 0, None)
    assert found.text == "its run time is not reached"


async def test_scheduled_again_after_a_failure(cell: RunningCell, caller: Caller, asking: Asking) -> None:
    """The backoff before the next attempt is a run time too; the explanation says which attempt did not complete."""
    (agent,) = await fleet(cell, 1)
    ((task_id, _),) = await caller.submit(retry={"backoff": 3_600, "backoff_max": 3_600})
    (entry,) = await agent.await_inbox()
    await agent.claim(entry)
    await agent.fail(entry)
    await await_state(cell, task_id, TaskState.SCHEDULED)
    found = await asking.why(task_id)
    assert found.reason is R.SCHEDULED
    assert found.text == "its run time is not reached (attempt 1 did not complete, and the next one starts then)"


async def test_no_agent_registered(asking: Asking) -> None:
    """An empty cell."""
    found = await asking.reason(R.NO_AGENT_REGISTERED)
    assert (found.agents, found.rejected, found.nearest, found.estimate) == (0, {}, (), None)
    assert found.text == "no agent is registered"


async def test_no_agent_registered_any_more(asking: Asking, cell: RunningCell) -> None:
    """An agent that has left is named as the nearest one."""
    await fleet(cell, 1)
    await asking.tell("in:registry", AgentDeregistered("a0"))
    await asking.await_status("a0", AgentStatus.INACTIVE)
    found = await asking.reason(R.NO_AGENT_REGISTERED)
    assert found.rejected == {R.NO_AGENT_REGISTERED: 1}
    assert [miss.text for miss in found.nearest] == ["a0 fits except for its status inactive (it has left)"]


async def test_no_agent_type(asking: Asking, cell: RunningCell) -> None:
    """No agent is of the type."""
    await fleet(cell, 2)
    found = await asking.reason(R.NO_AGENT_TYPE, agent_type="inference")
    assert found.text == "no agent has the type 'inference'"
    assert found.rejected == {R.NO_AGENT_TYPE: 2}


async def test_no_capability(asking: Asking, cell: RunningCell) -> None:
    """No agent can do it; the one that lacks least is named."""
    await fleet(cell, 2, capabilities=("ocr",))
    found = await asking.reason(R.NO_CAPABILITY, capabilities=("ocr", "gpu"))
    assert found.text == "no agent has the capabilities 'ocr' and 'gpu'"
    assert [miss.text for miss in found.nearest] == [f"a{number} fits except for capability 'gpu'" for number in (0, 1)]


async def test_no_service(asking: Asking, cell: RunningCell) -> None:
    """No agent offers the service."""
    await fleet(cell, 1, capabilities=("ocr",))
    found = await asking.reason(R.NO_SERVICE, capabilities=("ocr",), services=("http",))
    assert found.text == "no agent with the required capability has the service 'http'"


async def test_no_tag(asking: Asking, cell: RunningCell) -> None:
    """No agent has the tag."""
    await fleet(cell, 1, tags=("eu",))
    assert (await asking.reason(R.NO_TAG, tags=("us",))).text == "no agent has the tag 'us'"


async def test_no_label(asking: Asking, cell: RunningCell) -> None:
    """An agent has the label with another value, which the explanation shows."""
    await fleet(cell, 1, labels={"zone": "a"})
    found = await asking.reason(R.NO_LABEL, labels={"zone": "b"})
    assert found.text == "no agent has the label 'zone=b'"
    assert found.nearest[0].lacks == ("label 'zone=b' (it has 'a')",)


async def test_no_version(asking: Asking, cell: RunningCell, caller: Caller) -> None:
    """The only version that is at work could not decode the payload; another one is there and takes no tasks."""
    (agent,) = await fleet(cell, 1, version="1.0")
    other = RawAgent(cell.redis, cell.keys, "b0", options={"version": "2.0"})
    await other.register()
    await asking.set_status("b0", AgentStatus.MAINTENANCE)
    ((task_id, _),) = await caller.submit()
    (entry,) = await agent.await_inbox()
    await agent.claim(entry)
    await agent.report(TaskFailed(task_id, entry.lease, "payload_invalid", "no field 'n'", retryable=False))
    await await_state(cell, task_id, TaskState.QUEUED)
    found = await asking.why(task_id)
    assert found.reason is R.ALL_BUSY_STATUS
    assert found.rejected == {R.NO_VERSION: 1, R.ALL_BUSY_STATUS: 1}
    await asking.tell("in:registry", AgentDeregistered("b0"))
    await asking.await_status("b0", AgentStatus.INACTIVE)
    found = await asking.why(task_id)
    assert found.reason is R.NO_VERSION
    assert found.nearest[0].text == "a0 fits except for its version '1.0', which could not decode the payload"


async def test_named_agent_absent(asking: Asking, cell: RunningCell) -> None:
    """The agent that the task names is not registered, though others would do."""
    await fleet(cell, 1)
    found = await asking.reason(R.NAMED_AGENT_ABSENT, agent_id="ghost")
    assert found.text == "agent 'ghost', which the task names, is not registered"
    assert found.nearest[0].text == "a0 fits except for its id (the task names 'ghost')"


async def test_a_named_agent_that_is_there_gives_its_own_reason(asking: Asking, cell: RunningCell) -> None:
    """Others are idle; only the named one counts, and it is drained."""
    await fleet(cell, 3)
    await asking.client.admin.drain("a1")
    found = await asking.reason(R.ALL_DRAINING, agent_id="a1")
    assert found.rejected == {R.NAMED_AGENT_ABSENT: 2, R.ALL_DRAINING: 1}
    assert [miss.agent_id for miss in found.nearest] == ["a1"]
    assert found.text == "agent 'a1', which the task names, fits except for its status draining"


async def test_all_stale(asking: Asking, cell: RunningCell) -> None:
    """The only agent missed its heartbeats."""
    await RawAgent(cell.redis, cell.keys, "a0", options={"heartbeat_interval": 0.05}).register()
    await asking.await_status("a0", AgentStatus.STALE)
    found = await asking.reason(R.ALL_STALE)
    assert found.text == "the only agent that fits is stale"
    assert found.nearest[0].lacks == ("its status stale (it missed its heartbeats)",)


async def test_all_unhealthy(asking: Asking, cell: RunningCell) -> None:
    """Below the threshold of the cell, also when that is set live, and below the task's own."""
    await fleet(cell, 1)
    await asking.tell("in:beats", AgentHeartbeat("a0", load_metrics={"cpu": 100.0, "memory": 100.0}))

    async def is_ill() -> float | None:
        health = (await asking.client.agent("a0")).health_score
        return health if health < 1.0 else None

    health = await wait_until(is_ill, "its health is below 1")
    assert health is not None
    found = await asking.reason(R.ALL_UNHEALTHY, min_health_score=1.0)
    assert found.nearest[0].lacks == (f"its health {health:.2g} (at least 1 is required)",)
    await asking.client.admin.set_setting("health_threshold", 0.99)
    assert (await asking.reason(R.ALL_UNHEALTHY)).nearest[0].lacks[0].endswith("(at least 0.99 is required)")


async def test_all_draining(asking: Asking, cell: RunningCell) -> None:
    """An operator drains the whole fleet."""
    for agent in await fleet(cell, 2):
        await asking.client.admin.drain(agent.agent_id)
    found = await asking.reason(R.ALL_DRAINING)
    assert found.text == "all 2 agents that fit are draining"


@pytest.mark.parametrize("status", [AgentStatus.BUSY, AgentStatus.MAINTENANCE, AgentStatus.ERROR])
async def test_all_busy_status(asking: Asking, cell: RunningCell, status: AgentStatus) -> None:
    """The agent reports that it takes no tasks; which status it is, is in the nearest misses."""
    await fleet(cell, 1)
    await asking.set_status("a0", status)
    found = await asking.reason(R.ALL_BUSY_STATUS)
    assert found.text == "the only agent that fits is taking no tasks"
    assert found.nearest[0].lacks == (f"its status {status}",)


async def test_all_busy_status_of_a_deaf_agent(asking: Asking, cell: RunningCell) -> None:
    """It is active, but does not read its inbox."""
    await fleet(cell, 1)
    await asking.tell("in:beats", AgentHeartbeat("a0", deaf=True))

    async def is_deaf() -> bool:
        return (await asking.client.agent("a0")).deaf

    await wait_until(is_deaf, "a0 is deaf")
    found = await asking.reason(R.ALL_BUSY_STATUS)
    assert found.nearest[0].lacks == ("its inbox (it gets no tasks until it reports that it reads them)",)


async def test_all_full(asking: Asking, cell: RunningCell) -> None:
    """Every slot is in use, also by tasks that were not claimed yet."""
    await fleet(cell, 2, capacity=2)
    await asking.fill(4)
    found = await asking.reason(R.ALL_FULL)
    assert (found.text, found.eligible) == ("all 2 agents that fit are at capacity", 0)
    assert found.nearest[0].text == "a0 fits except for room (it has 2 of at most 2 tasks)"


async def test_next_in_line(asking: Asking, cell: RunningCell) -> None:
    """An agent has room, and no distributor is there to use it, which is the obstacle."""
    agents = await fleet(cell, 2)
    await asking.fill(2)
    (task_id,) = await asking.submit()
    (distributor,) = cell.of_kind("distributor")
    await distributor.stop()
    await cell.redis.delete(cell.keys.of("workers:distributor"))
    (entry,) = await agents[0].await_inbox()
    await cell.redis.srem(cell.keys.inflight("a0"), entry.task_id)  # what a report would do, if one were handled
    found = await asking.client.explain(task_id)
    assert found.waiting is not None
    assert (found.waiting.reason, found.waiting.eligible, found.waiting.nearest) == (R.NEXT_IN_LINE, 1, ())
    assert found.waiting.obstacles == ("no distributor is running; start one: coord worker distributor",)
    assert found.summary == f"the task waits: {found.waiting.text}; {found.waiting.obstacles[0]}"


async def test_each_rejected_agent_is_counted_once(asking: Asking, cell: RunningCell) -> None:
    """A fleet in which every agent lacks several things, more of them than one read of the fleet."""
    agents = [
        RawAgent(cell.redis, cell.keys, f"a{number:03}", 1, options={"tags": ("eu",) if number % 2 else ()})
        for number in range(explanations.NEAREST * 120)
    ]
    for agent in agents:
        await agent.register()

    async def are_known() -> bool:
        return bool(await cell.redis.scard(cell.keys.of("agents:active")) == len(agents))

    await wait_until(are_known, "all agents are active")
    found = await asking.reason(R.NO_LABEL, tags=("eu",), labels={"zone": "b"})
    assert (found.agents, found.rejected) == (600, {R.NO_TAG: 300, R.NO_LABEL: 300})
    assert [miss.agent_id for miss in found.nearest] == ["a001", "a003", "a005", "a007", "a009"]


async def test_the_position_is_that_in_the_pool(asking: Asking) -> None:
    """By the order in which the tasks are placed: an urgent one passes those that wait."""
    ids = await asking.submit(3)
    (urgent,) = await asking.submit(priority=Priority.URGENT)
    (other,) = await asking.submit(tags=("eu",))
    assert [(await asking.why(task_id)).position for task_id in ids] == [2, 3, 4]
    found = await asking.why(urgent)
    assert (found.position, found.ahead, found.length) == (1, 0, 4)
    found = await asking.why(other)
    assert (found.position, found.length) == (1, 1)


async def test_an_estimate_has_its_basis(
    asking: Asking, cell: RunningCell, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate is that of the pool, not of the cell; a pool without a rate, or that no agent fits, has no estimate."""
    agents = await fleet(cell, 2, tags=("eu",))
    async with working(agents):
        done = await caller.submit(6, requirements=Requirements(tags=("eu",)))
        done += await caller.submit(9)
        for told in done:
            await await_state(cell, told.task_id, TaskState.COMPLETED)
    await asking.fill(2)
    *_, last = await asking.submit(3, tags=("eu",))
    found = await asking.why(last)
    assert (found.reason, found.ahead, found.estimate) == (R.ALL_FULL, 2, None), "the cell is too young for a rate"
    monkeypatch.setattr(explanations, "RATE_LEAST_MS", 0)
    before = await asking.client.server_time()
    estimate = (await asking.why(last)).estimate
    assert estimate is not None
    assert estimate.basis.startswith("6 tasks of this pool were assigned in the last ")
    after = await asking.client.server_time()
    for_three_ms = 3_000 / estimate.per_s  # two tasks are ahead; the rate is rounded
    assert before + 0.99 * for_three_ms <= estimate.at <= after + 1.01 * for_three_ms + 1
    (unplaced,) = await asking.submit(tags=("eu",), labels={"zone": "b"})
    assert (await asking.why(unplaced)).estimate is None
    (new,) = await asking.submit(tags=("eu",), min_health_score=0.1)
    assert (await asking.why(new)).reason is R.ALL_FULL
    assert (await asking.why(new)).estimate is None
    monkeypatch.setattr(explanations, "RATE_TASKS", 1)
    assert (await asking.why(last)).estimate is None, "the newest assignment of the cell is not of this pool"


async def test_parked_pools_are_listed_first(asking: Asking, cell: RunningCell) -> None:
    """Those that no agent fits come before those that wait for a slot, each kind by its head."""
    await fleet(cell, 1)
    await asking.fill(1)
    await asking.submit(2)
    await asking.submit(tags=("us",))
    await asking.submit(min_health_score=0.1)
    await asking.submit(tags=("eu",))
    backlog = await asking.client.backlog()
    assert [pool.reason for pool in backlog.pools] == [R.NO_TAG, R.NO_TAG, R.ALL_FULL, R.ALL_FULL]
    assert [pool.definition.requirements.tags for pool in backlog.pools] == [("us",), ("eu",), (), ()]
    assert [pool.length for pool in backlog.pools] == [1, 1, 2, 1]
    assert [pool.pool for pool in (await asking.client.backlog(1)).pools] == [backlog.pools[0].pool]
    assert ((await asking.client.backlog(0)).pools, (await asking.client.backlog(0)).unlisted) == ((), 4)


async def test_a_task_that_an_agent_has_is_explained(asking: Asking, cell: RunningCell, caller: Caller) -> None:
    """Agent, strategy, number of eligible agents, time, term and attempt; and the same when it has ended."""
    (agent,) = await fleet(cell, 1)
    ((task_id, _),) = await caller.submit()
    (entry,) = await agent.await_inbox()
    record = await await_state(cell, task_id, TaskState.ASSIGNED)
    found = await asking.client.explain(task_id)
    chosen = "chosen by least_connections among 1 eligible agent"
    assert (found.state, found.waiting) == (TaskState.ASSIGNED, None)
    assert found.summary == f"the task is assigned to a0 at attempt 1, {chosen}"
    placed = found.placed
    assert placed is not None
    assert (placed.agent_id, placed.attempt, placed.term) == ("a0", 1, record.term)
    assert (placed.strategy, placed.eligible, placed.assigned_at) == ("least_connections", 1, record.assigned_at)
    await agent.claim(entry)
    await agent.fail(entry, retryable=False, message="no paper")
    await await_state(cell, task_id, TaskState.FAILED)
    found = await asking.client.explain(task_id)
    assert found.summary == f"the task has failed on a0 at attempt 1, {chosen}: handler_failed: no paper"
    assert found.placed == placed


async def test_a_task_that_ended_before_it_was_placed(asking: Asking) -> None:
    """It was cancelled while it waited."""
    (task_id,) = await asking.submit()
    await asking.client.cancel(task_id)
    found = await asking.client.explain(task_id)
    assert (found.state, found.placed, found.is_waiting) == (TaskState.CANCELLED, None, False)
    assert found.summary.startswith("the task was cancelled, and no agent had it then")


async def test_a_task_that_does_not_exist(asking: Asking) -> None:
    """It is not found, as for every other read."""
    with pytest.raises(TaskNotFound, match="'ghost'"):
        await asking.client.explain("ghost")
