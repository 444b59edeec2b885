"""What the exit code of ``coord`` means, whatever the command, and the next step after an error."""

from __future__ import annotations

from enum import IntEnum

from coord import errors
from coord.errors import CoordError


class ExitCode(IntEnum):
    """Every exit code of ``coord``."""

    OK = 0  #: done, or the answer is yes
    NO = 1  #: the answer is no, or what was asked for has failed: a failed task, no such agent, a finding of fsck
    CANNOT = 2  #: it was not asked right, or could not be tried: a wrong option, a bad line of a file, no Redis
    OPEN = 3  #: the time to wait is over and nothing is decided: the task, message or request goes on
    INTERRUPTED = 130  #: Ctrl-C


#: Errors that are answers: the cell was asked, and this is what it said.
_NO: tuple[type[CoordError], ...] = (
    errors.AgentNotFound,
    errors.EntryNotFound,
    errors.EntryTruncated,
    errors.IdConflict,
    errors.MessageExpired,
    errors.MessageNotDead,
    errors.MessageNotFound,
    errors.MessageUndeliverable,
    errors.ResultDropped,
    errors.ResultInvalid,
    errors.TaskAlreadyFinished,
    errors.TaskCancelled,
    errors.TaskExpired,
    errors.TaskFailed,
    errors.TaskNotDead,
    errors.TaskNotFound,
    errors.TaskRefused,
)

#: What to do next, where the error itself does not say it.
_NEXT: dict[type[CoordError], str] = {
    errors.AgentNotFound: "`coord agents list` shows which there are",
    errors.MessageNotFound: "`coord messages list` shows which there are (records end with their time to live)",
    errors.TaskNotFound: "`coord tasks list` shows which there are (finished ones are kept for a day)",
    errors.TaskAlreadyFinished: "`coord tasks show` shows its outcome",
}


def exit_code(error: CoordError) -> ExitCode:
    """The exit code of a command that ended with ``error``."""
    if isinstance(error, errors.ResultTimeout):
        return ExitCode.OPEN
    return ExitCode.NO if isinstance(error, _NO) else ExitCode.CANNOT


def sentence(error: CoordError) -> str:
    """The one line that a person is told of ``error``: what is wrong, and the next step."""
    step = _NEXT.get(type(error))
    return f"coord: {error}; {step}" if step else f"coord: {error}"
