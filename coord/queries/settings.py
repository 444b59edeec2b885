"""Live settings: the value of each, and whether it was set live or comes from the environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Literal

from msgspec import Struct
from redis.asyncio import Redis

from coord.config import LIVE, PER_TYPE, Settings, live_text, variable_of
from coord.keys import Keys
from coord.models.ids import entry_ms
from coord.models.strategies import Modifier
from coord.models.tasks import Pool
from coord.queries.reads import decode_fields, read_hash

#: Prefix of the fields in a distributor's presence that hold the values of its environment.
PRESENCE_PREFIX = "setting:"
#: Entries of the log read in one round trip.
LOG_STEP = 500


#: Field of a distributor's presence: the strategies of packages beside it, ``name=package``, spaces between.
PACKAGES = "strategies"

Source = Literal["live", "environment", "default"]


class LiveSetting(Struct, frozen=True):
    """The current state of one setting; values as text."""

    name: str
    value: str
    source: Source  #: set live, from the distributors' environment, or coord's default
    otherwise: tuple[str, ...]  #: values without the live one; several if distributors have different environments
    default: str
    variable: str  #: of the environment


class SettingChange(Struct, frozen=True):
    """A change of a live setting."""

    at: int  #: ms since 1970 on the server's clock
    name: str
    task_type: str | None  #: None: for all tasks
    value: str | None  #: None: it was reset
    before: str | None  #: None: it was not set
    by: str  #: who made it: ``user@host`` of the command line, or what the caller gave
    caller: str  #: id of the client; '' if it gave none


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


async def get_modifier_rule(redis: Redis, keys: Keys, settings: Settings, modifier: Modifier) -> Callable[[Pool], bool]:
    """Return whether a modifier is on for the tasks of a pool: by its tasks, else by their type, else by the cell.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        settings: stands for the environment of the distributors while none is present.
        modifier: its name.
    """
    live = await get_live_values(redis, keys)
    environments = await _get_environments(redis, keys) or [environment_fields(settings)]
    # On, if any distributor has it on.
    field = f"{PRESENCE_PREFIX}{modifier}"
    of_cell = live.get(modifier) or max(environment[field] for environment in environments)

    def is_on(pool: Pool) -> bool:
        own: bool | None = None if pool.modifiers is None else getattr(pool.modifiers, modifier)
        return live.get(f"{modifier}:{pool.task_type}", of_cell) == "on" if own is None else own

    return is_on


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


async def get_type_values(redis: Redis, keys: Keys) -> dict[str, dict[str, str]]:
    """Return what operators have set for single types of tasks: task type -> setting -> value as text."""
    return type_values(await get_live_values(redis, keys))


def type_values(live: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the values for single types among all live values: task type -> setting -> value as text."""
    found: dict[str, dict[str, str]] = {}
    for field in sorted(live):
        name, colon, task_type = field.partition(":")
        if colon and name in PER_TYPE:
            found.setdefault(task_type, {})[name] = live[field]
    return found


async def list_setting_changes(redis: Redis, keys: Keys, limit: int) -> list[SettingChange]:
    """Return the latest changes of live settings, the latest first, as far as ``log:control`` holds them."""
    found: list[SettingChange] = []
    until = "+"
    while len(found) < limit:
        entries = await redis.execute_command("XREVRANGE", keys.of("log:control"), until, "-", "COUNT", LOG_STEP)
        for entry_id, raw in entries:
            until = f"({entry_id.decode()}"
            fields = decode_fields(raw)
            if fields.get("type") == "setting.changed" and len(found) < limit:
                found.append(_setting_change(entry_ms(until[1:]), fields))
        if len(entries) < LOG_STEP:
            break
    return found


def _setting_change(at: int, fields: Mapping[str, str]) -> SettingChange:
    caller = fields.get("caller", "")
    return SettingChange(
        at=at,
        name=fields.get("name", ""),
        task_type=fields.get("task_type") or None,
        value=fields.get("value") or None,
        before=fields.get("before") or None,
        by=fields.get("by") or (f"client {caller}" if caller else "unknown"),
        caller=caller,
    )


def package_fields(packages: Mapping[str, str]) -> dict[str, str]:
    """Return the field of a distributor's presence with the packages of its strategies; none if all are coord's."""
    return {PACKAGES: " ".join(f"{name}={package}" for name, package in sorted(packages.items()))} if packages else {}


async def get_strategy_packages(redis: Redis, keys: Keys) -> dict[str, str]:
    """Return which packages provide strategies that are not coord's, where a distributor has them: name -> package."""
    names: list[bytes] = await redis.execute_command("ZRANGE", keys.of("workers:distributor"), 0, -1)
    pipe = redis.pipeline(transaction=False)
    for name in names:
        pipe.hget(keys.worker("distributor", name.decode()), PACKAGES)
    pairs = [pair.partition("=") for raw in await pipe.execute() if raw for pair in raw.decode().split(" ")]
    return {name: package for name, _, package in pairs}


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
