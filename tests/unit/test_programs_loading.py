"""Kept programs that load slowly: when their tasks and their limits begin, and how a task is stopped without them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from msgspec import Raw
from structlog.testing import capture_logs

from coord.agent.task import Retryable
from coord.codec import decode_json
from coord.config import Settings
from coord.errors import ConfigError
from coord.programs import Options, pool, program_agent
from coord.programs.pool import ProcessPool
from tests.unit.programs_world import Asked, kept, lives, script, written
from tests.waiting import wait_until

#: Loads while the file ``loading`` is there; answers tasks by what their ``do`` says; a thread reads the lines.
PROGRAM = """
import json, os, pathlib, queue, signal, sys, threading, time
here = pathlib.Path(__file__).parent
def say(**fields):
    print(json.dumps(fields), flush=True)

with (here / "starts").open("a") as starts:
    starts.write(f"{os.getpid()}\\n")
while (here / "loading").exists():
    time.sleep(0.01)
{ready}
tasks, cancelled = queue.Queue(), set()
def read():
    for line in sys.stdin:
        received = json.loads(line)
        if "cancel" in received:
            cancelled.add((received["cancel"], received["attempt"]))
        else:
            tasks.put(received)
    tasks.put(None)
threading.Thread(target=read, daemon=True).start()
while (task := tasks.get()) is not None:
    me = task["task_id"]
    exec(task["payload"].get("do") or "say(task_id=me, result=os.getpid())")
"""
READY = "say(ready=True)"
#: Works until it is asked to stop.
UNTIL_CANCELLED = """
(here / "working").write_text(f"{os.getpid()}\\n")
while (me, task["attempt"]) not in cancelled: time.sleep(0.01)
cancelled.clear()
say(task_id=me, release="stopped")
"""
FOREVER = """
(here / "working").write_text(f"{os.getpid()}\\n")
time.sleep(1000)
"""


def program(tmp_path: Path, ready: str = READY) -> list[str]:
    """The words to run it with."""
    return [sys.executable, script(tmp_path / "loads.py", PROGRAM.replace("{ready}", ready))]


def starts(tmp_path: Path) -> int:
    """How often it was started."""
    path = tmp_path / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


async def pid_of(programs: ProcessPool) -> int:
    """The process that has done a task."""
    result = await programs.handle(Asked({}).task)
    assert isinstance(result, Raw)
    pid = decode_json(bytes(result))
    assert isinstance(pid, int)
    return pid


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("ready", ["", READY])
def test_the_load_does_not_count_against_the_time_of_a_task(
    tmp_path: Path, ready: str, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Also of a program that does not print when it is ready: its time begins when it reads its first line."""

    async def story() -> None:
        (tmp_path / "loading").touch()
        async with kept(*program(tmp_path, ready), timeout_s=0.5, grace_s=4) as programs:
            handling = asyncio.create_task(pid_of(programs))
            await wait_until(lambda: starts(tmp_path), "it loads")
            await asyncio.wait([handling], timeout=1)  # longer than the time of a task
            (tmp_path / "loading").unlink()
            pid = await handling
            with pytest.raises(Retryable, match=r"timed_out: the program had not answered after 0.5 s"):
                await programs.handle(Asked({"do": FOREVER}).task)
            assert not lives(pid)
            assert await pid_of(programs) != pid

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(story())


@pytest.mark.parametrize("ready", ["", READY])
async def test_the_load_has_a_limit_of_its_own(tmp_path: Path, ready: str) -> None:
    """The program is started again, the task fails retryably, and the log says it; also if tasks have no limit."""
    (tmp_path / "loading").touch()
    async with kept(*program(tmp_path, ready), timeout_s=None, load_timeout_s=1, grace_s=0.3) as programs:
        with capture_logs() as logged, pytest.raises(Retryable) as caught:
            await asyncio.wait_for(programs.handle(Asked({}).task), 20)
        assert str(caught.value) == "load_timed_out: the program had not loaded after 1 s"
        (warning,) = [line for line in logged if line["event"] == "program.load_timed_out"]
        assert (warning["log_level"], warning["limit_s"]) == ("warning", 1)
        (tmp_path / "loading").unlink()

        async def works() -> bool:
            try:
                return bool(await pid_of(programs))
            except Retryable:  # the limit of its next load has passed as well
                return False

        await wait_until(works, "the next one works")
    assert starts(tmp_path) >= 2


