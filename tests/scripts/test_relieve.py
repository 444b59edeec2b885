"""Memory is freed when the server is nearly full: the oldest ended tasks give up result, payload and progress."""

from __future__ import annotations

import pytest

from coord.models.cell import RELIEVE_ABOVE, Memory
from coord.models.tasks import TaskRecord
from tests.scripts.cell import Cell
from tests.scripts.test_server import fill
from workers.transitions import Relief, Replay

#: As the SDK encodes a submission.
BODY = b'{"task_id":"t1","task_type":"echo","payload":"' + b"p" * 1_000 + b'"}'
RESULT = b'"' + b"r" * 10_000 + b'"'


async def complete(cell: Cell, *ids: str, body: bytes = BODY, result: bytes = RESULT) -> None:
    """Tasks that are submitted and completed now."""
    for task_id in ids:
        await cell.assign(task_id, body=body)
        assert await cell.report("completed", task_id, data=result) == "OK"


async def relieve(cell: Cell, used: int = 10**9, maximum: int = 10**9, *, most: int = 500) -> Relief:
    """Free memory a moment later as if the server were so full, in bytes."""
    cell.now += 1
    relief: Relief = await cell.run(cell.scripts.relieve(most, memory=Memory(used, maximum)))
    return relief


async def dropped(cell: Cell, *ids: str) -> list[str]:
    """Those that have given up what they held."""
    return [one for one in ids if (await cell.task(one)).dropped]


@pytest.mark.on_fakeredis
async def test_the_oldest_give_up_first_and_no_more_than_needed(cell: Cell) -> None:
    """Down to 70 %: what each held is counted; states, errors, times and stories stay."""
    await cell.register(capacity=9)
    for n in range(6):
        cell.now += 1_000
        await complete(cell, f"t{n}")
    before = await cell.task("t0")
    maximum = 200_000
    relief = await relieve(cell, 155_000, maximum)
    assert relief.memory == Memory(155_000, maximum)
    each = len(BODY) + len(RESULT) - len('{"task_type":"echo"}')
    assert (relief.records, relief.bytes, relief.is_more) == (2, 2 * each, False)
    assert await dropped(cell, *(f"t{n}" for n in range(6))) == ["t0", "t1"]
    after = await cell.task("t0")
    assert isinstance(after, TaskRecord)
    assert (after.result, after.payload, after.progress, after.dropped) == (None, None, None, True)
    kept = ("state", "task_type", "priority", "submitted_at", "finished_at", "agent_id", "attempt", "pool", "attempts")
    assert [getattr(after, name) for name in kept] == [getattr(before, name) for name in kept]
    assert await cell.counter("results_dropped") == 2
    assert await cell.counter("results_dropped_bytes") == 2 * each
    (event,) = await cell.stream("log:control")
    assert event == {
        "type": "memory.relieved", "records": "2", "bytes": str(2 * each), "dead_letters": "0", "used": "155000",
        "maximum": str(maximum),
    }  # fmt: skip


@pytest.mark.parametrize("share", [0.0, RELIEVE_ABOVE])
async def test_below_the_mark_nothing_is_done(cell: Cell, share: float) -> None:
    """Nor without a maximum."""
    await cell.register()
    await complete(cell, "t1")
    before = await cell.dump()
    assert await relieve(cell, int(1_000 * share), 1_000) == Relief(Memory(int(1_000 * share), 1_000), 0, 0, False)
    assert (await relieve(cell, 1_000, 0)).records == 0
    assert await cell.dump() == before


@pytest.mark.guarantee("dropped-results")
async def test_nothing_is_looked_at_twice_also_among_ties(cell: Cell) -> None:
    """Many end in one ms; each call goes on where the last one stopped, and all are met once."""
    await cell.register(capacity=9)
    names = [f"t{n:02}" for n in range(30)]
    await complete(cell, *names[:20])
    cell.now += 1
    await complete(cell, *names[20:])
    for start in range(0, 30, 7):
        relief = await relieve(cell, most=7)
        assert relief.records == min(7, 30 - start)
        assert await dropped(cell, *names) == names[: start + 7]
        assert relief.is_more == (start + 7 < 30)
    ended_at = (await cell.task("t29")).finished_at
    assert await cell.redis.get(cell.keys.of("tasks:relieved")) == f"{ended_at} t29".encode()
    assert await relieve(cell, most=7) == Relief(Memory(10**9, 10**9), 0, 0, False)
    await complete(cell, "t99")
    assert (await relieve(cell)).records == 1
    assert await dropped(cell, "t99") == ["t99"]


