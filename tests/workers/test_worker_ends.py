"""How a worker ends, and what shows that it is there: asked to, it finishes what it has read, wherever it stands."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace
from redis import exceptions as redis_errors

from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.keys import CONSUMES
from coord.models.facts import MessageSent
from coord.streams import Consumer
from tests.running import RunningCell, running_cell
from tests.waiting import wait_until
from tests.workers.raw import (
    Caller,
    pending,
)
from workers.loop import Loop
from workers.router import Router
from workers.service import Failure, ReceivedFact, WorkerContext, end_tasks
from workers.transitions import Call, Scripts


async def test_a_clean_stop_finishes_what_was_read(cell: RunningCell, caller: Caller) -> None:
    """After stop nothing is pending: a batch in flight is finished, so nobody has to take anything over."""
    (worker,) = cell.of_kind("distributor")
    handle, begun, go_on = worker.loop.service.handle, asyncio.Event(), asyncio.Event()

    async def slow(batch: list[ReceivedFact[Any]]) -> list[Failure]:
        if batch:
            begun.set()
            await go_on.wait()
        return await handle(batch)

    worker.loop.service.handle = slow  # type: ignore[method-assign]
    told = await caller.submit(50)
    await wait_until(begun.is_set, "a batch is in flight")
    worker.loop.stop()
    go_on.set()
    await worker.stop()
    counted = await pending(cell, "distributor")
    assert counted["distributor-2"] == 0
    await cell.add("distributor")
    for one in told:
        assert (await caller.answer(one.entry))["ok"] == "1"


async def test_presence_is_kept_up_and_ends_by_itself(cell: RunningCell, caller: Caller) -> None:
    """Each worker says that it lives under a key that ends by itself, with what it has handled and how late it is."""
    await caller.answer((await caller.submit())[0].entry)
    for kind in CONSUMES:
        (worker,) = cell.of_kind(kind)
        key = cell.keys.worker(kind, worker.loop.name)
        await wait_until(partial(_exists, cell, key), f"{kind} is present")
        assert 0 < await cell.redis.pttl(key) <= cell.settings.presence_ttl_s * 1000
        assert set(await cell.redis.hkeys(key)) >= {
            b"pid",
            b"host",
            b"started_at",
            b"handled",
            b"lag_ms",
            b"progress_at",
        }
        assert await cell.redis.zscore(cell.keys.of(f"workers:{kind}"), worker.loop.name) is not None


async def test_presence_is_renewed_long_before_it_ends(server: EmbeddedServer, settings: Settings) -> None:
    """A renewal that comes late, or is lost, makes no worker vanish."""
    lasts_ms = 3_000
    async with running_cell(server.url, replace(settings, presence_ttl_s=lasts_ms / 1000), ["router"]) as cell:
        key = cell.keys.worker("router", "router-1")
        left: list[int] = []
        said: set[Any] = set()

        async def renewed_twice() -> bool:
            if said:
                left.append(await cell.redis.pttl(key))
            said.update(at for at in await cell.redis.hmget(key, "progress_at") if at)
            return len(said) == 3

        await wait_until(renewed_twice, "it has said so three times")
        assert min(left) > lasts_ms / 6


async def test_consumers_that_are_gone_and_hold_nothing_are_swept(
    cell: RunningCell, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer without presence and without anything pending is deleted; one that holds an entry stays."""
    key = cell.keys.of("in:messages:low")
    await wait_until(partial(_exists, cell, key), "the router has made its groups")
    (router,) = cell.of_kind("router")
    await router.stop()
    holder = Consumer(cell.redis, cell.keys, "router", "holder", ["in:messages:low"])
    await holder.make_groups()
    await caller.tell("in:messages:low", MessageSent(message_id="m1", sender_id="s", receiver_id="r"))
    await holder.read_new(1, None)
    await cell.redis.xgroup_createconsumer(key, "router", "gone")
    worker_heartbeat = Scripts.worker_heartbeat

    def at_once(self: Scripts, *args: Any, **options: Any) -> Call[list[str]]:
        call = worker_heartbeat(self, *args, **options)
        call.limits["consumer_idle_ms"] = -1
        return call

    monkeypatch.setattr(Scripts, "worker_heartbeat", at_once)
    scripts = Scripts(cell.redis, cell.keys, cell.settings)
    await scripts.run(scripts.worker_heartbeat("router", "me", {}, CONSUMES["router"]))
    names = {one["name"] for one in await cell.redis.xinfo_consumers(key, "router")}
    assert b"gone" not in names
    assert b"holder" in names


async def test_a_cancel_that_is_swallowed_is_repeated() -> None:
    """What runs beside the loop ends even if one cancel is lost on the way, as Python 3.11's wait_for may lose it."""
    swallowed, begun = 0, asyncio.Event()

    async def deaf() -> None:
        nonlocal swallowed
        while True:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    task = asyncio.create_task(deaf())
    await begun.wait()
    async with asyncio.timeout(5):
        await end_tasks(task)
    assert swallowed == 3


async def test_a_worker_stops_while_it_cannot_reach_its_server(cell: RunningCell, unused_port: int) -> None:
    """A stop does not wait for a server that is away."""
    away = WorkerContext.open(f"redis://127.0.0.1:{unused_port}", cell.settings)
    loop = Loop(Router(away), "lonely")
    task = asyncio.create_task(loop.run())
    await wait_until(lambda: loop._recovery_requests > 2, "it has tried a few times")
    loop.stop()
    async with asyncio.timeout(3):
        await task
    with contextlib.suppress(redis_errors.RedisError):
        await away.redis.aclose()


async def _exists(cell: RunningCell, key: str) -> bool:
    return bool(await cell.redis.exists(key))
