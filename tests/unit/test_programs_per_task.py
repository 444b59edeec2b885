"""Programs that are started for each task, the well-behaved and the others; no server is needed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coord.agent.task import NonRetryable, Release, Retryable
from coord.codec import decode_json, encode
from coord.config import MIB
from coord.programs import process
from coord.programs.outcome import Output
from coord.programs.stdio import Input
from tests.repo.documents import ROOT
from tests.unit.programs_world import LONG_S, Asked, each, lives, script, written
from tests.waiting import wait_until


async def test_payload_in_result_out() -> None:
    """The payload as it was submitted, with a line end after it; what is printed is the result, JSON untouched."""
    async with each("cat") as programs:
        raw = b'{"n": 1.50,  "text": "\xc3\xa9"}'
        assert encode(await programs.handle(Asked(raw=raw).task)) == raw
    async with each("sh", "-c", 'read -r line; printf \'%s|%s\' "$line" "$1"', "sh", "{n}") as programs:
        assert await programs.handle(Asked({"n": 1}).task) == '{"n":1}|1'


@pytest.mark.parametrize(
    ("words", "payload", "result"),
    [
        (("cat",), 'two "words"\n\té\n', 'two "words"\n\té'),
        (("wc", "-c"), "four", 4),
        (("sort",), "b\na\n", "a\nb"),
        (("wc", "-c"), "", 0),
    ],
)
async def test_text_in_text_out(words: tuple[str, ...], payload: str, result: object) -> None:
    """With text as input a program gets the text itself: no quotes, no escapes, no line end that was not there."""
    async with each(*words, input_format=Input.TEXT) as programs:
        assert decode_json(encode(await programs.handle(Asked(payload).task))) == result


@pytest.mark.parametrize(
    ("payload", "names"),
    [({"a": 1}, "an object"), ([1], "an array"), (7, "a number"), (1.5, "a number"), (True, "a boolean")],
)
async def test_a_payload_that_is_not_text_fails_for_good(payload: object, names: str, tmp_path: Path) -> None:
    """It names the type and the next step, and the program does not run."""
    async with each("touch", str(tmp_path / "ran"), input_format=Input.TEXT) as programs:
        with pytest.raises(NonRetryable, match=f"payload_invalid: .* must be text, not {names}; submit text, or"):
            await programs.handle(Asked(payload).task)
    assert list(tmp_path.iterdir()) == []


async def test_a_value_reaches_the_program_as_it_is(tmp_path: Path) -> None:
    """No shell sees it."""
    odd = "a b; touch " + str(tmp_path / "x") + " $(id) `id` 'q' \"d\" \\ * \n é"
    async with each("printf", "%s", "{v}", output=Output.TEXT) as programs:
        assert await programs.handle(Asked({"v": odd}).task) == odd
    assert list(tmp_path.iterdir()) == []


async def test_the_environment_tells_of_the_task() -> None:
    """Id, type, attempt, and who runs it."""
    show = 'echo "$COORD_TASK_ID $COORD_TASK_TYPE $COORD_ATTEMPT $COORD_AGENT_ID $COORD_PROGRESS_FD"'
    async with each("sh", "-c", show) as programs:
        assert await programs.handle(Asked().task) == "t1 demo 2 a 3"


@pytest.mark.parametrize(
    ("code", "raised", "says"),
    [
        ("echo why >&2; exit 3", Retryable, "exit_3: exit code 3: why"),
        ("exit 1", Retryable, "exit_1: exit code 1, and nothing on standard error"),
        ("echo bad page >&2; exit 65", NonRetryable, "exit_65: exit code 65: bad page"),
        ("echo no room >&2; exit 75", Release, "exit code 75: no room"),
        ("kill -KILL $$", Retryable, "killed: killed by SIGKILL"),
        ("echo dying >&2; kill -SEGV $$", Retryable, "killed: killed by SIGSEGV: dying"),
        ("nobody-has-this", Retryable, r"exit_127: exit code 127 \(not found\): .*nobody-has-this"),
        ("printf 'a\\377'", NonRetryable, "result_invalid: standard output is not UTF-8"),
        ("printf 'half \\377 done' >&2; exit 1", Retryable, "half \ufffd done"),
    ],
)
async def test_how_it_ends_is_the_outcome(code: str, raised: type[Exception], says: str) -> None:
    """Exit code, signal, and the end of standard error."""
    async with each("sh", "-c", code) as programs:
        with pytest.raises(raised, match=says):
            await programs.handle(Asked().task)


async def test_only_the_end_of_standard_error_is_kept() -> None:
    """Megabytes of it flow by; the failure fits into its report."""
    async with each("sh", "-c", "yes noise | head -n 1000000 >&2; echo the end >&2; exit 1") as programs:
        with pytest.raises(Retryable) as raised:
            await programs.handle(Asked().task)
    assert raised.value.message.startswith("exit code 1: … ")
    assert raised.value.message.endswith("noise\nthe end")
    assert 3_000 < len(raised.value.message) <= 4_096


@pytest.mark.parametrize("code", ["echo done", "exec <&-; sleep 0.01; echo done", "head -c 5 >&2; echo done"])
async def test_it_need_not_read_what_it_is_given(code: str) -> None:
    """Nor all of it, nor keep its standard input open."""
    asked = Asked({"text": "x" * (MIB - 100)})
    async with each("sh", "-c", code) as programs:
        assert await programs.handle(asked.task) == "done"


async def test_a_large_payload_goes_both_ways() -> None:
    """More than a pipe holds, with the program reading and writing as it likes."""
    asked = Asked({"text": "x" * (MIB - 100)})
    async with each("cat") as programs:
        assert encode(await programs.handle(asked.task)) == asked.task.payload_json


@pytest.mark.parametrize("code", ["head -c 10485760 /dev/zero", "yes", "trap '' TERM; yes; yes; yes"])
async def test_too_much_output_fails_and_ends_it(code: str, tmp_path: Path) -> None:
    """At the limit it gets SIGTERM; further output is not kept."""
    pid = tmp_path / "pid"
    async with each("sh", "-c", f"echo $$ >{pid}; {code}", grace_s=0.2) as programs:
        with pytest.raises(NonRetryable, match=r"result_too_large: .* more than 1048576 bytes"):
            await programs.handle(Asked().task)
    assert not lives(written(pid))


async def test_what_takes_too_long_is_ended() -> None:
    """With a retryable failure that contains its output."""
    async with each("sh", "-c", "echo thinking >&2; sleep 1000", timeout_s=0.3) as programs:
        with pytest.raises(Retryable, match=r"timed_out: the program had not ended after 0.3 s"):
            await programs.handle(Asked().task)


IGNORES = (
    "trap '' TERM; (trap '' TERM; echo $$ >/dev/null; sleep 1000) & echo $! >child; echo $$ >pid; wait; sleep 1000"
)
CLEANS_UP = "trap 'echo bye >cleaned; exit 0' TERM; sleep 1000 & echo $! >child; echo $$ >pid; wait"


@pytest.mark.parametrize(("code", "grace_s"), [(IGNORES, 0.2), (CLEANS_UP, 60.0)])
async def test_a_cancel_ends_it_and_its_children(
    code: str, grace_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM, time to clean up, then SIGKILL for the whole group; only then has the handler ended."""
    monkeypatch.chdir(tmp_path)
    async with each("sh", "-c", code, grace_s=grace_s) as programs:
        handling = asyncio.create_task(programs.handle(Asked().task))
        await wait_until(lambda: written(tmp_path / "pid"), "it runs", 30)
        handling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handling
        assert not lives(written(tmp_path / "pid"))
        await wait_until(lambda: not lives(written(tmp_path / "child")), "its child has ended", 30)
    assert (tmp_path / "cleaned").exists() == (code == CLEANS_UP)


