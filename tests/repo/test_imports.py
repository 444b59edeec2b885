"""The import graph of coord and workers has no circle; the command line and the gateway read through the client."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.repo.documents import ROOT

#: Imports that may close a circle, with the reason.
ALLOWED: dict[tuple[str, str], str] = {}
#: Files of the command line and the gateway that use the client's Redis connection directly, with the reason.
RAW_ACCESS = {
    "coord/gateway/inboxes.py": "claims and lease checks of an agent, which a client has not",
    "coord/cli/doctor.py": "the doctor reads keys that no client needs",
    "coord/cli/fsck.py": "fsck compares keys that no method of the client reads",
    "coord/gateway/backend.py": "it counts the requests of its callers, which no other program does",
    "coord/cli/acl.py": "users belong to the server and not to a cell",
}


def modules() -> dict[str, Path]:
    """Return every module of the product by its dotted name."""
    found: dict[str, Path] = {}
    for package in ("coord", "workers"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the product modules that a module imports, also in functions and for type checkers only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert not node.level, "no relative imports"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name in known:
                    yield name
                elif node.module in known:
                    yield node.module


def graph() -> dict[str, set[str]]:
    """Return module -> modules that it imports."""
    known = modules()
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        edges[name] = {other for other in imported(ast.parse(path.read_text()), known) if other != name}
        edges[name] -= {other for one, other in ALLOWED if one == name}
    return edges


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the sets of modules that reach each other (strongly connected components, by Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            component = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(component) > 1:
                found.append(sorted(component))

    for name in edges:
        if name not in index:
            visit(name)
    return found


def test_a_circle_is_found() -> None:
    """Directly or through others."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_no_circle() -> None:
    """Also none that is hidden in a function or behind TYPE_CHECKING."""
    assert circles(graph()) == []


def test_the_edge_reads_through_the_client() -> None:
    """The client offers what its own command line and gateway need, so other programs find it there as well."""
    used: set[str] = set()
    for package in ("coord/cli", "coord/gateway"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text())
            called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
            for node in ast.walk(tree):
                is_raw = isinstance(node, ast.Attribute) and node.attr in {"redis", "keys"} and id(node) not in called
                if is_raw:
                    used.add(str(path.relative_to(ROOT)))
    assert used == set(RAW_ACCESS)
