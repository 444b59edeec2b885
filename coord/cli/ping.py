"""``coord agents ping``: ask agents whether they answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coord.cli.agents import check_receiver
from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.output import duration, write_fields, write_json, write_line
from coord.cli.parse import Duration
from coord.cli.session import ask
from coord.errors import ConfigError
from coord.models.messages import InquiryName

if TYPE_CHECKING:
    from coord import Client


def ping(
    agent_id: Annotated[str, typer.Argument(metavar="AGENT", help="Id of the agent.", show_default=False)],
    *,
    info: Annotated[bool, typer.Option("--info", help="Ask what the agent is.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Ask what the agent does now.")] = False,
    timeout: Annotated[
        float,
        typer.Option(click_type=Duration(above=True), metavar="TIME", help="Time to wait.", show_default="5s"),
    ] = 5.0,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Ask an agent whether it answers; prints how long the reply took.

    The request takes the way of every message: a router, the inbox of the agent, and back. The SDK of the agent
    answers, so no handler is needed.

    Exit code 1: the agent does not exist, or did not reply in time; 3: no router answered.

    Examples:
        coord agents ping ocr-1
        coord agents ping ocr-1 --stats --timeout 2s
    """
    if info and stats:
        raise ConfigError("--info and --stats exclude each other: choose one")
    op: InquiryName = "info" if info else "stats" if stats else "ping"

    async def work(client: Client) -> tuple[dict[str, Any], float]:
        await check_receiver(client, agent_id)
        began = time.monotonic()
        reply = await client.ping(agent_id, op, timeout=timeout)
        return reply, (time.monotonic() - began) * 1000

    reply, took_ms = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_json(reply | {"took_ms": round(took_ms, 3)})
    elif op == "ping":
        write_line(f"{agent_id} replied in {duration(took_ms)}")
    else:
        write_fields({name: value for name, value in reply.items() if name != "op"} | {"took": duration(took_ms)})
