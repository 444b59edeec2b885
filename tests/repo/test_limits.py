"""A test run with tests that hang: it ends, and names each of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.documents import ROOT

#: Seconds in place of minutes.
LIMITS = {
    "timeout": "1",
    "teardown_timeout": "1",
    "timeout_repeat": "1",
    "thread_timeout": "0.2",
    "hang_timeout": "4",
    "end_timeout": "4",
}
TESTS = {
    "teardown": """
        @pytest.fixture
        def sleeps():
            yield
            time.sleep(1_000)

        def test_teardown(sleeps):
            raise AssertionError("it fails")
    """,
    "cancel": """
        @pytest.fixture
        async def ignores_cancel():
            async def work():
                while True:
                    with suppress(asyncio.CancelledError):
                        await asyncio.sleep(1_000)

            task = asyncio.create_task(work())
            yield
            task.cancel()
            await task

        async def test_cancel(ignores_cancel):
            raise AssertionError("it fails")
    """,
    "swallow": """
        def test_swallow():
            with suppress(BaseException):
                time.sleep(1_000)
            time.sleep(1_000)
    """,
    "uvloop": """
        async def wait():
            await asyncio.Event().wait()

        def test_uvloop():
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(wait())
    """,
    "busy": """
        async def test_busy():
            async def work():
                while True:
                    await asyncio.sleep(0)

            busy = [asyncio.create_task(work()) for _ in range(100)]
            await asyncio.Event().wait()
    """,
    "deaf": """
        def test_deaf():
            while True:
                with suppress(BaseException):
                    time.sleep(1_000)
    """,
    "thread": """
        def test_thread():
            threading.Thread(target=threading.Event().wait, name="left").start()
    """,
    "passes": """
        def test_passes():
            pass
    """,
    "exit": """
        def test_exit():
            atexit.register(time.sleep, 1_000)
    """,
    "quiet": """
        def test_quiet():
            os.kill(os.getpid(), signal.SIGSTOP)
    """,
}


def run_tests(folder: Path, *names: str, processes: int, **limits: str) -> tuple[int, str]:
    """Run tests of ``TESTS`` in another pytest; its exit code and output."""
    (folder / "conftest.py").write_text('pytest_plugins = ["tests.limits"]\n')
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    imports = "import asyncio, atexit, os, pytest, signal, threading, time, uvloop\nfrom contextlib import suppress\n"
    for name in names:
        lines = [line.removeprefix(" " * 8) for line in TESTS[name].splitlines()]
        (folder / f"test_{name}.py").write_text(imports + "\n".join(lines))
    options = [option for name, value in (LIMITS | limits).items() for option in ("-o", f"{name}={value}")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:valkey",
        "-p",
        "no:cacheprovider",
        "-n",
        str(processes),
        *options,
    ]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    ended = subprocess.run(
        [*command, "--dist", "worksteal", str(folder)],
        cwd=folder,
        env=kept | {"CI": "true", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=90,
        check=False,
    )
    return ended.returncode, ended.stdout


def test_tests_that_hang_fail_and_the_others_run(tmp_path: Path) -> None:
    """A timeout ends a teardown after a failure, and repeats; a thread that stays is a failure; a deaf test crashes."""
    names = ("teardown", "cancel", "swallow", "uvloop", "busy", "deaf", "thread", "passes")
    code, output = run_tests(tmp_path, *names, processes=2)
    assert code == 1, output
    failed = {(name, when) for name, when in re.findall(r"FAILED test_(\w+)\.py::\S+ \((\w+)\)", output)}
    assert {name for name, when in failed if when == "call"} == {"teardown", "cancel", "swallow", "uvloop", "busy"}, (
        output
    )
    assert {("teardown", "teardown"), ("cancel", "teardown"), ("thread", "teardown")} <= failed, output
    assert "passes" not in {name for name, _ in failed}, output
    assert "+++ not within 5 s: test_deaf.py::test_deaf\n" in output
    assert "crashed while running 'test_deaf.py::test_deaf'" in output
    assert 'test_deaf.py", line' in output, "the stacks of all threads"
    assert "the test has left the thread 'left'" in output
    assert "in wait" in output.partition("the test has left the thread 'left'")[2], "its stack"


@pytest.mark.parametrize(("name", "what"), [("deaf", "test_deaf.py::test_deaf"), ("exit", "the exit of the process")])
def test_one_process_without_xdist_ends(tmp_path: Path, name: str, what: str) -> None:
    """It ends with the stacks, also at the exit of the interpreter."""
    code, output = run_tests(tmp_path, name, processes=0, end_timeout="8")
    assert code == 1, output
    assert f": {what}\n" in output
    assert "most recent call first" in output


def test_a_run_without_progress_ends(tmp_path: Path) -> None:
    """A process that does not run at all has no limit of its own; the run names its test."""
    code, output = run_tests(tmp_path, "quiet", processes=1, quiet_timeout="15")
    assert code == 1, output
    assert "+++ no test began or ended within 15 s; running: test_quiet.py::test_quiet\n" in output
    assert 'test_quiet.py", line' in output, "the stacks of its process"
