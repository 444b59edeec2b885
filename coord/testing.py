"""Checks for a placement strategy of your own.

They need nothing but coord::

    from coord.testing import check_strategy
    from my_package.placement import FewestFailures

    def test_my_strategy_is_safe() -> None:
        check_strategy(FewestFailures)

Every run makes the same random cases, so a failure can be repeated.
"""

from __future__ import annotations

import random as global_random
import re
from random import Random

import msgspec

from coord.models.agents import FleetAgent, Location
from coord.models.tasks import Priority
from coord.placement import Learned, Strategy, TaskContext

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SKILLS = ("echo", "ocr", "gpu")
_SIZES = (None, 16.0, 1024.0)
_PLACES = (None, Location(lat=52.5, lon=13.4), Location(lat=-33.9, lon=151.2), Location(region="eu", zone="eu-1"))
_MOST_AGENTS = 8
_STEPS = 150


def check_strategy(strategy: type[Strategy], *, cases: int = 100) -> None:
    """Check the safety properties that every strategy must have.

    * It has a valid ``name``, and can be made from a random generator and a ``Learned``.
    * ``choose`` returns an agent that was offered and not withdrawn since; None if and only if there is none.
      ``has_room`` says the same.
    * An agent in ``task.avoid`` is chosen only if no other agent has room.
    * Every free slot is used: offered until they are full, agents get as many tasks as they have room for.
    * The same seed makes the same choices, and nothing but ``self.random`` is random.
    * No agent is changed.

    Args:
        strategy: the class.
        cases: number of random fleets.

    Raises:
        AssertionError: a property does not hold; the message says which, and for what case.
    """
    name = getattr(strategy, "name", None)
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise AssertionError(f"name must be lower case letters, digits and underscores, got {name!r}")
    before = global_random.getstate()
    for seed in range(cases):
        chosen = _run(strategy, seed)
        if chosen != _run(strategy, seed):
            raise AssertionError(f"{name}, case {seed}: the same seed made other choices")
        _fill(strategy, seed)
    if global_random.getstate() != before:
        raise AssertionError(f"{name} uses the global random numbers; use self.random")


def _run(cls: type[Strategy], seed: int) -> list[str | None]:
    """Offer, withdraw and choose at random, and check each choice; return the choices."""
    random, what = Random(seed), f"{cls.name}, case {seed}"
    learned = Learned()
    strategy = cls(Random(seed), learned)
    offered: dict[str, FleetAgent] = {}
    choices: list[str | None] = []
    for step in range(_STEPS):
        match random.randrange(5):
            case 0 | 1:
                agent = _agent(random)
                offered[agent.agent_id] = agent
                strategy.offer(agent)
            case 2:
                agent_id = f"a{random.randrange(_MOST_AGENTS)}"
                offered.pop(agent_id, None)
                strategy.withdraw(agent_id)
            case 3:
                _learn(learned, random, step)
            case _:
                choices.append(_choose(strategy, offered, _task(random), f"{what}, step {step}"))
        _require(strategy.has_room == bool(offered), f"{what}, step {step}: has_room is {strategy.has_room}")
    return choices


def _choose(strategy: Strategy, offered: dict[str, FleetAgent], task: TaskContext, what: str) -> str | None:
    copies = {agent_id: msgspec.structs.replace(agent) for agent_id, agent in offered.items()}
    chosen = strategy.choose(task)
    _require((chosen is None) == (not offered), f"{what}: chose {chosen!r} of {sorted(offered)}")
    _require(chosen is None or chosen in offered, f"{what}: chose {chosen!r}, which is not offered")
    others = offered.keys() - task.avoid
    _require(chosen not in task.avoid or not others, f"{what}: chose {chosen!r}, which the task avoids")
    _require(copies == offered, f"{what}: changed an agent")
    if chosen is not None:
        agent = offered[chosen]
        agent.load += 1
        if agent.load < agent.capacity:
            strategy.offer(agent)
        else:
            strategy.withdraw(chosen)
            del offered[chosen]
    return chosen


def _fill(cls: type[Strategy], seed: int) -> None:
    """Place tasks until all agents are full."""
    random = Random(seed)
    strategy = cls(Random(seed), Learned())
    offered = {agent.agent_id: agent for agent in (_agent(random) for _ in range(_MOST_AGENTS))}
    for agent in offered.values():
        strategy.offer(agent)
    room = sum(agent.capacity - agent.load for agent in offered.values())
    for placed in range(room):
        what = f"{cls.name}, case {seed}: task {placed} of {room}"
        _require(_choose(strategy, offered, _task(random), what) is not None, f"{what} is not placed")
    _require(strategy.choose(_task(random)) is None, f"{cls.name}, case {seed}: chose an agent though all are full")


def _agent(random: Random) -> FleetAgent:
    capacity = random.choice((1, 2, 5))
    return FleetAgent(
        agent_id=f"a{random.randrange(_MOST_AGENTS)}",
        agent_type="worker",
        capabilities=frozenset(random.sample(_SKILLS, random.randint(1, 3))),
        labels={"price": random.choice(("0.1", "2", "free"))} if random.random() < 0.7 else {},
        capacity=capacity,
        load=random.randrange(capacity),
        outside_load=random.choice((0, 0, 3, 1_000_000)),
        weight=random.choice((0.0, 0.5, 1.0, 1.0, 7.0)),
        health_score=random.choice((0.5, 1.0)),
        location=random.choice(_PLACES),
        cpu=random.choice((None, 0.0, 0.4, 1.0)),
        memory=random.choice((None, 0.3, 1.0)),
        load_at_report=random.randrange(3),
    )


def _task(random: Random) -> TaskContext:
    return TaskContext(
        task_type=random.choice(("t", "u")),
        priority=random.choice(list(Priority)),
        location=random.choice(_PLACES),
        affinity_key=random.choice((None, "k1", "k2")),
        avoid=frozenset(f"a{number}" for number in range(_MOST_AGENTS) if random.random() < 0.1),
        expected_ms=random.choice(_SIZES),
    )


def _learn(learned: Learned, random: Random, step: int) -> None:
    agent_id, task_type = f"a{random.randrange(_MOST_AGENTS)}", random.choice(("t", "u"))
    size = random.choice(_SIZES)
    if random.random() < 0.8:
        seconds, load = 10 ** random.uniform(-3, 3), random.randrange(4)
        learned.succeeded(agent_id, task_type, seconds, load, float(step), expected_ms=size)
    else:
        learned.failed(agent_id, task_type, float(step), expected_ms=size)
    learned.demand.add((random.choice(_SKILLS),))
    learned.demand.update({}, float(step))
    learned.advance(float(step))


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise AssertionError(problem)
