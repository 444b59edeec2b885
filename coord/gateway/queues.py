"""Handlers of the queues and of the distribution of tasks in numbers; clear the queue of a priority."""

from __future__ import annotations

from itertools import islice
from typing import Any

from msgspec import Struct

from coord.gateway.errors import RequestError
from coord.gateway.routes import Answer, Call, written
from coord.gateway.schemas import iso, now
from coord.models.statistics import CellStatistics
from coord.models.tasks import Priority, TaskState

#: Maximum number of weights in a response.
MOST_WEIGHTS = 1_000


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


class LoadBalancerStats(Struct, frozen=True, kw_only=True):
    """The assignments of tasks to agents; totals count since the cell was created."""

    strategy: str
    total_assignments: int  #: planned
    successful_assignments: int
    failed_assignments: int  #: planned, and not made: the agent had changed, or the task was gone
    success_rate: float  #: 1 without any
    active_agents: int
    agent_weights: dict[str, float]  #: of agents that may get work, those that are not 1; the first 1,000 by id
    avg_agent_load: float  #: tasks that an active agent holds, on average

    @classmethod
    def of(cls, found: CellStatistics, weights: dict[str, float]) -> LoadBalancerStats:
        """Build it from the statistics of the cell."""
        return cls(
            strategy=found.strategy,
            total_assignments=found.assignments + found.refused_assignments,
            successful_assignments=found.assignments,
            failed_assignments=found.refused_assignments,
            success_rate=found.success_rate,
            active_agents=found.active_agents,
            agent_weights=weights,
            avg_agent_load=found.avg_agent_load,
        )


class DistributionStats(Struct, frozen=True, kw_only=True):
    """The distribution of tasks in numbers; totals count since the cell was created."""

    tasks_distributed: int
    tasks_completed: int
    tasks_failed: int
    avg_distribution_time: float  #: seconds from the assignment of a task to its start
    load_balancer_stats: LoadBalancerStats
    queue_sizes: dict[str, int]

    @classmethod
    def of(cls, found: CellStatistics, weights: dict[str, float]) -> DistributionStats:
        """Build it from the statistics of the cell."""
        return cls(
            tasks_distributed=found.assignments,
            tasks_completed=found.total(TaskState.COMPLETED),
            tasks_failed=found.total(TaskState.FAILED),
            avg_distribution_time=found.avg_distribution_time,
            load_balancer_stats=LoadBalancerStats.of(found, weights),
            queue_sizes={priority.value: number for priority, number in found.queue_sizes.items()},
        )


class TasksCounted(Struct, frozen=True, kw_only=True):
    """GET /tasks/status."""

    status: str = "success"
    stats: DistributionStats
    timestamp: str


class QueuesCounted(Struct, frozen=True, kw_only=True):
    """GET /tasks/queues/stats."""

    status: str = "success"
    queue_sizes: dict[str, int]
    distribution_stats: DistributionStats
    timestamp: str


class LoadBalancerCounted(Struct, frozen=True, kw_only=True):
    """GET /load-balancer/stats."""

    status: str = "success"
    stats: LoadBalancerStats
    timestamp: str


async def task_stats(call: Call[None, None]) -> TasksCounted:
    """Return the distribution of tasks in numbers."""
    found = await call.gateway.scrapes.statistics()
    return TasksCounted(stats=DistributionStats.of(found, await _weights(call)), timestamp=iso(found.now))


async def queue_stats(call: Call[None, None]) -> QueuesCounted:
    """Return the number of tasks that wait for an agent, by priority, and the distribution of tasks in numbers."""
    found = await call.gateway.scrapes.statistics()
    stats = DistributionStats.of(found, await _weights(call))
    return QueuesCounted(queue_sizes=stats.queue_sizes, distribution_stats=stats, timestamp=iso(found.now))


async def load_balancer_stats(call: Call[None, None]) -> LoadBalancerCounted:
    """Return the assignments of tasks to agents in numbers."""
    found = await call.gateway.scrapes.statistics()
    return LoadBalancerCounted(stats=LoadBalancerStats.of(found, await _weights(call)), timestamp=iso(found.now))


async def _weights(call: Call[Any, Any]) -> dict[str, float]:
    """Return the weights of agents that may get work, without those that are 1."""
    return dict(islice((await call.gateway.scrapes.weights()).items(), MOST_WEIGHTS))


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
