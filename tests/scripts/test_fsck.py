"""``coord fsck``: every kind of damage is found, a sound cell is sound, and a busy one raises no false alarm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from coord.fsck import examine
from coord.models.cell import Memory
from tests.scripts.cell import START, Cell
from tests.scripts.test_broadcast import broadcast as make_broadcast
from tests.scripts.test_broadcast import deliver_all, freeze

Damage = Callable[[Any, Any], Awaitable[Any]]


async def _copy_lease(redis: Any, keys: Any) -> None:
    lease = (await redis.hget(keys.task("held"), "assignment")).split()[0]
    await _set_lease(redis, keys, "claimed", lease.decode())


async def _set_lease(redis: Any, keys: Any, task: str, lease: str) -> None:
    raw = await redis.hget(keys.task(task), "assignment") or b"- a1 1-1 0 1 1 1 0 0 {}"
    await redis.hset(keys.task(task), "assignment", " ".join([lease, *raw.decode().split(" ")[1:]]))


async def _set_token(redis: Any, keys: Any, row: dict[str, str], ttl_ms: int = 0) -> None:
    await redis.hset(keys.token("a1"), mapping=row)
    if "current" in row:
        await redis.hset(keys.of("tokens"), row["current"], "a1")
    if ttl_ms:
        await redis.pexpire(keys.token("a1"), ttl_ms)


async def _set_api_key(redis: Any, keys: Any, row: dict[str, str], *, is_listed: bool) -> None:
    await redis.hset(keys.api_key("k1"), mapping=row)
    if is_listed:
        await redis.zadd(keys.of("api_keys"), {"k1": 0})


#: What a damage of the cell that ``filled`` makes is found as.
DAMAGES: dict[str, tuple[Damage, set[str]]] = {
    "an agent that a search does not find": (
        lambda r, k: r.srem(k.facet("capability", "echo"), "a1"),
        {"agents.missing"},
    ),
    "an agent that a search finds wrongly": (
        lambda r, k: r.sadd(k.facet("tag", "fast"), "a1"),
        {"agents.orphan"},
    ),
    "a status in the wrong set": (
        lambda r, k: r.smove(k.facet("status", "active"), k.facet("status", "busy"), "a1"),
        {"agents.missing", "agents.orphan"},
    ),
    "an agent at another health": (
        lambda r, k: r.zadd(k.of("agents:health"), {"a1": -0.25}),
        {"agents.health"},
    ),
    "a health of nobody": (
        lambda r, k: r.zadd(k.of("agents:health"), {"nobody": -1}),
        {"agents.health"},
    ),
    "a submission counted twice": (
        lambda r, k: r.hincrby(k.of("counters"), "submitted:normal", 1),
        {"counters.sum"},
    ),
    "a gauge that drifted, and its counterpart": (
        lambda r, k: r.hset(k.of("counters"), mapping={"queued:low": -1, "completed:low": 1}),
        {"counters.negative", "counters.state"},
    ),
    "an end that was not counted": (
        lambda r, k: r.hset(k.of("counters"), mapping={"completed:normal": 0, "queued:normal": 4}),
        {"counters.state"},
    ),
    "a counter that is no number": (
        lambda r, k: r.hset(k.of("counters"), "backlog_bytes", "many"),
        {"counters.value", "counters.backlog_bytes"},
    ),
    "a completed task that ran twice": (
        lambda r, k: r.hincrby(k.of("histograms"), "run:completed:5", 9),
        {"histograms.count"},
    ),
    "a bucket that is no number": (lambda r, k: r.hset(k.of("histograms"), "distribution:x", 1), {"histograms.value"}),
    "a type of more tasks than there are": (
        lambda r, k: r.hincrby(k.of("task_types"), "echo", 99),
        {"task_types.count"},
    ),
    "a size that drifted": (
        lambda r, k: r.hincrby(k.of("counters"), "backlog_bytes", 7),
        {"counters.backlog_bytes"},
    ),
    "a record that was lost": (
        lambda r, k: r.delete(k.task("held")),
        {"counters.state", "inflight.orphan", "inbox.orphan"},
    ),
    "an unknown state": (
        lambda r, k: r.hset(k.task("done"), "state", "finished"),
        {"task.unknown", "grave.orphan"},  # its total may be above what is left: old records are forgotten
    ),
    "a waiting task in no queue": (lambda r, k: r.zrem(k.queue("p1"), "first"), {"queue.missing"}),
    "a queue that names a stranger": (lambda r, k: r.zadd(k.queue("p1"), {"stranger": 1}), {"queue.orphan"}),
    "a task in its queue at another score": (lambda r, k: r.zadd(k.queue("p1"), {"first": 1}), {"queue.moment"}),
    "a named task in no queue": (lambda r, k: r.zrem(k.queue("p3.named"), "named"), {"queue.missing", "pool.orphan"}),
    "a named queue without its row": (lambda r, k: r.hdel(k.of("pools"), "p3.named"), {"pool.missing"}),
    "an agent to avoid that no plan sees": (lambda r, k: r.hset(k.task("first"), "avoid", "a1"), {"queue.unnamed"}),
    "a queue without its row": (lambda r, k: r.hdel(k.of("pools"), "p1"), {"pool.missing"}),
    "a row without its queue": (lambda r, k: r.hset(k.of("pools"), "p9", "{}"), {"pool.orphan"}),
    "a held task that no load counts": (lambda r, k: r.srem(k.inflight("a1"), "held"), {"inflight.missing"}),
    "a load without a task": (lambda r, k: r.sadd(k.inflight("a2"), "stranger"), {"inflight.orphan"}),
    "an assignment of another lease": (lambda r, k: _set_lease(r, k, "held", "f" * 16), {"inbox.orphan"}),
    "an assignment of a task that no agent holds": (
        lambda r, k: r.xadd(k.inbox("a1", "low"), {"message_type": "task_assignment", "task_id": "x", "lease": "y"}),
        {"inbox.orphan"},
    ),
    "two tasks under one lease": (_copy_lease, {"lease.shared"}),
    "a waiting task with a lease": (lambda r, k: _set_lease(r, k, "first", "f" * 16), {"lease.waiting"}),
    "an assignment that cannot be read": (
        lambda r, k: r.hset(k.task("claimed"), "assignment", "x"),
        {"assignment.value", "inflight.missing", "inflight.orphan"},
    ),
    "a task without its alarm": (lambda r, k: r.zrem(k.of("alarms"), "later"), {"alarm.missing"}),
    "an alarm without a task": (lambda r, k: r.zadd(k.of("alarms"), {"done": 1}), {"alarm.orphan"}),
    "an agent whose claims are not watched": (lambda r, k: r.delete(k.of("unclaimed")), {"unclaimed.missing"}),
    "an alarm at another moment": (lambda r, k: r.zadd(k.of("alarms"), {"later": 1}), {"alarm.moment"}),
    "an end that is not listed": (lambda r, k: r.zrem(k.of("tasks:terminal"), "done"), {"grave.missing"}),
    "a listed end without a record": (
        lambda r, k: r.zadd(k.of("tasks:dead"), {"stranger": START}),
        {"grave.orphan"},
    ),
    "a refused task that would vanish": (lambda r, k: r.pexpire(k.task("refused"), 60_000), {"ttl.unexpected"}),
    "a waiting task that would vanish": (lambda r, k: r.pexpire(k.task("first"), 60_000), {"ttl.unexpected"}),
    "an unknown key": (lambda r, k: r.set(k.of("scratch"), "x"), {"ttl.missing"}),
    "an answer that would stay for ever": (lambda r, k: r.xadd(k.replies("c9"), {"a": "b"}), {"ttl.missing"}),
    "a token that nobody gave": (
        lambda r, k: r.hset(k.token("a1"), mapping={"current": "d"}),
        {"token.unknown"},
    ),
    "a token that would vanish": (
        lambda r, k: _set_token(r, k, {"current": "d", "fact_id": "1-1"}, ttl_ms=60_000),
        {"ttl.unexpected"},
    ),
    "a token that gateways do not find": (
        lambda r, k: r.hset(k.token("a1"), mapping={"current": "e", "fact_id": "1-1"}),
        {"token.unlisted"},
    ),
    "an API key without its role": (
        lambda r, k: _set_api_key(r, k, {"digest": "d"}, is_listed=True),
        {"api_key.broken"},
    ),
    "an API key that no list shows": (
        lambda r, k: _set_api_key(r, k, {"digest": "d", "role": "client"}, is_listed=False),
        {"api_key.unlisted"},
    ),
    "an API key without a record": (lambda r, k: r.zadd(k.of("api_keys"), {"k1": 0}), {"api_key.missing"}),
    "a revoked token that would stay for ever": (lambda r, k: _set_token(r, k, {"fact_id": "1-1"}), {"ttl.missing"}),
    "an earlier token without an end": (
        lambda r, k: _set_token(r, k, {"current": "d", "previous": "c", "fact_id": "1-1"}),
        {"token.previous"},
    ),
    "a record of another type": (
        lambda r, k: r.set(k.task("stranger"), "x"),
        {"type.wrong"},
    ),
    "a lane without a lease that can be read": (
        lambda r, k: r.hset(k.of("lanes"), "high", "w1"),
        {"lane.lease"},
    ),
    "recipients without a broadcast": (lambda r, k: r.delete(k.message("all")), {"broadcast.orphan"}),
    "a broadcast that no router has": (lambda r, k: r.xtrim(k.of("in:messages:normal"), 0), {"broadcast.stuck"}),
    "a broadcast that has not reached everybody": (
        lambda r, k: r.hset(k.message("some"), "status", "delivered"),
        {"broadcast.incomplete"},
    ),
    "a recipient that is not counted": (lambda r, k: r.hset(k.message("all"), "delivered", 1), {"broadcast.sum"}),
    "an open request without a deadline": (
        lambda r, k: r.zrem(k.of("requests"), "asked"),
        {"request.missing", "ttl.missing"},
    ),
    "a deadline without a request": (lambda r, k: r.zadd(k.of("requests"), {"asking": 1}), {"request.orphan"}),
    "a message that its conversation lacks": (
        lambda r, k: r.zrem(k.conversation("told"), "answer"),
        {"conversation.missing"},
    ),
    "a message in a foreign conversation": (
        lambda r, k: r.zadd(k.conversation("told"), {"asked": 9}),
        {"conversation.orphan"},
    ),
    "a message that no router looks at": (lambda r, k: r.delete(k.of("messages:expiring")), {"message.unwatched"}),
    "a link that only one agent has": (lambda r, k: r.hdel(k.links("a2"), "a1"), {"link.differs"}),
    "links of an agent without a record": (
        lambda r, k: r.hset(k.links("ghost"), "a1", "linked 1 agent"),
        {"link.differs", "link.orphan"},
    ),
    "a subordinate that its master does not have": (lambda r, k: r.delete(k.subordinates("a1")), {"master.missing"}),
    "a subordinate without this master": (lambda r, k: r.sadd(k.subordinates("a2"), "a1"), {"master.orphan"}),
    "a master of an agent without a record": (
        lambda r, k: r.hset(k.of("masters"), "ghost", "a1"),
        {"master.missing", "master.orphan"},
    ),
    "a queue of another type": (lambda r, k: r.set(k.queue("p9"), "x"), {"type.wrong", "pool.missing"}),
}


async def filled(cell: Cell) -> None:
    """A cell with a task in each kind of place."""
    await cell.register(capacity=3)
    await cell.register("a2")
    await cell.assign("done")
    await cell.complete("done")
    await cell.assign("broken")
    await cell.fail("broken", retryable=False)
    await cell.assign("claimed")
    await cell.assign("held", claimed=False)
    await cell.admit(await cell.submission("refused"), nearly_full=True)
    await cell.submit("first")
    await cell.submit("named", pool="p3.named", preferences=b'{"affinity_key":"k"}')
    await cell.submit("second")
    await cell.submit("later", run_at=cell.now + 60_000)
    await cell.deliver("asked", sender="a1", receiver="a2", reply_by_ms=5_000)
    await cell.deliver("told", sender="a1", receiver="a2")
    await cell.deliver("answer", sender="a2", receiver="a1", reply_to="told")
    await cell.deliver("note")
    await cell.change_links("request", "a1", "a2")
    await cell.change_links("set_master", "a2", "a1")
    for name in ("all", "some"):
        broadcast = await make_broadcast(cell, name, caller="")
        await freeze(cell, broadcast, ["a1", "a2"])
        if name == "all":
            await deliver_all(cell, broadcast)


async def test_a_sound_cell_is_sound(cell: Cell) -> None:
    """A task in each kind of place, and nothing to find, at a look or at several."""
    await filled(cell)
    for quiet in (True, False):
        report = await examine(cell.redis, cell.keys, quiet=quiet)
        assert report.findings == []
        assert (report.tasks, report.compared) == (9, True)


async def test_dropped_results_are_no_finding(cell: Cell) -> None:
    """The report counts them."""
    await filled(cell)
    cell.now += 1
    await cell.run(cell.scripts.relieve(memory=Memory(10**9, 10**9)))
    report = await examine(cell.redis, cell.keys, quiet=True)
    assert (report.findings, report.dropped) == ([], 1)


async def test_a_stream_far_above_its_cap_is_a_finding(cell: Cell) -> None:
    """Twice its cap and more; streams that keep to theirs are none."""
    await filled(cell)
    caps = {"log_bytes": 2_000, "progress_log_bytes": 2_000, "replies_bytes": 2_000, "dead_in_bytes": 2_000_000}
    settings = msgspec.structs.replace(cell.settings, **caps)
    for name in ("log:agents", "dead:in"):
        for _ in range(30):
            await cell.redis.xadd(cell.keys.of(name), {"data": "x" * 50_000})
    report = await examine(cell.redis, cell.keys, quiet=True, settings=settings)
    ((code, key),) = [(one.code, one.key) for one in report.findings]
    assert (code, key) == ("stream.cap", "log:agents")


@pytest.mark.parametrize("damage", DAMAGES)
async def test_each_kind_of_damage_is_found(cell: Cell, damage: str) -> None:
    """One thing is broken at a time; only that is reported."""
    await filled(cell)
    cell.broken = True
    act, codes = DAMAGES[damage]
    await act(cell.redis, cell.keys)
    report = await examine(cell.redis, cell.keys, quiet=True)
    assert {one.code for one in report.findings} == codes


async def test_records_that_ended_may_be_forgotten_unless_told_otherwise(cell: Cell) -> None:
    """Totals are for ever and records are not; a test that forgets none may ask for both to be the same."""
    await filled(cell)
    cell.trimmed = True
    await cell.redis.delete(cell.keys.task("done"))
    await cell.redis.zrem(cell.keys.of("tasks:terminal"), "done")
    assert (await examine(cell.redis, cell.keys, quiet=True)).findings == []
    (found,) = (await examine(cell.redis, cell.keys, quiet=True, trimmed=False)).findings
    assert (found.code, found.message) == ("counters.state", "completed:normal is 1 above the records")


@asynccontextmanager
async def _at_work(cell: Cell) -> AsyncIterator[None]:
    """Tasks come and go for as long as this lasts."""
    stopped = asyncio.Event()

    async def work() -> None:
        number = 0
        while not stopped.is_set():
            number += 1
            await cell.assign(f"w{number}")
            await cell.complete(f"w{number}")

    working = asyncio.create_task(work())
    try:
        yield
    finally:
        stopped.set()
        await working


# Fakeredis answers without ever letting another task run.
async def test_a_cell_at_work_raises_no_false_alarm(cell: Cell) -> None:
    """Tasks move while they are read; what is truly broken meanwhile is found all the same."""
    await filled(cell)
    async with _at_work(cell):
        assert (await examine(cell.redis, cell.keys)).findings == []
        await cell.redis.srem(cell.keys.inflight("a1"), "claimed")
        assert [one.code for one in (await examine(cell.redis, cell.keys)).findings] == ["inflight.missing"]
    cell.broken = True


async def test_a_full_server_can_be_looked_at(cell: Cell) -> None:
    """⚠ Out of memory, Redis 7.0 refuses even the reads of a transaction."""
    await cell.submit()
    await cell.redis.config_set("maxmemory", "1mb")
    try:
        report = await examine(cell.redis, cell.keys, quiet=True)
    finally:
        await cell.redis.config_set("maxmemory", "0")
    assert (report.findings, report.tasks) == ([], 1)
