"""What a distributor has learned of the agents: service times, failure rates, and how load slows an agent down.

For each agent and task type a *cell* holds sums that decay from sample to sample, so merging the cells of several
distributors is an addition. Tasks whose clients say how long they are expected to take count twice: for their type, and
for their type and size, because an agent may be good at long tasks and bad at short ones. From these sums come:

* the **service time** of an agent without load: the mean of its logarithm, from successes only. It is shrunk towards
  the mean of all agents by (variance within agents ÷ variance between agents), which is James-Stein shrinkage (James
  and Stein 1961; Efron and Morris 1975): the fewer samples and the more alike the agents, the less a single agent's
  mean counts. The estimate of an idle agent decays towards that of all agents, so one that was slow is tried again;
* the **failure rate**;
* the **load exponent** e of the fleet: a task on an agent with n other tasks takes (1 + n)^e times as long. It is the
  slope of log time over log(1 + n) within the cells: 0 if the slots of an agent are independent, 1 if they share a CPU.

Nothing here reads a clock. The caller passes the time, in seconds of any clock that does not go back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from math import exp, inf, isinf, log
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from coord.placement.demand import Demand, DemandState

#: Samples after which the weight of a sample is half.
HALF_LIFE_SAMPLES = 50
#: Seconds of idleness after which half of what distinguishes an agent from the others is forgotten. Agents that work on
#: long tasks are not idle, so it is at least ``IDLE_TASKS`` times as long as a task takes.
IDLE_HALF_LIFE_S = 30.0
IDLE_TASKS = 10.0
#: An agent is idle from this many times its usual time between two samples on: some types of task are rare.
IDLE_GAPS = 2.0
#: Share of a new time between two samples in the usual one.
GAP_SHARE = 0.125
#: Maximum number of cells; the ones without a sample for the longest time are dropped.
MOST_CELLS = 100_000
#: The load exponent before anything is learned, and the evidence that this counts as. 1 is the safe side: a wrong 0
#: overloads agents that share a CPU.
FIRST_EXPONENT = 1.0
FIRST_EVIDENCE = 5.0
#: Samples of the fleet after which the weight of a sample in the load exponent is half.
EXPONENT_HALF_LIFE_SAMPLES = 2_000
#: Maximum number of loads for which the load term is remembered.
TERMS_KEPT = 1_000
#: Samples of a type after which the mean of its agents is determined again; more if it has many agents.
LEAST_PENDING = 16
#: A failure rate counts as at most this, so that an estimate stays finite.
MOST_FAILURES = 0.95
#: The samples before the last so many of one change count so little (0.4 %) that they are left out.
MOST_SAMPLES = 400
#: Shortest service time that counts, in seconds.
LEAST_S = 1e-6

_DECAY = 0.5 ** (1 / HALF_LIFE_SAMPLES)
_EXPONENT_DECAY = 0.5 ** (1 / EXPONENT_HALF_LIFE_SAMPLES)


class Sums(Struct, gc=False, array_like=True):
    """Sums over the samples of one agent and task type; x is log(1 + load), y the log of the service time in s."""

    samples: int = 0  #: successes, without decay: merging needs their number
    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    yy: float = 0.0
    time: float = 0.0  #: of the service time itself
    attempts: int = 0  #: successes and failures, without decay
    tried: float = 0.0
    failed: float = 0.0

    @classmethod
    def of(cls, samples: Sequence[tuple[float, float]], failed: int = 0, untimed: int = 0) -> Sums:
        """Return the sums of some samples.

        Args:
            samples: service time in seconds and load of each success, in the order of their ends.
            failed: number of failures, spread evenly over the samples.
            untimed: number of successes of which the time is not known.
        """
        weights = sum_x = sum_y = sum_xx = sum_xy = sum_yy = time = 0.0
        for service_s, load in samples[-MOST_SAMPLES:]:
            x, y = log(1 + load) if load > 0 else 0.0, log(max(LEAST_S, service_s))
            weights = weights * _DECAY + 1
            sum_x = sum_x * _DECAY + x
            sum_y = sum_y * _DECAY + y
            sum_xx = sum_xx * _DECAY + x * x
            sum_xy = sum_xy * _DECAY + x * y
            sum_yy = sum_yy * _DECAY + y * y
            time = time * _DECAY + service_s
        attempts = len(samples) + failed + untimed
        tried = (1 - _DECAY**attempts) / (1 - _DECAY)
        failures = tried * failed / attempts if failed else 0.0
        return cls(
            len(samples), weights, sum_x, sum_y, sum_xx, sum_xy, sum_yy, time, attempts, tried, failures
        )  # by position, which is faster

    def shift(self, y: float) -> None:
        """Add ``y`` to the log of each service time."""
        self.yy += 2 * y * self.y + y * y * self.weight
        self.xy += y * self.x
        self.y += y * self.weight
        self.time *= exp(y)

    def fade(self, kept: float) -> None:
        """Let all samples count less."""
        self.weight *= kept
        self.x *= kept
        self.y *= kept
        self.xx *= kept
        self.xy *= kept
        self.yy *= kept
        self.time *= kept
        self.tried *= kept
        self.failed *= kept

    def add(self, other: Sums) -> None:
        """Add later samples: what is here has decayed since."""
        fade = _DECAY**other.samples
        self.samples += other.samples
        self.weight = self.weight * fade + other.weight
        self.x = self.x * fade + other.x
        self.y = self.y * fade + other.y
        self.xx = self.xx * fade + other.xx
        self.xy = self.xy * fade + other.xy
        self.yy = self.yy * fade + other.yy
        self.time = self.time * fade + other.time
        fade = _DECAY**other.attempts
        self.attempts += other.attempts
        self.tried = self.tried * fade + other.tried
        self.failed = self.failed * fade + other.failed


class Change(Struct, frozen=True, array_like=True):
    """New samples of one agent and task type, to be merged by other distributors."""

    agent_id: str
    task_type: str
    sums: Sums
    expected_ms: float | None = None  #: only tasks of this size; None: all tasks of the type, whatever their size


#: A task type, and the size of the tasks in ms; None: all of them.
Kind = tuple[str, float | None]


class Cell(Struct, gc=False, array_like=True):
    """One agent and task type, and the estimates that were last made from its sums."""

    sums: Sums
    at: float  #: time of the last sample
    gap: float = 0.0  #: usual time between two samples, in seconds
    tick: int = -1  #: of the type, when the estimates were made
    shrunk_s: float = 0.0  #: service time without load, in seconds; shrunk, and decayed while idle
    failure_rate: float = 0.0
    plain_tick: int = -1  #: of the type, when ``plain_s`` was determined
    plain_s: float = 0.0  #: mean service time without load, in seconds; not shrunk, decayed while idle


class TypeState(Struct, frozen=True, array_like=True):
    """All that is known of one task type, or of its tasks of one size."""

    task_type: str
    expected_ms: float | None
    cells: dict[str, Cell]
    tick: int
    mean: float
    within_to_between: float | None  #: None: infinite
    total: int
    pending: int


class LearnedState(Struct, frozen=True, array_like=True):
    """All that a ``Learned`` knows, except what it has not shared yet."""

    now: float
    exponent: float
    slope: float
    evidence: float
    types: list[TypeState]
    demand: DemandState


class Observer(Protocol):
    """Receives what changes a ``Learned``, before it does."""

    def learned(self, changes: Sequence[Change], now: float) -> None:
        """Receive attempts that are added or merged."""

    def forgot(self, agent_id: str) -> None:
        """Receive that an agent is forgotten."""

    def advanced(self, now: float) -> None:
        """Receive the time."""


class TypeEstimates:
    """The estimates for one task type: what strategies read for each agent that they score."""

    __slots__ = ("_learned", "_pending", "_total", "cells", "mean", "tick", "within_to_between")

    def __init__(self, learned: Learned) -> None:
        self.cells: dict[str, Cell] = {}
        self.tick = 0  #: rises when the estimates of all cells are outdated
        self.mean = 0.0  #: of all agents: the log of the service time without load
        self.within_to_between = 1.0  #: variance within agents ÷ variance between them
        self._learned = learned
        self._total = 0  # samples ever
        self._pending = 0  # samples since ``mean`` was determined

    def state_of(self, kind: Kind) -> TypeState:
        """Return all that is known of this kind of task."""
        ratio = None if isinf(self.within_to_between) else self.within_to_between
        return TypeState(*kind, self.cells, self.tick, self.mean, ratio, self._total, self._pending)

    def restore(self, state: TypeState) -> None:
        """Take over a state, which must not be used afterwards."""
        self.cells, self.tick, self.mean = state.cells, state.tick, state.mean
        self.within_to_between = inf if state.within_to_between is None else state.within_to_between
        self._total, self._pending = state.total, state.pending

    @property
    def fleet_s(self) -> float:
        """The service time without load of an agent of which nothing is known, in seconds."""
        return exp(self.mean)

    def cell_of(self, agent_id: str) -> Cell | None:
        """Return the cell of an agent with current estimates; None if nothing is known of it."""
        cell = self.cells.get(agent_id)
        if cell is not None and cell.tick != self.tick:
            self.estimate(cell)
        return cell

    def plain_s(self, cell: Cell) -> float:
        """Return an agent's mean service time without load, in seconds: not shrunk, but decayed while it is idle."""
        if cell.plain_tick != self.tick:
            cell.plain_tick = self.tick
            sums = cell.sums
            if sums.weight > 0:
                plain = log(sums.time / sums.weight) - self._learned.exponent * sums.x / sums.weight
                cell.plain_s = exp(self.mean + (plain - self.mean) * self.kept(cell, self._learned.now))
            else:
                cell.plain_s = self.fleet_s
        return cell.plain_s

    def kept(self, cell: Cell, now: float) -> float:
        """Return which share of what distinguishes an agent is not forgotten, 0 to 1: 1 if it is not idle."""
        idle = now - cell.at - IDLE_GAPS * cell.gap
        return 0.5 ** (idle / max(IDLE_HALF_LIFE_S, IDLE_TASKS * exp(self.mean))) if idle > 0 else 1.0

    def wake(self, cell: Cell, now: float) -> None:
        """Forget for good what an idle agent's estimate has lost, so that a new sample counts accordingly."""
        kept, sums = self.kept(cell, now), cell.sums
        if kept < 1:
            if sums.weight > 0:
                own = (sums.y - self._learned.exponent * sums.x) / sums.weight
                sums.shift((self.mean - own) * (1 - kept))
            sums.fade(kept)
        gap = max(0.0, now - cell.at)
        cell.gap += (gap - cell.gap) * GAP_SHARE
        cell.at = max(cell.at, now)

    def changed(self, count: int) -> None:
        """Count new samples; determine the mean of all agents again when there are enough."""
        self._pending += count
        self._total += count
        if self._total < LEAST_PENDING or self._pending >= max(LEAST_PENDING, len(self.cells) // 2):
            self.refresh()

    def refresh(self) -> None:
        """Determine what all agents share; their own estimates follow when they are read."""
        self._pending = 0
        self.tick += 1
        known = [cell.sums for cell in self.cells.values() if cell.sums.weight > 0]
        if known:
            self._compare(known)

    def _compare(self, known: list[Sums]) -> None:
        """Determine the mean of the agents, and the variances within and between them (one-way random effects)."""
        e = self._learned.exponent
        weights = [sums.weight for sums in known]
        means = [(sums.y - e * sums.x) / sums.weight for sums in known]
        total = sum(weights)
        within = 0.0
        for sums, weight, mean in zip(known, weights, means, strict=True):
            within += max(0.0, sums.yy - 2 * e * sums.xy + e * e * sums.xx - weight * mean * mean)
        free = total - len(known)
        within = within / free if free > 0 else 0.0
        grand = sum(weight * mean for weight, mean in zip(weights, means, strict=True)) / total
        spread = sum(weight * (mean - grand) ** 2 for weight, mean in zip(weights, means, strict=True))
        scale = total - sum(weight * weight for weight in weights) / total
        between = max(0.0, (spread - (len(known) - 1) * within) / scale) if scale > 0 else 0.0
        if between > 0:
            self.within_to_between = within / between
            # Each agent counts by how well it is known, not by how many tasks it got: fast agents get more.
            votes = [1 / (between + within / weight) for weight in weights]
            grand = sum(vote * mean for vote, mean in zip(votes, means, strict=True)) / sum(votes)
        else:
            self.within_to_between = inf if len(known) > 1 else 1.0
        self.mean = grand

    def estimate(self, cell: Cell) -> None:
        """Make the estimates of an agent again, all but ``plain_s``: most strategies do not use it."""
        sums, learned = cell.sums, self._learned
        cell.tick = self.tick
        kept = self.kept(cell, learned.now)
        cell.failure_rate = kept * min(sums.failed / sums.tried, MOST_FAILURES) if sums.tried > 0 else 0.0
        if sums.weight <= 0:
            cell.shrunk_s = self.fleet_s
            return
        own = (sums.y - learned.exponent * sums.x) / sums.weight
        share = sums.weight / (sums.weight + self.within_to_between)
        cell.shrunk_s = exp(self.mean + (own - self.mean) * share * kept)


class LoadTerms(dict[float, float]):
    """By which factor a task takes longer beside other tasks: their number -> (1 + number)^exponent.

    Terms are computed when they are first looked up. Clear it when the exponent changes.
    """

    exponent = FIRST_EXPONENT  #: of the fleet

    def __missing__(self, load: float) -> float:
        if len(self) >= TERMS_KEPT:
            self.clear()
        term: float = (1 + max(0.0, load)) ** self.exponent
        self[load] = term
        return term


class Learned:
    """What a distributor has learned; shared by all its strategies.

    Args:
        most_cells: maximum number of pairs of agent and kind of task: a type, or a type and a size.
    """

    def __init__(self, most_cells: int = MOST_CELLS) -> None:
        self.now = 0.0
        self.was_read = False  #: set when a strategy reads the estimates of a task type; the reader of this resets it
        self.demand = Demand()
        self._most_cells = most_cells
        self._types: dict[Kind, TypeEstimates] = {}
        self._sizes: dict[str, dict[float, TypeEstimates]] = {}  # those of single sizes: type -> size -> estimates
        # The cells, the one with the latest sample last. The first of a ``dict`` is slow to find after many others were
        # removed from its beginning.
        self._order: OrderedDict[tuple[str, Kind], None] = OrderedDict()
        self._changes: dict[tuple[str, Kind], Sums] = {}
        self._slope = self._evidence = 0.0
        self.load_terms = LoadTerms()
        self.observer: Observer | None = None

    @property
    def exponent(self) -> float:
        """The load exponent of the fleet."""
        return self.load_terms.exponent

    @exponent.setter
    def exponent(self, exponent: float) -> None:
        self.load_terms.exponent = exponent
        self.load_terms.clear()

    @property
    def state(self) -> LearnedState:
        """All that is known; encode it at once, because it changes."""
        types = [estimates.state_of(kind) for kind, estimates in self._types.items()]
        return LearnedState(self.now, self.exponent, self._slope, self._evidence, types, self.demand.state)

    @classmethod
    def of(cls, state: LearnedState) -> Learned:
        """Return what is known according to a state, which must not be used afterwards.

        The order in which the oldest cells are dropped is not restored.
        """
        learned = cls()
        learned.now, learned.exponent, learned.demand = state.now, state.exponent, Demand.of(state.demand)
        learned._slope, learned._evidence = state.slope, state.evidence
        for of_type in state.types:
            kind = (of_type.task_type, of_type.expected_ms)
            learned._begin(kind).restore(of_type)
            learned._order |= dict.fromkeys((agent_id, kind) for agent_id in of_type.cells)
        return learned

    def advance(self, now: float) -> None:
        """Set the time: estimates of idle agents decay. Call it a few times a second at most."""
        if self.observer is not None:
            self.observer.advanced(now)
        self.now = max(self.now, now)
        for estimates in self._types.values():
            estimates.tick += 1

    def succeeded(
        self,
        agent_id: str,
        task_type: str,
        service_s: float,
        load: float,
        now: float,
        *,
        expected_ms: float | None = None,
    ) -> None:
        """Add a completed attempt.

        Args:
            agent_id: of the agent.
            task_type: of the task.
            service_s: seconds that the attempt took.
            load: other tasks that the agent had when it got this one. Not the mean until it ended: a strategy places
                where the load is low, so a long task sees a higher mean even if the load does not slow it down.
            now: the time, in seconds.
            expected_ms: size of the task, as ``TaskContext`` has it; None: not known.
        """
        self.add(_changes_of(agent_id, task_type, Sums.of([(service_s, load)]), expected_ms), now)

    def failed(self, agent_id: str, task_type: str, now: float, *, expected_ms: float | None = None) -> None:
        """Add a failed attempt; its time teaches nothing, because many failures are quick."""
        self.add(_changes_of(agent_id, task_type, Sums.of((), failed=1), expected_ms), now)

    def add(self, changes: Iterable[Change], now: float) -> None:
        """Add attempts that this distributor has seen, many at once."""
        self._add(self._observed(changes, now), now, is_own=True)

    def forget(self, agent_id: str) -> None:
        """Forget an agent that is gone."""
        if self.observer is not None:
            self.observer.forgot(agent_id)
        for kind, estimates in self._types.items():
            if estimates.cells.pop(agent_id, None) is not None:
                del self._order[agent_id, kind]
        for key in [key for key in self._changes if key[0] == agent_id]:
            del self._changes[key]

    def take_changes(self, most: int | None = None) -> list[Change]:
        """Return what this distributor has learned since the last call; others ``merge`` it.

        Args:
            most: maximum number of changes; the others are returned by the next call. None: all.
        """
        taken = list(islice(self._changes, most))
        return [Change(key[0], key[1][0], self._changes.pop(key), key[1][1]) for key in taken]

    def merge(self, changes: Iterable[Change], now: float) -> None:
        """Add what other distributors have learned; never a distributor's own changes, which it has already."""
        self._add(self._observed(changes, now), now, is_own=False)

    def of_type(self, task_type: str, expected_ms: float | None = None) -> TypeEstimates | None:
        """Return the estimates for a task type, or for its tasks of one size; None if nothing is known of them."""
        self.was_read = True
        return self._types.get((task_type, expected_ms))

    def sizes_of(self, task_type: str) -> Collection[TypeEstimates]:
        """Return the estimates for each size of the tasks of a type of which something is known."""
        return self._sizes.get(task_type, {}).values()

    def service_s(self, agent_id: str, task_type: str, load: float = 0) -> float | None:
        """Return the expected service time in seconds beside ``load`` other tasks; None if the type is unknown."""
        estimates = self.of_type(task_type)
        if estimates is None:
            return None
        cell = estimates.cell_of(agent_id)
        base = estimates.fleet_s if cell is None else cell.shrunk_s
        return base * self.load_term(load)

    def failure_rate(self, agent_id: str, task_type: str) -> float:
        """Return the share of recent attempts that failed, 0 to 0.95; 0 if nothing is known."""
        estimates = self.of_type(task_type)
        cell = None if estimates is None else estimates.cell_of(agent_id)
        return 0.0 if cell is None else cell.failure_rate

    def load_term(self, load: float) -> float:
        """Return by which factor a task takes longer beside ``load`` other tasks: (1 + load)^e."""
        return self.load_terms[load]

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[str, Kind]]:
        """Iterate over the pairs of agent and kind of task of which something is known."""
        return iter(self._order)

    def _learn_exponent(self, known: Sums, new: Sums) -> None:
        """Compare new samples with the mean of their cell: is the time longer where the load is higher?"""
        x, y = known.x / known.weight, known.y / known.weight
        fade = _EXPONENT_DECAY**new.samples
        self._slope = self._slope * fade + new.xy - x * new.y - y * new.x + x * y * new.weight
        self._evidence = self._evidence * fade + max(0.0, new.xx - 2 * x * new.x + x * x * new.weight)
        slope = self._slope + FIRST_EVIDENCE * FIRST_EXPONENT
        self.exponent = min(1.0, max(0.0, slope / (self._evidence + FIRST_EVIDENCE)))

    def _observed(self, changes: Iterable[Change], now: float) -> Iterable[Change]:
        if self.observer is None:
            return changes
        seen = list(changes)
        self.observer.learned(seen, now)
        return seen

    def _add(self, changes: Iterable[Change], now: float, *, is_own: bool) -> None:
        self.now = max(self.now, now)
        counts: dict[Kind, int] = {}
        for change in changes:
            kind, sums = (change.task_type, change.expected_ms), change.sums
            key = (change.agent_id, kind)
            estimates = self._types[kind] if kind in self._types else self._begin(kind)
            cell = estimates.cells.get(change.agent_id)
            if cell is None:
                cell = estimates.cells[change.agent_id] = Cell(Sums(), now)
            estimates.wake(cell, now)
            if sums.samples and cell.sums.weight > 0:
                self._learn_exponent(cell.sums, sums)
            cell.sums.add(sums)
            cell.tick = cell.plain_tick = -1
            self._order[key] = None
            self._order.move_to_end(key)
            if len(self._order) > self._most_cells:
                self._drop_oldest()
            if is_own:
                known = self._changes.get(key)
                if known is None:
                    self._changes[key] = replace(sums)
                else:
                    known.add(sums)
            counts[kind] = counts.get(kind, 0) + max(1, sums.samples)
        for kind, count in counts.items():
            if kind in self._types:
                self._types[kind].changed(count)

    def _begin(self, kind: Kind) -> TypeEstimates:
        """Return the estimates for a kind of task of which nothing is known yet."""
        estimates = self._types[kind] = TypeEstimates(self)
        task_type, size = kind
        if size is not None:
            self._sizes.setdefault(task_type, {})[size] = estimates
        return estimates

    def _drop_oldest(self) -> None:
        (agent_id, kind), _ = self._order.popitem(last=False)
        self._changes.pop((agent_id, kind), None)
        cells = self._types[kind].cells
        del cells[agent_id]
        if not cells:
            del self._types[kind]
            task_type, size = kind
            if size is not None:
                del self._sizes[task_type][size]
                if not self._sizes[task_type]:
                    del self._sizes[task_type]


def _changes_of(agent_id: str, task_type: str, sums: Sums, expected_ms: float | None) -> list[Change]:
    """Return an attempt as a change of its type and, if it has a size, one of its type and size."""
    changes = [Change(agent_id, task_type, sums)]
    if expected_ms is not None:
        changes.append(Change(agent_id, task_type, replace(sums), expected_ms))
    return changes
