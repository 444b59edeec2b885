"""``coord tasks`` on a cell at work: what is printed for people and for programs, and what the exit code says."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from coord import Client, queries
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.models.explanations import Explanation, WaitingCounts, WaitingReason
from coord.models.tasks import Priority, Requirements, TaskRecord, TaskState
from tests.processes import started
from tests.system.live_cell import CommandResult, LiveCell, command_runner, live_cell
from tests.waiting import wait_until

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")

Coord = Callable[..., CommandResult]


@pytest.fixture(scope="module")
def live(server: EmbeddedServer) -> Iterator[LiveCell]:
    """One cell for all tests of this file."""
    with live_cell(server.url, Settings(namespace="clitasks")) as cell:
        yield cell


@pytest.fixture
def coord(live: LiveCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Coord:
    """Runs ``coord`` on the cell."""
    return command_runner(live, monkeypatch, capsys)


def record_in(output: CommandResult) -> TaskRecord:
    """The record that a command printed as JSON."""
    return msgspec.json.decode(output.out, type=TaskRecord)


def wait_for_state(live: LiveCell, task_id: str, state: TaskState) -> TaskRecord:
    """Wait until a task is in a state; its record then."""

    async def found() -> TaskRecord | None:
        record = await queries.get_task(live.client.connection.redis, live.keys, task_id)
        return record if record is not None and record.state is state else None

    async def wait() -> TaskRecord:
        record = await wait_until(found, f"{task_id} is {state}", 60)
        assert record is not None
        return record

    return live.do(wait())


def test_a_submitted_task_is_told_by_its_id_alone(coord: Coord, live: LiveCell) -> None:
    """So that a script may keep it; the coordinator has it then."""
    output = coord("tasks", "submit", "echo", '{"n": 1}')
    assert (output.code, output.err) == (0, "")
    record = record_in(coord("tasks", "show", output.out.strip(), "--json"))
    assert (record.task_type, record.payload) == ("echo", {"n": 1})
    again = coord("tasks", "submit", "echo", "--id", "named", "--json")
    assert msgspec.json.decode(again.out)["accepted"] is True
    assert coord("tasks", "submit", "echo", "--id", "named").out == "named\n"


def test_waiting_prints_the_result(coord: Coord, monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON, whatever it is; with --json the whole record. The payload may come from standard input."""
    assert coord("tasks", "submit", "echo", '"text"', "--wait") == CommandResult(0, '"text"\n', "")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'[1, {"a": null}]\n')))
    record = record_in(coord("tasks", "submit", "echo", "-", "--wait", "--json"))
    assert (record.state, record.result) == (TaskState.COMPLETED, [1, {"a": None}])


def test_a_task_that_fails_ends_with_1(coord: Coord) -> None:
    """Its code and message stand on standard error; with --json in the record."""
    output = coord("tasks", "submit", "boom", "--wait")
    assert (output.code, output.out) == (1, "")
    assert "failed: it_broke: by design" in output.err
    output = coord("tasks", "submit", "boom", "--wait", "--json")
    assert output.code == 1
    error = record_in(output).error
    assert error is not None
    assert (error.code, error.message) == ("it_broke", "by design")


def test_time_to_wait_is_over(coord: Coord, live: LiveCell) -> None:
    """That is 3, and no failure: the task goes on, and the next step is named."""
    output = coord("tasks", "submit", "gate", '{"gate": "late"}', "--id", "late", "--wait", "--wait-timeout", "0.2")
    assert (output.code, output.out) == (3, "")
    assert "coord tasks watch late" in output.err
    output = coord("tasks", "watch", "late", "--timeout", "0.2")
    assert output.code == 3
    assert "they go on" in output.err
    live.open_gate("late")
    wait_for_state(live, "late", TaskState.COMPLETED)


