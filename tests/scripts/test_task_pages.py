"""``queries.find_tasks``: tasks that match a query, a page at a time."""

from __future__ import annotations

from contextlib import aclosing

import pytest

from coord import queries
from coord.errors import CursorInvalid
from coord.models.task_query import TASKS
from coord.models.tasks import TaskRecord
from coord.queries import task_pages, task_search
from tests.scripts.cell import Cell
from tests.scripts.round_trips import round_trips_of


async def page_of(cell: Cell, query: str = "", limit: int = 100, cursor: str | None = None) -> queries.TaskPage:
    """One page."""
    return await queries.find_tasks(cell.redis, cell.keys, TASKS.parse(query), limit=limit, cursor=cursor)


async def ids(cell: Cell, query: str = "", limit: int = 100) -> list[str]:
    """The ids of all pages, page by page."""
    found: list[TaskRecord] = []
    cursor = None
    while True:
        page = await page_of(cell, query, limit, cursor)
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
    assert await ids(cell, limit=limit) == wanted


async def test_by_state_and_agent(cell: Cell) -> None:
    """Any of several states; an agent's are those that it holds or has ended."""
    await everywhere(cell)
    assert await ids(cell, "state:queued") == ["q1", "q2", "q3"]
    assert await ids(cell, "state:scheduled,failed") == ["s1", "f1"]
    assert await ids(cell, "state:running") == []
    assert await ids(cell, "agent:a2") == ["h3", "f1", "c2"]
    assert await ids(cell, "agent:a2 state:completed") == ["c2"]
    assert await ids(cell, "agent:ghost") == []


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
    assert await ids(cell, "type:ocr") == ["t1", "t3"]
    assert await ids(cell, "type:echo") == ["t2"]
    assert await ids(cell, "type:none") == []


async def test_a_listed_task_has_no_large_parts(cell: Cell) -> None:
    """Its header is as in its record."""
    await cell.register()
    await cell.assign("t1")
    await cell.fail("t1", retryable=False)
    (listed,) = (await page_of(cell)).tasks
    record = await cell.task("t1")
    assert (listed.payload, listed.attempts) == (None, ())
    for field in ("task_id", "state", "priority", "submitted_at", "agent_id", "attempt", "error"):
        assert getattr(listed, field) == getattr(record, field)


