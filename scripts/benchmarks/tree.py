"""The source trees that are measured: this one, and perhaps another commit's, checked out beside it for a while."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class NoSuchRevision(Exception):
    """git does not know a commit, or this is no repository; the message is git's."""


@dataclass(frozen=True)
class Tree:
    """A tree: ``label`` for people, its folder, and what commit it is."""

    label: str
    folder: Path
    commit: str

    def environ(self) -> dict[str, str]:
        """The environment in which its ``coord`` and ``workers`` are imported, and the drivers of this tree.

        No setting of the person who measures reaches a measurement.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("COORD_", "AITBC_"))}
        kept["PYTHONPATH"] = os.pathsep.join((str(self.folder), str(ROOT / "scripts")))
        return kept


def this_tree() -> Tree:
    """The tree that this file belongs to; a commit with ``+`` has changes on top."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = "+" if _git("status", "--porcelain", "--untracked-files=no") else ""
    except NoSuchRevision:  # unpacked from an archive
        commit, changed = "unknown", ""
    return Tree("now", ROOT, commit + changed)


@contextmanager
def other_tree(revision: str, folder: Path) -> Iterator[Tree]:
    """The tree of another commit, as a git worktree in ``folder`` that is removed afterwards."""
    try:
        commit = _git("rev-parse", "--short", "--verify", f"{revision}^{{commit}}")
    except NoSuchRevision as error:
        raise NoSuchRevision(f"--against {revision}: no such commit here ({error})") from None
    place = folder / "against"
    _git("worktree", "add", "--detach", str(place), commit)
    try:
        yield Tree(revision, place, commit)
    finally:
        _git("worktree", "remove", "--force", str(place))


def _git(*arguments: str) -> str:
    # S607: whichever git the person uses
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoSuchRevision(done.stderr.strip())
    return done.stdout.strip()
