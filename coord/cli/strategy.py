"""``coord strategy``: how the best agent is chosen."""

from __future__ import annotations

from typing import Annotated

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl, group, register
from coord.cli.output import write_json, write_line
from coord.cli.session import ask
from coord.cli.settings import show_settings


def show(*, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None) -> None:
    """Show how agents are chosen, for tasks that name no strategy of their own, and where that is set.

    Examples:
        coord strategy show
    """
    show_settings("strategy", json=json, redis_url=redis_url, namespace=namespace)


def set_strategy(
    name: Annotated[str, typer.Argument(help="The strategy.", show_default=False)],
    *,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Choose agents so from now on; every distributor obeys within a second.

    An unknown one is answered with those that there are. `coord settings reset strategy` takes it back.

    Examples:
        coord strategy set round_robin
    """
    ask(lambda client: client.admin.set_setting("strategy", name), redis_url=redis_url, namespace=namespace)
    if json:
        write_json({"strategy": name})
    else:
        write_line(f"strategy: {name}")


strategy = group("strategy", "How the best agent is chosen.")
register(strategy, show)
register(strategy, set_strategy, "set")
