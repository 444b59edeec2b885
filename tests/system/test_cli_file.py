"""``coord tasks submit --file``: a thousand lines at once, a wrong one found before any is submitted, and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coord import queries
from coord.cli.bulk import Ended, Summary
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.models.explanations import WaitingReason
from coord.models.tasks import TaskState
from tests.processes import started
from tests.system.live_cell import CommandResult, LiveCell, command_runner, live_cell
from tests.waiting import wait_until

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")

Coord = Callable[..., CommandResult]


@pytest.fixture(scope="module")
def live(server: EmbeddedServer) -> Iterator[LiveCell]:
    """One cell for all tests of this file."""
    with live_cell(server.url, Settings(namespace="clifile")) as cell:
        yield cell


@pytest.fixture
def coord(live: LiveCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Coord:
    """Runs ``coord`` on the cell."""
    return command_runner(live, monkeypatch, capsys)


def written(path: Path, *lines: str) -> str:
    """A file of these lines."""
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def submitted(live: LiveCell) -> int:
    """How many tasks the cell has ever taken."""
    return queries.count_submitted(live.do(live.client.counters()))


def test_a_thousand_tasks(coord: Coord, live: LiveCell, tmp_path: Path) -> None:
    """Each has its outcome in the results, with its line; the summary counts them; a failed one makes it end with 1."""
    lines = [
        '{"task_type": "%s", "payload": {"n": %d}}' % ("boom" if n % 100 == 0 else "echo", n)  # noqa: UP031 -- JSON's braces
        for n in range(1, 1001)
    ]
    before = submitted(live)
    results = tmp_path / "results.jsonl"
    output = coord(
        "tasks",
        "submit",
        "--file",
        written(tmp_path / "tasks.jsonl", *lines),
        "--wait",
        "--results",
        str(results),
        "--json",
    )
    assert output.code == 1
    summary = msgspec.json.decode(output.out, type=Summary)
    assert (summary.lines, summary.submitted, summary.states, summary.open) == (
        1000,
        1000,
        {"completed": 990, "failed": 10},
        0,
    )
    assert summary.latency is not None
    assert summary.latency.p50 <= summary.latency.p95 <= summary.latency.longest <= summary.seconds
    assert submitted(live) - before == 1000

    decoder = msgspec.json.Decoder(Ended)
    ended = {one.line: one for one in map(decoder.decode, results.read_bytes().splitlines())}
    assert sorted(ended) == list(range(1, 1001))
    for number, one in ended.items():
        if number % 100 == 0:
            assert (one.state, msgspec.json.decode(one.error)["code"]) == ("failed", "it_broke")
        else:
            assert (one.state, msgspec.json.decode(one.result)) == ("completed", {"n": number})
    assert output.err.count("line ") == 5
    assert "failed: it_broke: by design" in output.err
    assert len([line for line in output.err.splitlines() if not line.startswith("waiting: ")]) == 6


def test_waiting_says_how_many_wait_for_which_reason(
    coord: Coord, live: LiveCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """⚠ Only a single task said so. One line on standard error, again only after it has changed."""
    monkeypatch.setattr("coord.cli.explain.REASON_AFTER_S", 0.1)
    monkeypatch.setattr("coord.cli.explain.REASON_AT_MOST_S", 0.1)
    get_reasons, reads = queries.get_task_reasons, Counter[str]()

    async def read(*arguments: Any) -> dict[str, WaitingReason | None]:
        found = await get_reasons(*arguments)
        reads[str(found)] += 1
        if reads[str(found)] == 3:  # often enough to be repeated, if it were
            parked = [task_id for task_id, reason in found.items() if reason is WaitingReason.NO_CAPABILITY]
            for task_id in parked[:2] or [*found]:
                live.do(live.client.cancel(task_id))
        return found

    monkeypatch.setattr(queries, "get_task_reasons", read)
    path = written(
        tmp_path / "t.jsonl",
        *(f'{{"task_type": "nosuch", "task_id": "unable-{n}"}}' for n in range(3)),
        '{"task_type": "echo"}',
        '{"task_type": "nosuch", "task_id": "later-1", "delay": 3600}',
        '{"task_type": "gate", "task_id": "held-1", "payload": {"gate": "reasons"}}',
    )
    output = coord("tasks", "submit", "--file", path, "--wait", "--json")
    summary = msgspec.json.decode(output.out, type=Summary)
    assert (summary.states, summary.open) == ({"completed": 1, "cancelled": 5}, 0)
    lines = [line for line in output.err.splitlines() if line.startswith("waiting: ")]
    assert [line for line in lines if "accepted" not in line and "next_in_line" not in line] == [
        "waiting: 4 tasks: 3 no_capability, 1 scheduled; `coord tasks explain unable-0` shows more",
        "waiting: 2 tasks: 1 no_capability, 1 scheduled; `coord tasks explain unable-2` shows more",
        "waiting: 1 task: 1 scheduled; `coord tasks explain later-1` shows more",
    ]


def test_the_summary_as_text(coord: Coord, tmp_path: Path) -> None:
    """What the command line says holds for lines that do not; empty lines are none."""
    path = written(tmp_path / "t.jsonl", "{}", "", '{"payload": 1, "priority": "urgent"}')
    output = coord("tasks", "submit", "echo", "--file", path, "--wait", "--priority", "low")
    assert output.code == 0
    shown = dict(line.split(maxsplit=1) for line in output.out.splitlines())
    assert (shown["tasks"], shown["completed"]) == ("2", "2")
    assert "per second" in shown["took"]
    assert shown["latency"].startswith("p50 ")


def test_a_terminal_shows_a_bar(live: LiveCell, tmp_path: Path) -> None:
    """On standard error, with what went wrong above it; the summary on standard output is as it ever is."""
    path = written(tmp_path / "t.jsonl", *['{"task_type": "boom"}'] * 2)
    terminal, end = pty.openpty()
    environ = os.environ | live.environ | {"TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-m", "coord.cli", "tasks", "submit", "--file", path, "--wait", "--json"]
    with started(command, env=environ, stdin=end, stdout=subprocess.PIPE, stderr=end) as process:
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
            while more := os.read(terminal, 65_536):
                shown += more
        os.close(terminal)
        assert process.stdout is not None
        assert msgspec.json.decode(process.stdout.read(), type=Summary).states == {"failed": 2}
        assert process.wait(60) == 1
    assert b"ended" in shown
    assert re.search(rb"[012]/2", shown)
    assert b"failed: it_broke: by design" in shown


def test_without_waiting_it_ends_when_all_are_taken(coord: Coord, tmp_path: Path) -> None:
    """An id that was used for something else is refused, and named by its line."""
    coord("tasks", "submit", "nobody", "--id", "taken")
    path = written(
        tmp_path / "t.jsonl",
        '{"task_type": "echo"}',
        '{"task_type": "echo", "task_id": "taken", "payload": {"other": 1}}',
    )
    output = coord("tasks", "submit", "--file", path, "--json")
    assert output.code == 1
    summary = msgspec.json.decode(output.out, type=Summary)
    assert (summary.states, summary.latency) == ({"accepted": 1, "refused": 1}, None)
    assert output.err.startswith("line 2 (task taken) ")
    assert "used before with other content" in output.err or "submitted before with other content" in output.err
    coord("tasks", "cancel", "taken")


def test_nobody_takes_them(coord: Coord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They wait for a distributor: 3."""
    monkeypatch.setattr("coord.cli.bulk.ACCEPT_S", 0.05)
    path = written(tmp_path / "t.jsonl", *['{"task_type": "echo"}'] * 3)
    output = coord("tasks", "submit", "--file", path, "--json", "--namespace", "deserted-file")
    assert output.code == 3
    summary = msgspec.json.decode(output.out, type=Summary)
    assert (summary.submitted, summary.open) == (3, 3)


