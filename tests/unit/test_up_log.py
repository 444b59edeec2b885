"""The two forms of the log of `coord up`, line by line."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import msgspec
import pytest

from coord.config import Settings
from coord.up import log
from coord.up.log import ConsoleLog, JsonLog, last_error, open_log, parse_line
from coord.up.runner import gave_up_sentence, is_logged, sentence_of
from coord.up.supervisor import ProgramEvent

WORKER = '{"event":"worker.took_over","entries":3,"level":"info","timestamp":"2026-01-31T12:00:00Z","service":"x"}'
FAILED = '{"event":"tick.failed","level":"error","exception":"Traceback:\\n  x\\nValueError: no"}'


@pytest.fixture(autouse=True)
def _one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock says 00:00:00, whatever it is asked."""
    monkeypatch.setattr(log, "_clock", lambda _: "00:00:00")


def console(speak: Callable[[ConsoleLog], None]) -> list[str]:
    """What a person sees."""
    out = io.StringIO()
    speak(ConsoleLog(out, lambda: None))
    return out.getvalue().splitlines()


def objects(speak: Callable[[JsonLog], None]) -> list[dict[str, object]]:
    """What a program reads, without the moment."""
    out = io.StringIO()
    speak(JsonLog(out, lambda: None))
    found = [msgspec.json.decode(line) for line in out.getvalue().splitlines()]
    assert all(one.pop("timestamp").endswith("Z") for one in found)
    return found


def test_a_worker_s_line_keeps_its_fields_and_gets_its_name() -> None:
    """In JSON one more field, for a person a column."""
    assert objects(lambda log: log.output("router-1", WORKER)) == [
        {"event": "worker.took_over", "entries": 3, "level": "info", "service": "x", "process": "router-1"}
    ]
    assert console(lambda log: log.output("router-1", WORKER)) == ["00:00:00  router-1  worker.took_over  entries=3"]


def test_a_long_line_goes_on_below_its_beginning_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two words, so that what a person copies is whole; in a file a line stays one."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "dumb")  # it has 80 columns and no colours
    path = "/a/path/that/is/longer/than/what/is/left" * 2
    for out, lines in (
        (Terminal(), ["00:00:00  coord  this line has the path", " " * 17 + path, " " * 17 + "the end"]),
        (io.StringIO(), [f"00:00:00  coord  this line has the path {path} the end"]),
    ):
        ConsoleLog(out, lambda: None).message("x", f"this line has the path {path} the end")
        assert out.getvalue().splitlines() == lines


def test_a_line_that_is_no_event_is_an_output() -> None:
    """A traceback, a print, JSON of another kind: nothing is lost, nothing is taken for what it is not."""
    for line in ("Killed", "{broken", '{"event":7}', "[1]", "{" * 100_000):
        assert objects(lambda log, line=line: log.output("p", line)) == [  # type: ignore[misc]
            {"event": "output", "level": "info", "process": "p", "text": line}
        ]
    assert console(lambda log: log.output("p", "Killed")) == ["00:00:00  p      Killed"]


def test_an_exception_follows_its_line() -> None:
    """A person reads it as it was printed."""
    assert console(lambda log: log.output("registry-1", FAILED)) == [
        "00:00:00  registry-1  tick.failed",
        "          registry-1    Traceback:",
        "          registry-1      x",
        "          registry-1    ValueError: no",
    ]


def test_no_program_paints_on_the_terminal() -> None:
    """Escapes are spelt out; brackets are brackets."""
    (line,) = console(lambda log: log.output("p", "\x1b[2J[bold]x"))
    assert line == r"00:00:00  p      \x1b[2J[bold]x"


def test_what_was_brought_up() -> None:
    """A row each; a warning each; the column of names is as wide as the widest name from the start."""
    rows: dict[str, str | list[str]] = {"redis": "r", "warning": ["w1", "w2"], "workers": ["registry-1", "router-12"]}

    def speak(log: log.Log) -> None:
        log.startup("coord 1", rows)
        log.message("up.ready", "ready", pid=None)

    assert console(speak) == [
        "coord 1", "redis      r", "warning    w1", "warning    w2", "workers    registry-1, router-12",
        "00:00:00  coord       ready",
    ]  # fmt: skip
    ours = {"level": "info", "process": "coord"}
    assert objects(speak) == [
        {**ours, "event": "up.started", "message": "coord 1", **rows},
        {**ours, "event": "up.ready", "message": "ready", "pid": None},
    ]


