"""The common voice: what all commands share, so that who knows one knows them all.

A command is one function: it asks the cell once, and prints what it heard.

    def show(
        agent_id: Annotated[str, typer.Argument(help="The agent.")],
        *,
        json: AsJson = False,
        redis_url: RedisUrl = None,
        namespace: Namespace = None,
    ) -> None:
        # here its docstring: the help, see ``register``
        found = ask(lambda client: client.agent(agent_id), redis_url=redis_url, namespace=namespace)
        if json:
            write_json(found)
        else:
            write_fields({"agent": found.agent_id, "status": found.status})

    agents = group("agents", "Look at agents, and take them out of service.")
    register(agents, show)

and ``app.add_typer(agents)`` in ``app.py``; a command without a group is named in the table there.

* ``ask`` (``coord.cli.session``) runs one coroutine with an open ``Client``; every error of Redis becomes a
  ``CoordError`` that names the place and the next step.
* ``write_json``, ``write_line``, ``write_table``, ``write_fields`` (``coord.cli.output``) print. With ``--json``: one
  document, the models of ``coord.models`` as they are; a stream of data is one object a line.
* A ``CoordError`` is raised, never printed: ``main`` tells it in one line on standard error and ends with the exit code
  of its class (``exit_code`` in ``coord.errors``). A command that ends otherwise raises ``typer.Exit(ExitCode.NO)``.
* Data goes to standard output, everything else (progress, hints: ``hint``) to standard error.
* Imports at the top of a command's file are cheap ones: the standard library, typer, ``coord.config``,
  ``coord.errors``, ``coord.models``, and these files. What is slow (Redis, rich, the SDK) is imported where it is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
RedisUrl = Annotated[
    str | None,
    typer.Option("--redis-url", metavar="URL", help="Where Redis is.", show_default="COORD_REDIS_URL, or coord up's"),
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", metavar="NAME", help="First part of every key.", show_default="coord, or coord up's"),
]

_SETTINGS: dict[str, Any] = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


def root() -> typer.Typer:
    """The command ``coord`` itself, with completion for the shells that typer knows."""
    return typer.Typer(name="coord", **_SETTINGS)


def group(name: str, told: str) -> typer.Typer:
    """A command that has commands, such as ``coord tasks``.

    Args:
        name: as it is typed.
        told: one sentence of help.
    """
    return typer.Typer(name=name, help=told, add_completion=False, **_SETTINGS)


def register(
    app: typer.Typer, command: Callable[..., None], name: str | None = None, *, runs_another: bool = False
) -> None:
    """Make a function a command of ``app``; its docstring is the help, the lines under ``Examples:`` are shown last.

    Args:
        app: what ``root`` or ``group`` made.
        command: the function; ``_`` in its name is typed ``-``.
        name: as it is typed, where the function cannot be called so.
        runs_another: its first argument and all that follows is another program's command, options too.
    """
    told, _, examples = (inspect.getdoc(command) or "").partition("\n\nExamples:\n")
    # A paragraph is as wide as the reader's terminal, not as the source.
    told = "\n\n".join(" ".join(paragraph.split()) for paragraph in told.split("\n\n"))
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    settings = {"allow_interspersed_args": False} if runs_another else None
    app.command(name, help=told, epilog=_epilog(lines) if lines else None, context_settings=settings)(command)


def _epilog(lines: list[str]) -> str:
    # A blank line between two keeps typer from joining them; brackets would be markup.
    return "\n\n".join(["Examples:", *(f"  {line}".replace("[", r"\[") for line in lines)])
