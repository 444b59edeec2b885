"""The log of ``coord up``: its own messages and the output of its programs, as one stream.

On a terminal it is readable: time, process, text. Elsewhere each line is one JSON object with ``timestamp``, ``level``,
``event`` and ``process``. A message of ``coord up`` has its sentence in ``message``. A line that a program wrote as
JSON keeps its fields. Any other line of a program is an ``output`` event with the line in ``text``.
"""

from __future__ import annotations

import datetime as dt
import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import msgspec

from coord.config import Settings
from coord.logs import to_json
from coord.standard_streams import plain, quiet_exit

if TYPE_CHECKING:
    from rich.text import Text

#: Name of ``coord up`` in the column of processes.
OWN_NAME = "coord"
#: Fields of a program's line that the console shows in another column, or not at all.
SHOWN_ELSEWHERE = frozenset({"timestamp", "level", "event", "service", "process", "exception"})
#: Event of a worker that starts.
WORKER_STARTED = "worker.started"
#: Characters that rich draws around an error.
FRAME = " \t│|"
#: Width of the column of row names.
ROW_WIDTH = 11
STYLES = {"warning": "yellow", "error": "red", "critical": "red"}


class WriteMessage(Protocol):
    """Writes one message to the log."""

    def __call__(self, event: str, sentence: str, /, *, level: str = "info", **fields: Any) -> None:
        """Write a message.

        Args:
            event: its dotted name, for programs that read the log.
            sentence: its text, for people.
            level: its level.
            fields: the data of the sentence, for programs that read the log.
        """
        ...


class Log(ABC):
    """The log on one stream; the reader of the stream may go away.

    Args:
        out: the stream.
        on_closed: called once when the reader has closed a pipe.
    """

    def __init__(self, out: TextIO, on_closed: Callable[[], None]) -> None:
        self._out = out
        self._on_closed = on_closed
        self._is_open = True

    @abstractmethod
    def message(self, event: str, sentence: str, /, *, level: str = "info", **fields: Any) -> None:
        """Write a message of ``coord up``, see ``WriteMessage``."""

    @abstractmethod
    def startup(self, title: str, rows: Mapping[str, str | list[str]], place: Mapping[str, str] | None = None) -> None:
        """Write what was started.

        Args:
            title: the first line.
            rows: name -> value or values.
            place: fields of the cell that the rows show and every worker repeats when it starts.
        """

    @abstractmethod
    def output(self, process: str, line: str) -> None:
        """Write a line of a program's output."""

    def _write(self, line: str) -> None:
        if not self._is_open:
            return
        try:
            self._out.write(line + "\n")
            self._out.flush()
        except BrokenPipeError:
            self._is_open = False
            quiet_exit(self._out)
            self._on_closed()
        except OSError:  # a full disk, or a closed terminal: lost lines must not stop the cell
            pass


class JsonLog(Log):
    """JSON lines."""

    def message(self, event: str, sentence: str, /, *, level: str = "info", **fields: Any) -> None:
        """Write an object with the sentence as ``message``."""
        self._line({**_own_fields(event, level), "message": sentence, **fields})

    def startup(self, title: str, rows: Mapping[str, str | list[str]], place: Mapping[str, str] | None = None) -> None:
        """Write an object with a field for each row."""
        self._line({**_own_fields("up.started", "info"), "message": title, **rows})

    def output(self, process: str, line: str) -> None:
        """Write the program's own object, or an ``output`` event with the line."""
        record = parse_line(line)
        if record is None:
            self._line({**_own_fields("output", "info"), "process": process, "text": line})
        else:
            self._line({**_own_fields("output", "info"), **record, "process": process})

    def _line(self, fields: Mapping[str, Any]) -> None:
        self._write(to_json(fields, self._out))


