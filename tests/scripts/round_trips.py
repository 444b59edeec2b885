"""The commands that a client sends, by round trip."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

#: The name of a command and its first argument.
Command = tuple[str, str]


def round_trips_of(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> list[list[Command]]:
    """Return a list to which each round trip from now on is added, as its commands."""
    trips: list[list[Command]] = []
    send: Any = redis.execute_command
    execute: Any = Pipeline.execute

    async def sent(*args: Any, **options: Any) -> Any:
        trips.append([_command(args)])
        return await send(*args, **options)

    async def executed(pipe: Pipeline, *args: Any, **options: Any) -> Any:
        trips.append([_command(command) for command, _ in pipe.command_stack])
        return await execute(pipe, *args, **options)

    monkeypatch.setattr(redis, "execute_command", sent)
    monkeypatch.setattr(Pipeline, "execute", executed)
    return trips


def _command(args: tuple[Any, ...]) -> Command:
    return str(args[0]), str(args[1]) if len(args) > 1 else ""
