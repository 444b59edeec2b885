"""The log of tasks: one entry for the events of one kind in a batch, capped by the number of events."""

from __future__ import annotations

from coord.client.events import _events
from coord.models.tasks import Priority
from tests.scripts.cell import Cell


async def batch(cell: Cell, first: int, count: int) -> None:
    """Submit tasks and admit them in one call."""
    submissions = [await cell.submission(f"t{n}", priority=Priority.LOW) for n in range(first, first + count)]
    await cell.run(cell.scripts.admit(submissions, {"p1": b"{}"}, nearly_full=False))


async def dispatch(cell: Cell, *agents: str) -> None:
    """Give each of them the next task, in one call."""
    await cell.run(cell.scripts.dispatch([await cell.placement(agent) for agent in agents]))


async def test_a_batch_is_one_entry_of_each_kind(cell: Cell) -> None:
    """Its fields hold a value for each task, in order; whoever reads it gets an event for each."""
    await cell.register("a1", capacity=2)
    await cell.register("a2", capacity=2)
    await batch(cell, 1, 3)
    await dispatch(cell, "a1", "a2", "a1")
    entries = await cell.stream("log:tasks")
    assert entries == [
        {"type": "task.queued", "task_id": "t1 t2 t3", "priority": "low low low", "seq": "3"},
        {"type": "task.assigned", "task_id": "t1 t2 t3", "agent_id": "a1 a2 a1", "attempt": "1 1 1", "seq": "6"},
    ]
    raw = {name.encode(): value.encode() for name, value in entries[1].items()}
    assert [(one.type, one.fields) for one in _events("tasks", "1-0", raw)] == [
        ("task.assigned", {"task_id": task, "agent_id": agent, "attempt": "1"})
        for task, agent in (("t1", "a1"), ("t2", "a2"), ("t3", "a1"))
    ]


async def test_what_says_more_keeps_its_place(cell: Cell) -> None:
    """A task's own events stay in order when one of them has an entry of its own."""
    await cell.register(capacity=2)
    await batch(cell, 1, 2)
    await dispatch(cell, "a1", "a1")
    reports = [
        await cell.reported("started", "t1"),
        await cell.reported("failed", "t1", code="x", message="it is broken"),
        await cell.reported("completed", "t2"),
    ]
    await cell.run(cell.scripts.settle(reports))
    told = [(one["type"], one["task_id"]) for one in await cell.stream("log:tasks")]
    assert told[2:] == [("task.started", "t1"), ("task.failed", "t1"), ("task.completed", "t2")]


async def test_the_oldest_events_are_forgotten(cell: Cell) -> None:
    """However many a batch tells of, about as many stay as the setting says; what stays is the latest."""
    cell.change_settings(log_entries=200)
    for first in range(0, 800, 100):
        await batch(cell, first, 100)
    entries = await cell.stream("log:tasks")
    assert entries[-1]["seq"] == "800"
    assert 200 <= sum(len(one["task_id"].split()) for one in entries) <= 200 + 256 + 100


async def test_after_large_batches_small_ones_push_them_out(cell: Cell) -> None:
    """Sizes may change: what is forgotten keeps up with what is told."""
    cell.change_settings(log_entries=100)
    await batch(cell, 0, 300)
    for first in range(1_000, 1_600, 10):
        await batch(cell, first, 10)
    entries = await cell.stream("log:tasks")
    assert 100 <= sum(len(one["task_id"].split()) for one in entries) <= 100 + 256 + 10
