"""Lengths of time as they are typed: 90, 90s, 15m, 12h, 7d."""

from __future__ import annotations

import re

from coord.errors import ConfigError

_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_LENGTH = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?(ms|s|m|h|d|)")


def seconds_of(text: str, option: str) -> float:
    """Seconds of a length of time; without a unit they are meant.

    Raises:
        ConfigError: it is none; names ``option``.
    """
    found = _LENGTH.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"{option}: {text!r} is not a length of time; write it as 90, 90s, 15m, 12h or 7d")
    return float(found.group(1)) * _UNITS[found.group(2)]
