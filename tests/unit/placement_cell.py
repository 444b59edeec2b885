"""A cell without a server, for the property of placement: agents, tasks, and what the scripts do with them.

``CellModel`` is the authority. It repeats in plain Python what the scripts check, and looks at every agent and every
task each time. It shares no code with the planner, the view or ``coord.placement``; only the data classes are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from coord.models.agents import AgentStatus, Ejected, FleetAgent
from coord.models.explanations import WaitingReason
from coord.models.tasks import Modifiers, NamedTask, Pool, Preferences, Priority
from coord.queries.queues import PoolChanges
from workers.transitions import Placement, TaskBatch

#: Attempts after which a task fails for good.
MOST_ATTEMPTS = 3
#: The end of the name of a pool's second queue.
NAMED = ".named"
R = WaitingReason


class Tape:
    """The choices of an example, one byte each; at its end the first option is chosen each time."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def below(self, number: int) -> int:
        """Return a number from 0 to ``number`` - 1."""
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1] % number

    def of(self, options: Any) -> Any:
        """Return one of the options."""
        return options[self.below(len(options))]

    def some(self, options: str) -> frozenset[str]:
        """Return some of the letters: each with a chance of a half."""
        bits = self.below(2 ** len(options))
        return frozenset(letter for number, letter in enumerate(options) if bits >> number & 1)


@dataclass(frozen=True)
class Rules:
    """The settings of a cell that decide which agents a task may go to."""

    threshold: float = 0.5
    cell: tuple[tuple[str, Any], ...] = ()  #: strategy and modifiers
    types: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()  #: the same for task types

    def is_on(self, modifier: str, pool: Pool) -> bool:
        """Return True if a modifier holds for the tasks of a pool: as they say, or their type, or the cell."""
        own = None if pool.modifiers is None else getattr(pool.modifiers, modifier)
        if own is not None:
            return bool(own)
        of_type = dict(dict(self.types).get(pool.task_type, ()))
        return bool(of_type.get(modifier, dict(self.cell).get(modifier, modifier != "rare_skills_first")))


def fits(agent: FleetAgent, pool: Pool, threshold: float, capability: str | None = None) -> bool:
    """Return True if an agent meets all requirements of a pool, whether it has room or not.

    Args:
        agent: its row.
        pool: the pool.
        threshold: least health of any agent that gets tasks.
        capability: one more that it must have.
    """
    return reason_for(agent, pool, threshold, capability) is None


def reason_for(  # noqa: C901 -- one line for each requirement
    agent: FleetAgent, pool: Pool, threshold: float, capability: str | None = None
) -> WaitingReason | None:
    """Return the first requirement that an agent does not meet."""
    needs = pool.requirements
    found: list[WaitingReason] = []
    if agent.status is AgentStatus.INACTIVE:
        found.append(R.NO_AGENT_REGISTERED)
    if needs.agent_type and agent.agent_type != needs.agent_type:
        found.append(R.NO_AGENT_TYPE)
    if any(name not in agent.capabilities for name in (*needs.capabilities, *([capability] if capability else []))):
        found.append(R.NO_CAPABILITY)
    if any(name not in agent.services for name in needs.services):
        found.append(R.NO_SERVICE)
    if any(name not in agent.tags for name in needs.tags):
        found.append(R.NO_TAG)
    if any(agent.labels.get(name) != value for name, value in needs.labels.items()):
        found.append(R.NO_LABEL)
    if agent.version in pool.refused_by:
        found.append(R.NO_VERSION)
    if agent.agent_id in pool.unhandled_by:
        found.append(R.NO_HANDLER)
    if needs.agent_id and agent.agent_id != needs.agent_id:
        found.append(R.NAMED_AGENT_ABSENT)
    if agent.status is AgentStatus.STALE:
        found.append(R.ALL_STALE)
    if agent.health_score < max(threshold, needs.min_health_score):
        found.append(R.ALL_UNHEALTHY)
    if not agent.active:
        found.append(R.ALL_DRAINING if agent.status is AgentStatus.DRAINING else R.ALL_BUSY_STATUS)
    return found[0] if found else None


