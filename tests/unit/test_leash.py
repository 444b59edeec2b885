"""The leash: a program ends with the process that started it, and knows nothing of it. Real, tiny processes."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process

import pytest

from tests.coord_up import runs
from tests.waiting import wait_until

END_S = 20.0


async def leashed(script: str, drain_s: float = 20.0) -> tuple[Process, int]:
    """A line of shell on a leash, once it has said its pid; both."""
    command = (sys.executable, "-P", "-m", "coord.cli.leash", str(drain_s), "/bin/sh", "-c", f"echo $$; {script}")
    leash = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, process_group=0)
    assert leash.stdout is not None
    return leash, int(await asyncio.wait_for(leash.stdout.readline(), END_S))


async def test_its_exit_code_and_output_are_the_program_s() -> None:
    """The program's own standard input is empty, so it does not take the leash for its input."""
    leash, _ = await leashed("cat; echo said; exit 7")
    out, _ = await asyncio.wait_for(leash.communicate(), END_S)
    assert (out, leash.returncode) == (b"said\n", 7)


async def test_a_signal_reaches_the_program() -> None:
    """It ends as it sees fit."""
    leash, _ = await leashed("trap 'echo bye; exit 5' TERM; echo set; while :; do sleep 0.05; done")
    assert leash.stdout is not None
    assert await leash.stdout.readline() == b"set\n"
    leash.terminate()
    assert await leash.stdout.readline() == b"bye\n"
    assert await asyncio.wait_for(leash.wait(), END_S) == 5


async def test_when_the_starter_goes_the_program_is_asked_to_end() -> None:
    """The pipe closes, however the starter went."""
    leash, pid = await leashed("exec sleep 600")
    assert leash.stdin is not None
    leash.stdin.close()
    assert await asyncio.wait_for(leash.wait(), END_S) == 128 + signal.SIGTERM
    assert not runs(pid)


async def test_one_that_does_not_listen_is_killed_with_all_that_it_started() -> None:
    """Nothing is left behind for want of a starter."""
    leash, pid = await leashed("trap '' TERM; sleep 600 & echo $!; while :; do sleep 0.05; done", drain_s=0.1)
    assert leash.stdout is not None
    child = int(await leash.stdout.readline())
    assert leash.stdin is not None
    leash.stdin.close()
    assert await asyncio.wait_for(leash.wait(), END_S) == -signal.SIGKILL
    await wait_until(lambda: not runs(pid) and not runs(child), "both are gone")


async def test_a_program_that_is_not_there() -> None:
    """One line and the shell's code for it."""
    command = (sys.executable, "-P", "-m", "coord.cli.leash", "1", "/no/such/program")
    leash = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stderr=PIPE)
    _, err = await asyncio.wait_for(leash.communicate(), END_S)
    assert (err, leash.returncode) == (b"/no/such/program: No such file or directory\n", 127)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_either_signal_ends_a_plain_program(number: signal.Signals) -> None:
    """Ctrl-C at a terminal, or the supervisor."""
    leash, pid = await leashed("exec sleep 600")
    leash.send_signal(number)
    assert await asyncio.wait_for(leash.wait(), END_S) == 128 + signal.SIGTERM
    assert not runs(pid)
