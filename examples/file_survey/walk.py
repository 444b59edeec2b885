"""The files of a folder: which are worth a task, and how many were left out, and why."""

from __future__ import annotations

import os
import stat
import sysconfig
from collections import Counter
from pathlib import Path

import msgspec

#: Larger files are left out: generated tables and data, mostly.
LARGEST = 1024 * 1024
#: A NUL byte within so many bytes makes a file binary; git looks for it in as many.
SNIFF = 8_000
#: Folders that are copies, caches or somebody else's. They are not entered, so what is in them is not counted.
NOT_ENTERED = frozenset({"__pycache__", "dist-packages", "node_modules", "site-packages"})


class File(msgspec.Struct, frozen=True, order=True):
    """A text file."""

    path: str  #: below the root, with slashes
    bytes: int


class Found(msgspec.Struct, frozen=True):
    """What a walk found."""

    root: Path
    files: tuple[File, ...]  #: by path
    left_out: dict[str, int]  #: reason -> how many files, or folders where it says so
    not_entered: dict[str, int]  #: name, or ``hidden folders`` -> how many


def default_folder() -> Path:
    """The standard library of the Python that runs this: about 2,000 files that everyone has."""
    return Path(sysconfig.get_paths()["stdlib"])


def walk(root: Path) -> Found:
    """Look at every file under ``root``, not following links."""
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
            elif Path(folder, name).is_symlink():  # which is not followed either
                left_out["link"] += 1
        for name in names:
            place = Path(folder, name)
            judged = _judge(place, place.relative_to(root).as_posix())
            if isinstance(judged, File):
                files.append(judged)
            else:
                left_out[judged] += 1
    return Found(root, tuple(sorted(files)), dict(sorted(left_out.items())), dict(sorted(not_entered.items())))


def _judge(place: Path, path: str) -> File | str:
    """The file, or why it is left out."""
    try:
        path.encode()
        found = place.lstat()
        if why := _unfit(place, found):
            return why
    except UnicodeEncodeError:
        return "name not UTF-8"
    except OSError:
        return "unreadable"
    return File(path, found.st_size)


def _unfit(place: Path, found: os.stat_result) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        return "link"
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        return "not a file"
    if found.st_size > LARGEST:
        return "over 1 MiB"
    with place.open("rb") as opened:
        return "binary" if b"\0" in opened.read(SNIFF) else None
