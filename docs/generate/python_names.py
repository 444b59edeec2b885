"""The reference of the Python API, from the public names of ``coord``."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, get_args, get_type_hints, is_typeddict

from msgspec import Struct

import coord
from coord.client.admin import Admin
from coord.errors import CoordError

if TYPE_CHECKING:
    from sphinx.application import Sphinx

#: Title -> the names of its section, in this order; a test checks that nothing public is missing.
GROUPS: dict[str, tuple[str, ...]] = {
    "Agents": ("Agent", "Task", "Message", "LinkRequest", "Retryable", "NonRetryable", "Release", "run"),
    "Clients": ("Client", "TaskHandle", "TaskSpec"),
    "Synchronous clients": ("SyncClient", "SyncTaskHandle"),
}
#: Classes of coord that calls return and that are no data.
MORE: tuple[type, ...] = (Admin,)


def reference() -> str:
    """Return a section for each group, documented by autodoc."""
    parts: list[str] = []
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        parts += [directive(name) for name in names]
    parts.append("## Values and options\n")
    parts += [directive_of(found) for found in (*MORE, *values())]
    return "\n".join(parts)


def directive(name: str) -> str:
    """Return autodoc's directive for a public name."""
    found = getattr(coord, name)
    if isinstance(found, type):
        return directive_of(found, f"coord.{name}" if found.__name__ == name else "")
    return f"### {name}\n\n```{{eval-rst}}\n.. autofunction:: coord.{name}\n```\n"


def directive_of(found: type, name: str = "") -> str:
    """Return autodoc's directive for a class; by the name where it is defined, if it has no other."""
    lines = [
        f".. autoclass:: {name or f'{found.__module__}.{found.__qualname__}'}",
        "   :members:",
        "   :inherited-members: object, Struct, Enum, str, dict, tuple, Exception",
    ]
    return f"### {found.__name__}\n\n```{{eval-rst}}\n" + "\n".join(lines) + "\n```\n"


def values() -> list[type]:
    """Return the Structs, enumerations and dictionaries that public calls take and return, and those in them."""
    public = [one for name in without_errors() if isinstance(one := getattr(coord, name), type)]
    known: dict[type, None] = {}
    waiting = [*public, *MORE]
    while waiting:
        for one in mentioned(waiting.pop(0)):
            if one not in known and one not in public and one.__module__.startswith("coord.") and is_data(one):
                known[one] = None
                waiting.append(one)
    return sorted(known, key=lambda one: (one.__module__, one.__qualname__))


def is_data(found: type) -> bool:
    """Return True for a class that holds values, has a public name and is no error."""
    return not found.__name__.startswith("_") and (
        issubclass(found, Struct | Enum | tuple) or is_typeddict(found) or is_dataclass(found)
    )


def mentioned(found: type) -> set[type]:
    """Return the classes in the annotations of a class and of its public methods."""
    hints = list(get_type_hints(found).values())
    for name, member in inspect.getmembers(found):
        function = member.fget if isinstance(member, property) else member
        if not name.startswith("_") and inspect.isfunction(function):
            hints += get_type_hints(function).values()
    return {one for hint in hints for one in flat(hint) if isinstance(one, type)}


def flat(hint: Any) -> list[Any]:
    """Return a type and all its arguments."""
    return [hint, *(found for one in get_args(hint) for found in flat(one))]


def keep_comment(_app: Sphinx, what: str, _name: str, _found: object, _options: object, lines: list[str]) -> None:
    """Keep napoleon from reading ``#: id of the task; None: …`` of an attribute as a type and its description."""
    if what == "attribute":
        lines.insert(0, "\\ ")  # an escaped space is nothing, and has no colon


def without_errors() -> set[str]:
    """Return the public names that are no error of ``coord.errors``, which the reference of errors has."""
    return {name for name in coord.__all__ if not is_error(getattr(coord, name))}


def is_error(found: object) -> bool:
    """Return True for a class of the tree of errors."""
    return isinstance(found, type) and issubclass(found, CoordError) and found.__module__ == "coord.errors"
