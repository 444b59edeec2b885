"""Logs, replies and dead:in hold no more bytes than their caps, and progress is logged sparingly."""

from __future__ import annotations

import pytest

from coord.config import KIB
from coord.models.cell import Memory
from coord.placement import RecordedEntry
from tests.scripts.cell import Cell
from workers.transitions import DeadLetterEntry, SettingChange

CAP = 8 * KIB
#: The caps of all kinds of stream, by their settings.
SMALL = {"log_bytes": CAP, "progress_log_bytes": CAP, "replies_bytes": CAP, "dead_in_bytes": CAP}


async def size_of(cell: Cell, name: str) -> int:
    """Bytes of the names and values in a stream."""
    return sum(len(key) + len(value) for entry in await cell.stream(name) for key, value in entry.items())


async def fill_log_tasks(cell: Cell, n: int) -> None:
    """Submit one batch of tasks with long ids, which are events of one entry."""
    submissions = [await cell.submission(f"{n}-{m}-{'x' * 80}") for m in range(10)]
    await cell.admit(*submissions)


async def fill_log_agents(cell: Cell, n: int) -> None:
    """Register an agent."""
    await cell.register(f"agent-{n}-{'x' * 100}")


async def fill_log_messages(cell: Cell, n: int) -> None:
    """Send a message to nobody, which is dead and logged."""
    await cell.deliver(f"message-{n}-{'x' * 100}", receiver="nobody")


async def fill_log_progress(cell: Cell, n: int) -> None:
    """Report progress of a task that the test has assigned."""
    cell.now += 1_000
    await cell.report("progressed", data=b'"' + str(n).encode() + b"x" * 200 + b'"')


async def fill_log_control(cell: Cell, n: int) -> None:
    """Change a setting."""
    entry = await cell.append("in:control:distributor", "setting.set")
    await cell.run(cell.scripts.configure([SettingChange(entry, "", "strategy", None, f"{n}{'x' * 100}")]))


async def fill_log_learned(cell: Cell, n: int) -> None:
    """Share what a distributor has learned."""
    await cell.run(cell.scripts.learn("d1", b'"' + str(n).encode() + b"x" * 200 + b'"'))


async def fill_log_plans(cell: Cell, n: int) -> None:
    """Record a plan."""
    await cell.run(cell.scripts.record_plans(1, "d1", [RecordedEntry(0, n, b"x" * 200)]))


async def fill_replies(cell: Cell, n: int) -> None:
    """Refuse a cancel of a task that nobody knows."""
    await cell.cancel(f"nobody-{n}-{'x' * 60}", caller="c1")


async def fill_dead(cell: Cell, n: int) -> None:
    """Bury an entry."""
    bad = await cell.append("in:messages:low")
    letter = DeadLetterEntry(
        "in:messages:low", bad, b"x", b"y" * 200, whole=True, caller="", by=b"", code="fact_invalid", reason=f"{n}"
    )
    await cell.run(cell.scripts.dead_letter("router", [letter]))


FILL = {
    "log:tasks": fill_log_tasks,
    "log:agents": fill_log_agents,
    "log:messages": fill_log_messages,
    "log:progress": fill_log_progress,
    "log:control": fill_log_control,
    "log:learned": fill_log_learned,
    "log:plans": fill_log_plans,
    "replies:c1": fill_replies,
    "dead:in": fill_dead,
}


@pytest.mark.guarantee("capped-streams")
@pytest.mark.parametrize("name", FILL)
async def test_a_stream_is_capped_by_bytes(cell: Cell, name: str) -> None:
    """Each keeps at least half of its cap and never more than it; the newest entries stay; its size is known."""
    cell.change_settings(**SMALL)
    await cell.register(capacity=2)
    if name == "log:progress":
        await cell.assign()
    key, largest, n, first = cell.keys.of(name), 0, 0, b""
    trims: set[bytes] = set()
    while len(trims) < 4:
        n += 1
        await FILL[name](cell, n)
        size = await size_of(cell, name)
        largest = max(largest, size)
        ((first, _),) = await cell.redis.xrange(key, count=1)
        if size > CAP // 2:
            trims.add(first)
    assert CAP // 2 < largest <= CAP
    assert CAP // 2 < await size_of(cell, name) <= CAP
    bytes_, *begins = (await cell.redis.get(cell.keys.of(f"size:{name}"))).decode().split()
    assert 0 < int(bytes_) <= CAP // 4
    assert len(begins) == 3
    since = await cell.redis.xrange(key, min=begins[-1])
    assert sum(len(k) + len(v) for _, fields in since for k, v in fields.items()) == int(bytes_)


@pytest.mark.guarantee("capped-streams")
async def test_a_batch_that_is_larger_than_the_cap_is_cut_as_well(cell: Cell) -> None:
    """Sections begin inside a batch too: a single call never leaves more than the cap."""
    cell.change_settings(**SMALL)
    for entries in (200, 200):
        letters = []
        for n in range(entries):
            bad = await cell.append("in:messages:low")
            letters.append(
                DeadLetterEntry(
                    "in:messages:low", bad, b"x", b"y" * 200, whole=True, caller="c1", by=b"", code="bad", reason=f"{n}"
                )
            )
        await cell.run(cell.scripts.dead_letter("router", letters))
        for name in ("dead:in", "replies:c1"):
            assert CAP // 2 < await size_of(cell, name) <= CAP, name
    assert (await cell.stream("dead:in"))[-1]["reason"] == "199"


