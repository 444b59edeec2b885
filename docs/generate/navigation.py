"""The site's navigation, from the lists of links on the first page."""

from __future__ import annotations

import re

LINK = re.compile(r"^[*-] \[([^]]+)\]\(([\w/-]+)\.md\)", re.MULTILINE)
SECTION = re.compile(r"^## (.+)\n((?:(?!^## ).*\n)*)", re.MULTILINE)


def toctrees(index: str) -> str:
    """Return a hidden table of contents for each section whose list has links to pages, in their order.

    A page has the title of its link there.
    """
    found = [(section[1], LINK.findall(section[2])) for section in SECTION.finditer(index)]
    return "".join(
        "\n```{toctree}\n:hidden:\n:titlesonly:\n:caption: "
        + title
        + "\n\n"
        + "\n".join(f"{name} <{page}>" for name, page in pages)
        + "\n```\n"
        for title, pages in found
        if pages
    )
