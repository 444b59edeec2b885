"""``coord keys``: create, list and revoke the keys of the HTTP API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl, group, register
from coord.cli.output import age, duration, hint, write_items, write_json, write_line, write_table
from coord.cli.parse import Duration
from coord.cli.session import Acted, act_on_each, ask
from coord.models.api_keys import ApiKey, CallerRole

if TYPE_CHECKING:
    from coord import Client


def create(
    *,
    role: Annotated[CallerRole, typer.Option(help="What its holder may do.")] = CallerRole.CLIENT,
    agent: Annotated[
        str | None, typer.Option(metavar="ID", help="With the role agent: the only agent that it may act for.")
    ] = None,
    name: Annotated[str, typer.Option(metavar="TEXT", help="Whom it is for.")] = "",
    lifetime: Annotated[
        float | None,
        typer.Option(
            click_type=Duration(1, 315_360_000),
            metavar="TIME",
            help="Time for which it is valid.",
            show_default="until it is revoked",
        ),
    ] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Create a key of the HTTP API, and print it once: the cell stores only its digest.

    A gateway with COORD_GATEWAY_SECURITY=on needs it in the header `Authorization: Bearer KEY` or `X-API-Key: KEY`.

    Examples:
        coord keys create --role admin --name alice
        coord keys create --role agent --agent ocr-1 --lifetime 90d
    """
    key, record = ask(
        lambda client: client.admin.create_key(role, agent_id=agent, name=name, lifetime=lifetime),
        redis_url=redis_url,
        namespace=namespace,
    )
    if json:
        write_json({"key": key, "record": record})
    else:
        write_line(key)
        hint(f"this is the key '{record.key_id}' with the role {record.role}, shown once")


def list_keys(*, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None) -> None:
    """List the keys of the HTTP API, also those that have expired.

    Examples:
        coord keys list
        coord keys list --json | jq -r '.items[] | select(.used_at == null) | .key_id'
    """

    async def work(client: Client) -> tuple[list[ApiKey], int]:
        return await client.admin.keys(), await client.server_time()

    found, now = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_items(found)
    elif found:
        write_table(
            ("key", "role", "agent", "name", "age", "last use", "expires in"), [_row(key, now) for key in found]
        )
    else:
        write_line("no keys")


def revoke(
    key_ids: Annotated[
        list[str], typer.Argument(metavar="KEY...", help="Ids of the keys, from `coord keys list`.", show_default=False)
    ],
    *,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Revoke keys of the HTTP API, and the JWTs that were issued for them. Every gateway refuses them within a second.

    Exit code 1: a key does not exist.

    Examples:
        coord keys revoke 0123456789ab
    """

    async def act(client: Client, key_id: str) -> Acted:
        await client.admin.revoke_key(key_id)
        return Acted({"key_id": key_id, "key": "revoked"}, f"{key_id}: revoked")

    act_on_each(key_ids, act, id_field="key_id", json=json, redis_url=redis_url, namespace=namespace)


def _row(key: ApiKey, now: int) -> tuple[str, ...]:
    used = "never" if key.used_at is None else f"{age(key.used_at, now)} ago"
    expires = "never"
    if key.expires_at is not None:
        expires = duration(key.expires_at - now) if key.expires_at > now else "expired"
    return key.key_id, key.role, key.agent_id or "", key.name, age(key.created_at, now), used, expires


keys = group("keys", "Create, list and revoke the keys of the HTTP API.")
register(keys, create)
register(keys, list_keys, "list")
register(keys, revoke)
