"""Logs of one process: dotted event names, data in keywords, on standard error; JSON lines unless a person reads.

Standard output stays free for what a command was asked for.
"""

from __future__ import annotations

import contextlib
import logging
import sys
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
        service: who is speaking, on every line: ``distributor``, ``agent summarizer-1``, …
    """
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Service(service),
    ]
    render: list[Processor]
    if settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty()):
        # Not rich's: it shows what every variable holds, payloads and secrets too, in a page for each failure.
        trace = structlog.dev.plain_traceback
        render = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=trace)]
    else:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_json)]
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Lenient(sys.stderr))),
        cache_logger_on_first_use=False,  # a logger made at import time must follow a later configure
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak up only when something is wrong: their chatter at info is not our event stream.
    root.setLevel(max(level, logging.WARNING))


def get_logger(**fields: Any) -> FilteringBoundLogger:
    """A logger; ``fields`` go on each of its lines. Use: ``log.info("task.assigned", task_id=…)``."""
    return cast("FilteringBoundLogger", _Guest(fields))


class _Guest:
    """Speaks as the process has configured structlog.

    A program that has not (it uses a client, it serves agents by itself) is told warnings alone, on standard error:
    what it prints is its own.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        if structlog.is_configured():
            return getattr(structlog.get_logger(**self._fields), name)
        return getattr(_quiet().bind(**self._fields), name)


def _quiet() -> FilteringBoundLogger:
    render = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    quiet = structlog.wrap_logger(
        structlog.PrintLogger(cast("TextIO", _Lenient(sys.stderr))),
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True), render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    return cast("FilteringBoundLogger", quiet)


class _Lenient:
    """A stream whose reader may be gone: a line that nobody can hear is no reason to drop work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


class _Service:
    """Puts the speaker's name on each line, in every task of the event loop (a context variable would not reach)."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, _logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event.setdefault("service", self.name)
        return event


def _json(event: Any, **_options: Any) -> str:
    return json_text(msgspec.json.encode(event, enc_hook=repr), sys.stderr)
