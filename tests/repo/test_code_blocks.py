"""Every block of code in README.md and docs is run by a test, or says why not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.repo.code_blocks import notes, unused
from tests.repo.documents import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: A reason is a sentence, not a word.
SHORTEST = 12


def functions_of(file: Path) -> dict[str, bool]:
    """The test functions of a file; True for one that is long."""
    tree = ast.parse(file.read_text())
    found = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {
        one.name: "pytest.mark.long" in map(ast.unparse, one.decorator_list)
        for one in found
        if one.name.startswith("test_")
    }


def complaint(document: Path, test: str) -> str:
    """What is wrong with the test that runs a block; empty if nothing is.

    It exists, it is not long, and its file names the document: it reads the blocks from there.
    """
    name, _, function = test.partition("::")
    file = ROOT / name
    if not re.fullmatch(r"tests/\w+/test_\w+\.py", name) or not file.is_file():
        return f"there is no {name}"
    found = functions_of(file)
    if function and function not in found:
        return f"{name} has no {function}"
    if found[function] if function else all(found.values()):
        return f"{test} is long, so the gate does not run it"
    return "" if document.stem in file.read_text() else f"{name} does not name {document.name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_is_run_or_says_why_not(document: Path) -> None:
    """By a comment above it, or one for all blocks of its language on the page."""
    wrong: list[str] = []
    for block, note in notes(document):
        where = f"{document.relative_to(ROOT)}:{block.line} ({block.language or 'plain'})"
        if note is None:
            wrong.append(f"{where}: no test runs it, and it does not say why: see tests/repo/code_blocks.py")
        elif note.is_run and (why := complaint(document, note.text)):
            wrong.append(f"{where}: {why}")
        elif not note.is_run and len(note.text) < SHORTEST:
            wrong.append(f"{where}: {note.text!r} is no reason")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_fence_is_read(document: Path) -> None:
    """None is indented or has another mark; each comment is used; a reason names only tests that exist."""
    text = document.read_text()
    fences = re.findall(r"^ *(?:```.*|~~~+ *\w*)$", text, re.MULTILINE)  # not the marks below a line of a traceback
    assert len(fences) == 2 * len(notes(document))
    assert [one for one in fences if one.startswith((" ", "~"))] == []
    assert unused(document) == []
    named = {path for _, note in notes(document) if note for path in re.findall(r"tests/[\w/]+\.py", note.text)}
    assert [path for path in named if not (ROOT / path).is_file()] == []
