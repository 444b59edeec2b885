"""`coord doctor`: each finding is made to happen on a real server, and a cell that is well has none."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest
from redis.asyncio import Redis

from coord import Agent, Client, NonRetryable, Task, TaskFailed
from coord.acl import Role, rules
from coord.config import MIB, Settings
from coord.connection import connect
from coord.doctor import agents, diagnose, read_machine, read_snapshot, snapshot
from coord.doctor.checks import check_connections, check_replication, check_server
from coord.embedded import EmbeddedServer
from coord.keys import Keys
from coord.models.findings import Finding, Level
from coord.queries import worker_record
from tests.commands import parse
from tests.living import CommandResult, Living, living, run_coord
from tests.running import RunningCell, running_cell
from tests.waiting import wait_until

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")

#: A machine with much else to do is slow.
LIMIT_S = 60.0
AREAS = (
    "server", "memory", "connections", "clocks", "permissions", "workers", "streams", "agents", "tasks", "dead_letters",
    "ledger", "settings", "processes",
)  # fmt: skip


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server with the settings of `coord up`, which tests may change."""
    running = EmbeddedServer.start(tmp_path_factory.mktemp("doctor"))
    yield running
    running.stop(force=True)


@pytest.fixture
async def well(own_server: EmbeddedServer, settings: Settings) -> AsyncIterator[RunningCell]:
    """A cell with its workers on this server."""
    async with running_cell(own_server.url, settings) as cell:
        yield cell


async def look(redis: Redis, settings: Settings, **options: Any) -> list[Finding]:
    """What the doctor finds, without a look at the machine; each command that it advises can be typed."""
    findings = diagnose(await read_snapshot(redis, Keys(settings.namespace), settings, **options))
    for finding in findings:
        for command in re.findall("`(coord [^`]+)`", finding.advice):
            parse(shlex.split(command))
    return findings


def problems(findings: Sequence[Finding]) -> list[str]:
    """The codes of warnings and errors."""
    return [finding.code for finding in findings if finding.level is not Level.OK]


async def found(cell: RunningCell, code: str) -> Finding:
    """Wait for a finding."""
    seen: list[Finding] = []

    async def is_there() -> bool:
        seen[:] = [one for one in await look(cell.redis, cell.settings) if one.code == code]
        return bool(seen)

    await wait_until(is_there, f"the doctor finds {code}", LIMIT_S)
    return seen[0]


async def add_worker(cell: RunningCell, kind: str, name: str, **fields: Any) -> None:
    """Publish a presence as a worker does."""
    moment = int(time.time() * 1000)
    presence: dict[Any, Any] = {
        "pid": 1,
        "host": "elsewhere",
        "version": "0",
        "started_at": moment,
        "progress_at": moment,
    } | fields
    await cell.redis.hset(cell.keys.worker(kind, name), mapping=presence)
    await cell.redis.zadd(cell.keys.of(f"workers:{kind}"), {name: moment})


async def add_fact(cell: RunningCell, stream: str, kind: str, data: dict[str, Any]) -> None:
    """Append a fact as an agent in any language does."""
    await cell.redis.xadd(cell.keys.of(stream), {"type": kind, "data": json.dumps(data)})


async def test_a_cell_that_is_well(well: RunningCell) -> None:
    """Each area has one line that says so; there is no problem."""
    agent = Agent("a-1", url=well.url, settings=well.settings)

    @agent.task("echo")
    async def echo(task: Task) -> Any:
        return task.payload

    async with agent, Client(well.url, settings=well.settings) as client:
        await (await client.submit("echo", {})).result(timeout=LIMIT_S)

        async def is_well() -> bool:
            return not problems(await look(well.redis, well.settings, checks_ledger=True))

        await wait_until(is_well, "all workers have published their presence", LIMIT_S)
        state = await read_snapshot(well.redis, well.keys, well.settings, checks_ledger=True)
        findings = diagnose(state, read_machine(state.processes, {}))
    assert [one.code for one in findings if one.code != "server.advice"] == list(AREAS)
    assert {one.level for one in findings} == {Level.OK}
    by_code = {one.code: one.message for one in findings}
    assert by_code["workers"] == "1 registry, 1 distributor, 1 router"
    assert by_code["agents"] == "1 of 1 may get work"
    assert by_code["ledger"].startswith("counters and records of 1 task agree")


