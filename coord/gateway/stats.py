"""Handler of the cell in numbers."""

from __future__ import annotations

from msgspec import Struct

from coord.gateway.routes import Call
from coord.gateway.schemas import iso
from coord.models.statistics import Latency


class StatsFound(Struct, frozen=True, kw_only=True):
    """GET /stats. Two readings give rates."""

    status: str = "success"
    totals: dict[str, int]  #: state -> tasks: unfinished ones now, ended ones since the cell was created
    submitted: int  #: tasks ever admitted
    waiting: dict[str, int] | None  #: reason -> waiting tasks; null: no distributor has counted them lately
    queue_sizes: dict[str, int]  #: priority -> tasks that wait for an agent
    latency: dict[str, Latency]  #: wait, distribution, run
    agents: dict[str, int]  #: total; active: that may get work
    workers: dict[str, int]  #: kind -> workers that are present, and gateways; push and gateway only if there are some
    strategy: str
    timestamp: str


async def stats(call: Call[None, None]) -> StatsFound:
    """Return the cell in numbers: tasks by state, why tasks wait, queues, and how long tasks take."""
    found = await call.gateway.scrapes.statistics()
    return StatsFound(
        totals={state.value: number for state, number in found.current().items()},
        submitted=found.submitted,
        waiting=None if found.waiting is None else {str(name): n for name, n in found.waiting.reasons.items() if n},
        queue_sizes={priority.value: number for priority, number in found.queue_sizes.items()},
        latency={name: Latency.of(one) for name, one in found.histograms().items()},
        agents={"total": found.total_agents, "active": found.active_agents},
        workers=dict(found.workers),
        strategy=found.strategy,
        timestamp=iso(found.now),
    )
