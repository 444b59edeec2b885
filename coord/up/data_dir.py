"""The data folder of ``coord up``: where it is, and that one ``coord up`` at a time has it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from coord.errors import ConfigError, DataFolderInUse


class _Owner(msgspec.Struct, frozen=True):
    """``up.json`` in the folder."""

    pid: int
    server_pid: int | None = None


def default_data_dir() -> Path:
    """``$XDG_STATE_HOME/coord/data``, else ``~/.local/state/coord/data``.

    One per user, wherever the command is typed: it is announced in one file per user, and what was submitted
    yesterday is there today.
    """
    state = os.environ.get("XDG_STATE_HOME")
    try:
        base = Path(state) if state else Path("~/.local/state").expanduser()
    except RuntimeError:
        raise ConfigError("there is no home folder to keep data in; choose a folder with --data") from None
    return base / "coord" / "data"


#: What a data folder of coord has at least one of.
OURS = ("appendonlydir", "server.json", "server.log", "up.json", "lock")


def refuse_foreign(folder: Path) -> None:
    """See that the folder is coord's, empty, or not there yet: a server would put its files among somebody's own.

    Raises:
        ConfigError: it is full of something else.
    """
    try:
        place = folder.expanduser().resolve()
        found = {one.name for one in place.iterdir() if not one.name.startswith(".")} - {"lost+found"}  # of a volume
    except (OSError, RuntimeError):
        return  # not there yet, or the claim says what is wrong with it
    if found and found.isdisjoint(OURS):
        raise ConfigError(f"{place} is not empty and no data folder of coord; choose another with --data")


class Claim:
    """A data folder that is this process's own while it lives: the lock goes with the process, however that ends.

    Its file remembers which server a ``coord up`` started, so that the next one may end it although a killed
    predecessor did the starting.
    """

    def __init__(self, folder: Path) -> None:
        """Take the folder, made when missing.

        Raises:
            DataFolderInUse: another ``coord up`` has it.
            ConfigError: it cannot be made or written.
        """
        try:
            self.folder = folder.expanduser().resolve()
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._handle = os.open(self.folder / "up.json", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (OSError, RuntimeError) as error:
            raise unusable(folder, error) from None
        before = self._read()
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._handle)
            if not isinstance(error, BlockingIOError):
                raise unusable(folder, error) from None
            who = f" (pid {before.pid})" if before else ""
            raise DataFolderInUse(
                f"another coord up{who} runs on {self.folder}; end that one, or choose another folder with --data"
            ) from None
        #: The server that an earlier ``coord up`` had started.
        self.earlier_server = before.server_pid if before else None
        self.record(self.earlier_server)

    def record(self, server_pid: int | None) -> None:
        """Remember the server that a ``coord up`` of this folder is answerable for."""
        content = msgspec.json.encode(_Owner(pid=os.getpid(), server_pid=server_pid))
        # In place: replacing the file would leave the lock on the old one.
        try:
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, content, 0)
        except OSError as error:
            raise unusable(self.folder, error) from None

    def release(self) -> None:
        """Let the next ``coord up`` have the folder."""
        os.close(self._handle)

    def _read(self) -> _Owner | None:
        try:
            return msgspec.json.decode(os.pread(self._handle, 4096, 0), type=_Owner)
        except (OSError, msgspec.MsgspecError):
            return None


def unusable(folder: Path, error: Exception) -> ConfigError:
    """The answer to a folder that the system refuses."""
    is_file = isinstance(error, FileExistsError)
    why = "it is a file, not a folder" if is_file else getattr(error, "strerror", None) or str(error)
    return ConfigError(f"cannot keep data in {folder}: {why}; choose another folder with --data")
