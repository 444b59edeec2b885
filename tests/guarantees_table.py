"""The tests in the tables of docs/guarantees.md, from their markers; ``scripts/guarantees_table`` writes them.

A row begins with an anchor, the name of the guarantee; ``@pytest.mark.guarantee("NAME", …)`` marks each test of it. The
last cell of the row lists these tests.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.repo.documents import ROOT

PAGE = ROOT / "docs" / "guarantees.md"
TESTS = ROOT / "tests"
#: A row: the anchor and the promise, the fault, the tests.
ROW = re.compile(r'^\| <a id="([\w-]+)"></a>(.*?) \| (.*?) \|(.*)\|$', re.MULTILINE)
MARKER = "pytest.mark.guarantee"
LONG = "pytest.mark.long"


class MarkedTest(NamedTuple):
    """A test function that has the marker."""

    file: Path
    name: str
    guarantees: tuple[str, ...]
    is_long: bool

    def link(self) -> str:
        """Return the link to the test, as the page has it."""
        return f"[`{self.name}`](../{self.file.relative_to(ROOT)})"


@cache
def marked_tests() -> tuple[MarkedTest, ...]:
    """Return every test that has the marker, by file and line."""
    found: list[MarkedTest] = []
    for file in sorted(TESTS.rglob("test_*.py")):
        text = file.read_text()
        if MARKER not in text:
            continue
        tree = ast.parse(text)
        of_module = [ast.unparse(one) for one in tree.body if isinstance(one, ast.Assign)]
        is_module_long = any(one.startswith("pytestmark") and LONG in one for one in of_module)
        functions = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
        for function in sorted(functions, key=lambda one: one.lineno):
            names = tuple(
                str(ast.literal_eval(argument))
                for one in function.decorator_list
                if isinstance(one, ast.Call) and ast.unparse(one.func) == MARKER
                for argument in one.args
            )
            if names:
                is_long = is_module_long or LONG in map(ast.unparse, function.decorator_list)
                found.append(MarkedTest(file, function.name, names, is_long))
    return tuple(found)


def proving(guarantee: str) -> list[MarkedTest]:
    """Return the tests of a guarantee."""
    return [one for one in marked_tests() if guarantee in one.guarantees]


def page() -> str:
    """Return the page with the tests of each row as they are marked now."""

    def row(found: re.Match[str]) -> str:
        name, promise, fault, _ = found.groups()
        links = " ".join(one.link() for one in proving(name))
        return f'| <a id="{name}"></a>{promise} | {fault} | {links} |'

    return ROW.sub(row, PAGE.read_text())


if __name__ == "__main__":
    PAGE.write_text(page())