async def test_what_ends_in_the_ms_of_the_call_waits_for_the_next_one(cell: Cell) -> None:
    """Or one that ends a moment later, in the same ms and under a smaller id, would be passed over for good."""
    await cell.register(capacity=9)
    await complete(cell, "t5")
    cell.now -= 1
    assert (await relieve(cell)).records == 0
    await complete(cell, "t9", "t1")
    assert (await relieve(cell)).records == 3


@pytest.mark.guarantee("dropped-results")
async def test_the_walk_goes_on_when_its_last_one_was_forgotten(cell: Cell) -> None:
    """The record at the cursor is gone: it goes on with what ended in that ms or later, and counts nothing twice."""
    cell.trimmed = True
    await cell.register(capacity=9)
    await complete(cell, "t1", "t2", "t3")
    assert (await relieve(cell, most=2)).records == 2
    cell.change_settings(terminal_entries=2)
    cell.now += 1
    await complete(cell, "t4")
    await cell.run_alarms()
    assert await cell.redis.zrange(cell.keys.of("tasks:terminal"), 0, -1) == [b"t3", b"t4"]
    assert (await relieve(cell)).records == 2
    assert await cell.counter("results_dropped") == 4


async def test_a_clock_that_was_set_back_does_not_end_the_walk(cell: Cell) -> None:
    """A cursor of the future, as after a fail-over to a server whose clock is behind, begins again."""
    await cell.register(capacity=9)
    await complete(cell, "t2")
    assert (await relieve(cell)).records == 1
    await complete(cell, "t1")
    await cell.redis.set(cell.keys.of("tasks:relieved"), f"{cell.now + 60_000} t2")
    assert (await relieve(cell)).records == 1
    assert await dropped(cell, "t1", "t2") == ["t1", "t2"]
    assert await cell.redis.get(cell.keys.of("tasks:relieved")) == f"{cell.now - 1} t1".encode()


@pytest.mark.guarantee("dropped-results")
async def test_only_what_has_ended_and_did_not_fail_gives_anything_up(cell: Cell) -> None:
    """Waiting, held and failed tasks keep their payload, whatever an index says of them."""
    await cell.register(capacity=9)
    await cell.assign("failed", body=BODY)
    await cell.fail("failed", retryable=False)
    await cell.assign("held", body=BODY)
    await cell.submit("waiting", body=BODY, pool="p2")
    await cell.submit("cancelled", body=BODY, pool="p3")
    await cell.cancel("cancelled")
    for wrong in ("failed", "held", "waiting"):  # as a fail-over may leave it
        await cell.redis.zadd(cell.keys.of("tasks:terminal"), {wrong: 1})
    assert (await relieve(cell)).records == 1
    assert await dropped(cell, "failed", "held", "waiting", "cancelled") == ["cancelled"]
    assert (await cell.task("cancelled")).error is not None
    for wrong in ("failed", "held", "waiting"):
        assert (await cell.task(wrong)).payload == "p" * 1_000
        await cell.redis.zrem(cell.keys.of("tasks:terminal"), wrong)
    entry = await cell.append("in:control:distributor", "task.replayed")
    assert await cell.word(cell.scripts.replay([Replay(entry, "failed", "")])) == "REPLAYED"


@pytest.mark.guarantee("dropped-results")
async def test_an_id_that_is_submitted_again_gives_up_its_new_result(cell: Cell) -> None:
    """Its first record was dropped and forgotten: the second one is new, and is met when it has ended."""
    cell.trimmed = True
    await cell.register(capacity=9)
    await complete(cell, "t1")
    assert (await relieve(cell)).records == 1
    cell.now += int(cell.settings.terminal_ttl_s * 1000) + 1
    await cell.run_alarms()
    await complete(cell, "t1")
    record = await cell.task("t1")
    assert (record.dropped, record.result) == (False, "r" * 10_000)
    assert (await relieve(cell)).records == 1
    assert await dropped(cell, "t1") == ["t1"]


