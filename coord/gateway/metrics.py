"""Handlers of ``/metrics``, for Prometheus, and of ``/metrics/summary``, a few numbers for people and scripts."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from coord.gateway.routes import Answer, Call
from coord.gateway.schemas import iso
from coord.models.statistics import CellStatistics, Histogram
from coord.models.tasks import TaskState

#: The content type of ``/metrics`` says which format it is, and depends on the request.
HEADERS = {"Cache-Control": "no-store", "Vary": "Accept"}


class Performance(Struct, frozen=True, kw_only=True):
    """What the cell has done since it was created; times in seconds."""

    tasks_completed: int
    tasks_failed: int
    success_rate: float  #: share of these that completed; 1 without any
    tasks_retried: int
    avg_wait_time: float  #: from the time at which a task could be placed to its assignment
    avg_distribution_time: float  #: from the assignment to the start by the agent
    avg_run_time: float  #: from the start to the result


class System(Struct, frozen=True, kw_only=True):
    """What the cell is now."""

    total_agents: int
    active_agents: int  #: agents that may get work
    total_tasks: int  #: ever submitted
    load_balancer_strategy: str
    queued_tasks: int
    running_tasks: int  #: that agents hold
    dead_letters: int


class MetricsSummary(Struct, frozen=True, kw_only=True):
    """The response of ``/metrics/summary``."""

    status: str = "success"
    performance: Performance
    system: System
    timestamp: str

    @classmethod
    def of(cls, found: CellStatistics) -> MetricsSummary:
        """Build it from the statistics of the cell."""
        completed, failed = found.total(TaskState.COMPLETED), found.total(TaskState.FAILED)
        return cls(
            performance=Performance(
                tasks_completed=completed,
                tasks_failed=failed,
                success_rate=completed / (completed + failed) if completed + failed else 1.0,
                tasks_retried=found.counters.get("retried", 0),
                avg_wait_time=_mean_s(found.wait.values()),
                avg_distribution_time=found.avg_distribution_time,
                avg_run_time=_mean_s(histogram for how, histogram in found.run.items() if how == "completed"),
            ),
            system=System(
                total_agents=found.total_agents,
                active_agents=found.active_agents,
                total_tasks=found.submitted,
                load_balancer_strategy=found.strategy,
                queued_tasks=found.total(TaskState.QUEUED),
                running_tasks=found.total(TaskState.ASSIGNED) + found.total(TaskState.RUNNING),
                dead_letters=sum(number or 0 for number in found.dead_letters.values()),
            ),
            timestamp=iso(found.now),
        )


async def scrape(call: Call[None, None]) -> Answer:
    """Return the metrics of the cell for Prometheus, or as OpenMetrics if the request accepts that."""
    body, content_type = await call.gateway.scrapes.metrics((call.header(b"accept") or "")[:1_000])
    return Answer(body, 200, HEADERS, content_type)


async def summary(call: Call[None, None]) -> MetricsSummary:
    """Return a few numbers: what the cell has done, and what it is now."""
    return MetricsSummary.of(await call.gateway.scrapes.statistics())


def _mean_s(histograms: Iterable[Histogram]) -> float:
    found = list(histograms)
    count = sum(histogram.count for histogram in found)
    return sum(histogram.sum_ms for histogram in found) / 1000 / count if count else 0.0
