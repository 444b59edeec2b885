"""When there is no room: a submission is refused, said so, and may come again."""

from __future__ import annotations

import pytest

from coord import Client, Task
from coord.config import Settings
from coord.errors import TaskRefused
from coord.models.tasks import TaskState
from tests.stories.conftest import MakeAgent


@pytest.fixture
def settings(namespace: str) -> Settings:
    """A cell in which ten tasks may wait."""
    return Settings(namespace=namespace, max_backlog_tasks=10)


async def test_a_refused_task_is_told_and_may_be_submitted_again(client: Client, make_agent: MakeAgent) -> None:
    """Low ones are refused first; the record says refused; when there is room, the same task is done."""
    filling = await client.submit_many([{"task_type": "fill"}] * 8)
    for handle in filling:
        await handle.accepted(timeout=10)  # a distributor has two batches under way, of which either may be first
    refused = await client.submit("fill", priority="low", task_id="late")
    with pytest.raises(TaskRefused, match="backlog"):
        await refused.result(timeout=10)
    assert (await client.task("late")).state == TaskState.REFUSED
    with pytest.raises(TaskRefused):
        await refused.accepted(timeout=10)
    urgent = await client.submit("fill", priority="urgent")
    await urgent.accepted(timeout=10)

    agent = make_agent("filler")

    @agent.task("fill")
    async def fill(task: Task) -> str:
        return "done"

    await agent.start()
    for handle in (*filling, urgent):
        assert await handle.result(timeout=10) == "done"
    again = await client.submit("fill", priority="low", task_id="late")
    assert await again.result(timeout=10) == "done"
