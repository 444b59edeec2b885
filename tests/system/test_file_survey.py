"""The file survey as a person runs it: real processes on a small folder; also when one is killed in the middle."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from coord import Client
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.endpoint import read_endpoint
from coord.models.tasks import TaskState
from coord.queries import count_by_state
from tests.http import HttpCaller
from tests.system.file_survey import JOB_S, SOURCE, Job, Start, assert_books, below, in_the_middle
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many good files, and one of each other kind."""
    root = tmp_path_factory.mktemp("folder")
    (root / "pkg").mkdir()
    for number in range(150):
        (root / "pkg" / f"module_{number:03}.py").write_text(SOURCE.replace("{n}", str(number)))
    (root / "copy.py").write_text((root / "pkg" / "module_007.py").read_text())
    (root / "broken.py").write_text("def broken(:\n    pass\n")
    (root / "notes.txt").write_text("plain words, plain words\n")
    (root / "empty.py").write_text("")
    (root / "binary.so").write_bytes(b"\x7fELF\0\0\0")
    (root / "big.csv").write_text("1,2,3\n" * 200_000)
    return root


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """A run in which nothing happened to anybody; it has ended."""
    place = tmp_path_factory.mktemp("undisturbed")
    job = Job(folder, place / "data", "--once", "--agents", "1", XDG_RUNTIME_DIR=str(place / "runtime"))
    job.process.wait(JOB_S)
    yield job
    job.process.kill()


#: Files times kinds: 154 texts and digests, 153 outlines.
TASKS = 154 * 2 + 153


