"""`coord agent` as people run it: the real command, real workers, and programs of every kind."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coord import TaskHandle
from coord.agent.run import ONE_STOP_S
from coord.endpoint import write_endpoint
from coord.models.tasks import TaskState
from tests.ledger import assert_ledger
from tests.system.program_fleet import LONG_S, Fleet
from tests.waiting import wait_until

FILE_COUNTS = Path(__file__).parents[2] / "examples" / "programs" / "file_counts.sh"


def pid_of(path: Path) -> int:
    """The process id that a program has written; 0 until it has."""
    text = path.read_text() if path.exists() else ""
    return int(text) if text.endswith("\n") else 0


@pytest.mark.long
async def test_a_thousand_files_by_a_shell_agent(fleet: Fleet) -> None:
    """Submitted as lines of a file and waited for, counted by a program that knows nothing of coord: all are right."""
    library = Path(os.__file__).parent
    files = [path for path in sorted(library.rglob("*.py")) if path.is_file()][:1_000]
    assert len(files) == 1_000
    agent = await fleet.agent("--capability", "file_counts", "--capacity", "4", "--", str(FILE_COUNTS), "{path}")
    lines, results = fleet.folder / "tasks.jsonl", fleet.folder / "results.jsonl"
    lines.write_bytes(b"".join(encode({"task_type": "file_counts", "payload": {"path": str(one)}}) for one in files))
    output = await fleet.coord("tasks", "submit", "--file", str(lines), "--wait", "--results", str(results))
    assert re.search(r"completed +1,000\n", output), output
    counted = {
        one["line"]: one["result"]["bytes"] for one in map(msgspec.json.decode, results.read_bytes().splitlines())
    }
    assert counted == {number: path.stat().st_size for number, path in enumerate(files, 1)}
    agent.process.terminate()
    assert await agent.ended() == 0
    assert agent.programs() == []
    await assert_ledger(fleet.cell.redis, fleet.cell.keys)


def encode(line: Any) -> bytes:
    """A line of JSON."""
    return msgspec.json.encode(line) + b"\n"


#: What each program does, and what its task ends with: the result, or a failure's code and how its message begins.
PROGRAMS: dict[str, tuple[str, Any]] = {
    "json": ("echo '{\"pages\": [1, 2]}'", {"pages": [1, 2]}),
    "text": ("echo two; echo lines", "two\nlines"),
    "silent": ("exit 0", None),
    "stdin": ("cat", {"how": "stdin"}),
    "deaf": ("echo done", "done"),
    "closes stdin": ("exec <&-; echo done", "done"),
    "stderr": ("head -c 3000000 /dev/zero >&2; echo done", "done"),
    "child": ("sleep 1000 & echo done", "done"),
    "dies at once": ("kill -KILL $$", ("killed", "killed by SIGKILL, and nothing on standard error")),
    "crashes": ("echo half way >&2; kill -SEGV $$", ("killed", "killed by SIGSEGV: half way")),
    "fails": ("echo page 3 is missing >&2; exit 3", ("exit_3", "exit code 3: page 3 is missing")),
    "bad data": ("echo no image >&2; exit 65", ("exit_65", "exit code 65: no image")),
    "unknown command": ("nobody-has-this", ("exit_127", "exit code 127 (not found): ")),
    "10 MiB": ("head -c 10485760 /dev/zero", ("result_too_large", "the program wrote more than 1048576 bytes")),
    "endless": ("yes", ("result_too_large", "the program wrote more than 1048576 bytes")),
    "endless, deaf": ("trap '' TERM; yes; yes; yes", ("result_too_large", "the program wrote more than")),
    "garbage": ("head -c 100000 /dev/urandom; printf '\\377'", ("result_invalid", "standard output is not UTF-8")),
    "chatty": ("yes | head -n 100000 >&3; echo done", "done"),
    "daemon": ("setsid sleep 1000 & echo done", "done"),
}


async def test_programs_of_every_kind_end_their_tasks(fleet: Fleet) -> None:
    """Each as it should, all at the same time, and none keeps the agent from the others or from the next."""
    cases = "".join(f'"{how}") {code} ;;\n' for how, (code, _) in PROGRAMS.items())
    script = fleet.folder / "programs.sh"
    script.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}esac\n')
    script.chmod(0o755)
    agent = await fleet.agent("--grace", "0.5", "--", "./programs.sh", "{how}")
    handles = {how: await fleet.submit({"how": how}) for how in PROGRAMS}
    missing = await fleet.submit({"hov": "json"})
    found: dict[str, Any] = {}
    for how, handle in handles.items():
        record = await fleet.outcome(handle)
        found[how] = record.result if record.error is None else (record.error.code, record.error.message)
    expected: dict[str, Any] = {}
    for how, (_, end) in PROGRAMS.items():
        is_failure = isinstance(end, tuple)
        has_begin = is_failure and isinstance(found[how], tuple) and found[how][1].startswith(end[1])
        expected[how] = (end[0], found[how][1]) if has_begin else end
    assert found == expected
    error = (await fleet.outcome(missing)).error
    assert error is not None
    assert (error.code, error.message) == ("field_missing", "the payload has no field 'how', which is argument 1")
    assert await (await fleet.submit({"how": "json"})).result(timeout=LONG_S) == {"pages": [1, 2]}
    for program in agent.programs():  # the daemon alone has left its group, and so outlives its task
        assert program.cmdline() == ["sleep", "1000"]
        program.kill()
    assert "Traceback" not in agent.output


async def test_text_goes_in_and_out_unchanged(fleet: Fleet) -> None:
    """With ``--input text --output text``, but for a newline at the end of the output; by default both are JSON."""
    await fleet.agent_in(fleet.folder, "--capability", "text", "--input", "text", "--output", "text", "--", "cat")
    assert await (await fleet.client.submit("text", '7 "é"\n')).result(timeout=LONG_S) == '7 "é"'
    assert await (await fleet.client.submit("text", "[7]")).result(timeout=LONG_S) == "[7]"
    await fleet.agent_in(fleet.folder, "--capability", "json", "--", "cat")
    assert await (await fleet.client.submit("json", [7])).result(timeout=LONG_S) == [7]


async def test_a_task_may_be_tried_again_or_elsewhere(fleet: Fleet) -> None:
    """Exit code 75 counts as no attempt; another code does, and its next try may do better."""
    code = 'echo "attempt $COORD_ATTEMPT" >&2; case "$COORD_ATTEMPT" in 1) exit 75;; 2) exit 1;; *) echo done;; esac'
    await fleet.agent("--", "sh", "-c", code)
    record = await fleet.outcome(await fleet.submit({}, attempts=2))
    assert (record.result, record.attempt, record.failures, record.releases) == ("done", 3, 1, 1)
    shown = [(one.how, one.message) for one in record.attempts]
    assert sorted(shown) == [("failed", "exit code 1: attempt 2"), ("released", "exit code 75: attempt 1")]


DEAF = "trap '' TERM; (trap '' TERM; sleep 1000; sleep 1000) & echo $$ >pid; sleep 1000; sleep 1000"
POLITE = "trap 'echo bye >cleaned; exit 1' TERM; sleep 1000 & echo $$ >pid; wait"


@pytest.mark.parametrize("code", [DEAF, POLITE])
async def test_a_cancel_reaches_the_program(fleet: Fleet, code: str) -> None:
    """SIGTERM, then SIGKILL for it and its children; the task is cancelled, and the agent goes on."""
    agent = await fleet.agent("--grace", "0.5", "--", "sh", "-c", 'eval "$1"', "sh", "{code}")
    handle = await fleet.submit({"code": code})
    await wait_until(lambda: pid_of(fleet.folder / "pid"), "it runs", LONG_S)
    assert await fleet.client.cancel(handle.task_id, timeout=LONG_S) == "accepted"
    await agent.no_programs()
    record = await fleet.outcome(handle)
    assert record.state is TaskState.CANCELLED
    assert (fleet.folder / "cleaned").exists() == (code == POLITE)
    assert await (await fleet.submit({"code": "echo next"})).result(timeout=LONG_S) == "next"


async def test_one_attempt_is_bounded(fleet: Fleet) -> None:
    """By --timeout on the agent's side, and by the task's own timeout on the coordinator's."""
    agent = await fleet.agent("--timeout", "0.5", "--grace", "0.5", "--", "sleep", "{s}")
    error = (await fleet.outcome(await fleet.submit({"s": 1000}))).error
    assert error is not None
    assert (error.code, error.message) == ("timed_out", "the program had not ended after 0.5 s")
    await agent.no_programs()


