"""Counted: how many tasks are in which state, and everything else that the scripts count."""

from __future__ import annotations

from collections.abc import Mapping

from redis.asyncio import Redis

from coord.keys import Keys
from coord.models.tasks import Priority, TaskState
from coord.queries.fields import decoded, hash_of


async def counters(redis: Redis, keys: Keys) -> dict[str, int]:
    """Every counter; ``{state}:{priority}`` is how many tasks of a priority are in a state."""
    return {name: int(value) for name, value in decoded(await hash_of(redis, keys.of("counters"))).items()}


def by_state(counted: Mapping[str, int]) -> dict[TaskState, int]:
    """How many tasks are in each state, over all priorities."""
    return {state: sum(counted.get(f"{state}:{priority}", 0) for priority in Priority) for state in TaskState}


def submitted(counted: Mapping[str, int]) -> int:
    """How many tasks were admitted, over all priorities."""
    return sum(counted.get(f"submitted:{priority}", 0) for priority in Priority)
