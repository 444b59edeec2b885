"""``dead_letter``: entries that cannot be handled."""

from __future__ import annotations

import pytest

from tests.scripts.cell import Cell
from workers.transitions import DeadLetterEntry


async def letter(
    cell: Cell, stream: str = "in:reports", *, caller: str = "c1", data: bytes = b"{", by: str = "", kind: str = "fact"
) -> DeadLetterEntry:
    """A dead letter of an entry that was appended."""
    entry = await cell.append(stream, kind, by=by)
    return DeadLetterEntry(
        stream, entry, b"task.started", data, True, caller, by.encode(), "fact_invalid", "field 'data': truncated"
    )


@pytest.mark.on_fakeredis
async def test_an_entry_is_buried(cell: Cell) -> None:
    """Kept with stream, id and reason, counted, acknowledged, deleted; its caller is told."""
    one = await letter(cell, data=b"\xff\x00not text")
    assert await cell.run(cell.scripts.dead_letter("distributor", [one])) == 1

    ((_, fields),) = await cell.redis.xrange(cell.keys.of("dead:in"))
    assert fields == {
        b"stream": b"in:reports",
        b"id": one.entry.encode(),
        b"type": b"task.started",
        b"data": b"\xff\x00not text",
        b"whole": b"1",
        b"caller": b"c1",
        b"code": b"fact_invalid",
        b"reason": b"field 'data': truncated",
    }
    assert await cell.counter("buried") == 1
    assert await cell.answers() == [(one.entry, "fact_invalid")]
    assert await cell.is_consumed("in:reports")


async def test_burying_twice_is_burying_once(cell: Cell) -> None:
    """Two workers may give up the same entry: it is kept, counted and told of once."""
    call = cell.scripts.dead_letter("distributor", [await letter(cell)])
    await cell.run(call)
    before = await cell.dump()
    replies = await cell.answers()
    assert await cell.run(call) == 0
    assert await cell.dump() == before
    assert await cell.answers() == replies


async def test_without_a_caller_nobody_is_told(cell: Cell) -> None:
    """No stream of replies is made for an empty caller."""
    await cell.run(cell.scripts.dead_letter("distributor", [await letter(cell, caller="")]))
    assert await cell.redis.keys(f"{cell.keys.prefix}replies:*") == []


async def test_a_broken_caller_does_not_keep_the_poison(cell: Cell) -> None:
    """⚠ A reply that cannot be written does not leave the entry pending for ever, buried again each time."""
    await cell.redis.set(cell.keys.replies("c1"), "x")
    one = await letter(cell)
    assert await cell.run(cell.scripts.dead_letter("distributor", [one])) == 1
    assert await cell.is_consumed("in:reports")


async def test_a_large_batch_from_many_streams(cell: Cell) -> None:
    """256 entries of several streams in one call."""
    streams = ["in:reports", "in:requests", "in:losses", "in:tasks:low"]
    batch = [await letter(cell, streams[n % 4], data=b"x" * 4_096) for n in range(256)]
    assert await cell.run(cell.scripts.dead_letter("distributor", batch)) == 256
    for stream in streams:
        assert await cell.is_consumed(stream)


@pytest.mark.on_fakeredis
@pytest.mark.guarantee("audit")
async def test_what_an_operator_asked_for_in_vain_is_audited(cell: Cell) -> None:
    """⚠ Who asked, for what, and why not; also without a name. What clients and agents append is not."""
    refused = [
        await letter(cell, "in:control:distributor", by="ann@host", kind="strategy.set"),
        await letter(cell, "in:control:distributor", kind="t" * 1_000),
        await letter(cell, "in:requests", by="mallory", kind="task.cancel_requested"),
        await letter(cell, "in:reports"),
    ]
    call = cell.scripts.dead_letter("distributor", refused)
    await cell.run(call)
    assert await cell.run(call) == 0
    first, second = await cell.stream("log:audit")
    said = (first["type"], first["by"], first["outcome"], first["data"])
    assert said == ("strategy.set", "ann@host", "fact_invalid", "{}")
    assert (second["type"], second["by"]) == ("t" * 256, "client without an id")
    assert [one.get("by") for one in await cell.stream("dead:in")] == ["ann@host", None, "mallory", None]
