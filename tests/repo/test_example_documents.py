"""docs/llm-agents.md and the READMEs of examples show code of the examples as it is, and name each example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.repo.documents import ROOT, blocks, links

EXAMPLES = ROOT / "examples"
READMES = sorted(EXAMPLES.rglob("README.md"))
REQUIREMENTS = sorted(EXAMPLES.rglob("requirements.txt"))


def name_of(path: Path) -> str:
    """The file in a test's name."""
    return path.relative_to(EXAMPLES).as_posix()


def test_each_python_block_is_part_of_an_example() -> None:
    """Word for word, so that what the document shows is what the tests run."""
    sources = [path.read_text() for path in EXAMPLES.rglob("*.py")]
    shown = [block for block in blocks(ROOT / "docs" / "llm-agents.md") if block.language == "python"]
    assert len(shown) > 5
    assert [block.line for block in shown if not any(block.text in source for source in sources)] == []


def test_the_index_names_each_example() -> None:
    """Every folder and file of examples, and no other."""
    listed = {link.partition("/")[0] for link in links(EXAMPLES / "README.md") if not link.startswith("..")}
    there = {path.name for path in EXAMPLES.iterdir() if not path.name.startswith(("__", "README"))}
    assert listed == there


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_a_link_of_a_readme_leads_somewhere(readme: Path) -> None:
    """Every link into this repository."""
    assert [link for link in links(readme) if not (readme.parent / link).exists()] == []


@pytest.mark.parametrize("requirements", REQUIREMENTS, ids=name_of)
def test_each_requirement_has_a_version(requirements: Path) -> None:
    """An example that worked once works next year."""
    lines = [line for line in requirements.read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)] == []
    assert len(lines) > 2
