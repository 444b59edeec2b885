"""The primary changes under load, and loses the last writes or none: everybody goes on by himself.

coord is told one address. Here it is a port that is led to whoever is the primary, which stands for what people put in
front of a pair: a virtual address, a DNS name, a proxy that asks the sentinels.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from redis.exceptions import MovedError, RedisError

from coord import queries
from coord.client.answers import Answer, read_answer
from coord.client.handle import TaskHandle
from coord.keys import CONSUMES
from coord.models.facts import TaskCompleted
from coord.models.tasks import TaskState
from coord.streams import Append, append
from tests.processes import Process
from tests.system.failover_cell import (
    RESUMES_S,
    FailoverProcesses,
    Letters,
    Load,
    cell_at,
    events_of,
    heard_by,
)
from tests.system.failover_pair import Pair, SentinelPair, cluster_pair, plain_pair, sentinel_pair, take_over
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(600)

#: Between an agent's beats where no silence may be held against it: three of them are above any change of primaries.
PATIENT_S = 3.0
RARE = {"capabilities": ["rare"]}


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[SentinelPair]:
    """A primary, its replica, a sentinel, and the address in front."""
    async with sentinel_pair(tmp_path) as running:
        yield running


@pytest.fixture
async def at(two: SentinelPair, tmp_path: Path) -> AsyncIterator[FailoverProcesses]:
    """A cell on the pair, with nobody in it."""
    async with cell_at(two, two.url, tmp_path / "cell", "failover") as built:
        yield built


async def workers(at: FailoverProcesses) -> list[Process]:
    """One of each kind, and a second distributor."""
    return [await at.worker(kind) for kind in (*CONSUMES, "distributor")]


@pytest.mark.guarantee("failover-lost-writes")
async def test_a_replica_is_promoted_that_lacks_the_last_writes(two: SentinelPair, at: FailoverProcesses) -> None:
    """What was lost is lost whole, what was replicated ends once, and no process is restarted or told anything."""
    people = [*await workers(at), *[await at.listener(f"a{number}") for number in (1, 2, 3)]]
    load = Load(at)
    await load.more(200)
    safe = list(load.acknowledged)
    await two.cut()
    cut_at = await load.more(5)  # a batch may have been on its way when the link was cut
    lost_until = await load.more(100)
    lost = load.acknowledged[cut_at:lost_until]
    await _promote(two)
    resumed = await load.more(50)
    await at.are_completed(load.acknowledged[resumed - 20 : resumed])
    await load.stop()
    await at.assert_one_outcome_each()
    assert all(one.alive for one in people)
    records = await queries.get_tasks(at.redis, at.keys, safe)
    assert [one.state if one else None for one in records] == [TaskState.COMPLETED] * len(safe)
    assert [one for one in await queries.get_tasks(at.redis, at.keys, lost) if one] == []


@pytest.mark.guarantee("failover-lost-second")
async def test_tasks_of_the_lost_second_reappear_and_late_reports_change_nothing(
    two: SentinelPair, at: FailoverProcesses, tmp_path: Path
) -> None:
    """An agent that came, a task that it did and one that it began are forgotten: it comes, does and begins them again.

    The distributors look at the fleet anew, and who waits for a result gets the one that counts.
    """
    people = await workers(at)
    distributors = [one for one in people if one.name.startswith("distributor")]
    gate = tmp_path / "gate"
    done = await at.client.submit("echo", {"s": 0}, requirements=RARE, notify=True)
    begun = await at.client.submit("echo", {"s": 0, "until": str(gate)}, requirements=RARE, notify=True)
    await begun.accepted(timeout=60)
    await two.cut()
    late = await at.listener("late", "rare")
    first = await done.result(timeout=60)
    await wait_until(lambda: _is(at, begun.task_id, TaskState.RUNNING), "the other one runs")
    lease = await _lease(at, begun)
    ghost = await at.client.submit("echo", {"s": 0}, requirements=RARE)
    await ghost.result(timeout=60)
    seen = {one.name: len(events_of(one, "fleet.snapshot")) for one in distributors}

    await _promote(two)
    await wait_until(lambda: _is(at, done.task_id, TaskState.COMPLETED), "what was done is done again", RESUMES_S)
    await wait_until(lambda: _is(at, begun.task_id, TaskState.RUNNING), "what was begun is begun again", RESUMES_S)
    assert await _answer_to_report(at, begun, lease) == "stale_lease"
    assert await _is(at, begun.task_id, TaskState.RUNNING)
    assert await _lease(at, begun) != lease
    gate.touch()
    assert await begun.result(timeout=60) == first
    await wait_until(lambda: _stale_reports(at, 2), "its own late report has come, and was not known either")
    for one in distributors:
        assert len(events_of(one, "fleet.snapshot")) > seen[one.name], one.told()
    assert await queries.get_task(at.redis, at.keys, ghost.task_id) is None
    assert all(one.alive for one in [*people, late])
    await at.assert_one_outcome_each()


@pytest.mark.guarantee("receipts")
async def test_messages_are_handled_at_least_once_through_a_fail_over(two: SentinelPair, at: FailoverProcesses) -> None:
    """Each that its sender got a receipt for, but for those of the lost second, which is lost whole."""
    people = await workers(at)
    listeners = [await at.listener("a1"), await at.listener("a2")]
    letters = Letters(at, "a1", "a2")
    await letters.more(40)
    safe = list(letters.acknowledged)
    await two.cut()
    await letters.more(10)
    await _promote(two)
    resumed = await letters.more(2)  # the first may have been the old primary's last
    await letters.more(40)
    await letters.stop()
    sent = {*safe, *letters.acknowledged[resumed:]}
    await wait_until(lambda: sent <= heard_by(*listeners), "every message is handled", 60)
    assert all(one.alive for one in [*people, *listeners])
    assert await at.redis.zcard(at.keys.of("messages:dead")) == 0
    left = [await at.redis.xlen(at.keys.inbox(agent, "normal")) for agent in ("a1", "a2")]
    assert left == [0, 0]


@pytest.mark.guarantee("paused-primary")
async def test_an_old_primary_that_was_only_paused_does_no_harm(tmp_path: Path) -> None:
    """It comes back as a primary, with connections that nobody has cut, until the sentinel makes it a replica.

    What it took meanwhile is lost, as it must be; everything else ends once, by the same processes.
    """
    async with (
        sentinel_pair(tmp_path, cuts=False) as two,
        cell_at(two, two.url, tmp_path / "cell", "paused") as at,
    ):
        people = [*await workers(at), await at.listener("a1"), await at.listener("a2")]
        load = Load(at)
        await load.more(100)
        safe = list(load.acknowledged)
        async with two.direct(0) as old:
            assert await old.execute_command("WAIT", 1, 60_000) == 1
        os.kill(two.primary.pid, signal.SIGSTOP)
        try:
            await wait_until(lambda: two.front.target == two.ports[1], "the replica is promoted", 60)
        finally:
            os.kill(two.primary.pid, signal.SIGCONT)
        await wait_until(lambda: two.follows(0), "the old primary is a replica of the new one", 60)
        resumed = await load.more(50)
        await at.are_completed(load.acknowledged[resumed - 20 : resumed])
        await load.stop()
        await at.are_completed(safe)
        await at.assert_one_outcome_each()
        assert all(one.alive for one in people)


@pytest.mark.guarantee("cluster-failover")
async def test_a_cluster_s_replica_takes_over_and_the_old_primary_returns(tmp_path: Path) -> None:
    """Two cells on a server in cluster mode: both go on by themselves, without the lost second, and see nothing else.

    The killed primary comes back as a replica, and its lost second is gone there too.
    """
    async with (
        cluster_pair(tmp_path) as two,
        cell_at(two, two.url, tmp_path / "one", "one") as one,
        cell_at(two, two.url, tmp_path / "two", "two") as other,
    ):
        cells = (one, other)
        people = [await at.worker(kind) for at in cells for kind in CONSUMES]
        people += [await at.listener("a1") for at in cells]
        loads = [Load(at) for at in cells]
        for load in loads:
            await load.more(100)
        safe = [list(load.acknowledged) for load in loads]
        await two.cut()
        cut_at = [await load.more(5) for load in loads]
        lost = [load.acknowledged[cut:until] for load, cut in zip(loads, cut_at, strict=True)
                for until in [await load.more(50)]]  # fmt: skip
        two.primary.kill()
        await take_over(two)
        for at, load in zip(cells, loads, strict=True):
            resumed = await load.more(50)
            await at.are_completed(load.acknowledged[resumed - 20 : resumed])
        two.primary.restart()
        for load in loads:
            await load.more(20)
            await load.stop()
        for at, kept, gone in zip(cells, safe, lost, strict=True):
            await at.are_completed(kept)
            await at.assert_one_outcome_each()
            assert [one for one in await queries.get_tasks(at.redis, at.keys, gone) if one] == []
        assert all(one.alive for one in people)
        await wait_until(lambda: two.follows(0), "the old primary is a replica that has caught up", 60)
        async with two.direct(0) as old, two.direct(1) as new:

            async def is_same() -> bool:
                """The cells live on: presence comes and goes, and a key expires there first."""
                return bool(await old.dbsize() == await new.dbsize())

            await wait_until(is_same, "both have the same keys", 30)


@pytest.mark.guarantee("swapped-roles")
@pytest.mark.parametrize("mode", ["replication", pytest.param("cluster", marks=pytest.mark.long)])
async def test_primary_and_replica_change_places_in_good_order(tmp_path: Path, mode: str) -> None:
    """For maintenance: nothing is lost, no attempt fails, and nobody stays with the demoted server.

    Nobody cuts the connections to it: it refuses writes, or says that its slots have moved, and still answers reads.
    """
    pairs = cluster_pair if mode == "cluster" else plain_pair
    async with pairs(tmp_path, cuts=False) as two, cell_at(two, two.url, tmp_path / "cell", mode) as at:
        people = [*await workers(at), *[await at.listener(name, interval_s=PATIENT_S) for name in ("a1", "a2")]]
        load, letters = Load(at), Letters(at, "a1", "a2")
        await load.more(100)
        await letters.more(10)
        await _change_places(two, mode)
        for traffic in (load, letters):
            await traffic.more(20)
            await traffic.stop()
        await at.are_completed(load.acknowledged)
        await at.assert_one_outcome_each()
        wanted = set(letters.acknowledged)
        await wait_until(lambda: wanted <= heard_by(*people), "every message is handled", 60)
        assert all(one.alive for one in people)
        records = await queries.get_tasks(at.redis, at.keys, load.acknowledged)
        assert {one.failures for one in records if one} == {0}
        async with two.direct(0) as old:
            names = {one["name"] for one in await old.client_list(_type="normal")}
        assert [one for one in names if one.startswith("coord-")] == [], "a worker stays with the demoted server"


@pytest.mark.guarantee("slot-migration")
async def test_workers_stop_while_their_slot_is_migrated(tmp_path: Path) -> None:
    """⚠ A script would find some of its keys and not others: all stop, and none starts, until it is over."""
    async with cluster_pair(tmp_path) as two, cell_at(two, two.url, tmp_path / "cell", "moving") as at:
        working = [await at.worker(kind) for kind in CONSUMES]
        agent = await at.listener("a1")
        await _two_primaries(two, "moving")
        async with two.direct(0) as owner, two.direct(1) as other:
            await owner.hset("{moving}:settings", "health_threshold", "0.5")
            slot = int(await owner.execute_command("CLUSTER", "KEYSLOT", "{moving}:settings"))
            said = f"slot {slot} of namespace 'moving' is being migrated"
            theirs, ours = [await one.execute_command("CLUSTER", "MYID") for one in (other, owner)]
            await other.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ours)
            await owner.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", theirs)
            for worker in working:
                assert await worker.ended(30) == 2
                assert said in worker.told()
            await owner.delete("{moving}:settings")  # as if it had moved
            one = at.start("early", "-m", "workers", "registry")
            assert await one.ended(30) == 2
            assert said in one.told()
            await owner.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
        for kind in CONSUMES:
            await at.worker(kind)
        handle = await at.client.submit("echo", {"s": 0})
        assert (await handle.result(timeout=60))["by"] == "a1"
        assert agent.alive


@pytest.mark.guarantee("wrong-node")
async def test_a_worker_says_which_node_of_a_cluster_has_its_slot(tmp_path: Path) -> None:
    """One that is pointed at another node ends with 2, and names the node that it should be pointed at."""
    async with cluster_pair(tmp_path) as two, cell_at(two, two.url, tmp_path / "cell", "astray") as at:
        await _two_primaries(two, "astray")
        await two.front.lead_to(two.ports[1])
        astray = at.start("astray", "-m", "workers", "registry")
        assert await astray.ended(30) == 2
        assert f"does not have the slot of namespace 'astray'; 127.0.0.1:{two.ports[0]} has it" in astray.told()


async def _two_primaries(two: Pair, namespace: str) -> None:
    """The replica becomes a primary without slots, which knows who has them."""
    async with two.direct(0) as owner, two.direct(1) as other:
        await other.execute_command("CLUSTER", "RESET", "SOFT")
        me = next(one for one in (await owner.execute_command("CLUSTER", "NODES")).split(b"\n") if b"myself" in one)
        host, port, bus = re.split(rb"[:@,]", me.split()[1])[:3]
        await other.execute_command("CLUSTER", "MEET", host, port, bus)

        async def knows() -> bool:
            try:
                await other.exists(f"{{{namespace}}}:settings")
            except MovedError:
                return True
            except RedisError:
                pass
            return False

        await wait_until(knows, "it knows who has the slot", 60)


async def _promote(two: SentinelPair) -> None:
    """Kill the primary, and wait until the address leads to the other one."""
    two.primary.kill()
    await wait_until(lambda: two.front.target == two.ports[1], "the replica is promoted", 60)


async def _change_places(two: Pair, mode: str) -> None:
    """The replica becomes the primary once it has everything; the address follows a moment later."""
    words = ("CLUSTER", "FAILOVER") if mode == "cluster" else ("FAILOVER", "TO", "127.0.0.1", two.ports[1])
    async with two.direct(1 if mode == "cluster" else 0) as asked:
        await asked.execute_command(*words)
    await wait_until(lambda: two.follows(0), "they have changed places", 60)
    await two.front.lead_to(two.ports[1])


async def _is(at: FailoverProcesses, task_id: str, state: TaskState) -> bool:
    try:
        record = await queries.get_task(at.redis, at.keys, task_id)
    except (RedisError, OSError):
        return False
    return record is not None and record.state == state


async def _lease(at: FailoverProcesses, handle: TaskHandle) -> str:
    record = await handle.record()
    assert record.lease is not None
    return record.lease


async def _answer_to_report(at: FailoverProcesses, handle: TaskHandle, lease: str) -> str:
    """What is answered to who reports under a lease: ok, or an error's code."""
    fact = TaskCompleted(handle.task_id, lease, msgspec.Raw(b'{"by":"the lost second"}'))
    (entry,) = await append(at.redis, at.keys, [Append("in:reports", fact, "late-caller")])

    async def answer() -> Answer | None:
        found = await at.redis.execute_command("XRANGE", at.keys.replies("late-caller"), "-", "+")
        told = [read_answer(fields) for _, fields in found]
        return next((one for facts, one in told if ("in:reports", entry) in facts), None)

    found = await wait_until(answer, "the report is answered")
    assert found is not None
    return "ok" if found.ok else found.code


async def _stale_reports(at: FailoverProcesses, count: int) -> bool:
    return (await queries.get_counters(at.redis, at.keys)).get("reports_stale", 0) >= count