def test_waiting_says_why_the_task_waits(coord: Coord, live: LiveCell, monkeypatch: pytest.MonkeyPatch) -> None:
    """On standard error: once for each reason, however often it is read."""
    monkeypatch.setattr("coord.cli.explain.REASON_AFTER_S", 0.1)
    monkeypatch.setattr("coord.cli.explain.REASON_AT_MOST_S", 0.1)
    explain, reads = Client.explain, 0

    async def explained(client: Client, task_id: str) -> Explanation:
        nonlocal reads
        found = await explain(client, task_id)
        if found.waiting is not None and found.waiting.reason is WaitingReason.NO_CAPABILITY:
            reads += 1
            if reads == 3:
                await client.cancel(task_id)
        return found

    monkeypatch.setattr(Client, "explain", explained)
    output = coord("tasks", "submit", "nosuch", "--id", "unable", "--delay", "3s", "--wait", "--json")
    assert (output.code, record_in(output).state) == (1, TaskState.CANCELLED)
    step = "`coord tasks explain unable` shows more"
    lines = [line for line in output.err.splitlines() if "no distributor" not in line]
    assert lines == [
        f"waiting: its run time is not reached; {step}",
        f"waiting: no agent has the capability 'nosuch'; {step}",
    ]
    wait_for_state(live, "unable", TaskState.CANCELLED)


def test_every_option_reaches_the_record(coord: Coord) -> None:
    """What an agent must have, when it runs, how often it is tried."""
    output = coord(
        "tasks", "submit", "plan", "{}", "--id", "planned", "--priority", "high", "--capability", "a", "--capability",
        "b", "--agent-type", "worker", "--service", "s", "--tag", "t", "--label", "zone=eu", "--agent", "someone",
        "--min-health", "0.9", "--strategy", "random", "--timeout", "60", "--delay", "3600", "--deadline", "2h",
        "--max-attempts", "5", "--backoff", "2",
    )  # fmt: skip
    assert output[:2] == (0, "planned\n")
    record = record_in(coord("tasks", "show", "planned", "--json"))
    assert (record.state, record.priority) == (TaskState.SCHEDULED, Priority.HIGH)
    assert record.run_at is not None
    assert record.deadline is not None
    assert round((record.run_at - record.submitted_at) / 60_000) == 60
    assert round((record.deadline - record.submitted_at) / 60_000) == 120
    text = coord("tasks", "show", "planned").out
    assert "scheduled" in text
    assert coord("tasks", "cancel", "planned").code == 0


def test_an_empty_list_of_tasks_says_so(coord: Coord) -> None:
    """On standard error, with the query as it was understood; JSON has an empty list."""
    output = coord("tasks", "list", "id:nosuch*", "--state", "failed")
    assert output == CommandResult(0, "", "no task matches `id:nosuch* state:failed`\n")
    output = coord("tasks", "list", "id:nosuch*", "--json")
    assert (msgspec.json.decode(output.out)["items"], output.err) == ([], "")


def test_a_cell_without_tasks_and_operators_says_so(coord: Coord) -> None:
    """Also that the namespace is empty, which may be a typo."""
    output = coord("tasks", "list", "--namespace", "clitasks-none")
    assert (output.code, output.out) == (0, "")
    assert output.err.splitlines()[-1] == "no task exists"
    output = coord("audit", "--namespace", "clitasks-none")
    assert (output.code, output.out) == (0, "")
    assert output.err.splitlines()[-1] == "no operator action has been recorded"
    output = coord("audit", "--namespace", "clitasks-none", "--by", "ann@*")
    assert output.err.splitlines()[-1] == "no recorded operator action matches the options"
    assert msgspec.json.decode(coord("audit", "--namespace", "clitasks-none", "--json").out)["items"] == []


def test_what_waits_is_shown_by_pool(coord: Coord) -> None:
    """``coord queues``: what an agent must have, how many wait, and which is next."""
    for name in ("w1", "w2"):
        coord("tasks", "submit", "nobody", "--id", name, "--priority", "low", "--tag", "gpu", "--label", "zone=eu")
    found = msgspec.json.decode(coord("queues", "--json").out, type=queries.Backlog)
    (pool,) = [one for one in found.pools if one.definition.task_type == "nobody"]
    wanted = Requirements(capabilities=("nobody",), tags=("gpu",), labels={"zone": "eu"})
    assert (pool.length, pool.head, pool.head_priority, pool.definition.requirements) == (2, "w1", Priority.LOW, wanted)
    assert next(one.queued for one in found.priorities if one.priority is Priority.LOW) == 2
    lines = coord("queues").out.splitlines()
    assert [line.split() for line in lines if line.startswith("low ")] == [["low", "0", "0", "2", "0", "0"]]
    (line,) = [line for line in lines if "nobody" in line]
    assert "capabilities nobody; tags gpu; labels zone=eu" in line
    for name in ("w1", "w2"):
        coord("tasks", "cancel", name)
    assert "no tasks are waiting" in coord("queues").out


