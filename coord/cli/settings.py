"""``coord settings`` and ``coord strategy``: show and change settings of running distributors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl, group, register
from coord.cli.output import moment, write_items, write_json, write_line, write_table
from coord.cli.parse import StrategyName, pairs
from coord.cli.session import ask, operator
from coord.config import LIVE, PER_TYPE, check_live
from coord.errors import ConfigError
from coord.models.strategies import MODIFIERS, STRATEGY_NAMES
from coord.suggestions import not_one_of

if TYPE_CHECKING:
    from coord import Client
    from coord.queries import LiveSetting

#: The columns of ``coord strategy show``.
RULES = ("strategy", *MODIFIERS)

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
    ask(lambda client: client.admin.set_setting(name, value, by=operator()), redis_url=redis_url, namespace=namespace)
    show_settings(name, json=json, redis_url=redis_url, namespace=namespace)


def reset(name: Name, *, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None) -> None:
    """Reset a setting to its value in the environment of the distributors.

    Examples:
        coord settings reset strategy
    """
    ask(lambda client: client.admin.set_setting(name, None, by=operator()), redis_url=redis_url, namespace=namespace)
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
    if name is not None:
        check_live(name)
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


def show_strategy(
    *,
    type_: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="What holds for tasks of this type.", show_default="all"),
    ] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show the placement strategy and the modifiers: of the cell, and of each task type that sets some.

    A task may set its own strategy. It takes precedence over that of its type, and that over the one of the cell.

    Examples:
        coord strategy show
        coord strategy show --type summarize --json
    """

    async def read(client: Client) -> tuple[list[LiveSetting], dict[str, dict[str, str]]]:
        return await client.admin.live_settings(), await client.admin.type_settings()

    live, types = ask(read, redis_url=redis_url, namespace=namespace)
    of_cell = {setting.name: setting.value for setting in live if setting.name in PER_TYPE}
    if type_ is not None:
        types = {type_: of_cell | types.get(type_, {})}
    if json:
        write_json(types[type_] if type_ is not None else {"cell": of_cell, "types": types})
        return
    rows = [] if type_ is not None else [("(all)", *(of_cell[name] for name in RULES))]
    rows += [(task_type, *(values.get(name, "") for name in RULES)) for task_type, values in types.items()]
    write_table(("task type", *RULES), rows)


def set_strategy(
    name: Annotated[
        str | None,
        typer.Argument(
            click_type=StrategyName(),
            metavar="[NAME]",
            help=f"Name of the strategy: {', '.join(STRATEGY_NAMES)}, or one that is installed.",
            show_default=False,
        ),
    ] = None,
    *,
    type_: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="Only for tasks of this type.", show_default="for all"),
    ] = None,
    modifier: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help=f"Turn a modifier on or off, or `reset` it: {', '.join(MODIFIERS)}. Repeatable.",
        ),
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Reset the strategy and all modifiers to what holds otherwise.")
    ] = False,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Set the placement strategy or its modifiers; every distributor applies them within a second.

    An unknown name is refused, with the nearest one. --clear undoes it: the tasks of a type then follow the cell, and
    the cell follows the environment of its distributors.

    Examples:
        coord strategy set round_robin
        coord strategy set predictive --type summarize
        coord strategy set --modifier ejection=off --modifier rare_skills_first=on
        coord strategy set --clear --type summarize
    """
    changes: dict[str, str | None] = {}
    if clear:
        if name is not None or modifier:
            raise ConfigError("--clear resets everything; leave out the strategy and --modifier")
        changes = dict.fromkeys(RULES)
    if name is not None:
        changes["strategy"] = name
    for key, value in pairs(modifier or (), "--modifier").items():
        if key not in MODIFIERS:
            raise ConfigError(not_one_of("--modifier", key, MODIFIERS))
        if value not in {"on", "off", "reset"}:
            raise ConfigError(f"--modifier {key}={value}: expected on, off or reset")
        changes[key] = None if value == "reset" else value
    if not changes:
        raise ConfigError("nothing to set: name a strategy, or use --modifier or --clear")

    async def change(client: Client) -> None:
        for setting, value in changes.items():
            await client.admin.set_setting(setting, value, task_type=type_, by=operator())

    ask(change, redis_url=redis_url, namespace=namespace)
    show_strategy(type_=type_, json=json, redis_url=redis_url, namespace=namespace)


def history(
    *,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of changes.")] = 20,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show who changed strategy, modifiers and other live settings, and when; the latest first.

    Examples:
        coord strategy history
        coord strategy history --limit 100 --json
    """
    changes = ask(lambda client: client.admin.setting_changes(limit), redis_url=redis_url, namespace=namespace)
    if json:
        write_items(changes)
        return
    columns = ("time", "setting", "task type", "value", "before", "by")
    rows = [
        (
            moment(change.at),
            change.name,
            change.task_type or "(all)",
            change.value or "(reset)",
            change.before or "(not set)",
            change.by,
        )
        for change in changes
    ]
    write_table(columns, rows)


strategy = group("strategy", "Show and set the strategy that chooses the best agent.")
register(strategy, show_strategy, "show")
register(strategy, set_strategy, "set")
register(strategy, history)
