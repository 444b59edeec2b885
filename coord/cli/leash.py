"""Runs a program that ends with the process that started it.

    python -m coord.cli.leash DRAIN_S PROGRAM [ARGUMENT …]

Standard input is a pipe to the starter, which nobody writes to. When it closes, the starter is gone, even if it was
killed with SIGKILL: the program is asked to end as by SIGTERM, and after DRAIN_S seconds killed. It knows nothing of
this; its own standard input is empty. SIGTERM and SIGINT are passed on, and its exit code is this process's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main() -> int:
    """Run the program that the arguments name; its exit code, 128 + n if signal n ended it, 127 if there is none."""
    drain_s, command = float(sys.argv[1]), sys.argv[2:]
    asked = threading.Event()
    # Before the program starts, or a signal in between would end this process alone.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    try:
        program = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    threading.Thread(target=_pass_on, args=(asked, program), name="pass-on", daemon=True).start()
    threading.Thread(target=_watch, args=(asked, program, drain_s), name="leash", daemon=True).start()
    code = program.wait()
    return code if code >= 0 else 128 - code


def _pass_on(asked: threading.Event, program: subprocess.Popen[bytes]) -> None:
    while True:
        asked.wait()
        asked.clear()
        program.terminate()


def _watch(asked: threading.Event, program: subprocess.Popen[bytes], drain_s: float) -> None:
    while os.read(0, 1024):
        pass
    asked.set()
    try:
        program.wait(drain_s)
    except subprocess.TimeoutExpired:
        # The starter is not there to do it: whatever the program has started goes with it, and so does this process.
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
