"""`coord top` on a real terminal: tmux draws what a person would see."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from coord.embedded import EmbeddedServer
from tests.living import Living, living

#: A machine with much else to do is slow.
LIMIT_S = 60.0


@pytest.fixture
def tmux() -> Iterator[Callable[..., str]]:
    """Runs commands of a tmux server of this test's own."""
    program = shutil.which("tmux")
    if program is None:
        reason = "no tmux on PATH; apt-get install tmux"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    socket = f"coord-{uuid.uuid4().hex[:8]}"

    def run(*arguments: str) -> str:
        command = [program, "-L", socket, "-f", "/dev/null", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout

    yield run
    run("kill-server")


@pytest.fixture(scope="module")
def lives(server: EmbeddedServer) -> Iterator[Living]:
    """A cell with an agent."""
    with living(server.url) as running:
        running.agent("echo-1")
        yield running


def test_a_person_looks_and_leaves(tmux: Callable[..., str], lives: Living) -> None:
    """The screen of 80x24, another pane, and `q`: the shell is there again, with exit code 0."""
    command = shlex.join([sys.executable, "-m", "coord.cli", "top", *lives.options])
    tmux("new-session", "-d", "-s", "t", "-x", "80", "-y", "24", f"{command}; echo ended with $?; sleep 60")

    def until(wanted: str) -> str:
        deadline = time.monotonic() + LIMIT_S
        while wanted not in (screen := tmux("capture-pane", "-p", "-t", "t")):
            assert time.monotonic() < deadline, screen
            time.sleep(0.2)
        return screen

    for text in ("q Quit", "connected", "echo-1"):  # the terminal is drawn piece by piece
        until(text)
    until("active")
    tmux("send-keys", "-t", "t", "4")
    until("registry-1")
    tmux("send-keys", "-t", "t", "q")
    until("ended with 0")
