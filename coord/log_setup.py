"""Sets up the log of a process: of coord's own processes with ``configure``, of a user's program otherwise.

structlog is imported here without rich, which it uses only to draw tracebacks, and which takes as long to import as
structlog itself. coord's tracebacks are plain. A program that uses structlog has imported it before, with rich.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from coord.config import Settings
from coord.logs import TolerantStream, to_json


@contextmanager
def _rich_hidden() -> Iterator[None]:
    """Let an import of rich fail during this block, unless it is imported already."""
    if "rich" in sys.modules:
        yield
        return
    sys.modules["rich"] = None  # type: ignore[assignment] # documented: the import raises ModuleNotFoundError
    try:
        yield
    finally:
        del sys.modules["rich"]


with _rich_hidden():
    import structlog


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
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Service(service),
    ]
    render: list[structlog.typing.Processor]
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


def _configure_structlog(processors: list[structlog.typing.Processor], level: int) -> None:
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", TolerantStream(sys.stderr))),
        cache_logger_on_first_use=False,  # a logger that was created at import time must follow a later ``configure``
    )


def _configure_root(
    root: logging.Logger, shared: list[structlog.typing.Processor], render: list[structlog.typing.Processor], level: int
) -> None:
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


class _Service:
    """Adds the name of the process to each line, in every task of the event loop. A context variable would not do."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, _logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event.setdefault("service", self.name)
        return event


def _json(event: Any, **_options: Any) -> str:
    return to_json(event, sys.stderr)
