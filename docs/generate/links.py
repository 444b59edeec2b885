"""Links from a page to other parts of the repository.

The site does not know where its repository is, so a link to a file of it is a download, and a link to a folder is text.
MyST does the first; this does the second, for a folder that exists.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx import addnodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
#: What a link of another kind begins with.
OUTSIDE = ("http://", "https://", "mailto:")


def leave_repository_links(app: Sphinx, doctree: nodes.document) -> None:
    """Replace each link to a folder of the repository, or to a Markdown file outside ``docs``, by its text."""
    docs = Path(app.srcdir)
    page = Path(app.env.doc2path(app.env.docname))
    for link in list(doctree.findall(addnodes.pending_xref)):
        target = str(link.get("reftarget", "")).partition("#")[0]
        if link.get("reftype") != "myst" or not target or target.startswith(OUTSIDE):
            continue
        # MyST has a link to Markdown without its suffix, and an absolute path where that is outside ``docs``.
        bases = (page.parent / target, docs / target.lstrip("/"))
        places = [base.with_name(base.name + suffix) for base in bases for suffix in ("", ".md")]
        found = next((place.resolve() for place in places if place.exists()), None)
        if found is not None and found.is_relative_to(ROOT) and (found.is_dir() or not found.is_relative_to(docs)):
            link.replace_self(link.children)
