"""The Redis users of docs/operating.md, of workers, agents and clients: they can do their work, and nothing else."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest
from redis.asyncio import Redis

from coord import Agent, Client
from coord.config import Settings
from coord.connection import connect
from coord.embedded import EmbeddedServer
from coord.errors import TaskNotFound
from coord.server_check import check_server
from tests.conftest import FAST
from tests.running import RunningCell, running_cell

DOCUMENT = Path(__file__).parents[2] / "docs" / "operating.md"
SETTINGS = Settings(read_block_ms=100, heartbeat_interval_s=0.2)
#: What the document calls them.
WORKER, AGENT, CLIENT = "coord", "ocr-1", "web"


def commands() -> dict[str, list[str]]:
    """User -> the words of the ACL SETUSER that the document gives for it."""
    text = DOCUMENT.read_text().replace("\\\n", " ")
    found = [shlex.split(line) for line in re.findall(r"^ACL SETUSER .*$", text, re.MULTILINE)]
    return {words[2]: words for words in found}


@pytest.fixture
async def cell(tmp_path: Path, unused_port: int) -> AsyncIterator[RunningCell]:
    """A cell on a server of its own, which knows these users; its workers are theirs."""
    server = EmbeddedServer.start(tmp_path / "data", port=unused_port, extra=FAST)
    try:
        async with connect(f"redis://127.0.0.1:{unused_port}", SETTINGS) as redis:
            for words in commands().values():
                await redis.execute_command(*words)
        async with running_cell(url_of(unused_port, WORKER), SETTINGS) as running:
            yield running
    finally:
        server.stop(force=True)


@pytest.fixture
async def admin(cell: RunningCell, unused_port: int) -> AsyncIterator[Redis]:
    """The server's own user."""
    async with connect(f"redis://127.0.0.1:{unused_port}", SETTINGS) as redis:
        yield redis


def url_of(port: int, user: str) -> str:
    """Where the server is, for a user with the password of the document."""
    (password,) = [word[1:] for word in commands()[user] if word.startswith(">")]
    return f"redis://{user}:{password}@127.0.0.1:{port}/0"


async def test_workers_an_agent_and_a_client_do_their_work(cell: RunningCell, unused_port: int) -> None:
    """Registered, beating, given a task and a message, cancelled, drained; submitted, awaited, cancelled, looked up."""
    agent = Agent(AGENT, url=url_of(unused_port, AGENT), settings=SETTINGS)
    heard: asyncio.Queue[str] = asyncio.Queue()

    @agent.task("ocr")
    async def ocr(task: object) -> str:
        await asyncio.sleep(0.2)
        return "read"

    @agent.task("hang")
    async def hang(task: object) -> None:
        await heard.put("hanging")
        await asyncio.Event().wait()

    @agent.on_message
    async def hear(message: object) -> None:
        await heard.put("message")

    async with agent, Client(url_of(unused_port, CLIENT), settings=SETTINGS) as client:
        handle = await client.submit("ocr")
        assert await handle.result(timeout=20) == "read"
        record = await client.task(handle.task_id)
        assert record is not None
        assert record.agent_id == AGENT
        untold = await client.submit("ocr", notify=False)
        assert await untold.result(timeout=20) == "read"
        assert await client.handle(handle.task_id).result(timeout=20) == "read"
        with pytest.raises(TaskNotFound):
            await client.handle("nobody-s").result(timeout=20)
        hanging = await client.submit("hang")
        assert await asyncio.wait_for(heard.get(), 20) == "hanging"
        await hanging.cancel()
        await client.send(AGENT, {"say": "hello"})
        assert await asyncio.wait_for(heard.get(), 20) == "message"
    assert not await cell.redis.execute_command("SISMEMBER", cell.keys.of("agents:active"), AGENT)
    assert (await check_server(cell.redis, SETTINGS)).policy == "noeviction"


