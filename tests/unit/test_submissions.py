"""What a distributor makes of a submission: above all, where it waits."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from coord.models.tasks import HEAD_START_MS, Priority, TaskSubmitted
from coord.streams import Entry
from workers.service import ReceivedFact
from workers.task_facts import submissions_of

AT = 2_000_000_000_000


def score_of(fact: TaskSubmitted, priority: Priority = Priority.NORMAL) -> int:
    """The place of a task that was submitted at ``AT``."""
    entry = Entry(f"in:tasks:{priority}", f"{AT}-0", {b"data": b"{}"})
    return submissions_of(ReceivedFact(entry, fact, ""), lambda _: "p1")[0].score


@pytest.mark.parametrize("priority", list(Priority))
def test_a_task_waits_from_its_submission(priority: Priority) -> None:
    """Less the head start of its priority."""
    assert score_of(TaskSubmitted("t1", "echo"), priority) == AT - HEAD_START_MS[priority]


def test_a_delayed_task_waits_from_its_run_time() -> None:
    """When it is due it overtakes nobody who came before that."""
    due = AT + 3_600_000
    assert score_of(TaskSubmitted("t1", "echo", delay=3_600)) == due - 60_000
    assert score_of(TaskSubmitted("t1", "echo", run_at=datetime.fromtimestamp(due / 1000, UTC))) == due - 60_000


def test_no_clients_clock_jumps_the_queue() -> None:
    """⚠ A run time that has passed is no better place than having come just now."""
    assert score_of(TaskSubmitted("t1", "echo", run_at=datetime(1970, 1, 1, tzinfo=UTC))) == AT - 60_000
