"""Agents in other languages, written from docs/protocol.md alone, do what the SDK's do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from redis.exceptions import RedisError

from coord import Agent, Message, queries
from coord.client.handle import TaskHandle
from coord.config import Settings
from coord.errors import RequestFailed, TaskFailed
from coord.keys import CONSUMES
from coord.models.agents import AgentStatus, AgentType
from coord.models.facts import AgentRegistered
from coord.models.tasks import TaskState
from coord.streams import Append, append
from tests.ledger import assert_keys_end, assert_ledger, events_of_tasks
from tests.processes import CellProcesses, Process, cell_processes
from tests.system.foreign import LANGUAGES, PATIENT, Language, start, until_active
from tests.waiting import wait_until

WITH_INCARNATION = [one for one in LANGUAGES if one.has_incarnation]
each = pytest.mark.parametrize("language", LANGUAGES, ids=lambda one: one.name)
each_with_incarnation = pytest.mark.parametrize("language", WITH_INCARNATION, ids=lambda one: one.name)
#: Only an agent that obeys ends a cancelled task while a test runs.
NO_FORCE = {"COORD_CANCEL_GRACE_MS": "600000"}


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A cell with a worker of each kind."""
    async with cell_processes(tmp_path) as built:
        await asyncio.gather(*(built.worker(kind, **PATIENT, **NO_FORCE) for kind in CONSUMES))
        yield built


