"""docs/settings.md, generated from ``coord/config.py``; ``scripts/settings_page`` writes it."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from msgspec import Meta

from coord import config
from tests.repo.documents import ROOT

PAGE = ROOT / "docs" / "settings.md"
HEAD = """# Settings

<!-- Generated from coord/config.py by scripts/settings_page. Do not edit. -->

Every setting of coord, by group. A process reads its settings from environment variables when it starts. An empty
value counts as unset. An unknown `COORD_…` variable or an invalid value is an error: the process does not start, and
the error names the nearest known setting or the expected value. In a program with a `Client` or an `Agent`, an unknown
variable is a warning. Variables that Kubernetes sets for a service called `coord` or `coord-…` are ignored
(`COORD_SERVICE_HOST`, `COORD_PORT=tcp://…`, `COORD_GATEWAY_PORT=tcp://…`).

Options of a command take precedence over the environment, and the environment over a named cell of the configuration
file; see [command-line.md](command-line.md#cells).

These settings can be changed at run time with `coord settings set`: {live}.
The value set at run time takes precedence over the environment. `coord settings show` prints the values in effect.

The names that the predecessor used are also read; if both are set, the `COORD_…` name takes precedence:

{aliases}

[operating.md](operating.md#settings) describes the settings that are changed most often.
"""
#: Units of numbers that the suffix of their name does not show.
COUNTED = {
    "batch": "facts",
    "max_attempts": "attempts",
    "max_releases": "returns",
    "default_capacity": "tasks",
    "missed_beats": "heartbeats",
    "capacity": "tasks",
    "inbox_critical_extra": "entries",
    "hop_limit": "answers",
    "conversation_messages": "messages",
    "gateway_requests": "requests",
    "gateway_listeners": "listeners",
    "push_connections": "connections",
    "health_threshold": "number",
    "gateway_port": "port number",
}
SUFFIXES = {
    "_ms": "milliseconds",
    "_s": "seconds",
    "_bytes": "bytes",
    "_entries": "entries",
    "_tasks": "tasks",
    "_rate": "a minute",
}
#: Suffix of a name -> larger units, and the value that equals one of each.
LARGER = {
    "_ms": (("h", 3_600_000), ("min", 60_000), ("s", 1_000)),
    "_s": (("d", 86_400), ("h", 3_600), ("min", 60)),
    "_bytes": (("GiB", config.GIB), ("MiB", config.MIB), ("KiB", config.KIB)),
}


@dataclass(frozen=True)
class Group:
    """The settings under one heading of ``Settings``."""

    title: str
    text: str
    settings: dict[str, str]  #: field -> its comment


def page() -> str:
    """Return the page for the settings as they are now."""
    live = ", ".join(f"`{field}`" for field in config.LIVE)
    aliases = "\n".join(f"* `{alias}` for {_variable(field)}" for alias, field in config.ALIASES.items())
    parts = [HEAD.format(live=live, aliases=aliases)]
    hints = get_type_hints(config.Settings, include_extras=True)
    for group in groups():
        table = ["| variable | unit or values | default | meaning and reason |", "|---|---|---|---|"]
        for field, reason in group.settings.items():
            table.append(f"| {_variable(field)} | {unit(field, hints[field])} | {default(field)} | {_reason(reason)} |")
        parts.append("\n\n".join(filter(None, [f"## {group.title}", group.text, "\n".join(table)])) + "\n")
    return "\n".join(parts)


def groups() -> list[Group]:
    """Return the groups of ``Settings`` with their settings, in the order of the source."""
    found: list[Group] = []
    comment: list[str] = []
    for line in map(str.strip, inspect.getsource(config.Settings).splitlines()):
        if line.startswith("# "):
            title, _, text = line.removeprefix("# ").partition(": ")
            found.append(Group(title, text[:1].upper() + text[1:], {}))
        elif line.startswith("#: "):
            comment.append(line.removeprefix("#: "))
        elif field := re.match(r"(\w+): .* = ", line):
            found[-1].settings[field[1]] = " ".join(comment)
            comment = []
    return found


def unit(field: str, hint: Any) -> str:
    """Return the unit of a setting with its bounds, or the values that it can have."""
    if hint is bool:
        return "`true` or `false`"
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    meta = next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Meta)), None)
    if meta is None or meta.pattern is not None:
        return "text"
    counted = COUNTED.get(field) or next(name for suffix, name in SUFFIXES.items() if field.endswith(suffix))
    if meta.le is not None:
        return f"{counted}, {meta.ge} to {meta.le}"
    return f"{counted}, above {meta.gt}" if meta.ge is None else f"{counted}, at least {meta.ge}"


def default(field: str) -> str:
    """Return the default as the value of its variable, and in a larger unit where that is easier to read."""
    value = getattr(config.Settings(), field)
    if value is None:
        return "unset"
    text = str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")
    larger = next((units for suffix, units in LARGER.items() if field.endswith(suffix)), ())
    readable = next((f" ({value / size:g} {name})" for name, size in larger if value >= size and value % size == 0), "")
    return f"`{text}`{readable}"


def _variable(field: str) -> str:
    return f"`{config.variable_of(field)}`"


def _reason(text: str) -> str:
    fields = config.Settings.__struct_fields__
    return re.sub(r"``(.+?)``", lambda code: _variable(code[1]) if code[1] in fields else f"`{code[1]}`", text)


if __name__ == "__main__":
    PAGE.write_text(page())