def test_the_time_to_wait_for_a_file_is_over(coord: Coord, live: LiveCell, tmp_path: Path) -> None:
    """What goes on is counted: 3, and no failure."""
    path = written(tmp_path / "t.jsonl", *['{"task_type": "gate", "payload": {"gate": "slow"}}'] * 2)
    output = coord("tasks", "submit", "--file", path, "--wait", "--wait-timeout", "0.2", "--json")
    assert output.code == 3
    assert "2 submitted tasks go on, 0 were not submitted" in output.err
    summary = msgspec.json.decode(output.out, type=Summary)
    assert (summary.states, summary.open) == ({}, 2)
    live.open_gate("slow")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 3: Input data was truncated"),
        ("[]", "line 3: Expected 'object', got 'array'"),
        ('{"payload": 1}', "line 3: no task_type"),
        ('{"task_type": "echo", "tymeout": 3}', "line 3: unknown field 'tymeout'; did you mean 'timeout'?"),
        (
            '{"task_type": "echo", "timeout": "x"}',
            "line 3: timeout must be a time such as 1.5 (seconds), 30s, 5m, 2h or 7d, got 'x'",
        ),
        ('{"task_type": "echo", "timeout": -1}', "line 3: timeout must be above 0, got -1.0"),
        ('{"task_type": "echo", "priority": "asap"}', "line 3: priority: expected one of urgent"),
        ('{"task_type": "echo", "task_id": "a b"}', "line 3: task_id must be 1 to 128 characters"),
        ('{"task_type": "echo", "deadline": "soon"}', "line 3: deadline must be a date and time such as"),
        ('{"task_type": "echo", "payload": "\xff"}', "line 3: "),
        ('{"task_type": "echo", "payload": "%s"}' % ("x" * 1_100_000), "line 3: "),
        ("x" * 1_200_000, "line 3: longer than 1048576 bytes"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_submitted(
    coord: Coord, live: LiveCell, tmp_path: Path, line: str, says: str
) -> None:
    """Although the lines before it would do."""
    before = submitted(live)
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"task_type": "echo"}\n\n' + line.encode("latin-1") + b'\n{"task_type": "echo"}\n')
    output = coord("tasks", "submit", "--file", str(path))
    assert (output.code, output.out) == (2, "")
    assert f"coord: {path} line 3: " in output.err
    assert says in output.err
    assert output.err.endswith("nothing was submitted\n")
    assert submitted(live) == before


