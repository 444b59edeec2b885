"""Errors of facts that were built from arguments of a user: each names the field as the user knows it.

Workers and the gateway report an error of an entry with the path in its JSON, as msgspec does. A caller of the SDK and
of the command line has typed an argument, so here the error has its name, its valid values and its value.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from msgspec import Struct

from coord import codec
from coord.errors import FactInvalid
from coord.models.facts import TYPE_OF, Fact
from coord.models.ids import ID_PATTERN
from coord.suggestions import closest

#: Maximum characters of a value in an error.
MAX_SHOWN = 60
_PLACED = re.compile(r"(?P<problem>.+?) - at (?P<key>`key` in )?`\$\.?(?P<path>[^`]*)`", re.DOTALL)
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_RANGE = re.compile(r"Expected `(?:int|float)` (<=|>=|<|>) (-?[0-9.e+]+)")
_LENGTH = re.compile(r"Expected `(str|array|object)` of length (<=|>=) (\d+)")
_TYPE = re.compile(r"Expected `([^`]+)`, got `([^`]+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)`")
_MISSING = re.compile(r"Object missing required field `([^`]*)`")
#: JSON type -> its name for a person.
_NAMES = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "a mapping",
    "array": "a list",
    "datetime": "a date and time",
    "null": "nothing",
}
_BOUNDS = {">=": "{} or more", "<=": "{} or less", ">": "above {}", "<": "below {}"}
#: Part of an error -> what the value must do.
_SENTENCES = {
    repr(ID_PATTERN): "be 1 to 128 characters of A-Z a-z 0-9 . _ @ -",
    "RFC3339": "be a date and time such as 2030-01-31T12:00:00Z",
    "timezone": "be a date and time with a time zone, such as 2030-01-31T12:00:00Z",
}
_UNITS = {"str": "characters", "array": "items", "object": "items"}


def decode_argument(stream: str, kind: type[Struct], data: bytes, max_bytes: int) -> Fact:
    """Return the fact that a worker will decode from ``data``, the JSON of arguments.

    Raises:
        FactInvalid: an argument does not fit; names it, its valid values and its value.
        FactTooLarge: the fact has more than ``max_bytes``.
    """
    try:
        return codec.decode_fact(stream, {b"type": TYPE_OF[kind].encode(), b"data": data}, max_bytes)
    except FactInvalid as error:
        raise FactInvalid(explain(str(error), kind, data)) from None


def explain(error: str, kind: type[Struct], data: bytes) -> str:
    """Return the error of ``codec.decode_fact`` as an error of the argument.

    Args:
        error: such as ``field 'data': Expected `float` >= 0.0 - at `$.delay```.
        kind: of the fact.
        data: its JSON.
    """
    message = error.removeprefix("field 'data': ")
    found = _PLACED.fullmatch(message)
    problem = message if found is None else found["problem"]
    steps = [] if found is None else _STEP.findall(found["path"])
    path = "" if found is None else found["path"].replace("[...]", "")
    hint = _type_at(kind, steps)
    if missing := _MISSING.fullmatch(problem):
        return f"{_joined(path, missing[1])} is missing"
    if unknown := _UNKNOWN.fullmatch(problem):
        return _unknown(path, unknown[1], hint)
    if not path:
        return message
    expected = _expected(problem, hint)
    if found is not None and found["key"]:
        return f"a name in {path} must {expected}"
    try:
        return f"{path} must {expected}, got {_shown(_value_at(data, steps))}"
    except codec.BAD_JSON:  # after the place of the error
        return f"{path} must {expected}"


def enum_values(kind: type[Struct], path: Sequence[str | int]) -> tuple[str, ...]:
    """Return the valid values of a field, if they are those of an enum; ``path`` leads to it from a ``kind``."""
    hint = _type_at(kind, [(step, "") if isinstance(step, str) else ("", str(step)) for step in path])
    return tuple(str(member.value) for member in hint) if isinstance(hint, type) and issubclass(hint, Enum) else ()


def _expected(problem: str, hint: Any) -> str:
    """Return the valid values, as what follows ``must``."""
    if bound := _RANGE.fullmatch(problem):
        return "be " + _BOUNDS[bound[1]].format(f"{float(bound[2]):.15g}")
    if length := _LENGTH.fullmatch(problem):
        limit = "at least" if length[2] == ">=" else "at most"
        return "not be empty" if length[0].endswith(">= 1") else f"have {limit} {length[3]} {_UNITS[length[1]]}"
    if wrong := _TYPE.fullmatch(problem):
        return "be " + " or ".join(_NAMES.get(name, name) for name in wrong[1].split(" | ") if name != "null")
    if problem.startswith("Invalid enum value") and isinstance(hint, type) and issubclass(hint, Enum):
        return f"be one of {', '.join(str(member.value) for member in hint)}"
    for part, expected in _SENTENCES.items():
        if part in problem:
            return expected
    return "be " + problem.replace("`", "").removeprefix("Expected ")


def _unknown(path: str, name: str, hint: Any) -> str:
    fields = getattr(hint, "__struct_fields__", ())
    near = closest(name, fields)
    step = f"did you mean {near!r}?" if near else f"known are {', '.join(fields)}"
    return f"{path or 'it'} has no field {name!r}; {step}"


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _type_at(kind: Any, steps: list[tuple[str, str]]) -> Any:
    """Return the type of a part of a fact, without None and without constraints."""
    hint: Any = kind
    for name, _ in steps:
        if name and isinstance(hint, type) and issubclass(hint, Struct):
            hint = _plain(get_type_hints(hint, include_extras=True).get(name))
        else:
            parts = [part for part in get_args(hint) if part is not ...]
            hint = _plain(parts[-1]) if parts else None
    return hint


def _plain(hint: Any) -> Any:
    while get_origin(hint) in {Annotated, Union, types.UnionType}:
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    return hint


def _value_at(data: bytes, steps: list[tuple[str, str]]) -> Any:
    """Return the value at a path, or the nearest one around it if the path does not lead to one value.

    Raises: as ``codec.decode_json``.
    """
    value: Any = codec.decode_json(data)
    for name, index in steps:
        if name and isinstance(value, Mapping) and name in value:
            value = value[name]
        elif index.isdecimal() and isinstance(value, list):
            value = value[int(index)]
        else:
            break
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 2]} …"
