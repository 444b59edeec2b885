"""The supervisor: what it starts again and when, and how it ends what it runs. Real, tiny processes."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from coord.up import supervisor
from coord.up.child_output import MAX_LINE_BYTES
from coord.up.shutdown import Shutdown
from coord.up.supervisor import GaveUp, ManagedProgram, ProgramEvent, Supervisor, Timing
from tests.coord_up import runs
from tests.waiting import wait_until

QUICK = Timing(first_s=0.02, longest_s=0.1, stable_s=5.0, drain_s=5.0)

#: Runs until SIGTERM, which it obeys.
OBEDIENT = "exec sleep 600"
#: Says when it can be asked, and does not listen.
DEAF = "trap '' TERM; echo deaf; while :; do sleep 0.05; done"


class Run:
    """A supervisor under way."""

    def __init__(
        self, supervisor: Supervisor, shutdown: Shutdown, events: list[ProgramEvent], task: asyncio.Task[None]
    ) -> None:
        self.supervisor = supervisor
        self.shutdown = shutdown
        self.events = events
        self.task = task

    def seen(self, what: str) -> list[ProgramEvent]:
        """The events of one kind."""
        return [event for event in self.events if event.what == what]


@asynccontextmanager
async def running(
    *programs: ManagedProgram, timing: Timing = QUICK, on_line: Callable[[str, str], None] | None = None
) -> AsyncIterator[Run]:
    """Run programs; whatever the test does, none is left at its end."""
    shutdown, events = Shutdown(), list[ProgramEvent]()
    supervisor = Supervisor(programs, events.append, timing=timing, on_line=on_line)
    task = asyncio.create_task(supervisor.run(shutdown))
    try:
        yield Run(supervisor, shutdown, events, task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert supervisor.pids == {}
        assert [event.pid for event in events if event.what == "started" and psutil.pid_exists(event.pid or 0)] == []


def shell(script: str, *, name: str = "p", log: Path | None = None) -> ManagedProgram:
    """A program that is a line of shell."""
    return ManagedProgram(name=name, command=("/bin/sh", "-c", script), environ=dict(os.environ), log=log)


def has_said(log: Path, what: str) -> Callable[[], bool]:
    """Whether a program has written something."""
    return lambda: log.exists() and what in log.read_text()


async def test_a_killed_program_is_started_again() -> None:
    """The event says which signal ended it, and when it starts again."""
    async with running(shell(OBEDIENT)) as run:
        first = await wait_until(lambda: run.supervisor.pids.get("p", 0), "the program runs")
        os.kill(first, signal.SIGKILL)
        await wait_until(lambda: run.supervisor.pids.get("p", first) != first, "it runs again")
    (ended,) = run.seen("ended")
    assert (ended.pid, ended.code, ended.again_in_s) == (first, -9, 0.02)


async def test_one_that_ends_at_once_is_started_later_and_later() -> None:
    """So a program that cannot run does not take the machine with it."""
    async with running(shell("exit 3")) as run:
        await wait_until(lambda: len(run.seen("ended")) >= 5, "it has ended five times")
    assert [event.again_in_s for event in run.seen("ended")][:5] == [0.02, 0.04, 0.08, 0.1, 0.1]
    assert {event.code for event in run.seen("ended")} == {3}


async def test_what_programs_write_is_lines_line_by_line() -> None:
    """Both streams, under the program's name, the last words too; how it ended says what came last."""
    lines: list[tuple[str, str]] = []
    script = "printf 'one\\n\\ntwo\\377 \\n'; echo three >&2; printf 'no end'; exit 3"
    async with running(shell(script, name="a"), on_line=lambda *line: lines.append(line)) as run:
        await wait_until(lambda: run.seen("ended"), "it has ended")
        first = run.seen("ended")[0]
    assert lines[:4] == [("a", "one"), ("a", "two\ufffd"), ("a", "three"), ("a", "no end")]
    assert (first.last_line, first.ends) == ("no end", 1)


async def test_a_line_without_an_end_is_lines_in_pieces() -> None:
    """So a program that never ends one does not fill our memory."""
    lines: list[str] = []
    script = f"head -c {MAX_LINE_BYTES * 2 + 5} /dev/zero | tr '\\0' x"
    async with running(shell(script), on_line=lambda _, line: lines.append(line), timing=Timing(first_s=600)) as run:
        await wait_until(lambda: run.seen("ended"), "it has ended")
    assert [len(line) for line in lines] == [MAX_LINE_BYTES, MAX_LINE_BYTES, 5]


async def test_a_grandchild_that_holds_the_output_holds_nothing_up() -> None:
    """The program has ended, so it is started again; what it left behind is killed with its group."""
    lines: list[str] = []
    async with running(shell("sleep 600 & echo $!; exit 1"), on_line=lambda _, line: lines.append(line)) as run:
        await wait_until(lambda: len(run.seen("ended")) >= 2, "it has ended twice")
    await wait_until(lambda: not any(runs(int(pid)) for pid in lines), "what it left behind is gone")


