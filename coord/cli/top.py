"""``coord top``: a live screen of the cell on a terminal."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli.commands import Namespace, RedisUrl
from coord.cli.parse import Duration
from coord.cli.session import ask
from coord.errors import ConfigError

if TYPE_CHECKING:
    from coord import Client


def top(
    *,
    interval: Annotated[
        float, typer.Option(click_type=Duration(0.2, 60), metavar="TIME", help="Time between two refreshes.")
    ] = 1.0,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show agents, queues, tasks and processes of a cell, live; drain, resume, cancel and explain with single keys.

    It reconnects automatically. It reads only what is on the screen, so it is light on Redis. It needs the package
    textual (the extra `top`): pip install textual. For scripts use coord ps, coord queues and coord tasks list with
    --json.

    Keys: 1 to 4 change the pane, / filters, e explains, d drains, r resumes, c cancels, ? shows all keys, q quits.

    Examples:
        coord top
        coord top --interval 5s --cell production
    """
    if find_spec("textual") is None:
        raise ConfigError("coord top needs the package textual; install it: pip install textual")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("coord top needs a terminal; for scripts use `coord ps --json` and `coord queues --json`")

    async def work(client: Client) -> None:
        from coord.top.app import TopApp

        await TopApp(client, place_of(client), interval=interval).run_async()

    _silence()
    ask(work, redis_url=redis_url, namespace=namespace)


def place_of(client: Client) -> str:
    """Return the name of the cell and the address of its server."""
    from coord.connection import locate, safe_url

    settings = client.settings
    name = settings.namespace if settings.cell is None else f"{settings.cell} ({settings.namespace})"
    return f"{name}  {safe_url(locate(settings)[0])}"


def _silence() -> None:
    """Log nothing: lines would appear in the middle of the screen, which shows an outage itself."""
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
