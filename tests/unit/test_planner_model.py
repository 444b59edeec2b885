"""View and planner against a model that looks at every agent and every pool each time, in any order of events."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from coord.models.agents import FleetAgent
from coord.models.tasks import Pool, Requirements
from coord.placement import NO_RULES, Ejection, OwnRules, Rules, preferred_pool, unmet_requirement
from workers import planner as planner_module
from workers import view as view_module
from workers.planner import Planner
from workers.transitions import Placement, TaskBatch
from workers.view import View

TURN = 2
AGENTS = [f"a{number}" for number in range(4)]
WORD = st.sampled_from(["x", "y"])
SOME = st.frozensets(WORD)
ROW = st.builds(
    FleetAgent,
    agent_id=st.sampled_from(AGENTS),
    agent_type=WORD,
    capabilities=SOME,
    services=SOME,
    tags=SOME,
    labels=st.dictionaries(WORD, WORD, max_size=1),
    capacity=st.sampled_from([0, 1, 2, 3, 3]),
    health_score=st.sampled_from([0.3, 0.6, 1.0, 1.0]),
    rev=st.integers(1, 9),
    active=st.sampled_from([True, True, True, False]),
    load=st.sampled_from([0, 0, 1, 3]),
    outside_load=st.sampled_from([0, 0, 2]),
)
#: One that can do something, for a beginning.
GOOD_ROW = st.builds(
    FleetAgent,
    agent_id=st.sampled_from(AGENTS),
    agent_type=st.just("x"),
    capabilities=SOME,
    capacity=st.integers(1, 3),
    health_score=st.sampled_from([0.6, 1.0]),
    rev=st.integers(1, 9),
)
REQUIRED = st.builds(
    Requirements,
    agent_type=st.one_of(st.none(), WORD),
    capabilities=st.one_of(st.just(()), st.tuples(WORD)),
    services=st.one_of(st.just(()), st.just(()), st.tuples(WORD)),
    tags=st.one_of(st.just(()), st.just(()), st.tuples(WORD, WORD)),
    labels=st.one_of(st.just({}), st.just({}), st.dictionaries(WORD, WORD, max_size=1)),
    agent_id=st.one_of(st.none(), st.none(), st.sampled_from(AGENTS)),
    min_health_score=st.sampled_from([0.0, 0.0, 0.6]),
)
STRATEGY = st.sampled_from([None, None, "least_connections", "round_robin", "random", "gone"])
#: Most pools share a group with others, and an agent fits them.
COMMON = [
    Pool("t"),
    Pool("x"),
    Pool("t", Requirements(agent_type="x")),
    Pool("t", strategy="round_robin"),
    Pool("u"),
]
DEFINITION = st.one_of(
    st.sampled_from(COMMON),
    st.sampled_from(COMMON),
    st.builds(Pool, st.sampled_from(["t", "x", "y"]), REQUIRED, STRATEGY),
)
POOL = st.sampled_from([f"p{number}" for number in range(6)])
LENGTH = st.integers(1, 5)
HEAD = st.sampled_from([1.0, 2.0, 3.0, 4.0])


@dataclass
class ModelAgent:
    """What is known of one agent."""

    row: FleetAgent
    planned: int = 0
    heard: int = 0
    freed: int = 0
    is_suspended: bool = False

    @property
    def load(self) -> int:
        """Tasks that it has, as far as is known."""
        return max(0, self.heard + self.planned - self.freed)

    @property
    def has_room(self) -> bool:
        """Whether it may be given a task."""
        return self.row.active and not self.is_suspended and self.load < self.row.capacity


@dataclass
class ModelPool:
    """What is known of one waiting pool."""

    definition: Pool
    length: int
    head: float
    is_read: bool = True
    planned: int = 0


@dataclass
class Model:
    """Everything, without any index."""

    threshold: float = 0.5
    strategy: str = "least_connections"
    type_rules: OwnRules = NO_RULES
    agents: dict[str, ModelAgent] = field(default_factory=dict)
    pools: dict[str, ModelPool] = field(default_factory=dict)
    ejected_of: Callable[[Pool], Collection[str]] = lambda _: ()

    def fit(self, pool: ModelPool) -> list[ModelAgent]:
        """The agents that may get the pool's tasks, but for those that are ejected."""
        wanted = self.wanted(pool.definition)
        ejected = self.ejected_of(wanted)
        return [one for one in self.meet(wanted) if one.row.agent_id not in ejected]

    def wanted(self, definition: Pool) -> Pool:
        """The pool whose agents get the tasks: those that can do the type, if no capability is required and any can."""
        preferred = preferred_pool(definition)
        return definition if preferred is None or not self.meet(preferred) else preferred

    def meet(self, definition: Pool) -> list[ModelAgent]:
        """The agents that meet requirements and are not suspended."""
        return [
            one
            for one in self.agents.values()
            if not one.is_suspended and unmet_requirement(one.row, definition.requirements, self.threshold) is None
        ]

    def with_room(self, pool: ModelPool) -> list[ModelAgent]:
        """Those of them that have room."""
        return [one for one in self.fit(pool) if one.has_room]

    def left(self) -> list[tuple[float, str, ModelPool]]:
        """The pools with tasks that are not planned, in the order of their heads."""
        return sorted(
            (pool.head, name, pool)
            for name, pool in self.pools.items()
            if pool.is_read and pool.length > pool.planned
        )  # fmt: skip

    def strategy_of(self, pool: ModelPool) -> str:
        """The strategy that orders the pool's agents."""
        if self.type_rules.rare_skills_first:
            return "rare skills first"
        names = (pool.definition.strategy, self.type_rules.strategy, self.strategy)
        return next(name for name in names if name not in {None, "gone"})

    def check_plan(self, placements: list[Placement], most: int) -> None:
        """Each placement is the one that the rules ask for, or as good as that, and none is missing."""
        rest = list(placements)
        order = self.left()
        while order and len(placements) - len(rest) < most:
            still = []
            for turn in order:
                _, name, pool = turn
                done = len(placements) - len(rest)
                for _ in range(min(TURN, pool.length - pool.planned, most - done)):
                    chosen_from = self.with_room(pool)
                    if not chosen_from:
                        break
                    assert rest, f"nothing is planned for {name}, though {chosen_from} have room"
                    self.check_placement(rest.pop(0), name, chosen_from)
                else:
                    if pool.length > pool.planned:
                        still.append(turn)
            order = still
        assert not rest, f"{rest} are not due"

    def check_placement(self, placement: Placement, name: str, chosen_from: list[ModelAgent]) -> None:
        """The next placement is for this pool, and goes to one of these agents."""
        pool = self.pools[name]
        assert placement.pool == name
        agent = self.agents[placement.agent_id]
        assert agent in chosen_from
        assert placement.rev == agent.row.rev
        if self.strategy_of(pool) == "least_connections":
            assert agent.load + agent.row.outside_load == min(one.load + one.row.outside_load for one in chosen_from)
        agent.planned += 1
        pool.planned += 1


