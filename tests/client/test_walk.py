"""The walk in docs/architecture.md: a real task passes the functions that the table names, in this order."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from coord import Agent, Client, Task
from coord.config import Settings
from tests.running import RunningCell

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\|[^|]*\|[^|]*\|([^|]*)\|([^|]*)\|$", re.MULTILINE)
#: Files in which a reader has to look at a function; more would make the walk longer than one sitting.
MOST_FILES = 23


def table() -> tuple[list[str], list[str]]:
    """Return the functions and the files of the table, in their order."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    section = text.partition("## From submit to result")[2].partition("\n## ")[0]
    rows = ROW.findall(section)[2:]
    names = [name for functions, _ in rows for name in re.findall(r"`([^`]+)`", functions)]
    files = [name for _, names in rows for name in re.findall(r"`([^`]+)`", names)]
    return names, list(dict.fromkeys(files))


async def test_a_task_passes_the_functions_of_the_walk(cell: RunningCell, settings: Settings) -> None:
    """Each in a file that the table names; the scripts are called by ``Scripts.run``, which Python cannot follow."""
    names, files = table()
    assert len(names) > 25, names
    assert len(files) <= MOST_FILES
    assert [name for name in files if not (ROOT / name).is_file()] == []
    calls: list[tuple[str, str]] = []

    def record(frame: Any, event: str, _argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(ROOT)):
            calls.append((code.co_filename.removeprefix(f"{ROOT}/"), code.co_qualname))

    agent = Agent("a1", url=cell.url, settings=settings)

    @agent.task("echo")
    async def echo(task: Task) -> Any:
        return task.payload

    await agent.start()
    try:
        async with Client(cell.url, settings=settings) as client:
            sys.setprofile(record)
            try:
                handle = await client.submit("echo", {"n": 1})
                assert await handle.result(timeout=30) == {"n": 1}
            finally:
                sys.setprofile(None)
    finally:
        await agent.stop(grace=1)
    rest = iter(calls)
    for name in names:
        assert any(path in files and called == name for path, called in rest), f"{name} is not called in this order"
