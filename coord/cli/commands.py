"""The conventions of all commands: how one is written, its common options, its help.

A command is one function: it makes one call with an open client and prints the result.

    def show(
        agent_id: Annotated[str, typer.Argument(help="Id of the agent.")],
        *,
        json: AsJson = False,
        redis_url: RedisUrl = None,
        namespace: Namespace = None,
    ) -> None:
        # here its docstring: the help, see ``register``
        record = ask(lambda client: client.agent(agent_id), redis_url=redis_url, namespace=namespace)
        if json:
            write_json(record)
        else:
            write_fields({"agent": record.agent_id, "status": record.status})

    agents = group("agents", "Show agents, drain, resume and remove them.")
    register(agents, show)

and ``"coord.cli.agents:agents"`` in the table of ``app.py``; a command without a group is listed there too.

* ``ask`` (``coord.cli.session``) runs one coroutine with an open ``Client``; every error of Redis becomes a
  ``CoordError`` with the address and the next step.
* ``write_json``, ``write_line``, ``write_table``, ``write_fields`` (``coord.cli.output``) print. With ``--json``: one
  document, the models of ``coord.models`` as they are; a stream of data is one object per line.
* A command raises a ``CoordError`` and does not print it: ``main`` prints one line on standard error and exits with the
  ``exit_code`` of its class (``coord.errors``). For another exit code a command raises ``typer.Exit(ExitCode.NO)``.
* Data goes to standard output, everything else (progress, hints: ``hint``) to standard error.
* An option that takes a time has ``click_type=Duration()`` (``coord.cli.parse``) and ``metavar="TIME"``.
* Imports at the top of a command's file are fast: the standard library, typer, ``coord.config``, ``coord.errors``,
  ``coord.models``, and these files. Slow modules (Redis, rich, the SDK) are imported where they are used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Annotated, Any, cast

import click
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from coord.errors import ConfigError
from coord.interrupts import ends_on_interrupt
from coord.suggestions import closest


class Command(TyperCommand):
    """A command whose help fits a narrow terminal without cutting a choice or an example."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        names = [parameter.name for parameter in self.params]
        if "redis_url" in names:
            self.params.insert(names.index("redis_url"), _new_cell_option())
        for parameter in self.params:
            if isinstance(parameter.type, click.Choice) and parameter.metavar is None:
                _list_choices(parameter, parameter.type)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the help, then the examples as they are: the terminal may wrap them, the text does not."""
        epilog, self.epilog = self.epilog, None
        try:
            super().format_help(ctx, formatter)
        finally:
            self.epilog = epilog
        if epilog:
            lines = [line.strip() for line in epilog.replace(r"\[", "[").splitlines() if line.strip()]
            click.echo("\n".join(f" {line}" for line in lines) + "\n")


def _list_choices(parameter: click.Parameter, choices: click.Choice[Any]) -> None:
    """Move the choices from the narrow column of types, where they break anywhere, to the help, between words."""
    parameter.metavar = (parameter.name or "value").rpartition("_")[2].upper()
    choices.name = parameter.metavar.lower()  # which typer shows for an argument that is called like its type
    described: Any = parameter  # options and arguments of typer have a help, parameters of click have none
    help_text = (described.help or "").rstrip(".")
    described.help = f"{help_text}. One of: {', '.join(map(str, choices.choices))}.".removeprefix(". ")


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis-url", metavar="URL", help="URL of the Redis server.", show_default="COORD_REDIS_URL, or coord up's"
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", metavar="NAME", help="First part of every key.", show_default="coord, or coord up's"),
]

#: The key of ``--cell`` in the context of a command line.
_CELL = "coord.cell"


def cell_option() -> str | None:
    """Return the value of ``--cell`` in this command line; None: not given, or no command line is running."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.meta.get(_CELL)


