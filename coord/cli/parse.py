"""What a person typed, as values: JSON, ``NAME=VALUE``, moments. A slip is answered with what would fit."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from coord.errors import ConfigError
from coord.models.tasks import check_moment

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_LENGTH = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])")


def payload(said: str | None) -> msgspec.Raw:
    """The payload that an argument gives: JSON, ``-`` for what is on standard input, nothing for ``{}``.

    Raises:
        ConfigError: it is no JSON; shows how text is given.
    """
    if said is None:
        return msgspec.Raw(b"{}")
    raw = sys.stdin.buffer.read() if said == "-" else said.encode("utf-8", "surrogateescape")
    try:
        msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        where = "standard input" if said == "-" else "PAYLOAD"
        raise ConfigError(f"{where} is not JSON ({error}); text is given as '\"text\"', an object as '{{}}'") from None
    return msgspec.Raw(raw.strip())


def pairs(said: Sequence[str], option: str) -> dict[str, str]:
    """``NAME=VALUE``, any number of them.

    Raises:
        ConfigError: one has no ``=`` or no name; names the option.
    """
    found: dict[str, str] = {}
    for one in said:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise ConfigError(f"{option} {one!r} is not NAME=VALUE, such as {option} zone=eu")
        found[name] = value
    return found


def moment(said: str, option: str, *, ahead: bool) -> datetime:
    """A moment: RFC 3339, or how far from now, as ``90s``, ``5m``, ``2h``, ``1d``.

    Args:
        said: what was typed.
        option: for the message.
        ahead: whether a length counts forwards from now, or back.

    Raises:
        ConfigError: it is neither, or outside the years 1 to 9999 in UTC.
    """
    try:
        found = _moment(said, option, ahead=ahead)
        check_moment(found, option)
    except (OverflowError, ValueError):
        raise ConfigError(f"{option} {said!r} is outside the years 1 to 9999 in UTC") from None
    return found


def _moment(said: str, option: str, *, ahead: bool) -> datetime:
    if length := _LENGTH.fullmatch(said):
        offset = timedelta(seconds=float(length[1]) * _UNITS[length[2]])
        return datetime.now(UTC) + (offset if ahead else -offset)
    try:
        found = datetime.fromisoformat(said)
    except ValueError:
        raise ConfigError(
            f"{option} {said!r} is neither a moment, such as 2030-01-31T12:00:00Z, nor a length of time, such as 5m"
        ) from None
    return found if found.tzinfo else found.astimezone()


def writable(path: Path, option: str) -> Any:
    """The file, opened to be written anew.

    Raises:
        ConfigError: it cannot be; says why.
    """
    try:
        return path.open("wb")
    except OSError as error:
        raise ConfigError(f"{option}: cannot write {path}: {error.strerror}; name another file") from None
