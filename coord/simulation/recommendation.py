"""What to change: strategies, weights and the number of agents, ranked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from coord.placement import STRATEGIES, Rules, Strategy
from coord.simulation.comparison import Result, compare
from coord.simulation.scenario import Scenario, SimulatedAgent

#: Strategies whose choice depends on the weights of the agents.
WEIGHTED = ("least_connections", "weighted_round_robin", "power_of_two")


class Advice(Struct, frozen=True):
    """One way to run the fleet, and how good it is."""

    strategy: str
    rare_skills_first: bool
    weights: str  #: ``as they are``, or ``by speed``: each agent's weight is what it can do in a second
    without: tuple[str, ...]  #: agents that are left out
    result: Result


def recommend(
    scenarios: Sequence[Scenario],
    names: Collection[str],
    fewer: int,
    strategies: Mapping[str, type[Strategy]] = STRATEGIES,
) -> list[Advice]:
    """Try the strategies with and without ``rare_skills_first``, both kinds of weights, and fewer agents.

    Args:
        scenarios: the same fleet and work with different seeds.
        names: of the strategies to try.
        fewer: try to do without 0 to this many agents: those that can do least in a second, as long as each task has an
            agent left.
        strategies: name -> class.

    Returns: for each number of agents, all of them first, the ways to run them, the lowest mean response time first.
    """
    found: list[Advice] = []
    for count in range(fewer + 1):
        without = _spare(scenarios[0], count)
        if len(without) < count:
            break
        smaller = [_without(scenario, without) for scenario in scenarios]
        found += sorted(_ways(smaller, names, without, strategies), key=lambda advice: advice.result.mean_s)
    return found


def _ways(
    scenarios: Sequence[Scenario],
    names: Collection[str],
    without: tuple[str, ...],
    strategies: Mapping[str, type[Strategy]],
) -> list[Advice]:
    has_skills = len({agent.capabilities for agent in scenarios[0].agents}) > 1
    found: list[Advice] = []
    for rare in (False, True) if has_skills else (False,):
        tried = {
            name: Rules(name, rare_skills_first=rare) for name in names if not (rare and name == "capability_based")
        }
        results = compare(scenarios, tried, strategies, with_others=False)
        found += [Advice(result.name, rare, "as they are", without, result) for result in results]
        weighted = {name: own for name, own in tried.items() if name in WEIGHTED}
        by_speed = [_weighted(scenario) for scenario in scenarios]
        if weighted and by_speed != list(scenarios):
            results = compare(by_speed, weighted, strategies, with_others=False)
            found += [Advice(result.name, rare, "by speed", without, result) for result in results]
    return found


def _ability(agent: SimulatedAgent) -> float:
    """Return what an agent can do in a second, in units of work."""
    speeds = list(agent.speeds.values()) or [agent.speed]
    return float(sum(speeds) / len(speeds) * agent.capacity ** (1 - agent.load_exponent))


def _spare(scenario: Scenario, count: int) -> tuple[str, ...]:
    """Return the agents that can do least and may be left out; fewer than ``count`` if tasks need the others."""
    required = {job.capabilities for job in scenario.jobs}
    left = list(scenario.agents)
    spared: list[str] = []
    for agent in sorted(scenario.agents, key=lambda agent: (_ability(agent), agent.agent_id)):
        others = [other for other in left if other is not agent]
        if len(spared) < count and all(any(names <= other.capabilities for other in others) for names in required):
            left = others
            spared.append(agent.agent_id)
    return tuple(spared)


def _without(scenario: Scenario, without: Collection[str]) -> Scenario:
    return replace(
        scenario,
        agents=tuple(agent for agent in scenario.agents if agent.agent_id not in without),
        changes=tuple(change for change in scenario.changes if change.agent_id not in without),
    )


def _weighted(scenario: Scenario) -> Scenario:
    return replace(
        scenario, agents=tuple(replace(agent, weight=round(_ability(agent), 3)) for agent in scenario.agents)
    )
