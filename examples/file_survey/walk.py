"""The files of a folder: those to examine, and how many were left out for which reason."""

from __future__ import annotations

import os
import stat
import sysconfig
from collections import Counter
from pathlib import Path

import msgspec

#: Maximum bytes of a file; larger ones are mostly generated tables and data.
MAX_BYTES = 1024 * 1024
#: A file with a NUL byte within this many bytes counts as binary, as for git.
HEAD_BYTES = 8_000
#: Folders with copies, caches or third-party code. They are not entered, so their files are not counted.
NOT_ENTERED = frozenset({"__pycache__", "dist-packages", "node_modules", "site-packages"})


class File(msgspec.Struct, frozen=True, order=True):
    """A text file."""

    path: str  #: below the root, with slashes
    bytes: int


class Found(msgspec.Struct, frozen=True):
    """The result of a walk."""

    root: Path
    files: tuple[File, ...]  #: by path
    left_out: dict[str, int]  #: reason -> number of files, or of folders if the reason says so
    not_entered: dict[str, int]  #: name, or ``hidden folders`` -> number


def default_folder() -> Path:
    """Return the folder of Python's standard library: about 2,000 files that every installation has."""
    return Path(sysconfig.get_paths()["stdlib"])


def walk(root: Path) -> Found:
    """Find every file under ``root``; links are not followed."""
    files: list[File] = []
    left_out: Counter[str] = Counter()
    not_entered: Counter[str] = Counter()

    def unreadable(_error: OSError) -> None:
        left_out["unreadable folder"] += 1

    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        for name in list(subfolders):
            if name in NOT_ENTERED or name.startswith("."):
                not_entered["hidden folders" if name.startswith(".") else name] += 1
                subfolders.remove(name)
            elif Path(folder, name).is_symlink():
                left_out["link"] += 1
        for name in names:
            path = Path(folder, name)
            file = _file(path, path.relative_to(root).as_posix())
            if isinstance(file, File):
                files.append(file)
            else:
                left_out[file] += 1
    return Found(root, tuple(sorted(files)), dict(sorted(left_out.items())), dict(sorted(not_entered.items())))


def _file(path: Path, relative: str) -> File | str:
    """Return the file, or the reason why it is left out."""
    try:
        relative.encode()
        status = path.lstat()
        if reason := _reason_to_skip(path, status):
            return reason
    except UnicodeEncodeError:
        return "name not UTF-8"
    except OSError:
        return "unreadable"
    return File(relative, status.st_size)


def _reason_to_skip(path: Path, status: os.stat_result) -> str | None:
    if stat.S_ISLNK(status.st_mode):
        return "link"
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
        return "not a file"
    if status.st_size > MAX_BYTES:
        return "over 1 MiB"
    with path.open("rb") as opened:
        return "binary" if b"\0" in opened.read(HEAD_BYTES) else None
