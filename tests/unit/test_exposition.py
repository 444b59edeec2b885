"""The metrics as text: accepted by Prometheus' own parsers, bounded, and read once for all scrapes of a second."""

from __future__ import annotations

import asyncio
from copy import copy
from typing import Any, cast

import pytest
from msgspec.structs import replace
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from coord.errors import ServerUnavailable
from coord.gateway import scrapes
from coord.gateway.backend import Backend
from coord.gateway.exposition import MOST_TYPES, bounded_types, render
from coord.gateway.scrapes import Scrapes
from coord.models.agents import AgentStatus
from coord.models.cell import Memory
from coord.models.explanations import WaitingCounts, WaitingReason
from coord.models.statistics import BOUNDS_MS, CellStatistics, Histogram, StreamStatistics
from coord.models.tasks import Priority

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def histogram(*observations: int) -> Histogram:
    """A histogram of these durations, in ms."""
    buckets = [0] * (len(BOUNDS_MS) + 1)
    for one in observations:
        buckets[sum(bound < one for bound in BOUNDS_MS)] += 1
    return Histogram(tuple(buckets), sum(observations))


STATISTICS = CellStatistics(
    now=1_000,
    strategy="predictive",
    counters={"submitted:normal": 9, "completed:normal": 4, "failed:high": 1, "replayed:high": 2, "queued:low": 3},
    task_types={'a"b\\c\nd': 5, "ocr": 4},
    wait={priority: histogram(3, 700) for priority in Priority},
    distribution=histogram(2, 4_000_000),
    run={"completed": histogram(40), "timed_out": histogram(90_000)},
    total_agents=3,
    active_agents=2,
    agents=dict.fromkeys(AgentStatus, 0) | {AgentStatus.ACTIVE: 2, AgentStatus.STALE: 1},
    workers={"registry": 1, "distributor": 2, "router": 0},
    streams=(
        StreamStatistics(stream="in:reports", kind="distributor", entries=7, pending=2, oldest_ms=1_500),
        StreamStatistics(stream="in:beats", kind="registry", entries=1, pending=0, oldest_ms=None),
    ),
    waiting=WaitingCounts(total=3, reasons={WaitingReason.NO_CAPABILITY: 3}, uncounted=0, counted_at=900, age=100),
    pools=1,
    dead_letters={"task": 1, "message": None, "entry": 0},
    open_requests=None,
    memory=Memory(used=1_000, maximum=0),
)


