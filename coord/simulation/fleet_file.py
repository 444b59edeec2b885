"""A synthetic fleet and its work, from a TOML file.

::

count = 2000                # tasks
load = 0.8                  # of what the fleet can do; or: rate = 12.5, tasks a second

[[agents]]
name = "fast"               # ids: fast-1, fast-2 ...; of one: fast
count = 4
capacity = 4
speed = 8.0                 # units of work in a second
speeds = { summarize = 2.0 }    # for single task types
capabilities = ["ocr"]
weight = 1.0
load_exponent = 0.0         # 0: independent slots; 1: the tasks of an agent share a CPU

[[tasks]]
type = "ocr"
share = 0.7                 # of all tasks, relative to the others
seconds = 1.0               # mean on an agent with speed 1
sigma = 1.5                 # of log-normal times; without it they are exponential
requires = ["ocr"]

[[changes]]
agent = "fast-1"
speed = 0.1                 # its speed is multiplied by this; or: away = true
from = 0.4                  # share of the tasks that have arrived then
until = 0.7
"""

from __future__ import annotations

import tomllib
from math import exp
from random import Random
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from coord.errors import ConfigError
from coord.models.ids import check_id
from coord.placement import TaskContext
from coord.simulation.scenario import Change, Job, Scenario, SimulatedAgent

Positive = Annotated[float, Meta(gt=0, le=1e9)]
Share = Annotated[float, Meta(ge=0, le=1)]
Text = Annotated[str, Meta(min_length=1, max_length=128)]
#: Shortest task, in units of work.
LEAST_WORK = 1e-3


class AgentTable(Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[[agents]]``."""

    name: Text
    count: Annotated[int, Meta(ge=1, le=10_000)] = 1
    capacity: Annotated[int, Meta(ge=1, le=10_000)] = 4
    speed: Positive = 1.0
    speeds: dict[Text, Positive] = {}
    capabilities: tuple[Text, ...] = ()
    weight: Annotated[float, Meta(ge=0, le=1e9)] = 1.0
    load_exponent: Share = 0.0


class TaskTable(Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[[tasks]]``."""

    type: Text
    share: Positive = 1.0
    seconds: Positive = 1.0
    sigma: Annotated[float, Meta(ge=0, le=10)] = 0.0
    requires: tuple[Text, ...] = ()


class ChangeTable(Struct, frozen=True, forbid_unknown_fields=True, rename={"begin": "from"}):
    """One ``[[changes]]``."""

    agent: Text
    begin: Share
    until: Share
    speed: Positive = 1.0
    away: bool = False


class FleetFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    agents: Annotated[tuple[AgentTable, ...], Meta(min_length=1)]
    tasks: Annotated[tuple[TaskTable, ...], Meta(min_length=1)]
    changes: tuple[ChangeTable, ...] = ()
    count: Annotated[int, Meta(ge=10, le=1_000_000)] = 2_000
    load: Annotated[float, Meta(gt=0, le=10)] = 0.8
    rate: Positive | None = None


def read_fleet(text: str, seed: int) -> Scenario:
    """Return the scenario of a file.

    Args:
        text: the content of the file.
        seed: of the arrivals and the times of the tasks.

    Raises:
        ConfigError: it is not TOML, or a field does not fit; names it.
    """
    try:
        file = msgspec.convert(tomllib.loads(text), FleetFile)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the fleet is not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"the fleet does not fit: {error}") from None
    return build_scenario(file, seed)


def build_scenario(file: FleetFile, seed: int) -> Scenario:
    """Return the scenario of a decoded file.

    Args:
        file: the fleet and its work.
        seed: of the arrivals and the times of the tasks.

    Raises:
        ConfigError: two agents have one id, no agent may do a task, or a change fits no agent.
    """
    agents = tuple(agent for table in file.agents for agent in _agents_of(table))
    known = [agent.agent_id for agent in agents]
    if len(set(known)) < len(known):
        raise ConfigError("the fleet does not fit: two agents have the same id; give each [[agents]] its own name")
    jobs = _jobs_of(file, agents, seed)
    return Scenario(agents=agents, jobs=jobs, changes=_changes_of(file, known, jobs))


def _agents_of(table: AgentTable) -> list[SimulatedAgent]:
    check_id(table.name, "agents.name")
    ids = [table.name] if table.count == 1 else [f"{table.name}-{number + 1}" for number in range(table.count)]
    return [
        SimulatedAgent(
            agent_id=agent_id,
            capacity=table.capacity,
            weight=table.weight,
            capabilities=frozenset(table.capabilities),
            speed=table.speed,
            speeds=table.speeds,
            load_exponent=table.load_exponent,
        )
        for agent_id in ids
    ]


def _jobs_of(file: FleetFile, agents: tuple[SimulatedAgent, ...], seed: int) -> tuple[Job, ...]:
    random = Random(seed)
    rate = file.rate if file.rate is not None else file.load * capacity_of(file, agents)
    contexts = [TaskContext(table.type) for table in file.tasks]
    required = [frozenset(table.requires) for table in file.tasks]
    shares = [table.share for table in file.tasks]
    for table, names in zip(file.tasks, required, strict=True):
        if not any(names <= agent.capabilities for agent in agents):
            missing = ", ".join(sorted(names))
            raise ConfigError(f"the fleet does not fit: no agent has what {table.type} requires: {missing}")
    found: list[Job] = []
    now = 0.0
    for _ in range(file.count):
        now += random.expovariate(rate)
        (at,) = random.choices(range(len(shares)), shares)
        table = file.tasks[at]
        if table.sigma:
            work = table.seconds * exp(random.gauss(-(table.sigma**2) / 2, table.sigma))
        else:
            work = table.seconds * random.expovariate(1.0)
        found.append(Job(arrived=now, work=max(work, LEAST_WORK), task=contexts[at], capabilities=required[at]))
    return tuple(found)


def capacity_of(file: FleetFile, agents: tuple[SimulatedAgent, ...]) -> float:
    """Return the tasks a second that the fleet can do if each agent does the mix of all tasks that it may do."""
    rate = 0.0
    for agent in agents:
        tables = [table for table in file.tasks if agent.capabilities >= set(table.requires)]
        seconds = sum(table.share * table.seconds / agent.speed_for(table.type) for table in tables)
        if seconds:
            share = sum(table.share for table in tables)
            rate += agent.capacity ** (1 - agent.load_exponent) * share / seconds
    return rate


def _changes_of(file: FleetFile, known: list[str], jobs: tuple[Job, ...]) -> tuple[Change, ...]:
    found: list[Change] = []
    for table in file.changes:
        if table.agent not in known:
            raise ConfigError(f"the fleet does not fit: changes.agent: there is no agent {table.agent!r}")
        if table.until <= table.begin:
            raise ConfigError("the fleet does not fit: changes.until must be above changes.from")
        at, until = (jobs[min(len(jobs) - 1, int(share * len(jobs)))].arrived for share in (table.begin, table.until))
        found.append(Change(at=at, agent_id=table.agent, factor=table.speed, is_present=not table.away))
        found.append(Change(at=until, agent_id=table.agent))
    return tuple(sorted(found, key=lambda change: change.at))
