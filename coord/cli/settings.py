"""``coord settings`` and ``coord strategy``: show and change settings of running distributors."""

from __future__ import annotations

from typing import Annotated

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl, group, register
from coord.cli.output import write_items, write_json, write_line, write_table
from coord.cli.parse import StrategyName
from coord.cli.session import ask
from coord.config import LIVE
from coord.errors import ConfigError
from coord.models.strategies import STRATEGY_NAMES

Name = Annotated[str, typer.Argument(help=f"Name of the setting: {', '.join(LIVE)}.", show_default=False)]


def show(
    name: Annotated[str | None, typer.Argument(help=f"Name of the setting: {', '.join(LIVE)}; default: all.")] = None,
    *,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show live settings: the value, where it was set, and the value without a live one.

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
    """Set a live setting; every distributor applies it within a second, and keeps it after a restart.

    Examples:
        coord settings set health_threshold 0.7
    """
    ask(lambda client: client.admin.set_setting(name, value), redis_url=redis_url, namespace=namespace)
    show_settings(name, json=json, redis_url=redis_url, namespace=namespace)


def reset(name: Name, *, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None) -> None:
    """Reset a setting to its value in the environment of the distributors.

    Examples:
        coord settings reset strategy
    """
    ask(lambda client: client.admin.set_setting(name, None), redis_url=redis_url, namespace=namespace)
    show_settings(name, json=json, redis_url=redis_url, namespace=namespace)


settings = group("settings", "Show and change settings of running distributors.")
register(settings, show)
register(settings, set_setting, "set")
register(settings, reset)


def show_settings(name: str | None, *, json: bool, redis_url: str | None, namespace: str | None) -> None:
    """Print one live setting, or all (``None``).

    Raises:
        ConfigError: there is no live setting of this name; lists them.
    """
    if name is not None and name not in LIVE:
        raise ConfigError(f"{name!r} cannot be set live, only {', '.join(LIVE)}")
    found = [
        setting
        for setting in ask(lambda client: client.admin.live_settings(), redis_url=redis_url, namespace=namespace)
        if name in {None, setting.name}
    ]
    if json and name is None:
        write_items(found)
        return
    if json:
        write_json(found[0])
        return
    if name is None:
        columns = ("setting", "value", "set by", "otherwise", "default", "variable")
        rows = [
            (
                setting.name,
                setting.value,
                setting.source,
                " | ".join(setting.otherwise),
                setting.default,
                setting.variable,
            )
            for setting in found
        ]
        write_table(columns, rows)
        return
    (setting,) = found
    sources = {"live": "set live", "environment": f"set by {setting.variable}", "default": "the default"}
    write_line(f"{setting.name}: {setting.value} ({sources[setting.source]})")


def show_strategy(*, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None) -> None:
    """Show the placement strategy for tasks without a strategy of their own, and where it was set.

    Examples:
        coord strategy show
    """
    show_settings("strategy", json=json, redis_url=redis_url, namespace=namespace)


def set_strategy(
    name: Annotated[
        str,
        typer.Argument(
            click_type=StrategyName(),
            metavar="NAME",
            help=f"Name of the strategy: {', '.join(STRATEGY_NAMES)}, or one that is installed.",
            show_default=False,
        ),
    ],
    *,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Set the placement strategy; every distributor applies it within a second.

    An unknown name is refused, with the nearest one. `coord settings reset strategy` undoes it.

    Examples:
        coord strategy set round_robin
    """
    ask(lambda client: client.admin.set_setting("strategy", name), redis_url=redis_url, namespace=namespace)
    if json:
        write_json({"strategy": name})
    else:
        write_line(f"strategy: {name}")


strategy = group("strategy", "Show and set the strategy that chooses the best agent.")
register(strategy, show_strategy, "show")
register(strategy, set_strategy, "set")
