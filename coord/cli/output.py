"""Output: JSON for programs; tables, fields and a progress bar for people.

Piped output differs in colours and width only.

Control characters in values from outside (ids, payloads, reasons) are escaped, so that no agent can manipulate an
operator's terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from coord.errors import ConfigError
from coord.models.agents import AgentStatus
from coord.models.messages import MessageStatus
from coord.models.tasks import TaskState
from coord.standard_streams import json_text, plain, quiet_exit, write_error

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from coord.models.explanations import Candidate

#: Maximum characters of a value in readable output; ``--json`` shows all of it.
MAX_SHOWN = 2_000
#: Width of a piped table: large enough that nothing is cut.
PIPED_COLUMNS = 100_000


def write_json(value: Any) -> None:
    """Write one JSON document; indented on a terminal, otherwise on one line."""
    encoded = msgspec.json.encode(value)
    _write(json_text(msgspec.json.format(encoded, indent=2) if sys.stdout.isatty() else encoded, sys.stdout) + "\n")


def write_items(items: Iterable[Any], *, next: str | None = None, **more: Any) -> None:  # noqa: A002 -- the field's name
    """Write a list as JSON; all lists have this shape, so that fields can be added.

    Args:
        items: of the list.
        next: cursor of the next page; None: there is none.
        more: further fields.
    """
    write_json({"items": list(items), "next": next, **more})


def write_json_line(value: Any) -> None:
    """Write one object of a stream of data, always on one line."""
    _write(json_text(msgspec.json.encode(value), sys.stdout) + "\n")


def write_line(text: str = "") -> None:
    """Write one line of text; control characters are escaped."""
    _write(plain(text) + "\n")


def hint(text: str) -> None:
    """Write one line to standard error, beside the data."""
    write_error(plain(text))


@contextlib.contextmanager
def interruptible(sentence: str) -> Iterator[None]:
    """Write on Ctrl-C what continues without this command, and the next step."""
    try:
        yield
    except asyncio.CancelledError:
        hint(f"interrupted: {sentence}")
        raise


def hint_next_page(command: str, options: Mapping[str, Any], cursor: str) -> None:
    """Write the command that continues a list, with the same filters, to standard error.

    Args:
        command: ``coord tasks list``.
        options: option (empty: an argument) -> value or values, as given; None and empty values are left out.
        cursor: where the next page begins.
    """
    words = command.split()
    for option, given in options.items():
        for value in given if isinstance(given, list) else [given]:
            words += [] if value is None else [option, str(value)] if option else [str(value)]
    hint(f"there may be more; continue with: {shlex.join([*words, '--cursor', cursor])}")


def write_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    right: Collection[str] = (),
    free: str | None = None,
    spare: Sequence[str] = (),
    styles: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write a table with a header line; on a terminal, columns without room continue on the next line, indented.

    Args:
        columns: names of the columns.
        rows: one value per column, see ``shown``. Only values of the free column are wrapped, so others can be copied.
        right: columns that are aligned to the right: numbers.
        free: the column that may be wrapped; default: the last.
        spare: columns that a narrow terminal omits, the first of them first.
        styles: name of a column -> value -> its style on a terminal.
    """
    from rich.text import Text

    from coord.cli.table import lay_out, painter

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED_COLUMNS
    cells = [[shown(value) for value in row] for row in rows]
    header, *below = lay_out(columns, cells, width, right=right, free=free, spare=spare, paint=painter(styles or {}))
    for line in header:
        _write_rich(Text(line, style="bold"))
    _write("".join(f"{line}\n" for lines in below for line in lines))


def write_candidates(candidates: Sequence[Candidate]) -> None:
    """Write the scores of agents that a strategy has considered, with every term of them."""
    terms = list(dict.fromkeys(name for one in candidates for name in one.terms))
    rows = [
        (one.agent_id, f"{one.score:.6g}", *(f"{one.terms[name]:.6g}" if name in one.terms else "" for name in terms))
        for one in candidates
    ]
    write_table(("agent", "score", *terms), rows, right=("score", *terms), free="agent")


def write_fields(fields: Mapping[str, Any]) -> None:
    """Write one record: a line for each field with a value, its name first."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for name, value in fields.items():
        if (text := shown(value)) != "":
            table.add_row(Text(name), Text(text))
    _write_rich(table)


def shown(value: Any) -> str:
    """Return a value as readable text: text as it is, "" for None, anything else as JSON; cut after ``MAX_SHOWN``."""
    if value is None:
        return ""
    text = plain(value if isinstance(value, str) else msgspec.json.encode(value).decode())
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text):,} characters; --json shows all)"


def moment(ms: int | None) -> str:
    """Format milliseconds since 1970 in the local time zone: 2026-01-31 12:00:00.123; '' for None."""
    if ms is None:
        return ""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(ms // 1000))}.{ms % 1000:03d}"


def duration(ms: float | None) -> str:
    """Format a duration in milliseconds: 12 ms, 3.4 s, 5 min 6 s, 7 h 8 min, 9 d 10 h; '' for None."""
    if ms is None:
        return ""
    minutes, seconds = divmod(int(ms // 1000), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {seconds} s"
    return f"{ms / 1000:.1f} s" if ms >= 1000 else f"{ms:.0f} ms"


def _write_rich(renderable: Any) -> None:
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(highlight=False, markup=False, emoji=False, width=None if terminal else PIPED_COLUMNS)
    with console.capture() as captured:
        console.print(renderable)
    _write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise quiet_exit(sys.stdout) from None
    except OSError as error:
        raise ConfigError(f"cannot write the output: {error.strerror}") from None


#: State -> style of rich; a state without one is not coloured.
TASK_STATE: dict[str, str] = {
    TaskState.SCHEDULED: "blue",
    TaskState.QUEUED: "yellow",
    TaskState.ASSIGNED: "cyan",
    TaskState.RUNNING: "cyan",
    TaskState.COMPLETED: "green",
    TaskState.FAILED: "red",
    TaskState.CANCELLED: "bright_black",
    TaskState.EXPIRED: "red",
    TaskState.REFUSED: "red",
}
AGENT_STATUS: dict[str, str] = {
    AgentStatus.ACTIVE: "green",
    AgentStatus.INACTIVE: "bright_black",
    AgentStatus.BUSY: "yellow",
    AgentStatus.STALE: "red",
    AgentStatus.MAINTENANCE: "yellow",
    AgentStatus.ERROR: "red",
    AgentStatus.DRAINING: "yellow",
}
MESSAGE_STATUS: dict[str, str] = {
    MessageStatus.DELIVERING: "cyan",
    MessageStatus.DELIVERED: "green",
    MessageStatus.READ: "green",
    MessageStatus.EXPIRED: "red",
    MessageStatus.DEAD: "red",
}


def age(since_ms: int | None, now_ms: int) -> str:
    """Format how long ago a moment was: ``3.4 s``; '' for None. Both are times of the server."""
    return "" if since_ms is None else duration(max(0, now_ms - since_ms))


class ProgressBar:
    """A progress bar; use it as ``with ProgressBar() as progress``."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True, markup=False, highlight=False),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(self, title: str, total: int | None) -> None:
        """Show a new bar; ``total`` is None if the number of steps is unknown."""
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(title, total=total)

    def update(self, done: int) -> None:
        """Set the number of steps done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done)

    def write(self, text: str) -> None:
        """Write one line above the bar."""
        if self._bar is not None:
            self._bar.console.print(plain(text), soft_wrap=True)  # one line, so that ids stay whole
        else:
            hint(text)

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
