"""An entry has its effect only while it is in its stream: a worker that stood still repeats nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.scripts.cell import Cell
from workers.transitions import (
    Call,
    CancelRequest,
    DeadLetterEntry,
    Departure,
    DrainRequest,
    EntryReplay,
    Heartbeat,
    LeaseList,
    LeaseLoss,
    Purge,
    Redelivery,
    Replay,
    SettingChange,
    StatusChange,
    TaskBatch,
)

Make = Callable[[Cell], Awaitable[tuple[Call[Any], str, str]]]


async def admission(cell: Cell) -> tuple[Call[Any], str, str]:
    """A submission of a task."""
    one = await cell.submission("new", caller="c1")
    return cell.scripts.admit([one], {"p1": b"{}"}, nearly_full=False), "in:tasks:normal", one.entry


async def report(cell: Cell) -> tuple[Call[Any], str, str]:
    """A report that completes a task."""
    one = await cell.reported("completed", "held", data=b"1", caller="c1")
    return cell.scripts.settle([one]), "in:reports", one.entry


async def cancel(cell: Cell) -> tuple[Call[Any], str, str]:
    """A request to cancel a held task."""
    entry = await cell.append("in:requests")
    return cell.scripts.cancel([CancelRequest(entry, "held", "c1", "why")]), "in:requests", entry


async def loss(cell: Cell) -> tuple[Call[Any], str, str]:
    """The loss of an agent."""
    one = await cell.loss()
    return cell.scripts.reclaim([one]), "in:losses", one.entry


async def lease_loss(cell: Cell) -> tuple[Call[Any], str, str]:
    """The loss of one lease."""
    entry = await cell.append("in:losses")
    one = LeaseLoss(entry, "a1", "held", await cell.lease("held"))
    return cell.scripts.reclaim_lease([one]), "in:losses", entry


async def replay(cell: Cell) -> tuple[Call[Any], str, str]:
    """A request to try a failed task again."""
    entry = await cell.append("in:control:distributor")
    return cell.scripts.replay([Replay(entry, "dead", "c1")]), "in:control:distributor", entry


async def setting(cell: Cell) -> tuple[Call[Any], str, str]:
    """A request to change a setting."""
    entry = await cell.append("in:control:distributor")
    change = SettingChange(entry, "c1", "strategy", None, "random")
    return cell.scripts.configure([change]), "in:control:distributor", entry


async def purge(cell: Cell) -> tuple[Call[Any], str, str]:
    """A request to forget a dead letter."""
    entry = await cell.append("in:control:distributor")
    return (
        cell.scripts.purge("distributor", "tasks", [Purge(entry, "c1", "dead", None)]),
        "in:control:distributor",
        entry,
    )


async def entry_replay(cell: Cell) -> tuple[Call[Any], str, str]:
    """A request to append a buried entry again."""
    entry = await cell.append("in:control:router")
    (dead, _), *_ = await cell.redis.xrange(cell.keys.of("dead:in"))
    return cell.scripts.requeue("router", [EntryReplay(entry, "c1", dead.decode())]), "in:control:router", entry


async def registration(cell: Cell) -> tuple[Call[Any], str, str]:
    """A registration of an agent."""
    one = await cell.registration("a2", caller="c1")
    return cell.scripts.register([one]), "in:registry", one.entry


async def heartbeat(cell: Cell) -> tuple[Call[Any], str, str]:
    """A heartbeat that moves the health."""
    entry = await cell.append("in:beats")
    return (
        cell.scripts.heartbeat([Heartbeat(entry, "c1", "a1", "i1", None, False, False, {"metric:cpu": 1.0})]),
        "in:beats",
        entry,
    )


async def status(cell: Cell) -> tuple[Call[Any], str, str]:
    """A change of status."""
    entry = await cell.append("in:registry")
    return cell.scripts.change_status([StatusChange(entry, "c1", "a1", "i1", "busy", {})]), "in:registry", entry


async def departure(cell: Cell) -> tuple[Call[Any], str, str]:
    """An agent's own departure."""
    entry = await cell.append("in:registry")
    return cell.scripts.deregister([Departure(entry, "c1", "a1", "i1")]), "in:registry", entry


async def removal(cell: Cell) -> tuple[Call[Any], str, str]:
    """A removal by an operator."""
    entry = await cell.append("in:control:registry")
    call = cell.scripts.deregister([Departure(entry, "c1", "a1", "")], by_operator=True)
    return call, "in:control:registry", entry


async def draining(cell: Cell) -> tuple[Call[Any], str, str]:
    """A request to drain an agent."""
    entry = await cell.append("in:control:registry")
    return cell.scripts.drain([DrainRequest(entry, "c1", "a1", "draining")]), "in:control:registry", entry


