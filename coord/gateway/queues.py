"""Handlers of the queues: the number of waiting tasks by priority, and the end of all that wait with a priority."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from coord.gateway.errors import RequestError
from coord.gateway.routes import Answer, Call, written
from coord.gateway.schemas import now
from coord.models.tasks import Priority, TaskState


class QueueSizes(Struct, frozen=True, kw_only=True):
    """GET /tasks/queues."""

    status: str = "success"
    queue_sizes: dict[str, int]  #: priority -> tasks that wait for an agent
    timestamp: str


class QueueCleared(Struct, frozen=True, kw_only=True):
    """POST /tasks/queues/{priority}/clear."""

    status: str = "success"
    message: str = "Queue cleared"
    priority: str
    cleared_count: int  #: tasks that were cancelled
    timestamp: str


async def sizes(call: Call[None, None]) -> QueueSizes:
    """Return the number of tasks that wait for an agent, by priority."""
    counters = await call.backend.counters()
    found = {priority.value: counters.get(f"{TaskState.QUEUED}:{priority}", 0) for priority in Priority}
    return QueueSizes(queue_sizes=found, timestamp=now())


async def clear(call: Call[None, None]) -> Struct | Answer:
    """Cancel the tasks of a priority that wait for an agent; 202 if some may be left, then repeat the request."""
    priority = _priority(call)
    found = await call.backend.clear_queue(priority, call.gateway.settings.gateway_wait_s)
    body = QueueCleared(priority=priority, cleared_count=found.cancelled, timestamp=now())
    return written(call, body, answered=found.complete, path="/tasks/queues")


def _priority(call: Call[Any, Any]) -> Priority:
    name = call.params["priority"]
    try:
        return Priority(name.lower())
    except ValueError:
        known = ", ".join(priority.value for priority in Priority)
        raise RequestError("invalid_priority", f"Invalid priority: {name[:60]}. Valid priorities: {known}") from None
