"""Several routers: each lane has one of them, and messages keep their order whatever happens to routers."""

from __future__ import annotations

import json

import pytest

from coord import queries
from coord.models.facts import LinkRemoved, LinkRequested, MessageSent
from coord.models.tasks import Lane
from coord.streams import Append, append
from tests.ledger import assert_keys_end, assert_ledger
from tests.running import RunningCell, RunningWorker
from tests.waiting import wait_until
from tests.workers.raw import Caller, await_quiet, entries, fleet, vanish
from workers.router import Router

MESSAGES = 400


def router(worker: RunningWorker) -> Router:
    """The service of a router."""
    service = worker.loop.service
    assert isinstance(service, Router)
    return service


def shares(cell: RunningCell) -> list[int]:
    """The number of lanes of each router that runs, in ascending order."""
    return sorted(len(router(worker).lanes) for worker in cell.of_kind("router") if not worker.task.done())


async def send(cell: RunningCell, first: int, count: int, receivers: int = 2) -> None:
    """Append messages with rising numbers on all lanes, each to one receiver after the other."""
    lanes = list(Lane)
    facts = [
        (lanes[n % 4], MessageSent(message_id=f"m{n}", sender_id="s", receiver_id=f"a{n // 4 % receivers}"))
        for n in range(first, first + count)
    ]
    await append(cell.redis, cell.keys, [Append(f"in:messages:{lane}", fact) for lane, fact in facts])


async def assert_in_order(cell: RunningCell, count: int, receivers: int = 2) -> None:
    """Each message is in the inbox of its receiver once, after those that were sent to it before on its lane."""
    number = 0
    for agent in range(receivers):
        for lane in Lane:
            found = await entries(cell.redis, cell.keys.inbox(f"a{agent}", lane))
            numbers = [int(fields[b"id"][1:]) for _, fields in found]
            assert numbers == sorted(set(numbers))
            number += len(numbers)
    assert number == count


@pytest.mark.guarantee("order-of-delivery")
async def test_four_routers_share_the_lanes_and_keep_the_order(cell: RunningCell) -> None:
    """Messages flow while routers come and take over lanes; a fifth one stands by, and replaces one that leaves."""
    await fleet(cell, 2)
    for n in range(4):
        await send(cell, n * MESSAGES, MESSAGES)
        await cell.add("router")
    await wait_until(lambda: shares(cell) == [0, 1, 1, 1, 1], "four of five routers hold a lane each")
    await send(cell, 4 * MESSAGES, MESSAGES)
    first = next(worker for worker in cell.of_kind("router") if router(worker).lanes)
    await first.stop()
    await wait_until(lambda: shares(cell) == [1, 1, 1, 1], "the fifth has taken over")
    await send(cell, 5 * MESSAGES, MESSAGES)
    await await_quiet(cell)
    await assert_in_order(cell, 6 * MESSAGES)
    await assert_ledger(cell.redis, cell.keys)
    await assert_keys_end(cell.redis, cell.keys)


@pytest.mark.guarantee("order-of-links")
async def test_changes_of_links_keep_their_order(cell: RunningCell, caller: Caller) -> None:
    """⚠ Of one agent, without waiting for answers, while several routers share the lanes: one of them handles all."""
    await fleet(cell, 2)
    for _ in range(3):
        await cell.add("router")
    await wait_until(lambda: shares(cell) == [1, 1, 1, 1], "four routers share the lanes")
    readers = [worker for worker in cell.of_kind("router") if "in:links" in router(worker).streams()]
    assert [set(router(worker).lanes) for worker in readers] == [{Lane.CRITICAL}]
    pair = [Append("in:links", kind("a0", "a1"), caller.id) for kind in (LinkRequested, LinkRemoved)]
    for _ in range(9):
        await append(cell.redis, cell.keys, pair * 5)
    last = (await append(cell.redis, cell.keys, pair * 5))[-1]
    await caller.answer(last, "in:links")
    answers = [reply for reply in await caller.replies() if reply.get("stream") == "in:links"]
    states = [json.loads(reply["data"])["state"] for reply in answers]
    assert states == ["requested", "none"] * 50


@pytest.mark.guarantee("order-of-pending-messages")
async def test_entries_that_another_router_left_pending_are_delivered_first(cell: RunningCell) -> None:
    """In the order of their ids, whichever router has read them, and before those that nobody has read."""
    await fleet(cell, 2)
    for worker in cell.of_kind("router"):
        await vanish(worker)
    for reader in ("x", "y"):
        await send(cell, 0 if reader == "x" else 40, 40)
        for lane in Lane:
            await cell.redis.xreadgroup("router", reader, {cell.keys.of(f"in:messages:{lane}"): ">"}, count=100)
    await send(cell, 80, MESSAGES)
    await cell.add("router")
    await await_quiet(cell)
    await assert_in_order(cell, 80 + MESSAGES)


@pytest.mark.guarantee("order-of-pending-messages")
async def test_an_entry_that_is_pending_for_nobody_does_not_stop_its_lane(cell: RunningCell) -> None:
    """⚠ It was read, and its consumer was deleted with its list: the router of the lane takes it up."""
    await fleet(cell, 1)
    (first,) = cell.of_kind("router")
    await first.stop()
    await send(cell, 0, 8, receivers=1)
    for lane in Lane:
        key = cell.keys.of(f"in:messages:{lane}")
        await cell.redis.xreadgroup("router", "gone", {key: ">"}, count=1)
        await cell.redis.xgroup_delconsumer(key, "router", "gone")
    await cell.add("router")
    await await_quiet(cell)
    await assert_in_order(cell, 8, receivers=1)


@pytest.mark.guarantee("order-over-routers")
@pytest.mark.parametrize("lane", ["normal"])
async def test_a_message_that_a_displaced_router_has_read_is_not_overtaken(
    cell: RunningCell, caller: Caller, lane: str
) -> None:
    """⚠ It reads once more after it lost the lane: the router of the lane takes the entry back, before younger ones."""
    await fleet(cell, 1)
    (worker,) = cell.of_kind("router")
    consumer, read_new = worker.loop.consumer, worker.loop.consumer.read_new
    key = cell.keys.of(f"in:messages:{lane}")

    async def read_late(*args: object) -> object:
        """Return what is left after another router was quicker."""
        if await cell.redis.xlen(key) > 0 and not stolen:
            stolen.append(await cell.redis.xreadgroup("router", "displaced", {key: ">"}, count=1))
        return await read_new(*args)  # type: ignore[arg-type]

    stolen: list[object] = []
    consumer.read_new = read_late  # type: ignore[assignment, method-assign]
    batch = [MessageSent(message_id=f"m{n}", sender_id="s", receiver_id="a0") for n in range(5)]
    appended = await append(cell.redis, cell.keys, [Append(f"in:messages:{lane}", fact, caller.id) for fact in batch])
    assert (await caller.answer(appended[-1]))["ok"] == "1"
    await await_quiet(cell)
    await assert_in_order(cell, 5, receivers=1)


async def test_the_presence_of_a_router_shows_its_lanes(cell: RunningCell) -> None:
    """For ``coord ps --json``; other workers have none."""

    async def shown() -> bool:
        snapshot = await queries.list_workers(cell.redis, cell.keys)
        lanes = {worker.kind: worker.lanes for worker in snapshot.workers}
        return lanes == {"registry": (), "distributor": (), "router": ("critical", "high", "low", "normal")}

    await wait_until(lambda: not any(worker.loop._needs_recovery for worker in cell.workers), "all are at work")
    for worker in cell.workers:
        await worker.loop._send_heartbeat()
    await wait_until(shown, "the lanes are shown")
