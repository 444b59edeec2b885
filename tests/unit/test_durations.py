"""Lengths of time as they are typed."""

from __future__ import annotations

import pytest

from coord.cli.durations import seconds_of
from coord.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("0", 0),
        ("1.5m", 90),
        ("12h", 43_200),
        ("7d", 604_800),
        ("250ms", 0.25),
        (" 2 h ", 7_200),
    ],
)
def test_a_length_of_time(text: str, seconds: float) -> None:
    """With a unit, or in seconds."""
    assert seconds_of(text, "--ttl") == seconds


@pytest.mark.parametrize("text", ["", "x", "-1", "1w", "1e3", "h", "1h30m", "٣", "1,5h"])
def test_what_is_none(text: str) -> None:
    """It names the option and shows how to write it."""
    with pytest.raises(ConfigError, match=r"^--ttl: .* is not a length of time; write it as 90, 90s, 15m, 12h or 7d$"):
        seconds_of(text, "--ttl")