async def test_kinds_of_worker_that_are_missing(own_server: EmbeddedServer, settings: Settings) -> None:
    """Each is an error that names what waits, and the command that starts one."""
    redis = connect(own_server.url, settings, retries=0)
    findings = [one for one in await look(redis, settings) if one.level is Level.ERROR]
    await redis.sadd(Keys(settings.namespace).of("agents:pushed"), "p-1")
    pushed = [one for one in await look(redis, settings) if "push worker" in one.message]
    await redis.aclose()
    assert [one.sentence for one in findings] == [
        "no registry is running, so registrations and heartbeats wait; start one: `coord worker registry`",
        "no distributor is running, so submitted tasks and results wait; start one: `coord worker distributor`",
        "no router is running, so messages wait; start one: `coord worker router`",
    ]
    assert [one.advice for one in pushed] == ["start one: `coord worker push`"]


async def test_workers_that_are_stuck_or_differ(well: RunningCell) -> None:
    """By what they publish: no progress, another version, other settings, no tokens."""
    await add_worker(well, "router", "r-9", idle_ms=60_000, require_tokens="on")
    assert (await found(well, "workers.stuck")).message.startswith(
        "r-9 (pid 1 on elsewhere) has made no progress for 1 min"
    )
    assert "version" in (await found(well, "workers.versions")).message
    assert "requires no tokens of agents" in (await found(well, "workers.tokens")).message
    await wait_until(
        lambda: well.redis.exists(well.keys.worker("distributor", "distributor-2")), "it is there", LIMIT_S
    )
    await add_worker(well, "distributor", "d-9", **{"setting:strategy": "random"})
    differing = await found(well, "settings.differ")
    assert "distributors have different values of strategy: " in differing.message
    assert "random in d-9" in differing.message
    assert differing.advice.endswith("coord settings set strategy")


async def test_entries_that_wait(own_server: EmbeddedServer, settings: Settings) -> None:
    """How many, for how long, in which group; and those that a worker has read that is gone."""
    redis, keys = connect(own_server.url, settings, retries=0), Keys(settings.namespace)
    now = int(time.time() * 1000)
    for age in (70_000, 30_000):
        await redis.xadd(keys.of("in:tasks:high"), {"type": "x", "data": "{}"}, id=f"{now - age}-0")
    await redis.xadd(keys.of("in:links"), {"type": "x", "data": "{}"}, id=f"{now - 10_000}-0")
    await redis.xgroup_create(keys.of("in:tasks:high"), "distributor", id="0")
    await redis.xreadgroup("distributor", "gone-1", {keys.of("in:tasks:high"): ">"}, count=2)
    by_code = {one.code: one for one in await look(redis, settings) if one.code.startswith("streams")}
    levels = [one.level for one in await look(redis, settings) if one.code == "streams.lag"]
    await redis.aclose()
    assert levels == [Level.ERROR, Level.WARNING]
    abandoned = by_code["streams.abandoned"]
    assert abandoned.message == "in:tasks:high: 2 entries pending with gone-1, which is not running"
    assert abandoned.advice.endswith("`coord worker distributor`")
    assert "streams" not in by_code


async def test_agents_that_are_silent_deaf_or_failing(well: RunningCell) -> None:
    """Each is named, with what to look at."""
    for name in ("silent-1", "deaf-1", "broken-1"):
        interval = 0.2 if name == "silent-1" else 60
        data = {"agent_id": name, "agent_type": "worker", "capabilities": ["x"], "heartbeat_interval": interval}
        await add_fact(well, "in:registry", "agent.registered", data)
    await add_fact(well, "in:registry", "agent.status_changed", {"agent_id": "broken-1", "status": "error"})
    await add_fact(well, "in:beats", "agent.heartbeat", {"agent_id": "deaf-1", "deaf": True})
    assert "1 agent stopped sending heartbeats" in (await found(well, "agents.silent")).message
    deaf = await found(well, "agents.deaf")
    assert deaf.message.startswith("1 agent deaf, without new tasks (as the agent reports: ")
    assert deaf.message.endswith(": deaf-1")
    assert "coord agents show deaf-1" in deaf.advice
    assert "broken-1" in (await found(well, "agents.error")).message


