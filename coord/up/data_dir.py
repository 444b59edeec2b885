"""The data folder of ``coord up``: its location, and a lock so that one ``coord up`` at a time uses it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from coord.errors import ConfigError, DataFolderInUse

#: Names in a data folder of coord; it has at least one of them.
KNOWN_NAMES = ("appendonlydir", "server.json", "server.log", "up.json", "lock")


class _Owner(msgspec.Struct, frozen=True):
    """``up.json`` in the folder."""

    pid: int
    server_pid: int | None = None


def default_data_dir() -> Path:
    """Return ``$XDG_STATE_HOME/coord/data``, else ``~/.local/state/coord/data``.

    There is one for each user, whatever the current directory: each user has one endpoint file, and data submitted
    yesterday must be there today.

    Raises:
        ConfigError: the user has no home folder.
    """
    state = os.environ.get("XDG_STATE_HOME")
    try:
        base = Path(state) if state else Path("~/.local/state").expanduser()
    except RuntimeError:
        raise ConfigError("this user has no home folder to keep data in; choose a folder with --data") from None
    return base / "coord" / "data"


def refuse_foreign(folder: Path) -> None:
    """Check that the folder belongs to coord, is empty, or does not exist, so that coord mixes with no other files.

    Raises:
        ConfigError: the folder contains other files.
    """
    try:
        path = folder.expanduser().resolve()
        # A mounted volume contains lost+found.
        names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")} - {"lost+found"}
    except (OSError, RuntimeError):
        return  # it does not exist, or the claim reports what is wrong
    if names and names.isdisjoint(KNOWN_NAMES):
        raise ConfigError(f"{path} is not empty and is not a data folder of coord; choose another with --data")


class FolderLock:
    """The exclusive use of a data folder by this process; the lock ends with the process, even after SIGKILL.

    Its file records which server a ``coord up`` has started, so the next ``coord up`` may stop a server that a killed
    one has left running.
    """

    def __init__(self, folder: Path) -> None:
        """Claim the folder; create it if necessary.

        Raises:
            DataFolderInUse: another ``coord up`` uses it.
            ConfigError: it cannot be created or written.
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
            owner = f" (pid {before.pid})" if before else ""
            raise DataFolderInUse(
                f"another coord up{owner} uses {self.folder}; stop it, or choose another folder with --data"
            ) from None
        #: Process id of the server that an earlier ``coord up`` has started.
        self.earlier_server = before.server_pid if before else None
        self.record(self.earlier_server)

    def record(self, server_pid: int | None) -> None:
        """Record the server that a ``coord up`` of this folder must stop."""
        content = msgspec.json.encode(_Owner(pid=os.getpid(), server_pid=server_pid))
        # In place: replacing the file would leave the lock on the old one.
        try:
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, content, 0)
        except OSError as error:
            raise unusable(self.folder, error) from None

    def release(self) -> None:
        """Release the folder for the next ``coord up``."""
        os.close(self._handle)

    def _read(self) -> _Owner | None:
        try:
            return msgspec.json.decode(os.pread(self._handle, 4096, 0), type=_Owner)
        except (OSError, msgspec.MsgspecError):
            return None


def unusable(folder: Path, error: Exception) -> ConfigError:
    """Return the error for a folder that cannot be created or written."""
    is_file = isinstance(error, FileExistsError)
    reason = "it is a file, not a folder" if is_file else getattr(error, "strerror", None) or str(error)
    return ConfigError(f"cannot keep data in {folder}: {reason}; choose another folder with --data")
