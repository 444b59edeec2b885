"""A cell at work beside the tests of one file: real server, real workers and agents, in a thread of their own.

Commands run in the test's thread as a person's would: ``coord`` finds nothing but what its options name.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import pytest
import structlog

from coord import Agent, Client, NonRetryable, Task
from coord.cli import main
from coord.config import Settings
from coord.keys import CONSUMES, Keys
from tests.running import running_cell

T = TypeVar("T")
#: A machine with much else to do is slow.
START_S = 60.0


class CommandResult(NamedTuple):
    """What a command wrote, and its exit code."""

    code: int
    out: str
    err: str


class LiveCell:
    """The cell, and a way to run coroutines in its thread."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = url
        self.settings = settings
        self.keys = Keys(settings.namespace)
        self.client: Client
        self.loop: asyncio.AbstractEventLoop
        self.gates: dict[str, asyncio.Event] = {}

    @property
    def environ(self) -> dict[str, str]:
        """What leads a command to the cell."""
        return {"COORD_REDIS_URL": self.url, "COORD_NAMESPACE": self.settings.namespace}

    def do(self, work: Coroutine[Any, Any, T], timeout: float = START_S) -> T:
        """Run a coroutine in the cell's thread; what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    async def has_workers(self) -> bool:
        """Return True if a worker of each kind that consumes facts has shown its presence."""
        redis = self.client.connection.redis
        return all([await redis.zcard(self.keys.of(f"workers:{kind}")) for kind in CONSUMES])

    def open_gate(self, name: str) -> None:
        """Let tasks of type ``gate`` with this name go on."""
        self.loop.call_soon_threadsafe(self.gate(name).set)

    def gate(self, name: str) -> asyncio.Event:
        """The gate of a name."""
        return self.gates.setdefault(name, asyncio.Event())

    def agent(self) -> Agent:
        """An agent that answers, fails, and waits at gates."""
        agent = Agent("cli-agent", url=self.url, settings=self.settings, capacity=50, tags=["fast"])

        @agent.task("echo")
        async def echo(task: Task) -> Any:
            return task.payload

        @agent.task("boom")
        async def boom(task: Task) -> None:
            raise NonRetryable("it_broke", "by design")

        @agent.task("gate")
        async def gate(task: Task) -> str:
            await task.progress({"at": task.payload["gate"]})
            await self.gate(task.payload["gate"]).wait()
            return "through"

        return agent


@contextmanager
def live_cell(url: str, settings: Settings) -> Iterator[LiveCell]:
    """A cell with one worker of each kind and one agent, until the block ends."""
    cell = LiveCell(url, settings)
    ready = threading.Event()
    stop: asyncio.Event
    failed: list[BaseException] = []

    async def run() -> None:
        nonlocal stop
        stop = asyncio.Event()
        cell.loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(running_cell(url, settings))
            cell.client = await stack.enter_async_context(Client(url, settings=settings))
            agent = cell.agent()
            await agent.start()
            stack.push_async_callback(agent.stop, grace=0)  # a failed test leaves tasks at gates that nothing opens
            ready.set()
            await stop.wait()

    def thread() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001 -- raised by the thread that waits for it
            failed.append(error)
        finally:
            ready.set()

    # What workers and agents log is not what a command prints.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    running = threading.Thread(target=thread, name="live-cell", daemon=True)
    running.start()
    assert ready.wait(START_S)
    try:
        if not failed:
            yield cell
    finally:
        if not failed:
            cell.loop.call_soon_threadsafe(stop.set)
        running.join(START_S)
        structlog.reset_defaults()
    assert not running.is_alive(), f"the cell has not ended within {START_S:g} s"
    if failed:
        raise failed[0]


def command_runner(
    cell: LiveCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., CommandResult]:
    """Runs ``coord`` with arguments, on the cell, in this thread."""

    def run(*arguments: str) -> CommandResult:
        for name, value in cell.environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.argv", ["coord", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return CommandResult(int(ended.value.code or 0), out, err)

    return run