async def test_agents_that_are_ejected(well: RunningCell) -> None:
    """By their record, as the distributor writes it."""
    await add_fact(well, "in:registry", "agent.registered", {"agent_id": "e-1", "agent_type": "worker"})
    await wait_until(lambda: well.redis.exists(well.keys.agent("e-1")), "it is registered", LIMIT_S)
    until = int(time.time() * 1000) + 60_000
    ejected = json.dumps(
        [{"task_type": "ocr", "until": until, "for_ms": 60_000, "failure_rate": 1.0, "others_rate": 0.0}]
    )
    await well.redis.hset(well.keys.agent("e-1"), "ejected", ejected)
    await well.redis.zadd(well.keys.of("agents:health"), {"e-1": -0.6})
    assert (await found(well, "agents.ejected")).message.startswith("no tasks of type ocr for e-1: ")


async def add_records(redis: Redis, keys: Keys, number: int, health: float, **fields: Any) -> None:
    """Write the records and index entries of agents as the registry does.

    Args:
        redis: of the server.
        keys: of the cell.
        number: of agents.
        health: theirs; -1: they have left.
        fields: of their records; ``name``: begin of their ids; ``since``: ms at which they left or turned stale.
    """
    name, since, status = fields.pop("name"), fields.pop("since", None), fields.get("status", "active")
    pipe = redis.pipeline(transaction=False)
    for index in range(number):
        agent_id = f"{name}-{index:04}"
        record = {"agent_id": agent_id, "agent_type": "worker", "status": "active", "last_heartbeat": since or 1}
        pipe.hset(keys.agent(agent_id), mapping=record | fields)
        pipe.sadd(keys.of("agents:all"), agent_id)
        pipe.sadd(keys.facet("status", status), agent_id)
        pipe.zadd(keys.of("agents:health"), {agent_id: f"{-health:.3f}"})
        if status == "active" and "deaf" not in fields:
            pipe.sadd(keys.of("agents:active"), agent_id)
        if since is not None:
            pipe.zadd(keys.of("agents:departed"), {agent_id: since + index})
    await pipe.execute()


async def fill(redis: Redis, keys: Keys) -> None:
    """Write many agents of each kind that a finding is about, and some that are well."""
    now = int(time.time() * 1000)
    ejected = [{"task_type": "ocr", "until": now + 600_000, "for_ms": 600_000, "failure_rate": 1.0, "others_rate": 0.0}]
    await add_records(redis, keys, 300, 1.0, name="fine")
    await add_records(redis, keys, 250, 0.0, name="silent", status="stale", since=now - 60_000)
    await add_records(redis, keys, 120, 0.0, name="old", status="stale", since=now - 7_200_000)
    await add_records(redis, keys, 130, -1.0, name="left", status="inactive", since=now - 90_000)
    await add_records(redis, keys, 140, 0.5, name="broken", status="error")
    await add_records(redis, keys, 150, 0.9, name="ejected", ejected=json.dumps(ejected))
    await add_records(redis, keys, 160, 0.5, name="reports", deaf="1")
    await add_records(redis, keys, 4, 0.5, name="unread", deaf="1", unread=str(now))
    await add_records(redis, keys, 170, 1.0, name="unpolled", deaf="1", unpolled="1")


async def agent_messages(redis: Redis, settings: Settings) -> list[str]:
    """Return the messages about agents."""
    return [one.message for one in await look(redis, settings) if one.code.startswith("agents.")]


