"""What a user's type checker says of the public API: good lines pass ``mypy --strict``, each bad line is an error."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import coord
from coord import errors
from coord.agent.agent import AgentTypeName
from coord.client.submission import PriorityName
from coord.models.agents import AgentType
from coord.models.strategies import STRATEGY_NAMES, StrategyName
from coord.models.tasks import Priority
from coord.placement import STRATEGIES
from tests.repo.documents import ROOT

PROGRAM = """\
from collections.abc import AsyncIterator

from coord import Agent, Client, CoordError, Message, NonRetryable, Release, Retryable, Task, TaskHandle, TaskSpec, run
from coord import __version__
from coord import Nonsense  # bad
{errors}
from coord.models.agents import AgentType
from coord.models.tasks import Priority

version: str = __version__
agent = Agent("a1", agent_type="inference", capacity=2, heartbeat_interval=1.5)
other = Agent("a2", agent_type=AgentType.GATEWAY)
wrong = Agent("a3", agent_type="genius")  # bad
small = Agent("a4", capacity="2")  # bad
unknown = Agent("a5", capabilties=["x"])  # bad


@agent.task("echo")
async def echo(task: Task) -> object:
    await task.progress(1)
    raise NonRetryable("code", "why") if task.attempt > 1 else Retryable("code")


@agent.on_message
async def on_message(message: Message) -> None:
    raise Release(message.id)


async def main(client: Client) -> None:
    handle: TaskHandle = await client.submit("echo", priority="high", strategy="random", timeout=1.5)
    await client.submit("echo", priority=Priority.URGENT)
    await client.submit("echo", priority="soon")  # bad
    await client.submit("echo", strategy="best")  # bad
    await client.submit("echo", timeot=1)  # bad
    spec = TaskSpec(task_type="echo", priority="low", strategy="round_robin")
    wrong = TaskSpec(task_type="echo", priority="soon")  # bad
    handles: list[TaskHandle] = await client.submit_many([spec, wrong])
    async for ended in client.as_completed(handles, timeout=5):
        print(ended.task_id)
    answer: str = await handle.cancel("why", timeout=5)
    if answer == "sent":
        return
    if (await handle.cancel()) == "sent":  # bad
        return
    await client.cancel("t1", wait=5)  # bad
    await client.send("a1", priority="critical")
    await client.send("a1", priority="soon")  # bad
    await client.admin.drain("a1", timeout=5)
    await client.drain("a1")  # bad
    await client.admin.set_strategy("least_connections")
    await client.admin.set_strategy("best")  # bad
    try:
        await handle.result(timeout=5)
    except CoordError as error:
        code: str = error.code
        status: int = error.http_status
        bad: str = error.exit_code  # bad
        print(code, status, bad)


run(agent, other)
run(main)  # bad
"""


@pytest.mark.timeout(300)
def test_the_public_api_is_typed(tmp_path: Path) -> None:
    """Names, options, and words that are one of a few."""
    names = [name for name, value in vars(errors).items() if isinstance(value, type)]
    program = PROGRAM.format(errors="\n".join(f"from coord import {name} as {name}_" for name in names))
    path = tmp_path / "program.py"
    path.write_text(program)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = {int(line) for line in re.findall(r"program\.py:(\d+): error", checked.stdout)}
    expected = {number for number, line in enumerate(program.splitlines(), 1) if line.endswith("# bad")}
    assert found == expected, checked.stdout + checked.stderr


def test_literals_name_every_member() -> None:
    """Those of the enums and of the table of strategies."""
    assert get_args(PriorityName) == tuple(priority.value for priority in Priority)
    assert get_args(AgentTypeName) == tuple(kind.value for kind in AgentType)
    assert get_args(StrategyName) == tuple(STRATEGIES)
    assert tuple(sorted(STRATEGIES)) == STRATEGY_NAMES


def test_every_public_name_can_be_imported() -> None:
    """``__all__``, the table of lazy imports and the imports for type checkers are one list."""
    for name in coord.__all__:
        assert getattr(coord, name).__name__ in {name, "AgentMessage"}
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert set(coord.__all__) == set(coord._HOME) | classes
    typed = (ROOT / "coord" / "__init__.py").read_text().partition("__version__")[0]
    assert {name for name in coord.__all__ if not re.search(rf"\b{name}\b", typed)} == set()
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = coord.Nonsense  # type: ignore[attr-defined]
