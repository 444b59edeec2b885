"""Reads the agents that need attention, at a cost that does not grow with the number of agents.

Agents in error and agents that turned stale are counted in their indexes. No index has the agents that are deaf or
ejected, so records are examined: those of the least healthy agents first, and at most ``EXAMINED``. A number is exact
unless a limit was reached; then there are at least so many agents.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct
from redis.asyncio import Redis

from coord.keys import Keys
from coord.models.agents import AgentStatus
from coord.models.statistics import CellStatistics
from coord.queries import AgentFaults, get_agent_faults
from coord.queries.reads import decode_text

#: Agents that are read in one step.
STEP = 1_000
#: Records of agents that are examined at most.
EXAMINED = 2_000
#: Members of an index that are looked through at most.
MOST = 20_000
#: Ids that are kept of the agents with the same problem.
KEPT = 10
#: Agents that turned stale longer ago than this are history, in ms.
SILENT_MS = 3_600_000
#: Agents with at least this health are neither ejected, which costs 0.1, nor deaf, which costs 0.5 unless they have to
#: poll: the stored health may differ by 0.05 from the current one, which is computed at each heartbeat.
HEALTHY = 0.95
#: The reason of deaf agents that have to poll their inbox, and do not.
UNPOLLED = "unpolled"


class Affected(Struct, frozen=True):
    """The agents with the same problem."""

    agent_ids: tuple[str, ...] = ()  #: some of them
    number: int = 0
    is_exact: bool = True  #: False: there are at least so many


class AgentProblems(Struct, frozen=True, kw_only=True):
    """The agents of a cell that need attention."""

    silent: Affected = Affected()  #: turned stale within an hour, the last one first
    silent_since: int = 0  #: last heartbeat of the agent that turned stale last, ms since 1970
    failing: Affected = Affected()  #: in status error
    deaf: Mapping[str, Affected] = {}  #: ``deaf_reason`` of ``AgentRecord`` -> agents; empty: the reason was not read
    ejected: Affected = Affected()
    ejected_types: tuple[str, ...] = ()  #: the task types that they get no tasks of


class _Examined(NamedTuple):
    """The agents whose records were examined."""

    faults: dict[str, AgentFaults]
    is_whole: bool  #: all agents that are present
    has_unhealthy: bool  #: all agents with a health below ``HEALTHY``


async def read_agent_problems(
    redis: Redis, keys: Keys, statistics: CellStatistics, ejected: Iterable[str]
) -> AgentProblems:
    """Return the agents that need attention.

    Args:
        redis: a client of ``coord.connection``.
        keys: of the cell.
        statistics: of the cell, read a moment ago.
        ejected: agents that were ejected lately; their health may not show it yet.

    Raises:
        NoPermissionError: the user may not read the indexes or records of agents.
    """
    stale = statistics.agents.get(AgentStatus.STALE, 0)
    silent = await _read_silent(redis, keys, statistics.now, stale)
    last = await get_agent_faults(redis, keys, silent.agent_ids[:1]) if silent.number else {}
    examined = await _examine(redis, keys, has_stale=bool(stale))
    if not examined.is_whole:
        rest = [agent_id for agent_id in dict.fromkeys(ejected) if agent_id not in examined.faults]
        examined.faults.update(await get_agent_faults(redis, keys, rest[:STEP]) if rest else {})
    present = {name: one for name, one in examined.faults.items() if one.status is not AgentStatus.STALE}
    out = [name for name, one in present.items() if one.ejected]
    return AgentProblems(
        silent=silent,
        silent_since=max((one.last_heartbeat for one in last.values()), default=0),
        failing=await _read_failing(redis, keys),
        deaf=await _deaf(redis, keys, statistics, present, examined),
        ejected=Affected(tuple(out[:KEPT]), len(out), examined.has_unhealthy),
        ejected_types=tuple(sorted({one.task_type for name in out for one in present[name].ejected})),
    )


async def _read_silent(redis: Redis, keys: Keys, now: int, stale: int) -> Affected:
    """Return the agents that turned stale within the last hour: those in the index of departures that are stale now."""
    found = dict[str, None]()
    offset = 0
    while len(found) < stale and offset < MOST:
        limits = ("+inf", now - SILENT_MS, "BYSCORE", "REV", "LIMIT", offset, STEP)
        raw = await redis.execute_command("ZRANGE", keys.of("agents:departed"), *limits)
        names = [decode_text(name) for name in raw]
        found |= dict.fromkeys(await _stale_ones(redis, keys, names))
        if len(names) < STEP:
            return Affected(tuple(found)[:KEPT], len(found))
        offset += STEP
    return Affected(tuple(found)[:KEPT], len(found), is_exact=len(found) >= stale)


async def _read_failing(redis: Redis, keys: Keys) -> Affected:
    """Return the agents in status error."""
    key = keys.facet("status", AgentStatus.ERROR)
    number = int(await redis.execute_command("SCARD", key))
    if not number:
        return Affected()
    # A step of a large set may return no member; then the number alone is known.
    _, members = await redis.sscan(key, count=KEPT)
    return Affected(tuple(sorted(map(decode_text, members))[:KEPT]), number)


async def _examine(redis: Redis, keys: Keys, *, has_stale: bool) -> _Examined:
    """Examine the records of the agents that are present, the least healthy first."""
    faults = dict[str, AgentFaults]()
    offset, health = 0, 0.0
    while offset < MOST and len(faults) < EXAMINED:
        # The scores are minus the health; that of an agent that has left is 1.
        limits = ("(1", "-inf", "BYSCORE", "REV", "LIMIT", offset, STEP, "WITHSCORES")
        raw = await redis.execute_command("ZRANGE", keys.of("agents:health"), *limits)
        names = [decode_text(name) for name, _ in raw]
        silent = set(await _stale_ones(redis, keys, names)) if has_stale and names else set()
        rest = [name for name in names if name not in silent and name not in faults]
        examined = rest[: EXAMINED - len(faults)]
        faults |= await get_agent_faults(redis, keys, examined) if examined else {}
        if len(names) < STEP and len(examined) == len(rest):
            return _Examined(faults, is_whole=True, has_unhealthy=True)
        scores = dict(zip(names, (-float(score) for _, score in raw), strict=True))
        health = scores[examined[-1] if len(examined) < len(rest) else names[-1]]
        offset += STEP
    return _Examined(faults, is_whole=False, has_unhealthy=health >= HEALTHY)


async def _stale_ones(redis: Redis, keys: Keys, agent_ids: Sequence[str]) -> list[str]:
    """Return which of these agents are stale."""
    if not agent_ids:
        return []
    are_stale = await redis.execute_command("SMISMEMBER", keys.facet("status", AgentStatus.STALE), *agent_ids)
    return [agent_id for agent_id, is_stale in zip(agent_ids, are_stale, strict=True) if is_stale]


async def _deaf(
    redis: Redis, keys: Keys, statistics: CellStatistics, present: Mapping[str, AgentFaults], examined: _Examined
) -> dict[str, Affected]:
    """Return the deaf agents by the reason; those that were not examined under an empty reason."""
    names = defaultdict[str, list[str]](list)
    for name, one in present.items():
        if one.deaf_reason:
            names[one.deaf_reason].append(name)
    found = {
        # One that has not polled is not less healthy for that, so it may be among those that were not examined.
        reason: Affected(
            tuple(some[:KEPT]), len(some), examined.is_whole or (reason != UNPOLLED and examined.has_unhealthy)
        )
        for reason, some in sorted(names.items())
    }
    if not examined.is_whole:
        # An active agent that is not placeable is deaf. The second reading is there because agents change meanwhile.
        active, placeable = keys.facet("status", AgentStatus.ACTIVE), keys.of("agents:active")
        pipe = redis.pipeline(transaction=False)
        pipe.scard(active)
        pipe.scard(placeable)
        number, placed = await pipe.execute()
        deaf = min(statistics.agents.get(AgentStatus.ACTIVE, 0) - statistics.active_agents, number - placed)
        known = sum(bool(one.deaf_reason) and one.status is AgentStatus.ACTIVE for one in present.values())
        if deaf > known:
            found[""] = Affected((), deaf - known, is_exact=False)
    return found
