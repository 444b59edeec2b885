"""Printing: JSON for programs, tables and fields for people, the same when piped but for colours.

What comes from outside (ids, payloads, reasons) is shown with its control characters spelt out, so that no agent can
paint on an operator's terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from coord.errors import ConfigError
from coord.standard_streams import json_text, tell
from coord.terminal import has_enough, plain

#: A value that is shown to a person is cut after so many characters; ``--json`` shows all of it.
SHOWN = 2_000
#: Columns of a table that is piped: as many as it wants, so that nothing is cut.
PIPED_COLUMNS = 100_000


def write_json(value: Any) -> None:
    """One JSON document; indented for a person's eyes, on one line for a program's."""
    said = msgspec.json.encode(value)
    _write(json_text(msgspec.json.format(said, indent=2) if sys.stdout.isatty() else said, sys.stdout) + "\n")


def write_json_line(value: Any) -> None:
    """One object of a stream of data: always one line."""
    _write(json_text(msgspec.json.encode(value), sys.stdout) + "\n")


def write_line(text: str = "") -> None:
    """One line of text, control characters spelt out."""
    _write(plain(text) + "\n")


def hint(text: str) -> None:
    """One line beside the data: on standard error."""
    tell(plain(text))


@contextlib.contextmanager
def interruptible(sentence: str) -> Iterator[None]:
    """Say on Ctrl-C what goes on without this command, and how to go on with it."""
    try:
        yield
    except asyncio.CancelledError:
        hint(f"interrupted: {sentence}")
        raise


def write_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    right: Collection[str] = (),
    free: str | None = None,
    spare: Sequence[str] = (),
) -> None:
    """A table with a header line, columns aligned; on a terminal, what has no room in a line goes below it, indented.

    Args:
        columns: their names.
        rows: one value for each column; see ``shown``. In one piece, so that it can be copied, but for the free one.
        right: the columns whose values stand at the right: numbers.
        free: the column that may be wrapped; default: the last.
        spare: the columns that a narrow terminal does without, the most dispensable first.
    """
    from rich.text import Text

    from coord.cli.table import lay_out

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED_COLUMNS
    cells = [[shown(value) for value in row] for row in rows]
    header, *below = lay_out(columns, cells, width, right=right, free=free, spare=spare)
    for line in header:
        _write_rich(Text(line, style="bold"))
    _write("".join(f"{line}\n" for lines in below for line in lines))


def write_fields(fields: Mapping[str, Any]) -> None:
    """One record: a line for each field that has a value, its name first."""
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
    """A value as a person reads it: text as it is, nothing for None, anything else as JSON; cut after ``SHOWN``."""
    if value is None:
        return ""
    text = plain(value if isinstance(value, str) else msgspec.json.encode(value).decode())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text):,} characters; --json shows all)"


def moment(ms: int | None) -> str:
    """A moment, given in milliseconds since 1970, in the local time zone: 2026-01-31 12:00:00.123; '' for None."""
    if ms is None:
        return ""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(ms // 1000))}.{ms % 1000:03d}"


def duration(ms: float | None) -> str:
    """A length of time, given in milliseconds: 12 ms, 3.4 s, 5 min 6 s, 7 h 8 min, 9 d 10 h; '' for None."""
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


def _write_rich(what: Any) -> None:
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(highlight=False, markup=False, emoji=False, width=None if terminal else PIPED_COLUMNS)
    with console.capture() as captured:
        console.print(what)
    _write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise has_enough(sys.stdout) from None
    except OSError as error:
        raise ConfigError(f"cannot write the output: {error.strerror}") from None
