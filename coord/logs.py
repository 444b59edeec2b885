"""The log of a process, on standard error: dotted event names, data in keywords; JSON lines or readable text.

Standard output stays free for the results of commands. ``coord.log_setup`` configures the log of a process. structlog
is imported there, or here with the first line that is logged: most commands and clients log nothing.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO, cast

import msgspec

from coord.standard_streams import json_text

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

#: Levels that a program which does not configure structlog does not see.
UNSEEN = frozenset({"debug", "info"})


def get_logger(**fields: Any) -> FilteringBoundLogger:
    """Return a logger that adds ``fields`` to each line. Use: ``log.info("task.assigned", task_id=…)``."""
    return cast("FilteringBoundLogger", _DeferredLogger(fields))


class _DeferredLogger:
    """A logger that uses the current configuration of structlog for each line.

    In a program that does not configure structlog (it uses a client, or runs agents itself), it logs only warnings and
    errors, on standard error.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        if name in UNSEEN and "structlog" not in sys.modules:
            return _ignore
        import structlog  # slow, and most programs log nothing

        if structlog.is_configured():
            return partial(_log_safely, getattr(structlog.get_logger(**self._fields), name))
        return partial(_log_safely, getattr(_warnings_only().bind(**self._fields), name))


def _ignore(_event: str, *_args: Any, **_fields: Any) -> None:
    """Ignore a line."""


def _log_safely(write: Callable[..., Any], event: str, *args: Any, **fields: Any) -> Any:
    """Write a line of the log; if that raises, write it with escapes, so that the caller continues."""
    try:
        return write(event, *args, **fields)
    except Exception as error:  # noqa: BLE001 -- a value's __repr__, a processor of the program's own
        with contextlib.suppress(Exception):
            line = to_json({"event": event, **fields, "log_error": error}, sys.stderr)
            sys.stderr.write(line.encode("ascii", "backslashreplace").decode() + "\n")
        return None


def _warnings_only() -> FilteringBoundLogger:
    import structlog

    render = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    logger = structlog.wrap_logger(
        structlog.PrintLogger(cast("TextIO", TolerantStream(sys.stderr))),
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True), render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    return cast("FilteringBoundLogger", logger)


class TolerantStream:
    """A stream that ignores errors: if the log cannot be written, work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write, with escapes for what the encoding of the stream lacks."""
        with contextlib.suppress(OSError):
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # half of a surrogate pair, or a stream that is not UTF-8
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def flush(self) -> None:
        """Flush the stream."""
        with contextlib.suppress(OSError):
            self._stream.flush()


def to_json(event: Mapping[str, Any], stream: TextIO) -> str:
    """Return an event as JSON for a stream, whatever its values are: one that cannot be JSON becomes text."""
    try:
        encoded = msgspec.json.encode(event, enc_hook=repr)
    except Exception:  # noqa: BLE001 -- half of a surrogate pair, a value that contains itself, a __repr__ that raises
        encoded = msgspec.json.encode({_text_of(name): _plain(value) for name, value in event.items()})
    return json_text(encoded, stream)


def _plain(value: Any) -> Any:
    try:
        msgspec.json.encode(value)
    except Exception:  # noqa: BLE001 -- as above
        return _text_of(value)
    return value


def _text_of(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # noqa: BLE001 -- as above
        text = f"<{type(value).__name__}>"
    return text.encode("utf-8", "backslashreplace").decode()