def test_waiting_tasks_are_counted_by_reason(coord: Coord, live: LiveCell) -> None:
    """``coord queues --reasons``, for people and for programs; the sum is the number of tasks that wait."""
    for name in ("c1", "c2", "c3"):
        coord("tasks", "submit", "nobody", "--id", name)

    async def are_counted() -> bool:
        found = await live.client.waiting_counts()
        return found is not None and found.reasons[WaitingReason.NO_CAPABILITY] == 3

    live.do(wait_until(are_counted, "the three are counted", 50))
    found = msgspec.json.decode(coord("queues", "--reasons", "--json").out, type=WaitingCounts)
    assert found.reasons[WaitingReason.NO_CAPABILITY] == 3
    assert sum(found.reasons.values()) + found.uncounted == found.total
    rows = dict(rows_of(coord("queues", "--reasons").out)[:-1])
    assert rows["no_capability"] == "3"
    assert int(rows["total"]) >= 3
    for name in ("c1", "c2", "c3"):
        coord("tasks", "cancel", name)


def test_an_expected_duration(coord: Coord, tmp_path: Path) -> None:
    """As an option, and as a field of a line; one that does not fit is named."""
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"task_id": "sized-2", "expected_ms": 12.5}\n{"task_id": "sized-3"}\n')
    coord("tasks", "submit", "nobody", "--id", "sized-1", "--expected-ms", "1500")
    coord("tasks", "submit", "nobody", "--file", str(file), "--expected-ms", "9000")
    names = ("sized-1", "sized-2", "sized-3")
    found = [record_in(coord("tasks", "show", name, "--json")) for name in names]
    assert [one.expected_ms for one in found] == [1_500, 12.5, 9_000]
    assert "expected to take about 1.0 s" in coord("queues").out
    output = coord("tasks", "submit", "nobody", "--expected-ms", "0")
    assert (output.code, output.err) == (2, "coord: --expected-ms must be above 0, got 0\n")
    for name in names:
        coord("tasks", "cancel", name)


def test_a_task_has_a_place_in_a_trace(coord: Coord, live: LiveCell, tmp_path: Path) -> None:
    """From the option, or from its line; a malformed one is named as it was typed."""
    one, other = (f"00-{digit * 32}-{digit * 16}-01" for digit in "ab")
    file = tmp_path / "tasks.jsonl"
    file.write_text(f'{{"task_id": "traced-2", "traceparent": "{other}"}}\n{{"task_id": "traced-3"}}\n')
    coord("tasks", "submit", "nobody", "--id", "traced-1", "--traceparent", one)
    coord("tasks", "submit", "nobody", "--file", str(file), "--traceparent", one)
    found = [live.do(live.client.task(f"traced-{number}")) for number in (1, 2, 3)]
    assert [record.traceparent for record in found] == [one, other, one]
    output = coord("tasks", "submit", "nobody", "--traceparent", "x")
    assert (output.code, output.out) == (2, "")
    assert output.err.startswith("coord: --traceparent must be version-trace_id-parent_id-flags")
    for number in (1, 2, 3):
        coord("tasks", "cancel", f"traced-{number}")


def rows_of(text: str) -> list[list[str]]:
    """The columns of a table, or of fields; the header is the first row."""
    return [re.split(r"  +", line) for line in text.splitlines()]


