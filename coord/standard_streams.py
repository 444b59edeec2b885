"""Standard input, output and error as they may be found: closed, full, or with an encoding that is not UTF-8.

A descriptor from 0 to 2 that is closed is the next one that the system gives to a file or a socket: all output would
then go there, and libuv ends a process that uses one. So ``open_missing`` comes before anything is opened.

``plain`` escapes control characters for a terminal; ``quiet_exit`` ends a process whose reader closed the pipe.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import TextIO

#: Errors of a write to a stream that cannot be written: full, over a quota or a limit, gone.
UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})
_MODES = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def prepare() -> None:
    """Make the streams of a command usable: see ``open_missing``; characters that they cannot have are escaped."""
    open_missing()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="backslashreplace")


def open_missing() -> None:
    """Open /dev/null for each of the descriptors 0 to 2 that is closed, and a stream where Python has none."""
    for descriptor, (name, mode) in enumerate(_MODES):
        if not _is_open(descriptor):
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            # SIM115: it is open for as long as the process lives.
            stream = open(descriptor, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def flush() -> OSError | None:
    """Write what standard output and error hold; discard what cannot be written, which would be an error at exit.

    Returns:
        The error of standard output; None if it was written, or its reader has closed it.
    """
    failed: OSError | None = None
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            discard(stream)
            if stream is sys.stdout and not isinstance(error, BrokenPipeError):
                failed = error
        except ValueError:  # closed by the program
            pass
    return failed


def discard(stream: TextIO) -> None:
    """Discard what a stream holds, and all later output."""
    with contextlib.suppress(OSError, ValueError):  # a stream in memory has no descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def write_error(line: str) -> None:
    """Write one line to standard error, if that can be written."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def json_text(encoded: bytes, stream: TextIO) -> str:
    r"""Return encoded JSON as text for a stream: where that is not UTF-8, with ``\u`` escapes."""
    text = encoded.decode()
    if text.isascii() or _is_utf8(stream):
        return text
    # Outside of strings, JSON is ASCII.
    return "".join(char if char.isascii() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    pairs = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{pairs[at : at + 2].hex()}" for at in range(0, len(pairs), 2))


def _is_utf8(stream: TextIO) -> bool:
    name = getattr(stream, "encoding", None)
    return name is None or name.lower().replace("_", "-") in {"utf-8", "utf8"}


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def plain(text: str) -> str:
    """Return ``text`` with every control character escaped, including line breaks."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def quiet_exit(stream: TextIO) -> SystemExit:
    """Return the exception to raise after the reader has closed the output, as ``head`` does."""
    # Without this, the interpreter reports an error when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return SystemExit(0)