async def test_more_agents_than_a_finding_names(own_server: EmbeddedServer, settings: Settings) -> None:
    """All agents with the same problem are one finding, which counts them; those that are well hide none of them."""
    redis, keys = connect(own_server.url, settings, retries=0), Keys(settings.namespace)
    await fill(redis, keys)
    silent, *others = await agent_messages(redis, settings)
    codes = [one.code for one in await look(redis, settings) if one.code.startswith("agents.")]
    await redis.aclose()
    assert silent.startswith(
        "250 agents stopped sending heartbeats within the last hour: "
        "silent-0249, silent-0248, silent-0247 and 247 more, the last 1 min "
    )
    reports, unpolled, unread, broken, ejected = others
    assert reports.startswith("160 agents deaf, without new tasks (as the agent reports: ")
    assert reports.endswith(" and 157 more")
    assert unpolled.startswith("170 agents deaf, without new tasks (nothing reads its inbox over HTTP): unpolled-0")
    assert unread.startswith("4 agents deaf, without new tasks (it sends heartbeats and does not read its inbox): unre")
    assert unread.endswith(" and 1 more")
    assert broken.startswith("140 agents in status error, without new tasks: broken-")
    assert broken.endswith(" and 137 more")
    assert ejected.startswith("no tasks of type ocr for ejected-")
    assert ejected.endswith(" and 147 more: too many of them failed there")
    assert codes == ["agents.silent", *["agents.deaf"] * 3, "agents.error", "agents.ejected"]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        # All unhealthy agents are examined, not all healthy ones: their inbox may be read by nobody.
        (
            (500, 20_000),
            [
                "250 agents stopped", "160 agents deaf, without new tasks (as", "at least 46 agents deaf, without new ",
                "4 agents deaf", "at least 124 agents deaf, without new tasks (for reasons that were not read",
                "140 agents in status error", "no tasks of type ocr for ",
            ],
        ),
        # Some unhealthy agents are not examined.
        (
            (400, 1_000),
            [
                "250 agents stopped", "at least 160 agents deaf", "at least 4 agents deaf",
                "at least 170 agents deaf, without new tasks (for reasons that", "140 agents in status error",
                "no tasks of type ocr for ejected-0149, ejected-0148, ejected-0147 and at least 93 more: too many",
            ],
        ),
        # Silent agents hide all others, and not all departures are looked through.
        (
            (400, 100),
            [
                "at least 100 agents stopped", "at least 334 agents deaf, without new tasks (for reasons that",
                "140 agents in status error",
            ],
        ),
    ],
)  # fmt: skip
async def test_numbers_beyond_the_limits(
    own_server: EmbeddedServer,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[int, int],
    expected: list[str],
) -> None:
    """The finding says that there are at least so many."""
    monkeypatch.setattr(agents, "STEP", 50)
    monkeypatch.setattr(agents, "EXAMINED", limits[0])
    monkeypatch.setattr(agents, "MOST", limits[1])
    redis, keys = connect(own_server.url, settings, retries=0), Keys(settings.namespace)
    await fill(redis, keys)
    found = await agent_messages(redis, settings)
    await redis.aclose()
    assert len(found) == len(expected), found
    for message, begin in zip(found, expected, strict=True):
        assert message.startswith(begin), found


