"""The data folder of ``coord up``: its location, its lock, and the repair of its append-only file.

The lock lets one ``coord up`` at a time use the folder.

``coord up --repair-aof`` cuts a damaged end off the append-only file, and keeps a copy of it. A machine that loses
power can leave zeroes or garbage at the end of a file. The server loads a file whose last entry is a half one, and
refuses one with such an end. The server's program can check files, too, under another name.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from coord.embedded import find_binary, locked
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


_ANALYZED = re.compile(r"size=(\d+), ok_up_to=(\d+)")
_FILE = re.compile(r"^file (\S+) seq \d+ type i\b", re.MULTILINE)
#: Bytes that are looked at in one piece.
PIECE = 1024 * 1024


class Cut(Struct, frozen=True):
    """What was cut off."""

    file: Path
    copy: Path  #: the file as it was
    position: int  #: bytes that were left
    size: int  #: bytes that it had
    is_zero: bool  #: all bytes of the end were zero, so that no entry can have been in it

    def __str__(self) -> str:
        """Describe the cut in a sentence."""
        lost = "all of them zero, so no entry is lost" if self.is_zero else "the entries in them are lost"
        return (
            f"cut the damaged end off {self.file}: {self.size - self.position:,} of {self.size:,} bytes, {lost}; "
            f"the file as it was is {self.copy}"
        )


def repair_aof(data_dir: Path) -> Cut | None:
    """Cut the damaged end off the append-only file of a data folder; None if it has no damage.

    Raises:
        ConfigError: it is damaged elsewhere than at its end, cannot be checked, or no copy can be made; it is left
            as it was.
        DataFolderInUse: a server runs on the folder.
    """
    folder = data_dir / "appendonlydir"
    manifest = folder / "appendonly.aof.manifest"
    if not manifest.is_file():
        return None
    with locked(data_dir):
        try:
            files = [folder / name for name in _FILE.findall(manifest.read_text())]
            for file in files:
                size, position = check_aof(file)
                if position == size:
                    continue
                if file != files[-1]:
                    raise ConfigError(
                        f"{file} is damaged, and newer files follow it; restore a copy of the folder {data_dir}"
                    )
                return _cut(file, size, position, data_dir)
        except OSError as error:
            raise ConfigError(f"cannot repair the append-only file in {data_dir}: {error.strerror}") from None
    return None


def check_aof(file: Path) -> tuple[int, int]:
    """Return the size of an append-only file and up to where it is whole, in bytes.

    Raises:
        ConfigError: the server's program does not check files.
    """
    binary = find_binary()
    if not file.stat().st_size:
        return 0, 0
    name = "redis-check-aof" if "redis" in binary.name else "valkey-check-aof"
    done = subprocess.run(
        [name, str(file)], executable=str(binary), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    found = _ANALYZED.search(done.stdout)
    if found is None:
        raise ConfigError(f"{binary} does not check append-only files; run {name} --fix {file} of your Redis")
    return int(found[1]), int(found[2])


def _cut(file: Path, size: int, position: int, data_dir: Path) -> Cut:
    copy = data_dir / f"{file.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}"
    shutil.copy2(file, copy)
    is_zero = _is_zero(file, position)
    with file.open("r+b") as opened:
        opened.truncate(position)
        os.fsync(opened.fileno())
    return Cut(file, copy, position, size, is_zero)


def _is_zero(file: Path, position: int) -> bool:
    with file.open("rb") as opened:
        opened.seek(position)
        while piece := opened.read(PIECE):
            if any(piece):
                return False
    return True
