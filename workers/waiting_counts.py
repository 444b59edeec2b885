"""Judges why tasks wait, and counts them by reason.

Each distributor judges the pools that it knows, so that a placement says why its task has waited. One distributor of a
cell also counts the tasks of all pools, for metrics.

The planner knows the pools in which tasks wait, and the view knows the agents, so a reason costs no command. The script
adds up the lengths of the queues, a thousand in one call. A count of up to so many is exact. A longer one takes several
calls, and tasks that move meanwhile are missing or counted twice; readers compare with the exact total, which the last
call records.

A count takes at most a small share of the time of the process: with 100,000 pools it is repeated every some seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping

from coord.models.explanations import WaitingReason
from coord.placement.reasons import FleetIndex
from coord.queries.reads import chunks
from workers.candidates import Candidates
from workers.planner import Planner
from workers.service import WorkerContext
from workers.view import View
from workers.waiting import Waiting

#: Queues that are counted in one call, and pools and agents that are judged at once: some milliseconds.
CHUNK = 1_000
JUDGED_AT_ONCE = 200
#: A count that took a second of this process is repeated after so many seconds: 5 % of its time.
PAUSE = 20.0


class WaitingCounter:
    """Judges the pools of a planner, and counts the waiting tasks of a cell while no other process does.

    Args:
        cell: the cell.
        view: of the agents.
        planner: knows the pools in which tasks wait.
        process: identifies this process.
    """

    def __init__(self, cell: WorkerContext, view: View, planner: Planner, process: str) -> None:
        self._cell = cell
        self._view = view
        self._planner = planner
        self._process = process
        self._other_until = 0.0  # another process counts until then
        self._next_at = 0.0  # no judgement before, but the first count after another process
        self._counts = True  # this process counted at the last judgement
        self._busy_s = 0.0  # time that this process has spent on the current judgement

    async def tick(self) -> None:
        """Judge and count, or show that this process goes on counting. Call it once a second."""
        now = time.monotonic()
        counts_here = now >= self._other_until
        takes_over = counts_here and not self._counts
        if now < self._next_at and not takes_over:
            if counts_here:
                await self._call({}, {}, is_last=False)
            return
        self._busy_s = 0.0
        self._counts = counts_here
        await self._judge(counts_here=counts_here)
        self._next_at = time.monotonic() + PAUSE * self._busy_s

    async def _judge(self, *, counts_here: bool) -> None:
        """Set the reason of each pool; ``counts_here``: count its tasks, too."""
        counts: dict[WaitingReason, int] = {}
        judge = Judge(self._view)
        forgotten = self._planner.forgotten
        queues = list(self._planner.waiting)
        for at in range(0, max(1, len(queues)), CHUNK):
            of_reasons: dict[WaitingReason, list[str]] = {}
            for some in chunks(queues[at : at + CHUNK], JUDGED_AT_ONCE):
                if judge.needs_index(waiting := self._waiting(some)):
                    self._busy_s += await judge.make_index()
                begun = time.monotonic()
                for queue, one in waiting.items():
                    reason = judge.reason_of(one)
                    one.judge(reason)
                    of_reasons.setdefault(reason, []).append(queue)
                self._busy_s += time.monotonic() - begun
                await asyncio.sleep(0)  # other work of this process goes on meanwhile
            if self._planner.forgotten != forgotten:
                return  # the pools are read again
            if counts_here and not await self._call(counts, of_reasons, is_last=at + CHUNK >= len(queues)):
                return

    def _waiting(self, queues: Iterable[str]) -> dict[str, Waiting]:
        """Return the rows of those of these queues in which tasks still wait."""
        waiting = self._planner.waiting
        return {queue: waiting[queue] for queue in queues if queue in waiting}

    async def _call(
        self, counts: dict[WaitingReason, int], queues: dict[WaitingReason, list[str]], *, is_last: bool
    ) -> bool:
        """Add the lengths of queues to the counts; return False if another process counts."""
        scripts = self._cell.scripts
        (answer,) = await scripts.run(scripts.count_waiting(self._process, counts, queues, is_last=is_last))
        if answer.other_ms is not None:
            self._other_until = time.monotonic() + answer.other_ms / 1000
            return False
        counts |= answer.counts
        return True


class Judge:
    """Finds why the tasks of pools wait, as ``coord pools`` does, on the view of a distributor.

    Pools that have eligible agents need only these. The agents are indexed when the first pool without one comes.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._index: FleetIndex | None = None
        self._known: dict[tuple[Candidates, Candidates | None], WaitingReason] = {}

    def needs_index(self, waiting: Mapping[str, Waiting]) -> bool:
        """Return True if ``make_index`` must come before these pools are judged."""
        return self._index is None and not all(one.group.eligible for one in waiting.values())

    async def make_index(self) -> float:
        """Index the agents, in pieces; return the seconds that this took without the waits between the pieces."""
        index, busy_s = FleetIndex(self._view.health_threshold), 0.0
        for some in chunks(list(self._view.agents.values()), JUDGED_AT_ONCE):
            begun = time.monotonic()
            index.add(state.agent for state in some)
            busy_s += time.monotonic() - begun
            await asyncio.sleep(0)
        self._index = index
        return busy_s

    def reason_of(self, waiting: Waiting) -> WaitingReason:
        """Return why the tasks of a pool wait."""
        key = (waiting.general, waiting.preferred)  # the same requirements, and the same rules
        reason = self._known.get(key)
        if reason is None:
            reason = self._known[key] = self._reason_of(waiting)
        return reason

    def _reason_of(self, waiting: Waiting) -> WaitingReason:
        group, view = waiting.group, self._view
        if group.eligible or self._index is None:
            has_room = view.rooms > 0 and any(view.agents[agent_id].has_room for agent_id in group.eligible)
            return WaitingReason.NEXT_IN_LINE if has_room else WaitingReason.ALL_FULL
        pool = waiting.definition
        judges_ejections = group.rules.ejection and self._index.has_ejected(pool.task_type)
        return self._index.reason_of(pool, ejections=judges_ejections)