def test_ctrl_c_says_what_goes_on(live: LiveCell, tmp_path: Path) -> None:
    """The tasks do; what has ended is in the results already; 130. The tasks come through standard input here."""
    lines = ['{"task_type": "echo"}', *['{"task_type": "gate", "payload": {"gate": "ctrl-c"}}'] * 3]
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "coord.cli", "tasks", "submit", "--file", "-", "--wait", "--results", str(results)]

    async def counted(state: TaskState, wanted: int) -> None:
        async def there() -> bool:
            return queries.count_by_state(await live.client.counters())[state] == wanted

        await wait_until(there, f"{wanted} are {state}", 60)

    completed = queries.count_by_state(live.do(live.client.counters()))[TaskState.COMPLETED]
    with started(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | live.environ,
        text=True,
    ) as process:
        assert process.stdin is not None
        process.stdin.write("\n".join(lines))
        process.stdin.close()
        process.stdin = None
        live.do(counted(TaskState.RUNNING, 3))
        live.do(counted(TaskState.COMPLETED, completed + 1))
        live.do(wait_until(results.exists, "the results file is there", 60))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.startswith("interrupted: ")
    assert " submitted tasks go on, 0 were not submitted" in err
    states = Counter(msgspec.json.decode(line, type=Ended).state for line in results.read_bytes().splitlines())
    assert set(states) <= {"completed"}
    live.open_gate("ctrl-c")
    live.do(counted(TaskState.RUNNING, 0))