async def test_what_moves_meanwhile_stops_nobody(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task that a cursor names may have gone on, and so may its equals: the others are listed once all the same."""
    monkeypatch.setattr(task_pages, "STEP", 2)
    await cell.register(capacity=20)
    names = [f"t{n}" for n in range(9)]
    for name in names:
        await cell.submit(name)
    score = await cell.redis.zscore(cell.keys.queue("p1"), "t0")
    assert score is not None
    await cell.redis.zadd(cell.keys.queue("p1"), dict.fromkeys(names, score))
    page = await page_of(cell, limit=4)
    assert [one.task_id for one in page.tasks] == names[:4]
    await cell.redis.zrem(cell.keys.queue("p1"), "t1", "t3")
    cell.broken = True
    page = await page_of(cell, cursor=page.next)
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
    monkeypatch.setattr(task_pages, "STEP", 2)
    monkeypatch.setattr(task_pages, "BUDGET", 4)
    for n in range(9):
        await submit_typed(cell, f"t{n}", "common")
    await submit_typed(cell, "t9", "rare")
    page = await page_of(cell, "t9")
    assert page.tasks == ()
    assert page.next is not None
    assert await ids(cell, "t9") == ["t9"]
    assert [one.task_id for one in (await page_of(cell, "type:rare")).tasks] == ["t9"], "its pool alone is read"


@pytest.mark.parametrize("cursor", ["", "x", "dead:x:t1", "terminal:nan:t1", "queued:p1:inf:t"])
async def test_a_cursor_of_another_list(cell: Cell, cursor: str) -> None:
    """An error, not an empty page."""
    await cell.submit("t1")
    with pytest.raises(CursorInvalid, match="leave it out"):
        await page_of(cell, cursor=cursor)


async def test_each_field_of_a_query(cell: Cell) -> None:
    """Every field narrows the tasks to those that have it, wherever they are."""
    await everywhere(cell)
    pool = (await page_of(cell, "q1")).tasks[0].pool
    assert await ids(cell, "id:q1,f1,nothing,a/b") == ["f1", "q1"]
    assert await ids(cell, "id:q*") == ["q1", "q2", "q3"]
    assert await ids(cell, "h -id:h2") == ["h1", "h3"]
    assert await ids(cell, f"pool:{pool} state:queued") == ["q1", "q2", "q3"]
    assert await ids(cell, "priority:urgent") == []
    assert await ids(cell, "reason:scheduled") == ["s1"]
    assert await ids(cell, "reason:next_in_line,scheduled") == ["q1", "q2", "q3", "s1"]
    assert await ids(cell, "-reason:next_in_line -state:completed,refused") == ["h1", "h2", "h3", "s1", "f1"]
    assert await ids(cell, "-agent:a2 state:completed,queued") == ["q1", "q2", "q3", "c1"]
    assert await ids(cell, "attempts:>=1 -state:completed") == ["h1", "h2", "h3", "f1"]
    (failed,) = (await page_of(cell, "state:failed")).tasks
    assert failed.error is not None
    assert await ids(cell, f"error:{failed.error.code}") == ["f1"]
    assert await ids(cell, f"error:{failed.error.code[:3]}*,nothing") == ["f1"]


async def test_times_of_a_query(cell: Cell) -> None:
    """Ages count from the submission; the time of the end limits how far the indexes of ended tasks are read."""
    now = int(await queries.get_time(cell.redis))
    cell.now = now - 7_200_000
    await cell.register(capacity=10)
    for name in ("old", "new"):
        cell.now += 1_000
        await cell.assign(name)
    await cell.complete("old")
    cell.now = now - 60_000
    await cell.complete("new")
    await cell.submit("waits")
    assert await ids(cell, "ended:<1h") == ["new"]
    assert await ids(cell, "ended:>1h") == ["old"]
    assert await ids(cell, "since:1h") == ["waits", "new"]
    assert await ids(cell, "since:2000-01-01") == ["waits", "new", "old"]
    assert await ids(cell, "age:>1h") == ["new", "old"]
    assert await ids(cell, "age:<1h") == ["waits"]
    assert await ids(cell, "age:>1h since:1h") == ["new"]


async def test_requirements_of_a_query(cell: Cell) -> None:
    """Capabilities, services, tags and labels are those that the task requires, also after it has ended."""
    needs = b'{"capabilities":["gpu"],"services":["search"],"tags":["fast"],"labels":{"zone":"eu"}}'
    body = b'{"task_type":"ocr","requirements":%s}' % needs
    await cell.register(capacity=10)
    await cell.assign("t1", body=body)
    await cell.complete("t1")
    submission = await cell.submission("t2", pool="p-t1", body=body)
    await cell.run(cell.scripts.admit([submission], {"p-t1": body}, nearly_full=False))
    await submit_typed(cell, "t3", "echo")
    for term in ("capability:gpu", "service:search", "tag:fast", "label:zone=eu", "type:oc*", "ocr"):
        assert await ids(cell, term) == ["t2", "t1"], term
        assert await ids(cell, f"-{term}") == ["t3"], term


async def test_a_walk_reads_its_plan_once(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """⚠ An operation on many tasks reads the table of pools, the fleet and the time for its first page only."""
    monkeypatch.setattr(task_pages, "STEP", 4)
    monkeypatch.setattr(task_pages, "LONG_STEP", 4)
    await cell.register()
    for name in ("a", "b", "c"):
        for n in range(4):
            await submit_typed(cell, f"{name}{n}", name)
    query = TASKS.parse("state:queued reason:next_in_line -type:b")
    commands = round_trips_of(cell.redis, monkeypatch)
    found: list[str] = []
    async with aclosing(await queries.open_task_walk(cell.redis, cell.keys, query)) as walk:
        sizes = []
        while True:
            page = await walk.page(3)
            found += page.ids
            sizes.append(len(page.ids))
            if page.next is None:
                break
    assert found == [f"{name}{n}" for name in "ac" for n in range(4)]
    assert sizes == [3, 3, 2]
    names = [name for trip in commands for name, _ in trip]
    assert names.count("TIME") == 1
    assert names.count("HSCAN") == 1
    reads = [key for trip in commands for name, key in trip if name == "HMGET" and ":task:" in key]
    assert len(reads) == len(set(reads)), "no task is read twice"


async def test_a_page_of_a_walk_continues_elsewhere(cell: Cell) -> None:
    """The cursor of a page starts another walk after it, although the first one has read further."""
    for n in range(9):
        await submit_typed(cell, f"t{n}", "ocr")
    async with aclosing(await queries.open_task_walk(cell.redis, cell.keys, TASKS.parse("type:ocr"))) as walk:
        page = await walk.page(4)
    assert page.ids == ("t0", "t1", "t2", "t3")
    assert [one.task_id for one in (await page_of(cell, "type:ocr", cursor=page.next)).tasks] == [
        "t4", "t5", "t6", "t7", "t8",
    ]  # fmt: skip


async def test_short_queues_and_small_loads_are_read_together(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """⚠ A queue, or an agent, with a task each took several round trips each."""
    for n in range(40):
        await submit_typed(cell, f"t{n:02}", f"type{n:02}")
        await cell.register(f"a{n:02}")
        await cell.assign(f"h{n:02}", agent_id=f"a{n:02}")
    for query, wanted in (("state:queued", "t"), ("state:assigned", "h")):
        trips = round_trips_of(cell.redis, monkeypatch)
        assert [one.task_id for one in (await page_of(cell, query)).tasks] == [f"{wanted}{n:02}" for n in range(40)]
        assert len(trips) < 15, query


async def test_a_search_keeps_a_bounded_number_of_pools(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of others the definition is read again, with the same effect."""
    monkeypatch.setattr(task_search, "_KNOWN_POOLS", 2)
    monkeypatch.setattr(task_pages, "STEP", 2)
    monkeypatch.setattr(task_pages, "LONG_STEP", 2)
    for n in range(9):
        await submit_typed(cell, f"t{n}", f"type{n}")
    async with aclosing(await queries.open_task_walk(cell.redis, cell.keys, TASKS.parse("-type:type3"))) as walk:
        assert (await walk.page(100)).ids == tuple(f"t{n}" for n in range(9) if n != 3)
        assert len(walk.types) <= 4
    tasks = (await page_of(cell, "-type:type3")).tasks
    assert [one.task_type for one in tasks] == [f"type{n}" for n in range(9) if n != 3]


async def test_empty_places_count(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """⚠ A page looks at so many empty queues and idle agents and no more; its cursor goes on after them."""
    monkeypatch.setattr(task_pages, "PLACES_STEP", 5)
    monkeypatch.setattr(task_pages, "BUDGET", 10)
    for n in range(40):
        await cell.register(f"a{n:02}")
    await cell.register("z1")
    await cell.assign("h1", agent_id="z1")
    await submit_typed(cell, "t1", "zzz")
    await cell.redis.hset(cell.keys.of("pools"), mapping={f"p-{n:02}": b'{"task_type":"gone"}' for n in range(40)})
    cell.broken = True
    for query, wanted, section in (("state:assigned", "h1", "held"), ("state:queued", "t1", "queued")):
        page = await page_of(cell, query)
        assert page.tasks == ()
        assert page.next is not None
        assert page.next.startswith(f"{section}:")
        assert await ids(cell, query) == [wanted]
