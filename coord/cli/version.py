"""``coord version``: which coord this is."""

from __future__ import annotations

import platform

import typer

from coord import __version__


def version() -> None:
    """Show the version of coord and of the Python that runs it."""
    print(f"coord {__version__} (Python {platform.python_version()})")


def show_version(asked: bool) -> None:
    """``coord --version``: the same, before any command."""
    if asked:
        version()
        raise typer.Exit
