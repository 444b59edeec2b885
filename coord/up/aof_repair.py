"""``coord up --repair-aof``: cut a damaged end off the append-only file, and keep a copy of it.

A machine that loses power can leave zeroes or garbage at the end of a file. The server loads a file whose last entry is
a half one, and refuses one with such an end. The server's program can check files, too, under another name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from msgspec import Struct

from coord.embedded import find_binary, locked
from coord.errors import ConfigError

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


def repair(data_dir: Path) -> Cut | None:
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
                size, position = check(file)
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


def check(file: Path) -> tuple[int, int]:
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
