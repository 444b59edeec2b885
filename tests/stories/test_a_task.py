"""A task: submitted, done by an agent that can, its result awaited."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from coord import Client, Task, TaskSpec
from coord.errors import FactInvalid, FactTooLarge, IdConflict, IdInvalid, ResultTimeout, TaskFailed, TaskNotFound
from coord.models.tasks import TaskState
from tests.stories.conftest import MakeAgent
from tests.waiting import wait_until


class Text(msgspec.Struct):
    """A payload with a shape."""

    text: str
    most: int = 100


async def test_a_submitted_task_is_done_by_an_agent_and_its_result_awaited(
    client: Client, make_agent: MakeAgent
) -> None:
    """The whole way: submit, an agent with a handler for the type does it, result."""
    agent = make_agent("summarizer-1")

    @agent.task("summarize")
    async def summarize(task: Task) -> dict[str, Any]:
        return {"text": task.payload["text"][:5], "attempt": task.attempt}

    await agent.start()
    handle = await client.submit("summarize", {"text": "a long text"})
    assert await handle.result(timeout=10) == {"text": "a lon", "attempt": 1}
    record = await handle.record()
    assert (record.state, record.agent_id) == (TaskState.COMPLETED, "summarizer-1")
    assert record.started_at is not None


async def test_a_handler_that_is_not_async_runs_in_a_thread(client: Client, make_agent: MakeAgent) -> None:
    """Two blocking handlers that wait for each other end, so they ran side by side."""
    agent = make_agent("blocker", capacity=2)
    both = threading.Barrier(2)

    @agent.task("meet")
    def meet(task: Task) -> int:
        return both.wait(timeout=10)

    await agent.start()
    handles = [await client.submit("meet") for _ in range(2)]
    assert sorted([await handle.result(timeout=10) for handle in handles]) == [0, 1]


async def test_many_tasks_are_submitted_at_once_and_taken_as_they_end(client: Client, make_agent: MakeAgent) -> None:
    """A batch of 300 is spread over two agents; as_completed gives each handle once."""
    seen: dict[str, int] = {"left": 0, "right": 0}
    for name in seen:
        agent = make_agent(name, capacity=8)

        @agent.task("square")
        async def square(task: Task, name: str = name) -> int:
            seen[name] += 1
            return int(task.payload) ** 2

        await agent.start()
    handles = await client.submit_many(TaskSpec(task_type="square", payload=n) for n in range(300))
    results = [await handle.result() async for handle in client.as_completed(handles, timeout=20)]
    assert sorted(results) == [n**2 for n in range(300)]
    assert sum(seen.values()) == 300
    assert min(seen.values()) > 0


async def test_a_payload_is_decoded_into_the_struct_that_the_handler_names(
    client: Client, make_agent: MakeAgent
) -> None:
    """A Struct travels both ways: submitted as one, received as one, with the Task beside it when asked for."""
    agent = make_agent("typed")

    @agent.task("cut")
    async def cut(text: Text, task: Task) -> dict[str, Any]:
        return {"cut": text.text[: text.most], "attempt": task.attempt}

    await agent.start()
    handle = await client.submit("cut", Text(text="abcdef", most=3))
    assert await handle.result(timeout=10) == {"cut": "abc", "attempt": 1}


async def test_a_payload_that_does_not_fit_fails_at_once_and_names_the_field(
    client: Client, make_agent: MakeAgent
) -> None:
    """No retry mends a wrong payload, so there is none."""
    agent = make_agent("typed")

    @agent.task("cut")
    async def cut(text: Text) -> str:
        return text.text

    await agent.start()
    handle = await client.submit("cut", {"text": 7})
    with pytest.raises(TaskFailed, match=r"payload_invalid.*\$\.text"):
        await handle.result(timeout=10)
    record = await handle.record()
    assert (record.attempt, record.error and record.error.code) == (1, "payload_invalid")


@pytest.mark.guarantee("priority")
async def test_the_more_pressing_task_goes_first(client: Client, make_agent: MakeAgent) -> None:
    """Tasks that wait for one busy agent are done by priority, not in the order of submission."""
    agent = make_agent("single", capacity=1)
    release = asyncio.Event()
    order: list[str] = []

    @agent.task("work")
    async def work(task: Task) -> None:
        order.append(task.payload)
        await release.wait()

    await agent.start()
    handles = [await client.submit("work", "first")]
    await wait_until(lambda: order == ["first"], "the first task runs")
    for priority in ("low", "normal", "high", "critical", "urgent"):
        handles.append(await client.submit("work", priority, priority=priority))
        await handles[-1].accepted(timeout=10)
    release.set()
    for handle in handles:
        await handle.result(timeout=10)
    assert order == ["first", "urgent", "critical", "high", "normal", "low"]


async def test_a_delayed_task_is_not_begun_before_its_time(client: Client, make_agent: MakeAgent) -> None:
    """It is scheduled at first, and begins its delay after submission at the earliest."""
    agent = make_agent("later")

    @agent.task("later")
    async def later(task: Task) -> str:
        return "done"

    await agent.start()
    tomorrow = await client.submit("later", delay=86_400)
    handle = await client.submit("later", delay=0.5)
    await tomorrow.accepted(timeout=10)
    assert (await tomorrow.record()).state == TaskState.SCHEDULED
    assert await handle.result(timeout=10) == "done"
    record = await handle.record()
    assert record.started_at is not None
    assert record.started_at - record.submitted_at >= 500


async def test_the_same_id_and_content_twice_is_one_task(client: Client, make_agent: MakeAgent) -> None:
    """A client that does not know whether its submission arrived may repeat it, even after the task has ended."""
    agent = make_agent("once")
    runs: list[str] = []

    @agent.task("once")
    async def once(task: Task) -> str:
        runs.append(task.task_id)
        return "result"

    await agent.start()
    first = await client.submit("once", {"n": 1}, task_id="invoice-7")
    assert await first.result(timeout=10) == "result"
    again = await client.submit("once", {"n": 1}, task_id="invoice-7")
    assert await again.result(timeout=10) == "result"
    assert runs == ["invoice-7"]


async def test_the_same_id_with_other_content_is_an_error(client: Client, make_agent: MakeAgent) -> None:
    """The first submission stands; whoever sends other content under its id is told."""
    agent = make_agent("once")

    @agent.task("once")
    async def once(task: Task) -> Any:
        return task.payload

    await agent.start()
    first = await client.submit("once", {"n": 1}, task_id="invoice-8")
    other = await client.submit("once", {"n": 2}, task_id="invoice-8")
    with pytest.raises(IdConflict):
        await other.result(timeout=10)
    assert await first.result(timeout=10) == {"n": 1}


async def test_a_task_without_a_fitting_agent_waits(client: Client, make_agent: MakeAgent) -> None:
    """Nobody can do it: it waits, the caller's patience ends; then an agent comes, and it is done."""
    handle = await client.submit("rare", requirements={"agent_id": "expert"})
    with pytest.raises(ResultTimeout):
        await handle.result(timeout=0.2)
    agent = make_agent("expert", capabilities=["rare"])

    @agent.task("rare")
    async def rare(task: Task) -> str:
        return "done"

    await agent.start()
    assert await handle.result(timeout=10) == "done"