def may_get(
    agents: Iterable[FleetAgent], pool: Pool, threshold: float, out: Collection[str]
) -> tuple[list[FleetAgent], list[FleetAgent]]:
    """Return the agents that may get the tasks of a pool, and those that may not because they are ejected.

    Args:
        agents: of the fleet.
        pool: the pool.
        threshold: least health of any agent that gets tasks.
        out: agents that are ejected for the type of the tasks, the first one first; only a fifth of those that meet the
            requirements is, or one if there are two or more.
    """
    agents = list(agents)
    met = [agent for agent in agents if fits(agent, pool, threshold)]
    if not pool.requirements.capabilities:
        can_do = [agent for agent in agents if fits(agent, pool, threshold, pool.task_type)]
        met = can_do or met
    most = max(len(met) // 5, min(1, len(met) - 1))
    ids = [agent.agent_id for agent in met]
    ejected = [agent_id for agent_id in out if agent_id in ids][: max(0, most)]
    return (
        [agent for agent in met if agent.agent_id not in ejected],
        [agent for agent in met if agent.agent_id in ejected],
    )


def avoided_by(avoid: Iterable[str], eligible: Collection[str]) -> set[str]:
    """Return which agents a task avoids: the last agents that failed, but never all that are eligible."""
    found: set[str] = set()
    for agent_id in avoid:
        if not set(eligible) - found - {agent_id}:
            break
        found.add(agent_id)
    return found


@dataclass
class Task:
    """A task of the cell."""

    task_id: str
    pool: Pool
    queue: str
    score: float
    preferences: Preferences
    state: str = "queued"
    #: Agents that it avoids -> when it came into a queue with them first.
    since: dict[tuple[str, ...], float] = field(default_factory=dict)
    due: float = 0.0
    avoid: tuple[str, ...] = ()
    attempts: int = 0
    agent_id: str = ""
    lease: str = ""


@dataclass
class CellModel:
    """What the server holds."""

    now: float = 1_000.0  #: seconds, of every clock
    rules: Rules = Rules()
    pools: dict[str, Pool] = field(default_factory=dict)  #: name of a first queue -> the definition of the pool
    agents: dict[str, FleetAgent] = field(default_factory=dict)
    held: dict[str, dict[str, None]] = field(default_factory=dict)  #: agent -> its tasks
    suspended: dict[str, None] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    queues: dict[str, dict[str, float]] = field(default_factory=dict)
    pools_rev: int = 0
    forgotten_rev: int = 0  #: the highest rev of the agents that were removed
    changes: list[tuple[int, str]] = field(default_factory=list)
    placed: int = 0
    refused: int = 0

    # The fleet.

    def row(self, agent_id: str) -> FleetAgent | None:
        """Return what is read of an agent; None if it is not registered."""
        agent = self.agents.get(agent_id)
        if agent is None:
            return None
        at = int(self.now * 1000)
        return replace(
            agent,
            active=agent.active and agent_id not in self.suspended,
            suspended=agent_id in self.suspended,
            load=len(self.held[agent_id]),
            load_at_report=len(self.held[agent_id]),
            ejected=tuple(one for one in agent.ejected if one.until > at),
            read_at=at,
        )

    def change(self, agent_id: str, **fields: Any) -> None:
        """Let the registry handle a fact of an agent that is or becomes registered."""
        before = self.agents.get(agent_id)
        self.suspended.pop(agent_id, None)
        if before is None:
            before = FleetAgent(agent_id=agent_id, agent_type="w", rev=self.forgotten_rev)
            self.held[agent_id] = {}
        self.agents[agent_id] = replace(before, **fields, rev=before.rev + 1)

    def restart(self, agent_id: str) -> TaskBatch:
        """Let an agent register as a new process: the attempts of the old one have ended."""
        agent = self.agents[agent_id]
        self.change(agent_id, term=agent.term + 1, ejected=())
        return self._end([self.tasks[task_id] for task_id in self.held[agent_id]], "failed")

    def remove(self, agent_id: str) -> TaskBatch:
        """Let an agent be forgotten, with the attempts of its tasks."""
        answer = self._end([self.tasks[task_id] for task_id in self.held[agent_id]], "failed")
        self.forgotten_rev = max(self.forgotten_rev, self.agents[agent_id].rev)
        del self.agents[agent_id], self.held[agent_id]
        self.suspended.pop(agent_id, None)
        return answer

    def eject(self, agent_id: str, task_type: str, for_s: float) -> None:
        """Record an ejection, or end the one that is recorded; it is no change that a plan has to have seen."""
        agent = self.agents[agent_id]
        at, for_ms = int(self.now * 1000), int(for_s * 1000)
        before = [one for one in agent.ejected if one.until > at]
        kept = [one for one in before if one.task_type != task_type]
        if len(kept) == len(before):
            kept.append(Ejected(task_type, at + for_ms, for_ms, 1.0, 0.0))
        self.agents[agent_id] = replace(agent, ejected=tuple(kept))

    # The scripts.

    def admit(self, tasks: Iterable[Task], *, is_refused: bool) -> TaskBatch:
        """Admit tasks, or refuse them."""
        tasks = list(tasks)
        if is_refused:
            return self._answer(["REFUSED" for _ in tasks], [])
        for task in tasks:
            self.tasks[task.task_id] = task
            self._enqueue(task)
        return self._answer(["QUEUED" for _ in tasks], [task.queue for task in tasks])

    def settle(self, reports: Iterable[tuple[str, str, str]]) -> TaskBatch:
        """Settle reports: task, lease, and completed, failed or released."""
        batches = [
            self._end([task] if (task := self.tasks[task_id]).lease == lease else [], how)
            for task_id, lease, how in reports
        ]
        return _together(batches, self.pools_rev)

    def wake(self) -> TaskBatch:
        """Enqueue the tasks whose run time is reached."""
        due = [task for task in self.tasks.values() if task.state == "scheduled" and task.due <= self.now]
        for task in due:
            self._enqueue(task)
        return self._answer(["QUEUED" for _ in due], [task.queue for task in due])

    def cancel(self, task_id: str) -> TaskBatch:
        """Cancel a task that waits."""
        task = self.tasks[task_id]
        task.state = "cancelled"
        self.queues.get(task.queue, {}).pop(task_id, None)
        return self._answer(["OK"], [task.queue])

    def dispatch(self, placements: list[Placement], threshold: float) -> TaskBatch:
        """Assign tasks as planned, if the agents are as the plan saw them."""
        words: list[str] = []
        for placement in placements:
            agent = self.agents.get(placement.agent_id)
            word = self._judge(placement, agent)
            if not word:
                assert agent is not None
                task = self._take(placement)
                if task is None:
                    word = "GONE" if placement.task_id else "EMPTY"
                else:
                    self._assign(task, agent, placement, threshold)
                    word = "ASSIGNED"
            words.append(word)
        self.placed += words.count("ASSIGNED")
        self.refused += len(words) - words.count("ASSIGNED")
        ids = [placement.agent_id for placement in placements]
        return self._answer(words, [placement.pool for placement in placements], ids)

    def _judge(self, placement: Placement, agent: FleetAgent | None) -> str:
        if agent is None or not agent.active or placement.agent_id in self.suspended:
            return "INACTIVE"
        if agent.rev != placement.rev:
            return "CHANGED"
        return "" if len(self.held[agent.agent_id]) < agent.capacity else "FULL"

    def _take(self, placement: Placement) -> Task | None:
        queue = self.queues.get(placement.pool, {})
        task_id = placement.task_id or min(queue, key=lambda one: (queue[one], one), default="")
        if task_id not in queue:
            return None
        del queue[task_id]
        return self.tasks[task_id]

    def _assign(self, task: Task, agent: FleetAgent, placement: Placement, threshold: float) -> None:
        """Assign a task; whatever made the plan, the agent must be allowed to have it."""
        held = self.held[agent.agent_id]
        assert fits(agent, task.pool, threshold), f"{agent} does not meet the requirements of {task}"
        assert len(held) < agent.capacity, f"{agent} gets more than it takes"
        assert task.state == "queued", f"{task} is assigned twice"
        held[task.task_id] = None
        task.state, task.agent_id, task.lease = "assigned", agent.agent_id, placement.lease
        task.attempts += 1

    def _enqueue(self, task: Task) -> None:
        task.state = "queued"
        task.since.setdefault(task.avoid, self.now)
        self.queues.setdefault(task.queue, {})[task.task_id] = task.score

    def _end(self, tasks: Iterable[Task], how: str) -> TaskBatch:
        """End attempts: completed, failed (another agent is to try) or released (by an agent that cannot start it)."""
        tasks = list(tasks)
        agents = list(dict.fromkeys(task.agent_id for task in tasks))
        for task in tasks:
            del self.held[task.agent_id][task.task_id]
            task.lease = ""
            if how == "completed" or (how == "failed" and task.attempts >= MOST_ATTEMPTS):
                task.state = how
                continue
            task.state, task.due = "scheduled", self.now
            if how == "released":
                self.suspended[task.agent_id] = None
                task.attempts -= 1
            else:
                task.avoid = tuple(dict.fromkeys((task.agent_id, *task.avoid)))[:8]
                task.queue = task.queue.removesuffix(NAMED) + NAMED
        return self._answer(["OK" for _ in tasks], [], agents)

    def _answer(self, words: list[str], pools: Iterable[str], agents: Iterable[str] = ()) -> TaskBatch:
        changed: list[str] = []
        found: dict[str, tuple[int, float]] = {}
        in_table = self.table
        for pool in dict.fromkeys(pools):
            queue = self.queues.get(pool, {})
            if bool(queue) is not (pool in in_table):
                changed.append(pool)
            if not queue:
                self.queues.pop(pool, None)
            found[pool] = (len(queue), min(queue.values(), default=0.0))
        self.pools_rev += len(changed)
        for pool in changed:
            self.changes.append((self.pools_rev, pool))
            in_table ^= {pool: None}.keys()
        self._table = in_table
        loads = {agent_id: len(self.held.get(agent_id, ())) for agent_id in dict.fromkeys(agents)}
        return TaskBatch(words, loads, found, self.pools_rev, len(changed))

    @property
    def table(self) -> set[str]:
        """The table of pools, as the last script left it."""
        return set(self._table)

    _table: Collection[str] = ()

    # Reads.

    def pool_of(self, queue: str) -> Pool:
        """Return the definition of the pool of a queue."""
        return self.pools[queue.removesuffix(NAMED)]

    def waiting(self) -> list[Task]:
        """Return the tasks that wait in queues."""
        return [task for task in self.tasks.values() if task.state == "queued"]

    def reason(self, pool: Pool, *, ejections: bool) -> WaitingReason:
        """Return why a task of a pool waits."""
        rows = [row for agent_id in self.agents if (row := self.row(agent_id)) is not None]
        out = _ejected_first(rows, pool.task_type) if ejections else []
        eligible, ejected = may_get(rows, pool, self.rules.threshold, out)
        if any(agent.load < agent.capacity for agent in eligible):
            return R.NEXT_IN_LINE
        if eligible:
            return R.ALL_FULL
        assert not ejected
        reasons = {row.agent_id: reason_for(row, pool, self.rules.threshold) for row in rows}
        named = reasons.get(pool.requirements.agent_id or "", R.NO_AGENT_REGISTERED)
        if named not in {None, R.NO_AGENT_REGISTERED}:
            return named
        order = list(WaitingReason)
        return max((one for one in reasons.values() if one), key=order.index, default=R.NO_AGENT_REGISTERED)


def _ejected_first(rows: Iterable[FleetAgent], task_type: str) -> list[str]:
    """Return the agents that are ejected for a type, the first ejected first."""
    since = {row.agent_id: one.until - one.for_ms for row in rows for one in row.ejected if one.task_type == task_type}
    return sorted(since, key=lambda agent_id: (since[agent_id], agent_id))


def _together(batches: list[TaskBatch], rev: int) -> TaskBatch:
    """Return the answer of one call that did all this."""
    loads: dict[str, int] = {}
    for batch in batches:
        loads |= batch.loads
    return TaskBatch([word for batch in batches for word in batch.words], loads, {}, rev, 0)


class Queries:
    """Takes the place of ``coord.queries`` in the reader of the table of pools. Each read lets others go first."""

    @staticmethod
    async def get_pool_changes(cell: CellModel, _keys: object, since: int) -> PoolChanges:
        """Return which pools started or stopped waiting since a revision."""
        await pause()
        is_known = 0 <= since <= cell.pools_rev
        pools = tuple(dict.fromkeys(pool for rev, pool in cell.changes if rev > since)) if is_known else None
        return PoolChanges(cell.pools_rev, len(cell.table), pools)

    @staticmethod
    async def get_pool_rows(cell: CellModel, _keys: object, pools: list[str]) -> dict[str, bytes]:
        """Return those of these pools that are in the table."""
        await pause()
        return {pool: b"" for pool in pools if pool in cell.table}

    @staticmethod
    async def scan_pools(cell: CellModel, _keys: object) -> Any:
        """Yield the table."""
        await pause()
        yield dict.fromkeys(sorted(cell.table), b"")

    @staticmethod
    async def get_pool_definitions(
        cell: CellModel, _keys: object, rows: Mapping[str, bytes], known: Mapping[str, Pool]
    ) -> dict[str, Pool]:
        """Return the definitions of pools, where there is one."""
        await pause()
        return {pool: known.get(pool) or cell.pool_of(pool) for pool in rows}

    @staticmethod
    async def get_pool_lengths(cell: CellModel, _keys: object, pools: list[str]) -> dict[str, tuple[int, float]]:
        """Return the length and the first score of each queue."""
        found = {pool: (len(queue := cell.queues.get(pool, {})), min(queue.values(), default=0.0)) for pool in pools}
        await pause()
        return found

    @staticmethod
    async def get_named_tasks(
        cell: CellModel, _keys: object, wanted: Mapping[str, int]
    ) -> dict[str, tuple[int, list[NamedTask]]]:
        """Return the length and the first tasks of named queues."""
        found: dict[str, tuple[int, list[NamedTask]]] = {}
        for pool, most in wanted.items():
            queue = cell.queues.get(pool, {})
            first = sorted((score, task_id) for task_id, score in queue.items())[:most]
            found[pool] = len(queue), [named_task(cell.tasks[task_id]) for _, task_id in first]
        await pause()
        return found


def named_task(task: Task) -> NamedTask:
    """Return a task as a plan sees it."""
    return NamedTask(task.score, task.task_id, Priority.NORMAL, task.preferences, task.avoid)


class _Pause:
    def __await__(self) -> Any:
        yield


def pause() -> _Pause:
    """Return an awaitable that lets the caller of the coroutine continue once."""
    return _Pause()


def modifiers_of(tape: Tape) -> Modifiers | None:
    """Return what a task says of the modifiers."""
    if tape.below(4) != 1:
        return None
    return Modifiers(tape.of([None, True, False]), tape.of([None, True, False]), tape.of([None, True, False]))