async def test_a_second_cancel_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever cancels again while it is being ended does not keep it from its end."""
    monkeypatch.chdir(tmp_path)
    async with each("sh", "-c", IGNORES, grace_s=0.2) as programs:
        handling = asyncio.create_task(programs.handle(Asked().task))
        await wait_until(lambda: written(tmp_path / "pid"), "it runs", 30)
        while not handling.done():
            handling.cancel()
            await asyncio.sleep(0.01)
        assert not lives(written(tmp_path / "pid"))


async def test_children_that_hold_its_output_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program has ended, so the task has; what it left in its group is ended."""
    monkeypatch.chdir(tmp_path)
    async with each("sh", "-c", "sleep 1000 & echo $! >child; echo done") as programs:
        assert await programs.handle(Asked().task) == "done"
        await wait_until(lambda: not lives(written(tmp_path / "child")), "its child has ended", 30)


async def test_a_daemon_leaves_with_its_blessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in a session of its own outlives the task, and holds it up no longer although it holds the pipes."""
    monkeypatch.chdir(tmp_path)
    daemon = script(tmp_path / "daemon", "#!/bin/sh\necho $$ >pid\nexec sleep 1000\n")
    async with each("sh", "-c", f"setsid {daemon} & while ! test -s pid; do sleep 0.01; done; echo done") as programs:
        assert await programs.handle(Asked().task) == "done"
    assert lives(written(tmp_path / "pid"))
    os.kill(written(tmp_path / "pid"), signal.SIGKILL)


async def test_the_last_words_of_a_pipeline_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its children say right after it has ended is part of the result."""
    monkeypatch.setattr(process, "LINGER_S", 30.0)
    async with each("sh", "-c", "(sleep 0.05; echo second) & echo first") as programs:
        assert await programs.handle(Asked().task) == "first\nsecond"


