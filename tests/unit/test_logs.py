"""Logs: one shape for our events and for what libraries say."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog

from coord.config import Settings
from coord.log_setup import configure, configure_program
from coord.logs import get_logger


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """Logging is global; leave it as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_an_event_is_one_json_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Event name, level, time, service and the data; standard output stays empty."""
    configure(Settings(), service="distributor")
    get_logger(shard=1).info("task.assigned", task_id="t1", odd=object)
    out, err = capsys.readouterr()
    line = json.loads(err)
    assert out == ""
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "task.assigned",
        "task_id": "t1",
        "odd": "<class 'object'>",
        "shard": 1,
        "level": "info",
        "service": "distributor",
    }


def test_a_program_that_configures_nothing_is_told_warnings_on_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its standard output is its own, and what happens all the time is no matter of its."""
    log = get_logger(shard=1)
    log.debug("replies.away")
    log.info("agent.registered")
    try:
        int("odd")
    except ValueError:
        log.exception("message.handler_failed")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(r"\S+Z \[error    \] message.handler_failed +shard=1\nTraceback", err)
    assert "ValueError: invalid literal" in err
    structlog.configure(processors=[structlog.processors.JSONRenderer()])
    log.info("agent.registered")
    assert json.loads(capsys.readouterr().out) == {"event": "agent.registered", "shard": 1}, "as configured"


def test_a_library_s_warning_takes_the_same_shape(capsys: pytest.CaptureFixture[str]) -> None:
    """The standard library's logging ends in the same lines, with the logger's name."""
    logging.getLogger().handlers.clear()
    configure(Settings(), service="router")
    logging.getLogger("redis.client").warning("gone %s", "away")
    logging.getLogger("redis.client").info("chatter")
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["logger"], line["service"]) == ("gone away", "redis.client", "router")


def test_what_is_below_the_level_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    """log_level cuts our events too."""
    configure(Settings(log_level="error"), service="x")
    get_logger().warning("task.late")
    assert capsys.readouterr().err == ""


def test_an_exception_travels_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback is part of the JSON line, so that one failure stays one line."""
    configure(Settings(), service="x")
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        get_logger().exception("batch.failed")
    (text,) = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError" in json.loads(text)["exception"]


def test_a_person_gets_readable_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """log_format=console is for eyes."""
    configure(Settings(log_format="console"), service="x")
    get_logger().info("task.assigned", task_id="t1")
    assert "task.assigned" in (line := capsys.readouterr().err)
    assert not line.startswith("{")


def test_a_person_s_traceback_shows_code_and_no_values(capsys: pytest.CaptureFixture[str]) -> None:
    """What a variable holds may be a payload, or a secret; a failure is a few lines, not a page."""
    configure(Settings(log_format="console"), service="x")
    payload = {"password": "hunter" + "2"}
    try:
        payload["user"]
    except KeyError:
        get_logger().exception("task.handler_failed")
    output = capsys.readouterr().err
    assert 'payload["user"]' in output
    assert "hunter2" not in output
    assert len(output.splitlines()) < 10


class Silent:
    """Its text cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError


def _endless() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value


@pytest.mark.parametrize("kind", ["json", "console", "none", "own"])
@pytest.mark.parametrize(
    "value",
    ["report-\udcff.txt", Silent(), _endless(), 10**5_000, {"\ud800": 1}, {(1,): 2}],
    ids=["text", "repr", "endless", "digits", "key", "tuple"],
)
def test_no_line_can_raise(capsys: pytest.CaptureFixture[str], kind: str, value: object) -> None:
    """⚠ Whatever its values are: what calls it is the loop that has other work to do."""
    if kind == "json":
        configure(Settings(log_format="json"), service="x")
    elif kind == "console":
        configure(Settings(log_format="console"), service="x")
    elif kind == "own":
        structlog.configure(processors=[_refuse])
    error = ValueError("page \udcff")
    get_logger().warning("task.handler_failed", value=value, task_id="t1", exc_info=error)
    err = capsys.readouterr().err
    assert "task.handler_failed" in err
    assert "t1" in err
    assert r"page \udcff" in err or r"page \\udcff" in err


def _refuse(*_args: object) -> str:
    raise TypeError("a processor of the program's own")


def test_a_stream_that_is_not_utf8_takes_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it cannot write is written as escapes; one that is closed takes none, and nothing ends."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    configure(Settings(log_format="console"), service="x")
    get_logger().info("task.done", text="ü\udcff")
    sys.stderr.flush()
    assert rb"\xfc\udcff" in raw.getvalue()
    sys.stderr.close()
    get_logger().info("task.done", text="unheard")


def test_a_reader_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose `coord up` was killed continues until it has finished its work."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1) as closed:
        monkeypatch.setattr("sys.stderr", closed)
        configure(Settings(), service="x")
        get_logger().info("worker.stopped")
        logging.getLogger("redis").warning("gone")
        os.dup2(os.open(os.devnull, os.O_WRONLY), closed.fileno())  # what is left in its buffer goes there


def test_a_program_s_own_logging_stays(capsys: pytest.CaptureFixture[str]) -> None:
    """Handlers and level of its root logger; coord's lines are shown all the same."""
    root = logging.getLogger()
    own = logging.NullHandler()
    root.handlers[:] = [own]
    root.setLevel(logging.DEBUG)
    configure_program(Settings(), service="agent a")
    assert root.handlers == [own]
    assert root.level == logging.DEBUG
    get_logger().info("agent.registered")
    assert json.loads(capsys.readouterr().err)["service"] == "agent a"


def test_a_program_s_own_structlog_stays(capsys: pytest.CaptureFixture[str]) -> None:
    """Coord's lines are written as it says."""
    structlog.configure(processors=[structlog.processors.KeyValueRenderer(sort_keys=True)])
    configure_program(Settings(), service="agent a")
    get_logger().info("agent.registered", agent_id="a")
    out, err = capsys.readouterr()
    assert (out, err) == ("agent_id='a' event='agent.registered'\n", "")


def test_a_program_without_logging_gets_coord_s_and_may_get_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    """It may run one agent after the other; each line is written once, with the name of the present one."""
    root = logging.getLogger()
    root.handlers.clear()
    configure_program(Settings(), service="agent a")
    configure_program(Settings(), service="agent b")
    assert len(root.handlers) == 1
    get_logger().info("agent.registered")
    logging.getLogger("redis").warning("gone")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["service"]) for line in lines] == [
        ("agent.registered", "agent b"),
        ("gone", "agent b"),
    ]


@pytest.mark.parametrize(
    ("program", "loaded"),
    [
        ("import coord.client.client", []),
        ("import coord.client.client as c, coord.logs as l; l.get_logger().info('unseen')", []),
        ("import coord.agent.run, coord.log_setup", ["structlog"]),
        ("import structlog, coord.log_setup", ["structlog", "rich"]),
    ],
    ids=["client", "quiet", "agent", "own"],
)
def test_slow_libraries_are_imported_only_where_they_are_used(program: str, loaded: list[str]) -> None:
    """A client needs no structlog, and coord's own logs no rich; a program's structlog keeps its rich."""
    code = f"import sys; {program}; print([name for name in ('structlog', 'rich') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{loaded}\n"
