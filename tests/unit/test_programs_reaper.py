"""Whatever happens to an agent, its programs end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coord.programs.reaper import Reaper
from tests.processes import started
from tests.unit.programs_world import lives, written
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
#: An agent that holds a program which ignores SIGTERM and has a child.
AGENT = """
import subprocess, sys, time
from coord.programs.reaper import Reaper
reaper = Reaper(0.2)
code = "trap '' TERM; sleep 1000 & echo $! >child; echo $$ >pid; sleep 1000; sleep 1000"
program = subprocess.Popen(["sh", "-c", code], start_new_session=True)
reaper.add(program.pid)
ended = subprocess.Popen(["true"], start_new_session=True)
reaper.add(ended.pid)
reaper.remove(ended.pid)
ended.wait()
open("held", "w").close()
time.sleep(1000)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own."""
    with started(["/bin/sleep", "1000"], start_new_session=True) as process:
        yield process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_programs_do_not_outlive_their_agent(tmp_path: Path, number: signal.Signals) -> None:
    """However it goes; those that ignore SIGTERM, and their children, are killed after the grace."""
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", AGENT, cwd=tmp_path, env=environ)
    try:
        await wait_until(lambda: (tmp_path / "held").exists() and written(tmp_path / "pid"), "all runs", 30)
        agent.send_signal(number)
        await agent.wait()
        pids = [written(tmp_path / name) for name in ("pid", "child")]
        await wait_until(lambda: not any(lives(pid) for pid in pids), "program and child have ended", 30)
    finally:
        if agent.returncode is None:
            agent.kill()
            await agent.wait()


async def test_a_reaper_that_is_killed_is_replaced(program: subprocess.Popen[bytes]) -> None:
    """The new one knows what the old one held."""
    reaper = Reaper(0.2)
    reaper.add(program.pid)
    first = reaper.pid
    os.kill(first, signal.SIGKILL)
    await wait_until(lambda: not lives(first), "the reaper has ended", 30)
    reaper.add(999_999_999)
    reaper.remove(999_999_999)
    assert reaper.pid != first
    reaper.close()
    assert program.wait(30) == -signal.SIGTERM


def test_a_reaper_lets_go_of_what_has_ended(program: subprocess.Popen[bytes]) -> None:
    """A group's number may be another's then."""
    reaper = Reaper(0.2)
    reaper.add(program.pid)
    reaper.remove(program.pid)
    reaper.close()
    assert program.poll() is None