async def test_progress_comes_by_a_pipe_of_its_own() -> None:
    """JSON or text by lines; a million of them are a few reports, and the newest is the last."""
    asked = Asked()
    code = "echo 0.5 >&3; yes 0.7 | head -n 1000000 >&3; echo '{{\"page\": 9}}' >&3; echo done"
    async with each("sh", "-c", code) as programs:
        assert await programs.handle(asked.task) == "done"
    assert asked.progress[-1] == {"page": 9}
    assert len(asked.progress) < 1_000


async def test_a_program_that_is_gone_fails_retryably(tmp_path: Path) -> None:
    """Deleted or broken after the agent's start: another machine may have it."""
    path = script(tmp_path / "program", "#!/bin/sh\necho hi\n")
    async with each(path) as programs:
        (tmp_path / "program").unlink()
        with pytest.raises(Retryable, match=r"not_started: .* cannot be started: No such file"):
            await programs.handle(Asked().task)
    async with each(script(tmp_path / "odd", "#!/no/such/interpreter\n")) as programs:
        with pytest.raises(Retryable, match="not_started"):
            await programs.handle(Asked().task)


async def test_an_argument_that_is_too_long_fails_for_good() -> None:
    """The system has a limit, and no retry changes it."""
    async with each("cat", "{v}") as programs:
        with pytest.raises(NonRetryable, match=r"not_started: .*too long"):
            await programs.handle(Asked({"v": "x" * 1_000_000}).task)


#: Which of the first numbers are open in it, and whether its session is its own.
LOOK = """
import json, os

def is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True

numbers = [number for number in range(1000) if is_open(number)]
print(json.dumps({"open": numbers, "own_session": os.getsid(0) == os.getpid()}))
"""


async def test_it_has_nothing_of_the_agents(tmp_path: Path) -> None:
    """Neither other programs' pipes nor what the agent inherited, so that each sees the end of its own."""
    reads, writes = os.pipe()
    os.set_inheritable(writes, True)  # as if a parent had left it to the agent
    path = script(tmp_path / "look", f"#!{sys.executable}{LOOK}")
    try:
        async with each(path) as programs:
            found = await asyncio.gather(*(programs.handle(Asked().task) for _ in range(4)))
    finally:
        os.close(reads)
        os.close(writes)
    for one in found:
        assert decode_json(encode(one)) == {"open": [0, 1, 2, 3], "own_session": True}


async def test_signals_are_as_usual_in_it() -> None:
    """Python ignores the one that ends the head of a pipeline; its programs must not."""
    async with each("sh", "-c", "yes | head -n 1") as programs:
        assert await programs.handle(Asked().task) == "y"


def test_a_parent_that_ignores_its_children_s_end_changes_nothing() -> None:
    """How they end is learnt all the same."""
    code = """
import asyncio
from coord.agent.task import Retryable
from tests.repo.documents import ROOT
from tests.unit.programs_world import Asked, each

async def main():
    async with each("sh", "-c", "exit 3") as programs:
        try:
            await programs.handle(Asked().task)
        except Retryable as error:
            print(error.code)

asyncio.run(main())
"""
    command = ["sh", "-c", 'trap "" CHLD; exec "$@"', "sh", sys.executable, "-c", code]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LONG_S, check=True)
    assert done.stdout.splitlines()[-1] == "exit_3"


def open_files() -> int:
    """How many this process has."""
    return sum(1 for _ in Path("/dev/fd").iterdir())


async def test_hundreds_leave_no_pipe_open() -> None:
    """Whatever way they end."""
    async with each(
        "sh", "-c", 'case "$1" in 0) exit 1;; 1) sleep 1000;; esac', "sh", "{n}", timeout_s=0.2
    ) as programs:
        before = open_files()
        for _ in range(4):
            tasks = [programs.handle(Asked({"n": n % 8}).task) for n in range(20)]
            await asyncio.gather(*tasks, return_exceptions=True)
        await wait_until(lambda: open_files() <= before, "every pipe is closed")
