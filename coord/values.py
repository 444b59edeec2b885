"""JSON of values that users hand over and take: payloads, results, progress, messages.

msgspec encodes most types by itself. ``json_form`` adds those that have one obvious JSON form: models of pydantic
(which coord does not import), subclasses of the basic types, paths, scalars and arrays of numpy and of libraries like
it, mappings and sequences of any class. What has none is refused with the path of the value: ``result.pages[3].image``.

JSON has no NaN and no infinity. msgspec would write null in their place, so they are refused too.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import PurePath
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import msgspec.inspect
from msgspec import Raw, Struct, ValidationError

from coord.codec import BAD_JSON

#: Levels that are searched for the value at fault; a value that contains itself has no end.
DEPTH = 150
#: Characters of a path that are shown.
PATH_SHOWN = 200
#: Characters of a refused result that its error keeps: the work is paid for, and its text may be all that is left.
TEXT_KEPT = 1_200
#: Items of a list, a mapping or a set that this text shows.
ITEMS_SHOWN = 100
#: Errors of pydantic that a message names.
ERRORS_SHOWN = 5

#: A float in MessagePack that is NaN or infinite: its exponent has all bits set.
_NOT_FINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_NO_FORM = "type {} has no JSON form"


class Fault(NamedTuple):
    """The value that cannot be JSON, and why."""

    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


class ValueRefused(ValueError):
    """A value cannot be JSON: the ``Fault`` that was found in it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.path = fault.path


def json_form(value: Any) -> Any:
    """Return what is encoded in place of a value that msgspec does not know.

    Raises:
        NotImplementedError: it has no obvious JSON form.
    """
    for base, form in _BASIC:
        if isinstance(value, base):
            return form(value)
    kind = type(value)
    if kind in (tuple, frozenset):  # msgspec encodes them, but not as keys
        raise NotImplementedError(f"a {kind.__name__} cannot be the key of a mapping")
    if callable(getattr(kind, "model_dump", None)):  # pydantic
        return value.model_dump(mode="json")
    if hasattr(kind, "__fields__") and callable(getattr(kind, "dict", None)):  # pydantic before its second version
        return value.dict()
    if hasattr(kind, "dtype") and callable(getattr(kind, "tolist", None)):  # numpy, and tensors
        plain = value.tolist()
        if type(plain) is not kind:  # numpy's longdouble gives itself
            return plain
    for base, form in _CONTAINERS:
        if isinstance(value, base):
            return form(value)
    raise NotImplementedError(_NO_FORM.format(_type_name(kind)))


def encode(value: Any, field: str) -> bytes:
    """Return a value as JSON.

    Args:
        value: a user's.
        field: what it is called, the beginning of the path in the error.

    Raises:
        ValueRefused: it cannot be JSON; names the path of what cannot.
    """
    try:
        raw = _encode(value)
        if type(value) is Raw:
            _decode(raw)
    except Exception as error:
        # Whatever an object of the user's raises when it is encoded: a TypeError, an overflow, its own.
        raise ValueRefused(find_fault(value, field) or Fault(field, _reason(error))) from error
    if b"null" in raw and value is not None and (fault := find_number(value, field)) is not None:
        raise ValueRefused(fault)
    return raw


def check_raw(raw: Raw, field: str) -> None:
    """Check that JSON that is passed on as it is can be decoded by its reader.

    Raises:
        ValueRefused: it cannot, such as for a number that is too large; names its path.
    """
    try:
        _decode(raw)
    except BAD_JSON as error:
        raise ValueRefused(_fault_in_raw(raw, field) or Fault(field, _reason(error))) from None


def number_in_raw(raw: bytes | Raw, field: str) -> Fault | None:
    """Return the number for which JSON cannot be decoded, such as 1e999 or NaN; None if something else is wrong."""
    try:
        return find_fault(json.loads(bytes(raw), parse_int=_number, parse_float=_number), field)
    except (ValueError, RecursionError):
        return None


def why_undecodable(raw: bytes, field: str, error: Exception) -> str:
    """Return why JSON cannot be decoded, with the path of the value where that is known."""
    return str(_fault_in_raw(Raw(raw), field) or Fault(field, str(error)))


