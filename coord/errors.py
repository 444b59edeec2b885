"""Every error that coord raises or sends in an answer.

    CoordError
    ├── Invalid             the request does not fit; a retry fails again
    │   ├── ConfigError, FactTooLarge, IdInvalid, CursorInvalid, QueryInvalid, EntryBuried
    │   └── FactInvalid
    │       └── PayloadInvalid
    ├── Forbidden           the sender may not speak for this agent
    │   └── TokenMissing, TokenInvalid
    ├── NotFound            no such record, or no record any more
    │   ├── TaskNotFound, UnknownAgent, AgentNotEnrolled, ApiKeyNotFound, MessageNotFound, EntryNotFound
    │   └── AgentNotFound
    │       └── AgentLeft
    ├── Conflict            the request contradicts the present state
    │   ├── IdConflict, TaskAlreadyFinished, TaskNotDead, MessageNotDead, EntryTruncated, AgentSuperseded
    │   ├── AgentNotDraining, AgentIsEnrolled, ApiKeysFull, StaleLease
    │   ├── LinkNotRequested, LinkDeclined, LinksFull, HierarchyCycle
    │   └── DataFolderInUse
    ├── Unavailable         the server or the cell cannot take the request now
    │   ├── ServerUnavailable, ServerFull, ServerUnfit, TaskRefused
    ├── Timeout             the wait is over and nothing is decided; also a builtin TimeoutError
    │   └── ResultTimeout, RequestTimedOut
    ├── TaskEnded           the task ended without a result that can be read
    │   ├── TaskFailed, TaskCancelled, TaskExpired, ResultInvalid, ResultDropped
    ├── RequestEnded        the request ended without a reply that can be used
    │   └── RequestFailed
    └── Undelivered         the message did not reach an inbox
        ├── MessageUndeliverable, MessageExpired, HopLimitReached, ConversationFull
        └── NotLinked, NotInHierarchy, NoSubordinates

Each class has three attributes: ``code`` (sent in answers; stable), ``http_status`` (of the gateway) and ``exit_code``
(of the command line; ``coord.cli.exit_codes.ExitCode`` explains the numbers). A subclass inherits what it does not set.
A ``TaskFailed`` or ``RequestFailed`` has the code of its failure.

A message names the field or the record that is wrong and, where there is one, the next step. ``from_code`` turns the
code of an answer back into its class, so that a Python caller catches the same class wherever the error was found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # at run time, every class in this module is an error
    from typing import Any


class CoordError(Exception):
    """Base class of all errors of coord."""

    code: str = "error"
    http_status: ClassVar[int] = 422
    exit_code: ClassVar[int] = 2


# Groups. They have no code of their own, because only their subclasses are raised.


class Invalid(CoordError):
    """The request does not fit, so a retry fails again."""


class Forbidden(CoordError):
    """The sender may not speak for this agent."""

    http_status = 403


class NotFound(CoordError):
    """The record does not exist, or not any more."""

    http_status = 404
    exit_code = 1


class Conflict(CoordError):
    """The request contradicts the present state."""

    http_status = 409
    exit_code = 1


class Unavailable(CoordError):
    """The server or the cell cannot take the request now."""

    http_status = 503


class Timeout(CoordError, TimeoutError):
    """The wait is over and nothing is decided: the task, message or request continues."""

    http_status = 504
    exit_code = 3


class TaskEnded(CoordError):
    """The task ended without a result that can be read."""

    exit_code = 1


class RequestEnded(CoordError):
    """The request ended without a reply that can be used."""

    exit_code = 1


class Undelivered(CoordError):
    """The message did not reach an inbox."""

    exit_code = 1


# Invalid.


class ConfigError(Invalid):
    """A setting is unknown or its value does not fit; or the SDK is used in a wrong way."""

    code = "config_invalid"
    http_status = 503  # the configuration is the gateway's, not the caller's


class FactInvalid(Invalid):
    """An entry does not fit its type; the message names the field."""

    code = "fact_invalid"


class PayloadInvalid(FactInvalid):
    """A payload cannot be encoded as JSON, or its reader could not decode it; the message has the path of the value."""

    code = "payload_invalid"


class FactTooLarge(Invalid):
    """An entry, a payload or a result is over its limit."""

    code = "fact_too_large"
    http_status = 413


class IdInvalid(Invalid):
    """An id is not 1 to 128 characters of A-Z a-z 0-9 . _ @ -, or is a reserved word."""

    code = "id_invalid"


class CursorInvalid(Invalid):
    """A cursor does not come from the list that it is used for."""

    code = "cursor_invalid"


class QueryInvalid(Invalid):
    """A query does not fit; the message names the position and the nearest valid text."""

    code = "query_invalid"


class EntryBuried(Invalid):
    """The entry failed three times by itself and was moved to dead:in."""

    code = "entry_buried"


# Forbidden.


class TokenMissing(Forbidden):
    """A fact of an agent came without the token of that agent."""

    code = "token_missing"
    http_status = 401


class TokenInvalid(Forbidden):
    """A fact of an agent came with a token that the agent does not have, or not any more."""

    code = "token_invalid"


# NotFound.


class TaskNotFound(NotFound):
    """No task has this id."""

    code = "task_not_found"


class AgentNotFound(NotFound):
    """No agent has this id."""

    code = "agent_not_found"


class AgentLeft(AgentNotFound):
    """The agent has left: it gets nothing until it registers again."""

    code = "agent_left"


class UnknownAgent(NotFound):
    """A heartbeat came from an agent that is not registered; the agent must register again."""

    code = "unknown_agent"
    exit_code = 2


class AgentNotEnrolled(NotFound):
    """The agent has no token."""

    code = "agent_not_enrolled"


class ApiKeyNotFound(NotFound):
    """No key of the HTTP API has this id."""

    code = "api_key_not_found"


class MessageNotFound(NotFound):
    """No message has this id, or its record was removed."""

    code = "message_not_found"


class EntryNotFound(NotFound):
    """No entry of dead:in has this id."""

    code = "entry_not_found"


# Conflict.


class IdConflict(Conflict):
    """The id was used before with other content."""

    code = "id_conflict"


class AgentIsEnrolled(Conflict):
    """The agent has a token already."""

    code = "agent_enrolled"


class ApiKeysFull(Conflict):
    """There are as many keys of the HTTP API as there may be."""

    code = "api_keys_full"


class TaskAlreadyFinished(Conflict):
    """The task has an outcome already, so the request changes nothing."""

    code = "task_finished"


class TaskNotDead(Conflict):
    """The task is not a dead letter: only a failed task can be replayed or purged."""

    code = "task_not_dead"


class AgentNotDraining(Conflict):
    """The agent gets new tasks, so a wait until it has none left may never end."""

    code = "agent_not_draining"


class MessageNotDead(Conflict):
    """The message is not a dead letter: only an undelivered message can be replayed or purged."""

    code = "message_not_dead"


class EntryTruncated(Conflict):
    """The entry in dead:in was not kept whole, so it cannot be replayed."""

    code = "entry_truncated"
    http_status = 422


class AgentSuperseded(Conflict):
    """A newer process took this agent id; this process must stop."""

    code = "superseded"
    exit_code = 2


class StaleLease(Conflict):
    """The lease of a report is not that of the attempt, or the attempt has ended before."""

    code = "stale_lease"


class LinkNotRequested(Conflict):
    """The other agent has not requested the link that is accepted."""

    code = "link_not_requested"


class LinkDeclined(Conflict):
    """The other agent has declined the link, or ended it."""

    code = "link_declined"


class LinksFull(Conflict):
    """The agent has as many links, subordinates or masters above it as it may have."""

    code = "links_full"


class HierarchyCycle(Conflict):
    """The master is below the agent in the hierarchy."""

    code = "hierarchy_cycle"


class DataFolderInUse(Conflict):
    """Another server has the data folder open."""

    code = "data_folder_in_use"
    http_status = 422
    exit_code = 2


# Unavailable.


class ServerUnavailable(Unavailable):
    """No Redis server answered."""

    code = "server_unavailable"


class ServerFull(Unavailable):
    """The Redis server is out of memory and accepts nothing new; try again later."""

    code = "server_full"


class ServerUnfit(Unavailable):
    """The Redis server cannot be used as it is set up; the message says what to change."""

    code = "server_unfit"


class TaskRefused(Unavailable):
    """The backlog is full; submit the task again later."""

    code = "backlog_full"
    exit_code = 1


# Timeout.


class ResultTimeout(Timeout):
    """There was no outcome or answer within the timeout of the caller."""

    code = "result_timeout"


class RequestTimedOut(Timeout):
    """The receiver of a request did not reply in time.

    Attributes:
        receiver: its last known state, ``coord.models.messages.AgentState``; None if it is not known.
    """

    code = "request_timed_out"
    exit_code = 1  # decided: a reply that comes later is marked as late

    def __init__(self, text: str, *, receiver: Any = None) -> None:
        super().__init__(text)
        self.receiver = receiver


# TaskEnded.


class TaskFailed(TaskEnded):
    """The task used up its attempts, or failed in a way that no retry can fix.

    Attributes:
        code: from the handler: that of its ``NonRetryable`` or ``Retryable``, ``handler_failed`` for any other
            exception; or one of coord, such as ``timed_out``. ``task_failed`` if it is not known.
        message: the reason, from the handler.
        detail: any JSON from the handler, or None.
        task_id: id of the task.
        attempt: the number of its last attempt; 0 if it is not known.
    """

    code = "task_failed"

    def __init__(
        self, text: str, *, code: str = "", message: str = "", detail: Any = None, task_id: str = "", attempt: int = 0
    ) -> None:
        super().__init__(text)
        if code:
            self.code = code
        self.message = message
        self.detail = detail
        self.task_id = task_id
        self.attempt = attempt


class TaskCancelled(TaskEnded):
    """The task was cancelled before it had a result."""

    code = "task_cancelled"


class TaskExpired(TaskEnded):
    """The deadline of the task passed before it had a result."""

    code = "task_expired"


class ResultInvalid(TaskEnded):
    """The task completed, but its result cannot be decoded; the record shows its text."""

    code = "result_invalid"


class ResultDropped(TaskEnded):
    """The task completed, but its result was dropped to free memory on the server."""

    code = "result_dropped"


# RequestEnded.


class RequestFailed(RequestEnded):
    """The receiver of a request replied that it failed.

    Attributes:
        code: from the handler: that of its ``NonRetryable`` or ``Retryable``, ``handler_failed`` for any other
            exception; ``request_failed`` if it is not known.
        message: the reason, from the handler.
        detail: any JSON from the handler, or None.
    """

    code = "request_failed"

    def __init__(self, text: str, *, code: str = "", message: str = "", detail: Any = None) -> None:
        super().__init__(text)
        if code:
            self.code = code
        self.message = message
        self.detail = detail


# Undelivered.


class MessageUndeliverable(Undelivered):
    """The message has no receiver, or the inbox of its receiver is full."""

    code = "message_undeliverable"


class MessageExpired(Undelivered):
    """The time to live of the message passed before it was delivered."""

    code = "message_expired"


class HopLimitReached(Undelivered):
    """The chain of answers that the message continues is too long; the message names its path."""

    code = "hop_limit_reached"


class ConversationFull(Undelivered):
    """The conversation of the message has as many messages as it may have; the message names the path."""

    code = "conversation_full"


class NotLinked(Undelivered):
    """The protocol peer_to_peer needs a link that both agents have accepted."""

    code = "not_linked"


class NotInHierarchy(Undelivered):
    """The protocol hierarchical allows messages to the master and to subordinates only."""

    code = "not_in_hierarchy"


class NoSubordinates(Undelivered):
    """The message goes to all subordinates of its sender, which has none."""

    code = "no_subordinates"


#: code -> class, for every class above that has a code of its own.
BY_CODE: dict[str, type[CoordError]] = {
    cls.code: cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, CoordError) and "code" in vars(cls)
}


def from_code(code: str, message: str) -> CoordError:
    """Return the error that an answer's ``code`` names; an unknown code becomes a plain ``CoordError``."""
    return BY_CODE.get(code, CoordError)(message or code)
