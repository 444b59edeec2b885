"""A cell that lives beside the test: workers in a thread of their own, so that a whole command can run in the test's.

One serves all tests of a module; they tell their things apart by ids.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import pytest
import structlog

from coord import Agent, Client, NonRetryable, Task
from coord.cli import main
from coord.config import Settings
from tests.running import RunningCell, running_cell
from tests.waiting import wait_until

T = TypeVar("T")
#: A busy machine may take its time.
LIMIT_S = 60.0


class CommandResult:
    """What a command wrote, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        """The document that it printed."""
        return msgspec.json.decode(self.out)


class Living:
    """The cell, its event loop in another thread, and a client in it."""

    def __init__(self, cell: RunningCell, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        self.cell = cell
        self.client = client
        self._loop = loop
        self._agents: list[Agent] = []

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the cell's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT_S)

    def until(self, predicate: Callable[[], Awaitable[T]], what: str) -> T:
        """``wait_until`` in the cell's loop."""
        return self.do(wait_until(predicate, what, LIMIT_S))

    @property
    def options(self) -> tuple[str, ...]:
        """Where the cell is, for a command."""
        return ("--redis-url", self.cell.url, "--namespace", self.cell.settings.namespace)

    def agent(self, agent_id: str, **options: Any) -> Agent:
        """Start an agent that echoes, and fails or hangs where it is asked to; it ends with the cell."""
        return self.do(self._agent(agent_id, options))

    async def _agent(self, agent_id: str, options: dict[str, Any]) -> Agent:
        agent = Agent(agent_id, url=self.cell.url, settings=self.cell.settings, heartbeat_interval=0.5, **options)

        @agent.task("echo")
        async def echo(task: Task) -> Any:
            if why := task.payload.get("fail"):
                raise NonRetryable("asked_to", why)
            if task.payload.get("hangs"):
                await asyncio.Event().wait()
            return task.payload

        await agent.start()
        self._agents.append(agent)
        return agent

    async def end(self) -> None:
        """End the agents."""
        for agent in self._agents:
            await agent.stop(grace=0)


@contextmanager
def living(url: str) -> Iterator[Living]:
    """A cell with one worker of each kind, in a namespace of its own."""
    settings = msgspec.structs.replace(Settings(), namespace=f"t{uuid.uuid4().hex[:12]}")
    begun: list[Living] = []
    ready, ended = threading.Event(), threading.Event()

    async def run() -> None:
        async with running_cell(url, settings) as cell, Client(url, settings=settings) as client:
            lives = Living(cell, client, asyncio.get_running_loop())
            begun.append(lives)
            ready.set()
            try:
                await asyncio.to_thread(ended.wait)
            finally:
                await lives.end()

    # Its workers would write among what the commands write.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    thread = threading.Thread(target=lambda: asyncio.run(run()), name="living", daemon=True)
    thread.start()
    try:
        assert ready.wait(LIMIT_S)
        yield begun[0]
    finally:
        ended.set()
        thread.join(LIMIT_S)
        structlog.reset_defaults()
    assert not thread.is_alive(), f"the cell has not ended within {LIMIT_S:g} s"


def run_coord(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> CommandResult:
    """Run ``coord`` with arguments in this thread."""
    monkeypatch.setattr("sys.argv", ["coord", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    code = ended.value.code
    return CommandResult(code if isinstance(code, int) else 1, out, err)
