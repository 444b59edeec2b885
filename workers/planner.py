"""Plans which waiting task goes to which agent: the table of waiting pools, and a plan on the view of the fleet.

A plan may be wrong, because other distributors plan as well. The dispatch script decides, and its answer corrects the
table and the view. Pools are served in the order of their first task's score, a few tasks at a time, so that no pool
starves.

A group (the agents that meet the same requirements) has a line: a heap of its pools by head. The order is a heap of the
first pool of each group that is awake. A group without room is put to sleep when its turn comes, with all its pools,
and costs nothing until the view wakes it. Outdated entries of line and order are skipped when they are reached.

A pool has two queues, each with its own row in the table and its own place in the line. The tasks of the one are
interchangeable: dispatch pops them. Those of the other are named in the plan (``NamedWaiting``), because a strategy
looks at each of them. A task that has to wait for agents that are full does not stop those behind it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Any

from coord import codec
from coord.models.agents import FleetAgent
from coord.models.explanations import WaitingReason
from coord.models.tasks import NAMED, NamedTask, Pool, is_named
from coord.placement import Rules, TaskContext
from workers.candidates import Candidates
from workers.transitions import Placement, TaskBatch
from workers.view import View
from workers.waiting import NamedWaiting, Waiting, place_of

#: Tasks of a pool that are planned before the next pool has its turn.
TURN = 16
#: Maximum number of definitions kept of pools in which nothing waits: a pool that waits again need not be read.
DEFINITIONS_KEPT = 10_000
#: Maximum number of leases remembered: another distributor may receive the end of any of them.
LEASES_KEPT = 50_000
#: Groups checked in one search for starved ones; the next search checks others.
STARVED_AT_ONCE = 1_000

#: The second agent of a task that has none.
NO_OTHER = ("", 0)

Entry = tuple[float, str]  #: a pool's head and its name
#: An assignment without its lease: the other fields of ``Placement``, in their order.
Placed = tuple[str, str, int, bytes, str, str, float, float | None, str, int]
#: What is remembered of an assignment: agent, task type, load of the agent without it, time in seconds, and how many ms
#: the task is expected to take.
Assigned = tuple[str, str, float, float, float | None]

#: Words of dispatch after which a named task waits as before; after any other it has left the queue.
STILL_WAITS = ("FULL", "INACTIVE", "CHANGED", "ERROR")


class Planner:
    """Plans on a view, and keeps the table of waiting pools."""

    def __init__(self, view: View) -> None:
        self.view = view
        #: Other distributors plan as well. So a plan that takes the last slot of an agent names a second agent.
        self.has_siblings = False
        self.waiting: dict[str, Waiting] = {}
        self.definitions: dict[str, Pool] = {}  #: of pools in which nothing waits
        #: The revision up to which the table is known here. If others raise it, the changes have to be read.
        self.pools_rev = -1
        self.is_stale = True
        self.forgotten = 0  #: how often everything was forgotten: data read before that is of no use
        self.unread: dict[str, None] = {}  #: waiting pools that an agent can serve, of unknown length
        self.unknown: set[str] = set()  #: pools that an answer named and that have no definition here
        self.reported: set[str] | None = None  #: pools in answers while the table is read; else None
        #: Agents for which dispatch returned an error; they get nothing until their rows are read again.
        self.broken: set[str] = set()
        self._order: list[Entry] = []
        self._preferring: dict[Candidates, dict[str, None]] = {}  # preferred group -> the pools that prefer it
        self._blocked: dict[str, None] = {}  # named queues with tasks that the last plan could not place
        self._order_limit = 64  # entries; above it outdated ones are removed
        self._explanations: dict[tuple[Rules, str | None, int, int, str | None, WaitingReason | None], bytes] = {}
        self._leases: dict[str, Assigned] = {}  # of leases created here that have not ended

    def forget(self) -> None:
        """Forget the table."""
        for pool in list(self.waiting):
            self._end(pool)
        self._order.clear()
        self.unread.clear()
        self.unknown.clear()
        self._blocked.clear()
        self.is_stale = True
        self.pools_rev = -1
        self.forgotten += 1

    def knows(self, pool: str) -> bool:
        """Return True if the pool's definition is known."""
        return pool in self.waiting or pool in self.definitions

    def define(self, pool: str, definition: Pool) -> None:
        """Remember the definition of a pool; a waiting pool has one already."""
        if pool in self.waiting:
            return
        self.definitions.pop(pool, None)
        if len(self.definitions) >= DEFINITIONS_KEPT:
            del self.definitions[next(iter(self.definitions))]
        self.definitions[pool] = definition

    def expect(self, pool: str, count: int, head: float) -> None:
        """Add tasks that are about to be admitted, in the same round trip as the plan.

        Args:
            pool: of the tasks.
            count: of tasks.
            head: score of the first one.
        """
        waiting = self.waiting.get(pool)
        if waiting is None:
            waiting = self._begin(pool, self.definitions[pool])
            waiting.is_read, waiting.head = True, head
        elif not waiting.is_read:
            return
        waiting.length += count
        waiting.head = min(waiting.head, head)
        self._line_up(pool, waiting)

    def expect_named(self, pool: str, tasks: list[NamedTask]) -> None:
        """Add tasks of a named queue that are about to be admitted.

        Args:
            pool: name of the queue.
            tasks: the tasks; at least one.
        """
        waiting = self.waiting.get(pool)
        if isinstance(waiting, NamedWaiting) and waiting.is_read:
            waiting.expect(tasks)
        self.expect(pool, len(tasks), min(task.score for task in tasks))
        if waiting is None:
            waiting = self.waiting[pool]
            if isinstance(waiting, NamedWaiting):
                waiting.known = sorted(tasks, key=place_of)
                self._line_up(pool, waiting)

    def learn(self, pool: str, definition: Pool) -> None:
        """Add a pool of the table; its length is read only when an agent can serve it."""
        if pool not in self.waiting:
            waiting = self._begin(pool, definition)
            if waiting.group.eligible:
                self.unread[pool] = None
            else:
                self._line_up(pool, waiting)

    def measure(self, pool: str, length: int, head: float) -> None:
        """Set the length of a waiting pool and the score of its first task."""
        waiting = self.waiting.get(pool)
        if waiting is None:
            return
        self.unread.pop(pool, None)
        waiting.is_read = True
        waiting.length = length
        if length:
            waiting.head = head
            if isinstance(waiting, NamedWaiting):
                waiting.check()
            self._line_up(pool, waiting)
        elif not waiting.planned:
            self._end(pool)

    def wanted_of(self, pool: str) -> int:
        """Return the number of tasks to read of a named queue."""
        waiting = self.waiting.get(pool)
        return waiting.wanted if isinstance(waiting, NamedWaiting) else 1

    def order_of(self, pool: str) -> int:
        """Return how often the order of a named queue has changed."""
        waiting = self.waiting.get(pool)
        return waiting.order if isinstance(waiting, NamedWaiting) else 0

    def reorder(self, pools: Iterable[str]) -> None:
        """Have named queues read before more of them is planned: tasks that wait there have changed their places."""
        for pool in pools:
            waiting = self.waiting.get(pool)
            if isinstance(waiting, NamedWaiting):
                waiting.order += 1
                waiting.is_read = False
                self._line_up(pool, waiting)

    def measure_named(self, pool: str, tasks: list[NamedTask], length: int | None, *, order: int | None = None) -> None:
        """Take over the first tasks of a named queue.

        Args:
            pool: name of the queue.
            tasks: its first tasks, in their order.
            length: number of its tasks; None: a script has answered a newer one meanwhile.
            order: as ``order_of`` returned it before they were read; None: it has not changed since.
        """
        waiting = self.waiting.get(pool)
        if not isinstance(waiting, NamedWaiting):
            return
        waiting.take_over(tasks)
        waiting.known_order = waiting.order if order is None else order
        self.unread.pop(pool, None)
        if length is None:
            waiting.check()  # the answer may count tasks that came after they were read
        else:
            self.measure(pool, length, tasks[0].score if tasks else waiting.head)
            waiting.is_read = waiting.is_in_order
        self._line_up(pool, waiting)

    def unblock(self) -> bool:
        """Let the next plan try the tasks again whose agents were full; return True if there are any."""
        found = bool(self._blocked)
        for pool in self._blocked:
            waiting = self.waiting.get(pool)
            if isinstance(waiting, NamedWaiting):
                waiting.unblock()
                self._line_up(pool, waiting)
        self._blocked.clear()
        return found

    def reread_blocked(self) -> None:
        """Have the queues with blocked tasks read: others may have changed them."""
        self.unread.update(dict.fromkeys(pool for pool in self._blocked if pool in self.waiting))

    def remove(self, pool: str) -> None:
        """Remove a pool that is no longer in the table."""
        self.measure(pool, 0, 0.0)

    def apply(self, batch: TaskBatch) -> None:
        """Apply the pools and loads in a script's answer."""
        self._apply_pools(batch)
        self.view.apply_loads(batch.loads, batch.loads_at, batch.freed)

    def _apply_pools(self, batch: TaskBatch) -> None:
        is_old = batch.pools_rev < self.pools_rev  # what was read or answered since has arrived before it
        if batch.pools_rev == self.pools_rev + batch.raised:
            self.pools_rev = batch.pools_rev
        else:
            self.is_stale = True
        if self.reported is not None:
            self.reported.update(batch.pools)
        for pool, (length, head) in batch.pools.items():
            if pool not in self.waiting and length:
                definition = self._definition_of(pool)
                if definition is None:
                    self.unknown.add(pool)
                    self.is_stale = True
                    continue
                self._begin(pool, definition)
            if is_old and not length:  # tasks may wait there again
                if pool in self.waiting:
                    self.unread[pool] = None
                continue
            self.measure(pool, length, head)

    def regroup(self) -> None:
        """Move the waiting pools whose rules have changed to other groups."""
        left: dict[Candidates, None] = {}
        moved: list[tuple[str, Waiting]] = []
        for pool, waiting in self.waiting.items():
            general = self.view.hold(waiting.definition)
            preferred = self.view.hold_preferred(waiting.definition, general)
            if general is waiting.general and preferred is waiting.preferred:
                self._release(general, preferred)
                continue
            left[waiting.group] = None
            self._prefer_no_more(pool, waiting)
            self._release(waiting.general, waiting.preferred)
            waiting.general, waiting.preferred = general, preferred
            waiting.group, waiting.key = waiting.wanted_group, None
            if preferred is not None:
                self._preferring.setdefault(preferred, {})[pool] = None
            moved.append((pool, waiting))
            if not waiting.group.eligible and not waiting.group.is_asleep:
                self._put_to_sleep(waiting.group)
        for group in left:
            group.turn = None
            _compact(group.line, partial(self._stands, group))
            self._queue(group)
        for pool, waiting in moved:
            self._line_up(pool, waiting)

    def _release(self, general: Candidates, preferred: Candidates | None) -> None:
        self.view.release(general)
        if preferred is not None:
            self.view.release(preferred)

    def _prefer_no_more(self, pool: str, waiting: Waiting) -> None:
        if waiting.preferred is not None:
            pools = self._preferring[waiting.preferred]
            del pools[pool]
            if not pools:
                del self._preferring[waiting.preferred]

    def _definition_of(self, pool: str) -> Pool | None:
        """Return the definition of a pool that does not wait; both queues of a pool have the same."""
        found = self.definitions.get(pool)
        if found is None and is_named(pool):
            pool = pool.removesuffix(NAMED)
            waiting = self.waiting.get(pool)
            return self.definitions.get(pool) if waiting is None else waiting.definition
        return found

    def plan(self, most: int) -> list[Placement]:
        """Return at most ``most`` assignments; they count as planned until ``answered`` or ``unanswered``."""
        if self._blocked:
            self.unblock()
        placed: list[Placed] = []
        served: list[tuple[str, Waiting]] = []
        again: list[tuple[str, Waiting]] = []
        while len(placed) < most and self.is_ready():
            turn = self._take_first()
            served.append(turn)
            if self._serve(*turn, placed, most):
                again.append(turn)
        while again and len(placed) < most and self.view.rooms:
            again = [turn for turn in again if self._serve(*turn, placed, most)]
        for turn in served:
            self._line_up(*turn)
        leases = os.urandom(8 * len(placed)).hex()
        return [
            Placement(pool, agent, rev, leases[i * 16 : i * 16 + 16], why, task, of_type, load, size, other, other_rev)
            for i, (pool, agent, rev, why, task, of_type, load, size, other, other_rev) in enumerate(placed)
        ]

    def _serve(self, pool: str, waiting: Waiting, placed: list[Placed], most: int) -> bool:
        """Plan one turn of a pool; return True if it has more tasks and may have another turn."""
        group = waiting.group
        if not group.eligible:
            return False
        if isinstance(waiting, NamedWaiting):
            return self._serve_named(pool, waiting, placed, most)
        agents: list[tuple[FleetAgent, float, bytes, tuple[str, int]]] = []
        is_full = False
        take, task, shows_scores = self.view.take, waiting.task, self.view.full_scores
        for _ in range(min(TURN, waiting.left, most - len(placed))):
            agent = take(group, task)
            if agent is None:
                is_full = True
                break
            full = self._explain_fully(group, waiting.reason) if shows_scores else b""
            other = self._alternative(group, agent, task) if self.has_siblings else NO_OTHER
            agents.append((agent, agent.load + agent.outside_load - 1, full, other))
        waiting.planned += len(agents)
        group.taken += len(agents)
        why = self._explain(group, waiting.reason)
        task_type, size = waiting.definition.task_type, waiting.definition.expected_ms
        placed += [
            (pool, agent.agent_id, agent.rev, full or why, "", task_type, load, size, *other)
            for agent, load, full, other in agents
        ]
        return not is_full and waiting.left > 0

    def _serve_named(self, pool: str, waiting: NamedWaiting, placed: list[Placed], most: int) -> bool:
        """Do the same for a named queue; tasks are blocked for a while if only agents that they avoid have room."""
        group = waiting.group
        last = min(len(placed) + TURN, most)
        hopeless: set[frozenset[str]] = set()  # what tasks avoid that no agent with room can take
        is_full = False
        done = 0
        for task in waiting.known:
            if len(placed) >= last:
                break
            context = waiting.context_of(task)
            agent = None if context.avoid in hopeless else self.view.take(group, context)
            if agent is None and context.avoid and waiting.avoids_nobody(task, time.monotonic()):
                agent = self.view.take(group, waiting.context_of(task, avoids=False))
            if agent is not None:
                load, task_type = agent.load + agent.outside_load - 1, waiting.definition.task_type
                explain = self._explain_fully if self.view.full_scores else self._explain
                why = explain(group, waiting.reason)
                size, other = waiting.definition.expected_ms, self._alternative(group, agent, context)
                placed.append((pool, agent.agent_id, agent.rev, why, task.task_id, task_type, load, size, *other))
                waiting.sent[task.task_id] = task
                waiting.planned += 1
                group.taken += 1
            elif context.avoid and group.has_room:
                hopeless.add(context.avoid)
                waiting.block(task, time.monotonic())
                self._blocked[pool] = None
            else:
                is_full = True
                break
            done += 1
        del waiting.known[:done]
        waiting.follow_head()
        return not is_full and waiting.left > 0

    def _alternative(self, group: Candidates, agent: FleetAgent, task: TaskContext) -> tuple[str, int]:
        """Return the id and the rev of a second agent for a task that takes the last slot of ``agent``."""
        if not self.has_siblings or agent.load < agent.capacity:
            return NO_OTHER
        other = self.view.next_of(group, task)
        return NO_OTHER if other is None else (other.agent_id, other.rev)

    def answered(self, placements: list[Placement], batch: TaskBatch) -> set[str]:
        """Apply the answer of dispatch; return the agents that were not as the view had them."""
        changed: set[str] = set()
        self._unplan(placements, batch.words)
        now = time.monotonic()
        for placement, word in zip(placements, batch.words, strict=True):
            if word in {"ASSIGNED", "MOVED"}:
                agent_id, load = placement.agent_id, placement.load
                if word == "MOVED":
                    agent_id = placement.other_id
                    load = batch.loads.get(agent_id, 1) - 1
                self._leases[placement.lease] = (agent_id, placement.task_type, load, now, placement.expected_ms)
                continue
            if word.startswith("ERROR"):
                self.view.suspend(placement.agent_id)
                self.broken.add(placement.agent_id)
            elif word in {"CHANGED", "INACTIVE"}:
                self.view.suspend(placement.agent_id)
                changed.add(placement.agent_id)
        while len(self._leases) > LEASES_KEPT:
            del self._leases[next(iter(self._leases))]
        self._apply_pools(batch)
        self.view.answered(_count_by_agent(placements), batch.loads, batch.loads_at, batch.freed)
        for pool in {placement.pool for placement in placements}:
            waiting = self.waiting.get(pool)
            if waiting is not None and waiting.is_read and waiting.length == 0 and not waiting.planned:
                self._end(pool)
        return changed

    def end_leases(self, leases: Iterable[str]) -> list[Assigned | None]:
        """Forget leases that end; return what is known of each. None: it was not created here, or it ended before."""
        pop = self._leases.pop
        return [pop(lease, None) for lease in leases]

    def expect_room(self, ended: Iterable[Assigned | None]) -> Counter[str]:
        """Count slots that are freed in the same round trip as the plan; return their number for each agent.

        Args:
            ended: as ``end_leases`` returned it.
        """
        room = Counter([assigned[0] for assigned in ended if assigned is not None])
        for agent_id, count in room.items():
            self.view.free(agent_id, count)
        return room

    def room_answered(self, room: Counter[str]) -> None:
        """End the effect of ``expect_room``: the round trip is over, and its answer has the true loads."""
        for agent_id, count in room.items():
            self.view.free(agent_id, -count)

    def unanswered(self, placements: list[Placement]) -> None:
        """Drop placements whose round trip failed, so that they are never answered."""
        self._unplan(placements, [])
        self.view.answered(_count_by_agent(placements), {})

    def _unplan(self, placements: list[Placement], words: list[str]) -> None:
        """End the effect of a plan on its pools; without words, it is not known whether it was carried out."""
        has_named = False
        for pool, count in Counter([placement.pool for placement in placements]).items():
            waiting = self.waiting.get(pool)
            if waiting is not None:
                waiting.planned = max(0, waiting.planned - count)
                has_named = has_named or isinstance(waiting, NamedWaiting)
                self._line_up(pool, waiting)
        if has_named:
            for placement, word in zip(placements, words or ["FULL"] * len(placements), strict=True):
                self._named_answered(placement, word)

    def _named_answered(self, placement: Placement, word: str) -> None:
        waiting = self.waiting.get(placement.pool)
        if isinstance(waiting, NamedWaiting):
            waiting.answered(placement.task_id, is_over=not word.startswith(STILL_WAITS))
            self._line_up(placement.pool, waiting)

    def is_ready(self) -> bool:
        """Return True if a plan would place anything."""
        self._wake()
        return self.view.rooms > 0 and self._find_first()

    def starved_groups(self) -> list[Candidates]:
        """Return some of the groups without room whose pools wait; the next call returns others."""
        self._wake()
        order = self._order
        for entry in order if len(order) <= STARVED_AT_ONCE else self.view.random.sample(order, STARVED_AT_ONCE):
            if self._has_turn(entry):
                group = self.waiting[entry[1]].group
                if self._first_of(group) is not None and not group.has_room:
                    self._put_to_sleep(group)
        return [group for group in self.view.sleeping.some_full(STARVED_AT_ONCE) if self._first_of(group) is not None]

    def sample(self, most: int) -> list[str]:
        """Return at most ``most`` waiting pools that agents can serve, a random choice if there are more."""
        groups = {self.waiting[entry[1]].group for entry in islice(self._order, most) if self._has_turn(entry)}
        groups.update(self.view.sleeping.some_full(most - len(groups)))
        found: list[str] = []
        for group in groups:
            pools = list({pool for _, pool in group.line if pool in self.waiting})
            share = max(1, most // len(groups))
            found += pools if len(pools) <= share else self.view.random.sample(pools, share)
        return found

    def _begin(self, pool: str, definition: Pool) -> Waiting:
        """Add a waiting pool."""
        self.definitions.pop(pool, None)
        self.unknown.discard(pool)
        general = self.view.hold(definition)
        preferred = self.view.hold_preferred(definition, general)
        waiting = self.waiting[pool] = (NamedWaiting if is_named(pool) else Waiting)(definition, general, preferred)
        if waiting.preferred is not None:
            self._preferring.setdefault(waiting.preferred, {})[pool] = None
        if not waiting.group.eligible and not waiting.group.is_asleep:
            self._put_to_sleep(waiting.group)
        return waiting

    def _end(self, pool: str) -> None:
        """Remove a pool in which no task waits."""
        waiting = self.waiting.pop(pool)
        self.unread.pop(pool, None)
        self._blocked.pop(pool, None)
        self.define(pool, waiting.definition)
        self._prefer_no_more(pool, waiting)
        self._release(waiting.general, waiting.preferred)
        if waiting.group.users:
            self._queue(waiting.group)

    def _change_group(self, pool: str, waiting: Waiting) -> None:
        """Move a pool to the group whose agents get its tasks now."""
        before, group = waiting.group, waiting.wanted_group
        if group is before:
            return
        waiting.group, waiting.key = group, None
        if before.turn is not None and before.turn[1] == pool:
            before.turn = None
            self._queue(before)
        if not group.eligible and not group.is_asleep:
            self._put_to_sleep(group)
        self._line_up(pool, waiting)

    def _wake(self) -> None:
        if self.view.must_regroup:
            self.view.must_regroup = False
            self.regroup()
        if self.view.turned:
            turned = list(self.view.turned)
            self.view.turned.clear()
            for pool in [pool for group in turned for pool in self._preferring.get(group, ())]:
                self._change_group(pool, self.waiting[pool])
        for group in self.view.sleeping.woken(self.view.agents):
            self._queue(group)

    def _put_to_sleep(self, group: Candidates) -> None:
        group.turn = None
        self.view.sleeping.add(group)

    def _line_up(self, pool: str, waiting: Waiting) -> None:
        """Put the pool into its group's line, by its head, if it has tasks left."""
        if self.waiting.get(pool) is not waiting or not _is_left(waiting):
            return
        group = waiting.group
        if waiting.key != waiting.head:
            waiting.key = waiting.head
            heappush(group.line, (waiting.head, pool))
            if len(group.line) > 2 * group.users + 8:
                _compact(group.line, partial(self._stands, group))
        self._queue(group)

    def _stands(self, group: Candidates, entry: Entry) -> bool:
        """Return True if an entry of a group's line is current."""
        waiting = self.waiting.get(entry[1])
        return waiting is not None and waiting.key == entry[0] and waiting.group is group

    def _has_turn(self, entry: Entry) -> bool:
        """Return True if an entry of the order is current."""
        waiting = self.waiting.get(entry[1])
        return waiting is not None and waiting.group.turn == entry

    def _first_of(self, group: Candidates) -> Entry | None:
        """Return the first entry of a group's line; remove outdated ones before it."""
        line = group.line
        while line:
            waiting = self.waiting.get(line[0][1])
            if waiting is not None and waiting.key == line[0][0] and waiting.group is group:
                if _is_left(waiting):
                    return line[0]
                waiting.key = None
            heappop(line)
        return None

    def _queue(self, group: Candidates) -> None:
        """Put the first entry of a group's line into the order, unless the group sleeps."""
        if group.is_asleep:
            return
        first = self._first_of(group)
        if first != group.turn:
            group.turn = first
            if first is not None:
                heappush(self._order, first)
                if len(self._order) > self._order_limit:
                    _compact(self._order, self._has_turn)
                    self._order_limit = 2 * len(self._order) + 64

    def _find_first(self) -> bool:
        """Return True if the first of the order can be served now; remove entries before it that cannot."""
        while self._order:
            entry = self._order[0]
            if not self._has_turn(entry):
                heappop(self._order)
                continue
            waiting = self.waiting[entry[1]]
            group = waiting.group
            if self._first_of(group) != entry:
                heappop(self._order)
                self._queue(group)
            elif not group.has_room:
                heappop(self._order)
                self._put_to_sleep(group)
            elif waiting.is_read:
                return True
            else:
                self.unread[entry[1]] = None
                self._take_first()
        return False

    def _take_first(self) -> tuple[str, Waiting]:
        """Remove the first entry of the order, found by ``_find_first``, from the order and from its group's line."""
        _, pool = heappop(self._order)
        waiting = self.waiting[pool]
        heappop(waiting.group.line)
        waiting.key = waiting.group.turn = None
        self._queue(waiting.group)
        return pool, waiting

    def _explain(self, group: Candidates, reason: WaitingReason | None) -> bytes:
        """Return why tasks get their agents of a group, as JSON; ``reason``: why they have waited."""
        fallback = group.strategy.fallback
        key = (group.rules, group.own_rules.missing, len(group.eligible), len(group.ejected), fallback, reason)
        explained = self._explanations.get(key)
        if explained is None:
            if len(self._explanations) > 1000:
                self._explanations.clear()
            why: dict[str, Any] = {"strategy": group.rules.strategy, "eligible": len(group.eligible)}
            if group.rules.rare_skills_first:
                why["rare_skills_first"] = True
            if group.ejected:
                why["ejected"] = len(group.ejected)
            if group.own_rules.missing is not None:
                fallback = f"{group.own_rules.missing} is not installed"
            if fallback is not None:
                why["fallback"] = fallback
            if reason is not None:
                why["waiting_reason"] = reason
            explained = self._explanations[key] = codec.encode(why)
        return explained

    def _explain_fully(self, group: Candidates, reason: WaitingReason | None) -> bytes:
        """Return the same with the view, the seed and the best agents of the last choice, the chosen one first."""
        view = self.view
        scores = {"view_version": view.version, "seed": view.seed, "candidates": view.candidates}
        return codec.encode(codec.decode_json(self._explain(group, reason)) | scores)


def _count_by_agent(placements: list[Placement]) -> Counter[str]:
    return Counter([placement.agent_id for placement in placements])


def _is_left(waiting: Waiting) -> bool:
    """Return True if the pool has tasks that are not planned yet, or an unknown number of tasks."""
    return waiting.left > 0 or not waiting.is_read


def _compact(heap: list[Entry], holds: Callable[[Entry], bool]) -> None:
    """Remove outdated entries from a heap."""
    heap[:] = {entry for entry in heap if holds(entry)}
    heapify(heap)