async def test_whoever_submits_a_dropped_task_again_is_led_to_its_record(cell: Cell) -> None:
    """The outcome is told, without a result that looks like null."""
    await cell.register(capacity=9)
    await cell.assign("t1", caller="c1", notify=True)
    await cell.report("completed", "t1", data=RESULT)
    await relieve(cell)
    assert await cell.admit(await cell.submission("t1", pool="p-t1", caller="c1", notify=True)) == ["DUPLICATE"]
    assert {"type": "task.completed", "task_id": "t1", "at": "record"} in await cell.stream("replies:c1")


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b'{"task_id":"t1","task_type":"echo","payload":"' + b"p" * 200 + b'"}', "echo"),
        (b'{"payload":{"task_type":"fake"},"task_type":"echo","x":"' + b"p" * 200 + b'"}', ""),
        (b'{"task_id":"t1","task_type":"a\\"b","payload":"' + b"p" * 200 + b'"}', ""),
    ],
)
async def test_the_type_stays_where_it_can_be_told(cell: Cell, body: bytes, kept: str) -> None:
    """As the SDK writes it; of other bodies nothing is guessed."""
    await cell.register()
    await complete(cell, "t1", body=body)
    assert (await relieve(cell)).records == 1
    assert (await cell.task("t1")).task_type == kept


async def test_one_broken_record_stops_nothing(cell: Cell) -> None:
    """A key of a wrong type is passed over."""
    cell.broken = True
    await cell.register(capacity=9)
    await complete(cell, "t1", "t2")
    await cell.redis.delete(cell.keys.task("t1"))
    await cell.redis.set(cell.keys.task("t1"), "x")
    assert (await relieve(cell)).records == 1


@pytest.mark.guarantee("message-floods")
async def test_dead_letters_go_when_no_task_has_anything_left(cell: Cell) -> None:
    """⚠ A flood of unread messages must not fill the server for days: the oldest letters are removed, and counted."""
    await cell.register(capacity=9)
    await complete(cell, "t1")
    for n in range(4):
        cell.now += 1_000
        assert await cell.deliver(f"m{n}", receiver="nobody", payload=RESULT) == "UNKNOWN"
    await cell.register("a9")
    await cell.deliver("unread", receiver="a9", payload=RESULT)
    assert (await relieve(cell, 85_000, 100_000)).letters == 0  # submissions are not refused yet
    await complete(cell, "t2")
    wanted = len(BODY) + 2 * len(RESULT)  # the task and one letter are not enough
    relief = await relieve(cell, 80_000 + wanted, 100_000)
    assert (relief.records, relief.letters, relief.is_more) == (1, 2, False)
    assert await cell.redis.zrange(cell.keys.of("messages:dead"), 0, -1) == [b"m2", b"m3"]
    assert await cell.redis.exists(*(cell.keys.message(f"m{n}") for n in range(4))) == 2
    assert await cell.counter("dead_letters_dropped") == 2
    assert len(await cell.stream("inbox:a9:normal")) == 1
    assert (await cell.stream("log:control"))[-1]["dead_letters"] == "2"


async def test_the_server_is_asked_how_full_it_is(cell: Cell) -> None:
    """Its own numbers, and it works when there is no memory left."""
    await cell.register(capacity=9)
    await complete(cell, *(f"t{n}" for n in range(5)))
    before = (await cell.redis.config_get("maxmemory"))["maxmemory"]
    cell.now += 1
    assert (await cell.run(cell.scripts.relieve())).memory.maximum == int(before)
    try:
        await fill(cell)
        relief = await cell.run(cell.scripts.relieve())
        assert relief.memory.used > relief.memory.maximum == 1
        assert relief.records == 5
    finally:
        await cell.redis.config_set("maxmemory", before)
    assert await cell.logged("control") == ["memory.relieved"]
