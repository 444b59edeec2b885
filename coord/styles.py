"""The styles of states on a terminal, for the package rich; a state without one is not coloured."""

from __future__ import annotations

from coord.models.agents import AgentStatus
from coord.models.tasks import TaskState

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
