"""``requeue``: a buried entry is appended again to the stream that it came from."""

from __future__ import annotations

import msgspec
import pytest

from tests.scripts.cell import Cell
from workers.transitions import DeadLetterEntry, EntryReplay

DATA = b'{"task_id":"t1","lease":"0123456789abcdef"}'


async def dead_letter(
    cell: Cell,
    stream: str = "in:reports",
    *,
    data: bytes = DATA,
    whole: bool = True,
    caller: str = "c1",
    by: str = "",
) -> str:
    """An entry that was buried; its id in dead:in."""
    entry = await cell.append(stream)
    letter = DeadLetterEntry(
        stream, entry, b"task.started", data, whole, caller, by.encode(), "entry_buried", "failed 3 times"
    )
    await cell.run(cell.scripts.dead_letter("distributor", [letter]))
    (dead,) = (await cell.redis.xrevrange(cell.keys.of("dead:in"), count=1))[0][:1]
    return str(dead.decode())


async def requeue(cell: Cell, dead_id: str, kind: str = "distributor") -> str:
    """Replay a buried entry; the word."""
    entry = await cell.append(f"in:control:{kind}", "entry.replayed")
    return await cell.word(cell.scripts.requeue(kind, [EntryReplay(entry, "op", dead_id)]))


@pytest.mark.on_fakeredis
@pytest.mark.parametrize(("caller", "by"), [("c1", ""), ("", ""), ("c1", "ann@host"), ("", "ann@host")])
async def test_an_entry_is_appended_anew_as_it_was(cell: Cell, caller: str, by: str) -> None:
    """With its type, its data to the byte, its caller and who asked; the operator gets its new id."""
    data = b'{"task_id":"t1","lease":"0123456789abcdef","x":"\xff\x00"}'
    dead = await dead_letter(cell, data=data, caller=caller, by=by)

    assert await requeue(cell, dead) == "OK"

    ((entry, fields),) = await cell.redis.xrange(cell.keys.of("in:reports"))
    named = {name: value.encode() for name, value in ((b"caller", caller), (b"by", by)) if value}
    assert fields == {b"type": b"task.started", b"data": data, **named}
    answer = (await cell.stream("replies:op"))[-1]
    assert msgspec.json.decode(answer["data"]) == {"entry_id": entry.decode()}
    assert await cell.redis.xlen(cell.keys.of("dead:in")) == 0
    assert await cell.is_consumed("in:control:distributor")
    assert await cell.counter("unburied") == 1
    assert await cell.logged("control") == ["entry.replayed"]


async def test_what_was_cut_is_not_appended(cell: Cell) -> None:
    """Half of an entry would say something else; it stays buried, and the operator is told why."""
    dead = await dead_letter(cell, whole=False)
    assert await requeue(cell, dead) == "TRUNCATED"
    assert await cell.last_answer("op") == "entry_truncated"
    assert await cell.redis.xlen(cell.keys.of("dead:in")) == 1
    assert await cell.redis.xlen(cell.keys.of("in:reports")) == 0


async def test_each_kind_replays_what_it_reads(cell: Cell) -> None:
    """Another kind's entry is left to it: one stream for each authority."""
    dead = await dead_letter(cell)
    assert await requeue(cell, dead, "router") == "FOREIGN"
    assert await cell.last_answer("op") == "entry_not_found"
    assert await cell.redis.xlen(cell.keys.of("dead:in")) == 1


async def test_the_second_of_two_requests_finds_nothing(cell: Cell) -> None:
    """It is appended once."""
    dead = await dead_letter(cell)
    assert await requeue(cell, dead) == "OK"
    assert await requeue(cell, dead) == "NOT_FOUND"
    assert await cell.last_answer("op") == "entry_not_found"
    assert await cell.redis.xlen(cell.keys.of("in:reports")) == 1
