"""The statistics of a cell as Prometheus metrics, ``coord_*``, in its text format or as OpenMetrics.

Every label has a bounded number of values. Totals never fall: the scripts keep them, so they go on after a restart of
any process, and each gateway shows the same ones. Scrape one gateway of a cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from coord import __version__
from coord.models.statistics import BOUNDS_MS, OUTCOMES, CellStatistics, Histogram
from coord.models.tasks import TaskState

#: Task types with a series of their own, the most used ones; the others are counted as ``other``.
MOST_TYPES = 50
OTHER_TYPES = "other"

_UNFINISHED = (TaskState.SCHEDULED, TaskState.QUEUED, TaskState.ASSIGNED, TaskState.RUNNING)
#: counter of the scripts -> its metric without ``_total``, and help.
_TOTALS: Mapping[str, tuple[str, str]] = {
    "retried": ("coord_task_retries", "Attempts that failed and were tried again."),
    "released": ("coord_task_releases", "Tasks that agents gave back, or that were recalled from them."),
    "replayed": ("coord_task_replays", "Failed tasks that operators replayed."),
    "reports_duplicate": ("coord_reports_duplicate", "Reports of agents that had been settled before."),
    "reports_stale": ("coord_reports_stale", "Reports of agents for a lease that is not known."),
    "messages_delivered": ("coord_messages_delivered", "Messages that were delivered to an inbox."),
    "messages_dead": ("coord_messages_dead", "Messages that became dead letters."),
    "messages_replayed": ("coord_messages_replayed", "Dead letters of messages that operators replayed."),
    "requests_timed_out": ("coord_requests_timed_out", "Requests between agents that got no reply in time."),
    "buried": ("coord_entries_buried", "Entries that could not be handled and were moved to dead:in."),
    "unburied": ("coord_entries_replayed", "Entries of dead:in that operators replayed."),
    "tokens_refused": ("coord_tokens_refused", "Entries of agents that were refused for their token."),
    "results_dropped": ("coord_results_dropped", "Ended tasks whose result was dropped to free memory."),
    "results_dropped_bytes": ("coord_results_dropped_bytes", "Bytes of the results that were dropped."),
    "task_events": ("coord_task_events", "Events written to log:tasks."),
}


def render(statistics: CellStatistics, accept: str) -> tuple[bytes, str]:
    """Return the metrics and their content type.

    Args:
        statistics: of the cell.
        accept: the header Accept of the request: OpenMetrics if it asks for it, else Prometheus' text format.
    """
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Metrics(statistics))
    return encode(registry), content_type


class _Metrics(Collector):
    """Yields the metrics of one moment."""

    def __init__(self, statistics: CellStatistics) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        yield from _tasks(self._statistics)
        yield from _histograms(self._statistics)
        yield from _fleet(self._statistics)
        yield from _streams(self._statistics)
        yield from _server(self._statistics)


def _tasks(s: CellStatistics) -> Iterator[Metric]:
    unfinished = [((state, priority), n) for state in _UNFINISHED for priority, n in s.tasks_in(state).items()]
    yield _gauge("coord_tasks", "Tasks that have not ended.", ("state", "priority"), unfinished)
    priorities = list(s.queue_sizes)
    for counter, text in (("submitted", "Tasks admitted."), ("refused", "Tasks refused: the backlog was full.")):
        rows = [((priority,), s.counters.get(f"{counter}:{priority}", 0)) for priority in priorities]
        yield _counter(f"coord_tasks_{counter}", text, ("priority",), rows)
    ended = [((outcome, priority), n) for outcome in OUTCOMES for priority, n in s.tasks_in(outcome).items()]
    yield _counter("coord_tasks_ended", "Tasks that ended.", ("outcome", "priority"), ended)
    yield _counter(
        "coord_tasks_submitted_by_type",
        f"Tasks admitted, by type: the {MOST_TYPES} most used types, and the others together.",
        ("task_type",),
        [((task_type,), n) for task_type, n in bounded_types(s.task_types).items()],
    )
    yield _counter("coord_assignments", "Assignments of tasks to agents.", (), [((), s.assignments)])
    refused = [
        (("agent_changed",), s.counters.get("plans_refused", 0)),
        (("task_gone",), s.counters.get("plans_late", 0)),
    ]
    yield _counter("coord_assignments_refused", "Planned assignments that were not made.", ("reason",), refused)
    for name, (metric, text) in _TOTALS.items():
        yield _counter(metric, text, (), [((), s.counters.get(name, 0))])
    yield _gauge("coord_backlog_bytes", "Bytes of the waiting tasks.", (), [((), s.counters.get("backlog_bytes", 0))])
    yield _gauge("coord_pools", "Pools in which tasks wait.", (), [((), s.pools)])
    if s.waiting is not None:
        reasons = [((reason,), n) for reason, n in s.waiting.reasons.items()]
        yield _gauge("coord_waiting_tasks", "Waiting tasks, by the reason why they wait.", ("reason",), reasons)
        age = [((), s.waiting.age / 1000)]
        yield _gauge("coord_waiting_tasks_age_seconds", "Age of the numbers of coord_waiting_tasks.", (), age)


def bounded_types(task_types: Mapping[str, int]) -> dict[str, int]:
    """Return the totals of the most used types, and of all others together as ``other``.

    Args:
        task_types: type -> total, most first; those under no name are others.
    """
    shown: dict[str, int] = {}
    others = 0
    for task_type, count in task_types.items():
        if task_type in {"", OTHER_TYPES} or len(shown) == MOST_TYPES:
            others += count
        else:
            shown[task_type] = count
    return shown | ({OTHER_TYPES: others} if others else {})


def _histograms(s: CellStatistics) -> Iterator[Metric]:
    yield _histogram(
        "coord_task_wait_seconds",
        "Time from which a task could be placed until it was assigned to an agent.",
        ("priority",),
        [((priority,), histogram) for priority, histogram in s.wait.items()],
    )
    yield _histogram(
        "coord_task_distribution_seconds",
        "Time from the assignment of a task until its agent started it.",
        (),
        [((), s.distribution)],
    )
    yield _histogram(
        "coord_task_run_seconds",
        "Time from the start of an attempt until it ended.",
        ("outcome",),
        [((outcome,), histogram) for outcome, histogram in s.run.items()],
    )


def _fleet(s: CellStatistics) -> Iterator[Metric]:
    yield _gauge("coord_agents", "Agents, by status.", ("status",), [((status,), n) for status, n in s.agents.items()])
    yield _gauge("coord_agents_placeable", "Agents that may get work now.", (), [((), s.active_agents)])
    yield _gauge(
        "coord_workers",
        "Workers and gateways that are present.",
        ("kind",),
        [((kind,), n) for kind, n in s.workers.items()],
    )
    yield _gauge("coord_strategy_info", "The strategy of the cell.", ("strategy",), [((s.strategy,), 1)])


def _streams(s: CellStatistics) -> Iterator[Metric]:
    def rows(of: Iterable[tuple[str, str, float | None]]) -> list[tuple[tuple[str, ...], float]]:
        return [((stream, group), value) for stream, group, value in of if value is not None]

    labels, streams = ("stream", "group"), s.streams
    entries = rows((one.stream, one.kind, one.entries) for one in streams)
    yield _gauge("coord_stream_entries", "Facts that are not handled yet.", labels, entries)
    pending = rows((one.stream, one.kind, one.pending) for one in streams)
    yield _gauge("coord_stream_pending", "Facts that a worker has read and not handled yet.", labels, pending)
    ages = rows((one.stream, one.kind, None if one.oldest_ms is None else one.oldest_ms / 1000) for one in streams)
    yield _gauge("coord_stream_lag_seconds", "Age of the oldest fact that is not handled yet.", labels, ages)


def _server(s: CellStatistics) -> Iterator[Metric]:
    dead = [((kind,), n) for kind, n in s.dead_letters.items() if n is not None]
    yield _gauge("coord_dead_letters", "Dead letters that are kept.", ("kind",), dead)
    if s.open_requests is not None:
        yield _gauge("coord_open_requests", "Requests between agents that wait.", (), [((), s.open_requests)])
    if s.memory is not None:
        yield _gauge("coord_redis_memory_used_bytes", "Memory that Redis uses.", (), [((), s.memory.used)])
        maximum = [((), s.memory.maximum)]
        yield _gauge("coord_redis_memory_max_bytes", "Memory that Redis may use; 0: no limit.", (), maximum)
    yield _gauge("coord_build_info", "The version of the gateway.", ("version",), [((__version__,), 1)])


Rows = Iterable[tuple[tuple[str, ...], float]]


def _gauge(name: str, text: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _histogram(
    name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], Histogram]]
) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    bounds = [str(bound / 1000) for bound in BOUNDS_MS] + ["+Inf"]
    for values, histogram in rows:
        below, buckets = 0, []
        for bound, count in zip(bounds, histogram.buckets, strict=True):
            below += count
            buckets.append((bound, float(below)))
        family.add_metric(values, buckets, histogram.sum_ms / 1000)
    return family
