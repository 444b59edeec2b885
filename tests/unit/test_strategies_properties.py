"""What holds for all strategies: safety, repeatability, avoidance, and the cost of a choice."""

from __future__ import annotations

import random as global_random
from random import Random
from typing import Any

import pytest

from coord.models.agents import FleetAgent
from coord.models.tasks import Pool
from coord.placement import ANY_TASK, STRATEGIES, Learned, Strategy, TaskContext
from coord.placement.capabilities import CapabilityBased
from coord.placement.load import LeastConnections, RandomChoice
from coord.placement.response_time import Predictive
from coord.testing import check_strategy
from workers.view import View

NAMES = sorted(STRATEGIES)


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_is_safe(name: str) -> None:
    """Never an agent that was not offered or was withdrawn, avoided ones last, all room used, same seed same choice."""
    check_strategy(STRATEGIES[name])


@pytest.mark.parametrize("within", NAMES)
def test_capability_based_is_safe_as_the_first_key_of_each(within: str) -> None:
    """It adds an order and takes no property away."""

    class First(CapabilityBased):
        """This strategy within equal capabilities."""

        def __init__(self, random: Random, learned: Learned | None = None) -> None:
            super().__init__(random, learned, STRATEGIES[within])

    check_strategy(First, cases=10)


@pytest.mark.parametrize("name", NAMES)
def test_a_large_fleet_is_safe_too(name: str) -> None:
    """Above 64 agents some are drawn only: still all room is used, and avoided ones are last."""
    random = Random(5)
    strategy = STRATEGIES[name](Random(1))
    fleet = {f"a{number}": FleetAgent(agent_id=f"a{number}", agent_type="worker", capacity=3) for number in range(100)}
    for one in fleet.values():
        strategy.offer(one)
    avoid = frozenset(random.sample(sorted(fleet), 98))
    chosen = [strategy.choose(TaskContext(avoid=avoid)) for _ in range(20)]
    assert avoid.isdisjoint({str(one) for one in chosen})
    for _ in range(300):
        agent_id = strategy.choose(ANY_TASK)
        assert agent_id is not None
        fleet[agent_id].load += 1
        if fleet[agent_id].load < 3:
            strategy.offer(fleet[agent_id])
        else:
            strategy.withdraw(agent_id)
    assert strategy.choose(ANY_TASK) is None


@pytest.mark.parametrize("name", NAMES)
def test_views_with_the_same_seed_make_the_same_plan(name: str) -> None:
    """Also when changes are taken over late: the order of a set plays no part."""
    plans = []
    for order in (1, -1):
        view = View(0.5, name, Random(7))
        fleet = [FleetAgent(agent_id=f"a{number}", agent_type="worker", capacity=5) for number in range(30)]
        view.replace({one.agent_id: one for one in fleet})
        group = view.hold(Pool("t"))
        plan = [str(view.take(group, TaskContext("t"))) for _ in range(20)]
        # The members of the group are the same, though the set was built in another order.
        group.eligible = set(sorted(group.eligible)[::order])
        view.apply_loads({f"a{number}": number % 3 for number in range(30)})
        plan += [str(view.take(group, TaskContext("t"))) for _ in range(60)]
        plans.append(plan)
    assert plans[0] == plans[1]


# The checks find what is wrong.


class Forgetful(LeastConnections):
    """Does not withdraw."""

    name = "forgetful"

    def withdraw(self, agent_id: str) -> None:
        """Do nothing."""


class Careless(LeastConnections):
    """Does not care what a task avoids."""

    name = "careless"

    def choose(self, task: TaskContext) -> str | None:
        """Return the first."""
        return super().choose(ANY_TASK)


class Unseeded(RandomChoice):
    """Uses the global random numbers."""

    name = "unseeded"

    def pick(self, agents: Any, task: TaskContext) -> FleetAgent:
        """Return any of them."""
        return global_random.choice(list(agents))  # type: ignore[no-any-return]

    exact_up_to = 1_000


class Meddling(LeastConnections):
    """Changes an agent."""

    name = "meddling"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: dict[str, FleetAgent] = {}

    def offer(self, agent: FleetAgent) -> None:
        """Keep the agent."""
        self.seen[agent.agent_id] = agent
        super().offer(agent)

    def choose(self, task: TaskContext) -> str | None:
        """Count the task here."""
        chosen = super().choose(task)
        if chosen is not None:
            self.seen[chosen].load += 1
        return chosen


class Lazy(LeastConnections):
    """Leaves one slot of each agent free."""

    name = "lazy"

    def offer(self, agent: FleetAgent) -> None:
        """Skip an agent with one free slot."""
        if agent.load + 1 < agent.capacity:
            super().offer(agent)
        else:
            self.withdraw(agent.agent_id)


class Unnamed(LeastConnections):
    """Has no valid name."""

    name = "Not A Name"


@pytest.mark.parametrize(
    ("cls", "problem"),
    [
        (Forgetful, "forgetful, case 0"),
        (Careless, "which the task avoids"),
        (Unseeded, "unseeded"),
        (Meddling, "changed an agent"),
        (Lazy, "lazy, case 0"),
        (Unnamed, "name must be lower case letters"),
    ],
)
def test_a_defect_is_found_and_named(cls: type[Strategy], problem: str) -> None:
    """Each property fails for a strategy that breaks it, and the message says which."""
    with pytest.raises(AssertionError, match=problem):
        check_strategy(cls)


# Cost: counted in operations, not in time.


def test_sampled_strategies_score_all_of_a_few_and_sixteen_of_many() -> None:
    """64 agents are all scored; of 65 and of 10,000 it is 16; a single one is not scored at all."""
    scored: list[int] = []

    class Counting(Predictive):
        """Counts what it scores."""

        def scores(self, agents: Any, task: TaskContext) -> list[float]:
            """Count, and score."""
            scored.append(len(agents))
            return super().scores(agents, task)

    for count in (1, 64, 65, 10_000):
        strategy = Counting(Random(1))
        for number in range(count):
            strategy.offer(FleetAgent(agent_id=f"a{number}", agent_type="worker"))
        assert strategy.choose(ANY_TASK) is not None
    assert scored == [64, 16, 16]


def test_an_ordered_choice_does_not_search() -> None:
    """Emptying 2,000 equal agents one by one looks at each entry once: the cost does not grow with what was chosen."""
    looked = 0

    class Entries(dict[str, Any]):
        """Counts look-ups."""

        def get(self, *arguments: Any) -> Any:
            """Count, and look up."""
            nonlocal looked
            looked += 1
            return super().get(*arguments)

    strategy = LeastConnections(Random(1))
    strategy._entries = Entries()
    fleet = {f"a{number}": FleetAgent(agent_id=f"a{number}", agent_type="worker") for number in range(2_000)}
    for one in fleet.values():
        strategy.offer(one)
    looked = 0
    for _ in range(2_000):
        agent_id = strategy.choose(ANY_TASK)
        assert agent_id is not None
        fleet[agent_id].load += 1
        strategy.offer(fleet[agent_id])
    assert looked < 5 * 2_000
