"""Colours of states on a terminal, and ages; the same in every list."""

from __future__ import annotations

from coord.cli.output import duration
from coord.models.agents import AgentStatus
from coord.models.messages import MessageStatus
from coord.models.tasks import TaskState

#: State -> style of rich; a state without one is not coloured.
TASK_STATE: dict[str, str] = {
    TaskState.SCHEDULED: "blue",
    TaskState.QUEUED: "yellow",
    TaskState.ASSIGNED: "cyan",
    TaskState.RUNNING: "cyan",
    TaskState.COMPLETED: "green",
    TaskState.FAILED: "red",
    TaskState.CANCELLED: "bright_black",
    TaskState.EXPIRED: "red",
    TaskState.REFUSED: "red",
}
AGENT_STATUS: dict[str, str] = {
    AgentStatus.ACTIVE: "green",
    AgentStatus.INACTIVE: "bright_black",
    AgentStatus.BUSY: "yellow",
    AgentStatus.STALE: "red",
    AgentStatus.MAINTENANCE: "yellow",
    AgentStatus.ERROR: "red",
    AgentStatus.DRAINING: "yellow",
}
MESSAGE_STATUS: dict[str, str] = {MessageStatus.DELIVERED: "green", MessageStatus.DEAD: "red"}


def age(since_ms: int | None, now_ms: int) -> str:
    """Format how long ago a moment was: ``3.4 s``; '' for None. Both are times of the server."""
    return "" if since_ms is None else duration(max(0, now_ms - since_ms))
