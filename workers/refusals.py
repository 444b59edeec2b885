"""Tasks that an agent refuses because it cannot run them: another agent may be able to.

During a rolling deployment, agents of the old and the new version run at the same time. A task whose payload an agent
cannot decode (``payload_invalid``) is released once per version of the agents that may get it. A task for which an
agent has no handler (``no_handler``) is released once per agent. It waits in a pool of its own, in which the agents
that refused are not eligible. It fails when no other agent is registered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from coord import codec, queries
from coord.models.agents import AgentStatus
from coord.models.facts import TaskFailed, TaskReleased
from coord.models.tasks import Pool, is_named, named_queue
from workers.follower import Follower
from workers.service import ReceivedFact, WorkerContext
from workers.transitions import Report
from workers.view import View

#: The code of the failure with which an agent reports that it cannot decode a payload.
UNDECODABLE = "payload_invalid"
#: The code of the release with which an agent reports that it has no handler.
UNHANDLED = "no_handler"
#: Versions that may refuse one task, and agents that may have no handler for it; the next one fails it.
MAX_VERSIONS, MAX_AGENTS = 16, 32
#: Agents of other versions whose status is read, if none of them is active.
STATUSES_READ = 100
#: Statuses of agents that are not present.
AWAY = frozenset({AgentStatus.INACTIVE, AgentStatus.STALE})


#: A report that an agent cannot run a task.
Refused = TaskFailed | TaskReleased


class Refusal(Struct, frozen=True):
    """Where a task waits after an agent has refused it."""

    pool: str  #: its queue; empty: no other agent may take the task, which fails
    definition: Pool


def refused_tasks(batch: Iterable[ReceivedFact[Any]]) -> list[Refused]:
    """Return the reports of a batch that say that an agent cannot run a task."""
    return [received.fact for received in batch if _is_refusal(received.fact)]


def _is_refusal(fact: Any) -> bool:
    if type(fact) is TaskFailed:
        return bool(fact.code == UNDECODABLE and not fact.retryable)
    return type(fact) is TaskReleased and bool(fact.code == UNHANDLED)


async def find_refusals(
    cell: WorkerContext, view: View, follower: Follower, refused: Sequence[Refused]
) -> dict[str, Refusal]:
    """Return what becomes of refused tasks, by lease.

    Args:
        cell: of the worker.
        view: of the agents.
        follower: brings the view up to date before a task fails.
        refused: the reports.
    """
    records = await queries.get_tasks(cell.redis, cell.keys, [fact.task_id for fact in refused])
    held = [
        (fact, record.agent_id, record.pool)
        for fact, record in zip(refused, records, strict=True)
        if record is not None and record.lease == fact.lease and record.agent_id
    ]
    if not held:
        return {}
    agents = await queries.get_agents(cell.redis, cell.keys, [agent_id for _, agent_id, _ in held])
    pipe = cell.redis.pipeline(transaction=False)
    for fact, _, _ in held:
        pipe.hmget(cell.keys.task(fact.task_id), "definition", "body")
    found: dict[str, Refusal] = {}
    for (fact, agent_id, waited_in), agent, fields in zip(held, agents, await pipe.execute(), strict=True):
        before = queries.pool_in_record(*fields)
        if before is None or agent is None:
            continue
        if type(fact) is TaskReleased:
            after = replace(before, unhandled_by=tuple(sorted({*before.unhandled_by, agent_id})))
        else:
            after = replace(before, refused_by=tuple(sorted({*before.refused_by, agent.version})))
        name = ""
        if len(after.refused_by) <= MAX_VERSIONS and len(after.unhandled_by) <= MAX_AGENTS:
            name, _definition = codec.pool_of(after)
        found[fact.lease] = Refusal(named_queue(name) if name and is_named(waited_in) else name, after)
    pools = {refusal.pool: refusal.definition for refusal in found.values() if refusal.pool}
    has_another = {name: await _has_another(cell, view, pool) for name, pool in pools.items()}
    if not all(has_another.values()):
        await follower.catch_up()
        has_another = {name: has or await _has_another(cell, view, pools[name]) for name, has in has_another.items()}
    return {
        lease: refusal if has_another.get(refusal.pool) else replace(refusal, pool="")
        for lease, refusal in found.items()
    }


async def _has_another(cell: WorkerContext, view: View, pool: Pool) -> bool:
    """Return True if an agent is registered that may be able to run the tasks of a pool."""
    agents = view.agents_that_may_run(pool)
    if any(agent.active for agent in agents):
        return True
    some = [agent.agent_id for agent in agents[:STATUSES_READ]]
    records = await queries.get_agents(cell.redis, cell.keys, some) if some else []
    return any(record is not None and record.status not in AWAY for record in records)


def redirected(report: Report, refusals: Mapping[str, Refusal]) -> Report:
    """Return the report of a refused task as one that releases it into another pool, or fails it for good."""
    refusal = refusals.get(report.lease)
    if refusal is None or (report.kind, report.code) not in {("failed", UNDECODABLE), ("released", UNHANDLED)}:
        return report
    if not refusal.pool:
        return replace(report, kind="failed", retryable=False)
    _, definition = codec.pool_of(refusal.definition)
    return replace(report, kind="refused", pool=refusal.pool, definition=definition)
