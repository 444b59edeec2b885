"""The log of ``coord up``: what it says and what its programs write, as one stream.

On a terminal a person reads it: time, who, what. Elsewhere each line is one JSON object with ``timestamp``, ``level``,
``event`` and ``process``; what ``coord up`` says has its sentence in ``message``, what a program wrote as JSON keeps
its fields, and any other line of a program is an ``output`` with its ``text``.
"""

from __future__ import annotations

import datetime as dt
import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

import msgspec
from rich.text import Text

from coord.config import Settings
from coord.standard_streams import json_text
from coord.terminal import has_enough, plain

#: ``coord up`` itself, where lines are named by who speaks.
OURSELVES = "coord"
#: Fields of a program's line that the console shows elsewhere, or not at all.
SHOWN_ELSEWHERE = frozenset({"timestamp", "level", "event", "service", "process", "exception"})
#: What rich draws around an error.
FRAME = " \t│|"
#: Rows that name those whose lines will be heard.
SPEAKERS = ("workers", "agents")
#: Width of the names of rows.
ROW = 11
STYLES = {"warning": "yellow", "error": "red", "critical": "red"}


class Say(Protocol):
    """Says one sentence to whoever reads the log."""

    def __call__(self, event: str, sentence: str, /, *, level: str = "info", **fields: Any) -> None:
        """``event``: its dotted name, for programs that read; ``fields``: what the sentence is about, for them too."""
        ...


class Log(ABC):
    """Where everything is written; whoever reads it may go away.

    Args:
        out: where to.
        gone: called once when the reader has closed a pipe.
    """

    def __init__(self, out: TextIO, gone: Callable[[], None]) -> None:
        self._out = out
        self._gone = gone
        self._is_read = True

    @abstractmethod
    def say(self, event: str, sentence: str, /, *, level: str = "info", **fields: Any) -> None:
        """One sentence of ours, see ``Say``."""

    @abstractmethod
    def show(self, title: str, rows: Mapping[str, str | list[str]]) -> None:
        """What was brought up."""

    @abstractmethod
    def hear(self, process: str, line: str) -> None:
        """A line that a program wrote."""

    def _write(self, line: str) -> None:
        if not self._is_read:
            return
        try:
            self._out.write(line + "\n")
            self._out.flush()
        except BrokenPipeError:
            self._is_read = False
            has_enough(self._out)
            self._gone()
        except OSError:  # a full disk, a terminal that was closed: no reason to end the work
            pass


class JsonLog(Log):
    """JSON lines."""

    def say(self, event: str, sentence: str, /, *, level: str = "info", **fields: Any) -> None:
        """One object with the sentence as ``message``."""
        self._line({**_ours(event, level), "message": sentence, **fields})

    def show(self, title: str, rows: Mapping[str, str | list[str]]) -> None:
        """One object with a field for each row."""
        self._line({**_ours("up.started", "info"), "message": title, **rows})

    def hear(self, process: str, line: str) -> None:
        """The program's own object, or one made of its words."""
        found = read_line(line)
        if found is None:
            self._line({**_ours("output", "info"), "process": process, "text": line})
        else:
            self._line({**_ours("output", "info"), **found, "process": process})

    def _line(self, fields: Mapping[str, Any]) -> None:
        self._write(json_text(msgspec.json.encode(fields, enc_hook=repr), self._out))


class ConsoleLog(Log):
    """Lines for a person; ``width`` is that of the column of names."""

    def __init__(self, out: TextIO, gone: Callable[[], None]) -> None:
        from rich.console import Console

        super().__init__(out, gone)
        self._console = Console(file=out, highlight=False, soft_wrap=True)
        self._width = len(OURSELVES)

    def say(self, event: str, sentence: str, /, *, level: str = "info", **fields: Any) -> None:
        """Time and sentence."""
        self._line(_clock(None), OURSELVES, sentence, level)

    def show(self, title: str, rows: Mapping[str, str | list[str]]) -> None:
        """A row for each."""
        self._print(Text(), title, "bold")
        speakers = [
            name for row in ("workers", "gateway", "agents") if isinstance(rows.get(row), list) for name in rows[row]
        ]
        self._width = max(map(len, [OURSELVES, *speakers]))
        for name, value in rows.items():
            for one in value if name == "warning" else [value]:
                head = Text(f"{name:<{ROW}}", style="yellow" if name == "warning" else "cyan")
                self._print(head, one if isinstance(one, str) else ", ".join(one))

    def hear(self, process: str, line: str) -> None:
        """Time, name, event and fields; a traceback follows it."""
        found = read_line(line)
        if found is None:
            self._line(_clock(None), process, line, "info")
            return
        fields = " ".join(f"{name}={_shown(value)}" for name, value in found.items() if name not in SHOWN_ELSEWHERE)
        event, level = str(found.get("event", "")), str(found.get("level", "info"))
        self._line(_clock(found.get("timestamp")), process, event, level, fields)
        for one in str(found.get("exception", "")).splitlines():
            self._line(" " * 8, process, f"  {one}", level)

    def _line(self, clock: str, process: str, what: str, level: str, fields: str = "") -> None:
        self._width = max(self._width, len(process))
        head = Text.assemble((f"{clock}  ", "dim"), (f"{process:<{self._width}}  ", "cyan"))
        self._print(head, plain(f"{what}  {fields}" if fields else what), STYLES.get(level, ""))

    def _print(self, head: Text, body: str, style: str = "") -> None:
        """On a terminal, what is longer than a line goes on below, between two words; in a file a line stays one."""
        lines = [body]
        if self._console.is_terminal:
            room = max(20, self._console.width - head.cell_len)
            lines = textwrap.wrap(body, room, break_long_words=False, break_on_hyphens=False) or lines
        for line in lines:
            with self._console.capture() as captured:
                self._console.print(head, Text(line, style=style), sep="", end="")
            self._write(captured.get())
            head = Text(" " * head.cell_len)


def open_log(settings: Settings, gone: Callable[[], None]) -> Log:
    """The log on standard output, as ``log_format`` says; ``auto``: for a person on a terminal, else JSON lines."""
    is_console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stdout.isatty())
    return (ConsoleLog if is_console else JsonLog)(sys.stdout, gone)


def read_line(line: str) -> dict[str, Any] | None:
    """A program's line as an object, or None: it is none, or has no event."""
    if not line.startswith("{"):
        return None
    try:
        found = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("event"), str) else None


def last_words(line: str) -> str:
    """What a program said last, for the sentence about its end: an exception, or an event with its error."""
    found = read_line(line)
    if found is None:
        return line.strip(FRAME)
    exception = str(found.get("exception", "")).strip()
    error = exception.splitlines()[-1] if exception else found.get("error")
    return f"{found['event']}: {error}" if error else str(found["event"])


def _ours(event: str, level: str) -> dict[str, Any]:
    return {
        "timestamp": _now().isoformat().replace("+00:00", "Z"),
        "level": level,
        "event": event,
        "process": OURSELVES,
    }


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _clock(timestamp: Any) -> str:
    """The wall clock of whoever reads."""
    try:
        moment = dt.datetime.fromisoformat(timestamp) if isinstance(timestamp, str) else _now()
    except ValueError:
        moment = _now()
    return moment.astimezone().strftime("%H:%M:%S")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(value) if " " in value or not value else value
    return msgspec.json.encode(value, enc_hook=repr).decode()
