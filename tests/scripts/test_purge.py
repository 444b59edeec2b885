"""``purge``: dead letters are forgotten on request, a bounded number at a time."""

from __future__ import annotations

from typing import Literal

import msgspec
import pytest

from tests.scripts.cell import Cell
from workers.transitions import DeadLetterEntry, Purge

Of = Literal["tasks", "messages", "entries"]
TOLD: dict[Of, str] = {"tasks": "distributor", "messages": "router", "entries": "registry"}


async def purge(cell: Cell, of: Of, dead_id: str = "", *, age_ms: int | None = None, most: int = 1_000) -> str:
    """Forget dead letters; the word."""
    entry = await cell.append(f"in:control:{TOLD[of]}", "dead.purged")
    return await cell.word(cell.scripts.purge(TOLD[of], of, [Purge(entry, "op", dead_id, age_ms)], most))


async def told(cell: Cell) -> tuple[int, int]:
    """How many were forgotten, and how many are left, as the operator was told last."""
    data = msgspec.json.decode((await cell.stream("replies:op"))[-1]["data"])
    return data["purged"], data["left"]


async def died_at(cell: Cell, of: Of) -> dict[str, int]:
    """The dead letters of a kind, oldest first: id -> ms at which it died."""
    if of == "entries":
        buried = await cell.redis.xrange(cell.keys.of("dead:in"))
        return {entry.decode(): int(entry.split(b"-")[0]) for entry, _ in buried}
    rows = await cell.redis.zrange(cell.keys.of(f"{of}:dead"), 0, -1, withscores=True)
    return {name.decode(): int(ms) for name, ms in rows}


async def die(cell: Cell, of: Of, count: int) -> list[str]:
    """So many more dead letters; all ids, oldest first."""
    for n in range(count):
        if of == "tasks":
            await cell.assign(f"t{n}")
            await cell.fail(f"t{n}", retryable=False)
        elif of == "messages":
            await cell.deliver(f"m{n}", receiver="nobody")
        else:
            entry = await cell.append("in:reports")
            letter = DeadLetterEntry("in:reports", entry, b"task.started", b"{", True, "", b"", "fact_invalid", "no")
            await cell.run(cell.scripts.dead_letter("distributor", [letter]))
        cell.now += 1_000
    return list(await died_at(cell, of))


@pytest.fixture
async def dead(cell: Cell, of: Of) -> list[str]:
    """Five dead letters, oldest first."""
    cell.trimmed = True
    await cell.register()
    return await die(cell, of, 5)


each_kind = pytest.mark.parametrize("of", list(TOLD))
each_record = pytest.mark.parametrize("of", ["tasks", "messages"])


@pytest.mark.on_fakeredis
@each_kind
async def test_one_is_forgotten(cell: Cell, of: Of, dead: list[str]) -> None:
    """It and nothing else; the operator is told that it was one."""
    assert await purge(cell, of, dead[1]) == "OK"
    assert list(await died_at(cell, of)) == [dead[0], *dead[2:]]
    assert await told(cell) == (1, 0)
    assert [(one["type"], one["of"], one["caller"]) for one in await cell.stream("log:control")] == [
        ("dead.purged", of, "op")
    ]
    assert await cell.is_consumed(f"in:control:{TOLD[of]}")
    if of != "entries":
        assert not await cell.redis.exists(cell.keys.of(f"{of[:-1]}:{dead[1]}"))
        assert await cell.redis.exists(cell.keys.of(f"{of[:-1]}:{dead[0]}"))


@each_kind
async def test_all_that_died_before_are_forgotten(cell: Cell, of: Of, dead: list[str]) -> None:
    """The age counts from the request; what died at just that moment is among them, what died later is not."""
    moments = await died_at(cell, of)
    assert await purge(cell, of, age_ms=cell.now - moments[dead[2]]) == "OK"
    left = [one for one, ms in moments.items() if ms > moments[dead[2]]]
    assert list(await died_at(cell, of)) == left
    assert await told(cell) == (5 - len(left), 0)


@each_kind
async def test_many_are_forgotten_in_steps(cell: Cell, of: Of, dead: list[str]) -> None:
    """At most so many for one request, the oldest first; the answer says whether there are more."""
    assert await purge(cell, of, age_ms=0, most=2) == "OK"
    purged, left = await told(cell)
    assert purged == 2
    assert left > 0
    assert list(await died_at(cell, of)) == dead[2:]
    assert await purge(cell, of, age_ms=0, most=3) == "OK"
    assert await told(cell) == (3, 0)
    assert await purge(cell, of, age_ms=0) == "OK"
    assert await told(cell) == (0, 0)
    assert await died_at(cell, of) == {}


@each_kind
async def test_what_is_not_there_is_not_found(cell: Cell, of: Of, dead: list[str]) -> None:
    """The second of two requests as well."""
    await purge(cell, of, dead[0])
    assert await purge(cell, of, dead[0]) == "NOT_FOUND"
    assert await cell.last_answer("op") == {"tasks": "task", "messages": "message"}.get(of, "entry") + "_not_found"
    assert len(await died_at(cell, of)) == 4


@each_record
async def test_what_is_not_dead_is_left_alone(cell: Cell, of: Of, dead: list[str]) -> None:
    """A request by id forgets no task that may still complete, and no message that was delivered."""
    if of == "tasks":
        await cell.submit("alive")
    else:
        await cell.deliver("alive")
    assert await purge(cell, of, "alive") == "NOT_DEAD"
    assert await cell.last_answer("op") == f"{of[:-1]}_not_dead"
    assert await cell.redis.exists(cell.keys.of(f"{of[:-1]}:alive"))


@each_record
async def test_the_books_balance_afterwards(cell: Cell, of: Of, dead: list[str]) -> None:
    """What failed is still counted as failed; a name without a record is forgotten too."""
    await cell.redis.delete(cell.keys.of(f"{of[:-1]}:{dead[0]}"))
    assert await purge(cell, of, age_ms=0) == "OK"
    assert await died_at(cell, of) == {}
    if of == "tasks":
        assert await cell.counter("failed:normal") == await cell.counter("submitted:normal") == 5


@each_record
async def test_what_an_index_names_wrongly_lives_on(cell: Cell, of: Of, dead: list[str]) -> None:
    """⚠ An index that a fail-over left behind its records must not cost a task that waits, or a message that came."""
    await (cell.submit("alive") if of == "tasks" else cell.deliver("alive"))
    await cell.redis.zadd(cell.keys.of(f"{of}:dead"), {"alive": cell.now})
    assert await purge(cell, of, age_ms=0) == "OK"
    assert await died_at(cell, of) == {}
    assert await cell.redis.exists(cell.keys.of(f"{of[:-1]}:alive"))