async def test_a_task_timeout_ends_the_program(fleet: Fleet) -> None:
    """The coordinator gives the attempt up, and its program does not run on."""
    agent = await fleet.agent("--grace", "0.5", "--", "sh", "-c", DEAF)
    handle = await fleet.submit({}, timeout=0.5)
    await wait_until(lambda: pid_of(fleet.folder / "pid"), "it runs", LONG_S)
    record = await fleet.outcome(handle)
    assert record.error is not None
    assert record.error.code == "timed_out"
    await agent.no_programs()


async def test_sigterm_drains(fleet: Fleet) -> None:
    """Running tasks finish and are reported, then the agent has left."""
    agent = await fleet.agent("--", "sh", "-c", "echo $$ >pid; while ! test -e go; do sleep 0.01; done; echo done")
    handle = await fleet.submit({})
    await wait_until(lambda: pid_of(fleet.folder / "pid"), "it runs", LONG_S)
    agent.process.terminate()
    await wait_until(lambda: "agent.draining" in agent.output, "it drains", LONG_S)
    (fleet.folder / "go").touch()
    assert await agent.ended() == 0
    assert (await fleet.outcome(handle)).result == "done"


@pytest.mark.parametrize("options", [(), ("--keep-alive",)])
async def test_what_does_not_end_in_time_is_ended_and_given_back(fleet: Fleet, options: tuple[str, ...]) -> None:
    """After the drain's time: SIGTERM, SIGKILL, the task released, nothing left."""
    command = ["--", "sh", "-c", DEAF]
    agent = await fleet.agent("--drain-timeout", "0.2", "--grace", "0.5", "--capacity", "1", *options, *command)
    handle = await fleet.submit({})
    await wait_until(lambda: pid_of(fleet.folder / "pid"), "it runs", LONG_S)
    await _until_running(fleet, handle)
    agent.process.terminate()
    assert await agent.ended() == 0
    assert agent.programs() == []

    async def is_released() -> bool:
        return (await fleet.client.task(handle.task_id)).releases == 1

    await wait_until(is_released, "the task is given back", LONG_S)
    assert "Traceback" not in agent.output


