"""The parts of what runs programs: what an end means, lines, the end of a text, progress, and looking at a command."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw
from structlog.testing import capture_logs

from coord import Agent, Task
from coord.agent.task import NonRetryable, Release, Retryable
from coord.codec import encode
from coord.config import Settings, load
from coord.errors import ConfigError
from coord.models.ids import check_id
from coord.programs import Input, Options, Output, program_agent
from coord.programs.command import Command
from coord.programs.outcome import check, result
from coord.programs.stdio import Lines, Progress, Tail
from tests.unit.programs_world import Asked, script
from tests.waiting import wait_until

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")


@pytest.mark.parametrize(
    ("code", "raised", "name"),
    [
        (1, Retryable, "exit_1"),
        (64, NonRetryable, "exit_64"),
        (65, NonRetryable, "exit_65"),
        (66, NonRetryable, "exit_66"),
        (78, Retryable, "exit_78"),
        (255, Retryable, "exit_255"),
        (-9, Retryable, "killed"),
    ],
)
def test_an_exit_code_says_whether_another_try_helps(code: int, raised: type[Any], name: str) -> None:
    """The failure has the code's own name, and the end of standard error."""
    with pytest.raises(raised) as caught:
        check(code, "no disk")
    assert caught.value.code == name
    assert caught.value.message.endswith(": no disk")


def test_an_end_is_told_in_words() -> None:
    """Zero is no failure; 75 gives the task back; a signal has its name; shells' codes are explained."""
    check(0, "noise")
    with pytest.raises(Release, match=r"exit code 75: no room"):
        check(75, "no room")
    with pytest.raises(Retryable, match="killed by SIGSEGV, and nothing on standard error"):
        check(-11, "")
    with pytest.raises(Retryable, match="killed by signal 99"):
        check(-99, "")
    with pytest.raises(Retryable, match=r"exit code 127 \(not found\)"):
        check(127, "")


@pytest.mark.parametrize(
    ("written", "output", "found"),
    [
        (b'{"a": [1, 2.50]}\n', Output.AUTO, Raw(b'{"a": [1, 2.50]}')),
        (b"12\n", Output.AUTO, Raw(b"12")),
        (b"12\n", Output.TEXT, "12"),
        (b" two\nlines\r\n\n", Output.AUTO, " two\nlines"),
        (b"", Output.AUTO, None),
        (b"\n", Output.AUTO, None),
        (b"", Output.TEXT, ""),
        ("é NaN".encode(), Output.AUTO, "é NaN"),
        (b"[" * 100_000, Output.AUTO, "[" * 100_000),
        (b"null", Output.JSON, Raw(b"null")),
    ],
)
def test_standard_output_is_the_result(written: bytes, output: Output, found: Any) -> None:
    """JSON as it stands, text without the line ends after it."""
    assert encode(result(written, output)) == encode(found)


@pytest.mark.parametrize(
    ("written", "output", "says"),
    [
        (b"ab\xff", Output.AUTO, "not UTF-8 (byte 2 is 0xff); print text or JSON"),
        (b"\x89PNG\r\n", Output.TEXT, "not UTF-8 (byte 0 is 0x89)"),
        (b"plain", Output.JSON, "standard output is not JSON"),
        (b"", Output.JSON, "standard output is not JSON"),
    ],
)
def test_what_is_no_result_fails_for_good(written: bytes, output: Output, says: str) -> None:
    """Nothing is guessed or replaced."""
    with pytest.raises(NonRetryable) as raised:
        result(written, output)
    assert raised.value.code == "result_invalid"
    assert says in raised.value.message


@pytest.mark.parametrize("size", [1, 2, 3, 1_000])
def test_lines_come_whole_however_they_are_cut(size: int) -> None:
    """A long line is dropped and reported once; the last line needs no end."""
    lines: list[bytes] = []
    dropped: list[int] = []
    splitter = Lines(5, lines.append, lambda: dropped.append(len(lines)))
    data = b"one\n\nthree\n" + b"x" * 50 + b"\nfour\nlast"
    for start in range(0, len(data), size):
        splitter.feed(data[start : start + size])
    splitter.end()
    assert lines == [b"one", b"", b"three", b"four", b"last"]
    assert dropped == [3]


def test_the_end_of_a_text_is_kept() -> None:
    """The last bytes, marked where something is missing; half a character and bad bytes are replaced or left out."""
    tail = Tail(6)
    tail.feed(b" a\n")
    assert tail.text() == "a"
    tail.feed("bcdeé".encode())
    assert tail.text() == "… bcdeé"
    tail.feed("xxéabcde".encode())
    assert tail.text() == "… abcde"
    tail.feed(b"yz\xff!")
    assert tail.text() == "… deyz\ufffd!"


async def test_progress_is_passed_on_now_and_then() -> None:
    """The first at once, then the newest after a while."""
    asked = Asked()
    progress = Progress(asked.task)
    for number in range(1_000):
        progress.lines.feed(b"%d\n" % number)
    assert asked.progress == [0]
    await wait_until(lambda: len(asked.progress) == 2, "the newest is passed on")
    assert asked.progress == [0, 999]
    progress.close()
    assert asked.progress == [0, 999]


async def test_the_last_progress_is_passed_on() -> None:
    """Although its line has no end; empty lines say nothing, and bad bytes are replaced."""
    asked = Asked()
    progress = Progress(asked.task)
    progress.lines.feed(b'{"page": 3}\n4\n\n  \nhalf \xff done')
    progress.close()
    assert asked.progress == [{"page": 3}, "half \ufffd done"]