def test_what_the_rows_have_shown_is_not_repeated_by_each_worker() -> None:
    """⚠ Every worker's first line had the address, the namespace and the durability once more. JSON keeps them."""
    place = {"redis": "unix:///r", "namespace": "coord", "durability": "AOF, fsync every second"}
    begun = {"event": "worker.started", "kind": "router", "name": "r-1", **place}
    other = begun | {"namespace": "other"}
    later = {"event": "worker.moved", "redis": "unix:///r"}

    def speak(log: log.Log) -> None:
        log.startup("coord 1", {"redis": "unix:///r (valkey 9)"}, place)
        for record in (begun, other, later):
            log.output("r-1", msgspec.json.encode(record).decode())

    assert console(speak)[2:] == [
        "00:00:00  r-1    worker.started  kind=router",
        "00:00:00  r-1    worker.started  kind=router namespace=other",
        "00:00:00  r-1    worker.moved  redis=unix:///r",
    ]
    assert [place.items() <= record.items() for record in objects(speak)] == [False, True, False, False]


@pytest.mark.parametrize(("log_format", "kind"), [("auto", JsonLog), ("json", JsonLog), ("console", ConsoleLog)])
def test_the_form_is_chosen_by_the_setting(log_format: str, kind: type[log.Log]) -> None:
    """``auto`` where nobody sits at a terminal, as in a test: JSON."""
    assert type(open_log(msgspec.structs.replace(Settings(), log_format=log_format), lambda: None)) is kind


def test_a_full_disk_ends_nothing_and_a_closed_pipe_is_logged_once() -> None:
    """Losing lines is no reason to lose work; a reader that went away wants the end."""
    gone: list[bool] = []
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device)
        JsonLog(full, lambda: gone.append(True)).message("a", "b")
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what is left in its buffer goes there
    assert gone == []
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        piped = JsonLog(pipe, lambda: gone.append(True))
        piped.message("a", "b")
        piped.message("a", "b")
    assert gone == [True]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ValueError: no", "ValueError: no"),
        ("│ No such command 'x'.   │", "No such command 'x'."),
        (FAILED, "tick.failed: ValueError: no"),
        ('{"event":"worker.interrupted","error":"gone"}', "worker.interrupted: gone"),
        (WORKER, "worker.took_over"),
        ("", ""),
    ],
)
def test_last_words(line: str, words: str) -> None:
    """An exception's last line, an event with its error, or the line itself."""
    assert last_error(line) == words


def test_the_line_about_an_end_says_why_once_it_repeats() -> None:
    """The first ends need no explanation: the program's own lines stand above."""
    event = ProgramEvent(name="p", what="ended", pid=7, code=1, again_in_s=0.1, ends=1, last_line="no disk")
    assert sentence_of(event) == "p (pid 7) has ended (exit code 1); it restarts in 0.1 s"
    repeated = msgspec.structs.replace(event, ends=3)
    assert sentence_of(repeated).endswith(". It has ended 3 times in a row; its last output: no disk")
    silent = msgspec.structs.replace(repeated, last_line="")
    assert sentence_of(silent).endswith(". It has ended 3 times in a row without any output")
    missing = ProgramEvent(name="p", what="failed", again_in_s=5, ends=1, reason="not there")
    given_up = msgspec.structs.replace(repeated, what="gave_up", ends=5, again_in_s=None)
    assert gave_up_sentence(given_up) == (
        "p was never ready and has ended 5 times in a row with the same error (exit code 1): no disk; "
        "it does not restart, and coord up stops"
    )
    assert sentence_of(missing) == "p could not be started (not there); next try in 5 s"


def test_a_program_that_never_works_does_not_fill_the_log() -> None:
    """Each of its first ends is logged, then one in twelve: one a minute at the longest wait."""
    event = ProgramEvent(name="p", what="ended", again_in_s=5)
    text = [ends for ends in range(1, 61) if is_logged(msgspec.structs.replace(event, ends=ends))]
    assert text == [*range(1, 13), 24, 36, 48, 60]


def test_an_object_without_a_word_for_its_event_is_none() -> None:
    """Only what is shaped like a log line is read as one."""
    assert parse_line('{"event":"a"}') == {"event": "a"}
    assert parse_line('{"other":"a"}') is None