async def _until_running(fleet: Fleet, handle: TaskHandle) -> None:
    async def runs() -> bool:
        return (await fleet.client.task(handle.task_id)).state is TaskState.RUNNING

    await wait_until(runs, "the task is reported as running", LONG_S)


@pytest.mark.parametrize("options", [(), ("--keep-alive",)])
async def test_kill_9_of_the_agent_leaves_no_program(fleet: Fleet, options: tuple[str, ...]) -> None:
    """Not even one that ignores SIGTERM, nor its children."""
    agent = await fleet.agent("--grace", "0.5", "--capacity", "2", *options, "--", "sh", "-c", DEAF)
    handle = await fleet.submit({})
    await wait_until(lambda: pid_of(fleet.folder / "pid") and len(agent.programs()) >= 3, "it runs", LONG_S)
    # The reaper knows of the program by then. It would not if the agent were killed the moment it has started it.
    await _until_running(fleet, handle)
    agent.process.kill()
    await agent.ended()
    await agent.no_programs()


KEPT = """#!{python}
import json, os, signal, sys, time
print("loading the model", flush=True)
for line in sys.stdin:
    task = json.loads(line)
    how = task["payload"]["how"]
    answer = {"task_id": task["task_id"]}
    if how == "hang":
        open("pid", "w").write(f"{os.getpid()}\\n")
        time.sleep(1000)
    if how == "die" and task["attempt"] == 1:
        sys.exit("no memory")
    print(json.dumps(answer | {"progress": 0.5}), flush=True)
    print(json.dumps(answer | {"result": {"how": how, "pid": os.getpid()}}), flush=True)
"""


