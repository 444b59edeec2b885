"""Live settings: the value of each, and whether it was set live or comes from the environment."""

from __future__ import annotations

from contextlib import suppress
from typing import Literal

from msgspec import Struct
from redis.asyncio import Redis

from coord.config import LIVE, Settings, live_text, variable_of
from coord.keys import Keys
from coord.queries.fields import decode_fields, read_hash

#: Prefix of the fields in a distributor's presence that hold the values of its environment.
PRESENCE_PREFIX = "setting:"


Source = Literal["live", "environment", "default"]


class LiveSetting(Struct, frozen=True):
    """The current state of one setting; values as text."""

    name: str
    value: str
    source: Source  #: set live, from the distributors' environment, or coord's default
    otherwise: tuple[str, ...]  #: values without the live one; several if distributors have different environments
    default: str
    variable: str  #: of the environment


async def get_live_values(redis: Redis, keys: Keys) -> dict[str, str]:
    """Return the settings that operators have set live: name -> value as text."""
    return decode_fields(await read_hash(redis, keys.of("settings")))


async def get_health_threshold(redis: Redis, keys: Keys, settings: Settings) -> float:
    """Return the health below which agents get no tasks: set live, or the lowest of the distributors' environments.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        settings: stands for the environment of the distributors while none is present.
    """
    live = await get_live_values(redis, keys)
    with suppress(KeyError, ValueError):
        return float(live["health_threshold"])
    environments = await _get_environments(redis, keys) or [environment_fields(settings)]
    return min(float(environment[f"{PRESENCE_PREFIX}health_threshold"]) for environment in environments)


async def list_settings(redis: Redis, keys: Keys, settings: Settings) -> list[LiveSetting]:
    """Return all settings that can be changed live, by name.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        settings: stands for the environment of the distributors while none is present.
    """
    live = await get_live_values(redis, keys)
    environments = await _get_environments(redis, keys) or [environment_fields(settings)]
    listed: list[LiveSetting] = []
    for name in LIVE:
        otherwise = tuple(sorted({environment[PRESENCE_PREFIX + name] for environment in environments}))
        default = live_text(name, getattr(Settings(), name))
        source: Source = "default" if otherwise == (default,) else "environment"
        value = " | ".join(otherwise)
        if name in live:
            value, source = live[name], "live"
        listed.append(LiveSetting(name, value, source, otherwise, default, variable_of(name)))
    return listed


def environment_fields(settings: Settings) -> dict[str, str]:
    """Return the fields of a distributor's presence that hold the values of its environment."""
    return {PRESENCE_PREFIX + name: live_text(name, getattr(settings, name)) for name in LIVE}


async def _get_environments(redis: Redis, keys: Keys) -> list[dict[str, str]]:
    """Return the ``environment_fields`` of each present distributor."""
    names: list[bytes] = await redis.execute_command("ZRANGE", keys.of("workers:distributor"), 0, -1)
    fields = [PRESENCE_PREFIX + name for name in LIVE]
    pipe = redis.pipeline(transaction=False)
    for name in names:
        pipe.hmget(keys.worker("distributor", name.decode()), fields)
    answers = await pipe.execute()
    return [
        {field: value.decode() for field, value in zip(fields, values, strict=True)}
        for values in answers
        if None not in values
    ]
