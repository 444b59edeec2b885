"""docs/guarantees.md: every promise names the tests that inject its faults, and they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "guarantees.md"
#: A link to a test: its name, and its file below ``tests``.
TEST = re.compile(r"\[`(\w+)`\]\(\.\./tests/([\w/]+\.py)\)")


def rows() -> list[list[str]]:
    """The rows of all tables without their heads: promise, fault, tests."""
    lines = [line.strip("|").split("|") for line in DOCUMENT.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    return [row for row in cells if row[0] != "promise" and set(row[0]) != {"-"}]


def named() -> list[tuple[str, str]]:
    """Every test that is named, with its file, once."""
    return list(dict.fromkeys(TEST.findall(DOCUMENT.read_text())))


@pytest.mark.parametrize(("test", "file"), named())
def test_a_test_that_is_named_exists(test: str, file: str) -> None:
    """As a function or method of that file that pytest would collect, and that runs without ``--long``."""
    tree = ast.parse((TESTS / file).read_text())
    found = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    (function,) = [one for one in found if one.name == test]
    assert test.startswith("test_")
    marks = [ast.unparse(one) for one in function.decorator_list]
    assert "pytest.mark.long" not in marks


def test_every_promise_has_a_fault_and_a_test() -> None:
    """Each row names both; a promise goes on in the rows below it whose first cell is empty."""
    assert len(rows()) > 20
    for row in rows():
        assert len(row) == 3, row
        assert row[1], row
        assert TEST.fullmatch(row[2].split(" ")[0]), row
    assert rows()[0][0]