def encode_fields(fields: Struct | Mapping[str, Any]) -> bytes:
    """Return the fields of a fact as one JSON object.

    Raises:
        ValueRefused: one of them cannot be JSON; the path begins with its name.
    """
    try:
        raw = _encode(fields)
    except Exception as error:
        raise ValueRefused(find_fault(fields, "") or Fault("fields", _reason(error))) from error
    if b"null" in raw and (fault := find_number(fields, "")) is not None:
        raise ValueRefused(fault)
    return raw


def find_number(value: Any, path: str) -> Fault | None:
    """Return the first NaN or infinity in a value, if it has one."""
    try:
        # MessagePack has these numbers, so one look at its bytes shows that most values have none.
        if _NOT_FINITE.search(_pack(value)) is None:
            return None
    except Exception:  # noqa: BLE001, S110 -- what cannot be packed is searched value by value
        pass
    return find_fault(value, path)


def find_fault(value: Any, path: str, depth: int = 0) -> Fault | None:
    """Return the first part of a value that cannot be JSON, if it has one."""
    if depth > DEPTH:
        return Fault(path[:PATH_SHOWN], "nested too deeply, or contains itself")
    if (why := _number_at_fault(value)) is not None:
        return Fault(path[:PATH_SHOWN], why)
    try:
        return _fault_within(value, path, depth)
    except Exception as error:  # noqa: BLE001 -- an object of the user's may raise anything
        return Fault(path[:PATH_SHOWN], _reason(error))


def text_of(value: Any) -> str:
    """Return the beginning of a value's text, for the error that refuses it."""
    try:
        text = bytes(value).decode("utf-8", "replace") if isinstance(value, Raw) else _text.repr(value)
    except Exception:  # noqa: BLE001 -- a __repr__ of the user's may raise
        text = f"<{_type_name(type(value))}>"
    return text if len(text) <= TEXT_KEPT else f"{text[:TEXT_KEPT]}…"


def decoder_of(kind: Any) -> Callable[[bytes | Raw], Any]:
    """Return the function that decodes JSON as an annotated type.

    Raises:
        TypeError, NameError: nothing can be decoded as this type; says why.
    """
    if validate := _validator_of(kind):
        return partial(_validated, validate)
    if isinstance(msgspec.inspect.type_info(kind), msgspec.inspect.CustomType) and not _is_subclass_of_basic(kind):
        raise TypeError("annotate it with Task, with a pydantic model, or with what msgspec can decode")
    return msgspec.json.Decoder(kind, dec_hook=_from_json).decode


def _number_at_fault(value: Any) -> str | None:
    if isinstance(value, _Wide):
        return f"the number {value} is out of range"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{float.__repr__(value)} is not a JSON number; use null or a string for it"
    return None


def _fault_within(value: Any, path: str, depth: int) -> Fault | None:
    if isinstance(value, Enum):
        return find_fault(value.value, path, depth + 1)
    if isinstance(value, Raw):
        return _fault_in_raw(value, path)
    parts = _parts_of(value)
    if parts is None:
        return _fault_in_leaf(value, path, depth)
    found = (find_fault(part, f"{path}{step}".lstrip("."), depth + 1) for step, part in parts)
    return next((fault for fault in found if fault is not None), None)


def _fault_in_leaf(value: Any, path: str, depth: int) -> Fault | None:
    try:
        msgspec.json.encode(value)
    except TypeError:
        return find_fault(json_form(value), path, depth + 1)
    return None


def _fault_in_raw(raw: Raw, path: str) -> Fault | None:
    try:
        _decode(raw)
    except RecursionError:
        return Fault(path, "nested too deeply")
    except BAD_JSON as error:
        return number_in_raw(raw, path) or Fault(path, f"is not valid JSON: {error}")
    return None


class _Wide:
    """A number of JSON that cannot be decoded."""

    def __init__(self, digits: str) -> None:
        self.digits = digits

    def __str__(self) -> str:
        digits = self.digits
        return digits if len(digits) <= 24 else f"{digits[:12]}… ({len(digits)} characters)"


def _number(digits: str) -> Any:
    try:
        return msgspec.json.decode(digits)
    except msgspec.DecodeError:
        return _Wide(digits)