LOOKS = (
    "ps",
    "queues",
    "pools",
    "events --since 0 --no-follow",
    "fsck",
    "tasks list",
    "agents list",
    "messages list",
    "dead list",
)
CHANGES = ("strategy set round_robin", "settings set health_threshold 0.4")


@pytest.mark.parametrize("command", [*LOOKS, *CHANGES])
async def test_an_operator_works_as_the_workers_do(cell: RunningCell, unused_port: int, command: str) -> None:
    """Commands that look, and some that change something, with their user."""
    url = url_of(unused_port, WORKER)
    words = (sys.executable, "-m", "coord.cli", *command.split(), "--redis-url", url)
    process = await asyncio.create_subprocess_exec(*words, stdout=PIPE, stderr=STDOUT)
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, out.decode()


@pytest.mark.parametrize(
    ("user", "command"),
    [
        (AGENT, "XADD {coord}:in:tasks:normal * type task.submitted data {}"),
        (AGENT, "XADD {coord}:in:requests * type task.cancel_requested data {}"),
        (AGENT, "XADD {coord}:in:losses * type agent.lost data {}"),
        (AGENT, "XADD {coord}:in:control:registry * type agents.pruned data {}"),
        (AGENT, "XADD {coord}:inbox:ocr-2:normal * message_type task_assignment"),
        (AGENT, "XREAD STREAMS {coord}:inbox:ocr-2:normal 0"),
        (AGENT, "XREAD STREAMS {coord}:replies:ocr-2 0"),
        (AGENT, "XREAD STREAMS {coord}:in:reports 0"),
        (AGENT, "XDEL {coord}:inbox:ocr-2:normal 0-1"),
        (AGENT, "XDEL {coord}:in:reports 0-1"),
        (AGENT, "HGETALL {coord}:task:t1"),
        (AGENT, "HSET {coord}:agent:ocr-1 capacity 9"),
        (AGENT, "KEYS *"),
        (AGENT, "FLUSHALL"),
        (AGENT, "CONFIG GET *"),
        (CLIENT, "XADD {coord}:in:registry * type agent.registered data {}"),
        (CLIENT, "XADD {coord}:in:reports * type task.completed data {}"),
        (CLIENT, "XADD {coord}:in:control:distributor * type setting.set data {}"),
        (CLIENT, "XREAD STREAMS {coord}:inbox:ocr-1:normal 0"),
        (CLIENT, "HSET {coord}:task:t1 state completed"),
        (CLIENT, "HGETALL {coord}:settings"),
        (CLIENT, "FCALL f 0"),
        (CLIENT, "EVAL return 0"),
        (WORKER, "HGETALL {other}:task:t1"),
        (WORKER, "FLUSHALL"),
        (WORKER, "CONFIG SET maxmemory 0"),
        (WORKER, "ACL LIST"),
        (WORKER, "SHUTDOWN"),
    ],
)
async def test_they_may_do_nothing_else(admin: Redis, user: str, command: str) -> None:
    """Not of another agent, not another authority's facts, no state, nothing of the server's."""
    assert await refused(admin, user, command.split())


@pytest.mark.parametrize("command", ["INFO memory", "MEMORY USAGE {coord}:counters", "SCAN 0", "DBSIZE"])
async def test_workers_and_operators_may_look_at_the_memory(admin: Redis, command: str) -> None:
    """What relieves a full server, and what `coord ps` measures; an agent and a client may not."""
    assert [await refused(admin, user, command.split()) for user in (WORKER, AGENT, CLIENT)] == [False, True, True]


async def refused(redis: Redis, user: str, words: list[str]) -> bool:
    """Whether the server would refuse this command to that user; a command that it does not know is an error."""
    said = await redis.execute_command("ACL", "DRYRUN", user, *words)
    return bool(said != b"OK")


def test_the_document_names_all_three() -> None:
    """One user for workers and operators, one for an agent, one for a client."""
    assert set(commands()) == {WORKER, AGENT, CLIENT}
