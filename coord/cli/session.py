"""The session of a command: its settings, and an open ``Client`` whose errors say what to do.

``ask`` does one thing with the client. ``act_on_each`` acts on several ids, one after the other, and reports each: an
id that is refused does not stop the others; its error is printed, and the exit code is that of the first one. With one
id, an error is raised as in any other command. If the cell is unavailable, the command stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from msgspec import Struct

from coord.cli.exit_codes import ExitCode, error_fields, sentence
from coord.cli.output import hint, write_items, write_line
from coord.config import Settings, load, option_of
from coord.errors import CoordError, ServerUnfit, Unavailable

if TYPE_CHECKING:
    from coord import Client

T = TypeVar("T")

#: Seconds to wait for the server: a person is waiting, and a script can retry.
REACH_S = 5.0
#: Seconds after which a command says that it waits.
SILENCE_S = 1.0


def settings_of(*, redis_url: str | None, namespace: str | None, **others: Any) -> Settings:
    """Return the settings of a command: its options take precedence over the environment; None means not given.

    Raises:
        ConfigError: an option or a variable is invalid; names it.
    """
    if redis_url:
        from coord.connection import check_url  # imports the Redis client, which every command with a URL needs

        check_url(redis_url, option_of("redis_url"))
    return load(redis_url=redis_url, namespace=namespace, **others)


def ask(
    work: Callable[[Client], Awaitable[T]],
    *,
    redis_url: str | None = None,
    namespace: str | None = None,
    warns_of_empty: bool = True,
) -> T:
    """Run ``work`` with an open client and return its result.

    Args:
        work: a function of the client, such as ``lambda client: client.task(task_id)``; Ctrl-C cancels it.
        redis_url: the option of that name.
        namespace: the option of that name.
        warns_of_empty: print a hint if a namespace other than the default is empty.

    Raises:
        CoordError: a setting is invalid, Redis is unavailable or refuses a command, or ``work`` raised it.
    """
    settings = settings_of(redis_url=redis_url, namespace=namespace)
    is_named = warns_of_empty and settings.namespace != Settings().namespace

    async def warned(client: Client) -> T:
        if is_named:
            await _warn_of_empty(client)
        return await work(client)

    return asyncio.run(_ask(warned, settings))


async def _ask(work: Callable[[Client], Awaitable[T]], settings: Settings) -> T:
    from coord.background import cancel_and_wait

    working = asyncio.create_task(_work(work, settings))
    try:
        # Not awaited directly: Ctrl-C cancels once, and one cancel may get lost in there (see ``cancel_and_wait``).
        await asyncio.wait({working})
    except asyncio.CancelledError:
        await cancel_and_wait(working)
        raise
    return working.result()


async def _work(work: Callable[[Client], Awaitable[T]], settings: Settings) -> T:
    from redis.exceptions import RedisError

    from coord import Client
    from coord.connection import locate, read_failure, safe_url
    from coord.context import acting_for

    url, settings = locate(settings)
    acting_for.set(operator())
    async with await _opened(Client(url, settings=settings, reach_s=REACH_S), safe_url(url)) as client:
        try:
            return await work(client)
        except RedisError as error:
            raise read_failure(error, safe_url(url)) from error


async def _opened(client: Client, place: str) -> Client:
    """Open a client; after a second without an answer print a hint that it waits."""
    client.connection.refused_is_final = True
    waiting = f"waiting up to {REACH_S:g} s for Redis at {place}"
    late = asyncio.get_running_loop().call_later(SILENCE_S, hint, waiting)
    try:
        await client.open()
    finally:
        late.cancel()
    return client


async def _warn_of_empty(client: Client) -> None:
    """Print a hint if the namespace is empty: it may be mistyped, and a list of nothing would look like an answer."""
    with contextlib.suppress(ServerUnfit):  # a user who may submit and not read
        if await client.is_empty():
            hint(empty_sentence(client.settings.namespace))


def empty_sentence(namespace: str) -> str:
    """Return the sentence about a namespace without a cell."""
    return (
        f"namespace '{namespace}' is empty: no worker has started in it and nothing was submitted to it; "
        "check --namespace and COORD_NAMESPACE"
    )


def operator() -> str:
    """Return who runs this command, for the log: user@host."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # the user of the process has no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"[:128]


class Acted(Struct, frozen=True):
    """The effect of a command on one id."""

    item: Any  #: for ``--json``
    line: str  #: for people
    code: ExitCode = ExitCode.OK


def act_on_each(
    ids: Sequence[str],
    act: Callable[[Client, str], Awaitable[Acted]],
    *,
    id_field: str,
    json: bool,
    redis_url: str | None,
    namespace: str | None,
) -> None:
    """Act on each id once, in order; print a line for each, or with ``json`` one list of all.

    Args:
        ids: as typed; a repeated id counts once.
        act: acts on one id.
        id_field: name of the id in the JSON of an error: ``task_id``.
        json: print JSON.
        redis_url: the option of that name.
        namespace: the option of that name.

    Raises:
        CoordError: there is only one id, and it is refused; or the cell is unavailable.
        typer.Exit: an id was refused, or its outcome is open.
    """
    wanted = list(dict.fromkeys(ids))
    items: list[Any] = []
    codes: list[int] = []

    async def work(client: Client) -> None:
        for each in wanted:
            try:
                acted = await act(client, each)
            except CoordError as error:
                if len(wanted) == 1 or isinstance(error, Unavailable):
                    raise
                items.append({id_field: each, "error": error_fields(error)})
                codes.append(error.exit_code)
                if not json:
                    print(sentence(error), file=sys.stderr, flush=True)
            else:
                items.append(acted.item)
                codes.append(acted.code)
                if not json:
                    write_line(acted.line)

    try:
        ask(work, redis_url=redis_url, namespace=namespace)
    finally:
        if json and items:  # also after an error: what was done, was done
            write_items(items)
    failed = [code for code in codes if code]
    if failed:
        raise typer.Exit(failed[0])