async def test_an_agent_without_a_handler_says_what_to_do(client: Client, make_agent: MakeAgent) -> None:
    """No other agent has the capability, so the task fails, and the message names the remedy."""
    agent = make_agent("boaster", capabilities=["paint"])
    await agent.start()
    handle = await client.submit("paint")
    with pytest.raises(TaskFailed, match=r"no_handler.*@agent\.task\('paint'\)"):
        await handle.result(timeout=10)


@pytest.mark.guarantee("missing-handler")
async def test_a_task_leaves_an_agent_without_a_handler(client: Client, make_agent: MakeAgent) -> None:
    """⚠ It failed for good, although another agent could run it. This does not count as an attempt."""
    boaster, painter = make_agent("boaster", capabilities=["paint"]), make_agent("painter", capacity=1)

    @painter.task("paint")
    async def paint(task: Task) -> str:
        return f"painted at attempt {task.attempt}"

    await boaster.start()
    await painter.start()
    handles = [await client.submit("paint", retry={"max_attempts": 1}) for _ in range(6)]
    results = [await handle.result(timeout=20) for handle in handles]
    assert set(results) <= {"painted at attempt 1", "painted at attempt 2"}
    records = [await handle.record() for handle in handles]
    assert {record.failures for record in records} == {0}
    assert {one.code for record in records for one in record.attempts} == {"no_handler"}


async def test_what_does_not_fit_is_refused_before_it_is_sent(client: Client) -> None:
    """Ids, fields and sizes are checked by the client with the coordinator's own rules."""
    with pytest.raises(IdInvalid, match="task_id"):
        await client.submit("echo", task_id="no spaces")
    with pytest.raises(FactInvalid, match="timeout"):
        await client.submit("echo", timeout=-1)
    with pytest.raises(FactInvalid, match="priority"):
        await client.submit("echo", priority="soon")  # type: ignore[arg-type]
    with pytest.raises(FactInvalid, match="delay or run_at"):
        await client.submit("echo", delay=1, run_at=datetime.now(UTC))
    with pytest.raises(FactInvalid, match="JSON"):
        await client.submit("echo", {"handle": object()})
    with pytest.raises(FactTooLarge):
        await client.submit("echo", "x" * client.settings.max_entry_bytes)
    assert await client.counters() == {}


async def test_a_task_of_someone_else_can_be_awaited_by_its_id(client: Client, make_agent: MakeAgent) -> None:
    """A handle needs only the id; an id that nobody submitted is said to be unknown."""
    agent = make_agent("worker")

    @agent.task("echo")
    async def echo(task: Task) -> Any:
        return task.payload

    await agent.start()
    await client.submit("echo", "hello", task_id="shared-task", notify=False)
    async with Client(client.settings.redis_url or client.connection._url, settings=client.settings) as other:
        await wait_until(lambda: _is_known(other, "shared-task"), "the task is known")
        assert await other.handle("shared-task").result(timeout=10) == "hello"
        with pytest.raises(TaskNotFound):
            await other.handle("nobodys-task").result(timeout=10)


async def _is_known(client: Client, task_id: str) -> bool:
    try:
        await client.task(task_id)
    except TaskNotFound:
        return False
    return True
