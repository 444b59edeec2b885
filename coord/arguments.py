"""What callers of the SDK hand over, before it goes anywhere: a slip is told with the name of what does not fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from msgspec import Raw, Struct

from coord import values
from coord.config import Settings
from coord.errors import ConfigError, FactInvalid, PayloadInvalid

T = TypeVar("T")

#: The field that holds any JSON of the caller's.
PAYLOAD = "payload"


def listed(given: object, field: str) -> tuple[str, ...]:
    """Several words; a single string is not taken for its letters.

    Raises:
        FactInvalid: it is no list.
    """
    if isinstance(given, str):
        raise FactInvalid(f"{field}: expected a list of words, such as [{given!r}], not {given!r}")
    if isinstance(given, bytes | Mapping) or not isinstance(given, Iterable):
        raise FactInvalid(f"{field}: expected a list of words, not {_shown(given)}")
    return tuple(given)


def check_text(given: object, field: str, most: int = 128) -> None:
    """Whether it is text of 1 to ``most`` characters.

    Raises:
        FactInvalid: it is not.
    """
    if not isinstance(given, str) or not 1 <= len(given) <= most:
        raise FactInvalid(f"{field}: expected text of 1 to {most} characters, not {_shown(given)}")


def all_of(given: object, kind: type[T], field: str) -> list[T]:
    """Several objects of one kind.

    Raises:
        FactInvalid: it is no list, or has something else; names the type of that.
    """
    several: list[T] = []
    for one in given if isinstance(given, Iterable) else [given]:
        if not isinstance(one, kind):
            raise FactInvalid(f"{field}: expected a list of {kind.__name__}, not {type(one).__name__}")
        several.append(one)
    return several


def mapped(given: object, field: str) -> dict[str, Any]:
    """Names with their values; None: there are none.

    Raises:
        FactInvalid: it is no mapping.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise FactInvalid(f"{field}: expected a mapping, not {_shown(given)}")
    return dict(given)


def seconds(given: object, field: str) -> float:
    """A wait, in seconds; below 0: none.

    Raises:
        FactInvalid: it is no finite number.
    """
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise FactInvalid(f"{field}: expected a number of seconds, not {_shown(given)}")
    return max(0.0, given)


def check_finite(value: object, field: str) -> None:
    """JSON has no NaN and no infinity, which would be sent as null: as if nothing had been said.

    Raises:
        FactInvalid: it is such a number, or a Struct or a mapping with one; names it.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise FactInvalid(f"{field}: expected a finite number, not {value}")
    elif isinstance(value, Struct):
        for name in value.__struct_fields__:
            check_finite(getattr(value, name), f"{field}.{name}".lstrip("."))
    elif isinstance(value, Mapping):
        for name, one in value.items():
            check_finite(one, f"{field}.{name}".lstrip("."))


def check_known(given: object, kind: type[Struct], field: str) -> None:
    """A misspelt name would be passed over, and ask for nothing.

    Raises:
        FactInvalid: a mapping has a name that is no field of ``kind``; names the nearest that is one.
    """
    if not isinstance(given, Mapping):
        return
    fields = kind.__struct_fields__
    for name in given:
        if name not in fields:
            near = get_close_matches(str(name), fields, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it may have {', '.join(fields)}"
            raise FactInvalid(f"{field}: no field {name!r}; {hint}")


def encoded(said: Struct | Mapping[str, Any]) -> bytes:
    """Return the JSON of a fact's fields.

    Raises:
        PayloadInvalid: its payload cannot be made JSON; names the path of what cannot.
        FactInvalid: another field cannot.
    """
    try:
        return values.encode_fields(said)
    except values.ValueRefused as error:
        raise _refused(error) from error


def check_payload(payload: object) -> None:
    """Check a payload that is JSON already (``msgspec.Raw``); ``encoded`` checks any other.

    Raises:
        PayloadInvalid: its reader could not decode it; names the path of what cannot be decoded.
    """
    if type(payload) is Raw:
        try:
            values.check_raw(payload, PAYLOAD)
        except values.ValueRefused as error:
            raise _refused(error) from error


def _refused(error: values.ValueRefused) -> FactInvalid:
    kind = PayloadInvalid if error.path.startswith(PAYLOAD) else FactInvalid
    return kind(str(error))


def check_place(url: object, settings: object) -> None:
    """Where a client or an agent is to connect.

    Raises:
        ConfigError: it is neither None nor what it should be.
    """
    if url is not None and not isinstance(url, str):
        raise ConfigError(f"url: expected text, such as 'redis://127.0.0.1:6379', not {_shown(url)}")
    if settings is not None and not isinstance(settings, Settings):
        raise ConfigError(f"settings: expected coord.config.Settings, not {_shown(settings)}")


def _shown(value: object) -> str:
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001 -- what is the caller's may raise anything
        shown = ""
    return shown if 0 < len(shown) <= 60 else type(value).__name__
