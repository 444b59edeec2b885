"""Ctrl-C while a program still imports: the process ends at once, with exit code 130 and no traceback.

A handler that raises is of no use there: ``KeyboardInterrupt`` in the middle of an import is a traceback of many lines,
and some of the code that runs then turns it into another error.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

#: The exit code after Ctrl-C, as shells give it.
EXIT_CODE = 130


def end_on_interrupt() -> None:
    """End the process on Ctrl-C from now on, until something else handles the signal."""
    if _is_default():
        signal.signal(signal.SIGINT, _leave)


@contextmanager
def ends_on_interrupt() -> Iterator[None]:
    """End the process on Ctrl-C during this block."""
    if not _is_default():
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def quiet_import() -> AbstractContextManager[None]:
    """End the process on Ctrl-C during this block, if it runs for an import of the program's own main file.

    Elsewhere (a test run, a notebook, an interactive session) ``KeyboardInterrupt`` stays what it is.
    """
    if _main_file_imports(sys._getframe()):  # noqa: SLF001 -- there is no other way to it
        return ends_on_interrupt()
    return nullcontext()


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(EXIT_CODE)


def _is_default() -> bool:
    """Return True if Ctrl-C raises ``KeyboardInterrupt``, and this thread may change that."""
    if threading.current_thread() is not threading.main_thread():
        return False
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _main_file_imports(frame: FrameType | None) -> bool:
    """Return True if nothing but imports stands between this call and the main file of a program."""
    main = sys.modules.get("__main__")
    if main is None or not hasattr(main, "__file__") or hasattr(sys, "ps1"):
        return False
    while frame is not None:
        if frame.f_globals is vars(main):
            return frame.f_code.co_name == "<module>"
        home = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if frame.f_code.co_name != "<module>" and home not in {"coord", "importlib"}:
            return False
        frame = frame.f_back
    return False
