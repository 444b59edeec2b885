"""Statistics of a cell: totals, gauges, and histograms of durations, as the scripts and the workers keep them."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from coord.models.agents import AgentStatus
from coord.models.cell import Memory
from coord.models.explanations import WaitingCounts
from coord.models.tasks import Priority, TaskState

#: Upper bounds of the buckets of every histogram, in ms, as in ``workers/lua/lib/histograms.lua``. One more bucket
#: follows, without a bound.
BOUNDS_MS: tuple[int, ...] = (
    1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 1_800_000, 3_600_000,
)  # fmt: skip
#: The states in which a task has ended.
OUTCOMES = (TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED)


class Histogram(Struct, frozen=True):
    """Durations since the cell was created."""

    buckets: tuple[int, ...]  #: observations in each bucket alone, in the order of ``BOUNDS_MS``, then those above
    sum_ms: int

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self.buckets)

    def __add__(self, other: Histogram) -> Histogram:
        """Return the observations of both."""
        buckets = tuple(one + another for one, another in zip(self.buckets, other.buckets, strict=True))
        return Histogram(buckets, self.sum_ms + other.sum_ms)

    def __sub__(self, earlier: Histogram) -> Histogram:
        """Return the observations since an earlier reading."""
        buckets = tuple(max(0, one - before) for one, before in zip(self.buckets, earlier.buckets, strict=True))
        return Histogram(buckets, max(0, self.sum_ms - earlier.sum_ms))

    def quantile(self, share: float) -> float | None:
        """Return the duration, in ms, below which a share of the observations is; None without any.

        It is interpolated inside its bucket. Above the last bound it is that bound.
        """
        rank, below = share * self.count, 0
        for place, number in enumerate(self.buckets):
            if number and below + number >= rank:
                if place == len(BOUNDS_MS):
                    return float(BOUNDS_MS[-1])
                low = BOUNDS_MS[place - 1] if place else 0
                return low + (BOUNDS_MS[place] - low) * max(0.0, rank - below) / number
            below += number
        return None


EMPTY_HISTOGRAM = Histogram((0,) * (len(BOUNDS_MS) + 1), 0)


class Latency(Struct, frozen=True):
    """Quantiles of durations, in ms; None without any observation."""

    count: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None

    @classmethod
    def of(cls, histogram: Histogram) -> Latency:
        """Build it from a histogram."""
        found = (histogram.quantile(share) for share in (0.5, 0.95, 0.99))
        return cls(histogram.count, *(None if value is None else round(value, 1) for value in found))


class StreamStatistics(Struct, frozen=True, kw_only=True):
    """A stream of facts and its consumer group. What the user may not read is None."""

    stream: str  #: without the namespace
    kind: str  #: kind of worker that reads it: its consumer group
    entries: int | None  #: not handled yet
    pending: int | None  #: of these, entries that a worker has read
    oldest_ms: int | None  #: age of the oldest entry, ms; 0: there is none. Also None if none of them was read yet, and
    #: the facts of the stream have tokens


class CellStatistics(Struct, frozen=True, kw_only=True):
    """The statistics of a cell at one moment; totals count since the cell was created."""

    now: int  #: ms since 1970 on the server's clock
    strategy: str  #: the strategy of the cell; several, with `` | `` between, if distributors have different ones
    counters: Mapping[str, int]  #: as ``Client.counters``
    task_types: Mapping[str, int]  #: type -> tasks ever admitted, most first; '': types beyond the first 1,000
    wait: Mapping[Priority, Histogram]  #: from the time at which a task could be placed to its assignment
    distribution: Histogram  #: from the assignment to the start by the agent
    run: Mapping[str, Histogram]  #: how the attempt ended -> from its start to its end
    total_agents: int  #: agents that have a record
    active_agents: int  #: agents that may get work now
    agents: Mapping[AgentStatus, int]  #: agents by status
    #: kind -> workers that are present, and gateways; ``push`` and ``gateway`` only if there are some.
    workers: Mapping[str, int]
    streams: tuple[StreamStatistics, ...]
    waiting: WaitingCounts | None  #: waiting tasks by reason; None: no distributor has counted them lately
    pools: int  #: pools in which tasks wait
    dead_letters: Mapping[str, int | None]  #: tasks, messages, entries; None: the user may not read them
    open_requests: int | None  #: requests between agents that wait for a reply; None: the user may not read them
    memory: Memory | None  #: of the server; None: the user may not read it

    def current(self) -> dict[TaskState, int]:
        """Return the tasks in each state: unfinished ones now, ended ones ever; refused ones are not counted."""
        return {state: self.total(state) for state in TaskState if state is not TaskState.REFUSED}

    def histograms(self) -> dict[str, Histogram]:
        """Return how long tasks wait, are on their way to their agent, and run until they complete."""
        wait = sum(self.wait.values(), EMPTY_HISTOGRAM)
        return {"wait": wait, "distribution": self.distribution, "run": self.run.get("completed", EMPTY_HISTOGRAM)}

    def rates_since(self, before: CellStatistics) -> dict[str, float]:
        """Return the tasks per second since an earlier reading: ``submitted``, ``assigned``, and each outcome."""
        seconds = max(1, self.now - before.now) / 1000
        changes = {"submitted": self.submitted - before.submitted, "assigned": self.assignments - before.assignments}
        changes |= {state.value: self.total(state) - before.total(state) for state in sorted(OUTCOMES)}
        return {name: round(change / seconds, 1) for name, change in changes.items()}

    def tasks_in(self, state: TaskState) -> Mapping[Priority, int]:
        """Return the tasks in a state that has not ended, or the total of an outcome, by priority.

        A replayed task has failed before it was replayed: so a total never falls.
        """
        replays = state is TaskState.FAILED
        return {
            priority: self.counters.get(f"{state}:{priority}", 0)
            + (self.counters.get(f"replayed:{priority}", 0) if replays else 0)
            for priority in Priority
        }

    def total(self, state: TaskState) -> int:
        """Return the tasks in a state of all priorities."""
        return sum(self.tasks_in(state).values())

    @property
    def submitted(self) -> int:
        """Tasks ever admitted."""
        return sum(self.counters.get(f"submitted:{priority}", 0) for priority in Priority)

    @property
    def assignments(self) -> int:
        """Assignments of tasks to agents; a task that is tried again counts again."""
        return sum(histogram.count for histogram in self.wait.values())

    @property
    def refused_assignments(self) -> int:
        """Planned assignments that were not made: the agent had changed, or the task was gone."""
        return self.counters.get("plans_refused", 0) + self.counters.get("plans_late", 0)

    @property
    def success_rate(self) -> float:
        """Share of the planned assignments that were made; 1 without any."""
        planned = self.assignments + self.refused_assignments
        return self.assignments / planned if planned else 1.0

    @property
    def avg_distribution_time(self) -> float:
        """Mean time from the assignment of a task to its start by the agent, in seconds; 0 without any."""
        return self.distribution.sum_ms / 1000 / self.distribution.count if self.distribution.count else 0.0

    @property
    def avg_agent_load(self) -> float:
        """Mean number of tasks that an active agent holds; 0 without an agent."""
        held = self.total(TaskState.ASSIGNED) + self.total(TaskState.RUNNING)
        return held / self.active_agents if self.active_agents else 0.0

    @property
    def queue_sizes(self) -> Mapping[Priority, int]:
        """Tasks that wait for an agent, by priority."""
        return self.tasks_in(TaskState.QUEUED)