def _parts_of(value: Any) -> Iterable[tuple[str, Any]] | None:
    """The parts that a value is made of, each with its step in the path; None for one without parts."""
    if isinstance(value, Struct):
        return ((f".{name}", getattr(value, name)) for name in value.__struct_fields__)
    if isinstance(value, Mapping):
        return _items_of(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return [(f".{field.name}", getattr(value, field.name)) for field in fields if hasattr(value, field.name)]
    if attributes := getattr(type(value), "__attrs_attrs__", None):
        return [(f".{one.name}", getattr(value, one.name)) for one in attributes]
    if isinstance(value, list | tuple | AbstractSet) or (
        isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)
    ):
        return ((f"[{number}]", part) for number, part in enumerate(value))
    return None


def _items_of(value: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, part in value.items():
        _encode({key: None})  # a key that cannot be one is a fault of the mapping
        yield f".{key}" if isinstance(key, str) and _NAME.fullmatch(key) else f"[{key!r:.60}]", part


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "cannot be encoded as JSON: nested too deeply, or contains itself"
    try:
        return f"cannot be encoded as JSON: {error}"
    except Exception:  # noqa: BLE001 -- a __str__ of the user's may raise
        return f"cannot be encoded as JSON: {type(error).__name__}"


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _validator_of(kind: Any) -> Callable[[bytes], Any] | None:
    """The function of a pydantic model that validates JSON."""
    if not isinstance(kind, type):
        return None
    found = getattr(kind, "model_validate_json", None) or (
        getattr(kind, "parse_raw", None) if hasattr(kind, "__fields__") else None
    )
    return found if callable(found) else None


def _validated(validate: Callable[[bytes], Any], raw: bytes | Raw) -> Any:
    _decode(raw)  # pydantic would take a number that is out of range as infinity
    try:
        return validate(bytes(raw))
    except ValueError as error:
        raise ValidationError(_described(error)) from error


def _described(error: ValueError) -> str:
    """The text of pydantic's error in one line, each part with its path."""
    errors = getattr(error, "errors", None)
    if not callable(errors):
        return str(error)
    found = [f"{one['msg']} - at `{_path_of(one['loc'])}`" for one in errors()]
    more = [f"and {len(found) - ERRORS_SHOWN} more"] if len(found) > ERRORS_SHOWN else []
    return "; ".join(found[:ERRORS_SHOWN] + more)


def _path_of(steps: Iterable[str | int]) -> str:
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)


def _is_subclass_of_basic(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple(_DECODED))


def _from_json(kind: type[Any], value: Any) -> Any:
    """Decode what msgspec does not know, within what it knows."""
    if validate := _validator_of(kind):
        return _validated(validate, msgspec.json.encode(value))
    if isinstance(value, kind):
        return value
    for base, plain in _DECODED.items():
        if issubclass(kind, base):
            return kind(msgspec.convert(value, plain))
    raise ValidationError(f"nothing can be decoded as {_type_name(kind)}")


def _text_of_constant(value: Any) -> str:
    return {True: "true", False: "false", None: "null"}[value]


#: Type -> the form of its subclasses; the first that fits. True, False and None come here as keys of mappings alone.
_BASIC: tuple[tuple[type[Any], Callable[[Any], Any]], ...] = (
    (bool, _text_of_constant),
    (type(None), _text_of_constant),
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, bytes),
    (bytearray, bytes),
    (datetime, lambda value: datetime.combine(value.date(), value.timetz())),
    (date, lambda value: date(value.year, value.month, value.day)),
    (time, time.isoformat),
    (timedelta, lambda value: timedelta(value.days, value.seconds, value.microseconds)),
    (UUID, UUID.__str__),
    (Decimal, Decimal.__str__),
    (os.PathLike, os.fspath),
)
_CONTAINERS: tuple[tuple[type[Any], Callable[[Any], Any]], ...] = (
    (Mapping, dict),
    (AbstractSet, list),
    (Sequence, list),
)

#: Type -> what its subclasses are decoded from.
_DECODED: dict[type[Any], type[Any]] = {str: str, int: int, float: float, PurePath: str}

_encode = msgspec.json.Encoder(enc_hook=json_form).encode
_pack = msgspec.msgpack.Encoder(enc_hook=json_form).encode
_decode = msgspec.json.Decoder().decode

_text = reprlib.Repr()
_text.maxlevel = 12
_text.maxstring = _text.maxother = _text.maxlong = TEXT_KEPT
_text.maxdict = _text.maxlist = _text.maxtuple = _text.maxset = _text.maxfrozenset = _text.maxdeque = ITEMS_SHOWN
