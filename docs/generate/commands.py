"""The reference of the command line, from the commands themselves."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

from docs.generate.markdown import block, code, table


def reference() -> str:
    """Return a section for each command: help, usage, arguments, options, examples."""
    return "\n".join(section(name, command) for name, command in commands())


def commands() -> Iterator[tuple[str, Any]]:
    """Yield each command with its full name, groups before what is in them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # typer imports what click calls deprecated
        import click

        from coord.cli.app import app

        waiting: list[tuple[str, Any]] = [("coord", app)]
        while waiting:
            name, command = waiting.pop(0)
            yield name, command
            if isinstance(command, click.Group):
                context = click.Context(command)
                subcommands = [
                    (f"{name} {sub}", command.get_command(context, sub)) for sub in command.list_commands(context)
                ]
                waiting = [*subcommands, *waiting]


def section(name: str, command: Any) -> str:
    """Return the section of one command."""
    import click

    context = click.Context(command, info_name=name)
    lines = [f"## {name}\n", escaped(command.help or "") + "\n"]
    lines.append(block(" ".join([name, *command.collect_usage_pieces(context)])))
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    options = [one for one in command.get_params(context) if isinstance(one, click.Option)]
    if arguments:
        shown = [(code(one.make_metavar(context)), escaped(getattr(one, "help", "") or "")) for one in arguments]
        lines.append(table(("argument", "meaning"), shown))
    if options:
        settable = [(spelling(one, context), escaped(one.help or ""), default(one, context)) for one in options]
        lines.append(table(("option", "meaning", "default"), settable))
    if isinstance(command, click.Group):
        subs = (
            (code(f"{name} {sub}"), summary(command.get_command(context, sub)))
            for sub in command.list_commands(context)
        )
        lines.append(table(("command", "meaning"), subs))
    examples = [line.strip() for line in (command.epilog or "").replace(r"\[", "[").splitlines()]
    typed = [line for line in examples if line not in {"", "Examples:"}]
    if typed:
        lines.append("Examples:\n\n" + block("\n".join(typed), "sh"))
    return "\n".join(lines)


def summary(command: Any) -> str:
    """Return the first sentence of a command's help."""
    return escaped(re.split(r"(?<=[.!?])\s", command.help or "")[0])


def spelling(option: Any, context: Any) -> str:
    """Return all names of an option, with its value."""
    value = "" if option.is_flag or option.count else f" {option.make_metavar(context)}"
    return " ".join(code(f"{one}{value}") for one in (*option.opts, *option.secondary_opts))


def default(option: Any, context: Any) -> str:
    """Return the default of an option as its help shows it; empty without one."""
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return escaped(option.show_default)
    value = option.get_default(context, call=False)
    if not value or callable(value):
        return ""
    shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(getattr(value, "value", value))
    return code("on" if value is True else shown)


def escaped(text: str) -> str:
    """Return a help text as Markdown: what would be markup there is itself."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([<>*_\[\]{}])", r"\\\1", part) for part in parts)
