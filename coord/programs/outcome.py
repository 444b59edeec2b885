"""What a program's end means: a result, a failure, or a task given back.

* exit code 0: standard output is the result;
* 75 (EX_TEMPFAIL): the task is given back, and tried again soon, here or elsewhere; that counts as no attempt;
* 64, 65, 66 (EX_USAGE, EX_DATAERR, EX_NOINPUT): a failure that no retry mends, for it lies in the task;
* any other (78, EX_CONFIG, too: another machine may be set up better), or a signal: a failure that a retry may mend.
"""

from __future__ import annotations

import contextlib
import signal
from enum import StrEnum
from typing import Any

from msgspec import Raw

from coord.agent.task import NonRetryable, Release, Retryable
from coord.codec import BAD_JSON, decode_json

TRY_ELSEWHERE = 75
FINAL = frozenset({64, 65, 66})
#: What a shell says of a command that it could not run.
_SHELL = {126: " (cannot be executed)", 127: " (not found)"}


class Output(StrEnum):
    """How standard output is read as a result."""

    AUTO = "auto"  #: JSON if it is JSON, else text
    JSON = "json"  #: JSON; anything else is a failure
    TEXT = "text"  #: text, also if it is JSON


#: How a program ends that was asked to stop: by SIGTERM or SIGINT, or as a shell reports the same of its child.
STOPPED = (-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT)


class ProgramStopped(Retryable):
    """A signal that asks programs to stop ended it; its agent may have got the same signal."""


def check(code: int, said: str) -> None:
    """Raise what the end of a program means, unless it ended well.

    Args:
        code: its exit code; minus the signal that ended it.
        said: the end of its standard error.
    """
    if code == 0:
        return
    message = f"{how(code)}: {said}" if said else f"{how(code)}, and nothing on standard error"
    if code == TRY_ELSEWHERE:
        raise Release(message)
    if code in FINAL:
        raise NonRetryable(f"exit_{code}", message)
    kind = ProgramStopped if code in STOPPED else Retryable
    raise kind(f"exit_{code}" if code > 0 else "killed", message)


def how(code: int) -> str:
    """How a program ended, for people: ``exit code 3``, ``killed by SIGSEGV``."""
    if code >= 0:
        return f"exit code {code}{_SHELL.get(code, '')}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def result(written: bytes, output: Output) -> Any:
    """The result that standard output is: JSON as it stands, or text without the line ends after it; empty, null.

    Raises:
        NonRetryable: it is not UTF-8, or not the JSON that was asked for.
    """
    if output is not Output.TEXT:
        if not written.strip() and output is Output.AUTO:
            return None
        try:
            decode_json(written)
        except BAD_JSON as error:
            if output is Output.JSON:
                raise NonRetryable("result_invalid", f"standard output is not JSON: {error}") from None
        else:
            return Raw(written.strip())
    try:
        return written.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise NonRetryable(
            "result_invalid",
            f"standard output is not UTF-8 (byte {error.start} is 0x{written[error.start]:02x}); "
            "print text or JSON, and other data encoded, such as by base64",
        ) from None