@pytest.fixture
async def trusting_nobody(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """The same, and it requires tokens of agents."""
    async with cell_processes(tmp_path) as built:
        environ = {**PATIENT, **NO_FORCE, "COORD_REQUIRE_TOKENS": "on"}
        await asyncio.gather(*(built.worker(kind, **environ) for kind in CONSUMES))
        yield built


def drop(path: Path, content: bytes = b"dropped") -> dict[str, Any]:
    """Put a whole file in its place; what an agent makes of it."""
    whole = path.with_suffix(".part")
    whole.write_bytes(content)
    whole.rename(path)
    return {"sha256": sha256(content).hexdigest(), "bytes": len(content)}


async def submit(at: CellProcesses, path: Path, agent_id: str | None = None) -> TaskHandle:
    """Have a file's fingerprint taken, by this agent if one is named."""
    requirements = {"capabilities": ["digest"]} | ({"agent_id": agent_id} if agent_id else {})
    return await at.client.submit("digest", {"path": str(path)}, requirements=requirements)


async def until_state(at: CellProcesses, handle: TaskHandle, *states: TaskState) -> None:
    """Wait until a task is in one of these states."""

    async def found() -> bool:
        record = await queries.get_task(at.redis, at.keys, handle.task_id)
        return record is not None and record.state in states

    await wait_until(found, f"{handle} is {' or '.join(states)}", 30)


async def assert_gone(at: CellProcesses, process: Process) -> None:
    """It exited with 0, deregistered, and left nothing in its lanes."""
    assert await process.ended(60) == 0, process.told()

    async def is_inactive() -> bool:
        return (await at.client.agent(process.name)).status == AgentStatus.INACTIVE

    await wait_until(is_inactive, f"the registry has handled the end of {process.name}")
    for lane in ("critical", "high", "normal", "low"):
        assert await at.redis.xlen(at.keys.inbox(process.name, lane)) == 0


async def test_three_languages_share_the_work(
    trusting_nobody: CellProcesses, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Tasks for any free agent and for each agent by name; a task that cannot be done fails permanently at once.

    Each agent sends its token with its facts, and none of them is refused.
    """
    at = trusting_nobody
    people = []
    for language in LANGUAGES:
        token = await at.client.admin.enrol(f"{language.name}-1", timeout=30)
        people.append(await start(at, request.config, language, f"{language.name}-1", COORD_AGENT_TOKEN=token))
    wanted: dict[TaskHandle, dict[str, Any]] = {}
    for n in range(30):
        path = tmp_path / f"file {n} é"  # a space and what is no ASCII
        found = drop(path, b"\x00x" * n)
        named = people[n % 3].name if n < 9 else None
        wanted[await submit(at, path, named)] = found
    for handle, found in wanted.items():
        assert await handle.result(timeout=60) == found
    failing = [await submit(at, tmp_path, one.name) for one in people]
    for handle in failing:
        with pytest.raises(TaskFailed, match="unreadable"):
            await handle.result(timeout=60)
    records = [await handle.record() for handle in (*wanted, *failing)]
    assert {(one.attempt, one.failures) for one in records} == {(1, 0), (1, 1)}
    assert all(one.started_at for one in records if one.state == TaskState.COMPLETED)
    assert all(one.attempts[0].started_at for one in records if one.state == TaskState.FAILED)
    assert set(Counter(one.agent_id for one in records)) == {one.name for one in people}
    for one in people:
        one.send(signal.SIGTERM)
    for one in people:
        await assert_gone(at, one)
    ends = Counter(one.type for one in await events_of_tasks(at.redis, at.keys))
    assert (ends["task.completed"], ends["task.failed"]) == (30, 3)
    assert "tokens_refused" not in await queries.get_counters(at.redis, at.keys)
    await assert_balanced(at)


@each
async def test_a_life(at: CellProcesses, tmp_path: Path, language: Language, request: pytest.FixtureRequest) -> None:
    """A task is cancelled midway and another takes its place; a message is answered; SIGTERM lets what runs end.

    Before that, the agent takes a master, accepts a link and sends requests along both.
    """
    async with friend_of(at) as friend:
        agent = await start(at, request.config, language, "a-1", COORD_MASTER="friend")
        await assert_links_and_requests(at, friend)
    first = await submit(at, tmp_path / "never")
    await until_state(at, first, TaskState.RUNNING)
    timeout_at = await at.redis.zscore(at.keys.of("limits"), first.task_id)
    assert (timeout_at is None) == language.has_incarnation  # an agent that lists its leases needs no limit
    assert await at.client.cancel(first.task_id, "no more\nneeded", timeout=30) == "accepted"
    await until_state(at, first, TaskState.CANCELLED)

    await append(at.redis, at.keys, [Append("in:registry", AgentRegistered("asker", AgentType.MONITOR))])
    await wait_until(lambda: at.redis.exists(at.keys.agent("asker")), "the asker is known")
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    hello = {"hello": ["wörld", 1]}
    sent = await at.client.send("a-1", hello, sender_id="asker", message_id="m-1", traceparent=trace)
    inbox = at.keys.inbox("asker", "normal")
    await wait_until(lambda: at.redis.xlen(inbox), "the message is answered", 30)
    ((_, answer),) = await at.redis.execute_command("XRANGE", inbox, "-", "+")
    assert (answer[b"sender_id"], answer[b"reply_to"]) == (b"a-1", sent.message_id.encode())
    assert await queries.get_message(at.redis, at.keys, answer[b"id"].decode())
    assert (json.loads(answer[b"data"]), answer[b"traceparent"]) == (hello, trace.encode())
    assert await at.client.ping("a-1", timeout=30) == {"op": "ping", "agent_id": "a-1"}
    assert await at.client.request("a-1", "echo", timeout=30) == "echo"
    last = await submit(at, tmp_path / "late")
    await until_state(at, last, TaskState.RUNNING)
    agent.send(signal.SIGTERM)
    await wait_until(lambda: _has_status(at, "a-1", AgentStatus.DRAINING), "it drains", 30)
    later = await submit(at, tmp_path / "late")
    found = drop(tmp_path / "late")
    await assert_gone(at, agent)
    assert await last.result(timeout=30) == found
    assert (await last.record()).attempt == 1
    assert (await later.record()).state == TaskState.QUEUED  # nobody is left
    assert await at.client.cancel(later.task_id, timeout=30) == "accepted"
    await assert_balanced(at)


@asynccontextmanager
async def friend_of(at: CellProcesses) -> AsyncIterator[Agent]:
    """Run an agent in this process that replies to each request with its payload."""
    friend = Agent("friend", url=at.server.url, settings=replace(Settings(), namespace=at.keys.namespace))

    @friend.on_request
    async def answer(message: Message) -> Any:
        return message.payload

    async with friend:
        yield friend


async def assert_links_and_requests(at: CellProcesses, friend: Agent) -> None:
    """It asks its master; it is refused along a link that there is not; it accepts the link, and asks along it."""

    async def has_master() -> bool:
        return (await at.client.links("a-1")).master == "friend"

    await wait_until(has_master, "it has a master", 30)
    ask = {"ask": "friend", "protocol": "hierarchical"}
    assert await at.client.request("a-1", ask, timeout=60) == {"from": "a-1"}
    ask = {"ask": "friend", "protocol": "peer_to_peer"}
    with pytest.raises(RequestFailed) as refused:
        await at.client.request("a-1", ask, timeout=60)
    assert refused.value.code == "not_linked"
    await friend.links.connect("a-1", timeout=60)
    assert await at.client.request("a-1", ask, timeout=60) == {"from": "a-1"}


@each
async def test_redis_is_away(
    at: CellProcesses, tmp_path: Path, language: Language, request: pytest.FixtureRequest
) -> None:
    """Work goes on without Redis and is reported when it is back; after a loss of data the agent registers again."""
    agent = await start(at, request.config, language, "a-1")
    task = await submit(at, tmp_path / "one")
    await until_state(at, task, TaskState.RUNNING)
    at.server.stop(force=True)
    found = drop(tmp_path / "one")
    await wait_until(lambda: "unavailable" in agent.told(), "it has noticed", 30)
    at.server.restart()
    await wait_until(lambda: _answers(at), "the server is back", 30)
    await until_state(at, task, TaskState.COMPLETED)
    after = await submit(at, tmp_path / "one")
    await until_state(at, after, TaskState.COMPLETED)
    for handle in (task, after):
        record = await handle.record()
        assert (record.result, record.attempt, record.failures) == (found, 1, 0)
    await assert_balanced(at)
    await at.redis.flushall()
    await until_active(at, agent)
    fresh = await submit(at, tmp_path / "one")
    await until_state(at, fresh, TaskState.COMPLETED)
    agent.send(signal.SIGTERM)
    await assert_gone(at, agent)
    await assert_balanced(at)


@each
async def test_redis_is_silent(
    at: CellProcesses, tmp_path: Path, language: Language, request: pytest.FixtureRequest
) -> None:
    """A server that accepts connections but does not answer is detected, and no fact is lost."""
    agent = await start(at, request.config, language, "a-1", COORD_ANSWER_TIMEOUT_S="1")
    task = await submit(at, tmp_path / "one")
    await until_state(at, task, TaskState.RUNNING)
    os.kill(at.server.pid, signal.SIGSTOP)
    try:
        found = drop(tmp_path / "one")
        await wait_until(lambda: "unavailable" in agent.told(), "it has noticed", 60)
    finally:
        os.kill(at.server.pid, signal.SIGCONT)
    assert await task.result(timeout=60) == found
    after = await submit(at, tmp_path / "one")
    assert await after.result(timeout=60) == found
    agent.send(signal.SIGTERM)
    await assert_gone(at, agent)
    await assert_balanced(at)


@each
async def test_redis_refuses(
    at: CellProcesses, tmp_path: Path, language: Language, request: pytest.FixtureRequest
) -> None:
    """Full for a while, then no primary for a while: refused facts are repeated, then on new connections."""
    agent = await start(at, request.config, language, "a-1")
    task = await submit(at, tmp_path / "one")
    await until_state(at, task, TaskState.RUNNING)
    maximum = int((await at.redis.info("memory"))["maxmemory"])
    before = await _refused(at)
    await at.redis.config_set("maxmemory", "1")
    found = drop(tmp_path / "one")
    await wait_until(lambda: _refused_more(at, before + 2), "the outcome was refused", 60)
    await at.redis.config_set("maxmemory", maximum)
    assert await task.result(timeout=60) == found

    connections = await _connections(at, language)
    assert bool(connections) == language.has_incarnation  # redis-cli makes one for each command
    before = await _refused(at)
    await at.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    await wait_until(lambda: _refused_more(at, before + 2), "a beat was refused", 60)

    async def has_left() -> bool:
        return not connections & await _connections(at, language)

    await wait_until(has_left, "it has left the server that was demoted", 60)
    await at.redis.execute_command("REPLICAOF", "NO", "ONE")
    await wait_until(lambda: _answers(at), "the server answers", 30)
    after = await submit(at, tmp_path / "one")
    assert await after.result(timeout=60) == found
    agent.send(signal.SIGTERM)
    await assert_gone(at, agent)
    await assert_balanced(at)


@each
async def test_a_newer_process(
    at: CellProcesses, tmp_path: Path, language: Language, request: pytest.FixtureRequest
) -> None:
    """It is given what the older one had, as a second attempt; an older one that still lives ends with an error."""
    old = await start(at, request.config, language, "a-1")
    task = await submit(at, tmp_path / "one")
    await until_state(at, task, TaskState.RUNNING)
    if not language.has_incarnation:
        old.kill()  # nothing else tells the two apart
    new = await start(at, request.config, language, "a-1")
    if language.has_incarnation:
        assert await old.ended(60) == 1
        assert "superseded" in old.told()
    await wait_until(lambda: _was_lost(at, task), "the first attempt is lost", 30)
    found = drop(tmp_path / "one")
    assert await task.result(timeout=60) == found
    assert (await task.record()).attempt == 2
    new.send(signal.SIGTERM)
    await assert_gone(at, new)
    await assert_balanced(at)


@each
async def test_an_agent_that_has_left_does_not_come_back(
    at: CellProcesses, language: Language, request: pytest.FixtureRequest
) -> None:
    """⚠ The answer to a heartbeat from before it left says that it is not known: it registered again, and was gone."""
    agent = await start(at, request.config, language, "a-1")
    (registry,) = [process for process in at.processes if process.name.startswith("registry")]
    registry.send(signal.SIGSTOP)  # the test answers
    try:
        agent.send(signal.SIGTERM)
        draining = await _fact(at, "agent.status_changed")
        caller = draining["caller"]
        replies = at.keys.of(f"replies:{caller}")
        done: dict[Any, Any] = {"type": "fact.answered", "stream": "in:registry", "fact": draining["entry"], "ok": "1"}
        await at.redis.xadd(replies, done)
        left = await _fact(at, "agent.deregistered")
        unknown = {"ok": "0", "code": "unknown_agent", "message": "it is not registered"}
        pipe = at.redis.pipeline()
        pipe.xadd(replies, done | {"stream": "in:beats", "fact": "1-0"} | unknown)
        pipe.xadd(replies, done | {"fact": left["entry"]})
        await pipe.execute()
        assert await agent.ended(60) == 0, agent.told()
        later: Any = await at.redis.xrange(at.keys.of("in:registry"), f"({left['entry']}")
        assert [fields[b"type"] for _, fields in later] == []
    finally:
        registry.send(signal.SIGCONT)
    await assert_gone(at, agent)


async def _fact(at: CellProcesses, kind: str) -> dict[str, str]:
    """Wait for the latest fact of this type in in:registry; its fields, and its entry id as ``entry``."""

    async def found() -> dict[str, str] | None:
        latest: Any = await at.redis.xrevrange(at.keys.of("in:registry"), count=1)
        for entry, fields in latest:
            text = {name.decode(): value.decode() for name, value in fields.items()}
            return {**text, "entry": entry.decode()} if text["type"] == kind else None
        return None

    fact = await wait_until(found, f"it appends {kind}", 30)
    assert fact is not None
    return fact


@each_with_incarnation
async def test_lost_leases(
    at: CellProcesses, tmp_path: Path, language: Language, request: pytest.FixtureRequest
) -> None:
    """What was gone when the agent claimed it is not begun and given back; what it never knew of, its lists tell."""
    agent = await start(at, request.config, language, "a-1")
    first = [await submit(at, tmp_path / "one") for _ in range(4)]
    for handle in first:
        await until_state(at, handle, TaskState.RUNNING)
    # Somebody says that it has room for one more than it thinks, so that it reads an assignment and does not claim it.
    fact = AgentRegistered("a-1", AgentType.WORKER, capabilities=("digest",), capacity=5, heartbeat_interval=1)
    await append(at.redis, at.keys, [Append("in:registry", fact)])
    doubtful = await submit(at, tmp_path / "two")
    await until_state(at, doubtful, TaskState.ASSIGNED)
    lane = at.keys.inbox("a-1", "normal")
    ((entry, _),) = await at.redis.execute_command("XRANGE", lane, "-", "+")
    await at.client.send("a-1", {}, sender_id="nobody")
    await wait_until(lambda: _length_is(at, lane, 1), "it has read so far, for the message behind is handled", 30)
    assert await at.redis.xdel(lane, entry) == 1
    found = drop(tmp_path / "one")
    for handle in first:
        assert await handle.result(timeout=60) == found
    found = drop(tmp_path / "two", b"two")
    assert await doubtful.result(timeout=60) == found
    assert [(one.how, one.message) for one in (await doubtful.record()).attempts] == [("released", "claim in doubt")]

    task = await submit(at, tmp_path / "three")
    await until_state(at, task, TaskState.RUNNING)
    agent.send(signal.SIGSTOP)
    await at.redis.client_kill_filter(_type="normal", skipme=True)  # or the next entry is in its socket already
    await wait_until(lambda: _answers(at), "the server answers", 30)
    forgotten = await submit(at, tmp_path / "three")
    await until_state(at, forgotten, TaskState.ASSIGNED)
    ((entry, _),) = await at.redis.execute_command("XRANGE", lane, "-", "+")
    assert await at.redis.xdel(lane, entry) == 1  # as a claim that nobody remembers
    agent.send(signal.SIGCONT)

    async def tried_twice() -> bool:
        record = await forgotten.record()
        return record.attempt == 2 and record.attempts[0].how == "lease_lost"

    await wait_until(tried_twice, "the lease is lost and the task is placed again", 60)
    found = drop(tmp_path / "three")
    assert [await one.result(timeout=60) for one in (task, forgotten)] == [found, found]
    assert (await task.record()).attempt == 1
    agent.send(signal.SIGTERM)
    await assert_gone(at, agent)
    await assert_balanced(at)


async def assert_balanced(at: CellProcesses) -> None:
    """Every fact was taken, the books balance, and nothing is in flight."""
    await at.settle_down()
    assert await at.redis.exists(at.keys.of("dead:in")) == 0
    assert [key async for key in at.redis.scan_iter(match=at.keys.inflight("*"))] == []
    await assert_ledger(at.redis, at.keys)
    await assert_keys_end(at.redis, at.keys)


async def _refused(at: CellProcesses) -> int:
    """Appends that the server refused: agents and clients append by XADD, workers in scripts."""
    return int((await at.redis.info("commandstats"))["cmdstat_xadd"]["rejected_calls"])


async def _refused_more(at: CellProcesses, than: int) -> bool:
    return await _refused(at) > than


async def _connections(at: CellProcesses, language: Language) -> set[str]:
    """The agent's connections, by the name of its library; coord's own say none."""
    return {one["id"] for one in await at.redis.client_list() if one.get("lib-name", "").startswith(language.library)}


async def _was_lost(at: CellProcesses, handle: TaskHandle) -> bool:
    return [one.how for one in (await at.client.task(handle.task_id)).attempts] == ["agent_lost"]


async def _length_is(at: CellProcesses, key: str, length: int) -> bool:
    return bool(await at.redis.xlen(key) == length)


async def _answers(at: CellProcesses) -> bool:
    try:
        return bool(await at.redis.ping())
    except RedisError:
        return False


async def _has_status(at: CellProcesses, agent_id: str, status: AgentStatus) -> bool:
    return (await at.client.agent(agent_id)).status == status
