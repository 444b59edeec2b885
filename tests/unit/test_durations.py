"""The type of options that take a time."""

from __future__ import annotations

import click
import pytest

from coord.cli.parse import Duration
from coord.errors import ConfigError


def parse(text: str, duration: Duration | None = None) -> float:
    """Return the seconds that an option ``--ttl`` gets."""
    return (duration or Duration()).convert(text, click.Option(["--ttl"]), None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("0", 0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1.5m", 90),
        ("12h", 43_200),
        ("7d", 604_800),
        ("250ms", 0.25),
        (" 2 h ", 7_200),
    ],
)
def test_a_duration_has_a_unit_or_is_in_seconds(text: str, seconds: float) -> None:
    """All units are accepted."""
    assert parse(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "1w", "1e3", "h", "1h30m", "٣", "1,5h", "nan", "inf"])
def test_an_invalid_duration_is_refused(text: str) -> None:
    """The error names the option, the value as typed, and valid values."""
    with pytest.raises(ConfigError) as raised:
        parse(text)
    assert str(raised.value) == f"--ttl must be a time such as 1.5 (seconds), 30s, 5m, 2h or 7d, got {text!r}"


@pytest.mark.parametrize(
    ("text", "duration", "limit"),
    [
        ("-5", Duration(), "0 or more"),
        ("0", Duration(above=True), "above 0"),
        ("5s", Duration(0, 4.5), "4.5 seconds or less"),
        ("10ms", Duration(0.05), "0.05 seconds or more"),
    ],
)
def test_a_duration_out_of_range_is_refused(text: str, duration: Duration, limit: str) -> None:
    """The error names the limit."""
    with pytest.raises(ConfigError, match=f"^--ttl must be {limit}, got {text}$"):
        parse(text, duration)
