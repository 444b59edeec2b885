"""The cell of ``coord demo``: ``coord up`` with agents, in a temporary folder that is removed afterwards.

A demo that is killed cannot remove its folder. The folder names its processes, so the next demo of the user removes it.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import psutil
from msgspec import Struct

from coord import SyncClient
from coord.cells import LOCAL
from coord.config import Settings, without_settings
from coord.embedded import EmbeddedServer
from coord.endpoint import is_same_start, process_started, read_endpoint, write_private
from coord.errors import CoordError, ServerUnavailable

#: Agents of the demo, as a person would write them for ``coord up --agents``.
AGENTS = """\
[agents.ocr]
command = ["{python}", "-P", "-m", "coord.demo.agent", "--id", "{id}", "--type", "ocr", "--capacity", "2"]
count = 2

[agents.reporter]
command = ["{python}", "-P", "-m", "coord.demo.agent", "--id", "{id}", "--type", "report"]
"""
AGENT_IDS = ("ocr-1", "ocr-2", "reporter")
#: Seconds in which the cell must start, and end.
START_S, END_S = 60.0, 30.0
#: Seconds in which the `coord up` of a killed demo must end by itself.
LEFT_S = 10.0
#: Seconds between two looks.
POLL_S = 0.05
#: The beginning of the name of a folder, and the file in it that names its processes.
PREFIX, OWNERS = "coord-demo-", "demo.json"


class Owner(Struct, frozen=True):
    """A process that uses the folder."""

    pid: int
    started: float | None  #: seconds since 1970

    @classmethod
    def of(cls, pid: int) -> Owner:
        """Build it from the id of a process that runs."""
        return cls(pid, process_started(pid))

    def lives(self) -> bool:
        """Return True while the process runs."""
        return is_same_start(process_started(self.pid), self.started)


class Owners(Struct, frozen=True):
    """The processes that use the folder."""

    demo: Owner
    up: Owner | None = None  #: `coord up`


_owners = msgspec.json.Decoder(Owners)


class DemoCell:
    """A cell of its own: it neither uses nor changes any other cell of this user.

    Attributes:
        folder: with everything that the cell writes.
        client: a client of the cell.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._note_owners(None)
        self.client: SyncClient
        self._endpoint = self.folder / "endpoint.json"
        self._up: subprocess.Popen[bytes] | None = None
        self.environ = without_settings(os.environ) | {
            "COORD_ENDPOINT_FILE": str(self._endpoint),
            "COORD_CELL": LOCAL,  # whatever the configuration file names as the default
        }

    def _note_owners(self, up: subprocess.Popen[bytes] | None) -> None:
        owners = Owners(Owner.of(os.getpid()), None if up is None else Owner.of(up.pid))
        write_private(self.folder / OWNERS, msgspec.json.encode(owners))

    def __enter__(self) -> Self:
        try:
            remove_left_behind()
            self._start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _start(self) -> None:
        (self.folder / "agents.toml").write_text(AGENTS)
        with (self.folder / "up.log").open("wb") as log:
            # A session of its own: Ctrl-C reaches the demo alone, which ends the cell in order. If the demo is killed,
            # its end of the pipe closes, and the cell ends by itself.
            self._up = subprocess.Popen(
                [*_coord(), "up", "--data", str(self.folder / "data"), "--no-gateway", "--watch-stdin",
                 "--agents", str(self.folder / "agents.toml")],
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=self.environ, start_new_session=True,
            )  # fmt: skip
        self._note_owners(self._up)
        self.wait(lambda: read_endpoint(self._endpoint) is not None, "the cell starts")
        endpoint = read_endpoint(self._endpoint)
        if endpoint is None:
            raise ServerUnavailable(f"the cell of the demo has ended: {self._last_line()}")
        self.client = SyncClient(endpoint.url, settings=Settings(namespace=endpoint.namespace))
        self.wait(self._has_agents, "the agents register")

    def _has_agents(self) -> bool:
        try:
            return {agent.agent_id for agent in self.client.agents()} >= set(AGENT_IDS)
        except CoordError:
            return False

    def wait(self, is_done: Callable[[], bool], what: str) -> None:
        """Wait until something has happened.

        Args:
            is_done: returns True then.
            what: the thing, for the message.

        Raises:
            ServerUnavailable: it takes too long, or the cell has ended; shows the last line of its log.
        """
        deadline = time.monotonic() + START_S
        while not is_done():
            if self._up is None or self._up.poll() is not None:
                raise ServerUnavailable(f"the cell of the demo has ended: {self._last_line()}")
            if time.monotonic() > deadline:
                raise ServerUnavailable(
                    f"the demo timed out after {START_S:g} s, before {what}: {self._last_line()}. "
                    "Try again when the machine has less to do"
                )
            time.sleep(POLL_S)

    def command(self, words: Sequence[str]) -> str:
        """Run a ``coord`` command on this cell; return what it prints."""
        environ = self.environ | {"COLUMNS": str(min(100, shutil.get_terminal_size().columns))}
        ended = subprocess.run(
            [*_coord(), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
            cwd=self.folder,
            check=False,
        )
        return ended.stdout.decode("utf-8", "replace")

    def kill_agent(self, agent_id: str) -> int:
        """Kill the process of an agent, as a crash would; return its pid."""
        assert self._up is not None  # noqa: S101 -- the cell has started
        for process in psutil.Process(self._up.pid).children(recursive=True):
            words = process.cmdline()
            if "coord.demo.agent" in words and agent_id in words:
                process.kill()
                return process.pid
        raise ServerUnavailable(f"the agent {agent_id} of the demo is not running: {self._last_line()}")

    def end(self) -> None:
        """End the cell in order, and remove its folder; a second call does nothing.

        Raises:
            ServerUnavailable: the cell did not end in time, so it was killed.
        """
        up, self._up = self._up, None
        try:
            if hasattr(self, "client"):
                self.client.close()
        finally:
            try:
                if up is not None:
                    self._shut_down(up)
            finally:
                self._remove()

    def _shut_down(self, up: subprocess.Popen[bytes]) -> None:
        if up.stdin is not None:
            up.stdin.close()  # --watch-stdin: it shuts down
        try:
            up.wait(END_S)
        except BaseException as error:  # also a second Ctrl-C
            os.killpg(up.pid, signal.SIGKILL)
            up.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise ServerUnavailable(
                    f"the cell of the demo did not end within {END_S:g} s, so it was killed: {self._last_line()}"
                ) from None
            raise

    def _remove(self) -> None:
        _remove(self.folder)

    def _last_line(self) -> str:
        try:
            lines = (self.folder / "up.log").read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "its log is empty"


def remove_left_behind() -> None:
    """Remove the folders of demos of this user that were killed, and stop a server that still runs there."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError, CoordError):  # another demo removes it too: the next one tries again
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
                _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    try:
        owners = _owners.decode((folder / OWNERS).read_bytes())
    except (OSError, msgspec.MsgspecError):
        return  # it is being made, or is no folder of a demo
    if owners.demo.lives():
        return
    if owners.up is not None:
        _end_left(owners.up)
    _remove(folder)


def _end_left(up: Owner) -> None:
    """Wait until the `coord up` of a killed demo has ended, which it does by itself; kill it if it does not."""
    deadline = time.monotonic() + LEFT_S
    while up.lives():
        if time.monotonic() > deadline:
            os.killpg(up.pid, signal.SIGKILL)  # it has a group of its own
            return
        time.sleep(POLL_S)


def _remove(folder: Path) -> None:
    """Remove the folder of a demo. A killed `coord up` leaves its server running: stop it first."""
    try:
        if (server := EmbeddedServer.find(folder / "data")) is not None:
            server.stop(force=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _coord() -> list[str]:
    return [sys.executable, "-P", "-m", "coord.cli"]
