"""`coord demo`: the tour shows what it promises, and leaves nothing behind, also after Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest

from coord.demo import cell, tour
from coord.embedded import EmbeddedServer
from coord.errors import ServerUnavailable
from tests.commands import is_known, parse
from tests.repo.documents import split

#: A machine with much else to do is slow.
LIMIT_S = 300.0


def start(tmp_path: Path) -> subprocess.Popen[str]:
    """Start the demo, with its folders below this one."""
    environ = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1", "XDG_STATE_HOME": str(tmp_path / "state")}
    return subprocess.Popen(
        [sys.executable, "-m", "coord.cli", "demo", "--fast"],
        env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def left_behind(tmp_path: Path) -> list[object]:
    """Files and processes of the demo that are still there."""
    found: list[object] = list(tmp_path.glob("coord-demo-*"))
    for process in psutil.process_iter():
        try:
            if str(tmp_path) in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.timeout(400)
def test_the_tour(tmp_path: Path) -> None:
    """Each step is there, each command is real, and what it prints is what the step says."""
    process = start(tmp_path)
    out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, out
    assert "Traceback" not in out
    titles = re.findall(r"^\d\. .+$", out, re.MULTILINE)
    assert [title[0] for title in titles] == [str(number) for number in range(1, len(tour.STEPS) + 1)]
    typed = [line.removeprefix("$ ") for line in out.splitlines() if line.startswith("$ coord ")]
    assert len(typed) >= 12
    for line in typed:
        (words,) = [one.words for one in split(line) if is_known(one.words)]
        parse(words)
    assert all(agent_id in out for agent_id in cell.AGENT_IDS)
    assert re.search(r"why +the task has completed on ocr-[12] at attempt 1, chosen by least_connections", out)
    order = re.search(r"in this order: (.+)\.", out)
    assert order is not None
    names = order[1].split(", ")
    assert names.index("pressing") < names.index("relaxed")
    assert "no agent has the capability 'gpu'" in out
    assert re.search(r"\$ kill -9 \d+ +# ocr-[12]", out)
    assert re.search(r"attempt +2\n", out)
    assert "was lost" in out
    assert '{"done_by":"ocr-2","attempt":1}' in out  # the other one is drained
    assert "{'from': 'ocr-2', 'you_asked': {'question': 'are you there?'}}" in out
    assert re.search(r"ok +ledger +counters and records of \d+ tasks agree", out)
    assert out.endswith(f"\n{tour.NEXT_STEPS}")
    assert re.search(r"after `coord up`: .*http://127\.0\.0\.1:9001/ui\n", out), "the demo's own cell is gone"
    assert left_behind(tmp_path) == []


def wait_for_tour(process: subprocess.Popen[str]) -> None:
    """Read until the cell has started, and the first command is shown."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("$ coord agents list"):
            break


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.timeout(400)
def test_a_signal_ends_the_demo(tmp_path: Path, number: signal.Signals) -> None:
    """⚠ After SIGTERM and SIGHUP its folder was left. The cell ends in order, with the exit code of a shell."""
    process = start(tmp_path)
    wait_for_tour(process)
    process.send_signal(number)
    assert process.stdout is not None
    rest = process.stdout.read()
    process.stdout.close()
    assert process.wait(LIMIT_S) == 128 + number, rest
    assert "interrupted: the cell has ended, and its folder is removed" in rest
    assert "Traceback" not in rest
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("interrupt", [False, True])
@pytest.mark.timeout(400)
def test_a_cell_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: bool) -> None:
    """It is killed after a time, or at a second Ctrl-C; then neither its server nor its folder is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    demo = cell.DemoCell()
    with pytest.raises(KeyboardInterrupt if interrupt else ServerUnavailable) as raised, demo:  # noqa: PT012
        server = EmbeddedServer.find(demo.folder / "data")
        assert server is not None
        assert demo._up is not None
        if interrupt:
            monkeypatch.setattr(demo._up, "wait", interrupted_once(demo._up.wait))
        else:
            monkeypatch.setattr(cell, "END_S", 0)
    assert interrupt or "did not end within 0 s, so it was killed: " in str(raised.value)
    assert server is not None
    assert not server.alive()
    assert not demo.folder.exists()


def interrupted_once(wait: Callable[..., int]) -> Callable[..., int]:
    """A function that is interrupted at its first call."""
    calls: list[float | None] = []

    def wait_or_not(timeout: float | None = None) -> int:
        calls.append(timeout)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return wait(timeout)

    return wait_or_not


@pytest.mark.timeout(400)
def test_a_demo_that_is_killed(tmp_path: Path) -> None:
    """⚠ Its processes end by themselves: they watch a pipe to it. Its folder was left, and the next demo removes it."""
    process = start(tmp_path)
    wait_for_tour(process)
    process.kill()
    process.wait(LIMIT_S)
    assert process.stdout is not None
    process.stdout.close()
    deadline = time.monotonic() + LIMIT_S
    while any(isinstance(one, psutil.Process) for one in left_behind(tmp_path)):
        assert time.monotonic() < deadline, left_behind(tmp_path)
        time.sleep(0.2)
    (left,) = tmp_path.glob("coord-demo-*")
    following = start(tmp_path)
    wait_for_tour(following)
    assert not left.exists()
    following.terminate()
    following.communicate(timeout=LIMIT_S)
    assert left_behind(tmp_path) == []


def test_only_what_a_killed_demo_has_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server is stopped. A demo that runs keeps its folder, and a folder without owners may be about to be one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    gone = cell.Owner(ended.pid, psutil.Process(ended.pid).create_time())
    ended.wait(LIMIT_S)
    mine = cell.Owner.of(os.getpid())
    owners = {
        "left": cell.Owners(gone, up=gone),
        "early": cell.Owners(gone),
        "reused": cell.Owners(cell.Owner(os.getpid(), 1.0)),
        "runs": cell.Owners(mine, up=gone),
    }
    for name, found in owners.items():
        (tmp_path / f"coord-demo-{name}").mkdir()
        (tmp_path / f"coord-demo-{name}" / cell.OWNERS).write_bytes(msgspec.json.encode(found))
    (tmp_path / "coord-demo-new").mkdir()
    (tmp_path / "coord-demo-link").symlink_to(tmp_path / "coord-demo-left")
    server = EmbeddedServer.start(tmp_path / "coord-demo-left" / "data")
    cell.remove_left_behind()
    assert not server.alive()
    assert {path.name for path in tmp_path.iterdir()} == {"coord-demo-runs", "coord-demo-new", "coord-demo-link"}


def test_a_coord_up_that_does_not_end_after_its_demo_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time; then the folder is removed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cell, "LEFT_S", 0)
    up = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    gone = cell.Owner(up.pid, 1.0)  # another process that had the same pid
    folder = tmp_path / "coord-demo-stuck"
    folder.mkdir()
    (folder / cell.OWNERS).write_bytes(msgspec.json.encode(cell.Owners(gone, up=cell.Owner.of(up.pid))))
    cell.remove_left_behind()
    assert up.wait(LIMIT_S) == -signal.SIGKILL
    assert not folder.exists()
