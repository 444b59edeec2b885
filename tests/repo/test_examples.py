"""The examples' own work, on real small files: what the agents answer, and what the file survey makes of it."""

from __future__ import annotations

import ast
import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from coord import NonRetryable
from coord.models.tasks import Priority, TaskError, TaskRecord, TaskState
from examples import content_digest, python_outline, text_stats
from examples.file_survey.findings import Duplicates, findings
from examples.file_survey.fleet import EndedProcess, dashboard_of, ended_process
from examples.file_survey.jobs import KINDS, Job, Outcome, jobs
from examples.file_survey.report import show_failures, show_findings, show_found
from examples.file_survey.timing import percentile, timing
from examples.file_survey.walk import MAX_BYTES, File, Found, default_folder, walk

MODULE = b'''"""A module."""

import os.path
from json import loads
from . import sibling


class Thing:
    """A thing."""

    def shown(self):
        """Docstring."""

    def _hidden(self): ...


async def undocumented():
    import re

    return re, loads, os
'''


def test_a_text_is_counted() -> None:
    """Lines, words, the longest line, and words of four letters and more by frequency, then alphabet."""
    found = text_stats.text_stats("one line here\n\nHere lies don't, don\u2019t über\n".encode())
    assert found == {
        "lines": 3,
        "blank_lines": 1,
        "words": 8,
        "characters": 43,
        "longest_line": {"line": 3, "characters": 27},
        "top_words": [("here", 2), ("don't", 1), ("don\u2019t", 1), ("lies", 1), ("line", 1), ("über", 1)],
    }


def test_an_empty_or_odd_text_is_counted() -> None:
    """No line is the longest of none; bytes that are no UTF-8 are still characters."""
    assert text_stats.text_stats(b"")["longest_line"] is None
    assert text_stats.text_stats(b"caf\xe9\n")["characters"] == 5


def test_what_is_longer_than_a_word_is_none() -> None:
    """A megabyte without a space would be most of the file's result, and of the screen."""
    found = text_stats.text_stats(b"word " + b"x" * 60 + b" " + b"y" * 900_000)
    assert [word for word, _ in found["top_words"]] == ["word", "x" * 60]


def test_two_threads_may_outline_at_once() -> None:
    """The parser of Python up to 3.12 counts how deep it is for all threads together, and objects to what it sees."""

    class Finalised:
        def __init__(self) -> None:
            self.me = self  # so that the collector has to find it, amid the other one's parsing

        def __del__(self) -> None:
            sum(range(200))

    def outline(content: bytes) -> int:
        Finalised()
        return int(python_outline.outline(content)["functions"])

    files = [file.read_bytes() for file in sorted(Path(ast.__file__).parent.glob("[a-i]*.py"))] * 3
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    try:
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(outline, files))
    finally:
        sys.setswitchinterval(interval)
    assert len(found) > 100
    assert found[: len(found) // 3] == found[len(found) // 3 * 2 :]


def test_a_python_file_is_outlined() -> None:
    """Definitions, packages imported by name wherever they stand, docstrings of what is public."""
    assert python_outline.outline(MODULE) == {
        "classes": 1,
        "functions": 1,
        "methods": 2,
        "imports": ["json", "os", "re"],
        "public": 4,
        "documented": 3,
        "longest_function": {"name": "undocumented", "line": 17, "lines": 4},
    }


def test_an_empty_python_file_is_outlined() -> None:
    """It is a module without a docstring."""
    found = python_outline.outline(b"")
    assert (found["public"], found["documented"], found["longest_function"]) == (1, 0, None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"x = 1\nprint 'two'\n", "pkg/bad.py:2: Missing parentheses"),
        (b"x = (\n", "pkg/bad.py:1: '(' was never closed"),
        (b"x = 1\0\n", "pkg/bad.py:1: source code string cannot contain null bytes"),
        (b"# coding: no-such-thing\n", "pkg/bad.py:1: unknown encoding: no-such-thing"),
        (b'"caf\xe9"\n', "pkg/bad.py:1: "),
        (b"(" * 500 + b")" * 500, "pkg/bad.py:1: too many nested parentheses"),
        (b"-" * 100_000 + b"1", "pkg/bad.py:1: too complex for the parser"),
        (b"x = " + b"1 + " * 20_000 + b"1", "pkg/bad.py:1: maximum recursion depth exceeded"),
    ],
)
def test_a_file_that_does_not_parse_fails_for_good(tmp_path: Path, content: bytes, says: str) -> None:
    """With the place and the parser's own words; no retry would read it differently."""
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "bad.py").write_bytes(content)
    with pytest.raises(NonRetryable) as caught:
        python_outline.handle(python_outline.File(str(tmp_path), "pkg/bad.py"))
    assert caught.value.code == "unparsable"
    assert caught.value.message.startswith(says)