async def lease_list(cell: Cell) -> tuple[Call[Any], str, str]:
    """A list of leases that lacks one."""
    await cell.heartbeat(leases=9)
    ask = (await cell.redis.hget(cell.keys.agent("a1"), "ask")).decode()
    cell.now += 1
    entry = await cell.append("in:registry")
    return cell.scripts.check_leases([LeaseList(entry, "a1", "i1", ask, {})]), "in:registry", entry


async def message(cell: Cell) -> tuple[Call[Any], str, str]:
    """A message."""
    one = await cell.delivery("new", caller="c1")
    return cell.scripts.deliver([one]), "in:messages:normal", one.entry


async def redelivery(cell: Cell) -> tuple[Call[Any], str, str]:
    """A request to deliver a dead message again."""
    entry = await cell.append("in:control:router")
    return cell.scripts.redeliver([Redelivery(entry, "c1", "lost", 30_000)]), "in:control:router", entry


MAKES: list[Make] = [
    admission, report, cancel, loss, lease_loss, replay, setting, purge, entry_replay, registration, heartbeat, status,
    departure, removal, draining, lease_list, message, redelivery,
]  # fmt: skip


async def furnished(cell: Cell) -> None:
    """A cell in which each call would have an effect."""
    await cell.register()
    await cell.assign("held")
    await cell.assign("dead")
    await cell.fail("dead", retryable=False)
    await cell.deliver("lost", receiver="a9")
    await cell.register("a9")
    bad = await cell.append("in:messages:low")
    letter = DeadLetterEntry(
        "in:messages:low", bad, b"odd", b"{}", whole=True, caller="", by=b"", code="fact_invalid", reason="odd"
    )
    await cell.run(cell.scripts.dead_letter("router", [letter]))


@pytest.mark.guarantee("one-effect-per-entry")
@pytest.mark.parametrize("make", MAKES, ids=lambda make: str(make.__name__))
async def test_what_a_sibling_has_handled_is_not_done_again(cell: Cell, make: Make) -> None:
    """⚠ The entry was consumed between this worker's read and its script: nothing changes and nobody is answered."""
    cell.trimmed = True
    await furnished(cell)
    call, stream, entry = await make(cell)
    await cell.redis.xack(cell.keys.of(stream), _group_of(stream), entry)
    assert await cell.redis.xdel(cell.keys.of(stream), entry) == 1
    before = await cell.dump()

    assert await cell.word(call) == "GONE"

    assert await cell.dump() == before


@pytest.mark.parametrize("make", MAKES, ids=lambda make: str(make.__name__))
async def test_the_same_call_has_its_effect_while_the_entry_is_there(cell: Cell, make: Make) -> None:
    """So the test before this one shows something."""
    cell.trimmed = True
    await furnished(cell)
    call, stream, _ = await make(cell)
    before = await cell.dump(stream)
    assert await cell.word(call) not in {"GONE", "STALE", "OUTDATED", "NOT_FOUND"}
    assert await cell.dump(stream) != before


@pytest.mark.guarantee("one-effect-per-entry")
async def test_a_forgotten_task_is_not_admitted_again(cell: Cell) -> None:
    """⚠ Admitted, done, and purged by others while this distributor stood still: it is not run a second time."""
    cell.trimmed = True
    await cell.register()
    submission = await cell.submission("t1")
    late = cell.scripts.admit([submission], {"p1": b"{}"}, nearly_full=False)
    assert await cell.admit(submission) == ["QUEUED"]
    await cell.dispatch()
    await cell.fail(retryable=False)
    entry = await cell.append("in:control:distributor")
    await cell.run(cell.scripts.purge("distributor", "tasks", [Purge(entry, "", "t1", None)]))

    assert await cell.word(late) == "GONE"

    assert await cell.redis.exists(cell.keys.task("t1")) == 0


async def test_an_entry_of_several_tasks_is_checked_as_one(cell: Cell) -> None:
    """All of its tasks are left alone, and those of the next entry are admitted."""
    first = await cell.submission("t1")
    others = [await cell.submission(name) for name in ("t2", "t3")]
    batch = [first, *(type(one)(**{**_fields(one), "entry": first.entry}) for one in others)]
    last = await cell.submission("t4")
    await cell.redis.xdel(cell.keys.of("in:tasks:normal"), first.entry)
    answer: TaskBatch = await cell.run(cell.scripts.admit([*batch, last], {"p1": b"{}"}, nearly_full=False))
    assert answer.words == ["GONE", "GONE", "GONE", "QUEUED"]


def _fields(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__struct_fields__}


def _group_of(stream: str) -> str:
    if stream.startswith("in:messages") or stream.endswith("router"):
        return "router"
    return "registry" if stream in {"in:registry", "in:beats", "in:control:registry"} else "distributor"