def samples(text: str, parse: Any = parse_text) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of a scrape, by name and labels; none comes twice."""
    found = [
        (one.name, tuple(sorted(one.labels.items())), one.value) for family in parse(text) for one in family.samples
    ]
    assert len({sample[:2] for sample in found}) == len(found)
    return {(name, labels): value for name, labels, value in found}


@pytest.mark.parametrize(
    ("accept", "parse"), [("", parse_text), ("text/plain", parse_text), (OPENMETRICS, parse_openmetrics)]
)
def test_both_formats_are_accepted_by_their_parsers(accept: str, parse: Any) -> None:
    """The same samples, in the format that the request accepts; odd task types are escaped."""
    body, content_type = render(STATISTICS, accept)
    assert content_type.startswith("application/openmetrics-text" if accept == OPENMETRICS else "text/plain")
    found = samples(body.decode(), parse)
    assert {name.startswith("coord_") for name, _ in found} == {True}
    assert found["coord_tasks_ended_total", (("outcome", "completed"), ("priority", "normal"))] == 4
    assert found["coord_tasks_ended_total", (("outcome", "failed"), ("priority", "high"))] == 3
    assert found["coord_tasks_submitted_by_type_total", (("task_type", 'a"b\\c\nd'),)] == 5
    assert found["coord_waiting_tasks", (("reason", "no_capability"),)] == 3
    assert found["coord_agents", (("status", "stale"),)] == 1
    assert found["coord_stream_lag_seconds", (("group", "distributor"), ("stream", "in:reports"))] == 1.5


def test_histograms_are_cumulative() -> None:
    """A bucket counts what is at most its bound; the last one counts all."""
    found = samples(render(STATISTICS, "")[0].decode())
    assert found["coord_task_distribution_seconds_bucket", (("le", "0.001"),)] == 0
    assert found["coord_task_distribution_seconds_bucket", (("le", "0.002"),)] == 1
    assert found["coord_task_distribution_seconds_bucket", (("le", "3600.0"),)] == 1
    assert found["coord_task_distribution_seconds_bucket", (("le", "+Inf"),)] == 2
    assert found["coord_task_distribution_seconds_count", ()] == 2
    assert found["coord_task_distribution_seconds_sum", ()] == 4_000.002


def test_what_the_user_may_not_read_is_absent() -> None:
    """Such a metric has no sample, rather than a wrong one."""
    found = samples(render(replace(STATISTICS, memory=None, waiting=None), "")[0].decode())
    names = {name for name, _ in found}
    assert names.isdisjoint({"coord_open_requests", "coord_redis_memory_used_bytes", "coord_waiting_tasks"})
    assert ("coord_dead_letters", (("kind", "message"),)) not in found
    assert ("coord_stream_lag_seconds", (("group", "registry"), ("stream", "in:beats"))) not in found


def test_types_are_bounded() -> None:
    """The most used types have their own series; the rest, and a type of that name, are one."""
    types = {f"t{n}": 1_000 - n for n in range(MOST_TYPES + 10)} | {"other": 7, "": 5}
    ordered = dict(sorted(types.items(), key=lambda row: -row[1]))
    found = bounded_types(ordered)
    assert len(found) == MOST_TYPES + 1
    assert found["other"] == sum(types.values()) - sum(types[f"t{n}"] for n in range(MOST_TYPES))
    assert bounded_types({"a": 1}) == {"a": 1}


class PlayedBackend:
    """Counts its reads; fails while it is told to."""

    def __init__(self) -> None:
        self.reads = 0
        self.fails = False

    async def stats(self) -> CellStatistics:
        """Return the statistics after a moment."""
        self.reads += 1
        await asyncio.sleep(0)
        if self.fails:
            raise ServerUnavailable("Redis is away")
        return copy(STATISTICS)

    async def agent_weights(self) -> dict[str, float]:
        """Return the weights after a moment."""
        self.reads += 1
        await asyncio.sleep(0)
        return {"a1": 2.0}


async def test_scrapes_of_a_second_share_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Concurrent scrapes and those shortly after get the same result; later ones a new one."""
    now = [100.0]
    monkeypatch.setattr(scrapes, "monotonic", lambda: now[0])
    backend = PlayedBackend()
    shared = Scrapes(cast("Backend", backend))
    first, *others = await asyncio.gather(*[shared.metrics("") for _ in range(50)])
    assert all(one is first for one in others)
    assert await shared.metrics("") is first
    assert backend.reads == 1
    now[0] += scrapes.SHARED_S + 0.1
    assert await shared.metrics("") is not first
    assert backend.reads == 2


async def test_weights_are_read_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost a command for each agent: many requests share one read, and those of the statistics do without."""
    now = [100.0]
    monkeypatch.setattr(scrapes, "monotonic", lambda: now[0])
    backend = PlayedBackend()
    shared = Scrapes(cast("Backend", backend))
    assert await asyncio.gather(*[shared.weights() for _ in range(50)]) == [{"a1": 2.0}] * 50
    now[0] += scrapes.WEIGHTS_S - 0.1
    await shared.weights()
    assert backend.reads == 1
    now[0] += 0.2
    await shared.weights()
    assert backend.reads == 2


async def test_a_failed_read_is_not_kept() -> None:
    """The scrape after a failure reads again."""
    backend = PlayedBackend()
    shared = Scrapes(cast("Backend", backend))
    backend.fails = True
    with pytest.raises(ServerUnavailable):
        await shared.metrics("")
    backend.fails = False
    assert (await shared.metrics(""))[0]
