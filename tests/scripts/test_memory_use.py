"""Where the memory has gone: by kind of key, measured or scaled up, and without permission."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from coord import queries
from coord.models.cell import MemoryUse
from coord.queries import memory as memory_queries
from tests.scripts.cell import Cell
from tests.scripts.test_relieve import complete, relieve
from workers.transitions import DeadLetterEntry


async def populate(cell: Cell) -> None:
    """Something of every kind: tasks of 20 KB in every state, messages, replies, a buried entry."""
    body = b'{"task_type":"echo","payload":"' + b"p" * 20_000 + b'"}'
    await cell.register(capacity=20)
    await complete(cell, "done-1", "done-2", "done-3", body=body)
    await cell.assign("held", body=body)
    await cell.submit("waiting-1", body=body, pool="p9")
    await cell.submit("waiting-2", body=body, pool="p9")
    await cell.assign("failed", body=body)
    await cell.fail("failed", retryable=False)
    await cell.admit(await cell.submission("refused", body=body, caller="c1"), nearly_full=True)
    await cell.deliver("m1", payload=b'"' + b"m" * 20_000 + b'"')
    bad = await cell.append("in:messages:low")
    letter = DeadLetterEntry(
        "in:messages:low", bad, b"x", b"y" * 4_000, whole=True, caller="c1", by=b"", code="bad", reason="bad"
    )
    await cell.run(cell.scripts.dead_letter("router", [letter]))
    await cell.append("in:messages:low")


def by_kind(use: MemoryUse) -> dict[str, int]:
    """Kind -> bytes."""
    return {part.kind: part.bytes for part in use.parts}


async def test_every_kind_is_measured(cell: Cell) -> None:
    """A small keyspace is measured whole: each kind with what it holds, and all of it is what is used."""
    await populate(cell)
    use = await queries.measure_memory(cell.redis, cell.keys)
    sizes = by_kind(use)
    assert 3 * 30_000 < sizes["ended tasks"] < 3 * 40_000
    assert 20_000 < sizes["running tasks"] < 30_000
    assert 2 * 20_000 < sizes["waiting tasks"] < 2 * 30_000
    assert 24_000 < sizes["dead letters"] < 35_000
    assert 20_000 < sizes["messages"] + sizes["inboxes"] < 60_000
    kinds = {
        "refused tasks",
        "replies",
        "agents",
        "facts in streams",
        "other",
        "log:tasks",
        "log:agents",
        "log:messages",
    }
    assert kinds | {memory_queries.SERVER} <= set(sizes)
    assert all(sizes[kind] > 0 for kind in kinds)
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert abs(sum(sizes.values()) - use.used) < 10_000
    assert not any(part.is_estimate for part in use.parts)
    keys = {part.kind: part.keys for part in use.parts}
    assert (keys["running tasks"], keys["log:tasks"]) == (1, 1)
    assert (use.results_dropped, use.note) == (0, "")


async def test_a_large_keyspace_is_sampled(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not looked at is estimated by what was, also beside another cell's keys."""
    monkeypatch.setattr(memory_queries, "SAMPLE", 600)
    monkeypatch.setattr(memory_queries, "CHUNK", 100)
    pipe = cell.redis.pipeline(transaction=False)
    for n in range(2_000):
        pipe.hset(cell.keys.task(f"t{n}"), mapping={"state": "completed", "submission": "x", "result": "r" * 2_000})
        pipe.hset(f"{{elsewhere}}:task:t{n}", mapping={"state": "completed", "result": "r" * 2_000})
    await pipe.execute()
    cell.broken = True
    use = await queries.measure_memory(cell.redis, cell.keys)
    (ended,) = [part for part in use.parts if part.kind == "ended tasks"]
    assert ended.is_estimate
    assert 2_000 * 2_000 * 0.7 < ended.bytes < 2_000 * 2_200 * 1.4
    assert 1_400 < ended.keys < 2_800
    await cell.redis.flushall()


async def test_what_was_dropped_is_counted(cell: Cell) -> None:
    """On every server, also where keys cannot be measured."""
    await cell.register(capacity=9)
    await complete(cell, "t1", "t2")
    await relieve(cell)
    use = await queries.measure_memory(cell.redis, cell.keys)
    assert use.results_dropped == 2
    assert use.results_dropped_bytes > 20_000


@pytest.mark.parametrize(
    ("forbidden", "named"), [("-memory", "MEMORY USAGE"), ("-scan", "SCAN"), ("-dbsize", "DBSIZE"), ("-info", "INFO")]
)
async def test_without_permission_it_says_so(cell: Cell, forbidden: str, named: str) -> None:
    """One sentence; the rest is there."""
    await cell.register()
    await cell.redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", "nopass", "~*", "+@all", forbidden)
    redis = Redis(**_options(cell))
    try:
        use = await queries.measure_memory(redis, cell.keys)
    finally:
        await redis.aclose()
        await cell.redis.execute_command("ACL", "DELUSER", "limited")
    assert named in use.note
    assert "\n" not in use.note
    assert bool(use.used) == (forbidden != "-info")
    assert bool(use.parts) == (forbidden == "-info")


def _options(cell: Cell) -> dict[str, Any]:
    """How a user without all rights connects to the same server."""
    options = cell.redis.connection_pool.connection_kwargs
    return {"unix_socket_path": options["path"], "username": "limited", "password": "any", "protocol": 3}
