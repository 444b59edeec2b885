"""The common voice of all commands: how values, tables and errors look, and what exit codes mean."""

from __future__ import annotations

import re
import subprocess
import sys

import msgspec
import pytest

from coord import errors
from coord.cli.exit_codes import sentence
from coord.cli.output import (
    MAX_SHOWN,
    duration,
    hint_next_page,
    moment,
    shown,
    write_fields,
    write_items,
    write_json,
    write_json_line,
    write_line,
    write_table,
)
from coord.standard_streams import plain
from tests.processes import started


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, ""),
        (0, "0 ms"),
        (999.4, "999 ms"),
        (1_000, "1.0 s"),
        (59_940, "59.9 s"),
        (61_000, "1 min 1 s"),
        (3_599_999, "59 min 59 s"),
        (7_380_000, "2 h 3 min"),
        (183_600_000, "2 d 3 h"),
    ],
)
def test_a_length_of_time(ms: float | None, text: str) -> None:
    """The two largest units that matter."""
    assert duration(ms) == text


def test_a_moment_is_local_time() -> None:
    """With milliseconds; nothing for none."""
    assert moment(None) == ""
    assert moment(1_700_000_000_045).endswith(".045")
    assert len(moment(1_700_000_000_045)) == len("2023-11-14 22:13:20.045")


def test_what_comes_from_outside_cannot_paint_on_the_terminal() -> None:
    """Escape sequences, line ends and marks that turn the direction of writing are spelt out; letters stay."""
    assert plain("Grüße, 世界") == "Grüße, 世界"
    assert plain("a\x1b[2Jb\nc\u202e") == r"a\x1b[2Jb\nc\u202e"


def test_a_long_value_is_cut_and_says_so() -> None:
    """The whole is in --json."""
    assert shown({"a": [1, None]}) == '{"a":[1,null]}'
    assert shown(None) == ""
    assert shown("x" * MAX_SHOWN) == "x" * MAX_SHOWN
    assert shown("x" * (MAX_SHOWN + 1)) == "x" * MAX_SHOWN + f"… ({MAX_SHOWN + 1:,} characters; --json shows all)"


def test_a_piped_table_has_its_ids_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """However narrow the terminal is; markup of rich's is text; nothing trails."""
    long = "0" * 128
    write_table(("task", "n", "why"), [(long, 1, "[red]no[/]"), ("b", 100, None)], right=["n"])
    assert capsys.readouterr().out.splitlines() == [
        f"{'task':<128}    n  why",
        f"{long}    1  [red]no[/]",
        f"{'b':<128}  100",
    ]


@pytest.mark.parametrize(("length", "whole"), [(36, True), (128, False)])
def test_an_id_stays_whole_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, length: int, *, whole: bool
) -> None:
    """What is beside it goes on below itself; an id that takes half a screen does too, and nothing is lost."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    long = "x" * length
    write_table(("task", "why"), [(long, "y" * 200)])
    result = capsys.readouterr().out
    assert (long in result) is whole
    assert (result.count("x"), result.count("y") - 1) == (length, 200)
    assert all(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= 80 for line in result.splitlines())


def test_a_record_shows_what_has_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each field."""
    write_fields({"task": "t1", "error": None, "payload": {"text": "a\nb"}})
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        ["task", "t1"],
        ["payload", r'{"text":"a\nb"}'],
    ]


def test_json_is_one_line_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """A document, a line of a stream, and text."""
    write_json({"a": "ü\n"})
    write_json_line([1])
    write_line("x\ty")
    result = capsys.readouterr().out.splitlines()
    assert [msgspec.json.decode(line) for line in result[:2]] == [{"a": "ü\n"}, [1]]
    assert result[2:] == [r"x\ty"]


def test_every_list_has_the_same_shape(capsys: pytest.CaptureFixture[str]) -> None:
    """The items, the cursor of the next page, and what one list has in addition."""
    write_items(iter([1, 2]))
    write_items([], next="c", total=7)
    result = [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]
    assert result == [{"items": [1, 2], "next": None}, {"items": [], "next": "c", "total": 7}]


@pytest.mark.parametrize(("no_color", "colours"), [("", 1), ("1", 0)])
def test_a_state_has_its_colour_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, no_color: str, colours: int
) -> None:
    """Only the value in its column; the columns stay aligned; NO_COLOR is respected."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "NO_COLOR": no_color, "COLORTERM": ""}.items():
        monkeypatch.setenv(name, value)
    write_table(("state", "task"), [("failed", "failed"), ("ok", "b")], styles={"state": {"failed": "red"}})
    _, *rows = capsys.readouterr().out.splitlines()
    assert rows[0].count("\x1b[31mfailed\x1b[0m") == colours
    assert [re.sub(r"\x1b\[[0-9;]*m", "", row) for row in rows] == ["failed  failed", "ok      b"]


def test_the_next_page_has_the_same_filters(capsys: pytest.CaptureFixture[str]) -> None:
    """The command can be copied; what was not given is left out."""
    options = {"--state": ["failed", "queued"], "--type": "o c r", "--agent": None, "--limit": 2, "--status": None}
    hint_next_page("coord tasks list", options, "dead:1.0:t1")
    assert capsys.readouterr().err == (
        "there may be more; continue with: "
        "coord tasks list --state failed --state queued --type 'o c r' --limit 2 --cursor dead:1.0:t1\n"
    )


def test_a_piped_state_has_no_colour(capsys: pytest.CaptureFixture[str]) -> None:
    """Programs read it."""
    write_table(("state",), [("failed",)], styles={"state": {"failed": "red"}})
    assert capsys.readouterr().out == "state\nfailed\n"


def test_an_error_names_the_next_step() -> None:
    """In the same line."""
    assert sentence(errors.AgentNotFound("Agent 'x' not found")) == (
        "coord: Agent 'x' not found; `coord agents list` shows which there are"
    )
    assert sentence(errors.ConfigError("give one")) == "coord: give one"


def test_who_reads_only_the_first_line_hears_no_complaint() -> None:
    """``coord … | head -1`` ends with 0 and nothing on standard error."""
    program = "import sys; from coord.cli.output import write_line; sys.stdin.read(); [write_line('x') for _ in '12']"
    with started(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """``coord --show-completion`` prints a script, and the script's question is answered with the commands."""
    environ = {"_COORD_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "coord fs", "PATH": ""}
    environ |= {"COMP_WORDS": "coord fs", "COMP_CWORD": "1", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    program = "import sys; sys.argv = ['coord']; from coord.cli import main; main()"
    content = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False)
    assert "fsck" in content.stdout


def test_a_command_that_asks_nothing_loads_no_client() -> None:
    """Start-up stays quick: what is slow to import is imported by the command that needs it."""
    program = (
        "import sys, click; from coord.cli.app import app\n"
        "waiting = [app]\n"
        "for command in waiting:\n"
        "    context = click.Context(command)\n"
        "    if isinstance(command, click.Group):\n"
        "        waiting += [command.get_command(context, name) for name in command.list_commands(context)]\n"
        "assert len(waiting) > 30\n"
        "slow = ('redis', 'rich', 'uvloop', 'structlog', 'psutil', 'coord.client', 'coord.agent')\n"
        "print([m for m in slow if m in sys.modules])"
    )
    content = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert content.stdout == "[]\n"