@pytest.mark.parametrize(
    "handle",
    [
        lambda root: text_stats.handle(text_stats.File(root, "gone.py")),
        lambda root: python_outline.handle(python_outline.File(root, "gone.py")),
        lambda root: content_digest.handle(content_digest.File(root, "gone.py")),
    ],
)
def test_a_file_that_is_gone_fails_for_good(tmp_path: Path, handle: object) -> None:
    """Each agent says which and why."""
    assert callable(handle)
    with pytest.raises(NonRetryable, match=r"unreadable: gone\.py: No such file or directory"):
        handle(str(tmp_path))


def test_a_file_has_a_digest(tmp_path: Path) -> None:
    """SHA-256 and size."""
    (tmp_path / "f").write_bytes(b"abc")
    assert content_digest.handle(content_digest.File(str(tmp_path), "f")) == {
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "bytes": 3,
    }


def test_a_walk_takes_text_files_and_counts_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out, with the reason: large, binary, links, pipes, odd names, locked folders; caches are not entered."""
    for name in ("b.txt", "a/c.py", "a/__pycache__/c.pyc", "site-packages/x.py", ".git/config", "empty"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if name == "empty" else "text\n")
    (tmp_path / "binary").write_bytes(b"\x7fELF\0")
    (tmp_path / "large").write_bytes(b"x" * (MAX_BYTES + 1))
    (tmp_path / "largest").write_bytes(b"x" * MAX_BYTES)
    (tmp_path / "link").symlink_to("b.txt")
    (tmp_path / "loop").symlink_to(".")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / os.fsdecode(b"caf\xe9")).write_text("text")
    (tmp_path / "locked").mkdir()
    scan = os.scandir

    def refuse(folder: Any) -> Any:  # root may read everything
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = walk(tmp_path)
    assert found.files == (File("a/c.py", 5), File("b.txt", 5), File("empty", 0), File("largest", MAX_BYTES))
    assert found.left_out == {
        "binary": 1,
        "link": 2,
        "name not UTF-8": 1,
        "not a file": 1,
        "over 1 MiB": 1,
        "unreadable folder": 1,
    }
    assert found.not_entered == {"__pycache__": 1, "hidden folders": 1, "site-packages": 1}
    assert [(job.kind.task_type, job.file.path) for job in jobs(found.files)][:3] == [
        ("text_stats", "a/c.py"),
        ("python_outline", "a/c.py"),
        ("content_digest", "a/c.py"),
    ]
    assert len(jobs(found.files)) == 4 * 2 + 1


def test_the_default_folder_is_the_standard_library() -> None:
    """A folder that everyone has, with enough in it to be worth watching."""
    assert (default_folder() / "asyncio" / "__init__.py").is_file()


def outcome(path: str, kind: int, result: object, **fields: object) -> Outcome:
    """A finished task."""
    error = result if isinstance(result, TaskError) else None
    record = TaskRecord(
        task_id=path,
        priority=Priority.NORMAL,
        state=TaskState.FAILED if error else TaskState.COMPLETED,
        result=None if error else result,
        error=error,
        **fields,  # type: ignore[arg-type]
    )
    return Outcome(Job(KINDS[kind], File(path, 1)), record)


def stats(lines: int) -> dict[str, object]:
    """A result of text_stats."""
    return {"lines": lines, "blank_lines": 1, "words": 2, "top_words": [["self", 3]]}


def test_results_are_put_together_whatever_their_order() -> None:
    """Totals, the biggest modules first, imports by number of files, duplicates by what they waste."""
    outline = python_outline.outline(MODULE)
    outcomes = [
        outcome("big.py", 0, stats(9)),
        outcome("small.py", 0, stats(3)),
        outcome("big.py", 1, outline),
        outcome("small.py", 1, outline),
        outcome("bad.py", 1, TaskError("unparsable", "bad.py:1: no")),
        *(outcome(path, 2, {"sha256": "s", "bytes": 7}) for path in ("big.py", "small.py", "bad.py")),
        *(outcome(path, 2, {"sha256": "e", "bytes": 0}) for path in ("empty", "void")),
    ]
    found = findings(outcomes)
    assert found == findings(outcomes[::-1])
    assert (found.files, found.bytes, found.empty_files, found.lines, found.classes) == (5, 21, 2, 12, 2)
    assert [module.path for module in found.biggest] == ["big.py", "small.py"]
    assert found.imports == (("json", 2), ("os", 2), ("re", 2))
    assert found.common_words == (("self", 2),)
    assert found.duplicates == (Duplicates(7, ("bad.py", "big.py", "small.py")),)
    assert found.duplicates[0].wasted == 14
    assert [(one.path, one.code, one.message) for one in found.failures] == [("bad.py", "unparsable", "bad.py:1: no")]


def test_only_an_unparsable_file_is_a_failure_of_its_own() -> None:
    """Every other failure makes the file survey end with 1."""
    assert outcome("f", 1, TaskError("unparsable")).is_unparsable
    assert not outcome("f", 1, TaskError("agent_lost")).is_unparsable
    assert not outcome("f", 0, stats(1)).is_unparsable


def test_no_name_of_a_file_paints_on_the_terminal() -> None:
    """Control characters are spelt out in every table and line; what looks like markup is shown as it is."""
    name = "a\x1b[2J\n[bold]:x:.py"
    outcomes = [
        *(outcome(f"{n}{name}", 0, stats(1)) for n in range(2)),
        outcome(name, 1, python_outline.outline(MODULE)),
        outcome(f"bad{name}", 1, TaskError("unparsable", "no\x07 more")),
        *(outcome(f"{n}{name}", 2, {"sha256": "s", "bytes": 7}) for n in range(2)),
    ]
    console = Console(width=200, file=io.StringIO(), emoji=False)
    with console.capture() as captured:
        show_found(console, Found(Path("/x", name), (), {}, {}), 1)
        show_findings(console, findings(outcomes))
        show_failures(console, findings(outcomes))
    output = captured.get()
    assert "\x1b[2J" not in output
    assert "\x07" not in output
    assert output.count(r"a\x1b[2J\n[bold]:x:.py") == 5
    assert r"bada\x1b[2J\n[bold]:x:.py: no\x07 more" in output
    assert "0 text files, 1 task (up to 3 a file)\n" in output


def test_time_is_measured_from_the_records() -> None:
    """Spans by nearest rank; throughput from the first submission to the last outcome; work by agent."""
    moments = {"submitted_at": 1_000, "assigned_at": 1_010, "started_at": 1_015}
    outcomes = [
        outcome("a", 0, stats(1), agent_id="stats-1", attempt=2, finished_at=1_020, **moments),
        outcome("b", 0, stats(1), agent_id="stats-2", attempt=1, finished_at=3_000, **moments),
    ]
    measured = timing(outcomes)
    assert (measured.tasks, measured.seconds, measured.per_second, measured.repeated) == (2, 2.0, 1.0, 1)
    assert [(span.what, span.p50, span.longest) for span in measured.spans] == [
        ("submitted → finished", 20, 2_000),
        ("waiting for an agent", 10, 10),
        ("with the agent, not started", 5, 5),
        ("running", 5, 1_985),
    ]
    assert [(agent.agent_id, agent.done, agent.running_ms) for agent in measured.agents] == [
        ("stats-1", 1, 5),
        ("stats-2", 1, 1_985),
    ]


def test_percentiles_are_values_that_occurred() -> None:
    """Nearest rank."""
    values = list(range(1, 101))
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile([7], 0.5) == 7


def test_the_end_of_a_process_is_found_in_a_log_line() -> None:
    """Lines of ``coord up`` about other events, and lines that are not JSON, are ignored."""
    router = EndedProcess("process.ended", "router-1 has ended", "router-1")
    assert ended_process(msgspec.json.encode(router).decode()) == router
    assert ended_process('{"event":"redis.ended","message":"gone"}') == EndedProcess("redis.ended", "gone", "redis")
    for line in ("no json", '{"event":"up.ready"}', "[1]", "\ufffd"):
        assert ended_process(line) is None


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ('{"event":"up.started","gateway":"http://h:1","dashboard":"http://h:1/ui"}', "http://h:1/ui"),
        ('{"event":"gateway.started","url":"http://h:2","dashboard":"http://h:2/ui"}', "http://h:2/ui"),
        ('{"event":"up.started","gateway":"on a free port"}', ""),
        ('{"event":"agent.output","dashboard":"http://h:3/ui"}', ""),
        ("no json", ""),
    ],
)
def test_the_address_of_the_dashboard_is_found_in_a_log_line(line: str, address: str) -> None:
    """Lines without an address, of other events, and lines that are not JSON name none."""
    assert dashboard_of(line) == address
