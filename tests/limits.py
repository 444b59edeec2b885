"""Limits under which a test run always ends, and names the test that did not; a plugin of pytest.

The limits of pytest-timeout and of pytest's ``faulthandler_timeout`` are not enough. Both stop at the first failure of
a test, so a teardown after a failure has none. The exception of a timeout ends the test only where nothing keeps it:
uvloop logs it and goes on, and so does an event loop in which a background task happens to run at that moment. The
block of a process may wait for it after the only timeout. So:

* A timeout also stops the event loop, and repeats every few seconds until the test ends (``timeout_repeat``).
* The teardown of each test has a limit of its own (``teardown_timeout``).
* A thread that a test started and left behind fails the test, because it would keep the process from its end.
* What does not react to any of this ends its process (``hang_timeout``), with the stacks of all threads. xdist reports
  the test as crashed, and goes on with another process.
* After the last test, the process has ``end_timeout`` to end; xdist's main process twice that, with those it started.
* xdist's main process ends the run if no test began or ended for ``quiet_timeout``. The stacks of its processes are
  printed first.

In CI, a failed test is printed when it fails, because a run that is killed has no summary.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import thread as pools
from contextlib import suppress
from time import monotonic
from types import FrameType
from typing import Any

import psutil
import pytest
import pytest_timeout

#: Option in pyproject.toml -> its default in seconds, and what it limits.
OPTIONS = {
    "teardown_timeout": (60, "the teardown of one test"),
    "timeout_repeat": (10, "between two exceptions of a timeout, while the test goes on"),
    "thread_timeout": (10, "the end of a thread that a test started"),
    "hang_timeout": (60, "until the process ends, when a test goes on after its other limits"),
    "end_timeout": (60, "from the end of the last test to the end of the process"),
    "quiet_timeout": (1_200, "between two reports of tests"),
}
#: A test marked long has 7,200 s.
LONG_QUIET_S = 7_500
#: Seconds in which processes write their stacks.
STACKS_S = 10.0

_timeouts = pytest.StashKey[pytest_timeout.Settings]()
_threads = pytest.StashKey[set[threading.Thread]]()
_watchdog = pytest.StashKey["Watchdog"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the limits as options of the configuration file."""
    for name, (default, what) in OPTIONS.items():
        parser.addini(name, f"seconds: {what}", default=str(default))


