"""The reference of the facts, from the Structs in ``coord/models/facts.py``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from msgspec import Struct

from coord.models.facts import SPEAKER, STREAM_FACTS, TYPE_OF
from docs.generate.markdown import code, prose, table
from tests.repo.protocol_document import rows_of


def reference() -> str:
    """Return the streams, then each fact with its fields."""
    streams = ((code(stream), ", ".join(code(TYPE_OF[one]) for one in facts)) for stream, facts in STREAM_FACTS.items())
    parts = ["## Streams\n", table(("stream", "facts"), streams), "## Fields\n"]
    parts += [section(kind) for kind in TYPE_OF]
    return "\n".join(parts)


def section(kind: type[Struct]) -> str:
    """Return the section of one fact."""
    name = TYPE_OF[kind]
    where = ", ".join(code(stream) for stream, facts in STREAM_FACTS.items() if kind in facts)
    token = " Where tokens are required, it needs that of `" + SPEAKER[kind] + "`." if kind in SPEAKER else ""
    reasons = comments(kind)
    rows = ((code(row.name), row.type, shown(row.default), reasons.get(row.name, "")) for row in rows_of(kind))
    about = prose(" ".join((kind.__doc__ or "").split()))
    link = f"[protocol.md](../protocol.md#{name.replace('.', '')})"
    fields = table(("field", "type", "default", "meaning"), rows)
    return f"### `{name}`\n\n{about} In {where}.{token} More: {link}.\n\n{fields}"


def shown(default: str) -> str:
    """Return the default of a field: a word, or a value as code."""
    return default if default in {"required", "none"} else code(default)


def comments(kind: type[Struct]) -> dict[str, str]:
    """Return the ``#:`` comment of each field that has one: behind it, or in the lines before it."""
    module = Path(sys.modules[kind.__module__].__file__ or "").read_text()
    body = module.partition(f"class {kind.__name__}(")[2].partition("\n\n\n")[0]
    found: dict[str, str] = {}
    before: list[str] = []
    for line in body.splitlines()[1:]:
        if line.strip().startswith("#: "):
            before.append(line.strip().removeprefix("#: "))
        elif field := re.match(r"    (\w+): ", line):
            behind = line.partition("#: ")[2]
            if behind or before:
                found[field[1]] = prose(" ".join([*before, behind]).strip())
            before = []
    return found
