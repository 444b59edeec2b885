"""Handler of the cell in numbers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated

from msgspec import Meta, Struct

from coord.gateway.routes import Call
from coord.gateway.schemas import iso
from coord.models.statistics import CellStatistics, Latency

#: The shortest and the longest window of rates, in seconds. Requests within a second share one read of the cell.
SHORTEST_S, LONGEST_S = 1.0, 10.0


class StatsQuery(Struct, frozen=True):
    """The query of GET /stats."""

    #: Seconds over which rates are measured; the response comes after them. Without it there are no rates.
    window: Annotated[float, Meta(ge=SHORTEST_S, le=LONGEST_S)] | None = None


class StatsFound(Struct, frozen=True, kw_only=True):
    """GET /stats."""

    status: str = "success"
    totals: dict[str, int]  #: state -> tasks: unfinished ones now, ended ones since the cell was created
    submitted: int  #: tasks ever admitted
    rates: dict[str, float] | None  #: submitted, assigned, and outcomes, per second of the window; null without one
    waiting: dict[str, int] | None  #: reason -> waiting tasks; null: no distributor has counted them lately
    queue_sizes: dict[str, int]  #: priority -> tasks that wait for an agent
    latency: dict[str, Latency]  #: wait, distribution, run
    agents: dict[str, int]  #: total; active: that may get work
    workers: dict[str, int]  #: kind -> workers that are present, and gateways; push and gateway only if there are some
    strategy: str
    timestamp: str


async def stats(call: Call[None, StatsQuery]) -> StatsFound:
    """Return the cell in numbers: tasks by state, why tasks wait, queues, how long tasks take; with ``window`` rates.

    A gateway keeps no earlier reading, so a request with ``window`` reads twice, and takes that long.
    """
    found = await call.gateway.scrapes.statistics()
    before: CellStatistics | None = None
    if call.query.window is not None:
        before = found
        with suppress(TimeoutError):
            await asyncio.wait_for(call.gateway.closing.wait(), call.query.window)
        found = await call.gateway.scrapes.statistics()
    return StatsFound(
        totals={state.value: number for state, number in found.current().items()},
        submitted=found.submitted,
        rates=None if before is None or before is found else found.rates_since(before),
        waiting=None if found.waiting is None else {str(name): n for name, n in found.waiting.reasons.items() if n},
        queue_sizes={priority.value: number for priority, number in found.queue_sizes.items()},
        latency={name: Latency.of(one) for name, one in found.histograms().items()},
        agents={"total": found.total_agents, "active": found.active_agents},
        workers=dict(found.workers),
        strategy=found.strategy,
        timestamp=iso(found.now),
    )
