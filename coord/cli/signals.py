"""How a person, a service manager or a parent process asks a command to end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from coord.agent.signals import ONE_STOP_S
from coord.up.shutdown import Stop


@contextlib.contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """Ask ``stop`` on Ctrl-C, SIGTERM and a closed terminal (unless ``nohup`` said to ignore that)."""
    loop = asyncio.get_running_loop()
    last_terminated = float("-inf")

    def terminate() -> None:
        """Ask once for several SIGTERMs of one stop: to the process group, and passed on by a parent process."""
        nonlocal last_terminated
        now = loop.time()
        if now - last_terminated >= ONE_STOP_S:
            last_terminated = now
            stop.ask()

    heard = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        heard.append(signal.SIGHUP)
    for number in heard:
        loop.add_signal_handler(number, terminate if number == signal.SIGTERM else stop.ask)
    try:
        yield
    finally:
        for number in heard:
            loop.remove_signal_handler(number)


def stop_when_stdin_closes(stop: Stop) -> None:
    """Ask ``stop`` at the end of standard input: whoever started this process with a pipe is gone."""
    loop = asyncio.get_running_loop()

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself meanwhile
            loop.call_soon_threadsafe(stop.ask_once)

    # A thread, since a loop can watch a pipe or a terminal, but neither a file nor /dev/null.
    threading.Thread(target=watch, name="stdin", daemon=True).start()
