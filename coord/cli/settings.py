"""``coord settings``: what distributors obey while they run."""

from __future__ import annotations

from typing import Annotated

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl, group, register
from coord.cli.output import write_json, write_line, write_table
from coord.cli.session import ask
from coord.config import LIVE
from coord.errors import ConfigError

Name = Annotated[str, typer.Argument(help=f"One of: {', '.join(LIVE)}.", show_default=False)]


def show(
    name: Annotated[str | None, typer.Argument(help=f"One of: {', '.join(LIVE)}; default: all.")] = None,
    *,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show the settings that can be set live: what holds now, whether that was set so, and what holds otherwise.

    Examples:
        coord settings show
        coord settings show health_threshold --json
    """
    show_settings(name, json=json, redis_url=redis_url, namespace=namespace)


def set_setting(
    name: Name,
    value: Annotated[str, typer.Argument(help="The value.", show_default=False)],
    *,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Set one live; every distributor obeys within a second, and after a restart too.

    Examples:
        coord settings set health_threshold 0.7
    """
    ask(lambda client: client.admin.set_setting(name, value), redis_url=redis_url, namespace=namespace)
    show_settings(name, json=json, redis_url=redis_url, namespace=namespace)


def reset(name: Name, *, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None) -> None:
    """Give one back to the environment of the distributors.

    Examples:
        coord settings reset strategy
    """
    ask(lambda client: client.admin.set_setting(name, None), redis_url=redis_url, namespace=namespace)
    show_settings(name, json=json, redis_url=redis_url, namespace=namespace)


settings = group("settings", "What distributors obey while they run.")
register(settings, show)
register(settings, set_setting, "set")
register(settings, reset)


def show_settings(name: str | None, *, json: bool, redis_url: str | None, namespace: str | None) -> None:
    """Print one live setting, or all (``None``).

    Raises:
        ConfigError: there is none of this name; names those that there are.
    """
    if name is not None and name not in LIVE:
        raise ConfigError(f"{name!r} cannot be set live, only {', '.join(LIVE)}")
    found = [
        one
        for one in ask(lambda client: client.admin.live_settings(), redis_url=redis_url, namespace=namespace)
        if name in {None, one.name}
    ]
    if json:
        write_json(found if name is None else found[0])
        return
    if name is None:
        columns = ("setting", "value", "set by", "otherwise", "default", "variable")
        rows = [
            (one.name, one.value, one.source, " | ".join(one.otherwise), one.default, one.variable) for one in found
        ]
        write_table(columns, rows)
        return
    (one,) = found
    where = {"live": "set live", "environment": f"set by {one.variable}", "default": "the default"}[one.source]
    write_line(f"{one.name}: {one.value} ({where})")