async def test_a_kept_program_works_dies_and_is_cancelled(fleet: Fleet) -> None:
    """One process for all its tasks; another one after a death or a cancel, and the task that died is tried again."""
    script = fleet.folder / "kept.py"
    script.write_text(KEPT.replace("{python}", sys.executable))
    script.chmod(0o755)
    agent = await fleet.agent("--keep-alive", "--capacity", "1", "--grace", "0.5", "--", "./kept.py")
    handles = [await fleet.submit({"how": "well"}) for _ in range(50)]
    first = {(await handle.result(timeout=LONG_S))["pid"] for handle in handles}
    assert len(first) == 1
    died = await fleet.outcome(await fleet.submit({"how": "die"}, attempts=2))
    assert (died.failures, died.result["how"]) == (1, "die")
    assert died.attempts[0].message.endswith("exit code 1: no memory")
    assert died.result["pid"] not in first
    hanging = await fleet.submit({"how": "hang"})
    await wait_until(lambda: pid_of(fleet.folder / "pid"), "it hangs", LONG_S)
    assert await fleet.client.cancel(hanging.task_id, timeout=LONG_S) == "accepted"
    assert (await fleet.outcome(hanging)).state is TaskState.CANCELLED
    last = await (await fleet.submit({"how": "well"})).result(timeout=LONG_S)
    assert last["pid"] not in {died.result["pid"], *first}
    agent.process.terminate()
    assert await agent.ended() == 0
    assert agent.programs() == []


async def test_it_finds_redis_by_itself_and_takes_one_type_alone(fleet: Fleet) -> None:
    """Through the endpoint file of a running `coord up`; the type is a capability too."""
    path = fleet.folder / "endpoint.json"
    write_endpoint(path, fleet.cell.url, None, fleet.cell.settings.namespace)
    await fleet.agent(
        "--task-type", "shout", "--", "tr", "a-z", "A-Z", COORD_ENDPOINT_FILE=str(path), COORD_REDIS_URL=""
    )
    assert await (await fleet.client.submit("shout", "hello")).result(timeout=LONG_S) == "HELLO"
    error = (await fleet.outcome(await fleet.submit("hello"))).error
    assert error is not None
    assert error.code == "no_handler"


async def test_a_program_may_be_coord_itself(fleet: Fleet) -> None:
    """The variables of its task are not settings, and it uses the same cell."""
    await fleet.agent("--", sys.executable, "-m", "coord.cli", "fsck", "--json")
    report = await (await fleet.submit({})).result(timeout=LONG_S)
    assert report["findings"] == []


@asynccontextmanager
async def output(*arguments: str) -> AsyncIterator[tuple[int | None, str]]:
    """The exit code of a `coord agent` that ends by itself, and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "coord.cli", "agent", *arguments,
        env=os.environ | {"COLUMNS": "200"}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    yield process.returncode, out.decode()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--capability x -- ./missing", "coord: program ./missing does not exist\n"),
        ("--capability x -- /etc/passwd", "coord: program /etc/passwd is not executable; chmod +x /etc/passwd\n"),
        ("-- cat", "coord: the agent has no capability; give --capability NAME (repeatable), or --task-type NAME\n"),
        ("--capability x --id a/b -- cat", "coord: agent_id must be 1 to 128 characters"),
        (
            "--capability x --label zone -- cat",
            "coord: --label must be NAME=VALUE, such as --label zone=eu, got 'zone'\n",
        ),
        ("--capability x --redis-url http://h -- cat", "coord: --redis-url 'http://h' is not a Redis URL"),
        ("--capability x --type none -- cat", "'none' is not one of 'coordinator', 'worker'"),
    ],
)
async def test_what_is_wrong_is_said_in_one_line(arguments: str, says: str) -> None:
    """At the start, with exit code 2 and the next step."""
    async with output(*arguments.split()) as (code, out):
        assert code == 2
        assert says in out
        assert "Traceback" not in out


async def test_a_second_signal_ends_its_programs_and_gives_their_tasks_back(fleet: Fleet) -> None:
    """The drain has no limit otherwise."""
    agent = await fleet.agent("--grace", "0.5", "--", "sh", "-c", DEAF)
    await fleet.submit({})
    await wait_until(lambda: pid_of(fleet.folder / "pid"), "it runs", LONG_S)
    agent.process.terminate()
    await wait_until(lambda: "agent.draining" in agent.output, "it drains", LONG_S)
    await asyncio.sleep(1.5 * ONE_STOP_S)  # signals of one stop count once
    agent.process.terminate()
    assert await agent.ended() == 0
    assert "tasks.given_back" in agent.output
    await agent.no_programs()
