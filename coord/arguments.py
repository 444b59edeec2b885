"""Checks of the arguments that users pass to the SDK; each error names the argument that does not fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from msgspec import Raw, Struct

from coord import values
from coord.config import Settings
from coord.errors import ConfigError, FactInvalid, PayloadInvalid
from coord.suggestions import suggest

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
