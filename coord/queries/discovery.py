"""Discovery: the agents that meet a filter, the healthiest first, in pages; from index sets.

A page is read from the smaller side: the intersection of the sets of the filter if it is small, otherwise the order by
health, step by step, until the page is full. So no step reads the whole fleet to return a part of it.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple

from msgspec import Struct
from redis.asyncio import Redis

from coord.errors import CursorInvalid
from coord.keys import Keys
from coord.models.agents import AgentFilter, AgentRecord, AgentStatus, AgentType
from coord.pipeline import pack, send_and_read
from coord.queries.agents import get_agents
from coord.queries.reads import Position, decode_text, read_step

#: An intersection with at most so many members is read as a whole.
SMALL = 1_000
#: Members of the order by health that are examined in the first step, at least; and at most in any of the next ones,
#: each of which is four times as large.
STEP, MOST = 100, 4_000
#: The score of an agent that left; the others have their health below zero.
DEPARTED = 1.0
_CURSOR = re.compile(r"(-?[0-9.]{1,20}):([A-Za-z0-9._@-]{1,128})")


class AgentPage(Struct, frozen=True):
    """A page of agents, the healthiest first; those of the same health by id."""

    agents: tuple[AgentRecord, ...]
    next: str | None  #: cursor of the next page; None: last page. A page may be short before the last


class RegistryStats(Struct, frozen=True):
    """The agents in numbers, those that left included."""

    total: int
    by_status: dict[AgentStatus, int]
    by_type: dict[AgentType, int]
    services: int  #: different ones that any agent has
    capabilities: int  #: the same
    forgotten_at: int | None  #: ms since 1970 at which the record of an agent was last removed; None: never


class FoundIds(NamedTuple):
    """The ids of a page of agents."""

    ids: list[str]
    next: str | None  #: cursor of the next page; None: last page


async def discover_agents(
    redis: Redis, keys: Keys, wanted: AgentFilter, *, limit: int = 100, cursor: str | None = None
) -> AgentPage:
    """Return at most ``limit`` agents that meet a filter, the healthiest first.

    An agent whose health does not change meanwhile is in exactly one page. An agent whose health rises or falls past
    the cursor may be missed, or be in two pages.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        wanted: the filter.
        limit: at least 1.
        cursor: ``next`` of the previous page.

    Raises:
        CursorInvalid: the cursor does not come from a list of agents.
    """
    found = await find_agent_ids(redis, keys, wanted, limit=limit, cursor=cursor)
    records = await get_agents(redis, keys, found.ids)
    return AgentPage(tuple(record for record in records if record is not None), found.next)


async def get_registry_stats(redis: Redis, keys: Keys) -> RegistryStats:
    """Return the agents in numbers; one round trip."""
    commands: list[tuple[str, ...]] = [("SCARD", keys.of("agents:all")), ("SMEMBERS", keys.of("agents:facets"))]
    commands.append(("HGET", keys.of("counters"), "forgotten_at"))
    commands += [("SCARD", keys.facet("status", status.value)) for status in AgentStatus]
    commands += [("SCARD", keys.facet("type", kind.value)) for kind in AgentType]
    total, facets, forgotten_at, *counts = await send_and_read(redis, list(map(pack, commands)), to_raise=True)
    kinds = Counter(facet.partition(b":")[0] for facet in facets)
    return RegistryStats(
        total=total,
        by_status=dict(zip(AgentStatus, counts[: len(AgentStatus)], strict=True)),
        by_type=dict(zip(AgentType, counts[len(AgentStatus) :], strict=True)),
        services=kinds[b"service"],
        capabilities=kinds[b"capability"],
        forgotten_at=None if forgotten_at is None else int(forgotten_at),
    )


async def find_agent_ids(
    redis: Redis, keys: Keys, wanted: AgentFilter, *, limit: int, cursor: str | None = None
) -> FoundIds:
    """Return the ids of the agents of a page; as ``discover_agents``."""
    after = None if cursor is None else _position(cursor)
    sets, last = _sets(keys, wanted), _last_score(wanted)
    found: list[Position] = []
    if sets and (small := await _small_intersection(redis, keys, sets)) is not None:
        found = [one for one in small if (after is None or one > after) and one.score <= last][: limit + 1]
    else:
        step = min(MOST, max(STEP, 2 * limit))
        while len(found) <= limit:
            positions = await read_step(redis, keys.of("agents:health"), after, step, newest_first=False)
            within = [one for one in positions if one.score <= last]
            found += await _members(redis, sets, within)
            if not positions or len(within) < len(positions):
                break
            after, step = positions[-1], min(MOST, 4 * step)
    page = found[:limit]
    return FoundIds([one.member for one in page], _cursor(page[-1]) if len(found) > limit else None)


def _sets(keys: Keys, wanted: AgentFilter) -> list[str]:
    """Return the keys of the sets of which the agents have to be members."""
    sets = [keys.of("agents:active")] if wanted.placeable else []
    if wanted.agent_type is not None:
        sets.append(keys.facet("type", wanted.agent_type.value))
    if wanted.status is not None:
        sets.append(keys.facet("status", wanted.status.value))
    sets += [keys.facet("capability", value) for value in wanted.capabilities]
    sets += [keys.facet("service", value) for value in wanted.services]
    sets += [keys.facet("tag", value) for value in wanted.tags]
    sets += [keys.facet("label", f"{name}={value}") for name, value in wanted.labels.items()]
    return list(dict.fromkeys(sets))


def _last_score(wanted: AgentFilter) -> float:
    """Return the highest score of an agent that may be meant."""
    if wanted.min_health is not None and wanted.min_health > 0:
        return -wanted.min_health
    return DEPARTED if wanted.departed or wanted.status is AgentStatus.INACTIVE else 0.0


async def _small_intersection(redis: Redis, keys: Keys, sets: list[str]) -> list[Position] | None:
    """Return the agents that are in all sets, in order; None if they are many."""
    if int(await redis.execute_command("SINTERCARD", len(sets), *sets, "LIMIT", SMALL + 1)) > SMALL:
        return None
    ids: list[bytes] = sorted(await redis.execute_command("SINTER", *sets))
    if not ids:
        return []
    scores: list[Any] = await redis.execute_command("ZMSCORE", keys.of("agents:health"), *ids)
    pairs = zip(ids, scores, strict=True)
    return sorted(Position(float(score), decode_text(raw)) for raw, score in pairs if score is not None)


async def _members(redis: Redis, sets: list[str], positions: list[Position]) -> list[Position]:
    """Return those of the agents that are in all sets; one round trip."""
    if not sets or not positions:
        return positions
    ids = [one.member for one in positions]
    commands = [pack(("SMISMEMBER", name, *ids)) for name in sets]
    answers = await send_and_read(redis, commands, to_raise=True)
    return [one for one, *are in zip(positions, *answers, strict=True) if all(are)]


def _cursor(last: Position) -> str:
    return f"{last.score:.3f}:{last.member}"


def _position(cursor: str) -> Position:
    match = _CURSOR.fullmatch(cursor)
    try:
        if match is not None:
            return Position(float(match[1]), match[2])
    except ValueError:
        pass
    raise CursorInvalid(
        f"cursor {cursor[:80]!r} does not come from a list of agents; leave it out to start at the beginning"
    )
