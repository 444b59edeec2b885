"""The help of a command: choices are listed in words, and example lines are never wrapped, so they can be copied."""

from __future__ import annotations

from typing import Any

import click
from typer.core import TyperCommand


class Command(TyperCommand):
    """A command whose help fits a narrow terminal without cutting a choice or an example."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
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
