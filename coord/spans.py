"""Spans of a distributed trace (OpenTelemetry), while a program records them; else each place costs one comparison.

``enable`` imports ``coord.otel``, which needs the extra ``coord[otel]``, and sets ``recorder``. Nothing imports
OpenTelemetry before.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, Literal, NamedTuple, Protocol

from coord.errors import ConfigError

Kind = Literal["server", "producer", "consumer", "internal"]
Attributes = dict[str, str | int]


class Span(Protocol):
    """A span that is open."""

    @property
    def traceparent(self) -> str | None:
        """Its place in the trace; None if the program has no tracer provider."""

    def fail(self, message: str) -> None:
        """Set its status to an error."""

    def describe(self, name: str | None = None, **attributes: str | int) -> None:
        """Change its name, and add attributes."""


class EndedSpan(NamedTuple):
    """A span of the past."""

    name: str
    begin: int  #: ms since 1970
    end: int  #: the same
    attributes: Attributes
    error: str | None = None  #: why what it stands for failed


class Recorder(Protocol):
    """Records spans."""

    def span(
        self, name: str, traceparent: str | None, kind: Kind, attributes: Attributes
    ) -> AbstractContextManager[Span]:
        """Record a span while a block runs; an exception in the block is recorded with it.

        Args:
            name: of the span.
            traceparent: the parent; None: the span in which the program is.
            kind: of the span.
            attributes: of the span.
        """

    def record(self, span: EndedSpan, traceparent: str) -> None:
        """Record a span that has ended; its parent is ``traceparent``."""


#: What records spans; None: nothing does. Read it through the module: it changes.
recorder: Recorder | None = None


def enable() -> Recorder:
    """Record spans in this process from now on; has no effect if it does already.

    Raises:
        ConfigError: the extra is not installed.
    """
    global recorder  # noqa: PLW0603 -- one for the process, as OpenTelemetry has one provider
    if recorder is None:
        try:
            made: Any = import_module("coord.otel").make_recorder()
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"COORD_TRACING=true: OpenTelemetry is not installed ({error.name}); install coord[otel]"
            ) from None
        recorder = made
    assert recorder is not None  # noqa: S101
    return recorder


def disable() -> None:
    """Record no spans in this process from now on."""
    global recorder  # noqa: PLW0603 -- the same
    recorder = None
