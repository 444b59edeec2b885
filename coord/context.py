"""What a handler works on, and for whom a client acts: what is sent meanwhile carries on from there.

The agent sets it before it calls a handler. Messages and tasks that are sent inside the handler, also through a client,
get the same ``traceparent``, and messages the id of the message that caused them.

The command line and the gateway set for whom they act. The requests of operators that are sent meanwhile name them in
the audit.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple


class Work(NamedTuple):
    """What a handler works on."""

    message_id: str | None = None  #: the message that it handles; None: it handles a task
    traceparent: str | None = None  #: of the message or the task


current_work: ContextVar[Work | None] = ContextVar("current_work", default=None)

#: Who asks for what a client requests, for the audit; empty: the client itself.
acting_for: ContextVar[str] = ContextVar("acting_for", default="")
