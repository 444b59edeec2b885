"""Decodes the query of a request as a Struct, with an error that names the parameter.

A field that is a list takes a repeated parameter or values with commas: ``?tags=a&tags=b`` or ``?tags=a,b``. A field
that is an object takes ``name=value``: ``?labels=zone=eu``. Of another parameter that is repeated, the last value
counts. Parameters that are no field are ignored, as unknown keys of a body are.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct

from coord.gateway.errors import Problem, RequestError, problem_of, sentence

Q = TypeVar("Q", bound=Struct)

#: Maximum number of parameters.
MOST = 200


def decode_query(query: bytes, kind: type[Q]) -> Q:
    """Decode a query.

    Args:
        query: as it came, percent-encoded.
        kind: the Struct; each of its fields has a default or is required.

    Raises:
        RequestError: it does not fit; ``detail`` names the parameter.
    """
    if not query:
        return _convert({}, {}, kind)
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MOST)
    except UnicodeDecodeError:
        raise _refused(["query"], "not valid UTF-8") from None
    except ValueError:
        raise _refused(["query"], f"more than {MOST} parameters") from None
    lists, objects = _shapes(kind)
    values: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for name, text in pairs:
        texts[name] = text
        if name in lists:
            values.setdefault(name, []).extend(part for part in text.split(",") if part)
        elif name in objects:
            key, sign, value = text.partition("=")
            if not sign:
                raise _refused(["query", name], f"expected {name}=NAME=VALUE, got {text[:60]!r}")
            values.setdefault(name, {})[key] = value
        else:
            values[name] = text
    return _convert(values, texts, kind)


def _convert(values: dict[str, Any], texts: dict[str, str], kind: type[Q]) -> Q:
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        problem = problem_of(str(error), ("query",))
        name = problem.loc[1] if len(problem.loc) > 1 else None
        if name in texts:
            text = texts[str(name)]
            problem = Problem(problem.loc, f"{problem.msg.partition(', got ')[0]}, got {text[:60]!r}", problem.type)
        raise RequestError("query_invalid", sentence(problem), [problem]) from None


def _refused(loc: list[str | int], message: str) -> RequestError:
    problem = Problem(loc, message, "value_error")
    return RequestError("query_invalid", sentence(problem), [problem])


@cache
def _shapes(kind: type[Struct]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of the fields that are lists, and of those that are objects."""
    lists, objects = set(), set()
    for field in msgspec.structs.fields(kind):
        found = msgspec.inspect.type_info(field.type)
        parts = found.types if isinstance(found, msgspec.inspect.UnionType) else (found,)
        for part in parts:
            inner = part.type if isinstance(part, msgspec.inspect.Metadata) else part
            if isinstance(inner, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
                lists.add(field.encode_name)
            elif isinstance(inner, msgspec.inspect.DictType):
                objects.add(field.encode_name)
    return frozenset(lists), frozenset(objects)
