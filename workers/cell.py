"""What every worker holds of its cell: the connection, the keys, the scripts, the settings."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from coord.config import Settings
from coord.connection import connect_worker
from coord.keys import Keys
from workers.transitions import Scripts


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """One namespace on one server. ``redis`` repeats no command by itself."""

    redis: Redis
    keys: Keys
    settings: Settings
    scripts: Scripts
    url: str

    @classmethod
    def open(cls, url: str, settings: Settings, *, name: str | None = None) -> WorkerContext:
        """A cell on the server at ``url``; connects when first used."""
        redis = connect_worker(url, settings, name=name)
        keys = Keys(settings.namespace)
        return cls(redis, keys, settings, Scripts(redis, keys, settings), url)
