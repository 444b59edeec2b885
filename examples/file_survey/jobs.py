"""The jobs of the survey: three kinds of work, a job for each file and kind, and the outcome of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from coord.models.tasks import TaskRecord, TaskState
from examples.file_survey.walk import File

PROGRAMS = Path(__file__).parents[1]


class Kind(msgspec.Struct, frozen=True):
    """One kind of work."""

    task_type: str  #: also the capability of its agents
    program: Path
    agents: str  #: prefix of the ids of its agents
    suffix: str = ""  #: suffix of the files that it applies to; empty: all files


KINDS = (
    Kind("text_stats", PROGRAMS / "text_stats.py", "stats"),
    Kind("python_outline", PROGRAMS / "python_outline.py", "outline", ".py"),
    Kind("content_digest", PROGRAMS / "content_digest.py", "digest"),
)


class Job(msgspec.Struct, frozen=True):
    """A kind of work to do on a file."""

    kind: Kind
    file: File


def jobs(files: tuple[File, ...]) -> list[Job]:
    """Return a job for each file and kind that applies to it, file by file, so all agents have work from the start."""
    return [Job(kind, file) for file in files for kind in KINDS if file.path.endswith(kind.suffix)]


class Outcome(msgspec.Struct, frozen=True):
    """A job and the record of its task, which has ended."""

    job: Job
    record: TaskRecord

    @property
    def is_done(self) -> bool:
        """True if there is a result."""
        return self.record.state is TaskState.COMPLETED

    @property
    def result(self) -> dict[str, Any]:
        """The result of the agent; empty if the task failed."""
        return self.record.result if self.is_done else {}

    @property
    def code(self) -> str:
        """The error code of a failed task."""
        return self.record.error.code if self.record.error else self.record.state.value

    @property
    def message(self) -> str:
        """The error message of a failed task."""
        return self.record.error.message if self.record.error else ""

    @property
    def is_unparsable(self) -> bool:
        """True if the task failed because the file is not valid Python: the only failure caused by the file itself."""
        return self.record.state is TaskState.FAILED and self.code == "unparsable"

    def between(self, begin: str, end: str) -> int | None:
        """Return the milliseconds between two times of the record, such as ``submitted_at`` and ``finished_at``."""
        first, last = getattr(self.record, begin), getattr(self.record, end)
        return None if first is None or last is None else max(0, last - first)