def test_why_a_task_waits(coord: Coord) -> None:
    """The reason, the counts, the nearest agent and the position, for a person; exit code 4."""
    for name in ("why-1", "why-2"):
        coord("tasks", "submit", "nobody", "--id", name, "--priority", "low", "--label", "zone=eu")
    output = coord("tasks", "explain", "why-2")
    assert output.code == 4
    fields, rejected, nearest = output.out.split("\n\n")
    shown = {name: value for name, value, *_ in rows_of(fields)}
    assert shown.pop("pool")
    assert shown == {
        "task": "why-2",
        "state": "queued",
        "reason": "no_capability",
        "why": "no agent has the capability 'nobody'",
        "position": "2 of 2",
        "starts": "not known",
        "agents": "1 examined, 0 may get the task now",
    }
    header, row = rows_of(rejected)
    assert header == ["rejected for", "agents", "meaning"]
    assert row == ["no_capability", "1", "the agent lacks a capability"]
    assert rows_of(nearest) == [
        ["nearest agent", "reason", "fits except for"],
        ["cli-agent", "no_capability", "capability 'nobody', label 'zone=eu'"],
    ]
    found = msgspec.json.decode(coord("tasks", "explain", "why-2", "--json").out, type=Explanation)
    assert found.waiting is not None
    assert (found.waiting.reason, found.waiting.position, found.waiting.ahead) == (WaitingReason.NO_CAPABILITY, 2, 1)
    assert ["reason", "no_capability: no agent has the capability 'nobody'"] in rows_of(
        coord("tasks", "show", "why-1").out
    )
    (pool,) = msgspec.json.decode(coord("pools", "--json").out)["items"]
    assert (pool["reason"], pool["head"], pool["length"]) == ("no_capability", "why-1", 2)
    header, row = rows_of(coord("pools").out)
    assert row[header.index("reason")] == "no_capability"
    assert [cells[:4] for cells in rows_of(coord("queues").out)[-2:]] == [header[:4], row[:4]]
    coord("tasks", "cancel", "why-1", "why-2")
    assert coord("pools").out == "no tasks are waiting\n"


def test_why_a_task_is_scheduled(coord: Coord) -> None:
    """It waits for its time, which is shown with how far it is away."""
    coord("tasks", "submit", "echo", "--id", "why-later", "--delay", "1h")
    output = coord("tasks", "explain", "why-later")
    assert output.code == 4
    assert re.search(r"^runs at +\S+ \S+ \(in 59 min \d+ s\)$", output.out, re.MULTILINE)
    assert "reason   scheduled\nwhy      its run time is not reached\n" in output.out
    assert coord("tasks", "cancel", "why-later").code == 0


def test_why_a_task_went_to_its_agent(coord: Coord, live: LiveCell) -> None:
    """While the agent has it, and when it has ended; exit code 0."""
    coord("tasks", "submit", "gate", '{"gate": "why"}', "--id", "why-here")
    wait_for_state(live, "why-here", TaskState.RUNNING)
    chosen = "on cli-agent at attempt 1, chosen by least_connections among 1 eligible agent"
    output = coord("tasks", "explain", "why-here")
    assert (output.code, output.err) == (0, "")
    shown = {name: value for name, value, *_ in rows_of(output.out)}
    assert shown.pop("assigned")
    assert shown.pop("agent's term")
    assert shown == {
        "task": "why-here",
        "state": "running",
        "why": f"the task is running {chosen}",
        "agent": "cli-agent",
        "attempt": "1",
        "strategy": "least_connections",
        "eligible agents": "1",
    }
    live.open_gate("why")
    wait_for_state(live, "why-here", TaskState.COMPLETED)
    output = coord("tasks", "explain", "why-here", "--json")
    found = msgspec.json.decode(output.out, type=Explanation)
    assert (output.code, found.summary, found.waiting) == (0, f"the task has completed {chosen}", None)


def test_lists(coord: Coord, live: LiveCell) -> None:
    """By state, type and agent; ids whole; the next page is a command."""
    for n in range(3):
        coord("tasks", "submit", "echo", "--id", f"{'x' * 100}-{n}", "--wait")
    output = coord("tasks", "list", "--state", "completed", "--type", "echo", "--agent", "cli-agent", "--limit", "2")
    header, *rows = output.out.splitlines()
    assert header.split()[:4] == ["task", "type", "state", "priority"]
    assert [row.split()[0] for row in rows] == [f"{'x' * 100}-2", f"{'x' * 100}-1"]
    cursor = output.err.split()[-1]
    page = msgspec.json.decode(
        coord(
            "tasks", "list", "--state", "completed", "--type", "echo", "--limit", "1", "--cursor", cursor, "--json"
        ).out
    )
    assert [one["task_id"] for one in page["items"]] == [f"{'x' * 100}-0"]
    empty = coord("tasks", "list", "--agent", "ghost", "--json")
    assert msgspec.json.decode(empty.out) == {"items": [], "next": None, "total": 0}
    output = coord("tasks", "list", "--cursor", "nonsense")
    assert output.code == 2
    assert "leave it out" in output.err