class Machine(RuleBasedStateMachine):
    """What may happen to a view and a planner."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.view = View(self.model.threshold, self.model.strategy, Random(1))
        self.planner = Planner(self.view)
        self.model.ejected_of = self.ejected_of
        self.plans: list[list[Placement]] = []
        self.steps = 0
        self.definitions: dict[str, Pool] = {}  # a pool's name stands for one definition

    @invariant()
    def count(self) -> None:
        """Some things happen now and then only."""
        self.steps += 1

    @initialize(
        rows=st.lists(GOOD_ROW, min_size=3, max_size=5), definitions=st.lists(DEFINITION, min_size=4, max_size=6)
    )
    def begin(self, rows: list[FleetAgent], definitions: list[Pool]) -> None:
        """Some agents are there, and tasks wait."""
        for row in rows:
            self.change_agent(row)
        for number, definition in enumerate(definitions):
            self.expect(f"p{number}", definition, 3, float(number % 4))

    # The fleet.

    @rule(row=ROW)
    def change_agent(self, row: FleetAgent) -> None:
        """An agent registers, or is not as it was."""
        before = self.model.agents.get(row.agent_id)
        self.model.agents[row.agent_id] = ModelAgent(row, before.planned if before else 0, row.load)
        self.view.update([row.agent_id], {row.agent_id: msgspec.structs.replace(row)})

    @rule(agent=st.sampled_from(AGENTS), health=st.sampled_from([0.3, 0.6, 1.0]), active=st.booleans())
    def change_health(self, agent: str, health: float, active: bool) -> None:
        """An agent that is there gets better or worse, leaves or comes back."""
        known = self.model.agents.get(agent)
        if known is not None:
            self.change_agent(msgspec.structs.replace(known.row, health_score=health, active=active))

    @precondition(lambda self: self.steps % 4 == 0)
    @rule(agent=st.sampled_from(AGENTS))
    def remove_agent(self, agent: str) -> None:
        """An agent is forgotten."""
        self.model.agents.pop(agent, None)
        self.view.update([agent], {})

    @precondition(lambda self: self.steps % 16 == 5)
    @rule(rows=st.lists(ROW, max_size=4))
    def replace_fleet(self, rows: list[FleetAgent]) -> None:
        """A new snapshot is read."""
        fleet = {row.agent_id: row for row in rows}
        self.model.agents = {agent: ModelAgent(row, 0, row.load) for agent, row in fleet.items()}
        self.view.replace({agent: msgspec.structs.replace(row) for agent, row in fleet.items()})

    @precondition(lambda self: self.steps % 4 == 3)
    @rule(agent=st.sampled_from(AGENTS))
    def suspend(self, agent: str) -> None:
        """An agent is not as the view has it."""
        if agent in self.model.agents:
            self.model.agents[agent].is_suspended = True
        self.view.suspend(agent)

    @rule(loads=st.dictionaries(st.sampled_from(AGENTS), st.integers(0, 3), max_size=2))
    def hear(self, loads: dict[str, int]) -> None:
        """True loads are read."""
        self.take_over_loads(loads)
        self.view.apply_loads(loads)

    @rule(agent=st.sampled_from(AGENTS), count=st.integers(-2, 2))
    def free(self, agent: str, count: int) -> None:
        """A round trip that ends tasks of an agent is sent, or is over."""
        if agent in self.model.agents:
            self.model.agents[agent].freed = max(0, self.model.agents[agent].freed + count)
        self.view.free(agent, count)

    @rule(threshold=st.sampled_from([0.0, 0.5, 0.8]), name=st.sampled_from(["least_connections"] * 3 + ["round_robin"]))
    def configure(self, threshold: float, name: str) -> None:
        """An operator changes how tasks are placed."""
        self.model.threshold, self.model.strategy = threshold, name
        self.view.configure(threshold, Rules(name), self.view.type_rules)

    @rule(name=st.sampled_from([None, "random", "round_robin", "gone"]), rare=st.sampled_from([None, True, False]))
    def configure_type(self, name: str | None, rare: bool | None) -> None:
        """An operator changes how the tasks of a type are placed; their pools move to other groups."""
        self.model.type_rules = OwnRules(name, rare_skills_first=rare)
        self.view.configure(self.model.threshold, self.view.rules, {"t": self.model.type_rules})
        self.planner.regroup()

    @rule(definition=DEFINITION)
    def use_another_group(self, definition: Pool) -> None:
        """A group that no pool waits for is used, so that another is dropped."""
        self.view.group_of(definition)

    @rule(agent=st.sampled_from(AGENTS), task_type=st.sampled_from("ttu"))
    def eject(self, agent: str, task_type: str) -> None:
        """An agent is ejected for a type of tasks."""
        if self.view.ejections.adopt(Ejection(agent, task_type, 900.0, 1.0, 0.0, 1), time.monotonic()):
            self.view.apply_ejections([task_type])

    @precondition(lambda self: self.steps % 4 == 1)
    @rule(agent=st.sampled_from(AGENTS))
    def readmit(self, agent: str) -> None:
        """An agent that was ejected is tried again."""
        self.view.apply_ejections(self.view.ejections.release(agent, time.monotonic()))

    def ejected_of(self, definition: Pool) -> Collection[str]:
        """The agents that get no tasks of a pool: the first ejected of those that the view has judged to be eligible.

        A suspended agent counts until it is judged again, so the view's set is taken, and checked in ``check_fleet``.
        """
        ejections = self.view.ejections
        if not ejections.has_ejected(definition.task_type):
            return ()
        return ejections.ejected(definition.task_type, self.view.group_of(definition).meeting)

    # The table of pools.

    @rule(name=POOL, definition=DEFINITION, length=LENGTH, head=HEAD)
    def expect(self, name: str, definition: Pool, length: int, head: float) -> None:
        """Tasks are about to be admitted."""
        definition = self.definitions.setdefault(name, definition)
        pool = self.model.pools.get(name)
        if pool is None:
            self.planner.define(name, definition)
            self.model.pools[name] = ModelPool(definition, length, head)
        elif pool.is_read:
            pool.length += length
            pool.head = min(pool.head, head)
        self.planner.expect(name, length, head)

    @rule(name=POOL, definition=DEFINITION, length=LENGTH, head=HEAD)
    def hear_of_pool(self, name: str, definition: Pool, length: int, head: float) -> None:
        """An answer names a pool in which tasks wait."""
        definition = self.definitions.setdefault(name, definition)
        if name not in self.model.pools:
            self.planner.define(name, definition)
        known = self.model.pools.setdefault(name, ModelPool(definition, 0, 0.0))
        known.length, known.head, known.is_read = length, head, True
        self.planner.apply(TaskBatch([], {}, {name: (length, head)}, 1, 0))

    @precondition(lambda self: self.steps % 4 == 1)
    @rule(name=POOL)
    def end_pool(self, name: str) -> None:
        """An answer says that no task waits in a pool any more."""
        self.take_over_pool(name, 0, 0.0)
        self.planner.apply(TaskBatch([], {}, {name: (0, 0.0)}, 1, 0))

    @precondition(lambda self: self.steps % 4 == 2)
    @rule(name=POOL)
    def remove_pool(self, name: str) -> None:
        """The table of pools does not have it any more."""
        self.take_over_pool(name, 0, 0.0)
        self.planner.remove(name)

    @rule(name=POOL, definition=DEFINITION, length=LENGTH, head=HEAD)
    def learn(self, name: str, definition: Pool, length: int, head: float) -> None:
        """The table of pools has it; how many tasks wait there is read later."""
        definition = self.definitions.setdefault(name, definition)
        if name not in self.model.pools:
            self.model.pools[name] = ModelPool(definition, length, head, is_read=False)
        self.planner.learn(name, definition)

    @rule()
    def read_lengths(self) -> None:
        """The lengths that are wanted are read."""
        for name in list(self.planner.unread):
            pool = self.model.pools[name]
            pool.is_read = True
            self.planner.measure(name, pool.length, pool.head)

    @precondition(lambda self: self.steps % 16 == 13)
    @rule()
    def forget(self) -> None:
        """Nothing of the table is known any more."""
        self.model.pools.clear()
        self.planner.forget()

    # Plans.

    @rule(most=st.sampled_from([1, 3, 20, 20]))
    def plan(self, most: int) -> None:
        """A plan is made, and sent."""
        placements = self.planner.plan(most)
        self.model.check_plan(placements, most)
        self.check_unread(is_full=len(placements) == most)
        if placements:
            self.plans.append(placements)

    @rule()
    def plan_everything(self) -> None:
        """The same: it is what happens most."""
        self.plan(20)

    @rule(agents=st.lists(st.sampled_from(AGENTS), min_size=1))
    def finish(self, agents: list[str]) -> None:
        """Agents have finished all that they had."""
        self.hear(dict.fromkeys(agents, 0))

    @precondition(lambda self: self.plans)
    @rule(data=st.data(), is_lost=st.booleans())
    def answer(self, data: st.DataObject, is_lost: bool) -> None:
        """A plan is answered, or its round trip fails."""
        placements = self.plans.pop(data.draw(st.integers(0, len(self.plans) - 1)))
        words = [data.draw(st.sampled_from(["ASSIGNED", "ASSIGNED", "FULL", "EMPTY", "CHANGED"])) for _ in placements]
        pools = {one.pool: (data.draw(st.integers(0, 4)), data.draw(HEAD)) for one in placements}
        loads = {one.agent_id: data.draw(st.integers(0, 3)) for one in placements}
        for one in placements:
            if one.pool in self.model.pools:
                self.model.pools[one.pool].planned = max(0, self.model.pools[one.pool].planned - 1)
            if one.agent_id in self.model.agents:
                self.model.agents[one.agent_id].planned = max(0, self.model.agents[one.agent_id].planned - 1)
        if is_lost:
            self.planner.unanswered(placements)
            return
        for one, word in zip(placements, words, strict=True):
            if word == "CHANGED" and one.agent_id in self.model.agents:
                self.model.agents[one.agent_id].is_suspended = True
        for name, (length, head) in pools.items():
            known = self.planner.definitions.get(name)
            if length and name not in self.model.pools and known is not None:
                self.model.pools[name] = ModelPool(known, 0, 0.0)
            self.take_over_pool(name, length, head)
        self.take_over_loads(loads)
        self.planner.answered(placements, TaskBatch(words, loads, pools, 1, 0))

    # What must hold.

    @rule()
    def look(self) -> None:
        """Who is ready and who is starved is as the model has it."""
        is_ready = self.planner.is_ready()
        left = self.model.left()
        assert is_ready is any(self.model.with_room(pool) for _, _, pool in left)
        self.check_unread(is_full=False)
        self.check_fleet()

    @rule()
    def look_for_starved(self) -> None:
        """The groups of pools that wait although all agents that fit are full."""
        left = self.model.left()
        starved = [name for _, name, pool in left if self.model.fit(pool) and not self.model.with_room(pool)]
        found = self.planner.starved_groups()
        for name in starved:
            assert self.planner.waiting[name].group in found
        for group in found:
            assert group.eligible
            assert not group.has_room

    def check_unread(self, *, is_full: bool) -> None:
        """The length of each pool that can be served is known, or is to be read."""
        for name, pool in self.model.pools.items():
            if not pool.is_read and not is_full and self.model.with_room(pool):
                assert name in self.planner.unread

    def check_fleet(self) -> None:
        """Agents, groups and indexes are as the model has them, and nothing is kept for ever."""
        assert self.view.rooms == sum(one.has_room for one in self.model.agents.values())
        assert set(self.planner.waiting) == set(self.model.pools)
        suspended = {agent for agent, one in self.model.agents.items() if one.is_suspended}
        for name, pool in self.model.pools.items():
            group = self.planner.waiting[name].wanted_group
            assert group.eligible - suspended == {one.row.agent_id for one in self.model.fit(pool)}
            ejected = self.view.ejections.has_ejected(pool.definition.task_type)
            assert group.task_type == (pool.definition.task_type if ejected else "")
            if ejected:
                wanted = self.model.wanted(pool.definition)
                assert group.meeting - suspended == {one.row.agent_id for one in self.model.meet(wanted)}
                assert group.meeting == group.eligible | group.ejected
                assert group.ejected == self.ejected_of(wanted)
            assert len(group.line) <= 2 * group.users + 9
        waiting = [self.planner.waiting[name] for name in self.model.pools]
        in_use = {group for one in waiting for group in (one.general, one.preferred) if group is not None}
        assert len(self.view._groups) <= len(in_use) + view_module.GROUPS_KEPT
        assert sum(map(len, self.view._facets.groups.values())) == len(self.view._groups)
        for state in self.view.agents.values():
            assert set(state.groups) <= set(self.view._groups.values())

    def teardown(self) -> None:
        """Whatever happened before, all that can be served now is."""
        self.read_lengths()
        self.look()
        self.plan(1000)
        self.read_lengths()
        self.look()
        self.look_for_starved()

    def take_over_loads(self, loads: dict[str, int]) -> None:
        """The model's part of loads that are heard."""
        for agent, load in loads.items():
            if agent in self.model.agents:
                self.model.agents[agent].heard = load

    def take_over_pool(self, name: str, length: int, head: float) -> None:
        """The model's part of what is heard of a pool."""
        pool = self.model.pools.get(name)
        if pool is None:
            return
        pool.length, pool.is_read = length, True
        if length:
            pool.head = head
        elif not pool.planned:
            del self.model.pools[name]


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits are reached after a few steps."""
    monkeypatch.setattr(planner_module, "TURN", TURN)
    monkeypatch.setattr(view_module, "GROUPS_KEPT", 2)


CI = settings(
    max_examples=200,
    stateful_step_count=50,
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


def run(profile: settings) -> None:
    """Let hypothesis drive machines."""
    made: Any = Machine
    run_state_machine_as_test(made, settings=profile)


@pytest.mark.guarantee("named-capability-first", "parked-pools")
@pytest.mark.timeout(900)  # what fails is made small first
def test_no_pool_is_forgotten_whatever_happens() -> None:
    """⚠ Plans are those of a model that looks at everything; no pool waits while an agent that fits has room."""
    run(CI)


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_no_pool_is_forgotten_whatever_happens_for_long() -> None:
    """The same with other examples in every run; what fails is printed, with a blob that repeats it."""
    run(settings(CI, max_examples=10_000, derandomize=False))
