"""``coord agents enrol``, ``rotate``, ``revoke`` and ``tokens``: the tokens of agents."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.exit_codes import ExitCode
from coord.cli.output import duration, hint, write_items, write_json, write_line, write_table
from coord.cli.parse import Duration
from coord.cli.session import Acted, act_on_each, ask
from coord.errors import ConfigError

if TYPE_CHECKING:
    from coord import Client
    from coord.queries import TokenState

AgentId = Annotated[str, typer.Argument(metavar="AGENT", help="Id of the agent.", show_default=False)]
Into = Annotated[
    Path | None,
    typer.Option("--into", metavar="FILE", help="Write the token to this file, for --token-file, and print nothing."),
]


def enrol(
    agent_id: AgentId,
    *,
    into: Into = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Give an agent its first token, and print it once: the cell stores only its digest.

    Where the workers run with COORD_REQUIRE_TOKENS=on, the agent needs it: COORD_AGENT_TOKEN, or `coord agent
    --token-file`. Exit code 1: the agent has a token already.

    Examples:
        coord agents enrol ocr-1
        coord agents enrol ocr-1 --into /etc/coord/ocr-1.token
    """
    _hand_out(
        agent_id,
        lambda client, token: client.admin.enrol(agent_id, token=token),
        into=into,
        json=json,
        redis_url=redis_url,
        namespace=namespace,
    )


def rotate(
    agent_id: AgentId,
    *,
    grace: Annotated[
        float,
        typer.Option(
            click_type=Duration(0, 2_592_000),
            metavar="TIME",
            help="Time for which the earlier token stays valid.",
            show_default="1h",
        ),
    ] = 3_600.0,
    into: Into = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Replace the token of an agent, and print the new one once.

    An agent that reads its token from a file takes a new one without a restart. Exit code 1: the agent has no token.

    Examples:
        coord agents rotate ocr-1 --into /etc/coord/ocr-1.token
        coord agents rotate ocr-1 --grace 0
    """  # fmt: skip
    _hand_out(
        agent_id,
        lambda client, token: client.admin.rotate(agent_id, token=token, grace=grace),
        into=into,
        json=json,
        redis_url=redis_url,
        namespace=namespace,
    )


def revoke(
    agent_ids: Annotated[list[str], typer.Argument(metavar="AGENT...", help="Ids of the agents.", show_default=False)],
    *,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Revoke the tokens of agents at once, also earlier ones that are still valid.

    The processes of these agents stop with their next heartbeat. `coord agents remove` gives their tasks to others at
    once. Exit code 1: an agent has no token.

    Examples:
        coord agents revoke ocr-1 && coord agents remove ocr-1
    """

    async def act(client: Client, agent_id: str) -> Acted:
        await client.admin.revoke(agent_id)
        return Acted({"agent_id": agent_id, "token": "revoked"}, f"{agent_id}: revoked")

    act_on_each(agent_ids, act, id_field="agent_id", json=json, redis_url=redis_url, namespace=namespace)


def tokens(
    *,
    missing: Annotated[bool, typer.Option("--missing", help="Only agents without a token.")] = False,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """List the registered agents, and whether they have a token.

    Exit code 1: with --missing, an agent has none.

    Examples:
        coord agents tokens
        coord agents tokens --missing && echo 'tokens can be required'
    """

    async def work(client: Client) -> tuple[list[TokenState], int]:
        return await client.admin.tokens(), await client.server_time()

    states, now = ask(work, redis_url=redis_url, namespace=namespace)
    found = [state for state in states if not (missing and state.has_token)]
    if json:
        write_items(found)
    elif found:
        rows = [(state.agent_id, "yes" if state.has_token else "no", _earlier(state, now)) for state in found]
        write_table(("agent", "token", "earlier token"), rows)
    else:
        write_line("every registered agent has a token" if states else "no agents")
    if missing and found:
        raise typer.Exit(ExitCode.NO)


def _earlier(state: TokenState, now: int) -> str | None:
    left = (state.earlier_until or 0) - now
    return f"valid for {duration(left)} more" if left > 0 else None


def _hand_out(
    agent_id: str,
    change: Callable[[Client, str], Awaitable[str]],
    *,
    into: Path | None,
    json: bool,
    redis_url: str | None,
    namespace: str | None,
) -> None:
    """Make a token, let the registry accept it, and print it or write it to a file.

    The file is written first under another name, so that no token is accepted that cannot be handed out, and none is
    replaced that is still in use.
    """
    from coord.agent_token import new_token

    token = new_token()
    waiting = None if into is None else _write_beside(into, token)
    try:
        ask(lambda client: change(client, token), redis_url=redis_url, namespace=namespace)
        if waiting is not None and into is not None:
            waiting.replace(into)
    finally:
        if waiting is not None:
            waiting.unlink(missing_ok=True)
    if into is not None:
        token = ""
        hint(f"wrote the token of '{agent_id}' to {into}")
    if json:
        write_json({"agent_id": agent_id, "token": token or None, "file": None if into is None else str(into)})
    elif token:
        write_line(token)
        hint(f"this is the token of '{agent_id}', shown once; COORD_AGENT_TOKEN or --token-file gives it to the agent")


def _write_beside(into: Path, token: str) -> Path:
    """Write a token to a new file in the same folder, which only this user may read.

    Raises:
        ConfigError: the file cannot be written.
    """
    waiting = into.with_name(f".{into.name}.new")
    try:
        waiting.unlink(missing_ok=True)
        waiting.touch(mode=0o600, exist_ok=False)
        waiting.write_text(f"{token}\n", encoding="ascii")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"--into {into}: {why}; name a file in a folder that you may write to") from None
    return waiting