async def test_an_agent_that_was_just_ejected(
    own_server: EmbeddedServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its health does not show it yet, and many agents are less healthy: the log of agents names it."""
    monkeypatch.setattr(agents, "EXAMINED", 10)
    redis, keys = connect(own_server.url, settings, retries=0), Keys(settings.namespace)
    until = int(time.time() * 1000) + 60_000
    ejected = [{"task_type": "ocr", "until": until, "for_ms": 60_000, "failure_rate": 1.0, "others_rate": 0.0}]
    await add_records(redis, keys, 20, 0.96, name="fine")
    await add_records(redis, keys, 1, 1.0, name="ejected", ejected=json.dumps(ejected))
    before = await agent_messages(redis, settings)
    event: dict[Any, Any] = {"type": "agent.ejected", "agent_id": "ejected-0000", "task_type": "ocr", "for_ms": 60_000}
    await redis.xadd(keys.of("log:agents"), event)
    after = await agent_messages(redis, settings)
    await redis.aclose()
    assert before == []
    assert after == ["no tasks of type ocr for ejected-0000: too many of them failed there"]


async def test_tasks_whose_reasons_nobody_counts(own_server: EmbeddedServer, settings: Settings) -> None:
    """Tasks wait, and no distributor has counted them: that is not well. Without tasks it is."""
    redis, keys = connect(own_server.url, settings, retries=0), Keys(settings.namespace)
    empty = [one for one in await look(redis, settings) if one.code.startswith("tasks")]
    await redis.hset(keys.of("counters"), "queued:normal", "3")
    (unknown,) = [one for one in await look(redis, settings) if one.code.startswith("tasks")]
    counted: dict[Any, Any] = {"counted_at": int(time.time() * 1000), "queued": 3, "scheduled": 0, "all_full": 3}
    await redis.hset(keys.of("waiting"), mapping=counted)
    (known,) = [one for one in await look(redis, settings) if one.code.startswith("tasks")]
    await redis.aclose()
    assert [(one.level, one.message) for one in empty] == [(Level.OK, "no task waits")]
    assert (unknown.level, unknown.code) == (Level.WARNING, "tasks.uncounted")
    assert unknown.message == (
        "3 tasks waiting, and the reasons are not known: "
        "no distributor has counted the waiting tasks within the last 5 minutes"
    )
    assert unknown.advice.startswith("see whether a distributor runs: `coord ps`")
    assert (known.level, known.message) == (Level.OK, "3 tasks waiting, each for an agent that is there")


async def test_tasks_that_nobody_may_get(well: RunningCell) -> None:
    """Without an agent that is an error; without a capability a warning with the reason."""
    async with Client(well.url, settings=well.settings) as client:
        await client.submit("ocr", {}, capabilities=["ocr"])
        none = await found(well, "agents.none")
        assert none.level is Level.ERROR
        assert "1 task" in none.message
        await add_fact(well, "in:registry", "agent.registered", {"agent_id": "a-1", "agent_type": "worker"})
        await wait_until(lambda: well.redis.exists(well.keys.agent("a-1")), "it is registered", LIMIT_S)

        async def has_reason() -> bool:
            return "1 no_capability" in (await found(well, "tasks.parked")).message

        await wait_until(has_reason, "the reason is counted", LIMIT_S)


async def test_dead_letters(well: RunningCell) -> None:
    """A failed task is kept; the finding says how to see it."""
    agent = Agent("a-1", url=well.url, settings=well.settings)

    @agent.task("boom")
    async def boom(_: Task) -> None:
        raise NonRetryable("it_broke", "by design")

    async with agent, Client(well.url, settings=well.settings) as client:
        with pytest.raises(TaskFailed):
            await (await client.submit("boom", {})).result(timeout=LIMIT_S)
        letter = await found(well, "dead_letters")
    assert letter.message == "1 failed task is kept as a dead letter"
    assert letter.advice.startswith("`coord dead list --kind task` shows them, ")


async def test_the_ledger(well: RunningCell) -> None:
    """A counter that is wrong is an error; without the check nothing is said of it."""
    await well.redis.hincrby(well.keys.of("counters"), "queued:high", 3)
    findings = await look(well.redis, well.settings, checks_ledger=True)
    assert {one.level for one in findings if one.code == "ledger"} == {Level.ERROR}
    assert not [one for one in await look(well.redis, well.settings) if one.code == "ledger"]


def _incarnation(at: int) -> str:
    """A UUIDv7 of this time in ms."""
    digits = f"{at:012x}7" + "0" * 3 + "8" + "0" * 15
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


async def test_the_clocks(well: RunningCell, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's, and that of an agent, which shows in its incarnation."""
    now = int(time.time() * 1000)
    data = {"agent_id": "early-1", "agent_type": "worker", "incarnation": _incarnation(now + 3_600_000)}
    await add_fact(well, "in:registry", "agent.registered", data)
    early = await found(well, "clocks.others")
    assert "early-1" in early.message
    assert "59 min" in early.message or "1 h 0 min" in early.message
    monkeypatch.setattr(snapshot, "REGISTERED_MS", 0)  # it was longer ago
    assert "clocks.others" not in problems(await look(well.redis, well.settings))
    monkeypatch.undo()
    await add_fact(well, "in:registry", "agent.registered", data | {"incarnation": _incarnation(now)})

    async def is_corrected() -> bool:
        return "clocks.others" not in problems(await look(well.redis, well.settings))

    await wait_until(is_corrected, "the agent has registered with a correct clock", LIMIT_S)
    real = time.time
    monkeypatch.setattr(snapshot, "time", SimpleNamespace(time=lambda: real() - 100))
    here = await found(well, "clocks.here")
    assert re.match(r"this machine's clock is 1 min (3|4)\d s behind the server's", here.message)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@pytest.fixture
async def changed(own_server: EmbeddedServer) -> AsyncIterator[Callable[..., Any]]:
    """Changes settings of the server until the test has ended."""
    redis = connect(own_server.url, Settings(), retries=0)
    before: dict[str, str] = {}

    async def change(name: str, value: Any) -> None:
        before.setdefault(name, _text((await redis.config_get(name))[name]))
        await redis.config_set(name, value)

    yield change
    for name, value in before.items():
        await redis.config_set(name, value)
    await redis.aclose()


async def test_the_server(well: RunningCell, changed: Callable[..., Any]) -> None:
    """Eviction, no limit of memory, no durability: each with the command that changes it."""
    await changed("maxmemory-policy", "allkeys-lru")
    (unfit,) = [one for one in await look(well.redis, well.settings) if one.code == "server.unfit"]
    assert unfit.level is Level.ERROR
    accepting = msgspec.structs.replace(well.settings, allow_eviction=True)
    assert "CONFIG SET maxmemory-policy noeviction" in next(
        one.advice for one in await look(well.redis, accepting) if one.code == "server.eviction"
    )
    await changed("maxmemory-policy", "noeviction")
    await changed("maxmemory", 0)
    await changed("appendonly", "no")
    await changed("save", "")
    codes = problems(await look(well.redis, well.settings))
    assert {"server.maxmemory", "server.durability"} <= set(codes)


async def test_the_memory_of_the_server(well: RunningCell, changed: Callable[..., Any]) -> None:
    """What does not work any more, from the first share on; at the limit writes are refused."""

    async def shows(share: float, code: str) -> bool:
        """Return True if the finding is there while so much is in use; what is in use changes by itself."""
        used = int((await well.redis.info("memory"))["used_memory"])
        await changed("maxmemory", int(used / share))
        return code in problems(await look(well.redis, well.settings))

    for share, code in ((0.8, "memory.high"), (0.88, "memory.full"), (0.96, "memory.full")):
        await wait_until(partial(shows, share, code), f"{code} at {share:.0%}")
    await changed("maxmemory", MIB // 2)
    (refused,) = [one for one in await look(well.redis, well.settings) if one.code == "server.writes"]
    assert "its memory is full" in refused.message


async def test_connections(well: RunningCell, changed: Callable[..., Any]) -> None:
    """Against the limit of the server."""
    clients = int((await well.redis.info("clients"))["connected_clients"])
    await changed("maxclients", int(clients / 0.9))
    state = await read_snapshot(well.redis, well.keys, well.settings)
    (many,) = check_connections(state)
    assert many.code == "connections.many"
    assert "CONFIG SET maxclients" in many.advice


async def test_replicas(own_server: EmbeddedServer, settings: Settings) -> None:
    """One that follows is well; one that is far behind or not online is named, and so is a disk that failed."""
    primary = connect(own_server.url, settings, retries=0)
    state = await read_snapshot(primary, Keys(settings.namespace), settings)
    await primary.aclose()
    assert state.info is not None
    follower = {"ip": "10.0.0.6", "port": 6379, "state": "online", "offset": 1000, "lag": 0}
    info = dict(state.info) | {"connected_slaves": 1, "master_repl_offset": 1000, "slave0": follower}
    (online,) = check_replication(msgspec.structs.replace(state, info=info))
    assert (online.level, online.message) == (Level.OK, "1 replica online")
    for change, text in (({"state": "wait_bgsave"}, "is wait_bgsave"), ({"offset": -(2**30)}, "GiB behind")):
        late = msgspec.structs.replace(state, info=info | {"slave0": follower | change})
        (finding,) = check_replication(late)
        assert finding.code == "replication.lag"
        assert text in finding.message
    broken = msgspec.structs.replace(state, info=dict(state.info) | {"aof_last_write_status": "err"})
    assert "server.disk" in [one.code for one in check_server(broken)]


async def test_a_user_who_may_not_read_everything(well: RunningCell, own_server: EmbeddedServer) -> None:
    """What it may not send is listed; the rest is checked."""
    await well.redis.execute_command(
        "ACL", "SETUSER", "watcher", "reset", "on", ">pw", *rules(Role.GATEWAY, well.settings.namespace)
    )
    watcher = connect(own_server.url.replace("unix://", "unix://watcher:pw@"), well.settings, retries=0)
    try:
        state = await read_snapshot(watcher, well.keys, well.settings)
    finally:
        await watcher.aclose()
        await well.redis.execute_command("ACL", "DELUSER", "watcher")
    (denied,) = [one for one in diagnose(state) if one.code == "permissions"]
    assert "this user may not: CONFIG GET" in denied.message
    assert "coord acl operator" in denied.advice


def _sleeping(variables: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process with these variables."""
    return subprocess.Popen(SLEEPS, env=os.environ | variables)


async def test_settings_that_may_differ(own_server: EmbeddedServer, settings: Settings) -> None:
    """Each role has a Redis user; gateways have ports and settings of their own; kinds may have other batches."""
    here = socket.gethostname()
    variables = {
        "router": {"COORD_REDIS_URL": "redis://a:1@h", "COORD_GATEWAY_RATE": "5", "COORD_AGENT_TOKEN": "t"},
        "router-2": {"COORD_REDIS_URL": "redis://b:2@h", "COORD_GATEWAY_PORT": "9002"},
        "gateway": {"COORD_REDIS_URL": "redis://c:3@h", "COORD_GATEWAY_PORT": "9003", "COORD_BATCH": "16"},
    }
    running = {name: _sleeping(own) for name, own in variables.items()}
    try:
        records = [
            worker_record(name.partition("-")[0], name, {"pid": str(process.pid), "host": here})
            for name, process in running.items()
        ]

        def all_read() -> bool:
            found = read_machine(records, {}).environments
            return len(found.get("router", {})) == 2 and "COORD_BATCH" in found.get("gateway", {}).get("gateway", {})

        await wait_until(all_read, "the processes run their programs", LIMIT_S)
        redis = connect(own_server.url, settings, retries=0)
        state = await read_snapshot(redis, Keys(settings.namespace), settings)
        await redis.aclose()
        assert not [one for one in diagnose(state, read_machine(records, {})) if one.code == "settings.differ"]
    finally:
        for process in running.values():
            process.kill()
            process.wait()


SLEEPS = (sys.executable, "-c", "import time; time.sleep(120)")
#: A program whose child is in a process group of its own, as that of `timeout` is.
PARENT = (sys.executable, "-c", f"import subprocess; subprocess.run({SLEEPS}, process_group=0)")
#: Starts a program in a process group of its own, prints its pid, and ends.
LEAVES = """
import subprocess, sys
quiet = subprocess.DEVNULL
print(subprocess.Popen(sys.argv[1:], start_new_session=True, stdin=quiet, stdout=quiet, stderr=quiet).pid)
"""


def _start_processes() -> tuple[subprocess.Popen[bytes], list[subprocess.Popen[bytes]], int]:
    """Return a process that has ended, two with different settings, and the pid of a program without its agent."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    workers = [
        subprocess.Popen(SLEEPS, env=os.environ | {"COORD_BATCH": batch, "COORD_REDIS_URL": f"redis://:pw@h{batch}"})
        for batch in ("16", "32")
    ]
    environ = os.environ | {"COORD_TASK_ID": "t-1", "COORD_AGENT_ID": "a-1"}
    printed = subprocess.run([sys.executable, "-c", LEAVES, *PARENT], env=environ, stdout=subprocess.PIPE, check=True)
    return ended, workers, int(printed.stdout)


async def test_the_processes_of_this_machine(well: RunningCell) -> None:
    """Workers that have ended, workers with other settings, and programs without their agent."""
    here = socket.gethostname()
    ended, workers, orphan = _start_processes()
    try:
        records = [
            worker_record("router", name, {"pid": str(pid), "host": here})
            for name, pid in (("r-0", ended.pid), ("r-1", workers[0].pid), ("r-2", workers[1].pid))
        ]
        state = await read_snapshot(well.redis, well.keys, well.settings)
        seen: list[Finding] = []
        children: list[psutil.Process] = []

        def has_child() -> bool:
            children[:] = psutil.Process(orphan).children()
            return any(os.getpgid(child.pid) == child.pid for child in children)

        await wait_until(has_child, "the program starts its child", LIMIT_S)

        async def all_found() -> bool:
            machine = read_machine(records, {"COORD_X": "COORD_X is not a setting"})
            seen[:] = [one for one in diagnose(state, machine) if one.code.startswith(("settings.", "processes."))]
            return (
                any(one.code == "processes.orphan" for one in seen) and sum("COORD_" in one.message for one in seen) > 2
            )

        await wait_until(all_found, "the processes run their programs", LIMIT_S)
    finally:
        for process in workers:
            process.kill()
            process.wait()
        for pid in (orphan, *(child.pid for child in children)):
            os.kill(pid, signal.SIGKILL)
    messages = {one.code + " " + one.message.partition(":")[0]: one for one in seen}
    assert messages["settings.unknown COORD_X is not a setting"].advice == "`unset COORD_X`"
    differing = [one.message for one in seen if one.code == "settings.differ"]
    assert any("COORD_BATCH: 16 in r-1; 32 in r-2" in message for message in differing)
    assert any("COORD_REDIS_URL: value 1 in r-1; value 2 in r-2" in message for message in differing)  # no password
    assert [one.message for one in seen if one.code == "processes.gone"] == [
        f"r-0 (pid {ended.pid}) ended without deregistering; its record expires by itself"
    ]
    (lost,) = [one for one in seen if one.code == "processes.orphan" and f"pid {orphan} " in one.message]
    assert "runs task t-1 of agent a-1" in lost.message
    assert lost.advice == f"`kill -- -{orphan}`"
    assert not [one for one in seen if f"pid {children[0].pid} " in one.message]  # it is the program's own


@pytest.fixture(scope="module")
def lives(own_server: EmbeddedServer) -> Iterator[Living]:
    """One cell for the tests of the command."""
    with living(own_server.url) as running:
        running.agent("echo-1")
        yield running


@pytest.fixture
def coord(
    lives: Living, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CommandResult]:
    """Runs a command on the cell."""
    return lambda *arguments: run_coord(capsys, monkeypatch, *arguments, *lives.options)


def test_the_command(lives: Living, coord: Callable[..., CommandResult], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 0 without a problem; 1 with one, which says what to do."""

    async def is_well() -> bool:
        cell = lives.cell
        return not problems(await look(cell.redis, cell.settings, checks_ledger=True))

    lives.until(is_well, "the workers have published their presence")
    well = coord("doctor", "--json")
    assert (well.code, well.json["level"], well.err) == (0, "ok", ""), well.out
    assert {one["level"] for one in well.json["findings"]} == {"ok"}
    assert coord("doctor").out.endswith(f"{lives.cell.settings.namespace}: all is well\n")
    assert "ledger" not in [one["code"] for one in coord("doctor", "--quick", "--json").json["findings"]]
    monkeypatch.setenv("COORD_BATHC", "5")
    wrong = coord("doctor", "--quick")
    assert wrong.code == 1
    header, first, advice, *_ = wrong.out.splitlines()
    assert header.split() == ["level", "check", "finding"]
    assert first.split(maxsplit=2) == [
        "warning", "settings.unknown", "COORD_BATHC is not a setting; did you mean COORD_BATCH?",
    ]  # fmt: skip
    assert advice.strip() == "→ `unset COORD_BATHC`"
    assert wrong.out.endswith(": 1 warning\n")


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2, and the next step."""
    found = run_coord(capsys, monkeypatch, "doctor", "--redis-url", "redis://127.0.0.1:1")
    assert found.code == 2
    assert "no usable Redis at redis://127.0.0.1:1" in found.err