def pytest_configure(config: pytest.Config) -> None:
    """Start the watchdog of this process, and what only the process that prints has."""
    config.stash[_watchdog] = watchdog = Watchdog()
    if hasattr(config, "workerinput"):
        return
    if _is_distributing(config):
        is_long = config.getoption("--long", default=False)
        limit_s = LONG_QUIET_S if is_long else _seconds(config, "quiet_timeout")
        config.pluginmanager.register(QuietLimit(watchdog, limit_s))
    if os.environ.get("CI"):
        config.pluginmanager.register(FailurePrinter(config))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Limit what is left: threads, and functions that the interpreter calls at its exit.

    A process that xdist started first waits for the end of the others; the main process limits that.
    """
    if not hasattr(config, "workerinput"):
        config.stash[_watchdog].start(_seconds(config, "end_timeout"), "the exit of the process")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Limit the end of the run; a process that xdist started waits for the others."""
    if hasattr(session.config, "workerinput"):
        return
    limit_s = _seconds(session.config, "end_timeout")
    if _is_distributing(session.config):
        limit_s *= 2
    session.config.stash[_watchdog].start(limit_s, "the end of the test run")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Forget the limit of a test after its end."""
    try:
        return (yield)
    finally:
        item.config.stash[_watchdog].stop()


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> Generator[None, object, object]:
    """Let a timeout stop the event loop and repeat, and limit what goes on nevertheless."""
    done = yield
    item.stash[_timeouts] = settings
    if settings.method == "signal":
        signal.signal(signal.SIGALRM, _stopping_loop(signal.getsignal(signal.SIGALRM)))
        signal.setitimer(signal.ITIMER_REAL, settings.timeout, _seconds(item.config, "timeout_repeat"))
    limit_s = settings.timeout + _seconds(item.config, "hang_timeout")
    item.config.stash[_watchdog].start(limit_s, item.nodeid)
    return done


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Stop the timeout of a part of a test that has failed, so that it does not repeat in the report."""
    if call.excinfo is not None:
        item.config.hook.pytest_timeout_cancel_timer(item=item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Note the threads that run before a test."""
    item.stash[_threads] = set(threading.enumerate())
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Limit the teardown, and fail a test that has left a thread."""
    settings = item.stash.get(_timeouts, None)
    if settings is not None:
        limit_s = _seconds(item.config, "teardown_timeout")
        item.config.hook.pytest_timeout_set_timer(item=item, settings=settings._replace(timeout=limit_s))
    result = yield
    for thread in threading.enumerate():
        if _threads in item.stash and not (thread.daemon or thread in item.stash[_threads] or _is_pooled(thread)):
            thread.join(_seconds(item.config, "thread_timeout"))
            if thread.is_alive():
                stack = "".join(traceback.format_stack(sys._current_frames().get(thread.ident or 0)))
                pytest.fail(
                    f"the test has left the thread {thread.name!r}, which prevents an exit:\n{stack}", pytrace=False
                )
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_enter_pdb(config: pytest.Config) -> None:
    """Set no limit for a person."""
    config.stash[_watchdog].disable()


def _stopping_loop(fail: Any) -> Callable[[int, FrameType | None], None]:
    """Return a signal handler that stops the event loop that runs, if any, and calls the one of pytest-timeout."""

    def handle(number: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):
            asyncio.get_running_loop().stop()
        fail(number, frame)

    return handle


def _is_distributing(config: pytest.Config) -> bool:
    """Return True in the main process of xdist."""
    return not hasattr(config, "workerinput") and config.getoption("dist", default="no") != "no"


def _is_pooled(thread: threading.Thread) -> bool:
    """Return True for a thread of an executor, which may be that of a wider fixture."""
    return thread in pools._threads_queues


def _is_xdist(process: psutil.Process) -> bool:
    """Return True for a process in which xdist runs tests."""
    with suppress(psutil.Error):
        return any("exec(eval(sys.stdin.readline()))" in argument for argument in process.cmdline())
    return False


def _seconds(config: pytest.Config, name: str) -> float:
    return float(config.getini(name))


class Watchdog:
    """Ends this process with the stacks of all threads if a limit passes."""

    def __init__(self) -> None:
        self._output = os.dup(2)  # pytest redirects the number 2 during tests
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._what: Callable[[], str] = str
        self._is_enabled = True
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def start(self, limit_s: float, what: str | Callable[[], str]) -> None:
        """Begin a limit, in place of an earlier one.

        Args:
            limit_s: seconds.
            what: what must end within the limit.
        """
        with self._changed:
            self._deadline = monotonic() + limit_s
            self._what = what if callable(what) else lambda: f"not within {limit_s:g} s: {what}"
            self._changed.notify()

    def stop(self) -> None:
        """End the limit."""
        with self._changed:
            self._deadline = None

    def disable(self) -> None:
        """Never end this process."""
        self._is_enabled = False

    def _watch(self) -> None:
        with self._changed:
            while True:
                left_s = None if self._deadline is None else self._deadline - monotonic()
                if left_s is None or left_s > 0:
                    self._changed.wait(left_s)
                elif self._is_enabled and not pytest_timeout.is_debugging():
                    break
                else:
                    self._deadline = None
        self._end()

    def _end(self) -> None:
        """Write the stacks of this process and of the test processes that it started; end all that it started."""
        os.write(self._output, f"\n+++ {self._what()}\n".encode())
        descendants = psutil.Process().children(recursive=True)
        runners = [process for process in descendants if _is_xdist(process)]
        for process in runners:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGABRT)  # pytest has set a handler that writes the stacks
                process.resume()
        psutil.wait_procs(runners, STACKS_S)
        faulthandler.dump_traceback(self._output, all_threads=True)
        for process in descendants:
            with suppress(psutil.Error):
                process.kill()
        os._exit(1)


class QuietLimit:
    """Ends a run of several processes in which no test begins or ends."""

    def __init__(self, watchdog: Watchdog, limit_s: float) -> None:
        self._watchdog = watchdog
        self._limit_s = limit_s
        self._running: list[str] = []

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note a test that begins."""
        self._running.append(nodeid)
        self._note()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Note a test that has ended."""
        with suppress(ValueError):
            self._running.remove(nodeid)
        self._note()

    def pytest_sessionstart(self) -> None:
        """Limit the start of the processes."""
        self._note()

    def _note(self) -> None:
        self._watchdog.start(self._limit_s, self._what)

    def _what(self) -> str:
        return f"no test began or ended within {self._limit_s:g} s; running: {', '.join(self._running) or 'none'}"


class FailurePrinter:
    """Prints each failure when it is reported."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print a failed test with its report."""
        terminal = self._config.pluginmanager.getplugin("terminalreporter")
        if not report.failed or terminal is None:
            return
        terminal.ensure_newline()
        terminal.write_line(f"FAILED {report.nodeid} ({report.when})", red=True)
        report.toterminal(self._config.get_terminal_writer())
        for title, text in report.sections:
            terminal.write_sep("-", title)
            terminal.write_line(text)
        terminal.flush()
