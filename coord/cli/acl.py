"""``coord acl``: the least Redis user of a role."""

from __future__ import annotations

import secrets
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.output import hint, write_json, write_line
from coord.cli.session import ask, settings_of
from coord.errors import ConfigError

if TYPE_CHECKING:
    from coord import Client
    from coord.acl import Role

#: Characters of a password that a person chose, at least: its digest can be read by those who may read users.
MIN_PASSWORD = 16


class RoleName(StrEnum):
    """As ``coord.acl.Role``, which is slow to import."""

    AGENT = "agent"
    CLIENT = "client"
    WORKER = "worker"
    GATEWAY = "gateway"
    OPERATOR = "operator"


def acl(
    role: Annotated[RoleName, typer.Argument(help="Who connects.", show_default=False)],
    own_id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="Id of the agent; for other roles, part of the name of the user."),
    ] = None,
    *,
    apply: Annotated[bool, typer.Option("--apply", help="Set the user on the server, and print its password.")] = False,
    password_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="File with the password of the user; - reads standard input.", show_default="random"
        ),
    ] = None,
    keep_password: Annotated[
        bool, typer.Option("--keep-password", help="With --apply: replace only the permissions of the user.")
    ] = False,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Print the Redis user with the least permissions for a role, as a command for redis-cli; or set it.

    Without --apply nothing is sent to the server. Only an administrator may set users. A user lasts until the server
    restarts: ACL SAVE keeps it if the server has an aclfile, CONFIG REWRITE if it has not.

    Examples:
        coord acl agent ocr-1
        coord acl agent ocr-1 --apply
        coord acl worker --apply --password-file worker.password
    """
    from coord.acl import Role, command_line, digest_of_password, rules, user_name

    if keep_password and (not apply or password_file is not None):
        raise ConfigError("--keep-password is for --apply without --password-file")
    settings = settings_of(redis_url=redis_url, namespace=namespace)
    chosen = None if password_file is None else _password_of(password_file)
    if not apply:
        name = user_name(Role(role), settings.namespace, own_id)
        permissions = rules(Role(role), settings.namespace, own_id)
        if json:
            write_json({"user": name, "rules": permissions})
            return
        write_line(command_line(name, ">PASSWORD" if chosen is None else digest_of_password(chosen), permissions))
        if chosen is None:
            hint("replace PASSWORD; or set the user with --apply, which makes a password")
        return
    password = None if keep_password else chosen or secrets.token_urlsafe(24)
    name, permissions = ask(
        lambda client: _apply(client, Role(role), own_id, password), redis_url=redis_url, namespace=namespace
    )
    shown = password if chosen is None else None
    if json:
        write_json({"user": name, "rules": permissions, "password": shown})
    elif shown is not None:
        write_line(shown)
        hint(f"this is the password of the user '{name}', shown once: redis://{name}:PASSWORD@HOST:PORT")
    else:
        write_line(f"set the user '{name}'")
    hint("the user lasts until the server restarts: ACL SAVE keeps it in an aclfile, CONFIG REWRITE in redis.conf")


async def _apply(client: Client, role: Role, own_id: str | None, password: str | None) -> tuple[str, list[str]]:
    from coord.acl import rules, set_user, user_name

    connection = client.connection
    namespace = client.settings.namespace
    name = user_name(role, namespace, own_id)
    database = urlsplit(client.settings.redis_url or "").path.strip("/")
    permissions = rules(role, namespace, own_id, selects=database not in {"", "0"})
    await set_user(connection.redis, name, password, permissions)
    return name, permissions


def _password_of(source: str) -> str:
    """Read a password from a file, or from standard input.

    Raises:
        ConfigError: it cannot be read, or is too short.
    """
    where = "standard input" if source == "-" else source
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--password-file {source}: {getattr(error, 'strerror', None) or error}") from None
    password = text.strip()
    if len(password) < MIN_PASSWORD or any(character.isspace() for character in password):
        raise ConfigError(
            f"--password-file {source}: expected {MIN_PASSWORD} characters or more without spaces in {where}"
        )
    return password
