"""``queries.list_tasks``: tasks by state, type and agent, a page at a time."""

from __future__ import annotations

import pytest

from coord import queries
from coord.errors import CursorInvalid
from coord.models.tasks import TaskRecord, TaskState
from coord.queries import tasks as task_queries
from tests.scripts.cell import Cell


async def ids(cell: Cell, limit: int = 100, **asked: object) -> list[str]:
    """The ids of all pages, page by page."""
    found: list[TaskRecord] = []
    cursor = None
    while True:
        page = await queries.list_tasks(cell.redis, cell.keys, limit=limit, cursor=cursor, **asked)  # type: ignore[arg-type] # tests name them
        assert len(page.tasks) <= limit
        found += page.tasks
        cursor = page.next
        if cursor is None:
            return [one.task_id for one in found]


async def everywhere(cell: Cell) -> None:
    """A task or more in every place where tasks are."""
    await cell.register("a1", capacity=10)
    await cell.register("a2", capacity=10)
    for name, agent in (("h1", "a1"), ("h2", "a1"), ("h3", "a2"), ("c1", "a1"), ("c2", "a2"), ("f1", "a2")):
        await cell.assign(name, agent_id=agent)
    await cell.complete("c1")
    cell.now += 5
    await cell.complete("c2")
    await cell.fail("f1", retryable=False)
    for name in ("q1", "q2", "q3"):
        await cell.submit(name)
    await cell.submit("s1", run_at=cell.now + 60_000)
    await cell.admit(await cell.submission("r1"), nearly_full=True)


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_every_task_once_however_long_the_pages(cell: Cell, limit: int) -> None:
    """Held ones by agent, waiting ones by turn, then scheduled, failed, and finished ones with the last first."""
    await everywhere(cell)
    wanted = ["h1", "h2", "h3", "q1", "q2", "q3", "s1", "f1", "c2", "c1", "r1"]
    assert await ids(cell, limit) == wanted


async def test_by_state_and_agent(cell: Cell) -> None:
    """Any of several states; an agent's are those that it holds or has ended."""
    await everywhere(cell)
    assert await ids(cell, states=[TaskState.QUEUED]) == ["q1", "q2", "q3"]
    assert await ids(cell, states=[TaskState.SCHEDULED, TaskState.FAILED]) == ["s1", "f1"]
    assert await ids(cell, states=[TaskState.RUNNING]) == []
    assert await ids(cell, agent_id="a2") == ["h3", "f1", "c2"]
    assert await ids(cell, agent_id="a2", states=[TaskState.COMPLETED]) == ["c2"]
    assert await ids(cell, agent_id="ghost") == []


async def submit_typed(cell: Cell, task_id: str, task_type: str) -> None:
    """A waiting task of a type, in that type's pool."""
    body = b'{"task_type":"%s"}' % task_type.encode()
    submission = await cell.submission(task_id, pool=f"p-{task_type}", body=body)
    await cell.run(cell.scripts.admit([submission], {f"p-{task_type}": body}, nearly_full=False))


async def test_by_type(cell: Cell) -> None:
    """The type is read from the pool's definition while one waits, and from a body afterwards."""
    await cell.register(capacity=10)
    await cell.assign("t1", body=b'{"task_type":"ocr"}')
    await cell.assign("t2", body=b'{"task_type":"echo"}')
    await submit_typed(cell, "t3", "ocr")
    assert await ids(cell, task_type="ocr") == ["t1", "t3"]
    assert await ids(cell, task_type="echo") == ["t2"]
    assert await ids(cell, task_type="none") == []


async def test_a_listed_task_has_no_large_parts(cell: Cell) -> None:
    """Its header is as in its record."""
    await cell.register()
    await cell.assign("t1")
    await cell.fail("t1", retryable=False)
    (listed,) = (await queries.list_tasks(cell.redis, cell.keys)).tasks
    record = await cell.task("t1")
    assert (listed.payload, listed.attempts) == (None, ())
    for field in ("task_id", "state", "priority", "submitted_at", "agent_id", "attempt", "error"):
        assert getattr(listed, field) == getattr(record, field)


async def test_what_moves_meanwhile_stops_nobody(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task that a cursor names may have gone on, and so may its equals: the others are listed once all the same."""
    monkeypatch.setattr(task_queries, "STEP", 2)
    await cell.register(capacity=20)
    names = [f"t{n}" for n in range(9)]
    for name in names:
        await cell.submit(name)
    score = await cell.redis.zscore(cell.keys.queue("p1"), "t0")
    assert score is not None
    await cell.redis.zadd(cell.keys.queue("p1"), dict.fromkeys(names, score))
    page = await queries.list_tasks(cell.redis, cell.keys, limit=4)
    assert [one.task_id for one in page.tasks] == names[:4]
    await cell.redis.zrem(cell.keys.queue("p1"), "t1", "t3")
    cell.broken = True
    page = await queries.list_tasks(cell.redis, cell.keys, limit=100, cursor=page.next)
    assert [one.task_id for one in page.tasks] == names[4:]


async def test_a_record_that_was_forgotten_is_not_listed(cell: Cell) -> None:
    """Records end by themselves, before their place in the index."""
    await cell.register()
    await cell.assign("t1")
    await cell.complete("t1")
    await cell.redis.delete(cell.keys.task("t1"))
    cell.broken = True
    assert await ids(cell) == []


async def test_a_rare_kind_is_looked_for_in_bounded_pages(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page looks at so many tasks and no more; it may be empty, and its cursor goes on."""
    monkeypatch.setattr(task_queries, "STEP", 2)
    monkeypatch.setattr(task_queries, "BUDGET", 4)
    for n in range(9):
        await submit_typed(cell, f"t{n}", "common")
    await submit_typed(cell, "t9", "rare")
    page = await queries.list_tasks(cell.redis, cell.keys, task_type="rare")
    assert page.tasks == ()
    assert page.next is not None
    assert await ids(cell, task_type="rare") == ["t9"]


@pytest.mark.parametrize("cursor", ["", "x", "dead:x:t1", "terminal:nan:t1", "queued:p1:inf:t"])
async def test_a_cursor_of_another_list(cell: Cell, cursor: str) -> None:
    """An error, not an empty page."""
    await cell.submit("t1")
    with pytest.raises(CursorInvalid, match="leave it out"):
        await queries.list_tasks(cell.redis, cell.keys, cursor=cursor)