async def test_nothing_is_accepted_before_the_programs_are_ready(tmp_path: Path) -> None:
    """``start`` waits for all of them."""
    (tmp_path / "loading").touch()
    is_started = asyncio.Event()

    async def serve() -> int:
        async with kept(*program(tmp_path), count=2, wait_ready=True) as programs:
            is_started.set()
            return await pid_of(programs)

    serving = asyncio.create_task(serve())
    await wait_until(lambda: starts(tmp_path) == 2, "both load")
    await asyncio.wait([serving], timeout=0.2)
    assert not is_started.is_set()
    (tmp_path / "loading").unlink()
    assert await serving > 0


async def test_an_agent_whose_program_is_never_ready_does_not_start(tmp_path: Path) -> None:
    """It says what it has waited for, and how the program ended."""
    words = program(tmp_path, "print('no model', file=sys.stderr); sys.exit(3)")
    with pytest.raises(ConfigError, match=r'did not print \{"ready": true\} within 1 s; .*exit code 3: no model'):
        async with kept(*words, wait_ready=True, load_timeout_s=1):
            pass


async def test_slots_are_held_while_their_programs_load_again(tmp_path: Path) -> None:
    """The agent offers fewer slots; tasks go to the programs that are ready."""
    held: list[int] = []
    async with kept(*program(tmp_path), count=2, wait_ready=True, hold_slots=held.append) as programs:
        (tmp_path / "loading").touch()
        with pytest.raises(Retryable, match="program_died"):
            await programs.handle(Asked({"do": "sys.exit(1)"}).task)
        await wait_until(lambda: held[-1:] == [1], "one slot is held")
        assert await pid_of(programs) > 0
        (tmp_path / "loading").unlink()
        await wait_until(lambda: held[-1:] == [0], "both are ready again")


async def test_no_slot_is_held_for_a_program_that_is_ready_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may end after each answer; the registry would get two entries for each task."""
    monkeypatch.setattr(pool, "HOLD_AFTER_S", 30.0)
    held: list[int] = []
    async with kept(*program(tmp_path), wait_ready=True, hold_slots=held.append) as programs:
        held.clear()
        while starts(tmp_path) < 4:
            with suppress(Retryable):  # it was given to a program that was about to end
                await programs.handle(Asked({"do": "say(task_id=me, result=1); os._exit(0)"}).task)
    assert held == []


async def stopped(programs: ProcessPool, tmp_path: Path, do: str) -> int:
    """Cancel a task that is at work; the process that had it."""
    (tmp_path / "working").unlink(missing_ok=True)
    handling = asyncio.create_task(programs.handle(Asked({"do": do}, task_id="c1").task))
    await wait_until(lambda: written(tmp_path / "working"), "it works")
    handling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handling
    return written(tmp_path / "working")


async def test_a_program_that_stops_its_task_when_asked_is_kept(tmp_path: Path) -> None:
    """Its model stays loaded; the next task has the same process."""
    async with kept(*program(tmp_path), wait_ready=True, grace_s=3) as programs:
        for _ in range(2):
            pid = await stopped(programs, tmp_path, UNTIL_CANCELLED)
            assert await pid_of(programs) == pid
    assert starts(tmp_path) == 1


@pytest.mark.parametrize("ready", ["", READY])
async def test_a_program_that_does_not_stop_its_task_is_ended(tmp_path: Path, ready: str) -> None:
    """Also one that has not printed that it is ready, which is not asked: it may not know the line."""
    async with kept(*program(tmp_path, ready), grace_s=3) as programs:
        before = await pid_of(programs)
        assert await stopped(programs, tmp_path, FOREVER if ready else UNTIL_CANCELLED) == before
        assert not lives(before)
        assert await pid_of(programs) != before


async def test_a_program_over_its_time_is_asked_to_stop_as_well(tmp_path: Path) -> None:
    """The task has timed out, and the model stays loaded."""
    async with kept(*program(tmp_path), wait_ready=True, timeout_s=0.5, grace_s=3) as programs:
        with pytest.raises(Retryable, match="timed_out"):
            await programs.handle(Asked({"do": UNTIL_CANCELLED}).task)
        assert await pid_of(programs) == written(tmp_path / "working")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"wait_ready": True}, "--wait-ready is valid with --keep-alive only; add --keep-alive"),
        ({"load_timeout_s": 5.0}, "--load-timeout is valid with --keep-alive only; add --keep-alive"),
        ({"load_timeout_s": 0.0, "keep_alive": True}, "load timeout must be a finite number of seconds above 0, got 0"),
    ],
)
def test_options_that_have_no_effect_are_refused(options: dict[str, Any], why: str) -> None:
    """Before anything is started."""
    with pytest.raises(ConfigError, match=why):
        program_agent("a", ["cat"], Settings(), Options(task_types=("t",), **options))
