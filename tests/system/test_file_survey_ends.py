"""How a file survey ends that cannot go on: at once with one line, or after it has put its things in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from coord import Client
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.endpoint import read_endpoint
from coord.fsck import examine
from coord.models.tasks import TERMINAL, TaskState
from coord.queries import count_by_state
from tests.coord_up import runs
from tests.system.file_survey import JOB_S, ROOT, SOURCE, Job, Start, below, in_the_middle
from tests.waiting import wait_until

#: Files of ``many``; each is three tasks.
MANY = 400


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder with one file."""
    folder = tmp_path / "few"
    folder.mkdir()
    (folder / "a.py").write_text("x = 1\n")
    return folder


@pytest.mark.parametrize("where", ["file", "under_a_file", "logs_are_a_file", "no_such_home"])
async def test_data_that_cannot_be_kept_is_said_at_once(
    start_job: Start, few: Path, tmp_path: Path, where: str
) -> None:
    """One line that names the folder and what to do, and exit code 2, before anything is started."""
    (tmp_path / "file").write_text("")
    (tmp_path / "logs_are_a_file").mkdir()
    (tmp_path / "logs_are_a_file" / "logs").write_text("")
    given = {"under_a_file": "file/below", "no_such_home": "~nobody-is-called-so/data"}.get(where, where)
    data = given if given.startswith("~") else str(tmp_path / given)
    job = start_job(few, "--once", "--data", data)
    assert await job.ended() == 2
    (line,) = job.output.splitlines()
    assert line.startswith(f"scripts/run: cannot keep data in {data}: ")
    assert line.endswith("; choose another folder with --data")


async def test_a_folder_of_somebody_is_left_as_it_is(start_job: Start, few: Path, tmp_path: Path) -> None:
    """Redis is not put among files that are not coord's, and nothing is written there."""
    theirs = tmp_path / "data" / "redis"
    theirs.mkdir(parents=True)
    (theirs / "letter.txt").write_text("")
    refused = start_job(few, "--once")
    assert await refused.ended() == 2
    assert "is not empty and is not a data folder of coord" in refused.output
    assert [one.name for one in theirs.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("",), "scripts/run: '' is not a folder"),
        (("no\nsuch",), r"scripts/run: 'no\nsuch' is not a folder"),
        ((".", "--report", "/proc/no/such"), "scripts/run: cannot write a report to '/proc/no/such': No such file"),
        ((".", "--agents", "0"), "argument --agents: must be a number from 1 to 32, got '0'"),
    ],
)
def test_a_slip_on_the_command_line_is_said_at_once(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    """In one line, with exit code 2, before the folder is walked or anything started."""
    command = [sys.executable, "-P", "-m", "examples.file_survey", "--once", "--data", str(tmp_path / "data"), *options]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert says in done.stderr.splitlines()[-1]
    assert not (tmp_path / "data").exists()


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder with work for long enough to be interrupted."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(MANY):
        (folder / f"module_{number:03}.py").write_text(SOURCE.replace("{n}", str(number)))
    return folder


async def _the_next_run_has_only_its_own(start_job: Start, few: Path) -> Job:
    """Run on another folder with the same data, and look at its tables and at the books."""
    job = start_job(few)
    await wait_until(lambda: "follow the logs" in job.output, "the job is done", JOB_S)
    found = job.results()["found"]
    assert (found["files"], found["python_files"], found["failures"]) == (1, 1, [])
    assert "\n3 tasks in " in job.output
    endpoint = read_endpoint(Settings().endpoint_path)
    assert endpoint is not None
    async with Client(endpoint.url, settings=Settings()) as client:

        async def ended() -> bool:
            return {state for state, count in count_by_state(await client.counters()).items() if count} <= TERMINAL

        # What the killed agents held is cancelled once they have had their time to obey.
        await wait_until(ended, "every task has its outcome", JOB_S)
        counters = await client.counters()
        states = count_by_state(counters)
        assert states[TaskState.CANCELLED] > 0
        assert sum(states.values()) == counters["submitted:normal"]
        assert not (await examine(client.connection.redis, client.connection.keys)).findings
    return job


async def test_the_next_run_cancels_what_a_killed_one_has_left(start_job: Start, few: Path, many: Path) -> None:
    """After kill -9 amid the job, the next run on that data says how many it cancels, and does its own tasks alone."""
    killed = start_job(many)
    await in_the_middle(MANY)
    left = [*below(killed.process.pid)]
    if server := EmbeddedServer.find(killed.data / "redis"):
        left.append(psutil.Process(server.pid))
    killed.process.kill()
    killed.process.wait()
    await wait_until(lambda: not any(one.is_running() for one in left), "all have ended", JOB_S)
    job = await _the_next_run_has_only_its_own(start_job, few)
    assert " open tasks of an interrupted run" in job.output


@pytest.mark.parametrize(
    "when", ["at_the_job", *(pytest.param(one, marks=pytest.mark.long) for one in ("at_rest", "at_its_end"))]
)
async def test_a_second_ctrl_c_leaves_no_process(start_job: Start, few: Path, many: Path, when: str) -> None:
    """It ends with 130, and no process that it has started runs on, nor a server."""
    job = start_job(few if when == "at_rest" else many)
    if when == "at_the_job":
        await in_the_middle(MANY)
    else:
        await wait_until(lambda: "follow the logs" in job.output, "the job is done", JOB_S)
    left = below(job.process.pid)
    server = EmbeddedServer.find(job.data / "redis")
    assert server is not None
    job.process.send_signal(signal.SIGINT)
    await wait_until(lambda: "Ctrl-C again" in job.output, "it stops", JOB_S)
    if when == "at_its_end":
        await wait_until(lambda: not job.find("text_stats", "content_digest"), "the agents have left", JOB_S)
    job.process.send_signal(signal.SIGINT)
    assert await job.ended() == 130
    assert not server.alive()
    assert not [one for one in left if runs(one.pid)]
    assert "Traceback" not in job.output


@pytest.mark.parametrize("sign", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
async def test_an_interrupted_run_cancels_what_it_has_submitted(
    start_job: Start, few: Path, many: Path, sign: signal.Signals
) -> None:
    """It says how far it was, ends with 130 and no traceback, and the next run finds nothing to cancel."""
    job = start_job(many)
    await in_the_middle(MANY)
    job.process.send_signal(sign)
    assert await job.ended() == 130
    assert f" of {MANY * 3:,} tasks were done" in job.output
    assert " open tasks" in job.output
    again = await _the_next_run_has_only_its_own(start_job, few)
    assert "open tasks of an interrupted run" not in again.output
    assert "Traceback" not in again.output
    assert "never retrieved" not in again.output
