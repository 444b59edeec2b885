"""A distributor's view of the fleet: the basis of plans, never the authority.

A load is the last reported one, plus the tasks that this distributor planned and that are not answered yet. An agent is
in a group if it meets the group's hard requirements. The group's strategy holds those of its agents that have room. An
agent may be in many groups, so a group takes over changes when it is used, each agent once. Large groups with the same
strategy share an order (``shared_order``), so that they take over a change together.

Groups that no agent can serve cost only memory (``facet_index``). The planner puts a group without room to sleep
(``sleeping``).
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Collection, Iterable, Mapping
from random import Random

from msgspec.structs import asdict

from coord import codec
from coord.models.agents import FleetAgent, LoadReport, outside_load_of
from coord.models.explanations import Candidate
from coord.models.ids import EntryOrder
from coord.models.tasks import Pool, Requirements
from coord.placement import (
    ANY_TASK,
    NO_RULES,
    STRATEGIES,
    Ejection,
    Ejections,
    Learned,
    OwnRules,
    Recorder,
    Rules,
    Strategy,
    TaskContext,
    capability_facet,
    create_strategy,
    facets_of,
    facets_required,
    full_scores,
    new_seed,
    preferred_pool,
    rules_with,
    unmet_requirement,
)
from workers.agent_state import AgentState, SharedLoad, Withheld
from workers.candidates import NO_AGENTS, Candidates, GroupKey
from workers.changes import Changes, Follower
from workers.facet_index import FacetIndex
from workers.shared_order import LEAST_AGENTS, Kind, SharedOrder, kind_of
from workers.sleeping import SleepingGroups

#: Maximum number of groups kept that no waiting pool uses; the least recently used ones are dropped.
GROUPS_KEPT = 10_000
#: Maximum number of strategies remembered that are set and not installed.
MISSING_KEPT = 1_000


class View:
    """The fleet as this distributor knows it.

    Args:
        health_threshold: minimum health of an agent, 0 to 1.
        strategy: name of the strategy for tasks that name none.
        random: the source of randomness of all strategies.
        strategies: name -> class; default: those that coord has.
    """

    def __init__(
        self,
        health_threshold: float,
        strategy: str,
        random: Random,
        strategies: Mapping[str, type[Strategy]] = STRATEGIES,
    ) -> None:
        self.health_threshold = health_threshold
        self.rules = Rules(strategy)  #: for tasks that set none, and are of a type that sets none
        self.type_rules: Mapping[str, OwnRules] = {}  #: task type -> what it sets
        self.missing: set[str] = set()  #: strategies that are set for a task or a type and not installed here
        self.random = random
        self.strategies = strategies
        self.learned = Learned()  #: of the agents, by all strategies together
        self.ejections = Ejections()
        self.recorder: Recorder | None = None  #: of all strategies, while an operator has plans recorded
        self.full_scores = False  #: an operator asks for the scores of each choice
        self.candidates: list[Candidate] = []  #: of the last choice, if so; the chosen agent first
        self.seed = 0  #: what the source of randomness was seeded with for that choice
        self.version = 0  #: number of changes of the view before that choice
        self.must_regroup = False  #: waiting pools belong to other groups than before; the planner moves them
        self.agents: dict[str, AgentState] = {}
        self.rooms = 0  #: agents that have room
        self.withheld: list[Withheld] = []  #: agents whose room is not used yet, of those that became so lately
        self._groups: dict[GroupKey, Candidates] = {}
        self._of_types: dict[Candidates, None] = {}  # groups that have a task type
        #: Requirements as JSON, task type -> the requirements of the agents that get the tasks first, and their JSON.
        self._preferred: dict[tuple[bytes, str], tuple[Requirements, bytes]] = {}
        self._unused: dict[Candidates, None] = {}  # groups that no waiting pool holds, the most recently used last
        self._facets = FacetIndex()
        self.sleeping = SleepingGroups()
        #: Preferred groups that have got their first eligible agent or lost their last one, until the planner clears
        #: them.
        self.turned: dict[Candidates, None] = {}
        self._orders: dict[Kind, SharedOrder] = {}  # that several groups use
        self._moved = Changes()  # agents whose room or row has changed
        self._changed = Changes()  # those, and agents whose load has changed or that have reported

    def replace(self, fleet: Mapping[str, FleetAgent]) -> None:
        """Start again from a snapshot; planned tasks are forgotten. Groups in use stay."""
        for group in list(self._unused):
            self._drop(group)
        for group in self._groups.values():
            if group.is_preferred and group.eligible:
                self.turned[group] = None
            group.within = group.eligible = NO_AGENTS
            group.meeting.clear()
            group.ejected = frozenset()
            group.forget()
        self.agents.clear()
        self._facets.forget_agents()
        self.sleeping.forget_agents()
        self._moved.clear()
        self._changed.clear()
        self.withheld.clear()
        self.rooms = 0
        for agent in fleet.values():
            self._add(agent)

    @property
    def strategy(self) -> str:
        """The name of the strategy for tasks without one, of a type without one."""
        return self.rules.strategy

    def configure(
        self, health_threshold: float, rules: Rules, type_rules: Mapping[str, OwnRules] | None = None
    ) -> bool:
        """Apply live settings; return True if anything changed."""
        types = {name: own.known_to(self.strategies) for name, own in (type_rules or {}).items()}
        if (health_threshold, rules, types) == (self.health_threshold, self.rules, self.type_rules):
            return False
        is_judged_anew = health_threshold != self.health_threshold
        self.health_threshold, self.rules, self.type_rules = health_threshold, rules, types
        for group in self._groups.values():
            before, group.rules = group.rules, rules_with(group.own_rules, rules)
            if group.rules != before:
                group.forget()
            if group.task_type and group.rules.ejection is not before.ejection:
                self._eject_in(group)
        self.must_regroup = True
        if is_judged_anew:
            for state in self.agents.values():
                self._judge(state)
                self._renew(state)
        return True

    def record(self, recorder: Recorder | None) -> None:
        """Record what the strategies choose from now on, or no more (None); all of them are created again."""
        self.recorder = recorder
        for group in self._groups.values():
            group.forget()

    def update(self, agent_ids: Iterable[str], rows: Mapping[str, FleetAgent], began: float = math.inf) -> None:
        """Apply the rows of the agents that were read; an agent without a row is gone.

        Args:
            agent_ids: of the agents.
            rows: that were found.
            began: when the rows were requested.
        """
        for agent_id in agent_ids:
            state, row = self.agents.get(agent_id), rows.get(agent_id)
            if state is not None and row is not None:
                if row.term != state.agent.term:  # a new process
                    self.apply_ejections(self.ejections.release(agent_id, time.monotonic()))
                self._adopt_ejections(row)
            if state is not None and row is not None and state.facets == facets_of(row):
                state.take_over(row, began)
                self._judge(state)
                self._renew(state)
                continue
            planned = 0
            if state is not None:
                planned = state.planned
                self._remove(state)
            if row is not None:
                self._add(row, planned)
            else:
                self.learned.forget(agent_id)
                self.apply_ejections(self.ejections.forget(agent_id))

    def apply_ejections(self, task_types: Collection[str]) -> None:
        """Take over that agents were ejected for these types, or that their ejections have ended."""
        if not task_types:
            return
        for group in self._of_types:
            self._eject_in(group)
        self.must_regroup = True

    def group_of(self, pool: Pool) -> Candidates:
        """Return the group that may serve a pool."""
        group = self._find_or_make(pool)
        if not group.users:
            self._keep_unused(group)
        return group

    def hold(self, pool: Pool) -> Candidates:
        """Return the group that may serve a waiting pool; it is kept until the pool releases it."""
        return self._hold(self._find_or_make(pool))

    def hold_preferred(self, pool: Pool, general: Candidates) -> Candidates | None:
        """Return the group whose agents get the tasks of a waiting pool first; it is kept until the pool releases it.

        Args:
            pool: the waiting pool.
            general: the group of all agents that may serve it.

        Returns:
            None if the pool requires a capability; then all eligible agents are equal.
        """
        key = general.key[0], pool.task_type
        known = self._preferred.get(key)
        if known is None:
            preferred = preferred_pool(pool)
            if preferred is None:
                return None
            if len(self._preferred) >= GROUPS_KEPT:
                self._preferred.clear()
            known = self._preferred[key] = preferred.requirements, codec.encode(preferred.requirements)
        group = self._hold(self._find_or_make(pool, *known))
        group.is_preferred = True
        return group

    def _hold(self, group: Candidates) -> Candidates:
        self._unused.pop(group, None)
        group.users += 1
        return group

    def release(self, group: Candidates) -> None:
        """Release a group that a waiting pool no longer needs."""
        group.users -= 1
        if group.users:
            return
        self.sleeping.wake(group)
        group.line.clear()
        group.turn = None
        self._keep_unused(group)

    def take(self, group: Candidates, task: TaskContext = ANY_TASK) -> FleetAgent | None:
        """Plan one task for the group's best agent and return the agent; None if no agent that it may get has room."""
        if not group.eligible:
            return None
        strategy = group.created or group.strategy
        follower = group.follower
        if follower.version != follower.changes.version:
            self.bring_up_to_date(group)
            strategy, follower = group.created or group.strategy, group.follower
        agent_id = self._choose_with_scores(strategy, task) if self.full_scores else strategy.choose(task)
        if agent_id is None or (task.avoid and agent_id in task.avoid):
            return None
        state = self.agents[agent_id]
        state.planned += 1
        self._refresh(state)
        # So the next ``take`` of this group need not search for this change.
        if state.has_room:
            strategy.offer(state.agent)
        else:
            strategy.withdraw(agent_id)
        follower.version = follower.changes.version
        return state.agent

    def _choose_with_scores(self, strategy: Strategy, task: TaskContext) -> str | None:
        """Choose an agent, and keep all that explains the choice."""
        self.version = self._changed.version
        if self.recorder is not None:
            self.seed = self.recorder.seed()
        else:
            self.seed = new_seed(self.random)
            self.random.seed(self.seed)
        agent_id = strategy.choose(task)
        if agent_id is not None:
            self.candidates = full_scores(strategy, task, agent_id, self._row_of)
        return agent_id

    def next_of(self, group: Candidates, task: TaskContext = ANY_TASK) -> FleetAgent | None:
        """Return the agent that the next task of the group would get, without planning it; call it after ``take``."""
        strategy = group.created or group.strategy
        agent_id = strategy.choose(task)
        if agent_id is None:
            return None
        agent = self.agents[agent_id].agent
        strategy.offer(agent)
        return None if task.avoid and agent_id in task.avoid else agent

    def answered(
        self,
        counts: Mapping[str, int],
        loads: Mapping[str, int],
        loads_at: EntryOrder | None = None,
        freed: Mapping[str, int] | None = None,
    ) -> None:
        """Subtract answered tasks from the planned ones, and apply the loads of the answer.

        Args:
            counts: agent -> answered placements.
            loads: agent -> true load.
            loads_at: of the entry of ``log:loads`` with these loads; None: they were not shared.
            freed: agent -> slots that the script freed; negative: it took them.
        """
        for agent_id, count in counts.items():
            state = self.agents.get(agent_id)
            if state is not None and state.planned:
                state.planned = max(0, state.planned - count)
                if agent_id not in loads:  # the others are refreshed once, with their loads
                    self._refresh(state)
        self.apply_loads(loads, loads_at, freed)

    def free(self, agent_id: str, count: int) -> None:
        """Count slots of an agent that a round trip is about to free; negative when the round trip is over."""
        state = self.agents.get(agent_id)
        if state is not None:
            state.freed = max(0, state.freed + count)
            self._refresh(state)

    def agents_that_may_run(self, pool: Pool) -> list[FleetAgent]:
        """Return the agents with all facets of the pool that have not refused its tasks, in any state."""
        needs = facets_required(pool.requirements)
        return [
            state.agent
            for state in self.agents.values()
            if state.agent.version not in pool.refused_by
            and state.agent.agent_id not in pool.unhandled_by
            and state.facets.issuperset(needs)
        ]

    def suspend(self, agent_id: str) -> None:
        """Plan nothing for an agent until its row is read again: the view of it is wrong."""
        state = self.agents.get(agent_id)
        if state is not None:
            state.agent.active = False
            self._judge(state)
            self._renew(state)

    def apply_loads(
        self,
        loads: Mapping[str, int],
        loads_at: EntryOrder | None = None,
        freed: Mapping[str, int] | None = None,
    ) -> None:
        """Apply the loads that a script of this distributor answered.

        Args:
            loads: agent -> tasks in flight.
            loads_at: of the entry of ``log:loads`` with these loads; None: they were not shared. A load is ignored if a
                later entry is known.
            freed: agent -> slots that the script freed. These are used at once, and those that others freed later.
        """
        at = time.monotonic()
        for agent_id, load in loads.items():
            state = self.agents.get(agent_id)
            if state is None:
                continue
            if loads_at is None:
                state.apply_load(load, at)
            else:
                self._apply_shared(state, (load, loads_at), at, 0 if freed is None else freed.get(agent_id, 0))
            self._refresh(state)

    def apply_shared_loads(self, loads: Mapping[str, SharedLoad]) -> None:
        """Apply the loads that other distributors have shared, unless a later one is known.

        A load that has risen is applied at once. Room that others made is not used yet: ``withheld`` has these agents,
        for ``end_withholding``.
        """
        at = time.monotonic()
        for agent_id, shared in loads.items():
            state = self.agents.get(agent_id)
            if state is not None:
                self._apply_shared(state, shared, at, 0)
                self._refresh(state)

    def _apply_shared(self, state: AgentState, shared: SharedLoad, at: float, freed: int) -> None:
        if state.apply_shared(shared, at, freed):
            self.withheld.append(Withheld(state, state.window))

    def end_withholding(self, ended: Iterable[Withheld]) -> None:
        """Use the room of agents that was there all the time; what came later is withheld for another delay."""
        for state, window in ended:
            if self.agents.get(state.agent.agent_id) is not state or state.window != window or state.withheld is None:
                continue
            if state.end_window():
                self.withheld.append(Withheld(state, state.window))
            self._refresh(state)

    def apply_read_loads(self, loads: Mapping[str, int], began: float) -> None:
        """Apply loads that were read, unless one was reported since ``began``: the one that was read may be older."""
        at = time.monotonic()
        for agent_id, load in loads.items():
            state = self.agents.get(agent_id)
            if state is not None and state.reported_at <= began and state.withheld is None:
                state.reported_load, state.reported_at = load, at
                self._refresh(state)

    def apply_reports(self, reports: Iterable[LoadReport]) -> None:
        """Apply the loads that agents reported; they count from now on, whatever the server's clock says."""
        now = time.monotonic()
        for report in reports:
            state = self.agents.get(report.agent_id)
            if state is not None:
                agent = state.agent
                agent.outside_load = outside_load_of(report.outside_load)
                agent.cpu, agent.memory = report.cpu, report.memory
                agent.load_at_report = agent.load
                state.expect_report(now)
                self._changed.add(agent.agent_id)

    def stale_agents(self, groups: Iterable[Candidates], for_s: float, most: int) -> list[str]:
        """Return the agents of these groups with a load older than ``for_s`` seconds: the ``most`` oldest ones."""
        before = time.monotonic() - for_s
        reported_at = {agent_id: self.agents[agent_id].reported_at for group in groups for agent_id in group.eligible}
        found = [agent_id for agent_id, at in reported_at.items() if at < before]
        return found if len(found) <= most else heapq.nsmallest(most, found, key=reported_at.__getitem__)

    def advance(self) -> None:
        """Apply the time that has passed: to what was learned, to the demand for capabilities, and to old reports.

        Called about once a second.
        """
        now = time.monotonic()
        for state in self.agents.values():
            agent = state.agent
            if state.report_ends_at < now and (agent.cpu is not None or agent.memory is not None):
                state.report_ends_at = math.inf
                agent.cpu = agent.memory = 1.0
                self._changed.add(agent.agent_id)
        demand = self.learned.demand
        for group in self._groups.values():
            if group.taken:
                demand.add(group.requirements.capabilities, group.taken)
                group.taken = group.idle = 0
            else:
                group.idle += 1
        demand.update({name: self._facets.frequency(capability_facet(name)) for name in demand.capabilities}, now)
        self.learned.advance(now)

    def bring_up_to_date(self, group: Candidates) -> None:
        """Apply to the group's strategy the changes since the group was last used."""
        strategy = group.strategy
        follower = group.follower
        if follower.version == follower.changes.version:
            return
        agents = self.agents
        if isinstance(group.order, SharedOrder):
            group.order.bring_up_to_date(agents)
            return
        for agent_id in follower.changes.since(follower.version, group.eligible):
            state = agents[agent_id]
            if state.has_room:
                strategy.offer(state.agent)
            else:
                strategy.withdraw(agent_id)
        follower.catch_up()

    def strategy_for(self, group: Candidates) -> Strategy:
        """Return a new strategy that holds those of the group's agents that have room."""
        shared = self._share_order(group)
        if shared is not None:
            return shared

        def create(random: Random) -> Strategy:
            return create_strategy(group.rules, self.strategies, random, self.learned)

        recorder = self.recorder
        if recorder is None:
            strategy = create(self.random)
        else:
            strategy = recorder.record(create, group.rules, group.requirements, group.task_type)
        for agent_id in sorted(group.eligible):
            state = self.agents[agent_id]
            if state.has_room:
                strategy.offer(state.agent)
        group.follower = Follower(self._changed if strategy.follows_load else self._moved)
        return strategy

    def _share_order(self, group: Candidates) -> Strategy | None:
        """Let a group use an order that other groups use as well; None if it has to have a strategy of its own."""
        kind = kind_of(group.rules, self.strategies)
        if kind is None or self.recorder is not None:
            return None
        shared = None
        if len(group.eligible) >= LEAST_AGENTS:
            order = self._orders.get(kind)
            if order is None:
                order = self._orders[kind] = SharedOrder(kind, self.random, self.learned, self._changed)
            shared = order.admit(group, self.agents)
            if shared is not None:
                group.follower = order.follower
        if shared is None:
            group.shared_from = max(LEAST_AGENTS, 2 * len(group.eligible))
        return shared

    def _row_of(self, agent_id: str) -> FleetAgent:
        return self.agents[agent_id].agent

    def _find_or_make(
        self, pool: Pool, requirements: Requirements | None = None, as_json: bytes | None = None
    ) -> Candidates:
        """Return the group that serves a pool, or those of its agents that meet other requirements."""
        task_type = pool.task_type if self.ejections.has_ejected(pool.task_type) else ""
        encoded = codec.encode(pool.requirements) if as_json is None else as_json
        key = (encoded, self._own_rules(pool), pool.refused_by, pool.unhandled_by, task_type)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Candidates(self, key, requirements or pool.requirements)
            if task_type:
                self._of_types[group] = None
            for state in self._facets.list_group(group, self.agents).values():
                self._consider(state, group)
        return group

    def _own_rules(self, pool: Pool) -> OwnRules:
        """Return the rules that the tasks of a pool, or their type, set."""
        own = self.type_rules.get(pool.task_type, NO_RULES)
        if pool.strategy is not None or pool.modifiers is not None:
            modifiers = {} if pool.modifiers is None else asdict(pool.modifiers)
            own = OwnRules(pool.strategy, **modifiers).known_to(self.strategies).over(own)
        if own.missing is not None and len(self.missing) < MISSING_KEPT:
            self.missing.add(own.missing)
        return own

    def _keep_unused(self, group: Candidates) -> None:
        """Keep an unused group for a while."""
        self._unused.pop(group, None)
        self._unused[group] = None  # the most recently used one is last
        if len(self._unused) > GROUPS_KEPT:
            self._drop(next(iter(self._unused)))

    def _add(self, agent: FleetAgent, planned: int = 0) -> None:
        state = self.agents[agent.agent_id] = AgentState(agent)
        self._adopt_ejections(agent)
        state.planned = planned
        self._facets.add(state)
        for group in self._facets.groups_of(state):
            if not self._consider(state, group):
                self._facets.list_under_rarer(group, state)
        self._renew(state)

    def _remove(self, state: AgentState) -> None:
        agent_id = state.agent.agent_id
        del self.agents[agent_id]
        self._moved.remove(agent_id)
        self._changed.remove(agent_id)
        self.rooms -= state.has_room
        self._facets.remove(state)
        for group in state.groups:
            group.within.discard(agent_id)
            if agent_id in group.eligible:
                self._leave(agent_id, group)
            if agent_id in group.meeting:
                group.meeting.discard(agent_id)
                self._eject_in(group)

    def _consider(self, state: AgentState, group: Candidates) -> bool:
        """Add the agent to the group if it has all required facets; return True if it has."""
        if not state.facets.issuperset(group.needs):
            return False
        if not group.within:
            group.within = set()
        group.within.add(state.agent.agent_id)
        state.groups[group] = None
        self._judge_in(state, group)
        return True

    def _judge(self, state: AgentState) -> None:
        for group in state.groups:
            self._judge_in(state, group)

    def _judge_in(self, state: AgentState, group: Candidates) -> None:
        agent_id = state.agent.agent_id
        meets = (
            state.agent.version not in group.refused_by
            and agent_id not in group.unhandled_by
            and unmet_requirement(state.agent, group.requirements, self.health_threshold) is None
        )
        if group.task_type and meets is not (agent_id in group.meeting):
            if meets:
                group.meeting.add(agent_id)
            else:
                group.meeting.discard(agent_id)
            self._eject_in(group)
        if not meets:
            if agent_id in group.eligible:
                self._leave(agent_id, group)
        elif agent_id not in group.eligible and agent_id not in group.ejected:
            self._join(agent_id, group)

    def _eject_in(self, group: Candidates) -> None:
        """Take ejected agents out of a group, and take back those that are not ejected any more."""
        ejected = self.ejections.ejected(group.task_type, group.meeting) if group.rules.ejection else frozenset()
        before, group.ejected = group.ejected, ejected
        if before == group.ejected:
            return
        for agent_id in group.ejected & group.eligible:
            self._leave(agent_id, group)
        for agent_id in before - group.ejected:
            if agent_id in group.meeting and agent_id not in group.eligible:
                self._join(agent_id, group)
                self._renew(self.agents[agent_id])

    def _adopt_ejections(self, row: FleetAgent) -> None:
        """Take over the ejections in an agent's record, which any distributor has decided or ended."""
        now = time.monotonic()
        adopted = list(self.ejections.end_unrecorded(row.agent_id, [one.task_type for one in row.ejected], now))
        for one in row.ejected:
            left_s = min(one.until - row.read_at, one.for_ms) / 1000
            rates = (one.failure_rate, one.others_rate)
            if left_s > 0 and self.ejections.adopt(
                Ejection(row.agent_id, one.task_type, left_s, *rates, one.in_a_row, one.until - one.for_ms), now
            ):
                adopted.append(one.task_type)
        self.apply_ejections(adopted)

    def _join(self, agent_id: str, group: Candidates) -> None:
        if group.is_preferred and not group.eligible:
            self.turned[group] = None
        group.join(agent_id)
        self.sleeping.joined(group)

    def _leave(self, agent_id: str, group: Candidates) -> None:
        group.leave(agent_id)
        if not group.eligible:
            self.sleeping.emptied(group)
            if group.is_preferred:
                self.turned[group] = None

    def _renew(self, state: AgentState) -> None:
        """Let all groups of an agent take over its row and its load."""
        self._refresh(state)
        self._moved.add(state.agent.agent_id)
        self._changed.add(state.agent.agent_id)

    def _refresh(self, state: AgentState) -> None:
        """Determine the load of an agent, and let its groups take it over if it differs."""
        agent = state.agent
        load = state.reported_load + state.planned - state.freed
        if load < 0:  # noqa: PLR1730 -- this runs for each placement, and a call of ``max`` is slower
            load = 0
        has_room = load < agent.capacity and agent.active
        is_moved = has_room is not state.has_room
        if load == agent.load and not is_moved:
            return
        agent_id = agent.agent_id
        agent.load = load
        self._changed.add(agent_id)
        if is_moved:
            self._moved.add(agent_id)
            state.has_room = has_room
            if not has_room:
                self.rooms -= 1
                return
            self.rooms += 1
            self.sleeping.opened(agent_id)

    def _drop(self, group: Candidates) -> None:
        del self._unused[group]
        del self._groups[group.key]
        group.forget()
        self._of_types.pop(group, None)
        self._facets.unlist(group)
        for agent_id in group.within:
            del self.agents[agent_id].groups[group]
