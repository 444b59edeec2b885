"""Checks of the arguments that users pass to the SDK; each error names the argument as the user knows it.

Workers and the gateway report an error of an entry with the path in its JSON, as msgspec does. A caller of the SDK and
of the command line has typed an argument, so here the error of a fact has the name of the argument, its valid values
and its value.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from msgspec import Raw, Struct

from coord import codec, values
from coord.config import Settings
from coord.errors import ConfigError, FactInvalid, PayloadInvalid
from coord.models.facts import TYPE_OF, Fact
from coord.models.ids import ID_PATTERN
from coord.suggestions import closest, suggest

T = TypeVar("T")

#: Name of the field that holds any JSON of the caller.
PAYLOAD = "payload"


def as_words(value: object, field: str) -> tuple[str, ...]:
    """Return a list of words as a tuple; a single string is refused, because it would be split into its letters.

    Raises:
        FactInvalid: it is not a list.
    """
    if isinstance(value, str):
        raise FactInvalid(f"{field}: expected a list of words, such as [{value!r}], not {value!r}")
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise FactInvalid(f"{field}: expected a list of words, not {_describe(value)}")
    return tuple(value)


def check_text(value: object, field: str, max_length: int = 128) -> None:
    """Check that the value is text of 1 to ``max_length`` characters.

    Raises:
        FactInvalid: it is not.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= max_length:
        raise FactInvalid(f"{field}: expected text of 1 to {max_length} characters, not {_describe(value)}")


def as_list(value: object, kind: type[T], field: str) -> list[T]:
    """Return several objects of one class as a list.

    Raises:
        FactInvalid: it is not a list, or has an object of another class; names that class.
    """
    items: list[T] = []
    for item in value if isinstance(value, Iterable) else [value]:
        if not isinstance(item, kind):
            raise FactInvalid(f"{field}: expected a list of {kind.__name__}, not {type(item).__name__}")
        items.append(item)
    return items


def as_dict(value: object, field: str) -> dict[str, Any]:
    """Return a mapping as a dict; None is an empty one.

    Raises:
        FactInvalid: it is not a mapping.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise FactInvalid(f"{field}: expected a mapping, not {_describe(value)}")
    return dict(value)


def as_seconds(value: object, field: str) -> float:
    """Return a duration in seconds; a negative one is 0.

    Raises:
        FactInvalid: it is not a finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FactInvalid(f"{field}: expected a number of seconds, not {_describe(value)}")
    return max(0.0, value)


def check_count(value: object, field: str, most: int, *, least: int = 1) -> None:
    """Check that the value is a whole number from ``least`` to ``most``.

    Raises:
        FactInvalid: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise FactInvalid(f"{field}: expected a whole number from {least} to {most:,}, not {_describe(value)}")


def check_limit(value: object) -> None:
    """Check that the value is a maximum number of items, at least 1.

    Raises:
        FactInvalid: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise FactInvalid(f"limit: expected a whole number of at least 1, not {_describe(value)}")


def check_finite(value: object, field: str) -> None:
    """Check that no number is NaN or infinite: JSON has neither, so they would be sent as null, like a missing value.

    Raises:
        FactInvalid: the value is such a number, or a Struct or a mapping with one; names its field.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise FactInvalid(f"{field}: expected a finite number, not {value}")
    elif isinstance(value, Struct):
        for name in value.__struct_fields__:
            check_finite(getattr(value, name), f"{field}.{name}".lstrip("."))
    elif isinstance(value, Mapping):
        for name, item in value.items():
            check_finite(item, f"{field}.{name}".lstrip("."))


def check_known(value: object, kind: type[Struct], field: str) -> None:
    """Check that a mapping has only fields of ``kind``; a misspelt name would be ignored silently.

    Raises:
        FactInvalid: it has another name; suggests the nearest field.
    """
    if not isinstance(value, Mapping):
        return
    fields = kind.__struct_fields__
    for name in value:
        if name not in fields:
            raise FactInvalid(f"{field}: no field {name!r}; {suggest(str(name), fields)}")


def encode_fields(fields: Struct | Mapping[str, Any]) -> bytes:
    """Return the fields of a fact as JSON.

    Raises:
        PayloadInvalid: its payload cannot be encoded as JSON; names the path of the value.
        FactInvalid: another field cannot.
    """
    try:
        return values.encode_fields(fields)
    except values.ValueRefused as error:
        raise _refused(error) from error


def check_payload(payload: object) -> None:
    """Check a payload that is JSON already (``msgspec.Raw``); ``encode_fields`` checks any other.

    Raises:
        PayloadInvalid: its reader could not decode it; names the path of the value.
    """
    if type(payload) is Raw:
        try:
            values.check_raw(payload, PAYLOAD)
        except values.ValueRefused as error:
            raise _refused(error) from error


def _refused(error: values.ValueRefused) -> FactInvalid:
    kind = PayloadInvalid if error.path.startswith(PAYLOAD) else FactInvalid
    return kind(str(error))


def check_connection_options(url: object, settings: object) -> None:
    """Check ``url`` and ``settings`` of a client or an agent; each may be None.

    Raises:
        ConfigError: one of them has the wrong type.
    """
    if url is not None and not isinstance(url, str):
        raise ConfigError(f"url: expected text, such as 'redis://127.0.0.1:6379', not {_describe(url)}")
    if settings is not None and not isinstance(settings, Settings):
        raise ConfigError(f"settings: expected coord.config.Settings, not {_describe(settings)}")


def _describe(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 -- an object of the user may raise anything
        text = ""
    return text if 0 < len(text) <= 60 else type(value).__name__


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
        raise FactInvalid(describe_field_error(str(error), kind, data)) from None


def describe_field_error(error: str, kind: type[Struct], data: bytes) -> str:
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
