"""What the exit code of ``coord`` means, whatever the command, and the next step after an error."""

from __future__ import annotations

from enum import IntEnum

from coord import errors
from coord.errors import CoordError


class ExitCode(IntEnum):
    """Every exit code of ``coord``; ``exit_code`` of an error class is one of them."""

    OK = 0  #: done, or the answer is yes
    NO = 1  #: the answer is no, or what was asked for has failed: a failed task, no such agent, a finding of fsck
    CANNOT = 2  #: it was not asked right, or could not be tried: a wrong option, a bad line of a file, no Redis
    OPEN = 3  #: the time to wait is over and nothing is decided: the task, message or request goes on
    WAITS = 4  #: the task waits: no agent has it (``coord tasks explain``)
    INTERRUPTED = 130  #: Ctrl-C


#: What to do next, where the error itself does not say it.
_NEXT: dict[type[CoordError], str] = {
    errors.AgentNotFound: "`coord agents list` shows which there are",
    errors.MessageNotFound: "`coord messages list` shows which there are (records end with their time to live)",
    errors.TaskNotFound: "`coord tasks list` shows which there are (finished ones are kept for a day)",
    errors.TaskAlreadyFinished: "`coord tasks show` shows its outcome",
}


def sentence(error: CoordError) -> str:
    """Return the line to print for an error: what is wrong, and the next step."""
    step = _NEXT.get(type(error))
    return f"coord: {error}; {step}" if step else f"coord: {error}"


def error_fields(error: CoordError) -> dict[str, str]:
    """Return an error as JSON: its code, what is wrong, and the next step if the message does not contain it."""
    fields = {"code": error.code, "message": str(error)}
    step = _NEXT.get(type(error))
    return fields | {"next": step} if step else fields
