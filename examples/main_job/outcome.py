"""What became of a job."""

from __future__ import annotations

from typing import Any

import msgspec

from coord.models.tasks import TaskRecord, TaskState
from examples.main_job.kinds import Job


class Outcome(msgspec.Struct, frozen=True):
    """A job and the record of its task, which is in a terminal state."""

    job: Job
    record: TaskRecord

    @property
    def is_done(self) -> bool:
        """Whether it has a result."""
        return self.record.state is TaskState.COMPLETED

    @property
    def result(self) -> dict[str, Any]:
        """What the agent answered; empty when it failed."""
        return self.record.result if self.is_done else {}

    @property
    def code(self) -> str:
        """Why it failed, in one word."""
        return self.record.error.code if self.record.error else self.record.state.value

    @property
    def message(self) -> str:
        """Why it failed, for people."""
        return self.record.error.message if self.record.error else ""

    @property
    def is_unparsable(self) -> bool:
        """Whether it failed because the file is no Python: the only failure that is the file's own."""
        return self.record.state is TaskState.FAILED and self.code == "unparsable"

    def between(self, begin: str, end: str) -> int | None:
        """Milliseconds between two moments of the record, such as ``submitted_at`` and ``finished_at``."""
        first, last = getattr(self.record, begin), getattr(self.record, end)
        return None if first is None or last is None else max(0, last - first)
