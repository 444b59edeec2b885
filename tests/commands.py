"""Command lines as files and documents name them, parsed by the programs' own parsers and not run."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from workers import __main__ as workers_main
from workers import presence

#: python -m MODULE -> its parser.
MODULES: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "workers": workers_main.arguments,
    "workers.presence": presence.arguments,
}
#: What a person may type for the interpreter of the environment.
PYTHONS = frozenset({"python", "python3", ".venv/bin/python"})


def parse(line: Sequence[str]) -> list[str]:
    """The command that a line names (``["coord", "up"]``, ``["python", "-m", "workers"]``), if its parser takes it.

    Raises:
        AssertionError: no such command, or its parser refuses the line; says what the parser says.
    """
    program, *arguments = line
    if program.rpartition("/")[2] == "coord":
        return ["coord", *_parse_coord(arguments)]
    if program in PYTHONS and arguments[:1] == ["-m"] and arguments[1] in MODULES:
        return [program, "-m", _parse_module(arguments[1], arguments[2:])]
    raise AssertionError(f"no known command: {' '.join(line)}")


def is_known(line: Sequence[str]) -> bool:
    """Whether a line names a program that ``parse`` knows."""
    program, *arguments = line
    return program.rpartition("/")[2] == "coord" or (
        program in PYTHONS and arguments[:1] == ["-m"] and arguments[1] in MODULES
    )


def _parse_coord(arguments: Sequence[str]) -> list[str]:
    with warnings.catch_warnings():
        # typer 0.21 imports names from click that click 8.5 calls deprecated; it keeps a group's own words in one.
        warnings.simplefilter("ignore", DeprecationWarning)
        import click

        from coord.cli.app import app

        command: Any = app
        context = None
        names: list[str] = []
        rest = list(arguments)
        try:
            while True:
                context = command.make_context(names[-1] if names else "coord", rest, parent=context)
                if not isinstance(command, click.Group):
                    return names
                name, found, rest = command.resolve_command(context, [*context.protected_args, *context.args])
                assert name is not None
                assert found is not None
                command = found
                names.append(name)
        except click.exceptions.Exit:  # --help and --version end there
            return names
        except click.ClickException as error:
            raise AssertionError(f"coord {' '.join(arguments)}: {error.format_message()}") from None


def _parse_module(module: str, arguments: Sequence[str]) -> str:
    try:
        MODULES[module]().parse_args(list(arguments))
    except SystemExit as ended:
        if ended.code:
            raise AssertionError(f"python -m {module} {' '.join(arguments)} is refused") from None
    return module