class ConsoleLog(Log):
    """Readable lines."""

    def __init__(self, out: TextIO, on_closed: Callable[[], None]) -> None:
        from rich.console import Console  # slow, and a log of objects needs none of it
        from rich.text import Text

        super().__init__(out, on_closed)
        self._console = Console(file=out, highlight=False, soft_wrap=True)
        self._text = Text
        self._width = len(OWN_NAME)  # of the column of processes
        self._place: Mapping[str, str] = {}

    def message(self, event: str, sentence: str, /, *, level: str = "info", **fields: Any) -> None:
        """Write time and sentence."""
        self._line(_clock(None), OWN_NAME, sentence, level)

    def startup(self, title: str, rows: Mapping[str, str | list[str]], place: Mapping[str, str] | None = None) -> None:
        """Write a line for each row, and one for each warning."""
        self._place = place or {}
        self._print(self._text(), title, "bold")
        processes = [
            name for row in ("workers", "gateway", "agents") if isinstance(rows.get(row), list) for name in rows[row]
        ]
        self._width = max(map(len, [OWN_NAME, *processes]))
        for name, value in rows.items():
            for item in value if name == "warning" else [value]:
                head = self._text(f"{name:<{ROW_WIDTH}}", style="yellow" if name == "warning" else "cyan")
                self._print(head, item if isinstance(item, str) else ", ".join(item))

    def output(self, process: str, line: str) -> None:
        """Write time, process, event and fields; a traceback follows on its own lines.

        A worker that starts names itself and the cell that it uses. What is shown already is left out.
        """
        record = parse_line(line)
        if record is None:
            self._line(_clock(None), process, line, "info")
            return
        known = {**self._place, "name": process} if record["event"] == WORKER_STARTED else {}
        fields = " ".join(
            f"{name}={_shown(value)}"
            for name, value in record.items()
            if name not in SHOWN_ELSEWHERE and (name not in known or known[name] != value)
        )
        event, level = str(record.get("event", "")), str(record.get("level", "info"))
        self._line(_clock(record.get("timestamp")), process, event, level, fields)
        for trace_line in str(record.get("exception", "")).splitlines():
            self._line(" " * 8, process, f"  {trace_line}", level)

    def _line(self, clock: str, process: str, text: str, level: str, fields: str = "") -> None:
        self._width = max(self._width, len(process))
        head = self._text.assemble((f"{clock}  ", "dim"), (f"{process:<{self._width}}  ", "cyan"))
        self._print(head, plain(f"{text}  {fields}" if fields else text), STYLES.get(level, ""))

    def _print(self, head: Text, body: str, style: str = "") -> None:
        """Print a line; on a terminal a long one is wrapped between words and indented, in a file it stays one line."""
        lines = [body]
        if self._console.is_terminal:
            room = max(20, self._console.width - head.cell_len)
            lines = textwrap.wrap(body, room, break_long_words=False, break_on_hyphens=False) or lines
        for line in lines:
            with self._console.capture() as captured:
                self._console.print(head, self._text(line, style=style), sep="", end="")
            self._write(captured.get())
            head = self._text(" " * head.cell_len)


def open_log(settings: Settings, on_closed: Callable[[], None]) -> Log:
    """Return the log on standard output in the format of ``log_format``; ``auto`` is readable on a terminal."""
    is_console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stdout.isatty())
    return (ConsoleLog if is_console else JsonLog)(sys.stdout, on_closed)


def parse_line(line: str) -> dict[str, Any] | None:
    """Return a program's line as an object; None if it is not a JSON object with an event."""
    if not line.startswith("{"):
        return None
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("event"), str) else None


def last_error(line: str) -> str:
    """Summarize the last line of a program that has ended: an exception, or an event with its error."""
    record = parse_line(line)
    if record is None:
        return line.strip(FRAME)
    exception = str(record.get("exception", "")).strip()
    error = exception.splitlines()[-1] if exception else record.get("error")
    return f"{record['event']}: {error}" if error else str(record["event"])


def _own_fields(event: str, level: str) -> dict[str, Any]:
    return {
        "timestamp": _now().isoformat().replace("+00:00", "Z"),
        "level": level,
        "event": event,
        "process": OWN_NAME,
    }


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _clock(timestamp: Any) -> str:
    """Format a timestamp, or the current time, as local wall clock time."""
    try:
        moment = (dt.datetime.fromisoformat(timestamp) if isinstance(timestamp, str) else _now()).astimezone()
    except (ValueError, OverflowError):
        moment = _now().astimezone()
    return moment.strftime("%H:%M:%S")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(value) if " " in value or not value else value
    return msgspec.json.encode(value, enc_hook=repr).decode()
