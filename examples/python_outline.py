"""An agent that outlines a Python file: its classes, functions and imports, and how much of it has docstrings.

    python examples/python_outline.py --id outline-1

Its tasks are of type ``python_outline``, with the payload ``{"root": "/some/folder", "path": "a/file/below/it.py"}``.
A file with a syntax error is a permanent failure: a retry would give the same error.
"""

from __future__ import annotations

import argparse
import ast
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from coord import Agent, NonRetryable
from coord.errors import CoordError

#: Up to Python 3.12, two threads that build syntax trees at the same time share one count of the depth, and one of them
#: fails with "AST constructor recursion depth mismatch".
PARSER = threading.Lock()
HOLDS_STATEMENTS = ast.stmt | ast.ExceptHandler | ast.match_case
Function = ast.FunctionDef | ast.AsyncFunctionDef


class File(msgspec.Struct):
    """A task's payload."""

    root: str
    path: str  #: below root


def outline(content: bytes) -> dict[str, Any]:
    """Return what a Python source defines and imports; raises the errors of ``ast.parse``."""
    with PARSER:
        tree = ast.parse(content)
    nodes = list(_statements(tree))
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    functions = [node for node in nodes if isinstance(node, Function)]
    methods = [node for owner in classes for node in owner.body if isinstance(node, Function)]
    public: list[ast.Module | ast.ClassDef | Function] = [
        tree,
        *(node for node in [*classes, *functions] if not node.name.startswith("_")),
    ]
    longest = max(functions, key=_length, default=None)
    return {
        "classes": len(classes),
        "functions": len(functions) - len(methods),
        "methods": len(methods),
        "imports": sorted({name for node in nodes for name in _imported(node)}),
        # The module itself, and every public class, function and method.
        "public": len(public),
        "documented": sum(ast.get_docstring(node, clean=False) is not None for node in public),
        "longest_function": longest and {"name": longest.name, "line": longest.lineno, "lines": _length(longest)},
    }


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the module and every statement in it; expressions define and import nothing."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += (child for child in ast.iter_child_nodes(node) if isinstance(child, HOLDS_STATEMENTS))


def _length(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _imported(node: ast.AST) -> list[str]:
    """Return the packages that a statement imports; a relative import has none."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level and node.module:
        return [node.module.partition(".")[0]]
    return []


def handle(file: File) -> dict[str, Any]:
    """Handle one task."""
    try:
        return outline((Path(file.root) / file.path).read_bytes())
    except OSError as error:
        raise NonRetryable("unreadable", f"{file.path}: {error.strerror}") from None
    except SyntaxError as error:
        raise NonRetryable("unparsable", f"{file.path}:{error.lineno or 1}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes; nested too deeply
        raise NonRetryable("unparsable", f"{file.path}:1: {str(error) or 'too complex for the parser'}") from None


def main() -> None:
    """Run the agent until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Outline Python files.")
    parser.add_argument("--id", required=True, help="id of this agent, such as outline-1")
    warnings.simplefilter("ignore", SyntaxWarning)  # warnings about the examined files are irrelevant
    warnings.simplefilter("ignore", DeprecationWarning)
    # One thread parses while the other reads its file.
    agent = Agent(parser.parse_args().id, agent_type="worker", capabilities=["python_outline"], capacity=2)
    agent.task("python_outline")(handle)
    agent.run()


if __name__ == "__main__":
    try:
        main()
    except CoordError as error:  # Redis is unavailable, or the id is invalid
        sys.exit(f"python_outline: {error}")
