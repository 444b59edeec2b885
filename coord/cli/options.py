"""The settings of a command: its options over the environment; a wrong one is named as it was typed."""

from __future__ import annotations

from typing import Any

from coord.config import Settings, load, option_of


def settings_of(*, redis_url: str | None, namespace: str | None, **others: Any) -> Settings:
    """The settings, with these options; None means not given.

    Raises:
        ConfigError: an option or a variable does not fit; names it.
    """
    if redis_url:
        from coord.connection import check_url  # a Redis client, which every command needs that comes here

        check_url(redis_url, option_of("redis_url"))
    return load(redis_url=redis_url, namespace=namespace, **others)
