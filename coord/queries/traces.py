"""Makes a trace from the log of tasks and the records of tasks and agents."""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from coord.config import Settings
from coord.keys import Keys
from coord.models.tasks import TaskRecord, TaskState
from coord.models.traces import TRACE_VERSION, Trace, TraceAgent, TraceHeader, TraceTask
from coord.queries.agents import get_fleet
from coord.queries.queues import pool_in_record
from coord.queries.reads import chunks, decode_text
from coord.queries.settings import list_settings
from coord.queries.tasks import get_task_headers

#: Entries of the log, or records, that are read in one round trip.
STEP = 500


async def export_trace(redis: Redis, keys: Keys, settings: Settings, begin: int, end: int) -> Trace:
    """Return what happened in a cell: the tasks that completed in this time, and the agents that it has now.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        settings: stand for the environment of the distributors while none is present.
        begin: the beginning, in ms since 1970 on the server's clock.
        end: the end.
    """
    (strategy,) = [one.value for one in await list_settings(redis, keys, settings) if one.name == "strategy"]
    ids = await _completed(redis, keys, begin, end)
    tasks: list[TraceTask] = []
    capabilities: dict[str, tuple[str, ...]] = {}  # of each pool
    for some in chunks(ids, STEP):
        records = [record for record in await get_task_headers(redis, keys, some) if record is not None]
        await _learn_pools(redis, keys, records, capabilities)
        tasks += [task for record in records if (task := _task(record, capabilities[record.pool])) is not None]
    fleet = (await get_fleet(redis, keys)).values()
    agents = [
        TraceAgent(agent.agent_id, agent.capacity, agent.weight, tuple(sorted(agent.capabilities)), agent.location)
        for agent in sorted(fleet, key=lambda agent: agent.agent_id)
        if agent.active or any(task.agent_id == agent.agent_id for task in tasks)
    ]
    header = TraceHeader(TRACE_VERSION, begin, end, strategy, len(ids) - len(tasks))
    return Trace(header, tuple(agents), tuple(tasks))


async def _completed(redis: Redis, keys: Keys, begin: int, end: int) -> list[str]:
    """Return the ids of the tasks that completed, in order; a task that was replayed is listed once."""
    found: dict[str, None] = {}
    since = str(begin)
    while True:
        entries = await redis.execute_command("XRANGE", keys.of("log:tasks"), since, end, "COUNT", STEP)
        for entry_id, fields in entries:
            since = f"({decode_text(entry_id)}"
            if fields.get(b"type") == b"task.completed":
                found |= dict.fromkeys(decode_text(fields[b"task_id"]).split(" "))
        if len(entries) < STEP:
            return list(found)


async def _learn_pools(
    redis: Redis, keys: Keys, records: Sequence[TaskRecord], known: dict[str, tuple[str, ...]]
) -> None:
    """Read which capabilities the tasks of each pool require, from one task of each."""
    tasks = {record.pool: record.task_id for record in records if record.pool not in known}
    for some in chunks(list(tasks.items()), STEP):
        pipe = redis.pipeline(transaction=False)
        for _, task_id in some:
            pipe.execute_command("HMGET", keys.task(task_id), "definition", "body")
        for (pool, _), (definition, body) in zip(some, await pipe.execute(), strict=True):
            found = pool_in_record(definition, body)
            known[pool] = tuple(sorted(found.requirements.capabilities)) if found is not None else ()


def _task(record: TaskRecord, capabilities: tuple[str, ...]) -> TraceTask | None:
    if record.state is not TaskState.COMPLETED or record.assigned_at is None or record.finished_at is None:
        return None
    return TraceTask(
        task_id=record.task_id,
        task_type=record.task_type,
        ready_at=min(max(record.submitted_at, record.run_at or 0), record.assigned_at),
        assigned_at=record.assigned_at,
        finished_at=record.finished_at,
        agent_id=str(record.agent_id),
        priority=record.priority,
        capabilities=capabilities,
        expected_ms=record.expected_ms,
    )