async def test_a_program_has_a_folder_and_a_time_to_drain_of_its_own(tmp_path: Path) -> None:
    """Both are its own, not the supervisor's."""
    lines: list[str] = []
    program = msgspec.structs.replace(shell(f"pwd; {DEAF}"), folder=tmp_path, drain_s=0.05)
    async with running(program, on_line=lambda _, line: lines.append(line), timing=Timing(drain_s=600)) as run:
        await wait_until(lambda: "deaf" in lines, "it no longer listens")
        run.shutdown.request()
        await asyncio.wait_for(run.task, 30)
    assert lines[0] == str(tmp_path.resolve())
    assert len(run.seen("killed")) == 1


async def test_with_nothing_to_run_it_waits() -> None:
    """A `coord up` may have no worker of its own."""
    async with running() as run:
        run.shutdown.request()
        await asyncio.wait_for(run.task, 30)


async def test_one_that_lived_long_enough_begins_anew() -> None:
    """After a good life the next end counts as the first."""
    timing = Timing(first_s=0.02, longest_s=1.0, stable_s=0.0)
    async with running(shell("exit 0"), timing=timing) as run:
        await wait_until(lambda: len(run.seen("ended")) >= 3, "it has ended three times")
    assert {event.again_in_s for event in run.seen("ended")} == {0.02}


async def test_one_that_cannot_be_started_is_tried_again() -> None:
    """The event names the missing file, which may appear later."""
    missing = ManagedProgram(name="p", command=("/no/such/program",), environ={})
    async with running(missing) as run:
        await wait_until(lambda: len(run.seen("failed")) >= 2, "it has failed twice")
    assert "/no/such/program" in run.events[0].reason


async def test_asked_to_stop_it_lets_programs_drain() -> None:
    """SIGTERM to all at once; what they do on it is done when run returns."""
    async with running(shell(OBEDIENT, name="a"), shell(OBEDIENT, name="b")) as run:
        await wait_until(lambda: len(run.supervisor.pids) == 2, "both run")
        run.shutdown.request()
        await asyncio.wait_for(run.task, 30)
    assert [event.what for event in run.events] == ["started", "started"]


async def test_one_that_does_not_drain_in_time_is_killed(tmp_path: Path) -> None:
    """A straggler does not hold the end up."""
    log = tmp_path / "log"
    timing = Timing(drain_s=0.05)
    async with running(shell(DEAF, log=log), timing=timing) as run:
        await wait_until(has_said(log, "deaf"), "it no longer listens")
        run.shutdown.request()
        await asyncio.wait_for(run.task, 30)
    assert len(run.seen("killed")) == 1


async def test_asked_twice_it_does_not_wait(tmp_path: Path) -> None:
    """The second Ctrl-C ends what the first one asked politely."""
    log = tmp_path / "log"
    timing = Timing(drain_s=600)
    async with running(shell(DEAF, log=log), timing=timing) as run:
        await wait_until(has_said(log, "deaf"), "it no longer listens")
        run.shutdown.request()
        run.shutdown.request()
        await asyncio.wait_for(run.task, 30)
    assert len(run.seen("killed")) == 1


async def test_asked_twice_a_program_with_processes_of_its_own_may_end_them(tmp_path: Path) -> None:
    """One that needs a second signal to end at once gets it, again and again, before it is killed."""
    log = tmp_path / "log"
    script = (
        "n=0; trap 'n=$((n+1)); [ $n -lt 3 ] || { echo in order; exit 0; }' TERM; echo up; while :; do sleep 0.05; done"
    )
    program = msgspec.structs.replace(shell(script, log=log), force_s=20.0)
    async with running(program, timing=Timing(drain_s=600)) as run:
        await wait_until(has_said(log, "up"), "it runs")
        run.shutdown.request()
        run.shutdown.request()
        await asyncio.wait_for(run.task, 30)
    assert log.read_text() == "up\nin order\n"
    assert not run.seen("killed")


async def test_one_that_does_not_end_is_killed(tmp_path: Path) -> None:
    """Its time to end what it has started is limited."""
    log = tmp_path / "log"
    program = msgspec.structs.replace(shell(DEAF, log=log), force_s=0.05)
    async with running(program, timing=Timing(drain_s=600)) as run:
        await wait_until(has_said(log, "deaf"), "it no longer listens")
        run.shutdown.request()
        run.shutdown.request()
        await asyncio.wait_for(run.task, 30)
    assert len(run.seen("killed")) == 1


async def test_a_stop_cuts_the_wait_before_a_restart_short() -> None:
    """Nobody waits for a backoff at the end."""
    async with running(shell("exit 1"), timing=Timing(first_s=600)) as run:
        await wait_until(lambda: run.seen("ended"), "it has ended")
        run.shutdown.request()
        await asyncio.wait_for(run.task, 30)


