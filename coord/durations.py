"""Lengths of time as a person writes them: ``1.5`` (seconds), ``250ms``, ``30s``, ``5m``, ``2h``, ``7d``."""

from __future__ import annotations

import re

#: Unit -> seconds.
UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
NUMBER = r"[0-9]{1,12}(?:\.[0-9]{0,20})?|\.[0-9]{1,20}"
#: Valid values, for errors.
EXPECTED = "a time such as 1.5 (seconds), 30s, 5m, 2h or 7d"
_DURATION = re.compile(rf"(-?(?:{NUMBER})) ?(ms|s|m|h|d|)")


def parse_duration(text: str) -> float | None:
    """Return the number of seconds; None if the text is not a length of time. It may be negative."""
    found = _DURATION.fullmatch(text.strip())
    return None if found is None else float(found[1]) * UNITS[found[2]]
