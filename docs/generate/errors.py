"""The reference of the errors, from the classes in ``coord/errors.py``."""

from __future__ import annotations

from coord import errors
from coord.cli.exit_codes import ExitCode
from coord.errors import CoordError
from docs.generate.markdown import block, code, prose, table


def reference() -> str:
    """Return the tree of the classes, and a table with the values of each."""
    exits = ", ".join(f"{code.value} `{code.name}`" for code in ExitCode)
    rows = (
        (f"`{one.__name__}`", code(own_code(one)), str(one.http_status), str(one.exit_code), summary(one))
        for one, _ in walk(CoordError)
    )
    return "\n".join(
        (
            "## Tree\n",
            block("\n".join("  " * depth + one.__name__ for one, depth in walk(CoordError))),
            "## Values\n",
            f"The exit codes of the command line: {exits}.\n",
            table(("class", "code", "HTTP status", "exit code", "meaning"), rows),
            "## Classes\n",
            *(f"```{{eval-rst}}\n.. autoexception:: coord.errors.{one.__name__}\n```\n" for one, _ in walk(CoordError)),
        )
    )


def walk(root: type[CoordError], depth: int = 0) -> list[tuple[type[CoordError], int]]:
    """Return a class and all below it, each with its depth, in the order of the source."""
    below = [one for one in root.__subclasses__() if one.__module__ == errors.__name__]
    return [(root, depth), *(found for one in below for found in walk(one, depth + 1))]


def own_code(error: type[CoordError]) -> str:
    """Return the code of a class; empty for a group, which is never raised."""
    return error.code if "code" in vars(error) else ""


def summary(error: type[CoordError]) -> str:
    """Return the docstring of a class in one line."""
    return prose(" ".join((error.__doc__ or "").split()))
