"""Closed, full and foreign standard streams: one line where there is something to say, and never a traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from coord.standard_streams import json_text
from coord.up.log import JsonLog

ROOT = Path(__file__).parents[2]
COORD = f"{sys.executable} -m coord.cli"
WORKER = f"{sys.executable} -P -m workers registry"
NO_SPACE = "coord: cannot write the output: No space left on device\n"


def shell(line: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell; what it prints is what was not redirected."""
    return subprocess.run(
        ["/bin/sh", "-c", line],
        env=os.environ | {"PYTHONPATH": str(ROOT), "COORD_REDIS_URL": "redis://127.0.0.1:1/"} | environ,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        (f"{COORD} version >&-", 0, "", ""),
        (f"{COORD} version >/dev/full", 2, "", NO_SPACE),
        (f"{COORD} --help >/dev/full", 2, "", NO_SPACE),
        (f"{COORD} version >/dev/full 2>/dev/full", 2, "", ""),
        (f"{COORD} tasks submit x '[1' 2>&-", 2, "", ""),
        (f"{COORD} tasks submit x '[1' 2>/dev/full", 2, "", ""),
        (f"{COORD} --no-such 2>/dev/full", 2, "", ""),
        (f"{COORD} gateway --port 0 --watch-stdin <&- >&- 2>&-", 0, "", ""),
        (f"{COORD} gateway --port 0 --watch-stdin <&- 2>/dev/full", 0, "", ""),
        (f"{WORKER} --watch-stdin <&- >&- 2>&-", 0, "", ""),
        (f"{WORKER} --watch-stdin </dev/null", 0, "", ""),
        (f"COORD_BATCH=0 {WORKER} 2>/dev/full", 2, "", ""),
        (f"COORD_BATCH=0 {sys.executable} -m workers.presence registry 2>/dev/full", 1, "", ""),
        (f"{sys.executable} -P -m examples.file_survey /no/such 2>/dev/full", 2, "", ""),
    ],
)
def test_a_stream_that_cannot_be_used(line: str, code: int, out: str, err: str) -> None:
    """The exit code is the one of the command; the error is written where that is possible."""
    done = shell(line)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_a_closed_input_is_an_empty_one() -> None:
    """One line says that it is no payload."""
    done = shell(f"{COORD} tasks submit x - <&-")
    assert done.returncode == 2
    assert done.stderr.startswith("coord: standard input is not JSON")
    assert done.stderr.count("\n") == 1


def test_what_is_opened_next_does_not_become_an_output(tmp_path: Path) -> None:
    """A program's file is not where an agent's output goes, though it would get the descriptor; it ends in order."""
    program = tmp_path / "agent.py"
    program.write_text(
        "import os, signal, threading, time\n"
        "from coord import Agent\n"
        "def stop():\n"
        "    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL: time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "agent = Agent('a', url='redis://127.0.0.1:1/')\n"
        "threading.Thread(target=stop).start()\n"
        "agent.run()\n"
        "print('to nowhere')\n"
        "places = [os.readlink(f'/proc/self/fd/{n}') for n in range(3)]\n"
        f"open({str(tmp_path / 'kept')!r}, 'w').write(' '.join(places))\n"
    )
    done = shell(f"{sys.executable} {program} <&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "kept").read_text() == "/dev/null /dev/null /dev/null"


def test_text_that_the_output_cannot_have_is_escaped() -> None:
    """In an error as in a help text; the encoding is what a user's environment says."""
    done = shell(f"{COORD} tasks submit x '[1' --label é 2>&1", PYTHONIOENCODING="ascii")
    assert done.stdout == "coord: --label must be NAME=VALUE, such as --label zone=eu, got '\\xe9'\n"
    done = shell(f"{COORD} tasks submit --help", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "coord tasks submit ocr" in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_json_in_every_encoding(encoding: str) -> None:
    """Escapes stand for what is not ASCII, unless the output is UTF-8, in which JSON is written as it is."""
    value = {"ä": "\u00e9 \U0001f600 \u2028"}
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    text = json_text(json.dumps(value, ensure_ascii=False).encode(), out)
    assert json.loads(text) == value
    assert text.isascii() == (encoding != "utf-8")
    log = JsonLog(out, lambda: None)
    log.message("up.test", "é\U0001f600")
    written = out.buffer.getvalue()
    assert json.loads(written)["message"] == "é\U0001f600"
    assert written.isascii() == (encoding != "utf-8")


def test_the_log_of_a_process_is_json_in_every_encoding() -> None:
    """`coord up` reads the lines of its processes as UTF-8, whatever their environment says."""
    code = (
        "from coord import log_setup, logs; from coord.config import load\n"
        "log_setup.configure(load(log_format='json'), service='s')\n"
        "logs.get_logger().info('e', text='\u00e9\U0001f600')"
    )
    for encoding in ("ascii", "latin-1"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=True,
        )
        assert json.loads(done.stderr)["text"] == "\u00e9\U0001f600"
