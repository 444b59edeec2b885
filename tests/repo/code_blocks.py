"""Which test runs a block of code in a document, or why none does: comments that the readers of a document do not see.

    <!-- run: tests/system/test_example.py::test_it -->       the block below this line is run by that test
    <!-- not run: it needs Docker -->                         the block below this line is run by none
    <!-- run python plain: tests/system/test_example.py -->   the same for all blocks of these languages on the page
    <!-- not run json: examples of bodies -->

A block without a language is ``plain``. A comment above a block takes precedence over one for the page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.repo.documents import Block, blocks

COMMENT = re.compile(r"^<!-- (run|not run)((?: \w+)*): (.+) -->$", re.MULTILINE)
PLAIN = "plain"


class Note(NamedTuple):
    """What a comment says of a block."""

    is_run: bool
    text: str  #: the test, or the reason


def notes(document: Path) -> list[tuple[Block, Note | None]]:
    """Return every block of a document with what its comments say; None if they say nothing."""
    text = document.read_text()
    above: dict[int, Note] = {}
    of_page: dict[str, Note] = {}
    for found in COMMENT.finditer(text):
        note = Note(found[1] == "run", found[3])
        if found[2]:
            of_page |= dict.fromkeys(found[2].split(), note)
        else:
            above[text[: found.start()].count("\n") + 1] = note
    # The first line of code is two below the comment: the fence is between them.
    return [(one, above.get(one.line - 2) or of_page.get(one.language or PLAIN)) for one in blocks(document)]


def unused(document: Path) -> list[str]:
    """Return the comments of a document that no block is below, or of a language that it does not have."""
    text = document.read_text()
    found = blocks(document)
    languages, lines = {one.language or PLAIN for one in found}, {one.line - 2 for one in found}
    return [
        one[0]
        for one in COMMENT.finditer(text)
        if not (set(one[2].split()) <= languages if one[2] else text[: one.start()].count("\n") + 1 in lines)
    ]


def blocks_run_by(document: Path, test: str) -> list[Block]:
    """Return the blocks of a document that a test runs, as their comments say."""
    found = [block for block, note in notes(document) if note == Note(is_run=True, text=test)]
    assert found, f"{document.name} has no block with <!-- run: {test} -->"
    return found
