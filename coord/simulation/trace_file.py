"""Traces as files, one JSON object a line, and as scenarios.

The speed of each agent for each type of task, and how load slows agents down, are learned from the trace as a
distributor learns them. From them follows how much work each task was. Agents count as present all the time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

import msgspec

from coord.errors import ConfigError
from coord.models.tasks import size_class
from coord.models.traces import TRACE_VERSION, Trace, TraceAgent, TraceHeader, TraceTask
from coord.placement import Learned, TaskContext
from coord.simulation.scenario import Job, Scenario, SimulatedAgent

#: Least tasks of which a scenario is made.
LEAST_TASKS = 10
#: A load exponent below this counts as 0: so much is found by chance where slots are independent.
LEAST_EXPONENT = 0.3
#: Shortest task, in seconds.
LEAST_S = 1e-3

_decoder = msgspec.json.Decoder(TraceHeader | TraceAgent | TraceTask)


def write_trace(trace: Trace) -> bytes:
    """Return a trace as JSON Lines: the header, the agents, the tasks."""
    return msgspec.json.Encoder().encode_lines([trace.header, *trace.agents, *trace.tasks])


def read_trace(data: bytes) -> Trace:
    """Return the trace in a file.

    Raises:
        ConfigError: it is not a trace, or of another version; names the line.
    """
    header, agents, tasks = None, [], []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            found = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"line {number} of the trace does not fit: {error}") from None
        if isinstance(found, TraceHeader):
            header = found
            if header.version != TRACE_VERSION:
                raise ConfigError(f"the trace has version {header.version}; this coord reads version {TRACE_VERSION}")
        elif isinstance(found, TraceAgent):
            agents.append(found)
        else:
            tasks.append(found)
    if header is None:
        raise ConfigError("the file is not a trace: it has no header; make one with coord trace export")
    return Trace(header, tuple(agents), tuple(tasks))


def scenario_of(trace: Trace) -> Scenario:
    """Return the scenario of a trace.

    Raises:
        ConfigError: too few tasks completed.
    """
    if len(trace.tasks) < LEAST_TASKS:
        raise ConfigError(f"the trace has {len(trace.tasks)} completed tasks; a simulation needs {LEAST_TASKS} or more")
    tasks = sorted(trace.tasks, key=lambda task: task.assigned_at)
    loads, most = _loads(tasks)
    learned = Learned()
    for task in sorted(tasks, key=lambda task: (task.finished_at, task.task_id)):
        # All at one time: an agent does not become like the others because it was idle at the end of the trace.
        learned.succeeded(task.agent_id, task.task_type, _service_s(task), loads[task.task_id], 0.0)
    types = sorted({task.task_type for task in tasks})
    known = {agent.agent_id: agent for agent in trace.agents}
    for agent_id, capacity in most.items():
        if agent_id not in known:  # it is gone, and what it could do is not known
            done = {name for task in tasks if task.agent_id == agent_id for name in task.capabilities}
            known[agent_id] = TraceAgent(agent_id, capacity, capabilities=tuple(sorted(done)))
    exponent = round(learned.exponent, 3) if learned.exponent >= LEAST_EXPONENT else 0.0
    agents = tuple(_agent(known[agent_id], types, learned, most, exponent) for agent_id in sorted(known))
    begin = min(task.ready_at for task in tasks)
    jobs = [_job(task, begin, learned, (1 + loads[task.task_id]) ** exponent) for task in tasks]
    return Scenario(agents=agents, jobs=tuple(sorted(jobs, key=lambda job: job.arrived)))


def _loads(tasks: Sequence[TraceTask]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the other tasks on the agent of each task when it was assigned, and the most that each agent had."""
    ends: dict[str, list[int]] = defaultdict(list)
    loads: dict[str, int] = {}
    most: dict[str, int] = {}
    for task in tasks:
        active = ends[task.agent_id]
        while active and active[0] <= task.assigned_at:
            heappop(active)
        loads[task.task_id] = len(active)
        heappush(active, task.finished_at)
        most[task.agent_id] = max(most.get(task.agent_id, 0), len(active))
    return loads, most


def _agent(
    agent: TraceAgent, types: Iterable[str], learned: Learned, most: dict[str, int], exponent: float
) -> SimulatedAgent:
    return SimulatedAgent(
        agent_id=agent.agent_id,
        capacity=max(agent.capacity, most.get(agent.agent_id, 1)),
        weight=agent.weight,
        capabilities=frozenset(agent.capabilities),
        location=agent.location,
        speeds={task_type: _speed(learned, agent.agent_id, task_type) for task_type in types},
        load_exponent=exponent,
    )


def _speed(learned: Learned, agent_id: str, task_type: str) -> float:
    """Return how many times as fast an agent is as the fleet."""
    estimates = learned.of_type(task_type)
    cell = estimates.cell_of(agent_id) if estimates is not None else None
    return 1.0 if estimates is None or cell is None else estimates.fleet_s / cell.shrunk_s


def _job(task: TraceTask, begin: int, learned: Learned, slowed: float) -> Job:
    alone_s = _service_s(task) / slowed
    return Job(
        arrived=(task.ready_at - begin) / 1000,
        work=max(LEAST_S, alone_s * _speed(learned, task.agent_id, task.task_type)),
        task=TaskContext(
            task.task_type,
            task.priority,
            expected_ms=None if task.expected_ms is None else size_class(task.expected_ms),
        ),
        capabilities=frozenset(task.capabilities),
    )


def _service_s(task: TraceTask) -> float:
    return max(LEAST_S, (task.finished_at - task.assigned_at) / 1000)
