"""The log of a process, on standard error: dotted event names, data in keywords; JSON lines or readable text.

Standard output stays free for the results of commands.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TextIO, cast

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger, Processor

from coord.config import Settings
from coord.standard_streams import json_text


def configure(settings: Settings, *, service: str) -> None:
    """Set up structlog and the standard library's logging (redis-py and asyncio use it) for this process.

    Args:
        settings: ``log_level`` and ``log_format``; ``auto`` means console on a terminal, JSON elsewhere.
        service: the name of the process, for every line: ``distributor``, ``agent summarizer-1``, …
    """
    _configure(settings, service, is_coords_process=True)


def configure_program(settings: Settings, *, service: str) -> None:
    """Set up logging like ``configure`` in a user's program, except what the program has set up itself.

    Its configuration of structlog stays, and coord's lines follow it. Handlers and level of the root logger stay if it
    has a handler.

    Args:
        settings: as in ``configure``.
        service: as in ``configure``.
    """
    _configure(settings, service, is_coords_process=False)


def _configure(settings: Settings, service: str, *, is_coords_process: bool) -> None:
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Service(service),
    ]
    render: list[Processor]
    if settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty()):
        # Not the traceback of rich: it shows the values of all variables, including payloads and secrets.
        trace = structlog.dev.plain_traceback
        render = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=trace)]
    else:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_json)]
    if is_coords_process or not _is_users_structlog():
        _configure_structlog([*shared, *render], level)
    root = logging.getLogger()
    if is_coords_process or all(isinstance(handler, _RootHandler) for handler in root.handlers):
        _configure_root(root, shared, render, level)


def _is_users_structlog() -> bool:
    """Return True if structlog is configured, and not by coord."""
    if not structlog.is_configured():
        return False
    processors = structlog.get_config()["processors"]
    return not any(isinstance(processor, _Service) for processor in processors)


def _configure_structlog(processors: list[Processor], level: int) -> None:
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _TolerantStream(sys.stderr))),
        cache_logger_on_first_use=False,  # a logger that was created at import time must follow a later ``configure``
    )


def _configure_root(root: logging.Logger, shared: list[Processor], render: list[Processor], level: int) -> None:
    handler = _RootHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root.handlers[:] = [handler]
    # Libraries log only warnings and errors: their messages at level info are not coord's events.
    root.setLevel(max(level, logging.WARNING))


class _RootHandler(logging.StreamHandler[TextIO]):
    """The handler that coord adds to the root logger."""


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
        if structlog.is_configured():
            return partial(_log_safely, getattr(structlog.get_logger(**self._fields), name))
        return partial(_log_safely, getattr(_warnings_only().bind(**self._fields), name))


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
    render = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    logger = structlog.wrap_logger(
        structlog.PrintLogger(cast("TextIO", _TolerantStream(sys.stderr))),
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True), render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    return cast("FilteringBoundLogger", logger)


class _TolerantStream:
    """A stream that ignores errors: if the log cannot be written, work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # half of a surrogate pair, or a stream that is not UTF-8
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


class _Service:
    """Adds the name of the process to each line, in every task of the event loop. A context variable would not do."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, _logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event.setdefault("service", self.name)
        return event


def to_json(event: Mapping[str, Any], stream: TextIO) -> str:
    """Return an event as JSON for a stream, whatever its values are: one that cannot be JSON becomes text."""
    try:
        encoded = msgspec.json.encode(event, enc_hook=repr)
    except Exception:  # noqa: BLE001 -- half of a surrogate pair, a value that contains itself, a __repr__ that raises
        encoded = msgspec.json.encode({_text_of(name): _plain(value) for name, value in event.items()})
    return json_text(encoded, stream)


def _json(event: Any, **_options: Any) -> str:
    return to_json(event, sys.stderr)


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
