"""The three kinds of work: which files they fit, what a task of each needs, and the program whose agents do it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from examples.main_job.walk import File

PROGRAMS = Path(__file__).parents[1]


class Kind(msgspec.Struct, frozen=True):
    """One kind of work."""

    task_type: str  #: also the capability that its agents have
    program: Path
    agents: str  #: how its agents' ids begin
    suffix: str = ""  #: of the files that it fits; empty: all


KINDS = (
    Kind("text_stats", PROGRAMS / "text_stats.py", "stats"),
    Kind("python_outline", PROGRAMS / "python_outline.py", "outline", ".py"),
    Kind("content_digest", PROGRAMS / "content_digest.py", "digest"),
)


class Job(msgspec.Struct, frozen=True):
    """One task to be done: a kind of work on a file."""

    kind: Kind
    file: File


def jobs(files: tuple[File, ...]) -> list[Job]:
    """A job for each file and kind that fits it, file by file, so that all agents have work from the start."""
    return [Job(kind, file) for file in files for kind in KINDS if file.path.endswith(kind.suffix)]
