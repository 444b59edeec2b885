"""Reads a cell for ``coord top``: changes of agents as they happen, everything else by a read per refresh.

What is read depends on the pane that is shown, so a fleet of 1,000 agents costs no more than its visible rows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing
from time import monotonic

from msgspec.structs import replace

from coord import Client
from coord.connection import reading
from coord.doctor import Snapshot, read_snapshot
from coord.errors import CoordError
from coord.models.agents import READY, RESYNC, AgentRecord
from coord.models.statistics import OUTCOMES, CellStatistics
from coord.models.tasks import TaskRecord, TaskState
from coord.queries import Backlog, get_agents, get_loads
from coord.queries.reads import chunks

#: Rates that are kept for the chart.
KEPT = 120
#: Tasks that are listed.
TASKS = 200
#: Pools that are listed.
POOLS = 50
#: Seconds between two reads of what costs more: pools read the agents, the system many streams.
SLOW_S = 3.0
#: Agents whose load is read in one round trip.
LOADS = 1_000
#: Seconds before the log of agents is followed again after an error.
AGAIN_S = 1.0


class Feed:
    """The state of a cell, as far as it is shown.

    Attributes:
        agents: the agents that are present, by id.
        statistics: totals, queues, streams; None before the first read.
        rates: ended tasks a second, one value for each refresh, the newest last.
        submitted_per_s: newly admitted tasks a second.
        failed_per_s: failed tasks a second.
        backlog: pools and priorities, if the pane was shown.
        tasks: the first tasks, if the pane was shown.
        system: processes and findings, if the pane was shown.
        outage: why the cell cannot be read; empty: it can.
        is_complete: all agents of the snapshot have arrived.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.agents: dict[str, AgentRecord] = {}
        self.statistics: CellStatistics | None = None
        self.rates: deque[float] = deque([0.0] * KEPT, maxlen=KEPT)
        self.submitted_per_s = 0.0
        self.failed_per_s = 0.0
        self.backlog: Backlog | None = None
        self.tasks: tuple[TaskRecord, ...] = ()
        self.system: Snapshot | None = None
        self.outage = ""
        self.is_complete = False
        self._read_at = dict[str, float]()

    async def follow_agents(self) -> None:
        """Keep ``agents`` up to date until the task is cancelled."""
        while True:
            try:
                async with aclosing(self.client.watch_agents()) as changes:
                    self.agents, self.is_complete = {}, False
                    async for change in changes:
                        if change.type == RESYNC:
                            self.agents, self.is_complete = {}, False
                        elif change.type == READY:
                            self.is_complete = True
                        elif change.agent is None:
                            self.agents.pop(change.agent_id, None)
                        else:
                            self.agents[change.agent_id] = change.agent
            except CoordError:
                await asyncio.sleep(AGAIN_S)  # ``read`` says why

    async def read(self, pane: str, visible: Sequence[str] = (), *, needs_loads: bool = False) -> None:
        """Read what a pane shows; an error becomes ``outage``.

        Args:
            pane: its name.
            visible: ids of the agents that are on the screen.
            needs_loads: read the load of all agents too, now and then: they are filtered or sorted by it.
        """
        try:
            self._take(await self.client.stats())
            if pane == "agents":
                await self._read_agents(visible)
                if needs_loads and self._is_due("loads"):
                    await self._read_loads()
            elif pane == "tasks":
                self.tasks = (await self.client.list_tasks(limit=TASKS)).tasks
            elif pane == "queues" and self._is_due(pane):
                self.backlog = await self.client.backlog(POOLS)
            elif pane == "system" and self._is_due(pane):
                cell = self.client.connection
                with reading():
                    self.system = await read_snapshot(cell.redis, cell.keys, cell.settings)
        except (CoordError, OSError) as error:
            self.outage = str(error)
        else:
            self.outage = ""

    async def _read_agents(self, visible: Sequence[str]) -> None:
        cell = self.client.connection
        with reading():
            records = await get_agents(cell.redis, cell.keys, visible) if visible else []
        for agent_id, record in zip(visible, records, strict=True):
            if record is not None and agent_id in self.agents:
                self.agents[agent_id] = record

    async def _read_loads(self) -> None:
        cell = self.client.connection
        for some in chunks(list(self.agents), LOADS):
            with reading():
                loads = await get_loads(cell.redis, cell.keys, some)
            for agent_id, load in loads.items():
                agent = self.agents.get(agent_id)
                if agent is not None and agent.load != load:
                    self.agents[agent_id] = replace(agent, load=load)

    def _is_due(self, pane: str) -> bool:
        now = monotonic()
        if now - self._read_at.get(pane, -SLOW_S) < SLOW_S:
            return False
        self._read_at[pane] = now
        return True

    def _take(self, found: CellStatistics) -> None:
        before, self.statistics = self.statistics, found
        seconds = (found.now - before.now) / 1000 if before is not None else 0
        if before is None or seconds <= 0:
            return
        ended = sum(found.total(state) - before.total(state) for state in OUTCOMES)
        self.rates.append(max(0.0, ended / seconds))
        self.submitted_per_s = max(0.0, (found.submitted - before.submitted) / seconds)
        failed = found.total(TaskState.FAILED) - before.total(TaskState.FAILED)
        self.failed_per_s = max(0.0, failed / seconds)
