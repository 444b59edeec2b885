"""Every error that coord raises or answers with: one class per error, its ``code`` is what travels on the wire.

A message names the field or the thing that is wrong and, where there is one, the next step. ``from_code`` turns the
code of an answer back into the class, so that a caller in Python catches the same error wherever it was found.
"""

from __future__ import annotations

from typing import Any


class CoordError(Exception):
    """Something coord refuses or could not do."""

    code: str = "error"


class ConfigError(CoordError):
    """A setting is unknown or its value does not fit."""

    code = "config_invalid"


class FactInvalid(CoordError):
    """An entry does not fit its type; the message names the field."""

    code = "fact_invalid"


class PayloadInvalid(FactInvalid):
    """A payload cannot be JSON, or its reader could not decode it; the message has the path of the value."""

    code = "payload_invalid"


class FactTooLarge(CoordError):
    """An entry, a payload or a result is over its limit."""

    code = "fact_too_large"


class IdInvalid(CoordError):
    """An id is not 1 to 128 characters of A-Z a-z 0-9 . _ @ -, or is a reserved word."""

    code = "id_invalid"


class IdConflict(CoordError):
    """The id was used before with other content."""

    code = "id_conflict"


class CursorInvalid(CoordError):
    """A cursor was not given by the list that it is used for."""

    code = "cursor_invalid"


class TaskNotFound(CoordError):
    """No task has this id."""

    code = "task_not_found"


class TaskRefused(CoordError):
    """The backlog is full; submit again later."""

    code = "backlog_full"


class TaskAlreadyFinished(CoordError):
    """The task has an outcome already, so the request changes nothing."""

    code = "task_finished"


class TaskNotDead(CoordError):
    """The task is no dead letter: only a failed one can be replayed or purged."""

    code = "task_not_dead"


class TaskFailed(CoordError):
    """The task used up its attempts, or failed in a way that no retry can help.

    Attributes:
        code: what the handler gave: that of its ``NonRetryable`` or ``Retryable``, ``handler_failed`` for any other
            exception; or one of coord's, such as ``timed_out``. ``task_failed`` where it is not known.
        message: why, in the handler's words.
        detail: what the handler gave besides (any JSON), or None.
        task_id: of the task.
        attempt: the number of its last attempt; 0 where it is not known.
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


class TaskCancelled(CoordError):
    """The task was cancelled before it had a result."""

    code = "task_cancelled"


class TaskExpired(CoordError):
    """The task's deadline passed before it had a result."""

    code = "task_expired"


class ResultInvalid(CoordError):
    """The task completed, but its result cannot be decoded; the record shows its text."""

    code = "result_invalid"


class ResultDropped(CoordError):
    """The task completed, but its result was dropped to free memory on the server."""

    code = "result_dropped"


class AgentNotFound(CoordError):
    """No agent has this id."""

    code = "agent_not_found"


class UnknownAgent(CoordError):
    """A beat came from an agent that is not registered; it has to register again."""

    code = "unknown_agent"


class AgentSuperseded(CoordError):
    """A newer process took this agent id; this one must stop."""

    code = "superseded"


class MessageUndeliverable(CoordError):
    """The message has no receiver, or its receiver has no room."""

    code = "message_undeliverable"


class MessageExpired(CoordError):
    """The message's time to live passed before it was delivered."""

    code = "message_expired"


class MessageNotFound(CoordError):
    """No message has this id, or its record was forgotten."""

    code = "message_not_found"


class MessageNotDead(CoordError):
    """The message was delivered: only a dead one can be replayed or purged."""

    code = "message_not_dead"


class EntryNotFound(CoordError):
    """No buried entry has this id."""

    code = "entry_not_found"


class EntryTruncated(CoordError):
    """The buried entry was not kept whole, so it cannot be replayed."""

    code = "entry_truncated"


class EntryBuried(CoordError):
    """The entry failed three times by itself and lies in dead:in."""

    code = "entry_buried"


class ServerUnfit(CoordError):
    """The Redis server cannot be used as it is set up; the message says what to change."""

    code = "server_unfit"


class ServerUnavailable(CoordError):
    """No Redis server answered."""

    code = "server_unavailable"


class ServerFull(CoordError):
    """The Redis server is out of memory and takes nothing new; try again later."""

    code = "server_full"


class DataFolderInUse(CoordError):
    """Another server has the data folder open."""

    code = "data_folder_in_use"


class ResultTimeout(CoordError, TimeoutError):
    """The task had no outcome within the time the caller wanted to wait."""

    code = "result_timeout"


#: code -> class, for every error above.
BY_CODE: dict[str, type[CoordError]] = {
    cls.code: cls for cls in list(globals().values()) if isinstance(cls, type) and issubclass(cls, CoordError)
}


def from_code(code: str, message: str) -> CoordError:
    """Build the error that an answer's ``code`` stands for; an unknown code becomes a plain ``CoordError``."""
    return BY_CODE.get(code, CoordError)(message or code)