@asynccontextmanager
async def giving_up(
    script: str, *, ready: bool = False, gives_up: bool = True, timing: Timing = QUICK
) -> AsyncIterator[Run]:
    """Run one line of shell under a supervisor that may give it up; its output is read."""
    shutdown, events = Shutdown(), list[ProgramEvent]()
    supervisor = Supervisor(
        [shell(script)], events.append, on_line=lambda *_: None, gives_up=lambda _: gives_up, timing=timing
    )
    if ready:
        supervisor.mark_ready("p")
    task = asyncio.create_task(supervisor.run(shutdown))
    try:
        yield Run(supervisor, shutdown, events, task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_five_ends_with_one_error_are_enough_for_one_that_was_never_ready() -> None:
    """The event has the error; numbers in it, such as a process id, do not make it another one."""
    async with giving_up("echo started; echo no model in $$ >&2; exit 3") as run:
        with pytest.raises(GaveUp, match="p has ended 5 times in a row with the same error"):
            await asyncio.wait_for(run.task, 30)
    (last,) = run.seen("gave_up")
    assert (last.ends, last.code, last.again_in_s, last.last_line.rpartition(" ")[0]) == (5, 3, None, "no model in")
    assert len(run.seen("ended")) == 4


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("echo broken; exit 3", {"ready": True}),
        ("echo broken; exit 3", {"gives_up": False}),
        ("echo broken; exit 3", {"timing": msgspec.structs.replace(QUICK, stable_s=0.0)}),
        ("kill -9 $$", {}),
        ("exit 0", {}),
        ('n=$(cat "$COUNT" 2>/dev/null); echo "x$n" > "$COUNT"; cat "$COUNT"; exit 3', {}),
    ],
    ids=["ready once", "not given up", "stable for a while", "killed", "ended well", "another error each time"],
)
async def test_others_are_started_again_for_ever(
    script: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that worked once, one that somebody kills, one whose error changes: it may come back."""
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    async with giving_up(script, **options) as run:
        await wait_until(lambda: len(run.seen("ended")) > 7, "it has ended often")
    assert not run.seen("gave_up")


async def test_ctrl_c_does_not_reach_a_program() -> None:
    """Each has a process group of its own, so that this process ends them in order."""
    async with running(shell(OBEDIENT)) as run:
        pid = await wait_until(lambda: run.supervisor.pids.get("p", 0), "it runs")
        assert os.getpgid(pid) == pid


async def test_a_program_sees_its_supervisor_go(tmp_path: Path) -> None:
    """Killed with SIGKILL, a supervisor leaves nobody behind who watches standard input, not even after a restart."""
    code = (
        "import asyncio, os, sys\n"
        "from coord.up.shutdown import Shutdown\n"
        "from coord.up.supervisor import ManagedProgram, Supervisor, Timing\n"
        "line = 'echo $$; cat; echo gone $$'\n"
        "programs = [ManagedProgram(name=n, command=('/bin/sh', '-c', line), environ=os.environ) for n in 'ab']\n"
        "asyncio.run(Supervisor(programs, lambda e: None, timing=Timing(first_s=0.01)).run(Shutdown()))\n"
    )
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=out, cwd=Path.cwd())
        first = await wait_until(lambda: [int(one) for one in log.read_text().split()][1:], "both run")
        os.kill(first[0], signal.SIGKILL)
        await wait_until(lambda: len(log.read_text().split()) == 3, "the killed one runs again")
        process.kill()
        await process.wait()
    await wait_until(lambda: log.read_text().count("gone") == 2, "both have ended by themselves")


@pytest.mark.parametrize(("drain_s", "is_forced"), [(0.05, False), (math.inf, True)])
async def test_a_second_sigterm_lets_a_program_give_back_its_tasks(drain_s: float, is_forced: bool) -> None:
    """An agent is asked again before it is killed: after its time to finish, or at once if it is forced."""
    lines: list[str] = []
    script = "n=0; trap 'n=$((n+1)); test $n = 2 && exit 0' TERM; echo up; while :; do sleep 0.05; done"
    program = msgspec.structs.replace(shell(script), drain_s=drain_s, gives_back=True)
    async with running(program, on_line=lambda _, line: lines.append(line)) as run:
        await wait_until(lambda: "up" in lines, "it runs")
        run.shutdown.request()
        if is_forced:
            run.shutdown.request()
        await asyncio.wait_for(run.task, 30)
    assert not run.seen("killed")


async def test_a_program_without_a_limit_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take as long as its tasks take, and is asked once."""
    monkeypatch.setattr(supervisor, "ONE_STOP_S", 0.1)
    lines: list[str] = []
    script = f"trap 'echo asked' TERM; echo up; while ! test -e {tmp_path}/gate; do sleep 0.05; done; exit 0"
    program = msgspec.structs.replace(shell(script), drain_s=math.inf, gives_back=True)
    async with running(program, on_line=lambda _, line: lines.append(line), timing=Timing(drain_s=0.05)) as run:
        await wait_until(lambda: "up" in lines, "it runs")
        run.shutdown.request()
        done, _ = await asyncio.wait({run.task}, timeout=0.5)
        assert not done
        (tmp_path / "gate").touch()
        await asyncio.wait_for(run.task, 30)
    assert lines == ["up", "asked"]
    assert not run.seen("killed")