@pytest.mark.guarantee("capped-streams")
async def test_a_stream_without_a_size_is_counted_from_then_on(cell: Cell) -> None:
    """Left by an earlier version, or damaged: what was there before goes as soon as the sections after it are full."""
    key = cell.keys.of("dead:in")
    for _ in range(20):
        await cell.redis.xadd(key, {"data": "old" * 1_000})
    await cell.redis.set(cell.keys.of("size:dead:in"), "what?")
    cell.change_settings(**SMALL)
    for n in range(60):
        await fill_dead(cell, n)
    assert await size_of(cell, "dead:in") <= CAP


async def test_the_size_of_replies_ends_with_them(cell: Cell) -> None:
    """A caller that is gone leaves nothing behind."""
    await fill_replies(cell, 1)
    for name in ("replies:c1", "size:replies:c1"):
        assert 0 < await cell.redis.pttl(cell.keys.of(name)) <= cell.settings.replies_ttl_s * 1000


async def test_a_small_server_has_smaller_caps(cell: Cell) -> None:
    """A worker caps by shares of maxmemory as well; without one, and on a large server, the settings hold."""
    cell.scripts.fit_streams(0)
    cell.scripts.fit_streams(1 << 40)
    assert cell.scripts.settings == cell.settings
    cell.scripts.fit_streams(32 * CAP)
    for n in range(100):
        await fill_dead(cell, n)
        await fill_log_agents(cell, n)
    for name in ("dead:in", "log:agents"):
        assert CAP // 2 < await size_of(cell, name) <= CAP, name


async def test_the_memory_of_a_capped_stream_is_about_its_cap(cell: Cell) -> None:
    """What is counted is names and values; the server needs little more for them."""
    cap = 256 * KIB
    cell.change_settings(log_bytes=cap, dead_in_bytes=cap)
    for n in range(1_500):
        await fill_dead(cell, n)
    used = await cell.redis.memory_usage(cell.keys.of("dead:in"), samples=0)
    assert cap // 2 < used < cap * 1.2


@pytest.mark.parametrize(("size", "is_inline"), [(100, True), (16 * KIB - 2, True), (16 * KIB - 1, False)])
async def test_a_large_result_lies_in_redis_once(cell: Cell, size: int, *, is_inline: bool) -> None:
    """Above 16 KiB the reply says that the record has it, the first time and when the task is submitted again."""
    await cell.register()
    await cell.assign(caller="c1", notify=True)
    result = b'"' + b"x" * size + b'"'
    assert await cell.report("completed", data=result) == "OK"
    assert await cell.admit(await cell.submission(pool="p-t1", caller="c1", notify=True)) == ["DUPLICATE"]
    outcomes = [one for one in await cell.stream("replies:c1") if one["type"] == "task.completed"]
    told = {"data": result.decode()} if is_inline else {"at": "record"}
    assert outcomes == [{"type": "task.completed", "task_id": "t1"} | told] * 2
    assert await cell.redis.hget(cell.keys.task("t1"), "result") == result


@pytest.mark.guarantee("streamed-progress")
async def test_progress_is_logged_once_a_second(cell: Cell) -> None:
    """The record has the newest value at once; a new attempt is logged from its first report on."""
    await cell.register()
    await cell.assign("t1")
    await cell.assign("t2")
    for n in range(100):
        await cell.report("progressed", "t1", data=str(n).encode())
        assert (await cell.task("t1")).progress == n
        cell.now += 50
    await cell.report("progressed", "t2", data=b"true")
    told = [(one["task_id"], one["data"]) for one in await cell.stream("log:progress")]
    assert told == [("t1", "0"), ("t1", "20"), ("t1", "40"), ("t1", "60"), ("t1", "80"), ("t2", "true")]
    assert "task.progressed" not in await cell.logged("tasks")
    await cell.report("released", "t1", code="released", message="")
    cell.now += 100
    await cell.run_alarms()
    assert await cell.dispatch(pool="p-t1") == "ASSIGNED"
    await cell.report("progressed", "t1", data=b'"again"')
    assert (await cell.stream("log:progress"))[-1]["data"] == '"again"'


async def test_large_progress_is_logged_by_its_size(cell: Cell) -> None:
    """The event of a value above 1 KiB says how many bytes it has; the record has it whole."""
    await cell.register()
    await cell.assign()
    await cell.report("progressed", data=b'"' + b"x" * 1_022 + b'"')
    cell.now += 1_000
    await cell.report("progressed", data=b'"' + b"x" * 240_000 + b'"')
    small, large = await cell.stream("log:progress")
    assert len(small["data"]) == 1_024
    assert large == {"type": "task.progressed", "task_id": "t1", "agent_id": "a1", "bytes": "240002"}
    assert len((await cell.task()).progress) == 240_000


@pytest.mark.guarantee("streamed-progress")
async def test_progress_pushes_out_no_other_event(cell: Cell) -> None:
    """However much is reported, what happened to the task is still in its log."""
    cell.change_settings(**SMALL)
    await cell.register()
    await cell.assign()
    for n in range(60):
        await fill_log_progress(cell, n)
    assert await cell.complete() == "OK"
    assert await cell.logged() == ["task.queued", "task.assigned", "task.completed"]
    assert len(await cell.logged("progress")) < 60


async def test_the_log_of_progress_is_trimmed_first(cell: Cell) -> None:
    """Under memory pressure its newest section stays."""
    cell.change_settings(**SMALL)
    await cell.register()
    await cell.assign()
    for n in range(60):
        await fill_log_progress(cell, n)
    await cell.run(cell.scripts.relieve(memory=Memory(80, 100)))
    assert 0 < await size_of(cell, "log:progress") <= CAP // 4
    for n in range(60):
        await fill_log_progress(cell, n)
    assert await size_of(cell, "log:progress") <= CAP