def test_a_list_shows_states_in_colour_and_ages(coord: Coord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks, agents and messages, on a terminal with colours."""
    coord("tasks", "submit", "echo", "--id", "coloured", "--wait")
    coord("messages", "send", "cli-agent", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "200", "NO_COLOR": "", "COLORTERM": ""}.items():
        monkeypatch.setenv(name, value)
    lists = {
        "tasks list --state completed": ("completed", "age"),
        "agents list": ("active", "last heartbeat"),
        "messages list": ("(delivered|read)", "age"),
    }
    for command, (state, column) in lists.items():
        header, *rows = coord(*command.split()).out.splitlines()
        assert f" {column} " in re.sub(r"\x1b\[[0-9;]*m", " ", header) + " ", command
        assert any(re.search(rf"\x1b\[32m{state}\x1b\[0m", row) for row in rows), rows
        assert any(re.search(r"\d (ms|s|min \d+ s)( ago)?\b", row) for row in rows), rows


def test_an_unknown_task(coord: Coord) -> None:
    """The answer is no, whatever is asked about it; the next step is named."""
    for command in ("show", "explain", "result", "watch", "cancel", "retry"):
        output = coord("tasks", command, "ghost")
        assert (output.code, output.out) == (1, "")
        assert "coord: Task 'ghost' not found" in output.err
        assert "`coord tasks list`" in output.err


def test_a_cancelled_task(coord: Coord) -> None:
    """One that waits ends at once; one that has ended stays as it is."""
    coord("tasks", "submit", "nobody", "--id", "unwanted")
    assert coord("tasks", "cancel", "unwanted", "--reason", "no more").out == "unwanted is cancelled\n"
    assert coord("tasks", "cancel", "unwanted").out == "unwanted was already cancelled\n"
    text = coord("tasks", "show", "unwanted").out
    assert "task_cancelled: no more" in text
    coord("tasks", "submit", "echo", "--id", "done", "--wait")
    output = coord("tasks", "cancel", "done", "--json")
    assert output.code == 1
    assert "`coord tasks show`" in output.err
    coord("tasks", "submit", "nobody", "--id", "unwanted-2")
    coord("tasks", "submit", "nobody", "--id", "unwanted-3")
    output = coord("tasks", "cancel", "unwanted-2", "ghost", "unwanted-3", "--json")
    first, none, last = msgspec.json.decode(output.out)["items"]
    assert (output.code, none["error"]["code"]) == (1, "task_not_found")
    assert (first["task_id"], first["state"]) == ("unwanted-2", "cancelled")
    assert (last["task_id"], last["state"]) == ("unwanted-3", "cancelled")


def test_the_result_of_a_task(coord: Coord, live: LiveCell) -> None:
    """What it completed with, or its error; of a task that goes on, the next step."""
    coord("tasks", "submit", "echo", '{"n": [1, 2.5]}', "--id", "has-result", "--wait")
    assert coord("tasks", "result", "has-result") == CommandResult(0, '{"n":[1,2.5]}\n', "")
    assert record_in(coord("tasks", "result", "has-result", "--json")).result == {"n": [1, 2.5]}
    coord("tasks", "submit", "boom", "--id", "has-error", "--wait")
    output = coord("tasks", "result", "has-error")
    assert (output.code, output.out) == (1, "")
    assert "it_broke: by design" in output.err
    coord("tasks", "submit", "gate", '{"gate": "has-none"}', "--id", "has-none")
    wait_for_state(live, "has-none", TaskState.RUNNING)
    output = coord("tasks", "result", "has-none")
    assert (output.code, output.out) == (3, "")
    assert "`coord tasks result has-none --wait` waits for it" in output.err
    assert coord("tasks", "result", "has-none", "--wait", "--wait-timeout", "200ms").code == 3
    live.open_gate("has-none")
    assert coord("tasks", "result", "has-none", "--wait", "--wait-timeout", "1m").out == '"through"\n'


def test_a_list_says_how_many_there_are(coord: Coord) -> None:
    """All that the list would show, however few it shows; completed tasks alone are not counted."""
    for name in ("many-1", "many-2", "many-3"):
        coord("tasks", "submit", "nobody", "--id", name, "--priority", "low")
    output = coord("tasks", "list", "--state", "queued", "--limit", "1")
    assert output.err.splitlines()[0] == "1 of 3 tasks"
    assert msgspec.json.decode(coord("tasks", "list", "--state", "queued", "--json").out)["total"] == 3
    page = msgspec.json.decode(coord("tasks", "list", "--limit", "1", "--json").out)
    assert page["total"] == len(msgspec.json.decode(coord("tasks", "list", "--limit", "1000", "--json").out)["items"])
    coord("tasks", "submit", "echo", "--id", "many-4", "--wait")
    coord("tasks", "submit", "echo", "--id", "many-5", "--wait")
    page = msgspec.json.decode(coord("tasks", "list", "--state", "completed", "--limit", "1", "--json").out)
    assert page["total"] is None
    assert coord("tasks", "cancel", "many-1", "many-2", "many-3").code == 0


def test_a_failed_task_is_tried_again(coord: Coord) -> None:
    """Under its id, with its story kept; one that has not failed is not, and does not stop the next."""
    coord("tasks", "submit", "boom", "--id", "again", "--wait")
    assert "again" in coord("tasks", "retry", "again").out
    output = coord("tasks", "watch", "again", "--json")
    assert output.code == 1
    last = msgspec.json.decode(output.out.splitlines()[-1], type=TaskRecord)
    assert (last.state, len(last.attempts)) == (TaskState.FAILED, 2)
    table = coord("tasks", "show", "again").out
    assert table.count("it_broke") == 3
    coord("tasks", "submit", "echo", "--id", "fine", "--wait")
    coord("tasks", "submit", "boom", "--id", "again-2", "--wait")
    output = coord("tasks", "retry", "fine", "again-2")
    assert output.code == 1
    assert output.out.startswith("again-2 is ")


def test_watching_tells_each_change_until_all_have_ended(coord: Coord, live: LiveCell) -> None:
    """A line for a change, as it comes, none for what stays as it is; 0 when all are completed."""
    for name in ("g1", "g2"):
        coord("tasks", "submit", "gate", f'{{"gate": "{name}"}}', "--id", name)
        wait_for_state(live, name, TaskState.RUNNING)
    with started(
        [sys.executable, "-m", "coord.cli", "tasks", "watch", "g1", "g2", "g1"],
        env=os.environ | live.environ,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        first = {process.stdout.readline() for _ in range(2)}
        assert first == {f'{one}  running on cli-agent: {{"at":"{one}"}}\n' for one in ("g1", "g2")}
        live.open_gate("g2")
        assert process.stdout.readline().startswith("g2  completed on cli-agent after ")
        live.open_gate("g1")
        assert process.stdout.readline().startswith("g1  completed on cli-agent after ")
        assert process.stdout.readline() == ""
        assert process.wait(60) == 0


def test_a_terminal_shows_a_live_table(coord: Coord, live: LiveCell) -> None:
    """``watch`` redraws it; ids are whole, and the last picture stays."""
    coord("tasks", "submit", "boom", "--id", "shown-live", "--wait")
    terminal, end = pty.openpty()
    environ = os.environ | live.environ | {"TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-m", "coord.cli", "tasks", "watch", "shown-live"]
    with started(command, env=environ, stdin=end, stdout=end, stderr=end) as process:
        os.close(end)
        output = b""
        with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
            while more := os.read(terminal, 65_536):
                output += more
        assert process.wait(60) == 1
        os.close(terminal)
    assert b"shown-live" in output
    assert b"it_broke: by design" in output
    assert b"\x1b[" in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["submit"], ["give a TYPE"]),
        (["submit", "echo", "n: 1"], ["PAYLOAD is not JSON", "'\"text\"'"]),
        (["submit", "echo", '{"n": [1e999]}'], ["coord: payload.n[0]: the number 1e999 is out of range"]),
        (["submit", "echo", "[NaN]"], ["coord: payload[0]: nan is not a JSON number; use null or a string for it"]),
        (["submit", "echo", "{}", "--label", "zone"], ["--label must be NAME=VALUE"]),
        (["submit", "echo", "{}", "--deadline", "soon"], ["--deadline must be", "2030-01-31", "got 'soon'"]),
        (["submit", "echo", "{}", "--timeout", "-1"], ["--timeout must be above 0, got -1"]),
        (["submit", "echo", "{}", "--id", "a/b"], ["coord: --id must be 1 to 128 characters"]),
        (["submit", "echo", "{}", "--tag", ""], ["coord: --tag must not be empty"]),
        (["submit", "echo", "{}", "--priority", "asap"], ["--priority", "urgent"]),
        (["submit", "echo", "{}", "--results", "r"], ["--results is for --file"]),
        (["submit", "--file", "t", "--results", "r"], ["--results needs --wait"]),
        (["submit", "echo", "{}", "--file", "t"], ["PAYLOAD is for one task"]),
        (["submit", "--file", "/nowhere"], ["cannot read /nowhere: No such file"]),
        (["list", "--state", "over"], ["--state", "completed"]),
        (["show", "a b"], ["task_id must be 1 to 128 characters"]),
    ],
)
def test_a_slip_is_named(coord: Coord, arguments: list[str], says: list[str]) -> None:
    """In one line that names the field; exit code 2."""
    output = coord("tasks", *arguments)
    assert (output.code, output.out) == (2, "")
    assert [part for part in says if part not in output.err] == []


def test_nobody_takes_it(coord: Coord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a distributor the id is printed all the same, with exit code 3 and a word on standard error."""
    monkeypatch.setattr("coord.cli.submit.ACCEPT_S", 0.05)
    output = coord("tasks", "submit", "echo", "--id", "early", "--namespace", "deserted")
    assert (output.code, output.out) == (3, "early\n")
    assert "it waits for one" in output.err


def test_help_shows_examples(coord: Coord) -> None:
    """Every command of the group has some."""
    for command in ("submit", "show", "explain", "result", "list", "watch", "cancel", "retry"):
        output = coord("tasks", command, "--help")
        assert output.code == 0
        assert f"coord tasks {command}" in output.out.partition("Examples:")[2]


def test_the_file_of_a_task_is_not_written_where_it_cannot_be(coord: Coord, tmp_path: Path) -> None:
    """Before anything is submitted."""
    (tmp_path / "t.jsonl").write_text('{"task_type": "echo"}\n')
    output = coord(
        "tasks", "submit", "--file", str(tmp_path / "t.jsonl"), "--wait", "--results", str(tmp_path / "no" / "r")
    )
    assert output.code == 2
    assert "--results: cannot write" in output.err


def test_an_output_that_is_not_utf_8_gets_valid_json(live: LiveCell) -> None:
    """What is not ASCII is escaped as JSON has it, and a table shows it somehow."""
    payload = '"\u00e9\U0001f600"'
    command = [sys.executable, "-m", "coord.cli", "tasks", "submit", "echo", payload, "--id", "ascii", "--wait"]
    environ = os.environ | live.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == '"\\u00e9\\ud83d\\ude00"\n'
    command = [sys.executable, "-m", "coord.cli", "tasks", "show", "ascii"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert "result" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("options", [("--wait",), ("--wait", "--json")])
def test_ctrl_c_says_which_task_goes_on(live: LiveCell, options: tuple[str, ...]) -> None:
    """The message names the commands that follow and cancel the task; the exit code is 130."""
    task_id = f"interrupted{len(options)}"
    command = ["tasks", "submit", "gate", f'{{"gate": "{task_id}"}}', "--id", task_id, *options]
    with _coord_process(live, *command) as process:
        wait_for_state(live, task_id, TaskState.RUNNING)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == (
        f"interrupted: task {task_id} goes on; `coord tasks watch {task_id}` follows it, "
        f"`coord tasks cancel {task_id}` cancels it\n"
    )
    live.open_gate(task_id)
    wait_for_state(live, task_id, TaskState.COMPLETED)


def test_ctrl_c_of_a_watch_says_that_the_task_goes_on(live: LiveCell) -> None:
    """To stop looking at a task is not to cancel it."""
    live.do(live.client.submit("gate", {"gate": "watched"}, task_id="watched"))
    wait_for_state(live, "watched", TaskState.RUNNING)
    with _coord_process(live, "tasks", "watch", "watched") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("watched  running")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "interrupted: task watched goes on; `coord tasks cancel watched` cancels it\n"
    live.open_gate("watched")


def _coord_process(live: LiveCell, *arguments: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """A command of ``coord`` as a process, which ends with the block."""
    return started(
        [sys.executable, "-m", "coord.cli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | live.environ,
        text=True,
    )
