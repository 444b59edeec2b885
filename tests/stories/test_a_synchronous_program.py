"""A program without an event loop: threads, processes that fork, and one that just ends."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from coord import NonRetryable, SyncClient, SyncTaskHandle, Task, TaskSpec, connection
from coord.client import connection as client_connection
from coord.config import Settings, to_environ
from coord.errors import ConfigError, ResultTimeout, TaskCancelled, TaskFailed
from tests.running import RunningCell
from tests.stories.conftest import MakeAgent
from tests.waiting import wait_until

LONG_S = 60.0


@pytest.fixture
async def worker(make_agent: MakeAgent) -> None:
    """An agent that squares, fails and hangs."""
    agent = make_agent("worker", capacity=50)

    @agent.task("square")
    async def square(task: Task) -> int:
        return int(task.payload) ** 2

    @agent.task("fail")
    async def fail(task: Task) -> None:
        raise NonRetryable("no_luck", "not today", detail={"day": 1})

    @agent.task("hang")
    async def hang(task: Task) -> None:
        await asyncio.Event().wait()

    await agent.start()


async def test_it_submits_waits_and_cancels(cell: RunningCell, worker: None) -> None:
    """The whole way, with the same methods as ``Client``."""

    def program() -> None:
        with SyncClient(cell.url, settings=cell.settings) as client:
            assert client.submit("square", 7).result(timeout=LONG_S) == 49
            handles = client.submit_many(TaskSpec(task_type="square", payload=n) for n in range(20))
            assert all(isinstance(one, SyncTaskHandle) for one in handles)
            ended = list(client.as_completed(handles, timeout=LONG_S))
            assert set(ended) == set(handles)
            assert sorted(one.result() for one in ended) == [n**2 for n in range(20)]
            failed = client.submit("fail")
            with pytest.raises(TaskFailed) as raised:
                failed.result(timeout=LONG_S)
            assert (raised.value.code, raised.value.detail) == ("no_luck", {"day": 1})
            assert failed.record().state == "failed"
            hanging = client.submit("hang")
            with pytest.raises(ResultTimeout):
                hanging.result(timeout=0.1)
            hanging.cancel("enough")
            with pytest.raises(TaskCancelled, match="enough"):
                client.handle(hanging.task_id).result(timeout=LONG_S)
            assert client.counters()["completed:normal"] >= 21
            assert [one.agent_id for one in client.agents()] == ["worker"]
            records = client.tasks(handle.task_id for handle in (failed, hanging))
            assert [record.state for record in records if record] == ["failed", "cancelled"]
            assert "task.failed" in {event.type for event in client.events(since="0-0", follow=False)}
            assert client.admin.drain("worker") == "draining"
            assert client.admin.resume("worker") == "active"
            assert isinstance(client.admin.retry(failed.task_id), SyncTaskHandle)

    await asyncio.to_thread(program)


async def test_what_is_gone_through_may_use_the_client(cell: RunningCell, worker: None) -> None:
    """A generator of tasks that waits for others; and an iteration that is given up leaves nothing behind."""

    def program(client: SyncClient) -> None:
        chain = (TaskSpec(task_type="square", payload=client.submit("square", n).result(LONG_S)) for n in range(3))
        handles = client.submit_many(chain)
        assert [one.result(LONG_S) for one in handles] == [0, 1, 16]
        hanging = client.submit("hang")
        for one in client.as_completed([hanging, *handles]):
            assert one is handles[0]
            break
        gc.collect()
        assert not vars(client)["_inner"].connection._watcher._waited_for

    client = SyncClient(cell.url, settings=cell.settings)
    await asyncio.to_thread(program, client)
    await asyncio.to_thread(client.close)


async def test_a_hundred_threads_share_one(cell: RunningCell, worker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at the top of a module: it connects at the first call, once."""
    opened: list[str] = []

    def connect(url: str, settings: Settings) -> Any:
        opened.append(threading.current_thread().name)
        return connection.connect(url, settings)

    monkeypatch.setattr(client_connection, "connect", connect)
    client = SyncClient(cell.url, settings=cell.settings)
    together = threading.Barrier(100)

    def call(number: int) -> Any:
        together.wait(LONG_S)
        return client.submit("square", number).result(timeout=LONG_S)

    with ThreadPoolExecutor(100) as pool:
        loop = asyncio.get_running_loop()
        results = await asyncio.gather(*(loop.run_in_executor(pool, call, n) for n in range(100)))
    assert results == [n**2 for n in range(100)]
    assert opened == ["coord-client"]
    known = await asyncio.to_thread(client.submit, "square", 3)
    unknown = await asyncio.to_thread(client.submit, "hang")
    assert await asyncio.to_thread(known.result, LONG_S) == 9
    await asyncio.to_thread(client.close)
    assert await asyncio.to_thread(known.result) == 9, "what is known is known"
    for call_closed in (unknown.result, client.counters):
        with pytest.raises(ConfigError, match="the client is closed"):
            await asyncio.to_thread(call_closed)
    await asyncio.to_thread(client.open)
    assert (await asyncio.to_thread(client.agent, "worker")).agent_id == "worker"
    await asyncio.to_thread(client.close)


async def test_one_that_is_forgotten_disconnects(cell: RunningCell, worker: None) -> None:
    """One for each request, never closed, leaves no connection behind; nor does one that was never used."""
    client = SyncClient(cell.url, settings=cell.settings)
    inner = vars(client)["_inner"].connection
    await asyncio.to_thread(client.counters)
    assert inner._redis is not None
    del client
    gc.collect()
    await wait_until(lambda: inner._redis is None, "it is closed")
    SyncClient(cell.url, settings=cell.settings).close()


FORKS = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: fork in a process with threads
from coord import SyncClient

client = SyncClient()
handle = client.submit("square", 2)
assert handle.result(timeout=60) == 4
hanging = client.submit("hang")
busy = threading.Thread(target=lambda: [client.submit("square", n).result(60) for n in range(40)])
busy.start()
for number in range(4):
    pid = os.fork()
    if pid == 0:
        assert client.submit("square", 10 + number).result(timeout=60) == (10 + number) ** 2
        assert handle.result(timeout=60) == 4
        assert client.cancel(hanging.task_id, timeout=60) in {"accepted", "pending"} if number == 3 else True
        if number % 2:
            os._exit(0)
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert client.submit("square", 20).result(timeout=60) == 400
busy.join()
try:
    hanging.result(timeout=60)
except Exception as error:
    print(type(error).__name__, client.submit("square", 5).result(timeout=60))
"""

ENDS = """
import atexit, threading
atexit.register(lambda: print("connection:", vars(client)["_inner"].connection._redis, "loop:", has_loop()))  # the last
from coord import SyncClient

def has_loop():
    return "coord-client" in {thread.name for thread in threading.enumerate()}

client = SyncClient()
assert not has_loop()
print(client.submit("square", 6).result(timeout=60))
threading.Thread(target=client.submit("hang").result, daemon=True).start()
"""


@pytest.mark.parametrize(
    ("program", "says"),
    [(FORKS, "TaskCancelled 25\n"), (ENDS, "36\nconnection: None loop: False\n")],
    ids=["forks", "ends"],
)
async def test_a_process_that_forks_or_just_ends(cell: RunningCell, worker: None, program: str, says: str) -> None:
    """A child has connections of its own and leaves those of its parent alone; the exit closes all, in silence."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "always::ResourceWarning", "-c", program,
        env={**os.environ, **to_environ(cell.settings), "COORD_REDIS_URL": cell.url},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), LONG_S)
    assert (process.returncode, out.decode(), err.decode()) == (0, says, "")
