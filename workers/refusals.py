"""Tasks whose payload an agent cannot decode: another version of the agent may be able to.

During a rolling deployment of a new payload, agents of the old and the new version run at the same time. A task whose
payload is refused is released once per version of the agents that may get it. It waits in a pool of its own, in which
agents of the versions that refused are not eligible. It fails when no agent of another version is registered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from coord import codec, queries
from coord.models.agents import AgentStatus
from coord.models.facts import TaskFailed
from coord.models.tasks import Pool, is_named, named_queue
from workers.follower import Follower
from workers.service import ReceivedFact, WorkerContext
from workers.transitions import Report
from workers.view import View

#: The code with which an agent reports that it cannot decode a payload.
CODE = "payload_invalid"
#: Versions that may refuse one task; the next one fails it.
MAX_VERSIONS = 16
#: Agents of other versions whose status is read, if none of them is active.
STATUSES_READ = 100
#: Statuses of agents that are not present.
AWAY = frozenset({AgentStatus.INACTIVE, AgentStatus.STALE})


class Refusal(Struct, frozen=True):
    """Where a task waits after an agent has refused its payload."""

    pool: str
    definition: Pool


def refused_payloads(batch: Iterable[ReceivedFact[Any]]) -> list[TaskFailed]:
    """Return the reports of a batch that say that an agent cannot decode a payload."""
    return [received.fact for received in batch if type(received.fact) is TaskFailed and received.fact.code == CODE]


async def find_refusals(
    cell: WorkerContext, view: View, follower: Follower, failed: Sequence[TaskFailed]
) -> dict[str, Refusal]:
    """Return the refusals after which another agent may take the task, by lease; the others fail their tasks.

    Args:
        cell: of the worker.
        view: of the agents.
        follower: brings the view up to date before a task fails.
        failed: reports with the code ``payload_invalid`` that ask for no retry.
    """
    facts = [fact for fact in failed if not fact.retryable]
    records = await queries.get_tasks(cell.redis, cell.keys, [fact.task_id for fact in facts])
    held = [
        (fact, record.agent_id, record.pool)
        for fact, record in zip(facts, records, strict=True)
        if record is not None and record.lease == fact.lease and record.agent_id
    ]
    if not held:
        return {}
    agents = await queries.get_agents(cell.redis, cell.keys, [agent_id for _, agent_id, _ in held])
    pipe = cell.redis.pipeline(transaction=False)
    for fact, _, _ in held:
        pipe.hmget(cell.keys.task(fact.task_id), "definition", "body")
    pools: dict[str, Pool] = {}
    pool_of: dict[str, str] = {}  # by lease
    for (fact, _, waited_in), agent, fields in zip(held, agents, await pipe.execute(), strict=True):
        before = queries.pool_in_record(*fields)
        if before is None or agent is None:
            continue
        after = replace(before, refused_by=tuple(sorted({*before.refused_by, agent.version})))
        if len(after.refused_by) > MAX_VERSIONS:
            continue
        name, _definition = codec.pool_of(after)
        name = named_queue(name) if is_named(waited_in) else name
        pools[name], pool_of[fact.lease] = after, name
    has_another = {name: await _has_another(cell, view, pool) for name, pool in pools.items()}
    if not all(has_another.values()):
        await follower.catch_up()
        has_another = {name: has or await _has_another(cell, view, pools[name]) for name, has in has_another.items()}
    return {lease: Refusal(name, pools[name]) for lease, name in pool_of.items() if has_another[name]}


async def _has_another(cell: WorkerContext, view: View, pool: Pool) -> bool:
    """Return True if an agent is registered that may be able to decode the payload."""
    agents = view.agents_that_may_decode(pool)
    if any(agent.active for agent in agents):
        return True
    some = [agent.agent_id for agent in agents[:STATUSES_READ]]
    records = await queries.get_agents(cell.redis, cell.keys, some) if some else []
    return any(record is not None and record.status not in AWAY for record in records)


def redirected(report: Report, refusals: Mapping[str, Refusal]) -> Report:
    """Return the report of a refused payload as one that releases the task into another pool."""
    refusal = refusals.get(report.lease)
    if refusal is None or report.kind != "failed":
        return report
    _, definition = codec.pool_of(refusal.definition)
    return replace(report, kind="refused", pool=refusal.pool, definition=definition)
