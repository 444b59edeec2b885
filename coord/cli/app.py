"""The table of commands, and their errors with ``--json``."""

from __future__ import annotations

import platform
import sys
from typing import Annotated

import click
import msgspec
import typer

from coord import __version__
from coord.cli.commands import register, register_place, root
from coord.cli.exit_codes import ExitCode, error_fields
from coord.errors import CoordError

#: The code of an error in the command line itself.
USAGE = "usage_error"


def version() -> None:
    """Show the version of coord and of its Python interpreter."""
    print(f"coord {__version__} (Python {platform.python_version()})")


def _show_version(is_given: bool) -> None:
    if is_given:
        version()
        raise typer.Exit


def _options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""


app = root(_options, "Coordinates fleets of agents on Redis Streams: chooses the best agent for each task.")


def run_with_json() -> int:
    """Run the command in the arguments of this process; return its exit code.

    An error is one object on standard error: ``{"error": {"code": …, "message": …}}``.
    """
    try:
        code = app(standalone_mode=False)
    except CoordError as error:
        return _write(error_fields(error), error.exit_code)
    except click.ClickException as error:
        fields = {"code": USAGE, "message": error.format_message()}
        if isinstance(error, click.UsageError) and error.ctx is not None:
            fields["next"] = f"`{error.ctx.command_path} --help` shows what is valid"
        return _write(fields, error.exit_code)
    except click.Abort:
        return ExitCode.INTERRUPTED
    return code if isinstance(code, int) else ExitCode.OK


def _write(fields: dict[str, str], code: int) -> int:
    print(msgspec.json.encode({"error": fields}).decode(), file=sys.stderr, flush=True)
    return code


for place in (
    "coord.cli.up:up",
    "coord.cli.processes:worker",
    "coord.cli.processes:gateway",
    "coord.cli.ps:ps",
    "coord.cli.queues:queues",
    "coord.cli.queues:pools",
    "coord.cli.events:events",
    "coord.cli.stats:stats",
    "coord.cli.audit:audit",
    "coord.cli.fsck:fsck",
    "coord.cli.acl:acl",
):
    register_place(app, place)
register(app, version)
register_place(app, "coord.cli.agent:agent", runs_another=True)
for place in (
    "coord.cli.tasks:tasks",
    "coord.cli.agents:agents",
    "coord.cli.messages:messages",
    "coord.cli.links:links",
    "coord.cli.keys:keys",
    "coord.cli.settings:strategy",
    "coord.cli.settings:settings",
    "coord.cli.dead:dead",
    "coord.cli.simulate:trace",
    "coord.cli.simulate:simulate",
):
    register_place(app, place)
