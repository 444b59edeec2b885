"""The supervisor: what it starts again and when, and how it ends what it runs. Real, tiny processes."""

from __future__ import annotations

import asyncio
import itertools
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

from coord.up.child_output import LONGEST_BYTES
from coord.up.shutdown import Stop
from coord.up.supervisor import Event, GaveUp, ManagedProgram, Supervisor, Timing, backoff
from tests.coord_up import runs
from tests.waiting import wait_until

QUICK = Timing(first_s=0.02, longest_s=0.1, well_s=5.0, drain_s=5.0)

#: Runs until SIGTERM, which it obeys.
OBEDIENT = "exec sleep 600"
#: Says when it can be asked, and does not listen.
DEAF = "trap '' TERM; echo deaf; while :; do sleep 0.05; done"


class Run:
    """A supervisor under way."""

    def __init__(self, supervisor: Supervisor, stop: Stop, events: list[Event], task: asyncio.Task[None]) -> None:
        self.supervisor = supervisor
        self.stop = stop
        self.events = events
        self.task = task

    def seen(self, what: str) -> list[Event]:
        """The events of one kind."""
        return [event for event in self.events if event.what == what]


@asynccontextmanager
async def running(
    *programs: ManagedProgram, timing: Timing = QUICK, hear: Callable[[str, str], None] | None = None
) -> AsyncIterator[Run]:
    """Run programs; whatever the test does, none is left at its end."""
    stop, events = Stop(), list[Event]()
    supervisor = Supervisor(programs, events.append, timing=timing, hear=hear)
    task = asyncio.create_task(supervisor.run(stop))
    try:
        yield Run(supervisor, stop, events, task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert supervisor.pids == {}
        assert [event.pid for event in events if event.what == "started" and psutil.pid_exists(event.pid or 0)] == []


def shell(
    script: str, *, name: str = "p", log: Path | None = None, final: frozenset[int] = frozenset()
) -> ManagedProgram:
    """A program that is a line of shell."""
    return ManagedProgram(
        name=name, command=("/bin/sh", "-c", script), environ=dict(os.environ), log=log, final_codes=final
    )


def has_said(log: Path, what: str) -> Callable[[], bool]:
    """Whether a program has written something."""
    return lambda: log.exists() and what in log.read_text()


def test_waits_double_up_to_the_longest() -> None:
    """0.1 s doubling to 5 s."""
    assert list(itertools.islice(backoff(Timing()), 8)) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


async def test_a_killed_program_is_started_again() -> None:
    """The event says which signal ended it, and when it starts again."""
    async with running(shell(OBEDIENT)) as run:
        first = await wait_until(lambda: run.supervisor.pids.get("p", 0), "the program runs")
        os.kill(first, signal.SIGKILL)
        await wait_until(lambda: run.supervisor.pids.get("p", first) != first, "it runs again")
    (ended,) = run.seen("ended")
    assert (ended.pid, ended.code, ended.how, ended.again_in_s) == (first, -9, "SIGKILL", 0.02)


async def test_one_that_ends_at_once_is_started_later_and_later() -> None:
    """So a program that cannot run does not take the machine with it."""
    async with running(shell("exit 3")) as run:
        await wait_until(lambda: len(run.seen("ended")) >= 5, "it has ended five times")
    assert [event.again_in_s for event in run.seen("ended")][:5] == [0.02, 0.04, 0.08, 0.1, 0.1]
    assert {event.how for event in run.seen("ended")} == {"exit code 3"}


async def test_what_programs_write_is_heard_line_by_line() -> None:
    """Both streams, under the program's name, the last words too; how it ended says what came last."""
    heard: list[tuple[str, str]] = []
    script = "printf 'one\\n\\ntwo\\377 \\n'; echo three >&2; printf 'no end'; exit 3"
    async with running(shell(script, name="a"), hear=lambda *line: heard.append(line)) as run:
        await wait_until(lambda: run.seen("ended"), "it has ended")
        first = run.seen("ended")[0]
    assert heard[:4] == [("a", "one"), ("a", "two\ufffd"), ("a", "three"), ("a", "no end")]
    assert (first.last_line, first.ends) == ("no end", 1)


async def test_a_line_without_an_end_is_heard_in_pieces() -> None:
    """So a program that never ends one does not fill our memory."""
    heard: list[str] = []
    script = f"head -c {LONGEST_BYTES * 2 + 5} /dev/zero | tr '\\0' x"
    async with running(shell(script), hear=lambda _, line: heard.append(line), timing=Timing(first_s=600)) as run:
        await wait_until(lambda: run.seen("ended"), "it has ended")
    assert [len(line) for line in heard] == [LONGEST_BYTES, LONGEST_BYTES, 5]


async def test_a_grandchild_that_holds_the_output_holds_nothing_up() -> None:
    """The program has ended, so it is started again; what it left behind is killed with its group."""
    heard: list[str] = []
    async with running(shell("sleep 600 & echo $!; exit 1"), hear=lambda _, line: heard.append(line)) as run:
        await wait_until(lambda: len(run.seen("ended")) >= 2, "it has ended twice")
    await wait_until(lambda: not any(runs(int(pid)) for pid in heard), "what it left behind is gone")


async def test_a_program_has_a_folder_and_a_time_to_drain_of_its_own(tmp_path: Path) -> None:
    """Both are its own, not the supervisor's."""
    heard: list[str] = []
    program = msgspec.structs.replace(shell(f"pwd; {DEAF}"), folder=tmp_path, drain_s=0.05)
    async with running(program, hear=lambda _, line: heard.append(line), timing=Timing(drain_s=600)) as run:
        await wait_until(lambda: "deaf" in heard, "it no longer listens")
        run.stop.ask()
        await asyncio.wait_for(run.task, 30)
    assert heard[0] == str(tmp_path.resolve())
    assert len(run.seen("killed")) == 1


async def test_with_nothing_to_run_it_waits() -> None:
    """A `coord up` may have no worker of its own."""
    async with running() as run:
        run.stop.ask()
        await asyncio.wait_for(run.task, 30)


async def test_one_that_lived_long_enough_begins_anew() -> None:
    """After a good life the next end counts as the first."""
    timing = Timing(first_s=0.02, longest_s=1.0, well_s=0.0)
    async with running(shell("exit 0"), timing=timing) as run:
        await wait_until(lambda: len(run.seen("ended")) >= 3, "it has ended three times")
    assert {event.again_in_s for event in run.seen("ended")} == {0.02}


async def test_one_that_cannot_be_started_is_tried_again() -> None:
    """A missing file is said, and may appear."""
    missing = ManagedProgram(name="p", command=("/no/such/program",), environ={})
    async with running(missing) as run:
        await wait_until(lambda: len(run.seen("failed")) >= 2, "it has failed twice")
    assert "/no/such/program" in run.events[0].how


async def test_asked_to_stop_it_lets_programs_drain() -> None:
    """SIGTERM to all at once; what they do on it is done when run returns."""
    async with running(shell(OBEDIENT, name="a"), shell(OBEDIENT, name="b")) as run:
        await wait_until(lambda: len(run.supervisor.pids) == 2, "both run")
        run.stop.ask()
        await asyncio.wait_for(run.task, 30)
    assert [event.what for event in run.events] == ["started", "started"]


async def test_one_that_does_not_drain_in_time_is_killed(tmp_path: Path) -> None:
    """A straggler does not hold the end up."""
    log = tmp_path / "log"
    timing = Timing(drain_s=0.05)
    async with running(shell(DEAF, log=log), timing=timing) as run:
        await wait_until(has_said(log, "deaf"), "it no longer listens")
        run.stop.ask()
        await asyncio.wait_for(run.task, 30)
    assert len(run.seen("killed")) == 1


async def test_asked_twice_it_does_not_wait(tmp_path: Path) -> None:
    """The second Ctrl-C ends what the first one asked politely."""
    log = tmp_path / "log"
    timing = Timing(drain_s=600)
    async with running(shell(DEAF, log=log), timing=timing) as run:
        await wait_until(has_said(log, "deaf"), "it no longer listens")
        run.stop.ask()
        run.stop.ask()
        await asyncio.wait_for(run.task, 30)
    assert len(run.seen("killed")) == 1


async def test_asked_twice_a_program_with_processes_of_its_own_may_end_them(tmp_path: Path) -> None:
    """One that needs a second signal to hurry gets it, again and again, before it is killed."""
    log = tmp_path / "log"
    script = (
        "n=0; trap 'n=$((n+1)); [ $n -lt 3 ] || { echo in order; exit 0; }' TERM; echo up; while :; do sleep 0.05; done"
    )
    program = msgspec.structs.replace(shell(script, log=log), hurry_s=20.0)
    async with running(program, timing=Timing(drain_s=600)) as run:
        await wait_until(has_said(log, "up"), "it runs")
        run.stop.ask()
        run.stop.ask()
        await asyncio.wait_for(run.task, 30)
    assert log.read_text() == "up\nin order\n"
    assert not run.seen("killed")


async def test_one_that_does_not_hurry_is_killed(tmp_path: Path) -> None:
    """Its time to end what it has started is limited."""
    log = tmp_path / "log"
    program = msgspec.structs.replace(shell(DEAF, log=log), hurry_s=0.05)
    async with running(program, timing=Timing(drain_s=600)) as run:
        await wait_until(has_said(log, "deaf"), "it no longer listens")
        run.stop.ask()
        run.stop.ask()
        await asyncio.wait_for(run.task, 30)
    assert len(run.seen("killed")) == 1


async def test_a_stop_cuts_the_wait_before_a_restart_short() -> None:
    """Nobody waits for a backoff at the end."""
    async with running(shell("exit 1"), timing=Timing(first_s=600)) as run:
        await wait_until(lambda: run.seen("ended"), "it has ended")
        run.stop.ask()
        await asyncio.wait_for(run.task, 30)


async def test_a_final_code_ends_all() -> None:
    """What no restart mends is raised, after the others have drained."""
    async with running(shell("exit 2", name="a", final=frozenset({2})), shell(OBEDIENT, name="b")) as run:
        with pytest.raises(GaveUp, match="a ended with exit code 2"):
            await asyncio.wait_for(run.task, 30)
    assert run.seen("ended")[-1].again_in_s is None


@asynccontextmanager
async def giving_up(
    script: str, *, ready: bool = False, says: bool = True, timing: Timing = QUICK
) -> AsyncIterator[Run]:
    """Run one line of shell under a supervisor that may give it up; its output is heard."""
    stop, events = Stop(), list[Event]()
    supervisor = Supervisor(
        [shell(script)], events.append, hear=lambda *_: None, gives_up=lambda _: says, timing=timing
    )
    if ready:
        supervisor.ready("p")
    task = asyncio.create_task(supervisor.run(stop))
    try:
        yield Run(supervisor, stop, events, task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_five_ends_with_one_error_are_enough_for_one_that_was_never_ready() -> None:
    """It is said, with the error; numbers in it, such as a process id, do not make it another one."""
    async with giving_up("echo started; echo no model in $$ >&2; exit 3") as run:
        with pytest.raises(GaveUp, match="p ended with exit code 3"):
            await asyncio.wait_for(run.task, 30)
    (last,) = run.seen("gave_up")
    assert (last.ends, last.code, last.again_in_s, last.last_line.rpartition(" ")[0]) == (5, 3, None, "no model in")
    assert len(run.seen("ended")) == 4


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("echo broken; exit 3", {"ready": True}),
        ("echo broken; exit 3", {"says": False}),
        ("echo broken; exit 3", {"timing": msgspec.structs.replace(QUICK, well_s=0.0)}),
        ("kill -9 $$", {}),
        ("exit 0", {}),
        ('n=$(cat "$COUNT" 2>/dev/null); echo "x$n" > "$COUNT"; cat "$COUNT"; exit 3', {}),
    ],
    ids=["ready once", "not given up", "well for a while", "killed", "ended well", "another error each time"],
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
        "from coord.up.shutdown import Stop\n"
        "from coord.up.supervisor import ManagedProgram, Supervisor, Timing\n"
        "line = 'echo $$; cat; echo gone $$'\n"
        "programs = [ManagedProgram(name=n, command=('/bin/sh', '-c', line), environ=os.environ) for n in 'ab']\n"
        "asyncio.run(Supervisor(programs, lambda e: None, timing=Timing(first_s=0.01)).run(Stop()))\n"
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
