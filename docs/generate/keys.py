"""The reference of the Redis keys, from the data dictionary in ``coord/keys.py``."""

from __future__ import annotations

import re
from collections.abc import Iterator

from coord import keys
from docs.generate.markdown import code, prose, table

BORDER = re.compile(r"^=+ +=+ +=+$")
#: A row's first line: names, type, the begin of its text.
FIRST = re.compile(r"^(\S.*?) +(stream|hash|set|zset|string|list) +(.*)$")


def reference() -> str:
    """Return a section for each table of the dictionary."""
    parts: list[str] = []
    for heading, rows in sections():
        title, _, rest = heading.partition(", ")
        parts.append(f"## {title}\n\n{rest[:1].upper()}{rest[1:]}.\n")
        parts.append(table(("key", "type", "content"), ((_names(row[0]), row[1], prose(row[2])) for row in rows)))
    return "\n".join(parts)


def sections() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield the line above each table, and its rows: names, type, text."""
    inside = False
    heading, paragraph = "", ""
    rows: list[tuple[str, str, str]] = []
    for line in (keys.__doc__ or "").splitlines():
        if BORDER.match(line):
            if inside:
                yield heading, rows
            inside, heading, rows, paragraph = not inside, paragraph, [], ""
        elif inside:
            first = FIRST.match(line)
            if first:
                rows.append((first[1], first[2], first[3]))
            else:
                names, kind, text = rows[-1]
                rows[-1] = (names, kind, f"{text} {line.strip()}")
        else:
            paragraph = f"{paragraph} {line}".strip() if line else paragraph if paragraph and not line else ""
            paragraph = line or paragraph


def _names(names: str) -> str:
    return " ".join(code(name) for name in names.split(", "))