def test_a_command_is_looked_at_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thing that keeps a program from running has its own words, and the next step."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    script(tmp_path / "naked", "echo hi\n")
    script(tmp_path / "good", "#!/bin/sh\necho hi\n")
    environ = dict(os.environ)
    for words, says in {
        (): "name a program to run, after --",
        ("nobody-has-this",): "program nobody-has-this is not on PATH",
        ("good",): "for the one in this folder write ./good",
        ("./missing",): "program ./missing does not exist",
        (str(tmp_path),): "is a folder",
        ("./plain",): "program ./plain is not executable; chmod +x ./plain",
        ("./naked",): "add one, such as #!/bin/sh",
    }.items():
        with pytest.raises(ConfigError) as raised:
            Command(words, environ)
        assert says in str(raised.value)
    assert Command(["./good"], environ).path == "./good"
    assert Command(["sh", "-c", "true"], environ).path.endswith("/sh")


def test_its_environment_tells_of_the_task() -> None:
    """Agent, task, type and attempt besides the agent's own; a ``coord`` that it runs takes them for no settings."""
    environ = Command(["cat"], {"PATH": os.environ["PATH"], "COORD_NAMESPACE": "n"}).environ("a", Asked().task)
    shown = {name: value for name, value in environ.items() if name.startswith("COORD_")}
    assert shown == {
        "COORD_NAMESPACE": "n", "COORD_AGENT_ID": "a", "COORD_TASK_ID": "t1", "COORD_TASK_TYPE": "demo",
        "COORD_ATTEMPT": "2", "COORD_PROGRESS_FD": "3",
    }  # fmt: skip
    assert load(environ).namespace == "n"


@asynccontextmanager
async def prepared(agent: Agent) -> AsyncIterator[Callable[[Task], Awaitable[Any]]]:
    """The handler of an agent that needs no server for this."""
    assert agent.fallback is not None
    for function in agent._start_hooks:
        await function()
    try:
        yield agent.fallback.call
    finally:
        for function in agent._stop_hooks:
            await function()


async def test_a_program_finds_the_settings_of_its_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that hold, and not what an option has overruled."""
    monkeypatch.setenv("COORD_NAMESPACE", "of-the-environment")
    monkeypatch.setenv("AITBC_REDIS_URL", "redis://of-the-environment")
    settings = Settings(redis_url="redis://127.0.0.1:7000")
    show = 'echo "$COORD_NAMESPACE|$COORD_REDIS_URL|$AITBC_REDIS_URL|$HOME"'
    agent = program_agent("a", ["sh", "-c", show], settings, Options(), capabilities=["c"])
    async with prepared(agent) as handle:
        assert await handle(Asked().task) == f"|redis://127.0.0.1:7000||{os.environ['HOME']}"


async def test_failures_are_logged_briefly() -> None:
    """With the end of the output, which is the most useful part."""
    agent = program_agent(
        "a", ["sh", "-c", "seq 1000 >&2; exit 1"], Settings(), Options(), capabilities=["c"]
    )  # fmt: skip
    async with prepared(agent) as handle:
        with capture_logs() as events, pytest.raises(Retryable) as raised:
            await handle(Asked().task)
    assert len(raised.value.message) > 3_000
    (event,) = (event for event in events if event["event"] == "program.failed")
    assert event["error"].startswith("exit_1: exit code 1: 1\n2\n")
    assert " … " in event["error"]
    assert event["error"].endswith("999\n1000")
    assert len(event["error"]) < 700


@pytest.mark.parametrize(
    ("words", "options", "declared", "says"),
    [
        (["cat"], {}, {}, "the agent has no capability; give --capability NAME"),
        (["cat", "{x}"], {"keep_alive": True}, {"capabilities": ["c"]}, "so {x} has no value"),
        (
            ["cat"],
            {"keep_alive": True, "input": Input.TEXT},
            {"capabilities": ["c"]},
            "--input text is for one process",
        ),
        (["cat"], {"keep_alive": True, "output": Output.JSON}, {"capabilities": ["c"]}, "--output json is for one"),
        (["cat"], {}, {"capabilities": ["c"], "capacity": 90_000}, "raise it with `ulimit -n "),
        (["cat"], {"timeout_s": float("nan")}, {"capabilities": ["c"]}, "timeout must be a finite number"),
    ],
)
def test_an_agent_that_could_not_work_is_not_made(
    words: list[str], options: dict[str, Any], declared: dict[str, Any], says: str
) -> None:
    """One line, with what to do."""
    with pytest.raises(ConfigError) as raised:
        program_agent("a", words, Settings(), Options(**options), **declared)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("program", "capabilities", "begins"),
    [
        ("/bin/cat", [], "cat-"),
        ("bash", ["count_words", "other"], "count_words-"),
        ("bash", ["lire où?"], "lire-o-"),
        ("bash", ["é"], "agent-"),
        ("/srv/some où/" + "x" * 200 + " (1).sh", [], "x" * 48 + "-"),
        ("bash", ["y" * 64], "y" * 48 + "-"),
    ],
)
def test_the_usual_id_is_one(program: str, capabilities: list[str], begins: str) -> None:
    """Made of the first capability, or the program, and the host, whatever is in them; two agents never share one."""
    from coord.cli.agent import default_id

    name = default_id([program], capabilities)
    assert check_id(name, "agent_id") == name
    assert name.startswith(begins)
    assert default_id([program], capabilities) != name
