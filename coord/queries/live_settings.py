"""The settings that distributors obey while they run: what each is, and whether set live or by the environment."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from redis.asyncio import Redis

from coord.config import LIVE, Settings, live_text, variable_of
from coord.keys import Keys
from coord.queries.server_state import settings as read_settings

#: In a distributor's presence: what its environment says of each setting.
PRESENCE_PREFIX = "setting:"


Source = Literal["live", "environment", "default"]


class LiveSetting(Struct, frozen=True):
    """One setting as it holds now; values as text."""

    name: str
    value: str
    source: Source  #: set live; from the distributors' environment; coord's own
    otherwise: tuple[str, ...]  #: what holds where it is not set live: several where distributors are started apart
    default: str
    variable: str  #: of the environment


def environment_of(settings: Settings) -> dict[str, str]:
    """What a distributor's environment says of each live setting, as it stands in its presence."""
    return {PRESENCE_PREFIX + name: live_text(name, getattr(settings, name)) for name in LIVE}


async def live_settings(redis: Redis, keys: Keys, settings: Settings) -> list[LiveSetting]:
    """Each live setting, by name.

    Args:
        redis: any client that answers in bytes.
        keys: of the cell.
        settings: what the environment is taken to say while no distributor lives to tell.
    """
    set_live = await read_settings(redis, keys)
    told = await _environments(redis, keys) or [environment_of(settings)]
    found: list[LiveSetting] = []
    for name in LIVE:
        otherwise = tuple(sorted({one[PRESENCE_PREFIX + name] for one in told}))
        default = live_text(name, getattr(Settings(), name))
        value, source = " | ".join(otherwise), _source(otherwise, default)
        if name in set_live:
            value, source = set_live[name], "live"
        found.append(LiveSetting(name, value, source, otherwise, default, variable_of(name)))
    return found


def _source(otherwise: tuple[str, ...], default: str) -> Source:
    return "default" if otherwise == (default,) else "environment"


async def _environments(redis: Redis, keys: Keys) -> list[dict[str, str]]:
    """What each distributor that lives says of its environment."""
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
