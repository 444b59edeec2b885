"""The measured source trees: this one, and optionally that of another commit in a temporary worktree."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class NoSuchRevision(Exception):
    """The commit does not exist, or this is not a repository; the message is that of git."""


@dataclass(frozen=True)
class Tree:
    """A tree: its label, folder and commit."""

    label: str
    folder: Path
    commit: str

    def environ(self) -> dict[str, str]:
        """Return an environment that imports its ``coord`` and ``workers``, and the drivers of this tree.

        Settings of the user have no effect on a measurement.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("COORD_", "AITBC_"))}
        kept["PYTHONPATH"] = os.pathsep.join((str(self.folder), str(ROOT / "scripts")))
        return kept


def this_tree() -> Tree:
    """Return the tree of this file; ``+`` after the commit means uncommitted changes."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = "+" if _git("status", "--porcelain", "--untracked-files=no") else ""
    except NoSuchRevision:  # unpacked from an archive
        commit, changed = "unknown", ""
    return Tree("now", ROOT, commit + changed)


@contextmanager
def other_tree(revision: str, folder: Path) -> Iterator[Tree]:
    """Yield the tree of another commit, as a git worktree in ``folder`` that is removed afterwards."""
    try:
        commit = _git("rev-parse", "--short", "--verify", f"{revision}^{{commit}}")
    except NoSuchRevision as error:
        raise NoSuchRevision(f"--against {revision}: unknown commit ({error})") from None
    worktree = folder / "against"
    _git("worktree", "add", "--detach", str(worktree), commit)
    try:
        yield Tree(revision, worktree, commit)
    finally:
        _git("worktree", "remove", "--force", str(worktree))


def _git(*arguments: str) -> str:
    # S607: the git on PATH
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoSuchRevision(done.stderr.strip())
    return done.stdout.strip()
