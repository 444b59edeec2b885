"""``queries.list_outcomes``: which records are read for the outcomes that match a query, and in which order."""

from __future__ import annotations

from typing import Any

import pytest

from coord import queries
from coord.models.task_query import TASKS
from coord.queries import outcomes
from tests.scripts.cell import Cell
from tests.scripts.round_trips import Command, round_trips_of


async def ended(cell: Cell, count: int) -> list[str]:
    """Tasks that have ended, every third one failed; their ids in the order of their ends."""
    await cell.register(capacity=count)
    names = [f"t{n:02}" for n in range(count)]
    for name in names:
        await cell.assign(name, body=b'{"task_type":"ocr"}')
    for n, name in enumerate(reversed(names)):
        cell.now += 5
        if n % 3:
            await cell.complete(name)
        else:
            await cell.fail(name, retryable=False)
    return names[::-1]


async def outcomes_of(cell: Cell, query: str) -> list[str]:
    """The ids of the outcomes of a query."""
    return [record.task_id async for record in queries.list_outcomes(cell.redis, cell.keys, TASKS.parse(query))]


def keys_of(trips: list[list[Command]], *names: str) -> list[str]:
    """The tasks that commands of these names read, each as often as it is read."""
    return [key.rpartition(":task:")[2] for trip in trips for name, key in trip if name in names and ":task:" in key]


async def test_only_the_records_that_match_are_read(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """⚠ All records were read, of up to 1 MiB each, a hundred at a time and then their bodies once more."""
    names = await ended(cell, 40)
    trips = round_trips_of(cell.redis, monkeypatch)
    assert await outcomes_of(cell, "type:nope") == []
    assert keys_of(trips, "HGETALL") == []
    trips.clear()
    assert await outcomes_of(cell, "type:ocr") == names
    assert sorted(keys_of(trips, "HGETALL")) == sorted(names)
    most = max(sum(name == "HGETALL" for name, _ in trip) for trip in trips)
    assert most <= outcomes.RECORDS_STEP


async def test_a_query_narrows_what_is_examined(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """⚠ By ids, and by state: the others are not even looked at."""
    names = await ended(cell, 12)
    trips = round_trips_of(cell.redis, monkeypatch)
    assert await outcomes_of(cell, f"id:{names[3]},{names[1]},nothing,a/b") == [names[1], names[3]]
    assert set(keys_of(trips, "HMGET", "HGETALL")) == {names[1], names[3], "nothing"}
    trips.clear()
    assert await outcomes_of(cell, "state:failed") == names[::3]
    assert set(keys_of(trips, "HMGET", "HGETALL")) == set(names[::3])
    trips.clear()
    assert await outcomes_of(cell, "state:queued,running") == []
    assert keys_of(trips, "HMGET", "HGETALL") == []


async def test_a_task_that_has_not_ended_has_no_outcome(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if its id is in the query: its record is not read."""
    await cell.register()
    await cell.assign("held")
    await cell.submit("waits")
    trips = round_trips_of(cell.redis, monkeypatch)
    assert await outcomes_of(cell, "id:held,waits") == []
    assert await queries.matching_outcomes(cell.redis, cell.keys, TASKS.parse(""), ["held", "waits"], cell.now) == []
    assert keys_of(trips, "HGETALL") == []


async def test_what_is_replayed_meanwhile_is_left_out(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that changes between the decision and the read of all of it is not the outcome that matched."""
    names = await ended(cell, 3)
    get_tasks = queries.get_tasks

    async def replayed_first(*args: Any) -> Any:
        await cell.redis.hset(cell.keys.task(names[0]), "finished_at", cell.now + 1)
        return await get_tasks(*args)

    monkeypatch.setattr(outcomes, "get_tasks", replayed_first)
    cell.broken = True
    assert await outcomes_of(cell, "type:ocr") == names[1:]
