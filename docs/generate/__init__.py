"""The Sphinx extension of these documents: pages from code, the navigation, links into the repository.

A page of docs/reference says ``<!-- generated: NAME -->`` where the part belongs that is made from code when the site
is built. A repository shows the page without that part; its text says where to look instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from docs.generate import commands, errors, facts, keys, links, navigation, python_names, scripts

if TYPE_CHECKING:
    from sphinx.application import Sphinx

MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
#: Name in a mark -> what stands in its place.
GENERATED: dict[str, Callable[[], str]] = {
    "commands": commands.reference,
    "errors": errors.reference,
    "facts": facts.reference,
    "keys": keys.reference,
    "python": python_names.reference,
    "scripts": scripts.reference,
}


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("env-get-outdated", _outdated)
    app.connect("source-read", _expand)
    app.connect("autodoc-process-docstring", python_names.keep_comment, priority=400)  # before napoleon
    app.connect("doctree-read", links.leave_repository_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _outdated(app: Sphinx, *_changes: object) -> list[str]:
    """Return the pages that are read again with each build, because the code may have changed."""
    return [name for name in app.project.docnames if MARK.search(Path(app.env.doc2path(name)).read_text())]


def _expand(_app: Sphinx, name: str, content: list[str]) -> None:
    """Replace each mark by what it names; add the navigation to the first page."""
    content[0] = MARK.sub(lambda mark: GENERATED[mark[1]](), content[0])
    if name == "index":
        content[0] += navigation.toctrees(content[0])
