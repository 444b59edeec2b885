"""The outcome of a program: a result, a failure, or a returned task.

* Exit code 0: standard output is the result.
* 75 (EX_TEMPFAIL): the task is returned and runs again soon, here or on another agent; it does not count as an attempt.
* 64, 65, 66 (EX_USAGE, EX_DATAERR, EX_NOINPUT): the failure is permanent, because its cause is in the task.
* Any other code (78, EX_CONFIG, too: another machine may be set up better) or a signal: a retry may succeed.
"""

from __future__ import annotations

import contextlib
import signal
from enum import StrEnum
from typing import Any

from msgspec import Raw

from coord.agent.task import NonRetryable, Release, Retryable
from coord.codec import BAD_JSON, decode_json

RELEASE = 75
PERMANENT = frozenset({64, 65, 66})
#: Exit codes of a shell for a command that it could not run.
_SHELL = {126: " (cannot be executed)", 127: " (not found)"}


class Output(StrEnum):
    """How standard output is read as a result."""

    AUTO = "auto"  #: JSON if it is JSON, else text
    JSON = "json"  #: JSON; anything else is a failure
    TEXT = "text"  #: text, also if it is JSON


def check(code: int, stderr: str) -> None:
    """Raise the outcome of a program that did not end with exit code 0.

    Args:
        code: its exit code; negative: the number of the signal that ended it.
        stderr: the end of its standard error.

    Raises:
        Release, NonRetryable, Retryable: see the module's docstring.
    """
    if code == 0:
        return
    message = describe_end(code, stderr)
    if code == RELEASE:
        raise Release(message)
    if code in PERMANENT:
        raise NonRetryable(f"exit_{code}", message)
    raise Retryable(f"exit_{code}" if code > 0 else "killed", message)


def describe_end(code: int, stderr: str) -> str:
    """Describe how a program ended and what it wrote to standard error."""
    return f"{describe_exit(code)}: {stderr}" if stderr else f"{describe_exit(code)}, and nothing on standard error"


def describe_exit(code: int) -> str:
    """Describe an exit code: ``exit code 3``; a negative one is a signal: ``killed by SIGSEGV``."""
    if code >= 0:
        return f"exit code {code}{_SHELL.get(code, '')}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def result(written: bytes, output: Output) -> Any:
    """Return the result in standard output: JSON as it is, or text without trailing line ends; None if it is empty.

    Raises:
        NonRetryable: it is not UTF-8, or not JSON although ``output`` requires it.
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
            "print text or JSON, and encode other data, for example as base64",
        ) from None
