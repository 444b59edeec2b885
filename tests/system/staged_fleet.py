"""A fleet of any size that works without processes: agents that are registered, and tasks that are reported for them.

Everything else is as in a real cell: each agent is a fact on ``in:registry``, the distributor places each task, and
each report is a fact with the lease of its task.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import NamedTuple

from coord import Client
from coord.background import cancel_and_wait
from coord.errors import TaskNotFound
from coord.models.agents import AgentStatus, AgentType, Location
from coord.models.facts import AgentRegistered, AgentStatusChanged, TaskCompleted, TaskFailed, TaskStarted
from coord.models.tasks import TERMINAL, TaskState
from coord.streams import Append

#: Facts that are appended in one round trip.
AT_ONCE = 200
#: Seconds between two turns of the work.
TURN_S = 0.1


class Role(NamedTuple):
    """A part of the fleet."""

    name: str  #: first part of the ids of its agents
    agent_type: AgentType
    task_type: str
    capabilities: tuple[str, ...]
    capacity: int
    weight: int  #: share of the fleet


ROLES = (
    Role("gpu", AgentType.INFERENCE, "summarize", ("summarize", "translate"), 4, 4),
    Role("ocr", AgentType.WORKER, "ocr", ("ocr",), 8, 5),
    Role("embed", AgentType.PROCESSING, "embed", ("embed",), 12, 3),
    Role("train", AgentType.TRAINING, "train", ("train",), 2, 1),
)
REGIONS = (("eu-west", "a"), ("us-east", "b"), ("ap-south", "a"))
PRIORITIES = ("urgent", "high", "normal", "normal", "normal", "low")


class StagedFleet:
    """Agents of a cell, and their work.

    Args:
        client: of the cell.
        seed: of the choice of what is done.
    """

    def __init__(self, client: Client, seed: int = 7) -> None:
        self._client = client
        self._random = random.Random(seed)
        self._tasks: dict[str, float] = {}  # task -> time of the loop at which it ends; 0: it is not placed yet
        self._started: set[str] = set()
        self._working: asyncio.Task[None] | None = None
        self.submitted = 0

    async def register(self, size: int) -> list[str]:
        """Register this many agents; return their ids."""
        facts: list[AgentRegistered] = []
        while len(facts) < size:
            (role,) = self._random.choices(ROLES, [role.weight for role in ROLES])
            region, zone = self._random.choice(REGIONS)
            facts.append(
                AgentRegistered(
                    agent_id=f"{role.name}-{len(facts) + 1}",
                    agent_type=role.agent_type,
                    capabilities=role.capabilities,
                    capacity=role.capacity,
                    tags=("spot",) if self._random.random() < 0.3 else (),
                    labels={"pool": f"p{len(facts) % 4 + 1}"},
                    location=Location(region=region, zone=f"{region}-{zone}"),
                    version="2.4.1",
                )
            )
        await self._append([Append("in:registry", fact) for fact in facts])
        return [fact.agent_id for fact in facts]

    async def set_status(self, agent_ids: Sequence[str], status: AgentStatus) -> None:
        """Have agents report a status."""
        await self._append([Append("in:registry", AgentStatusChanged(one, status)) for one in agent_ids])

    def start(self, per_s: float, run_s: tuple[float, float] = (2.0, 12.0), failing: float = 0.03) -> None:
        """Submit this many tasks a second and report for their agents, until ``stop``."""
        self._working = asyncio.create_task(self._work(per_s, run_s, failing))

    async def stop(self) -> None:
        """End the work; tasks stay as they are."""
        await cancel_and_wait(self._working)

    async def submit(self, count: int, roles: Sequence[Role] = ROLES) -> None:
        """Submit tasks of these roles."""
        specs = []
        for _ in range(count):
            (role,) = self._random.choices(roles, [role.weight * role.capacity for role in roles])
            self.submitted += 1
            specs.append(
                {
                    "task_id": f"{role.task_type}-{self.submitted:04}",
                    "task_type": role.task_type,
                    "payload": {"page": self.submitted},
                    "priority": self._random.choice(PRIORITIES),
                }
            )
        await self._client.submit_many(specs)
        self._tasks |= {str(spec["task_id"]): 0.0 for spec in specs}

    async def _work(self, per_s: float, run_s: tuple[float, float], failing: float) -> None:
        loop = asyncio.get_running_loop()
        due, began = 0.0, loop.time()
        while True:
            due += per_s * (loop.time() - began)
            began = loop.time()
            if due >= 1:
                await self.submit(int(due))
                due -= int(due)
            await self._report(run_s, failing)
            await asyncio.sleep(max(0.0, TURN_S - (loop.time() - began)))

    async def _report(self, run_s: tuple[float, float], failing: float) -> None:
        now = asyncio.get_running_loop().time()
        reports: list[Append] = []
        wanted = [task for task, ends_at in self._tasks.items() if ends_at == 0.0 or ends_at <= now][:AT_ONCE]
        found = await asyncio.gather(*(self._client.task(task) for task in wanted), return_exceptions=True)
        for task, record in zip(wanted, found, strict=True):
            if isinstance(record, TaskNotFound):  # it is not admitted yet
                continue
            if isinstance(record, BaseException):
                raise record
            if record.state in TERMINAL:
                del self._tasks[task]
            elif record.state in {TaskState.ASSIGNED, TaskState.RUNNING} and record.lease:
                if self._tasks[task] == 0.0:
                    self._tasks[task] = now + self._random.uniform(*run_s)
                    reports.append(Append("in:reports", TaskStarted(task, record.lease)))
                elif self._random.random() < failing:
                    fact = TaskFailed(task, record.lease, "page_unreadable", "page 7 has no text", retryable=False)
                    reports.append(Append("in:reports", fact))
                else:
                    reports.append(Append("in:reports", TaskCompleted(task, record.lease)))
        await self._append(reports)

    async def _append(self, appends: Sequence[Append]) -> None:
        for at in range(0, len(appends), AT_ONCE):
            await self._client.connection.append(appends[at : at + AT_ONCE])