def complete_cell(incomplete: str) -> list[str]:
    """Return the names of cells that begin so, for the completion of a shell; nothing if the file is invalid."""
    from coord.cells import LOCAL, read_cells

    try:
        names = [*read_cells().cells, LOCAL]
    except ConfigError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def _remember_cell(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:  # the option may stand before the command, and not after it
        context.meta[_CELL] = value


def _new_cell_option() -> TyperOption:
    """Return ``--cell``: it names what ``--redis-url`` and ``--namespace`` name together, so each command has it."""
    return TyperOption(
        param_decls=["--cell"],
        metavar="NAME",
        help="Cell of the configuration file (`coord cells list`).",
        show_default="COORD_CELL, or the file's default",
        expose_value=False,
        callback=_remember_cell,
        autocompletion=lambda _context, _words, incomplete: list(complete_cell(incomplete)),
    )


_SETTINGS: dict[str, Any] = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


class Group(TyperGroup):
    """A command with subcommands. Each is built when it is used: to build all takes longer than most of them run.

    An unknown one is answered with the nearest once; Click and Typer would both suggest it.

    Attributes:
        synonyms: another name for a subcommand -> the subcommand, for the error about it.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._builders: dict[str, Callable[[], click.Command]] = {}
        self.synonyms: Mapping[str, str] = {}

    def add(self, name: str, build: Callable[[], click.Command]) -> None:
        """Add a subcommand.

        Args:
            name: as typed.
            build: returns it; called at its first use.
        """
        self._builders[name] = build

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the subcommands, in the order of the help."""
        return list(self._builders)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a subcommand; None if there is no such one."""
        if cmd_name in self._builders and cmd_name not in self.commands:
            with ends_on_interrupt():  # it may have to be imported
                self.commands[cmd_name] = self._builders[cmd_name]()
        return self.commands.get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the subcommand that the arguments name.

        Raises:
            click.UsageError: there is none; suggests the nearest.
        """
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            if (meant := self.synonyms.get(args[0])) is not None:
                step = f"`{ctx.command_path} {meant}` does that."
            else:
                near = closest(args[0], self.list_commands(ctx))
                step = f"Did you mean {near!r}?" if near else f"There are {', '.join(self.list_commands(ctx))}."
            raise click.UsageError(f"No such command {args[0]!r}. {step}", ctx) from None


def root(options: Callable[..., None], summary: str) -> Group:
    """Return the command ``coord`` itself, with completion for the shells that typer supports.

    Args:
        options: a function whose parameters are the options before the command.
        summary: its help, one sentence.
    """
    app = typer.Typer(name="coord", cls=Group, **_SETTINGS)
    app.callback(help=summary)(options)
    command = cast("Group", typer.main.get_command(app))
    command.params.insert(0, _new_cell_option())
    return command


def group(name: str, summary: str, *, synonyms: Mapping[str, str] | None = None) -> Group:
    """Return a command with subcommands, such as ``coord tasks``.

    Args:
        name: as typed.
        summary: its help, one sentence.
        synonyms: another name for a subcommand -> the subcommand; the error about an unknown command names it.
    """
    made = Group(name=name, help=summary, no_args_is_help=True, context_settings=_SETTINGS["context_settings"])
    made.synonyms = synonyms or {}
    return made


def register(parent: Group, command: Callable[..., None], name: str | None = None) -> None:
    """Make a function a subcommand; its docstring is the help, the lines under ``Examples:`` come last.

    Args:
        parent: the result of ``group``.
        command: the function; ``_`` in its name is typed as ``-``.
        name: as typed, if it differs from the name of the function.
    """
    name = name or _typed(command.__name__)
    parent.add(name, lambda: _build(name, command))


def register_place(parent: Group, place: str, *, runs_another: bool = False) -> None:
    """Make what a module holds a subcommand; the module is imported when it is used.

    Args:
        parent: the result of ``root``.
        place: ``MODULE:NAME`` of a function, as in ``register``, or of a ``Group``.
        runs_another: True if its first argument and everything after it is the command of another program.
    """
    module, _, attribute = place.partition(":")
    name = _typed(attribute)

    def build() -> click.Command:
        found = getattr(import_module(module), attribute)
        return found if isinstance(found, Group) else _build(name, found, runs_another=runs_another)

    parent.add(name, build)


def _typed(name: str) -> str:
    return name.replace("_", "-")


def _build(name: str, command: Callable[..., None], *, runs_another: bool = False) -> click.Command:
    summary, _, examples = (inspect.getdoc(command) or "").partition("\n\nExamples:\n")
    # A paragraph is as wide as the terminal, not as the source.
    summary = "\n\n".join(" ".join(paragraph.split()) for paragraph in summary.split("\n\n"))
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    settings = {"allow_interspersed_args": False} if runs_another else None
    app = typer.Typer(add_completion=False)
    app.command(name, cls=Command, help=summary, epilog=_epilog(lines) if lines else None, context_settings=settings)(
        command
    )
    return typer.main.get_command(app)  # the command alone, since the app has one


def _epilog(lines: list[str]) -> str:
    # A blank line between two lines keeps typer from joining them; brackets would be markup.
    return "\n\n".join(["Examples:", *(f"  {line}".replace("[", r"\[") for line in lines)])
