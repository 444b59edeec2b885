"""What docs/protocol.md says, read from its tables and examples, and how the code's own types are worded there."""

from __future__ import annotations

import re
import shlex
from enum import Enum
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, inspect

from coord.models.agents import AgentStatus, AgentType, InboxDelivery, Location
from coord.models.api_keys import CallerRole, KeyId
from coord.models.facts import Lease, TaskCompleted
from coord.models.ids import ID_PATTERN
from coord.models.messages import MessageType, Protocol, RecipientFilter
from coord.models.tasks import Modifiers, Priority, Requirements, Retry, TaskSubmitted
from coord.models.tracing import TRACEPARENT_PATTERN
from tests.processes import ROOT

TEXT = (ROOT / "docs" / "protocol.md").read_text()
#: What is said once and named in many tables.
NAMED = {
    RecipientFilter: "RecipientFilter",
    AgentType: "agent type",
    CallerRole: "role",
    AgentStatus: "status",
    MessageType: "message type",
    Priority: "priority",
    Protocol: "message protocol",
    InboxDelivery: "push or poll",
    Location: "Location",
    Modifiers: "Modifiers",
    Requirements: "Requirements",
    Retry: "Retry",
    TaskCompleted: "task.completed",
    TaskSubmitted: "task.submitted",
}
_PATTERNS = {
    ID_PATTERN: "id",
    inspect.type_info(Lease).pattern: "lease",  # type: ignore[attr-defined] # a str with a pattern
    r"^[0-9]{1,20}-[0-9]{1,20}\Z": "entry id",
    r"^\S*\Z": "text 0-128 without spaces",
    r"^[0-9a-f]{64}\Z": "digest",
    inspect.type_info(KeyId).pattern: "id of an API key",  # type: ignore[attr-defined] # the same
    TRACEPARENT_PATTERN: "traceparent",
}


class Row(NamedTuple):
    """A field, as a table describes it."""

    name: str
    type: str
    default: str


def tables(heading: str) -> list[list[list[str]]]:
    """The tables under a heading (of any level), up to the next heading: rows of cells, without the header."""
    match = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert match, f"docs/protocol.md has no heading {heading!r}"
    found: list[list[list[str]]] = []
    is_inside = False
    for line in match[1].splitlines():
        if not line.startswith("|"):
            is_inside = False
            continue
        cells = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not is_inside:
            found.append([])
        elif not set(line) <= set("|-: "):
            found[-1].append(cells)
        is_inside = True
    return found


def words(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def first_column(table: list[list[str]]) -> list[str]:
    """Every word in backticks of the first column."""
    return [word for row in table for word in words(row[0])]


def rows(heading: str) -> list[Row]:
    """The fields that the first table under a heading describes: name, type, default."""
    return [
        Row(words(cells[0])[0], cells[1].replace("`", ""), cells[2].replace("`", "")) for cells in tables(heading)[0]
    ]


def rows_of(kind: type[Struct]) -> list[Row]:
    """The same, as the code has it."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return [Row(field.encode_name, worded(field.type) + _or_null(field), _default(field)) for field in info.fields]


def _or_null(field: inspect.Field) -> str:
    """Where null says something else than nothing at all."""
    is_nullable = isinstance(field.type, inspect.UnionType) and field.type.includes_none
    return " or null" if field.required and is_nullable else ""


def _default(field: inspect.Field) -> str:
    if field.required:
        return "required"
    default: Any = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if default is None:
        return "none"
    if isinstance(default, msgspec.Raw):
        return bytes(default).decode()
    return msgspec.json.encode(default).decode()


#: What needs no more than a word.
_PLAIN: dict[type[inspect.Type], str] = {
    inspect.AnyType: "any JSON",
    inspect.RawType: "any JSON",
    inspect.BoolType: "boolean",
    inspect.DateTimeType: "moment",
}


def worded(info: Any) -> str:
    """A type, its unit aside, in the document's words."""
    match info:
        case inspect.UnionType(types=types):
            return " or ".join(worded(one) for one in types if not isinstance(one, inspect.NoneType))
        case inspect.EnumType(cls=cls) | inspect.StructType(cls=cls):
            said = NAMED[cls]
        case inspect.IntType() | inspect.FloatType():
            said = ("integer" if isinstance(info, inspect.IntType) else "number") + _between(info)
        case inspect.StrType():
            said = _text(info)
        case inspect.LiteralType(values=values):
            said = " or ".join(map(str, values))
        case inspect.VarTupleType(item_type=item, min_length=least, max_length=most):
            said = f"list of {worded(item)}" + (f", {least} to {most}" if least else _at_most(most))
        case inspect.DictType(key_type=key, value_type=value, max_length=most):
            said = f"object of {worded(key)} to {worded(value)}" + _at_most(most)
        case _:
            said = _PLAIN[type(info)]
    return said


def _text(info: inspect.StrType) -> str:
    if info.pattern is not None:
        return _PATTERNS[info.pattern]
    return "text" if info.max_length is None else f"text {info.min_length or 0}-{info.max_length}"


def _between(info: inspect.IntType | inspect.FloatType) -> str:
    parts = [("≥", info.ge), (">", info.gt), ("≤", info.le), ("<", info.lt)]
    limits = ", ".join(f"{sign} {_number(limit)}" for sign, limit in parts if limit is not None)
    return f" {limits}" if limits else ""


def _at_most(most: int | None) -> str:
    return "" if most is None else f", at most {_number(most)}"


def _number(number: float) -> str:
    return f"{int(number) if float(number).is_integer() else number:,}"


def values(kind: type[Enum]) -> set[str]:
    """The values of an enumeration."""
    return {str(one.value) for one in kind}


class Example(NamedTuple):
    """An ``XADD`` of the document."""

    stream: str  #: without the namespace
    fields: dict[bytes, bytes]
    line: str


def examples() -> list[Example]:
    """Every ``XADD {coord}:… * name value …`` of a code block."""
    found: list[Example] = []
    for line in re.findall(r"^XADD .*$", TEXT, re.MULTILINE):
        _, key, *rest = shlex.split(line)
        pairs = [part.encode() for part in rest[rest.index("*") + 1 :]]
        found.append(Example(key.removeprefix("{coord}:"), dict(zip(pairs[::2], pairs[1::2], strict=True)), line))
    return found
