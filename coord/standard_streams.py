"""Standard input, output and error as they may be found: closed, full, or with an encoding that is not UTF-8.

A descriptor from 0 to 2 that is closed is the next one that the system gives to a file or a socket: whatever is printed
then would go there, and libuv ends a process that uses one. So ``open_missing`` comes before anything is opened.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import TextIO

#: What a write to a stream fails with that nobody can write to: full, over a quota or a limit, gone.
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


def settle() -> OSError | None:
    """Write what output and error still hold; what cannot be written is dropped, or the interpreter would complain.

    Returns:
        The error of standard output, or None: it was written, or its reader has enough.
    """
    failed: OSError | None = None
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            drop(stream)
            if stream is sys.stdout and not isinstance(error, BrokenPipeError):
                failed = error
        except ValueError:  # closed by the program
            pass
    return failed


def drop(stream: TextIO) -> None:
    """Let what a stream still holds, and all that follows, go nowhere."""
    with contextlib.suppress(OSError, ValueError):  # a stream in memory has no descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def tell(line: str) -> None:
    """Write one line to standard error, if that can be written."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        drop(sys.stderr)


def json_text(encoded: bytes, stream: TextIO) -> str:
    r"""Return encoded JSON as text for a stream: where that is not UTF-8, with ``\u`` escapes."""
    text = encoded.decode()
    if text.isascii() or _is_utf8(stream):
        return text
    # Outside of strings, JSON is ASCII.
    return "".join(one if one.isascii() else _escaped(one) for one in text)


def _escaped(one: str) -> str:
    pairs = one.encode("utf-16-be", "surrogatepass")
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