def test_it_finds_what_is_there(undisturbed: Job, folder: Path) -> None:
    """Every number, the duplicate, the failure with its reason; 0, since only an unparsable file has failed."""
    job = undisturbed
    assert job.process.returncode == 0
    results = job.results()
    assert results["left_out"] == {"binary": 1, "over 1 MiB": 1}
    found = results["found"]
    assert found["files"] == 154
    assert found["empty_files"] == 1
    assert found["bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in {".py", ".txt"})
    assert found["python_files"] == 152
    assert found["functions"] == 151 * 120
    assert found["documented"] == 151 * 121
    assert found["imports"] == [["os", 151]]
    assert found["duplicates"] == [
        {"bytes": (folder / "copy.py").stat().st_size, "paths": ["copy.py", "pkg/module_007.py"]}
    ]
    assert found["failures"] == [
        {
            "path": "broken.py",
            "task_type": "python_outline",
            "code": "unparsable",
            "message": "broken.py:1: invalid syntax",
        }
    ]
    expected = (
        "154 text files, 461 tasks",
        "left out: 1 binary, 1 over 1 MiB",
        "461 of 461 tasks finished, 1 failed",
        "1 failed: 1 unparsable",
        "broken.py:1: invalid syntax",
        "Work of each agent",
        "submitted → finished",
        "461 tasks in",
    )
    assert [part for part in expected if part not in job.output] == []
    assert "Traceback" not in job.output
    assert below(job.process.pid) == []
    assert EmbeddedServer.find(job.data / "redis") is None


async def test_its_books_balance_when_it_has_ended(undisturbed: Job) -> None:
    """What it leaves in its data folder: every task with one outcome, no load, no key that stays for ever."""
    assert undisturbed.process.returncode == 0
    server = EmbeddedServer.start(undisturbed.data / "redis")
    try:
        async with Client(server.url, settings=Settings()) as client:
            await assert_books(client.connection.redis, client.connection.keys, TASKS)
    finally:
        server.stop(force=True)


async def test_any_other_failure_ends_it_with_1(start_job: Start, tmp_path: Path) -> None:
    """Files that were deleted meanwhile: each failure is shown with its reason."""
    folder = tmp_path / "going"
    folder.mkdir()
    files = [folder / f"module_{number:03}.py" for number in range(200)]
    for number, file in enumerate(files):
        file.write_text(SOURCE.replace("{n}", str(number)))
    job = start_job(folder, "--once")
    await wait_until(lambda: "200 text files" in job.output, "it has looked at the folder", JOB_S)
    for file in files[100:]:
        file.unlink()
    assert await job.ended() == 1
    failures = job.results()["found"]["failures"]
    assert {one["code"] for one in failures} == {"unreadable"}
    assert len(failures) > 20
    text = [one["message"] for one in failures]
    assert [one for one in text if one not in job.output] == []


def _agent(job: Job) -> int:
    return job.find("--id", "outline-1")[0].pid


def _distributor(job: Job) -> int:
    return job.find("workers", "distributor")[0].pid


def _coord_up(job: Job) -> int:
    return job.find("coord.cli", "up")[0].pid


def _redis(job: Job) -> int:
    server = EmbeddedServer.find(job.data / "redis")
    assert server is not None
    return server.pid


@pytest.mark.parametrize(
    "victim", [_redis, *(pytest.param(one, marks=pytest.mark.long) for one in (_agent, _distributor, _coord_up))]
)
async def test_kill_9_in_the_middle_changes_only_the_time(
    start_job: Start, folder: Path, undisturbed: Job, victim: Callable[[Job], int]
) -> None:
    """Whoever is killed: the same findings, every task with one outcome, and nothing left over in the counters."""
    job = start_job(folder, agents=2 if victim is _agent else 1)
    url = await in_the_middle(TASKS // 2)
    killed = victim(job)
    os.kill(killed, signal.SIGKILL)
    await wait_until(lambda: "Everything keeps running" in job.output, "the job is done", JOB_S)
    async with Client(url, settings=Settings()) as client:
        counters = await client.counters()
        assert {agent.load for agent in await client.agents()} == {0}
        await assert_books(client.connection.redis, client.connection.keys, TASKS)
    states = {state: count for state, count in count_by_state(counters).items() if count}
    assert states == {TaskState.COMPLETED: TASKS - 1, TaskState.FAILED: 1}
    assert counters["submitted:normal"] == TASKS
    job.process.send_signal(signal.SIGINT)
    assert await job.ended() == 0
    assert job.results() == undisturbed.results()
    assert "Traceback" not in job.output
    (line,) = (line for line in job.output.splitlines() if f"(pid {killed}) has ended" in line)
    assert "; it restarts in " in line
    ends = msgspec.json.decode(job.report.read_bytes())["ends"]
    assert sum(ends.values()) == 1


async def test_the_address_of_the_dashboard_is_among_the_first_lines(
    start_job: Start, tmp_path: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with --once, before the tasks are submitted; once only."""
    folder = tmp_path / "few"
    folder.mkdir()
    (folder / "a.py").write_text("x = 1\n")
    job = start_job(folder, "--once", COORD_GATEWAY_PORT=str(unused_port))
    assert await job.ended() == 0
    found, dashboard, *_ = job.output.splitlines()
    assert "1 text file, 3 tasks (up to 3 a file)" in found
    assert dashboard.endswith(f"  dashboard: http://127.0.0.1:{unused_port}/ui")
    assert job.output.count("dashboard: ") == 1


async def test_it_stays_up_and_prints_commands_that_exist(start_job: Start, tmp_path: Path) -> None:
    """Without --once: its dashboard answers, the agent that it offers joins, and Ctrl-C ends everything with 0."""
    folder = tmp_path / "few"
    folder.mkdir()
    (folder / "a.py").write_text("x = 1\n")
    job = start_job(folder)
    await wait_until(lambda: "follow the logs" in job.output, "the job is done", JOB_S)
    await wait_until(lambda: "dashboard: " in job.output, "the gateway has a free port", JOB_S)
    (port,) = re.findall(r"  dashboard: http://127\.0\.0\.1:(\d+)/ui$", job.output, re.MULTILINE)
    assert "<title>" in (await HttpCaller(int(port)).text("/ui")).body
    (line,) = (line for line in job.output.splitlines() if "add an agent" in line)
    endpoint = read_endpoint(Settings().endpoint_path)
    assert endpoint is not None
    offered = shlex.split(line, comments=True)
    more = await asyncio.create_subprocess_exec(*offered, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        async with Client(endpoint.url, settings=Settings()) as client:

            async def joined() -> bool:
                return "stats-2" in {agent.agent_id for agent in await client.agents()}

            await wait_until(joined, "the agent has joined", JOB_S)
    finally:
        more.terminate()
        await more.wait()
    assert more.returncode == 0
    processes = below(job.process.pid)
    job.process.send_signal(signal.SIGINT)
    assert await job.ended() == 0
    assert [process for process in processes if process.is_running()] == []


@pytest.mark.long
async def test_killed_it_leaves_nobody_behind(start_job: Start, folder: Path) -> None:
    """Agents, `coord up`, workers and Redis end by themselves when the file survey is killed."""
    job = start_job(folder)
    await in_the_middle(TASKS // 2)
    processes = below(job.process.pid)
    server = psutil.Process(_redis(job))
    job.process.kill()
    job.process.wait()
    await wait_until(lambda: not any(one.is_running() for one in [*processes, server]), "all have ended", JOB_S)


@pytest.mark.long
async def test_two_at_once_need_two_data_folders(start_job: Start, folder: Path) -> None:
    """The second one on the same folder says so and ends with 2; on its own it has an announcement of its own."""
    first = start_job(folder, name="one")
    await in_the_middle(TASKS // 2)
    refused = start_job(folder, "--once", name="one")
    assert await refused.ended() == 2
    assert "scripts/run: another coord up" in refused.output
    assert f"(pid {first.process.pid}) uses" in refused.output
    assert "it may be another scripts/run" in refused.output
    assert refused.output.count("text files") == 1, "the first one's; found out before the folder was walked"
    assert (first.data / "logs" / "coord-up.log").read_text(), "the first one's logs are left alone"
    beside = start_job(folder, "--once", name="two")
    assert await beside.ended() == 0
    assert "dashboard" not in beside.output, "the first one has the port"
    assert first.process.poll() is None


async def test_nothing_to_do(start_job: Start, tmp_path: Path) -> None:
    """A folder without text files is done at once; one that is none is an error."""
    (tmp_path / "void").mkdir()
    job = start_job(tmp_path / "void", "--once")
    assert await job.ended() == 0
    assert "0 text files, 0 tasks" in job.output
    assert "nothing to do" in job.output
    assert job.results()["found"]["files"] == 0
    missing = start_job(tmp_path / "missing", "--once")
    assert await missing.ended() == 2
    assert f"scripts/run: '{tmp_path / 'missing'}' is not a folder" in missing.output
    unset = start_job("", "--once")
    assert await unset.ended() == 2
    assert "scripts/run: '' is not a folder" in unset.output
