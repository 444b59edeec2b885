"""Markdown for generated pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a ``|`` in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines) + "\n"


def code(text: str) -> str:
    """Return inline code, empty for an empty text."""
    return f"`{text}`" if text else ""


def block(text: str, language: str = "text") -> str:
    """Return a fenced block."""
    return f"```{language}\n{text.strip()}\n```\n"


def prose(docstring: str) -> str:
    """Return a docstring's inline code, which reStructuredText has in double backticks, as Markdown."""
    return docstring.replace("``", "`")
